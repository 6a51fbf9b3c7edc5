"""The memory that a run will hold: estimated before its first step, checked against the device."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import psutil

from vit_jax import data
from vit_jax.config import ConfigDict
from vit_jax.errors import UserError
from vit_jax.numerics import remat
from vit_jax.runtime import host_memory, sharding
from vit_jax.runtime.pace import steps_ahead
from vit_jax.training.setup import Setup, abstract_batch, compile_train_step

GIB = 2**30
#: Batches on the devices that no step has begun with: the next one, and two behind it (`loop` and
#: `training_batches` of train.py).
BATCHES_AHEAD = 3
MIB = 2**20
#: What the process of a CPU takes besides, measured: until its step is compiled, and after that.
UNCOMPILED, COMPILED = 400 * MIB, 150 * MIB
#: Copies of the state that a CPU holds while a checkpoint is written, measured: while it computes
#: 1.8, at the end 1.
COPIES = 2


def state_bytes(setup: Setup) -> int:
    """Bytes that the training state takes on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(setup.program.abstract_state)
    )


def device_memory(config: ConfigDict) -> int:
    """Bytes of one device that a run may use, the same on every process.

    The device's own limit, or its share of the free host memory that the process will not need
    itself; `config.memory_limit_gib` if that is less.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    if limit is None:
        free = psutil.virtual_memory().available
        limit = max(0, free - UNCOMPILED) // jax.local_device_count()
    if config.memory_limit_gib is not None:
        limit = min(limit, int(config.memory_limit_gib * GIB))
    if jax.process_count() > 1:  # in KiB: JAX has no 64-bit integers
        limit = 1024 * min(sharding.gathered(limit >> 10))
    return int(limit)


def expected_bytes(setup: Setup, compiled: jax.stages.Compiled) -> int | None:
    """What `measured_memory` will say of a run that begins now; None if the backend does not say.

    On a CPU that is the whole process, on accelerators one device.
    """
    needed = needed_bytes(setup, compiled)
    if needed is None or jax.default_backend() != "cpu":
        return needed
    now = host_memory.resident_bytes()
    return None if now is None else now + jax.local_device_count() * needed + COMPILED


def measured_memory(expected: int | None) -> dict[str, float]:
    """The peak so far and what was expected as metrics in GiB; {} where no peak is known."""
    peak: int | None
    if jax.default_backend() == "cpu":
        peak = host_memory.peak_bytes()
    else:
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        peak = max(one.get("peak_bytes_in_use", 0) for one in stats)
    if not (peak and expected):
        return {}
    return {
        "train/peak_memory_gib": peak / GIB,
        "train/estimated_memory_gib": expected / GIB,
    }


def needed_bytes(setup: Setup, compiled: jax.stages.Compiled, *, kept: bool = False) -> int | None:
    """What a run holds on one device at its peak; None if the backend does not say.

    The state, which the new one replaces in place, one batch, and what the step needs besides; and
    the batches that wait or are not done with. A CPU is the host as well, which reads ahead and
    copies the state to write it.

    Args:
      kept: as much as it can be where a CPU keeps freed pages: the temporaries of a step that do
        not fit where those of another were are there twice, until that is seen.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    state = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    besides = analysis.temp_size_in_bytes * (2 if kept else 1)
    batches = BATCHES_AHEAD + steps_ahead()
    if jax.default_backend() == "cpu":
        batches += data.batches_ahead(setup.config.data.num_threads)
        copy = state_bytes(setup)
        often = setup.config.checkpoint_every_steps < setup.plan.total_steps
        saves = often or setup.plan.keep is not None  # while it computes
        besides = besides + COPIES * copy if saves else max(besides, copy)
    return state + besides + batches * batch_bytes(setup)


def compile_that_fits(setup: Setup, limit: int) -> tuple[jax.stages.Compiled, bool]:
    """The compiled step of a setup as it is configured, which fits; says what it takes.

    Returns:
      The step, and whether a CPU can keep the pages that it frees.

    Raises:
      UserError: it does not fit; says what it needs, what there is, and the setting that would fit.
    """
    check_state_fits(setup, limit)
    compiled = compile_train_step(setup)
    needed = needed_bytes(setup, compiled)
    if needed is not None:
        check_fits(setup, needed, limit)
        show_memory(f"{gib(needed)} of {gib(limit)} per device")
    most = needed_bytes(setup, compiled, kept=True)
    kept = host_memory.freed_pages_are_kept() and most is not None and most <= limit
    return compiled, kept


def show_memory(text: str) -> None:
    """A line below the plan."""
    if jax.process_index() == 0:
        print(f"  memory  {text}", flush=True)


def gib(number: float) -> str:
    """Bytes as "1.23 GiB"."""
    return f"{number / GIB:.3g} GiB"


def check_state_fits(setup: Setup, limit: int) -> None:
    """Raises UserError, with the mesh that would fit, if the state alone exceeds `limit` bytes."""
    state = state_bytes(setup)
    if state > limit:
        fsdp = 2 ** math.ceil(math.log2(state / limit))
        raise UserError(
            f"The training state of {setup.program.model.variant} takes {state / GIB:.1f} GiB per "
            f"device and there are {limit / GIB:.1f} GiB; split it over {fsdp} devices with "
            f"--config.mesh.fsdp={fsdp}."
        )


def check_fits(setup: Setup, needed: int, limit: int) -> None:
    """Raises UserError, with a setting that would fit, if `needed` exceeds `limit` bytes."""
    if needed <= limit:
        return
    per_device = rows_per_device(setup)
    # Activations shrink with the micro batch; the rest does not.
    activations = (needed - fixed_bytes(setup, setup.config.accumulation_steps)) * (
        setup.config.accumulation_steps
    )
    fits = [
        n
        for n in range(setup.config.accumulation_steps + 1, per_device + 1)
        if per_device % n == 0 and fixed_bytes(setup, n) + activations / n <= limit
    ]
    if fits:
        advice = (
            f"set --config.accumulation_steps={fits[0]}, which keeps the global batch, or "
            "--config.memory=auto"
        )
    elif remat.name_of(setup.program.model.remat) != "full":
        advice = "set --config.memory=auto, or use more devices"
    else:
        advice = "use more devices, or --config.mesh.fsdp"
    raise UserError(
        f"A step of {setup.program.model.variant} with {per_device} images per device needs "
        f"{needed / GIB:.1f} GiB and there are {limit / GIB:.1f} GiB; {advice}."
    )


def rows_per_device(setup: Setup) -> int:
    """Images of the global batch that one device works on."""
    return setup.config.batch_size // sharding.batch_divisor(setup.program.mesh)


def fixed_bytes(setup: Setup, accumulation_steps: int) -> int:
    """Bytes on one device that no micro batch makes smaller: state and gradients."""
    gradients = 1 if accumulation_steps == 1 else 2  # the sum, and what is added to it
    return state_bytes(setup) + gradients * param_bytes(setup)


def batch_bytes(setup: Setup) -> int:
    """Bytes that a batch takes on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in abstract_batch(setup).values()
    )


def param_bytes(setup: Setup) -> int:
    """Bytes that the parameters (and so one gradient) take on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in setup.program.abstract_state.params.values()
    )
