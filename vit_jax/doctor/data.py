"""Checks of a run's data and configuration before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vit_jax.data.multilabel import withheld
from vit_jax.doctor.machine import Finding
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from vit_jax.config import ConfigDict
    from vit_jax.data.source import Source


def dataset(spec: str, data_dir: str | None) -> Iterator[Finding]:
    """Opens a data set, and decodes its first and last record."""
    from vit_jax import data
    from vit_jax.data.specs import parse_spec

    try:
        specs = (spec,) if parse_spec(spec)[2] else data.default_splits(spec, data_dir=data_dir)
        for split in specs:
            source = data.open_source(split, data_dir=data_dir)
            shapes = []
            for index in (0, len(source) - 1):
                record = source[index]
                shapes.append(
                    "x".join(map(str, data.stored(record["image"], record["name"]).shape))
                )
            yield Finding(
                "data",
                f"{split}: {len(source):,} examples, {source.num_classes} classes, images such as "
                f"{', '.join(dict.fromkeys(shapes))}{labels_text(source)}",
                True,
            )
        for note in source.notes:
            yield Finding("data", note, True)
    except UserError as error:
        yield Finding("data", str(error), False)


def labels_text(source: Source) -> str:
    """For multi-label data, the number of labels per image if known."""
    if not source.multilabel:
        return ""
    if source.labels is None:
        return ", several labels per image"
    known = source.labels[~withheld(source.labels)]
    if not len(known):
        return ", labels withheld"
    sizes = known.sum(axis=1, dtype=int)
    return (
        f", {sizes.mean():.3g} labels per image ({sizes.min()} to {sizes.max()}; "
        f"{int((sizes == 0).sum()):,} images without, {int((known.sum(axis=0) == 0).sum()):,} "
        "classes without)"
    )


def configuration(config: ConfigDict) -> Iterator[Finding]:
    """Opens and builds everything of a configuration; runs nothing."""
    from vit_jax import config as configuration
    from vit_jax.training import memory
    from vit_jax.training.setup import set_up

    try:
        configuration.check(config)
        setup = set_up(config)
    except UserError as error:
        yield Finding("config", str(error), False)
        return
    limit, state = memory.device_memory(config), memory.state_bytes(setup)
    yield Finding(
        "config",
        f"{setup.program.model.variant}, {setup.plan.total_steps:,} steps; its state takes "
        f"{state / memory.GIB:.3g} of {limit / memory.GIB:.3g} GiB per device",
        state < limit,
    )
