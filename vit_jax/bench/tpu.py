"""A training step or a forward pass, compiled by libtpu without a TPU.

The compiler writes the expected cycles of every program of the step. Their sum is an estimate, not
a measurement: it ignores contention for memory, the host, and communication between chips. It shows
the effect of a change, and where cycles are spent.

Each compilation is a separate process: libtpu reads its flags once, and does not free its memory.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vit_jax import files
from vit_jax.bench import Row, kernels
from vit_jax.errors import UserError, nearest

TASKS = ("train", "inference")
HLO = "step.hlo.txt"


class Chip(NamedTuple):
    """A chip by its datasheet (Google Cloud's pages of v5e, v5p and v6e).

    peak: bfloat16 FLOP/s. flops_per_cycle: of its matrix units, 2 x units x rows x columns: v5e 4
    of 128 x 128, v5p twice that (two cores), v6e 4 of 256 x 256. The pages differ about v6e's
    units (2 or 4); the compiler's own estimate of a product of 4096 x 4096 matrices does 97%, 96%
    and 87% of these in a cycle. hbm: bytes/s. memory: bytes. host: the topology of one host.
    """

    peak: float
    flops_per_cycle: int
    hbm: float
    memory: float
    cores: int
    host: str

    @property
    def clock(self) -> float:
        """Cycles/s: 1.50e9 of v5e, 1.75e9 of v5p and of v6e."""
        return self.peak / self.flops_per_cycle


CHIPS = {
    "v5e": Chip(197e12, 2 * 4 * 128**2, 819e9, 16 * 2**30, 1, "2x2"),
    "v5p": Chip(459e12, 2 * 8 * 128**2, 2765e9, 95e9, 2, "2x2x1"),
    "v6e": Chip(918e12, 2 * 4 * 256**2, 1640e9, 32 * 2**30, 1, "2x2"),
}

#: Other implementations whose step can be compiled from a checkout (`vit_jax.bench.tpu_peers`).
PEERS = ("big_vision", "vision_transformer")

#: The same estimates for other implementations, at 224 pixels and 1000 classes in bfloat16: their
#: own models, Adam and clipping of optax, compiled with REFERENCE_VERSIONS.
REFERENCE_VERSIONS = {"jax": "0.10.2", "libtpu": "0.0.42.1"}
#: (chip, variant, task, batch, dropout rate): {name: cycles}
REFERENCES: dict[tuple[str, str, str, int, float], dict[str, float]] = {
    ("v5e", "B/16", "train", 128, 0.0): {"big_vision": 303e6, "vision_transformer": 371e6},
    ("v5e", "B/16", "train", 128, 0.1): {"big_vision": 447e6},
    ("v5e", "B/16", "inference", 128, 0.0): {"big_vision": 90.0e6},
    ("v5e", "L/16", "train", 64, 0.0): {"big_vision": 361e6},
    ("v6e", "B/16", "train", 128, 0.0): {"big_vision": 159e6},
}


class Request(NamedTuple):
    """One compilation. topology: "": one chip. batch: images per chip. mesh: sizes of its axes.

    options: settings of the model, as text. peer: (name, checkout) of another implementation.
    """

    chip: str
    topology: str
    task: str
    variant: str
    image_size: int
    batch: int
    dtype: str
    num_classes: int = 1000
    options: tuple[tuple[str, str], ...] = ()
    mesh: tuple[tuple[str, int], ...] = ()
    peer: tuple[str, str] | None = None

    @property
    def target(self) -> str:
        return f"{self.chip}:{self.topology}" if self.topology else self.chip


def targets(names: Sequence[str]) -> list[tuple[str, str]]:
    """(chip, topology) of "v5e" and "v5e:4x4".

    Raises:
      UserError: no such chip.
    """
    found = []
    for name in names:
        chip, _, topology = name.partition(":")
        if chip not in CHIPS:
            raise UserError(
                f"--compile_for={name}: there is no chip {chip!r}; there are {', '.join(CHIPS)}."
                f"{nearest(chip, CHIPS)}"
            )
        found.append((chip, topology))
    return found


def check_libtpu() -> None:
    """Raises UserError if the compiler is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "The compiler for TPUs is not installed; it needs no TPU: pip install 'vit_jax[tpu]'"
        )


