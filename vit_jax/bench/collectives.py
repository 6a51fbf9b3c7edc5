"""The collectives in a compiled step's HLO: counts and bytes.

`read` takes the text of `jax.jit(f).lower(...).compile().as_text()`. A collective inside a loop
counts once per iteration. Asynchronous pairs (`-start`, `-done`) count once, and so does one that a
TPU streams through several fusions, which share its channel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

DTYPE_BITS = {"pred": 8, "bf16": 16, **{f"c{n}": n for n in (64, 128)}} | {
    f"{letter}{n}": n for letter in "fsu" for n in (2, 4, 8, 16, 32, 64)
}  # f8e4m3 and similar are matched by their first two characters

INSTRUCTION = re.compile(rf"%?([\w.\-]+) = (.*?) ({'|'.join(KINDS)})(-start)?\(")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
CHANNEL = re.compile(r"\bchannel_id=(\d+)")
TURNS = re.compile(r"known_trip_count\W+n\W+(\d+)")
SCALAR = re.compile(r"%?([\w.\-]+) = [su]\d+\[\]\S* (.*)")
COUNTER = r"get-tuple-element\(.*\), index=(\d+)"
MESH = re.compile(
    r"replica_groups=mesh\[(?P<axes>[^\]]*)\]"
    r"(?:, device_ids=\(\[(?P<source>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?\))?"
    r" \{(?P<group>[^}]*)\}"
)
ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+)\w*\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective operation of a program, per device.

    size: bytes of its result (of all arrays of a combined one). largest: of its largest array.
    group: the devices in the group of device 0, or in the first group.
    times: how often a run of the program executes it.
    """

    kind: str
    size: int
    largest: int
    group: tuple[int, ...]
    times: int
    name: str


