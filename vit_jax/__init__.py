"""vit_jax: the Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929), in JAX.

model = vit_jax.create_model("B/16", num_classes=1000)
model = vit_jax.load_model("path of a checkpoint")
logits = model(images)                    # (b, h, w, 3) in [-1, 1] -> (b, num_classes)
vit_jax.predict(model, ["cat.jpg"])       # classes and probabilities
run = vit_jax.train("folder:/data/pets")  # as `vit-jax train` does; the directory of the run
vit_jax.report(run)                       # its page, shown in a notebook
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"
__all__ = [
    "create_model",
    "load_model",
    "predict",
    "preprocess",
    "report",
    "resize_position_embedding",
    "save_model",
    "train",
    "variants",
]

_HOMES = {
    "create_model": "vit_jax.interop.load",
    "load_model": "vit_jax.interop.load",
    "predict": "vit_jax.evaluation.in_python",
    "preprocess": "vit_jax.data.photos",
    "report": "vit_jax.pages.inline",
    "save_model": "vit_jax.interop.load",
    "train": "vit_jax.training.in_python",
    "resize_position_embedding": "vit_jax.models.adapt",
    "variants": "vit_jax.models.variants",
}


def __getattr__(name: str):
    """Loads the API lazily, so that `import vit_jax` and `--help` stay fast."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vit_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
