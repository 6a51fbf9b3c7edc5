"""`config.memory="auto"`: the fastest way to compute a step that fits the device.

The global batch stays, so the result does too, up to the order of sums; with dropout, stochastic
depth or mixup another number of parts draws other random numbers. A run that goes on computes as it
did before, if that still fits: the choice is in `WORKDIR/memory.json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from vit_jax import host_memory, models, preflight
from vit_jax.config import ConfigDict
from vit_jax.errors import UserError
from vit_jax.interop import native
from vit_jax.models import remat

if TYPE_CHECKING:
    from vit_jax.train import Setup

FILE = "memory.json"
MODES = ("as_configured", "auto")
#: Tokens of a micro batch at which adding its gradient to the others takes as long as computing it:
#: 12 bytes of traffic for 6 FLOPs per parameter and token, at 150 FLOPs per byte as on a GPU.
TOKENS_PER_SUM = 300
#: How many times what it needs a process on a CPU may hold while it keeps freed pages, measured.
KEPT = 3
#: What is foreseen to take more of the limit than this is not tried.
MARGIN = 1.1


class Choice(NamedTuple):
    """A way to compute the step: a policy of models/remat.py, and the parts of a batch."""

    remat: str
    accumulation_steps: int

    def __str__(self) -> str:
        return f"remat={self.remat}, accumulation_steps={self.accumulation_steps}"


def check(config: ConfigDict) -> None:
    """Raises UserError if `config.memory` is unknown or contradicts another setting."""
    if config.memory not in MODES:
        raise UserError(f"config.memory={config.memory!r}: choose {' or '.join(MODES)}.")
    chosen = config.accumulation_steps != 1 or config.model.remat is not None
    if config.memory == "auto" and chosen:
        raise UserError(
            "config.memory=auto chooses config.accumulation_steps and config.model.remat itself; "
            "leave them out, or leave config.memory as_configured."
        )


def fit(setup: Setup, workdir: Path, *, resuming: bool) -> tuple[Setup, Any]:
    """The setup that will run and its compiled step, which fits; says what it takes.

    Raises:
      UserError: nothing fits.
    """
    config = setup.config
    before = read(workdir) if resuming else None  # before any process can write it
    limit = preflight.device_memory(config)
    if config.memory == "auto":
        setup, compiled = choose(setup, limit, before)
    else:
        compiled = preflight.fit(setup, limit)
    save_pages(setup, compiled, limit)
    return setup, compiled


def save_pages(setup: Setup, compiled: Any, limit: int) -> None:
    """On a CPU, ends the keeping of freed pages where it could take more than `limit` bytes."""
    if jax.default_backend() == "cpu":
        needed = preflight.needed_bytes(setup, compiled)
        if needed is not None and KEPT * needed > limit:
            host_memory.give_back_freed_pages()
            preflight.show_memory("freed pages are given back, which costs time, as space is short")


def choose(setup: Setup, limit: int, before: Choice | None = None) -> tuple[Setup, Any]:
    """The fastest choice that fits `limit` bytes, as a setup and its compiled step.

    Choices are tried from the fastest on. One that does not fit says how large activations are, and
    what will then clearly not fit is not compiled; the most frugal one is tried in any case.

    Args:
      before: what the run computed with so far; kept if it fits.

    Raises:
      UserError: nothing fits.
    """
    preflight.check_state_fits(setup, limit)
    order = sorted(choices(setup), key=lambda choice: seconds(setup, choice))
    frugal = min(order, key=activation_share)
    if before in order:
        order = [before, *(choice for choice in order if choice != before)]
    tried: dict[Choice, int] = {}
    activations = 0.0  # bytes for the whole batch in one part without remat; not known yet
    for choice in order:
        fixed = preflight.fixed_bytes(setup, choice.accumulation_steps)
        if choice != frugal and fixed + activations * activation_share(choice) > MARGIN * limit:
            continue
        candidate = with_choice(setup, choice)
        compiled, tried[choice] = compile_within(candidate, limit)
        what = f"{choice}: {preflight.gib(tried[choice])} of {preflight.gib(limit)} per device"
        if compiled is not None:
            why = "as before" if choice == before else "the fastest that fits"
            preflight.show_memory(f"{what}, {why}")
            if before not in (None, choice):
                preflight.show_memory(f"this run began with {before}; its sums differ from now on")
            return candidate, compiled
        preflight.show_memory(f"{what}, too much")
        activations = (tried[choice] - fixed) / activation_share(choice)
    raise UserError(
        f"A step of {setup.model.variant} needs {preflight.gib(tried[frugal])} with {frugal} and "
        f"there are {preflight.gib(limit)}; use more devices, or --config.mesh.fsdp."
    )


def choices(setup: Setup) -> Iterator[Choice]:
    """All there are: every policy, and every number of equal parts."""
    rows = preflight.rows_per_device(setup)
    for name in remat.POLICIES:
        yield from (Choice(name, parts) for parts in range(1, rows + 1) if rows % parts == 0)


def seconds(setup: Setup, choice: Choice) -> float:
    """How long a step takes, as a multiple of the fastest: what is computed again, what is summed.

    A rule of thumb that orders the choices.
    """
    parts = choice.accumulation_steps
    tokens = preflight.rows_per_device(setup) / parts * math.prod(setup.model.grid)
    sums = TOKENS_PER_SUM / tokens if parts > 1 else 0.0
    return remat.POLICIES[choice.remat].seconds * (1 + sums)


def activation_share(choice: Choice) -> float:
    """Memory for activations, as a share of what the whole batch in one part takes."""
    return remat.POLICIES[choice.remat].activations / choice.accumulation_steps


def with_choice(setup: Setup, choice: Choice) -> Setup:
    """The same run, computed another way."""
    config = setup.config.copy_and_resolve_references()
    config.accumulation_steps = choice.accumulation_steps
    model = models.replace(setup.model, remat=choice.remat)
    _, apply = models.as_functions(model)
    step = setup.make_train_step(apply, accumulation_steps=choice.accumulation_steps)
    return setup._replace(config=config, model=model, train_step=step)


def compile_within(setup: Setup, limit: int) -> tuple[Any, int]:
    """The compiled step and the bytes it needs; None in its place where it does not fit `limit`."""
    try:
        compiled = preflight.compile_train_step(setup)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, limit + 1  # the compiler itself saw that it does not fit: a TPU's does
    needed = preflight.needed_bytes(setup, compiled)
    if needed is None:
        raise UserError(
            "config.memory=auto: this device does not say what a step needs; "
            "set config.memory=as_configured."
        )
    return (compiled if needed <= limit else None), needed


def read(workdir: Path) -> Choice | None:
    """What a run in `workdir` computed with; None if it did not choose."""
    found = native.read_json(workdir / FILE)
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
        choice = Choice(remat.name_of(setup.model.remat), setup.config.accumulation_steps)
        native.write_json(workdir / FILE, choice._asdict())
