"""Data: sources of records, what is done to an image, and batches for one of several hosts."""

from vit_jax.data.source import (
    IMAGE_SUFFIXES,
    ArraySource,
    Subset,
    default_splits,
    open_source,
    record_names,
)
from vit_jax.data.transforms import DEFAULT_EVALUATION, decode, evaluation_transform, make_transform

__all__ = [
    "DEFAULT_EVALUATION",
    "IMAGE_SUFFIXES",
    "ArraySource",
    "Subset",
    "batches_ahead",
    "decode",
    "default_splits",
    "eval_batches",
    "evaluation_transform",
    "make_transform",
    "open_source",
    "record_names",
    "train_batches",
]


def __getattr__(name: str):
    """Grain takes a second to import; only who makes batches waits for it."""
    if name in ("batches_ahead", "eval_batches", "train_batches"):
        from vit_jax.data import batches

        return getattr(batches, name)
    raise AttributeError(f"module 'vit_jax.data' has no attribute {name!r}")
