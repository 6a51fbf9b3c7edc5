"""Pallas kernels of a TPU program: bundles that the compiler scheduled per grid step."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax.bench.hlo import Instruction

#: For LIBTPU_INIT_ARGS: writes the schedules of all programs to a directory.
DUMP = (
    "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"
)
ANALYSIS = "schedule-analysis_final_bundles.txt"
LETTERS = {"float": "f", "int": "s", "uint": "u", "complex": "c", "bfloat": "bf"}


class Grid(NamedTuple):
    """steps: of the grid. parallel: whether the cores of a chip may share them."""

    steps: int
    parallel: bool


def grids(jaxpr: Any) -> dict[tuple[str, ...], Grid]:
    """The grid of every kernel in a traced function, by the types of operands and results.

    The largest of several kernels with the same types. Grids of unknown size are left out.
    """
    found: dict[tuple[str, ...], Grid] = {}
    for equation in calls(jaxpr):
        sizes = equation.params["grid_mapping"].grid
        if not all(isinstance(size, int) for size in sizes):
            continue
        semantics = getattr(equation.params["compiler_params"], "dimension_semantics", None) or ()
        parallel = any("parallel" in str(one).lower() for one in semantics)
        key = tuple(type_of(one.aval) for one in (*equation.invars, *equation.outvars))
        found[key] = max(found.get(key, Grid(0, False)), Grid(math.prod(sizes), parallel))
    return found


def calls(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr that call a kernel, nested ones included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
            continue
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda one: hasattr(one, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from calls(inner)


def type_of(aval: Any) -> str:
    """In HLO notation: "bf16[8,197,192]"."""
    name, bits = re.fullmatch(r"([a-z]+)(\d*)", np.dtype(aval.dtype).name).groups()  # type: ignore[union-attr]
    letters = "pred" if name == "bool" else LETTERS[name] + bits
    return f"{letters}[{','.join(map(str, aval.shape))}]"


def bundles(directory: Path, name: str) -> int | None:
    """Bundles scheduled per step of a kernel's grid; None if the compiler wrote none.

    A bundle takes at least one cycle. A loop inside the kernel counts once.
    """
    for file in sorted(directory.glob(f"*-{name}-*{ANALYSIS}")):
        match = re.search(r"total scheduled bundles:\s+(\d+)", file.read_text())
        if match and re.fullmatch(rf"\d+-{re.escape(name)}-\d+-{ANALYSIS}", file.name):
            return int(match[1])
    return None


def schedules(kernels: Collection[Instruction], directory: Path) -> dict[str, int | None]:
    """{name: bundles} of kernels. The compiler schedules only the first of equal ones."""
    found = {one.name: bundles(directory, one.name) for one in kernels}
    alike: dict[tuple, int] = {}
    for one in kernels:
        if count := found[one.name]:
            alike[one.name.partition(".")[0], one.signature] = count
    return {
        one.name: found[one.name] or alike.get((one.name.partition(".")[0], one.signature))
        for one in kernels
    }


class Cost(NamedTuple):
    """Per execution. cycles: of the arithmetic or of moving the bytes, whichever is longer.

    steps, bundles: None if unknown; then only bytes count.
    """

    name: str
    times: int
    steps: int | None
    bundles: int | None
    bytes: int
    cycles: int


def cost_of(
    one: Instruction,
    grids: dict[tuple[str, ...], Grid],
    scheduled: int | None,
    *,
    bytes_per_cycle: float,
    cores: int,
) -> Cost:
    """The cost of a kernel of a compiled program with `scheduled` bundles."""
    grid = grids.get(one.signature)
    arithmetic = 0.0
    if grid and scheduled:
        arithmetic = scheduled * grid.steps / (cores if grid.parallel else 1)
    cycles = math.ceil(max(arithmetic, one.bytes / bytes_per_cycle))
    steps = grid.steps if grid else None
    return Cost(one.name, one.times, steps, scheduled, one.bytes, cycles)
