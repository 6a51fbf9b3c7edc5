"""Data: sources of records, image transforms, and the batches of each host.

May import files and errors.
"""

from vit_jax.data.decode import decode, picture, stored
from vit_jax.data.source import ArraySource, Record, Source, Subset
from vit_jax.data.specs import choose_splits, default_splits, evaluation_spec, open_source
from vit_jax.data.transforms import (
    DEFAULT_EVALUATION,
    FOREIGN_EVALUATION,
    evaluation_transform,
    make_transform,
)

__all__ = [
    "DEFAULT_EVALUATION",
    "FOREIGN_EVALUATION",
    "ArraySource",
    "BadImages",
    "Record",
    "Source",
    "Subset",
    "batches_ahead",
    "choose_splits",
    "decode",
    "default_splits",
    "eval_batches",
    "evaluation_spec",
    "evaluation_transform",
    "make_transform",
    "open_source",
    "picture",
    "stored",
    "train_batches",
]


def __getattr__(name: str):
    """Imported lazily: Grain takes a second to import, and only batches need it."""
    if name in ("BadImages", "batches_ahead", "eval_batches", "train_batches"):
        from vit_jax.data import batches

        return getattr(batches, name)
    raise AttributeError(f"module 'vit_jax.data' has no attribute {name!r}")
