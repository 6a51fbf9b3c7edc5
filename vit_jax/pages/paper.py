"""What the paper reports (arXiv 2010.11929v2): Tables 2, 5, 6, 7, 8 and 9, in percent.

A run corresponds to a row if its variant, evaluation data and image size are the row's. The row's
other properties (pre-training data, epochs, optimizer) must not contradict those of the run; if
unknown, the number is shown with that condition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Cell(NamedTuple):
    """A number of the paper. deviation: over three runs, if given.

    data: a name in DATA_SETS. size: pixels per side. pretrained: on which data, "" if the paper
    does not say. epochs, optimizer, embedding: None or "" if a table's rows do not differ in them.
    """

    table: str
    variant: str
    data: str
    value: float
    deviation: float | None = None
    size: int = 384
    pretrained: str = ""
    epochs: int | None = None
    optimizer: str = ""
    embedding: tuple[str, str] = ("1d", "stem")


class Known(NamedTuple):
    """Facts about a run; "" and None if unknown."""

    variant: str
    size: int
    pretrained: str = ""
    epochs: int | None = None
    optimizer: str = ""
    embedding: tuple[str, str] = ("1d", "stem")


IN, REAL, C10, C100 = "ImageNet", "ReaL", "CIFAR-10", "CIFAR-100"
PETS, FLOWERS, VTAB, FIVE_SHOT = "Pets", "Flowers", "VTAB", "ImageNet 5-shot"
IN21K, JFT = "ImageNet-21k", "JFT"

#: {data spec: (name in tables, the split that the paper evaluates on)}
DATA_SETS = {
    "tfds:imagenet2012": (IN, "validation"),
    "tfds:cifar10": (C10, "test"),
    "tfds:cifar100": (C100, "test"),
    "tfds:oxford_iiit_pet": (PETS, "test"),
    "tfds:oxford_flowers102": (FLOWERS, "test"),
}
#: {data spec: name as pre-training data}
PRETRAINING = {"tfds:imagenet2012": IN, "tfds:imagenet21k": IN21K, "tfds:jft": JFT}

#: Layers, width, MLP and heads.
TABLE_1 = {
    "B": (12, 768, 3072, 12),
    "L": (24, 1024, 4096, 16),
    "H": (32, 1280, 5120, 16),
}

# H/14 on JFT, L/16 on JFT, L/16 on ImageNet-21k; BiT-L (ResNet-152x4), Noisy Student
# (EfficientNet-L2). ImageNet and ReaL are at 518 pixels for H/14 and 512 for L/16.
TABLE_2_COLUMNS = (("H/14", JFT), ("L/16", JFT), ("L/16", IN21K))
TABLE_2_SIZES = {"H/14": 518, "L/16": 512}
TABLE_2 = {
    IN: ("88.55±0.04", "87.76±0.03", "85.30±0.02", "87.54±0.02", "88.4/88.5"),
    REAL: ("90.72±0.05", "90.54±0.03", "88.62±0.05", "90.54", "90.55"),
    C10: ("99.50±0.06", "99.42±0.03", "99.15±0.03", "99.37±0.06", "–"),
    C100: ("94.55±0.04", "93.90±0.05", "93.25±0.05", "93.51±0.08", "–"),
    PETS: ("97.56±0.03", "97.32±0.11", "94.67±0.15", "96.62±0.23", "–"),
    FLOWERS: ("99.68±0.02", "99.74±0.00", "99.61±0.02", "99.63±0.03", "–"),
    VTAB: ("77.63±0.23", "76.28±0.46", "72.72±0.21", "76.29±1.70", "–"),
}

#: Validation images of ImageNet with reassessed labels.
REAL_IMAGES = 46_837

TABLE_5_COLUMNS = (C10, C100, IN, REAL, FLOWERS, PETS)
TABLE_5 = {
    IN: {
        "B/16": (98.13, 87.13, 77.91, 83.57, 89.49, 93.81),
        "B/32": (97.77, 86.31, 73.38, 79.56, 85.43, 92.04),
        "L/16": (97.86, 86.35, 76.53, 82.19, 89.66, 93.64),
        "L/32": (97.94, 87.07, 71.16, 77.83, 86.36, 91.35),
    },
    IN21K: {
        "B/16": (98.95, 91.67, 83.97, 88.35, 99.38, 94.43),
        "B/32": (98.79, 91.97, 81.28, 86.63, 99.11, 93.02),
        "L/16": (99.16, 93.44, 85.15, 88.40, 99.61, 94.73),
        "L/32": (99.13, 93.04, 80.99, 85.65, 99.19, 93.09),
        "H/14": (99.27, 93.82, 85.13, 88.70, 99.51, 94.82),
    },
    JFT: {
        "B/16": (99.00, 91.87, 84.15, 88.85, 99.56, 95.80),
        "B/32": (98.61, 90.49, 80.73, 86.27, 99.27, 93.40),
        "L/16": (99.38, 94.04, 87.12, 89.99, 99.56, 97.11),
        "L/32": (99.19, 92.52, 84.37, 88.28, 99.45, 95.83),
        "H/14": (99.50, 94.55, 88.04, 90.33, 99.68, 97.56),
    },
}

TABLE_6_COLUMNS = (IN, REAL, C10, C100, PETS, FLOWERS)
TABLE_6 = {  # pre-trained on JFT: (variant, epochs)
    ("B/32", 7): (80.73, 86.27, 98.61, 90.49, 93.40, 99.27),
    ("B/16", 7): (84.15, 88.85, 99.00, 91.87, 95.80, 99.56),
    ("L/32", 7): (84.37, 88.28, 99.19, 92.52, 95.83, 99.45),
    ("L/16", 7): (86.30, 89.43, 99.38, 93.46, 96.81, 99.66),
    ("L/16", 14): (87.12, 89.99, 99.38, 94.04, 97.11, 99.56),
    ("H/14", 14): (88.08, 90.36, 99.50, 94.71, 97.11, 99.71),
    ("R50x1", 7): (77.54, 84.56, 97.67, 86.07, 91.11, 94.26),
    ("R50x2", 7): (82.12, 87.94, 98.29, 89.20, 93.43, 97.02),
    ("R101x1", 7): (80.67, 87.07, 98.48, 89.17, 94.08, 95.95),
    ("R152x1", 7): (81.88, 87.96, 98.82, 90.22, 94.17, 96.94),
    ("R152x2", 7): (84.97, 89.69, 99.06, 92.05, 95.37, 98.62),
    ("R152x2", 14): (85.56, 89.89, 99.24, 91.92, 95.75, 98.75),
    ("R200x3", 14): (87.22, 90.15, 99.34, 93.53, 96.32, 99.04),
    ("R50+B/32", 7): (84.90, 89.15, 99.01, 92.24, 95.75, 99.46),
    ("R50+B/16", 7): (85.58, 89.65, 99.14, 92.63, 96.65, 99.40),
    ("R50+L/32", 7): (85.68, 89.04, 99.24, 92.93, 96.97, 99.43),
    ("R50+L/16", 7): (86.60, 89.72, 99.18, 93.64, 97.03, 99.40),
    ("R50+L/16", 14): (87.12, 89.76, 99.31, 93.89, 97.36, 99.11),
}

TABLE_7_COLUMNS = (IN, C10, C100, PETS, FLOWERS)
TABLE_7 = {  # pre-trained on JFT for 7 epochs: (variant, optimizer); the paper's average
    ("R50x1", "adam"): (77.54, 97.67, 86.07, 91.11, 94.26),
    ("R50x1", "sgd"): (78.24, 97.46, 85.17, 91.00, 92.06),
    ("R152x2", "adam"): (84.97, 99.06, 92.05, 95.37, 98.62),
    ("R152x2", "sgd"): (84.37, 99.07, 91.06, 94.79, 99.32),
}
TABLE_7_AVERAGES = (89.33, 88.79, 94.01, 93.72)

TABLE_8 = {  # B/16, ImageNet 5-shot: (embedding, where it is added)
    ("none", "stem"): 61.382,
    ("1d", "stem"): 64.206,
    ("1d", "every"): 63.964,
    ("1d", "shared"): 64.292,
    ("2d", "stem"): 64.001,
    ("2d", "every"): 64.046,
    ("2d", "shared"): 64.022,
    ("relative", "stem"): 64.032,
}

TABLE_9_COLUMNS = TABLE_2_COLUMNS
TABLE_9 = {  # by the names of vtab:TASK
    "caltech101": (95.3, 95.4, 90.8),
    "cifar100": (85.5, 81.9, 84.1),
    "dtd": (75.2, 74.3, 74.1),
    "flowers102": (99.7, 99.7, 99.3),
    "pets": (97.2, 96.7, 92.7),
    "sun397": (65.0, 63.5, 61.0),
    "svhn": (88.9, 87.4, 80.9),
    "camelyon": (83.3, 83.6, 82.5),
    "eurosat": (96.7, 96.5, 95.6),
    "resisc45": (91.4, 89.7, 85.2),
    "retinopathy": (76.6, 77.1, 75.3),
    "clevr_count": (91.7, 86.4, 70.3),
    "clevr_distance": (63.8, 63.1, 56.1),
    "dmlab": (53.1, 49.7, 41.9),
    "dsprites_location": (79.4, 74.5, 74.7),
    "dsprites_orientation": (63.3, 60.5, 64.9),
    "kitti_distance": (84.5, 82.2, 79.9),
    "smallnorb_azimuth": (33.2, 36.2, 30.5),
    "smallnorb_elevation": (51.2, 51.1, 41.7),
}
TABLE_9_MEANS = (77.6, 76.3, 72.7)


def cells() -> Iterator[Cell]:
    """Every figure."""
    for data, texts in TABLE_2.items():
        for (variant, pretrained), text in zip(TABLE_2_COLUMNS, texts[:3], strict=True):
            mean, _, deviation = text.partition("±")
            size = TABLE_2_SIZES[variant] if data in (IN, REAL) else 384
            yield Cell("2", variant, data, float(mean), float(deviation), size, pretrained)
    for pretrained, rows in TABLE_5.items():
        for variant, figures in rows.items():
            for data, value in zip(TABLE_5_COLUMNS, figures, strict=True):
                yield Cell("5", variant, data, value, pretrained=pretrained)
    for (variant, epochs), figures in TABLE_6.items():
        for data, value in zip(TABLE_6_COLUMNS, figures, strict=True):
            yield Cell("6", variant, data, value, pretrained=JFT, epochs=epochs)
    for (variant, optimizer), by_data in TABLE_7.items():
        for data, value in zip(TABLE_7_COLUMNS, by_data, strict=True):
            yield Cell("7", variant, data, value, pretrained=JFT, epochs=7, optimizer=optimizer)
    for embedding, value in TABLE_8.items():
        yield Cell("8", "B/16", FIVE_SHOT, value, size=224, embedding=embedding)
    for task, by_model in {**TABLE_9, VTAB: TABLE_9_MEANS}.items():
        for (variant, pretrained), value in zip(TABLE_9_COLUMNS, by_model, strict=True):
            data = task if task == VTAB else f"vtab:{task}"
            yield Cell("9", variant, data, value, pretrained=pretrained)


class Match(NamedTuple):
    """condition: under which the number applies, if not known of the run; otherwise ""."""

    cell: Cell
    condition: str


def matches(known: Known, data: str) -> list[Match]:
    """The numbers that a run corresponds to, by the rule above.

    data: its name in tables: "CIFAR-10", "vtab:dtd", ...
    """
    found = []
    for cell in cells():
        # Patches of 14 divide 378 of the paper's 384 pixels.
        sizes = (cell.size, 378) if (cell.variant, cell.size) == ("H/14", 384) else (cell.size,)
        if (cell.variant, cell.data) != (known.variant, data) or known.size not in sizes:
            continue
        pairs = [
            (known.pretrained, cell.pretrained, f"on {cell.pretrained}"),
            (known.epochs, cell.epochs, f"for {cell.epochs} epochs"),
            (known.optimizer, cell.optimizer, f"with {cell.optimizer.upper()}"),
        ]
        wanted = [(ours, theirs, text) for ours, theirs, text in pairs if theirs]
        if cell.embedding != known.embedding or any(
            ours and ours != theirs for ours, theirs, _ in wanted
        ):
            continue
        open_ = [text for ours, _, text in wanted if not ours]
        condition = f"if pre-trained {' '.join(open_)}" if open_ else ""
        found.append(Match(cell, condition))
    return found


def others(data: str) -> tuple[str, str]:
    """BiT-L and Noisy Student on a data set, as in Table 2; a dash if missing there."""
    return TABLE_2[data][3:] if data in TABLE_2 else ("–", "–")


def data_set(spec: str) -> str:
    """The name in tables of a spec with its split, "tfds:cifar10[test]"; "" if there is none."""
    base, _, split = spec.partition("[")
    split = split.removesuffix("]")
    if base.startswith("vtab:"):
        return base if base.removeprefix("vtab:") in TABLE_9 and split == "test" else ""
    base = base.partition("?")[0]
    name, wanted = DATA_SETS.get(":".join(base.split(":")[:2]), ("", None))
    return name if split == wanted else ""


def measured(evaluation: Mapping[str, object]) -> dict[str, float]:
    """{name in tables: percent} from an evaluation.json."""
    found: dict[str, float] = {}

    def note(data: str, accuracy: object) -> None:
        if data and isinstance(accuracy, float | int):
            found[data] = 100 * accuracy

    def record(name: str) -> Mapping:
        value = evaluation.get(name)
        return value if isinstance(value, Mapping) else {}

    own, real, vtab = record("classification"), record("real"), record("vtab")
    if not own.get("num_bad_images"):
        note(data_set(str(own.get("data"))), own.get("accuracy"))
    if real.get("num_scored") == REAL_IMAGES:
        note(REAL, real.get("accuracy"))
    for row in record("fewshot").get("results", ()):
        if str(row["data"]).partition("[")[0] == "tfds:imagenet2012" and row["shots"] == 5:
            note(FIVE_SHOT, row["accuracy"])
    tasks = vtab.get("tasks", {})
    for task in tasks:
        if task not in vtab.get("remarks", {}):
            note(f"vtab:{task}", tasks[task])
    if not vtab.get("remarks"):
        note(VTAB, vtab.get("mean"))
    return found
