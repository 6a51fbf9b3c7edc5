"""Layouts of our arrays in foreign formats: names there, and conversion in both directions.

A layout maps our path to an `Entry`. Each format builds one for a configuration; reading and
writing are then the two functions at the end.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.models import saved

Array = np.ndarray
Shape = tuple[int, ...]


class Entry(NamedTuple):
    """split: ours -> one array per name in `names`. join: those arrays and our shape -> ours."""

    names: tuple[str, ...]
    split: Callable[[Array], list[Array]]
    join: Callable[[list[Array], Shape], Array]


Layout = dict[str, Entry]


def reshaped(name: str, shape: Callable[[Shape], Shape] = lambda shape: shape) -> Entry:
    """Reshaped by `shape(our shape)`, numbers in the same order."""
    return Entry(
        (name,),
        lambda x: [x.reshape(shape(x.shape))],
        lambda parts, ours: parts[0].reshape(ours),
    )


def transposed(name: str, *axes: int, extra: int = 0) -> Entry:
    """Our axes in the order `axes`, followed by `extra` axes of size one.

    (1, 0) turns a kernel (i, o) into a weight (o, i); (3, 2, 0, 1) a convolution's (h, w, i, o)
    into (o, i, h, w).
    """
    back = np.argsort(axes)

    def join(parts: list[Array], ours: Shape) -> Array:
        weight = parts[0].reshape([ours[axis] for axis in axes])
        return weight.transpose(back)

    return Entry(
        (name,),
        lambda x: [x.transpose(axes).reshape([x.shape[a] for a in axes] + [1] * extra)],
        join,
    )


def stacked(names: tuple[str, ...], entry: Callable[[str], Entry], axis: int) -> Entry:
    """One array of ours as several of theirs, split along our `axis`, each by `entry`."""
    entries = [entry(name) for name in names]

    def split(x: Array) -> list[Array]:
        return [e.split(x.take(i, axis))[0] for i, e in enumerate(entries)]

    def join(parts: list[Array], ours: Shape) -> Array:
        shape = ours[:axis] + ours[axis + 1 :]
        return np.stack(
            [e.join([p], shape) for e, p in zip(entries, parts, strict=True)], axis=axis
        )

    return Entry(names, split, join)


def flattened(name: str) -> Entry:
    """(d, ...) of ours as a transposed matrix (prod(...), d)."""
    return Entry(
        (name,),
        lambda x: [x.reshape(x.shape[0], -1).T],
        lambda parts, ours: parts[0].reshape(-1, ours[0]).T.reshape(ours),
    )


def to_foreign(layout: Layout, params: models.Params) -> dict[str, Array]:
    """Our parameters under foreign names, contiguous float32."""
    foreign: dict[str, Array] = {}
    for path, entry in layout.items():
        pieces = entry.split(np.asarray(params[path], np.float32))
        for name, piece in zip(entry.names, pieces, strict=True):
            foreign[name] = np.ascontiguousarray(piece)
    return foreign


def check_sizes(
    layout: Layout, weights: Mapping[str, Array], config: models.ModelConfig, where: str
) -> dict[str, jax.ShapeDtypeStruct]:
    """Raises UserError for wrong names, types or shapes; returns our shapes."""
    wanted = models.abstract_params(config)
    assert set(layout) == set(wanted), set(layout) ^ set(wanted)
    needed = {name for entry in layout.values() for name in entry.names}
    saved.check_names(
        sorted(needed - set(weights)), sorted(set(weights) - needed), where, config.variant
    )
    for path, entry in layout.items():
        ours = wanted[path].shape
        shapes = [weights[name].shape for name in entry.names]
        theirs = [part.shape for part in entry.split(np.broadcast_to(np.float32(0), ours))]
        if not all(map(same_order, shapes, theirs)):
            raise UserError(other_shape(entry, shapes, path, theirs, config, where))
        for name in entry.names:
            if weights[name].dtype.kind in "biu":
                raise UserError(
                    f"{where}: {name} has the dtype {weights[name].dtype}; convert the weights to "
                    "floats first."
                )
    return wanted


def same_order(one: Shape, other: Shape) -> bool:
    """Whether two shapes are equal except for axes of size one, or axes that one of them merges."""
    ends = [set(itertools.accumulate(shape, operator.mul)) - {1} for shape in (one, other)]
    return math.prod(one) == math.prod(other) and (ends[0] <= ends[1] or ends[1] <= ends[0])


def other_shape(
    entry: Entry,
    shapes: list[Shape],
    path: str,
    needed: list[Shape],
    config: models.ModelConfig,
    where: str,
) -> str:
    return (
        f"{where}: {entry.names[0]} has shape {', '.join(map(str, shapes))} "
        f"but {config.variant} needs {', '.join(map(str, needed))} for {path}."
    )


def from_foreign(
    layout: Layout, weights: Mapping[str, Array], config: models.ModelConfig, where: str
) -> dict[str, Array]:
    """Foreign arrays as our parameters, contiguous float32.

    Shapes may differ in axes of size one and in how heads are flattened.

    Raises:
      UserError: names or sizes are not those of `config`; lists them.
    """
    wanted = check_sizes(layout, weights, config, where)
    params = {}
    for path, entry in layout.items():
        parts = [np.asarray(weights[name]).astype(np.float32) for name in entry.names]
        try:
            value = entry.join(parts, wanted[path].shape)
        except ValueError:
            value = None
        if value is None or value.shape != wanted[path].shape:
            shapes = [part.shape for part in parts]
            ours = [wanted[path].shape]
            raise UserError(other_shape(entry, shapes, path, ours, config, where))
        params[path] = np.ascontiguousarray(value)
    return params
