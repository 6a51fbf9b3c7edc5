"""Published checkpoints: names, sources and accuracies.

`load_model("B/16-imagenet21k")` loads one by name and tries its sources in order.
"""

from __future__ import annotations

from typing import NamedTuple

GCS = "gs://vit_models"
BIT = "gs://bit_models"


class Published(NamedTuple):
    """sources: in the order to try. accuracy: published top-1 (%), and the data.

    megabytes: 10⁶ bytes of the parameters in float32.
    """

    variant: str
    image_size: int
    num_classes: int
    sources: tuple[str, ...]
    accuracy: str
    megabytes: int


def _vit(variant: str, megabytes: int, hub: str, accuracy: str) -> Published:
    file = f"{GCS}/imagenet21k/{_file(variant)}.npz"
    sources = (file, f"hf:{hub}") if hub else (file,)
    return Published(variant, 224, 21_843, sources, accuracy, megabytes)


def _fine_tuned(variant: str, megabytes: int, hub: str, accuracy: str) -> Published:
    file = f"{GCS}/imagenet21k+imagenet2012/{_file(variant)}.npz"
    sources = (file, f"hf:{hub}") if hub else (file,)
    return Published(variant, 384, 1000, sources, accuracy, megabytes)


def _file(variant: str) -> str:
    """ "B/16" as "ViT-B_16", "R50+B/16" as "R50+ViT-B_16"."""
    stem, plus, vit = variant.rpartition("+")
    return f"{stem}{plus}ViT-{vit.replace('/', '_')}"


def _bit(variant: str, kind: str, megabytes: int) -> Published:
    classes = 21_843 if kind == "M" else 1000
    sources = (f"{BIT}/BiT-{kind}-{variant}.npz",)
    return Published(variant, 224, classes, sources, "", megabytes)


#: megabytes of BiT-M and BiT-S.
BITS = {
    "R50x1": (273, 102),
    "R50x3": (1382, 869),
    "R101x1": (349, 178),
    "R101x3": (2064, 1552),
    "R152x2": (1287, 945),
    "R152x4": (4429, 3746),
}


# Accuracies: ImageNet-21k validation at 224 pixels; ImageNet at 384, from the repository of
# the paper's authors, from these weights with dropout 0.
PUBLISHED: dict[str, Published] = {
    "B/16-imagenet21k": _vit(
        "B/16", 413, "google/vit-base-patch16-224-in21k", "47.88 ImageNet-21k held-out"
    ),
    "B/32-imagenet21k": _vit(
        "B/32", 419, "google/vit-base-patch32-224-in21k", "44.04 ImageNet-21k held-out"
    ),
    "L/16-imagenet21k": _vit(
        "L/16", 1307, "google/vit-large-patch16-224-in21k", "49.90 ImageNet-21k held-out"
    ),
    "L/32-imagenet21k": _vit(
        "L/32", 1316, "google/vit-large-patch32-224-in21k", "45.42 ImageNet-21k held-out"
    ),
    "H/14-imagenet21k": _vit(
        "H/14", 2642, "google/vit-huge-patch14-224-in21k", "49.06 ImageNet-21k held-out"
    ),
    "R50+B/16-imagenet21k": _vit("R50+B/16", 461, "", ""),
    "B/16-imagenet": _fine_tuned("B/16", 347, "google/vit-base-patch16-384", "84.53 ImageNet"),
    "B/32-imagenet": _fine_tuned("B/32", 353, "google/vit-base-patch32-384", "81.66 ImageNet"),
    "L/16-imagenet": _fine_tuned("L/16", 1219, "google/vit-large-patch16-384", "84.47 ImageNet"),
    "L/32-imagenet": _fine_tuned("L/32", 1227, "google/vit-large-patch32-384", "81.89 ImageNet"),
    "R50+B/16-imagenet": _fine_tuned("R50+B/16", 396, "", "83.72 ImageNet"),
    **{
        f"{variant}-bit-{kind.lower()}": _bit(variant, kind, sizes[number])
        for number, kind in enumerate(("M", "S"))
        for variant, sizes in BITS.items()
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
    """The licence that the weights' hub page names; "" without a page."""
    return "Apache-2.0" if any(source.startswith("hf:") for source in entry.sources) else ""


def table() -> list[str]:
    """The table of docs/weights.md: name, pixels, classes, size, accuracy, sources."""
    rows = ["| name | pixels | classes | MB | top-1 (%) | sources |", "|-|-|-|-|-|-|"]
    for name, entry in PUBLISHED.items():
        sources = ", ".join(f"`{source}`" for source in entry.sources)
        rows.append(
            f"| `{name}` | {entry.image_size} | {entry.num_classes:,} | {entry.megabytes:,} "
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