def read(hlo: str) -> list[Collective]:
    """All collectives of a compiled HLO module.

    Raises:
      ValueError: one is inside a loop of unknown trip count.
    """
    computations = split_computations(hlo)
    turns = executions(computations)
    devices = num_devices(hlo)
    found, channels = [], set()
    for computation, lines in computations.items():
        for line in lines:
            match = INSTRUCTION.search(line)
            if not match:
                continue
            name, shapes, kind, start = match.groups()
            if math.isnan(turns[computation]):
                raise ValueError(f"{name} is in a loop of unknown length.")
            sizes = array_bytes(shapes)
            if start and kind in ("all-gather", "collective-permute"):
                # (operands, results): a gather is as large as its results.
                sizes = sizes[len(sizes) // 2 :] if kind == "all-gather" else sizes[1:2]
            if kind == "all-reduce" and "all-reduce-scatter" in computation:
                kind = "reduce-scatter"  # a TPU fuses the two; each device keeps its part
                parts = len(first_group(line, devices))
                sizes = [size // parts for size in sizes]
            times, channel = int(turns[computation]), CHANNEL.search(line)
            if not times or (channel and channel[1] in channels):
                continue
            channels |= {channel[1]} if channel else set()
            group = first_group(line, devices)
            found.append(Collective(kind, sum(sizes), max(sizes), group, times, name))
    return found


def split_computations(hlo: str) -> dict[str, list[str]]:
    """The lines of each computation by name; the entry is "ENTRY"."""
    computations: dict[str, list[str]] = {}
    current: list[str] = []
    for line in hlo.splitlines():
        header = COMPUTATION.match(line)
        if header:
            current = computations.setdefault("ENTRY" if header[1] else header[2], [])
        else:
            current.append(line)
    return computations


def executions(computations: dict[str, list[str]]) -> dict[str, float]:
    """How often each computation runs; NaN in a loop of unknown trip count."""
    counts = dict.fromkeys(computations, 0.0)

    def visit(name: str, times: float) -> None:
        if name not in counts:
            return
        counts[name] += times
        for line in computations[name]:
            called = CALLED.findall(line)
            for branches in BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            turns = turns_of(line, computations) if " while(" in line else 1
            for other in called:
                visit(other, times * turns)

    visit("ENTRY", 1.0)
    return counts


def turns_of(loop: str, computations: dict[str, list[str]]) -> float:
    """The trip count of a loop, from its line or its counter; otherwise NaN.

    If the compiler does not write it, as for TPUs, it is read from a counter as in JAX's loops:
    from 0, incremented by one, while less than a constant.
    """
    if said := TURNS.search(loop):
        return int(said[1])
    parts = dict(re.findall(r"\b(condition|body)=%?([\w.\-]+)", loop))
    if len(parts) < 2 or any(name not in computations for name in parts.values()):
        return math.nan
    condition, body = (
        {match[1]: match[2] for match in map(SCALAR.search, computations[parts[key]]) if match}
        for key in ("condition", "body")
    )
    test = next((line for line in computations[parts["condition"]] if "ROOT " in line), "")
    compared = re.search(r"compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT", test)
    if not compared:
        return math.nan
    index, limit = (
        re.search(pattern, condition.get(name, ""))
        for pattern, name in zip((COUNTER, r"constant\((\d+)\)"), compared.groups(), strict=True)
    )
    for text in body.values():
        added = re.search(r"\badd\(%?([\w.\-]+), %?([\w.\-]+)\)", text)
        counter = re.search(COUNTER, body.get(added[1], "")) if added else None
        step = "constant(1)" in body.get(added[2], "") if added else False
        if index and limit and counter and counter[1] == index[1] and step:
            return int(limit[1])
    return math.nan


def array_bytes(shapes: str) -> list[int]:
    """Bytes of every array in the text of a type: "(f32[8,2]{1,0}, bf16[3])" is [64, 6]."""
    return [
        -(-math.prod(numbers(dims)) * DTYPE_BITS[dtype] // 8)
        for dtype, dims in ARRAY.findall(shapes)
    ]


def num_devices(hlo: str) -> int:
    """Devices that the module was compiled for."""
    header = hlo[: hlo.index("\n")]
    counts = re.findall(r"(?:replica_count|num_partitions)=(\d+)", header)
    return math.prod(map(int, counts))


def first_group(line: str, devices: int) -> tuple[int, ...]:
    """The first replica group of an instruction, in any of the notations that XLA prints."""
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line):
        return tuple(map(int, match.groups()))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return tuple(numbers(match[1]))
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        return tuple(iota(match[2], match[3], numbers(match[1]))[0].tolist())
    if match := MESH.search(line):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match["axes"])}
        if ":(" in match["group"]:
            raise ValueError(f"Groups over a part of a mesh axis are not read: {match[0]}")
        ids = iota(match["source"] or "", match["order"], list(axes.values()))
        grouped = re.findall(r"'(\w+)'", match["group"])
        index = tuple(slice(None) if name in grouped else 0 for name in axes)
        return tuple(np.atleast_1d(ids[index]).reshape(-1).tolist())
    return tuple(range(devices))  # replica_groups={} means all devices


def iota(source: str, order: str | None, shape: list[int]) -> np.ndarray:
    """Device ids: iota in the shape `source`, transposed to `order`, reshaped to `shape`."""
    ids = np.arange(math.prod(shape)).reshape(numbers(source) or -1)
    return (ids.transpose(numbers(order)) if order else ids).reshape(shape)


def numbers(text: str) -> list[int]:
    """ "2,4" as [2, 4]."""
    return [int(n) for n in text.split(",") if n]


def moved_bytes(collective: Collective) -> float:
    """Bytes that each device sends, for ring algorithms, over all executions.

    All-reduce 2 (n - 1) / n of the result, all-gather and all-to-all (n - 1) / n of it,
    reduce-scatter n - 1 times its (small) result, a permutation all of it.
    """
    n = len(collective.group)
    share = {
        "all-reduce": 2 * (n - 1) / n,
        "all-gather": (n - 1) / n,
        "all-to-all": (n - 1) / n,
        "reduce-scatter": n - 1,
        "collective-permute": 1,
    }[collective.kind]
    return share * collective.size * collective.times


class Total(NamedTuple):
    """times: executions in a step. size: bytes of their results. moved: bytes sent per device."""

    times: int
    size: int
    moved: float


def totals(collectives: Iterable[Collective]) -> dict[str, Total]:
    """Sums by kind; kinds that do not occur are left out."""
    sums: dict[str, Total] = {}
    for one in collectives:
        times, size, moved = sums.get(one.kind, (0, 0, 0.0))
        sums[one.kind] = Total(
            times + one.times, size + one.size * one.times, moved + moved_bytes(one)
        )
    return sums