def bench(
    requests: Sequence[Request],
    *,
    peers: Sequence[tuple[str, str]] = (),
    dump: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Compiles every request, prints the results, and returns the rows of `--json`.

    Args:
      peers: (name, checkout) of other implementations to compile beside ours.
      dump: a directory for the HLO text and the schedules of kernels.

    Raises:
      UserError: no compiler, no such model, or a batch that does not fit.
    """
    check_libtpu()
    rows = []
    for request in requests:
        with tempfile.TemporaryDirectory(prefix="vit_jax_bench_") as scratch:
            row = compile_in_process(request, Path(scratch))
            if dump is not None:
                keep(request, row, Path(scratch), dump)
        row["references"] = references(request, row)
        row["references"] += [beside(request._replace(peer=peer), row) for peer in peers]
        say(table(row))
        rows.append(row)
    return rows


def compile_in_process(request: Request, scratch: Path) -> Row:
    """The row of one request, from a separate process that writes its files to `scratch`."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",  # leaves a local TPU free
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TPU_SKIP_MDS_QUERY": "1",  # no TPU metadata server
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no lock of a TPU
        "LIBTPU_INIT_ARGS": " ".join(
            [os.environ.get("LIBTPU_INIT_ARGS", ""), kernels.DUMP.format(scratch / "llo")]
        ).strip(),
    }
    worker = [sys.executable, "-m", "vit_jax.bench.tpu_worker"]
    done = subprocess.run(
        [*worker, json.dumps(request), str(scratch), str(os.getpid())],
        env=environment,
        capture_output=True,
        text=True,
    )
    found = files.read_json(scratch / "row.json")
    peer = f"{request.peer[0]}, " if request.peer else ""
    where = f"{peer}{request.variant}, {request.task}, batch {request.batch}, for {request.target}"
    if found is None:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(f"{where}: the compiler ended with code {done.returncode}: {lines[-1]}")
    if "error" in found:
        raise UserError(f"{where}: {found['error']}")
    return found


def keep(request: Request, row: Row, scratch: Path, dump: Path) -> None:
    """The HLO text and the schedules of the kernels, to a directory below `dump`."""
    name = f"{request.target}_{request.variant}_{request.task}_{request.batch}_{request.dtype}"
    directory = dump / name.replace("/", "-").replace(":", "-")
    directory.mkdir(parents=True, exist_ok=True)
    files.write_text(directory / HLO, (scratch / HLO).read_text())
    for kernel in row["kernels"]:
        for file in (scratch / "llo").glob(f"*-{kernel['name']}-*final_bundles.txt"):
            files.write_text(directory / file.name.partition("-")[2], file.read_text())


def beside(request: Request, row: Row) -> Row:
    """The estimate of a peer's step, compiled here, as in `references`."""
    with tempfile.TemporaryDirectory(prefix="vit_jax_bench_") as scratch:
        theirs = compile_in_process(request, Path(scratch))
    assert request.peer is not None
    return {
        "peer": request.peer[0],
        "cycles": theirs["cycles"],
        "ratio": row["cycles"] / theirs["cycles"],
        "temp_bytes": theirs["temp_bytes"],
        **versions(),
    }


def references(request: Request, row: Row) -> list[Row]:
    """Known estimates of other implementations: cycles, and ours relative to theirs."""
    options = dict(request.options)
    rate = float(options.pop("dropout_rate", 0))
    plain = not options and request.dtype == "bfloat16" and not request.topology
    if not plain or (request.image_size, request.num_classes) != (224, 1000):
        return []
    known = REFERENCES.get((request.chip, request.variant, request.task, request.batch, rate), {})
    return [
        {"peer": peer, "cycles": cycles, "ratio": row["cycles"] / cycles, **REFERENCE_VERSIONS}
        for peer, cycles in known.items()
    ]


def table(row: Row) -> str:
    """A row as text, marked as the compiler's estimate."""
    chip, cycles = CHIPS[row["chip"]], row["cycles"]
    chips = f"{row['chips']} chips" if row["chips"] > 1 else "one chip"
    axes = ", ".join(f"{name} {size}" for name, size in row["mesh"].items() if size > 1)
    lines = [
        f"{row['task']}, {row['variant']} at {row['image_size']}, batch {row['batch']} a chip, "
        f"{row['dtype']}, {row['chip']} ({chips}{f': {axes}' if axes else ''})",
        f"  estimated by the compiler, not measured (jax {row['jax']}, libtpu {row['libtpu']}):",
        f"  {cycles / 1e6:.4g} M cycles, {row['kernel_cycles'] / 1e6:.4g} M of them in kernels; "
        f"{1e3 * cycles / chip.clock:.4g} ms, {row['images_per_second']:.0f} images/s a chip, "
        f"{100 * row['share_of_peak']:.1f}% of the peak of {chip.peak / 1e12:.0f} TFLOP/s",
        f"  memory {row['argument_bytes'] / 2**30:.2f} GiB of arguments, "
        f"{row['temp_bytes'] / 2**30:.2f} GiB of temporaries, of {chip.memory / 2**30:.1f} GiB",
    ]
    for part, count in sorted(row["parts"].items(), key=lambda item: -item[1]):
        name = part.replace("_", " ")
        lines.append(f"    {name:<16}{count / 1e6:9.2f} M {100 * count / cycles:5.1f}%")
    for kind in dict.fromkeys(one["kind"] for one in row["collectives"]):
        ones = [one for one in row["collectives"] if one["kind"] == kind]
        size = sum(one["times"] * one["bytes"] for one in ones)
        hidden = sum(one["times"] * one["bytes"] for one in ones if one["overlapped_cycles"])
        lines.append(
            f"    {sum(one['times'] for one in ones)} x {kind}: {size / 2**20:.4g} MiB, "
            f"{100 * hidden / size:.0f}% of it beside other work (not in the cycles)"
        )
    for one in row["references"]:
        lines.append(
            f"  {one['ratio']:.2f} of the cycles of {one['peer']}, {one['cycles'] / 1e6:.4g} M "
            f"(jax {one['jax']}, libtpu {one['libtpu']})"
        )
    return "\n".join(lines)


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
