"""Cost of a step of masked patch prediction relative to classification: docs/performance.md.

  python -m vit_jax.bench.objectives [VARIANT] [BATCH] [ROUNDS]

The objectives take turns in one process, so that other load affects all of them. Both wall-clock
and CPU time are measured; on a shared CPU the latter is what counts.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from vit_jax import config as configuration
from vit_jax.data.source import ArraySource
from vit_jax.training import setup as setups

STEPS = 2
#: The first is the baseline: a linear head of 1,000 classes.
OBJECTIVES: dict[str, dict[str, str]] = {
    "classification": {},
    "mean_colour": {"name": "masked_patches", "target": "mean_colour"},
    "downsized": {"name": "masked_patches", "target": "downsized"},
    "pixels": {"name": "masked_patches", "target": "pixels"},
}


def prepared(variant: str, batch: int, objective: dict[str, str]) -> setups.Setup:
    """A training run (Adam, clipping) on random images, without its loop."""
    c = configuration.default()
    c.model.variant, c.batch_size, c.total_steps = variant, batch, 1000
    c.optimizer = configuration.ConfigDict({"name": "adam", "weight_decay": 0.1})
    c.gradient_clip_norm = 1.0
    c.objective = configuration.ConfigDict({"name": "classification", **objective})
    images = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3)).astype(np.uint8)
    names = tuple(map(str, range(1000)))
    source = ArraySource(images, list(range(batch)), names, spec="random")
    return setups.set_up(c, sources=(source, source))


def timed(setup: setups.Setup, step: Callable, batch: dict) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a step, from a new state."""
    state = jax.block_until_ready(setup.program.initialise())
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return (time.perf_counter() - wall) / STEPS, (time.process_time() - cpu) / STEPS


def table(variant: str, batch: int, rounds: int) -> None:
    """Prints, of each objective, medians over the rounds and of the ratios within a round."""
    found = {name: prepared(variant, batch, options) for name, options in OBJECTIVES.items()}
    steps = {name: setups.compile_train_step(setup) for name, setup in found.items()}
    abstract = setups.abstract_batch(next(iter(found.values())))
    rng = np.random.default_rng(1)
    there = {
        "image": rng.integers(0, 256, abstract["image"].shape).astype(np.uint8),
        "label": rng.integers(0, 1000, abstract["label"].shape).astype(np.int32),
    }
    on_device = {key: jax.device_put(value, abstract[key].sharding) for key, value in there.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for number in range(rounds + 1):
        order = list(found) if number % 2 else list(found)[::-1]
        for name in order:
            one = timed(found[name], steps[name], on_device)
            seconds[name] += [one] if number else []  # the first round warms up
    base = seconds["classification"]
    print(f"{variant}, batch {batch}, {jax.devices()[0].device_kind}, {rounds} rounds")
    print("| objective | FLOPs | wall-clock time, s | CPU time, s | ratio of FLOPs | of CPU time |")
    print("|-|-|-|-|-|-|")
    flops = {name: (step.cost_analysis() or {}).get("flops", 0) for name, step in steps.items()}
    for name, values in seconds.items():
        wall, cpu = (statistics.median(one) for one in zip(*values, strict=True))
        ratios = [own[1] / other[1] for own, other in zip(values, base, strict=True)]
        print(
            f"| {name} | {flops[name]:.4g} | {wall:.2f} | {cpu:.2f} "
            f"| {flops[name] / flops['classification']:.4f} | {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} – {max(ratios):.3f}) |"
        )


if __name__ == "__main__":
    options = dict(zip(("variant", "batch", "rounds"), sys.argv[1:], strict=False))
    table(
        options.get("variant", "B/16"),
        int(options.get("batch", 8)),
        int(options.get("rounds", 7)),
    )
