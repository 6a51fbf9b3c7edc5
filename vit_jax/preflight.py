"""What a run is about to do, shown and checked before its first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import sharding
from vit_jax.config import human
from vit_jax.errors import UserError
from vit_jax.studies import flops

if TYPE_CHECKING:
    from vit_jax.train import Setup

GIB = 2**30


def show_plan(setup: Setup) -> None:
    """Prints devices, batch, model, data and schedule, aligned in two columns."""
    if jax.process_index() == 0:
        rows = plan(setup)
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"  {name:<{width}}  {text}" for name, text in rows), flush=True)


def plan(setup: Setup) -> list[tuple[str, str]]:
    """The pre-flight table as (name, text) rows."""
    config, model, mesh = setup.config, setup.model, setup.mesh
    devices = mesh.devices.flatten()
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    per_device = config.batch_size // sharding.batch_divisor(mesh)
    micro = per_device // config.accumulation_steps
    train_flops = flops.train_flops_per_image(model) * config.batch_size
    size = "x".join(map(str, model.image_size))
    grid = "x".join(map(str, model.grid))
    params = sum(math.prod(leaf.shape) for leaf in setup.abstract_state.params.values())
    rows = [
        (
            "devices",
            f"{len(devices)} {devices[0].device_kind} in {jax.process_count()} process(es)"
            + (f", mesh {axes}" if axes else ""),
        ),
        ("model", f"{model.variant}, {human(params)} parameters ({params:,}), {model.dtype}"),
        ("images", f"{size}, {grid} patches, {model.num_classes} classes"),
        ("training data", f"{len(setup.train_source):,} examples, {setup.train_source.spec}"),
        ("evaluation data", f"{len(setup.eval_source):,} examples, {setup.eval_source.spec}"),
        (
            "batch",
            f"{config.batch_size} global, {per_device} per device, {micro} per forward pass"
            f" ({config.accumulation_steps} accumulated)",
        ),
        (
            "schedule",
            f"{setup.total_steps:,} steps"
            f" ({setup.total_steps * config.batch_size / len(setup.train_source):.4g} epochs), "
            f"{setup.warmup_steps:,} warm-up, {config.schedule.decay} from "
            f"{config.schedule.learning_rate:g} to {final_rate(setup):.3g}",
        ),
        ("optimiser", optimiser_text(setup)),
        ("compute", f"{human(train_flops)}FLOPs per step"),
        ("state", f"{state_bytes(setup) / GIB:.3g} GiB per device (weights and optimiser)"),
    ]
    return rows + [("note", note) for note in setup.notes]


def final_rate(setup: Setup) -> float:
    """The learning rate that the schedule ends at."""
    return float(setup.schedule(setup.total_steps))


def optimiser_text(setup: Setup) -> str:
    config = setup.config
    options = dict(config.optimizer)
    text = f"{options.pop('name')} " + " ".join(f"{key}={value}" for key, value in options.items())
    clip = config.gradient_clip_norm
    polyak = config.polyak_decay
    return (
        f"{text.strip()}, {config.loss.name}"
        + (f", clip at global norm {clip:g}" if clip else "")
        + (f", Polyak average {polyak:g}" if polyak else "")
    )


def state_bytes(setup: Setup) -> int:
    """Bytes that the training state takes on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(setup.abstract_state)
    )


def device_memory() -> int:
    """Bytes that one device can hold: its own limit, or its share of the free host memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return psutil.virtual_memory().available // jax.local_device_count()


def abstract_batch(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """A training batch as shapes, dtypes and shardings."""
    where = sharding.batch_sharding(setup.mesh)
    b, (h, w), c = setup.config.batch_size, setup.model.image_size, setup.model.channels
    return {
        "image": jax.ShapeDtypeStruct((b, h, w, c), np.uint8, sharding=where),
        "label": jax.ShapeDtypeStruct((b,), np.int32, sharding=where),
    }


def jit_train_step(setup: Setup) -> Any:
    """The training step, jitted: the old state's memory is given to the new one."""
    replicated = NamedSharding(setup.mesh, PartitionSpec())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract_state)
    return jax.jit(setup.train_step, donate_argnums=0, out_shardings=(shardings, replicated))


def compile_train_step(setup: Setup) -> Callable[..., Any]:
    """Compiles the training step ahead of time and checks that it fits the device.

    Raises:
      UserError: it does not fit; says what it needs, what there is, and the setting that would fit.
    """
    limit, state = device_memory(), state_bytes(setup)
    if state > limit:
        fsdp = 2 ** math.ceil(math.log2(state / limit))
        raise UserError(
            f"The training state of {setup.model.variant} takes {state / GIB:.1f} GiB per device "
            f"and there are {limit / GIB:.1f} GiB; split it over {fsdp} devices with "
            f"--config.mesh.fsdp={fsdp}."
        )
    lowered = jit_train_step(setup).lower(setup.abstract_state, abstract_batch(setup))
    compiled = lowered.compile()
    analysis = compiled.memory_analysis()
    if analysis is not None:
        needed = (
            analysis.argument_size_in_bytes
            + analysis.output_size_in_bytes
            - analysis.alias_size_in_bytes
            + analysis.temp_size_in_bytes
        )
        check_fits(setup, needed, state, limit)
        if jax.process_index() == 0:
            print(
                f"  memory  {needed / GIB:.3g} GiB per device of {limit / GIB:.3g} GiB", flush=True
            )
    return compiled


def check_fits(setup: Setup, needed: int, state: int, limit: int) -> None:
    """Raises UserError, with the accumulation that would fit, if `needed` exceeds `limit` bytes."""
    if needed <= limit:
        return
    config = setup.config
    per_device = config.batch_size // sharding.batch_divisor(setup.mesh)
    # Activations shrink with the micro batch; the state and one gradient do not.
    fixed = min(state + param_bytes(setup), limit - 1)
    activations = (needed - fixed) * config.accumulation_steps
    wanted = math.ceil(activations / (limit - fixed))
    fits = [n for n in range(wanted, per_device + 1) if per_device % n == 0]
    if fits:
        advice = f"set --config.accumulation_steps={fits[0]}, which keeps the global batch"
    elif not setup.model.remat:
        advice = "set --config.model.remat=True, or use more devices"
    else:
        advice = "use more devices, or --config.mesh.fsdp"
    raise UserError(
        f"A step of {setup.model.variant} with {per_device} images per device needs "
        f"{needed / GIB:.1f} GiB and there are {limit / GIB:.1f} GiB; {advice}."
    )


def param_bytes(setup: Setup) -> int:
    """Bytes that the parameters (and so one gradient) take on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in setup.abstract_state.params.values()
    )
