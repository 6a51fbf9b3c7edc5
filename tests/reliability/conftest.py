"""One small model in every format that holds weights."""

import numpy as np
import pytest

from vit_jax import models
from vit_jax.interop import convert, npz, timm
from vit_jax.models import saved


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """native/, timm/, huggingface/ and official.npz."""
    root = tmp_path_factory.mktemp("weights")
    config = models.get_config("debug", num_classes=3)
    rng = np.random.default_rng(0)
    params = {
        path: rng.standard_normal(leaf.shape, np.float32)
        for path, leaf in models.abstract_params(config).items()
    }
    saved.save(root / "native", config, params)
    npz.save(root / "official.npz", config, params)
    timm.save(root / "timm", config, params)
    convert.FORMATS["huggingface"].save(root / "huggingface", config, params)
    return root
