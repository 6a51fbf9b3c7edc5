"""The product of CPUs in bfloat16: rounded operands, exact otherwise, in both directions."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import layers


def rounded(x):
    return np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32), np.float64)


@pytest.mark.parametrize(
    "rows, i, o",
    [(1, 7, 5), (6, 1024, 3), (2, 64, 10), (3, 5, 7), (17, 64, 128), (33, 96, 24), (8, 1, 1)],
)
def test_product_and_gradients_by_hand(rows, i, o):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (rows, i)), jax.random.normal(keys[1], (i, o))
    dy = jax.random.normal(keys[2], (rows, o))
    y, pull = jax.vjp(jax.jit(layers.bfloat16_product), x, kernel)
    dx, dkernel = jax.jit(pull)(dy)
    assert y.dtype == dx.dtype == dkernel.dtype == jnp.float32
    a, b, c = rounded(x), rounded(kernel), rounded(dy)
    for found, wanted in ((y, a @ b), (dx, c @ b.T), (dkernel, a.T @ c)):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


SCRIPT = """
import json, jax, jax.numpy as jnp, numpy as np
from vit_jax import models
from vit_jax.models import layers
assert jax.device_count() == 1 and layers.stored(jnp.bfloat16) == jnp.float32
found = {}
cases = ("debug", {}), ("Ti/16", {"num_layers": 2}), ("debug", {"scan": True, "remat": True})
for variant, more in cases:
    config = models.get_config(variant, image_size=32, num_classes=5, **more)
    init, _ = models.as_functions(config)
    params = init(jax.random.key(0))
    params["head/kernel"] = jax.random.normal(jax.random.key(1), params["head/kernel"].shape)
    images = jax.random.uniform(jax.random.key(2), (4, 32, 32, 3), minval=-1)
    results = []
    for dtype in ("float32", "bfloat16"):
        _, apply = models.as_functions(models.replace(config, dtype=dtype))
        loss = lambda p: jnp.square(apply(p, images)).mean()
        logits = apply(params, images)
        results.append((logits, jax.jit(jax.grad(loss))(params)))
    (a, ga), (b, gb) = results
    norm = lambda tree: sum(float(jnp.square(x).sum()) for x in tree.values()) ** 0.5
    name = f"{variant} {more}"
    found[name] = [
        float(jnp.abs(a - b).max() / jnp.abs(a).max()),
        norm({k: ga[k] - gb[k] for k in ga}) / norm(ga),
    ]
print(json.dumps(found))
"""


def test_models_on_one_cpu_device_in_bfloat16():
    """Logits and gradients within what rounding operands to 8 bits allows, of those in float32."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name, (logits, gradients) in json.loads(done.stdout).items():
        assert 1e-5 < logits < 0.02, (name, logits)
        assert 1e-5 < gradients < 0.04, (name, gradients)
