"""`config.memory="auto"`: the fastest way to compute a step that fits the device.

The global batch stays, so the result does too, up to the order of sums; with dropout, stochastic
depth or mixup another number of parts draws other random numbers. A run that goes on computes as it
did before, if that still fits: the choice is in `WORKDIR/memory.json`.
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
#: Tokens of a micro batch at which adding its gradient to the others takes as long as computing it:
#: 12 bytes of traffic for 6 FLOPs per parameter and token, at 150 FLOPs per byte as on a GPU.
TOKENS_PER_SUM = 300
#: A step whose memory the system clears first, beside one that finds it as it was, on a CPU.
CLEARING = 1.5
#: What is foreseen to take more of the limit than this is not tried.
MARGIN = 1.1


class Choice(NamedTuple):
    """A way to compute the step: a policy of models/remat.py, and the parts of a batch."""

    remat: str
    accumulation_steps: int

    def __str__(self) -> str:
        return f"remat={self.remat}, accumulation_steps={self.accumulation_steps}"


def settle(setup: Setup, workdir: Path, *, resuming: bool) -> tuple[Setup, Compiled, int | None]:
    """The setup that will run, its compiled step, which fits, and the bytes that it will hold.

    Says what it takes. The bytes are `preflight.expected_bytes`.

    Raises:
      UserError: nothing fits.
    """
    config = setup.config
    before = read(workdir) if resuming else None  # before any process can write it
    limit = memory.device_memory(config)
    if config.memory == "auto":
        setup, compiled, kept = choose(setup, limit, before)
    else:
        compiled, kept = memory.compile_that_fits(setup, limit)
    if host_memory.freed_pages_are_kept() and not kept:
        host_memory.give_back_freed_pages()
        memory.show_memory("freed pages are given back, which costs time, as space is short")
    host_memory.trim()  # what compiling took
    host_memory.begin_peak()
    return setup, compiled, memory.expected_bytes(setup, compiled)


def choose(setup: Setup, limit: int, before: Choice | None = None) -> tuple[Setup, Compiled, bool]:
    """The fastest choice that fits `limit` bytes: a setup, its compiled step, if pages are kept.

    Choices are tried from the fastest on. One that does not fit says how large activations are, and
    what will then clearly not fit is not compiled; the most frugal one is tried in any case.

    Args:
      before: what the run computed with so far; kept if it fits.

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
    activations = 0.0  # bytes for the whole batch in one part without remat; not known yet
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
                memory.show_memory(f"this run began with {before}; its sums differ from now on")
            return candidate, compiled, kept
        memory.show_memory(f"{what}, too much")
        activations = (needed - fixed) / share
    raise UserError(
        f"A step of {setup.program.model.variant} needs {memory.gib(least)} with {frugal} and "
        f"there are {memory.gib(limit)}; use more devices, or --config.mesh.fsdp."
    )


def choices(setup: Setup) -> Iterator[Choice]:
    """All there are: every policy, and every number of equal parts."""
    rows = memory.rows_per_device(setup)
    for name in remat.POLICIES:
        yield from (Choice(name, parts) for parts in range(1, rows + 1) if rows % parts == 0)


def seconds(setup: Setup, choice: Choice, kept: bool = True) -> float:
    """How long a step takes, as a multiple of the fastest: what is computed again, what is summed.

    A rule of thumb that orders the choices.

    Args:
      kept: the pages that a CPU frees; otherwise the system clears them at every step.
    """
    parts = choice.accumulation_steps
    tokens = memory.rows_per_device(setup) / parts * math.prod(setup.program.model.grid)
    sums = TOKENS_PER_SUM / tokens if parts > 1 else 0.0
    return remat.POLICIES[choice.remat].seconds * (1 + sums) * (1 if kept else CLEARING)


def activation_share(choice: Choice) -> float:
    """Memory for activations, as a share of what the whole batch in one part takes."""
    return remat.POLICIES[choice.remat].activations / choice.accumulation_steps


def compile_step(setup: Setup) -> Compiled | None:
    """The compiled step; None if the compiler itself saw that it does not fit: a TPU's does."""
    try:
        return compile_train_step(setup)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def bytes_of(setup: Setup, compiled: Compiled, kept: bool) -> int:
    """`preflight.needed_bytes`, without which nothing can be chosen."""
    needed = memory.needed_bytes(setup, compiled, kept=kept)
    if needed is None:
        raise UserError(
            "config.memory=auto: this device does not say what a step needs; "
            "set config.memory=as_configured."
        )
    return needed


def read(workdir: Path) -> Choice | None:
    """What a run in `workdir` computed with; None if it did not choose."""
    found = files.read_json(workdir / FILE)
    if found is None:
        return None
    try:
        return Choice(**found)
    except TypeError as error:
        raise UserError(
            f"{workdir / FILE} is damaged ({error}); remove it to choose anew."
        ) from error


def write(workdir: Path, setup: Setup) -> None:
    """Notes what a run computes with, if it was chosen."""
    if setup.config.memory == "auto" and jax.process_index() == 0:
        choice = Choice(remat.name_of(setup.program.model.remat), setup.config.accumulation_steps)
        files.write_json(workdir / FILE, choice._asdict())
