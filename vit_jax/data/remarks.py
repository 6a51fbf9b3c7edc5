"""What a person should know of the data before the first step, each in a line."""

from __future__ import annotations

from typing import Any

import numpy as np

from vit_jax.data.decode import image_size
from vit_jax.errors import UserError

#: Images that are looked at, to say that they are small; and BiT-HyperRule's limit, in pixels.
FEW, SMALL, SMALL_IMAGE_SIZE = 8, 96 * 96, 128


def untrained_classes(train_source: Any, eval_source: Any) -> list[str]:
    """Whether some classes are evaluated and not trained on, where labels are known."""
    trained, evaluated = train_source.labels, eval_source.labels
    if trained is None or evaluated is None:
        return []
    alone = ~np.isin(evaluated, trained)
    if not alone.any():
        return []
    classes = np.unique(evaluated[alone])
    return [
        f"{len(classes):,} classes have no training image (e.g. "
        f"{train_source.class_names[classes[0]]!r}): {int(alone.sum()):,} of the "
        f"{len(evaluated):,} evaluation records cannot be right"
    ]


def small_images(source: Any, size: tuple[int, int]) -> list[str]:
    """Whether images of less than 96x96 pixels are enlarged to more than 128 (BiT-HyperRule)."""
    if min(size) <= SMALL_IMAGE_SIZE:
        return []
    sizes = []
    for number in np.unique(np.linspace(0, len(source) - 1, FEW).astype(int)):
        try:
            record = source[int(number)]
            sizes.append(image_size(record["image"], record["name"]))
        except (UserError, TypeError):  # said where it is read to be trained on
            continue
    height, width = np.median(np.array(sizes), axis=0) if sizes else (SMALL, SMALL)
    if height * width >= SMALL:
        return []
    return [
        f"the images are small, about {width:.0f}x{height:.0f}, and enlarged to "
        f"{size[1]}x{size[0]}; for originals under 96x96 pixels BiT-HyperRule's size is "
        f"{SMALL_IMAGE_SIZE} (resized to 160)"
    ]
