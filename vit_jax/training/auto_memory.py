"""`config.memory="auto"`: the fastest step that fits the device.

The global batch is unchanged, so results are equal up to the order of sums; with
`dropout_bits="threefry"` the number of micro-batches also changes the random numbers. A resumed run
keeps the choice in `WORKDIR/memory.json`, if it still fits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from jax.stages import Compiled

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.numerics import remat
from vit_jax.runtime import host_memory
from vit_jax.training import memory
from vit_jax.training.setup import Setup, compile_train_step, computed_as

FILE = "memory.json"
#: Tokens in a micro-batch for which accumulating its gradient takes as long as computing it: 12
#: bytes of traffic for 6 FLOPs per parameter and token, at 150 FLOPs per byte as on a GPU.
TOKENS_PER_SUM = 300
#: Relative time of a step on a CPU whose memory the system must clear first.
CLEARING = 1.5
#: Candidates whose predicted use exceeds the limit by this factor are skipped.
MARGIN = 1.1


class Choice(NamedTuple):
    """How to compute the step: a policy of numerics/remat.py, and the number of micro-batches."""

    remat: str
    accumulation_steps: int

    def __str__(self) -> str:
        return f"remat={self.remat}, accumulation_steps={self.accumulation_steps}"


def choose_setup(
    setup: Setup, workdir: Path, *, resuming: bool
) -> tuple[Setup, Compiled, int | None]:
    """The final setup, its compiled step, and the expected memory in bytes; prints the choice.

    The bytes are `memory.expected_bytes`.

    Raises:
      UserError: nothing fits.
    """
    config = setup.config
    before = read(workdir) if resuming else None  # before any process can write it
    limit = memory.device_memory(config)
    if config.memory == "auto":
        setup, compiled, kept = choose(setup, limit, before)
    else:
        compiled, kept = memory.compile_checked(setup, limit)
    if host_memory.freed_pages_are_kept() and not kept:
        host_memory.return_freed_pages()
        memory.show_memory(
            "freed pages are returned to the system, which is slower, as memory is short"
        )
    host_memory.trim()  # memory of the compilation
    host_memory.begin_peak()
    return setup, compiled, memory.expected_bytes(setup, compiled)


def choose(setup: Setup, limit: int, before: Choice | None = None) -> tuple[Setup, Compiled, bool]:
    """The fastest choice that fits `limit` bytes: setup, compiled step, whether pages are kept.

    Candidates are compiled from the fastest on. One that does not fit shows the size of
    activations, and candidates that clearly exceed the limit are then skipped; the one with the
    least memory is always tried.

    Args:
      before: the choice of the run so far; kept if it fits.

    Raises:
      UserError: nothing fits.
    """
    memory.check_state_fits(setup, limit)
    ways = (True, False) if host_memory.freed_pages_are_kept() else (False,)
    order = sorted(itertools.product(choices(setup), ways), key=lambda way: seconds(setup, *way))
    frugal = min((choice for choice, _ in order), key=activation_share)
    order.sort(key=lambda way: way[0] != before)
    programs: dict[Choice, tuple[Setup, Compiled | None]] = {}
    least = 0
    activations = 0.0  # bytes for the whole batch without accumulation or remat; not known yet
    for choice, kept in order:
        fixed = memory.fixed_bytes(setup, choice.accumulation_steps)
        share = activation_share(choice) * (2 if kept else 1)
        last = choice == frugal and not kept
        if not last and fixed + activations * share > MARGIN * limit:
            continue
        if choice not in programs:
            candidate = computed_as(setup, **choice._asdict())
            programs[choice] = candidate, compile_step(candidate)
        candidate, compiled = programs[choice]
        needed = bytes_of(candidate, compiled, kept) if compiled is not None else limit + 1
        if last:
            least = needed
        what = f"{choice}: {memory.gib(needed)} of {memory.gib(limit)} per device"
        if compiled is not None and needed <= limit:
            why = "as before" if choice == before else "the fastest that fits"
            memory.show_memory(f"{what}, {why}")
            if before not in (None, choice):
                memory.show_memory(f"this run began with {before}; rounding differs from now on")
            return candidate, compiled, kept
        memory.show_memory(f"{what}, does not fit")
        activations = (needed - fixed) / share
    raise UserError(
        f"A step of {setup.program.model.variant} needs {memory.gib(least)} with {frugal} and "
        f"there are {memory.gib(limit)}; use more devices, or --config.mesh.fsdp."
    )


def choices(setup: Setup) -> Iterator[Choice]:
    """All candidates: every policy with every number of equal micro-batches."""
    rows = memory.rows_per_device(setup)
    for name in remat.POLICIES:
        yield from (Choice(name, parts) for parts in range(1, rows + 1) if rows % parts == 0)


def seconds(setup: Setup, choice: Choice, kept: bool = True) -> float:
    """Estimated time of a step relative to the fastest: recomputation and accumulation.

    A heuristic to order the candidates.

    Args:
      kept: whether a CPU retains freed pages; otherwise the system clears them at every step.
    """
    parts = choice.accumulation_steps
    tokens = memory.rows_per_device(setup) / parts * math.prod(setup.program.model.grid)
    sums = TOKENS_PER_SUM / tokens if parts > 1 else 0.0
    return remat.POLICIES[choice.remat].seconds * (1 + sums) * (1 if kept else CLEARING)


def activation_share(choice: Choice) -> float:
    """Memory for activations, relative to the whole batch without accumulation."""
    return remat.POLICIES[choice.remat].activations / choice.accumulation_steps


def compile_step(setup: Setup) -> Compiled | None:
    """The compiled step; None if the compiler reports that it does not fit, as on TPU."""
    try:
        return compile_train_step(setup)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def bytes_of(setup: Setup, compiled: Compiled, kept: bool) -> int:
    """`memory.needed_bytes`, which must be known to choose."""
    needed = memory.needed_bytes(setup, compiled, kept=kept)
    if needed is None:
        raise UserError(
            "config.memory=auto: this device does not report the memory of a step; "
            "set config.memory=as_configured."
        )
    return needed


def read(workdir: Path) -> Choice | None:
    """The stored choice of a run in `workdir`; None if there is none."""
    found = files.read_json(workdir / FILE)
    if found is None:
        return None
    try:
        return Choice(**found)
    except TypeError as error:
        raise UserError(
            f"{workdir / FILE} is damaged ({error}); remove it to choose again."
        ) from error


def write(workdir: Path, setup: Setup) -> None:
    """Stores the choice of a run, if there was one."""
    if setup.config.memory == "auto" and jax.process_index() == 0:
        choice = Choice(remat.name_of(setup.program.model.remat), setup.config.accumulation_steps)
        files.write_json(workdir / FILE, choice._asdict())
