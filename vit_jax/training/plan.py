"""The plan of a run, printed before its first step."""

from __future__ import annotations

import math

import jax

from vit_jax import numerics
from vit_jax.config import human
from vit_jax.errors import counted, printable
from vit_jax.models import cost, variants
from vit_jax.training.memory import GIB, rows_per_device, state_bytes
from vit_jax.training.setup import Setup
from vit_jax.training.spikes import rule_of


def show_plan(setup: Setup) -> None:
    """Prints devices, batch, model, data and schedule, aligned in two columns."""
    if jax.process_index() == 0:
        rows = plan(setup)
        width = max(len(name) for name, _ in rows)
        lines = (f"  {name:<{width}}  {printable(text)}" for name, text in rows)
        print("\n".join(lines), flush=True)


def plan(setup: Setup) -> list[tuple[str, str]]:
    """The plan as (name, text) rows."""
    config, model, mesh = setup.config, setup.program.model, setup.program.mesh
    devices = mesh.devices.flatten()
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    per_device = rows_per_device(setup)
    flops = human(cost.train_flops_per_image(model) * config.batch_size)  # "10.7G"
    size = "x".join(map(str, model.image_size))
    grid = "x".join(map(str, model.grid))
    params = sum(math.prod(leaf.shape) for leaf in setup.program.abstract_state.params.values())
    rows = [
        (
            "devices",
            f"{len(devices)} {devices[0].device_kind} in {counted(jax.process_count(), 'process')}"
            + (f", mesh {axes}" if axes else ""),
        ),
        (
            "model",
            f"{variants.named(model)}, {human(params)} parameters ({params:,}), {model.dtype}",
        ),
        ("images", f"{size}, {grid} patches, {model.num_classes} classes"),
        ("training data", f"{len(setup.data.train):,} examples, {setup.data.train.spec}"),
        (
            "evaluation data",
            f"{len(setup.data.evaluation):,} examples, {setup.data.evaluation.spec}",
        ),
        (
            "batch",
            f"{config.batch_size} global, {per_device} per device" + micro_text(setup),
        ),
        (
            "schedule",
            f"{setup.plan.total_steps:,} steps"
            f" ({setup.plan.total_steps * config.batch_size / len(setup.data.train):.4g} epochs), "
            f"{setup.plan.warmup_steps:,} warm-up, {config.schedule.decay} from "
            f"{config.schedule.learning_rate:g} {rates_text(setup)}",
        ),
        ("optimizer", optimizer_text(setup)),
        *([("keeps", keep_text(setup))] if setup.plan.keep else []),
        *([("rolls back", str(rule))] if (rule := rule_of(setup.config)) else []),
        (
            "compute",
            f"{flops[:-1]} {flops[-1]}FLOPs per step, {numerics.describe(setup.program.numerics)}",
        ),
        ("state", f"{state_bytes(setup) / GIB:.3g} GiB per device (weights and optimizer)"),
    ]
    return rows + [("note", note) for note in setup.notes]


def micro_text(setup: Setup) -> str:
    """The micro-batches of a batch, if known before the step is compiled."""
    steps = setup.config.accumulation_steps
    if setup.config.memory == "auto":
        return ", in micro-batches that fit"
    return f", {rows_per_device(setup) // steps} per forward pass ({steps} accumulated)"


def rates_text(setup: Setup) -> str:
    """The course of the learning rate: its end, or the levels of a staircase."""
    steps = [setup.plan.total_steps]
    if setup.config.schedule.decay == "staircase":
        percents = setup.config.schedule.boundaries_percent
        steps = [round(setup.plan.total_steps * percent / 100) + 1 for percent in percents]
        rates = (f"{float(setup.plan.schedule(step)):.3g} at step {step:,}" for step in steps)
        return f"to {', '.join(rates)}"
    return f"to {float(setup.plan.schedule(setup.plan.total_steps)):.3g}"


def keep_text(setup: Setup) -> str:
    """What is exported instead of the last step, and early stopping."""
    rule = setup.plan.keep
    patience = rule.patience if rule else 0
    ends = f"; stops after {patience} evaluations without improvement" if patience else ""
    return f"the step with {rule}{ends}"


def optimizer_text(setup: Setup) -> str:
    config = setup.config
    options = dict(config.optimizer)
    text = f"{options.pop('name')} " + " ".join(f"{key}={value}" for key, value in options.items())
    clip = config.gradient_clip_norm
    polyak, objective = config.polyak_decay, config.objective.name
    return (
        f"{text.strip()}, {config.loss.name if objective == 'classification' else objective}"
        + (f", class weights {weights}" if (weights := config.class_weights) != "none" else "")
        + (f", clip at global norm {clip:g}" if clip else "")
        + (f", Polyak average {polyak:g}" if polyak else "")
        + "".join(
            f", {key} {value:g}"
            for key, off in (("mixup_alpha", 0), ("cutmix_alpha", 0), ("layer_decay", 1))
            if (value := config[key]) != off
        )
        + (f", {config.freeze_blocks} blocks frozen" if config.freeze_blocks else "")
    )
