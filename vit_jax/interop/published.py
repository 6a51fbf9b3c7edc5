"""Published checkpoints: names, sources and accuracies.

`load_model("B/16-imagenet21k")` loads one by name and tries its sources in order.
"""

from __future__ import annotations

from typing import NamedTuple

GCS = "gs://vit_models"
BIT = "gs://bit_models"


class Published(NamedTuple):
    """sources: in the order to try. accuracy: published top-1 (%), and the data."""

    variant: str
    image_size: int
    num_classes: int
    sources: tuple[str, ...]
    accuracy: str


def _vit(variant: str, hub: str, accuracy: str) -> Published:
    file = f"{GCS}/imagenet21k/{_file(variant)}.npz"
    sources = (file, f"hf:{hub}") if hub else (file,)
    return Published(variant, 224, 21_843, sources, accuracy)


def _fine_tuned(variant: str, hub: str, accuracy: str) -> Published:
    file = f"{GCS}/imagenet21k+imagenet2012/{_file(variant)}.npz"
    sources = (file, f"hf:{hub}") if hub else (file,)
    return Published(variant, 384, 1000, sources, accuracy)


def _file(variant: str) -> str:
    """ "B/16" as "ViT-B_16", "R50+B/16" as "R50+ViT-B_16"."""
    stem, plus, vit = variant.rpartition("+")
    return f"{stem}{plus}ViT-{vit.replace('/', '_')}"


def _bit(variant: str, kind: str) -> Published:
    classes = 21_843 if kind == "M" else 1000
    return Published(variant, 224, classes, (f"{BIT}/BiT-{kind}-{variant}.npz",), "")


# Accuracies: ImageNet-21k validation at 224 pixels; ImageNet at 384, from the repository of
# the paper's authors, from these weights with dropout 0.
PUBLISHED: dict[str, Published] = {
    "B/16-imagenet21k": _vit(
        "B/16", "google/vit-base-patch16-224-in21k", "47.88 ImageNet-21k held-out"
    ),
    "B/32-imagenet21k": _vit(
        "B/32", "google/vit-base-patch32-224-in21k", "44.04 ImageNet-21k held-out"
    ),
    "L/16-imagenet21k": _vit(
        "L/16", "google/vit-large-patch16-224-in21k", "49.90 ImageNet-21k held-out"
    ),
    "L/32-imagenet21k": _vit(
        "L/32", "google/vit-large-patch32-224-in21k", "45.42 ImageNet-21k held-out"
    ),
    "H/14-imagenet21k": _vit(
        "H/14", "google/vit-huge-patch14-224-in21k", "49.06 ImageNet-21k held-out"
    ),
    "R50+B/16-imagenet21k": _vit("R50+B/16", "", ""),
    "B/16-imagenet": _fine_tuned("B/16", "google/vit-base-patch16-384", "84.53 ImageNet"),
    "B/32-imagenet": _fine_tuned("B/32", "google/vit-base-patch32-384", "81.66 ImageNet"),
    "L/16-imagenet": _fine_tuned("L/16", "google/vit-large-patch16-384", "84.47 ImageNet"),
    "L/32-imagenet": _fine_tuned("L/32", "google/vit-large-patch32-384", "81.89 ImageNet"),
    "R50+B/16-imagenet": _fine_tuned("R50+B/16", "", "83.72 ImageNet"),
    **{
        f"{variant}-bit-{kind.lower()}": _bit(variant, kind)
        for kind in ("M", "S")
        for variant in ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")
    },
}


#: ImageNet after fine-tuning at 384 pixels, from the paper (Table 5, %).
TABLE_5 = {
    "B/16-imagenet21k": 83.97,
    "B/32-imagenet21k": 81.28,
    "L/16-imagenet21k": 85.15,
    "L/32-imagenet21k": 80.99,
    "H/14-imagenet21k": 85.13,
}


def licence(entry: Published) -> str:
    """The accuracy on the weights' hub page; "" without a page."""
    return "Apache-2.0" if any(source.startswith("hf:") for source in entry.sources) else ""


def megabytes(entry: Published) -> int:
    """The size of the parameters, in float32."""
    from vit_jax import models
    from vit_jax.models import cost

    config = models.get_config(entry.variant, num_classes=entry.num_classes)
    if entry.num_classes == 21_843 and isinstance(config, models.ViTConfig):
        config = models.replace(config, representation_size=config.hidden_size)
    config = models.replace(config, image_size=(entry.image_size,) * 2)
    return round(4 * cost.num_params(config) / 1e6)


def table() -> list[str]:
    """The table of docs/weights.md: name, pixels, classes, size, accuracy, sources."""
    rows = ["| name | pixels | classes | MB | top-1 (%) | sources |", "|-|-|-|-|-|-|"]
    for name, entry in PUBLISHED.items():
        size = megabytes(entry)
        sources = ", ".join(f"`{source}`" for source in entry.sources)
        rows.append(
            f"| `{name}` | {entry.image_size} | {entry.num_classes:,} | {size:,} "
            f"| {entry.accuracy or '–'} | {sources} |"
        )
    return rows


def elsewhere(source: str) -> str:
    """A sentence that names the other sources of the weights at `source`; "" if there are none."""
    for name, entry in PUBLISHED.items():
        if source in entry.sources:
            others = [other for other in entry.sources if other != source]
            if others:
                return f" The same weights ({name}) are at {' and '.join(others)}."
    return ""
