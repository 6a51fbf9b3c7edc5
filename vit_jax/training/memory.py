"""Memory of a run: estimated before its first step, and checked against the device."""

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
#: Prefetched batches on the devices: the next one, and two more (`training_batches` in run.py).
BATCHES_AHEAD = 3
MIB = 2**20
#: Measured overhead of a CPU process: before its step is compiled, and after.
UNCOMPILED, COMPILED = 400 * MIB, 150 * MIB
#: Measured copies of the state on a CPU while a checkpoint is written: 1.8 during training, 1 at
#: the end.
COPIES = 2


def state_bytes(setup: Setup) -> int:
    """Bytes of the training state on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(setup.program.abstract_state)
    )


def device_memory(config: ConfigDict) -> int:
    """Bytes that a run may use on one device, the same on every process.

    The device's limit, or its share of free host memory less the overhead of the process;
    `config.memory_limit_gib` if that is less.
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
    """The prediction of `measured_memory` for a run that begins now; None if unknown.

    On a CPU it is for the whole process, on accelerators for one device.
    """
    needed = needed_bytes(setup, compiled)
    if needed is None or jax.default_backend() != "cpu":
        return needed
    now = host_memory.resident_bytes()
    return None if now is None else now + jax.local_device_count() * needed + COMPILED


def measured_memory(expected: int | None) -> dict[str, float]:
    """The peak so far and the predicted one, as metrics in GiB; {} if unknown."""
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
    """Peak memory of a run on one device; None if unknown.

    The state (updated in place), the temporaries of the step, and batches in use or prefetched. A
    CPU is also the host, which prefetches more batches and copies the state for checkpoints.

    Args:
      kept: worst case when malloc retains freed memory: temporaries may exist twice because of
        fragmentation.
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


def compile_checked(setup: Setup, limit: int) -> tuple[jax.stages.Compiled, bool]:
    """Compiles the step of a setup as configured, checks that it fits, and prints its memory.

    Returns:
      The step, and whether a CPU can retain freed pages.

    Raises:
      UserError: it does not fit; names the needed and available memory, and a setting that fits.
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
    """Prints a line below the plan, in its columns."""
    if jax.process_index() == 0:
        print(f"  {'memory':<15}  {text}", flush=True)


def gib(number: float) -> str:
    """Bytes as "1.23 GiB"."""
    return f"{number / GIB:.3g} GiB"


def check_state_fits(setup: Setup, limit: int) -> None:
    """Raises UserError, with the mesh that would fit, if the state alone exceeds `limit` bytes."""
    state = state_bytes(setup)
    if state > limit:
        advice = "end other programs that use memory"
        if limit:
            fsdp = 2 ** math.ceil(math.log2(state / limit))
            advice = f"split it over {fsdp} devices with --config.mesh.fsdp={fsdp}"
        raise UserError(
            f"The training state of {setup.program.model.variant} takes {state / GIB:.1f} GiB per "
            f"device and there are {limit / GIB:.1f} GiB; {advice}."
        )


def check_fits(setup: Setup, needed: int, limit: int) -> None:
    """Raises UserError, with a setting that would fit, if `needed` exceeds `limit` bytes."""
    if needed <= limit:
        return
    per_device = rows_per_device(setup)
    # Activations shrink with the micro-batch; the rest does not.
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
    """Images of the global batch per device."""
    return setup.config.batch_size // sharding.batch_divisor(setup.program.mesh)


def fixed_bytes(setup: Setup, accumulation_steps: int) -> int:
    """Bytes on one device that do not depend on the micro-batch: state and gradients."""
    gradients = (
        1 if accumulation_steps == 1 else 2
    )  # the accumulated gradient, and that of a micro-batch
    return state_bytes(setup) + gradients * param_bytes(setup)


def batch_bytes(setup: Setup) -> int:
    """Bytes of a batch on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in abstract_batch(setup).values()
    )


def param_bytes(setup: Setup) -> int:
    """Bytes of the parameters (and so of one gradient) on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in setup.program.abstract_state.params.values()
    )
