"""`hf:ORG/NAME`: data sets of the Hugging Face hub, and directories of one."""

from __future__ import annotations

import os

from vit_jax.data.source import Columns, TableSource
from vit_jax.data.splits import SPLIT_NAMES, Splits
from vit_jax.errors import UserError


def open_hf(name: str, data_dir: str | None) -> Splits:
    """A data set of the Hugging Face hub (its cache serves offline) or a local directory of one."""
    try:
        import datasets
    except ImportError:
        raise UserError("hf: data needs the extra packages: pip install 'vit_jax[hf]'.") from None
    try:
        if os.path.isdir(name) and not os.path.exists(os.path.join(name, "dataset_dict.json")):
            splits = datasets.load_dataset(name)
        elif os.path.isdir(name):
            splits = datasets.load_from_disk(name)
        else:
            splits = datasets.load_dataset(name)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"hf:{name} cannot be loaded ({reason}).") from error
    opened = {}
    for split, table in splits.items():
        features = table.features
        image = next((k for k, f in features.items() if isinstance(f, datasets.Image)), None)
        label = next((k for k, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
        if image is None or label is None:
            raise UserError(
                f"hf:{name} needs an image column and a class-label column; "
                f"it has {', '.join(f'{key} ({type(f).__name__})' for key, f in features.items())}."
            )
        rows = table.cast_column(image, datasets.Image(decode=False))
        key = SPLIT_NAMES.get(split, split)
        opened[key] = TableSource(
            rows,
            Columns(image, label),
            features[label].names,
            spec=f"hf:{name}[{key}]",
            version=str(table._fingerprint),
            exif=True,
        )
    return Splits(f"hf:{name}", opened)
