"""ObjectNet (Appendix D.9): 113 of its 313 classes correspond to one or more ImageNet classes.

The class map is read from the data set's own files. A prediction is correct if it is any of the
object's ImageNet classes.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import files
from vit_jax.data.image_files import images_below
from vit_jax.data.kinds.folder import file_source
from vit_jax.data.source import FileSource
from vit_jax.data.transforms import make_transform
from vit_jax.errors import UserError
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.forward import Forward, Measure, left_out, measured
from vit_jax.evaluation.result import Result

MAPPINGS = ("objectnet_to_imagenet_1k.json", "folder_to_objectnet_label.json",
            "pytorch_to_imagenet_2012_id.json", "imagenet_to_label_2012_v2")  # fmt: skip


def objectnet(forward: Forward, data: DataSets, *, max_bad_images: int = 0) -> Result:
    """ObjectNet: a model of ImageNet's 1,000 classes on the objects with ImageNet classes.

    "known" ranks only the classes of some object, "all" ranks every class; the paper does not say
    which is meant.

    Args:
      max_bad_images: how many unreadable images may be skipped.
    """
    root = root_of(data.one_spec())
    if forward.num_classes != 1000:
        raise UserError(
            f"ObjectNet is for models of ImageNet's 1,000 classes; this one has "
            f"{forward.num_classes}."
        )
    forward.check_head()
    classes = class_map(root)
    source = open_objectnet(root, classes)
    right = [classes[folder] for folder in source.class_names]
    known = tuple(sorted({number for mine in right for number in mine}))
    found = measured(
        forward,
        ranking(forward.num_classes, known),
        source,
        data,
        transform=make_transform(name="objectnet", size=forward.image_size, train=False),
        max_bad_images=max_bad_images,
    )
    said, lines = left_out(len(found["label"]), source)
    record: dict[str, object] = {
        "data": root,
        "num_examples": len(found["label"]),
        "num_objects": len(right),
        "num_classes": len(known),
        **said,
    }
    table = [f"ObjectNet: {len(found['label']):,} images of {len(right)} objects", *lines]
    top1s = {}
    for name, text in (("known", f"among {len(known)} classes"), ("all", "among all 1,000")):
        top1s[name], top5 = accuracies(found[name], found["label"], right)
        record |= {f"accuracy_{name}": top1s[name], f"top5_accuracy_{name}": top5}
        table.append(f"  {text}: top-1 {100 * top1s[name]:.2f}%, top-5 {100 * top5:.2f}%")
    return Result(record, table, {"accuracy": top1s["known"]})


def root_of(spec: str) -> str:
    """The directory of objectnet-1.0: `--data` may be its path, or folder:PATH."""
    return spec.removeprefix("folder:")


def class_map(root: str | Path) -> dict[str, list[int]]:
    """{image folder: its ImageNet classes, 0 to 999 in the order of WordNet ids}.

    Args:
      root: the unpacked objectnet-1.0, with images/ and mappings/.

    Raises:
      UserError: a mapping is missing or damaged, or has a class that the others lack.
    """
    places = [Path(root) / "mappings" / name for name in MAPPINGS]
    for file in places:
        if not file.exists():
            raise UserError(f"{file} is missing; --data is objectnet-1.0 with images and mappings.")
    to_imagenet, to_object, to_line = map(files.read_json, places[:3])
    try:
        if not all(isinstance(each, dict) for each in (to_imagenet, to_object, to_line)):
            raise TypeError("not a JSON object")
        lines = [line.strip() for line in places[3].read_text().splitlines()]
        number = {lines[line]: int(position) for position, line in to_line.items()}
        return {
            folder: [number[label] for label in to_imagenet[name].split("; ")]
            for folder, name in to_object.items()
            if name in to_imagenet
        }
    except KeyError as error:
        raise UserError(f"{places[0]} has the class {error}, which the others lack.") from None
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"A mapping in {places[0].parent} is damaged ({error}).") from error


def open_objectnet(root: str, classes: dict[str, list[int]]) -> FileSource:
    """The images of the mapped classes; labels are indices of the folders of `classes`.

    Raises:
      UserError: a class has no images.
    """
    position = {folder: i for i, folder in enumerate(sorted(classes))}
    records = []
    for folder, label in position.items():
        where = Path(root) / "images" / folder
        images = images_below(root, f"images/{folder}") if where.is_dir() else []
        if not images:
            raise UserError(f"{where} has no images; is ObjectNet unpacked completely?")
        records += [(file, label) for file in images]
    return file_source(root, records, list(position), f"objectnet:{root}")


@functools.lru_cache(maxsize=2)
def ranking(num_classes: int, known: tuple[int, ...]) -> Measure:
    """(logits, labels) -> the top five of all classes, and of the known ones, (b, 5)."""
    mask = np.full(num_classes, -np.inf, np.float32)
    mask[list(known)] = 0.0

    def measure(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        return {
            "all": jax.lax.top_k(logits, 5)[1],
            "known": jax.lax.top_k(logits + jnp.asarray(mask), 5)[1],
        }

    return measure


def accuracies(
    ranked: np.ndarray, labels: np.ndarray, classes: list[list[int]]
) -> tuple[float, float]:
    """Top-1 and top-5 in [0, 1].

    Args:
      ranked: (n, 5) classes, likeliest first.
      labels: (n,) indices into `classes`, the sets of correct classes.
    """
    right = np.zeros((len(classes), int(ranked.max()) + 1 + max(map(max, classes))), bool)
    for i, mine in enumerate(classes):
        right[i, mine] = True
    hits = right[labels[:, None], ranked]
    return float(hits[:, 0].mean()), float(hits.any(axis=1).mean())
