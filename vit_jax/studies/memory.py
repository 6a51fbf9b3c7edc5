"""The memory of training runs, estimated before the first step and measured: docs/performance.md.

  python -m vit_jax.studies.memory

On a CPU, on Linux. Each run is a process of its own that trains by the trainer's own functions,
once to compile and warm up and once to be measured: the peak of its resident memory, less what it
had before there was a state. Elsewhere `metrics.jsonl` has both numbers (`train/peak_memory_gib`).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from typing import Any

from vit_jax import config as configuration

STEPS = 3
#: Adam with clipping; what differs from it. `image_size` and others are those of the variant.
RUNS: tuple[dict[str, str], ...] = tuple(
    {"model.variant": variant, "batch_size": batch, "compute_dtype": dtype, **more}
    for variant, batch, dtype, more in (
        ("debug", "1024", "float32", {}),
        ("Ti/16", "8", "float32", {}),
        ("Ti/16", "32", "float32", {}),
        ("Ti/16", "32", "float32", {"accumulation_steps": "4"}),
        ("Ti/16", "32", "float32", {"model.remat": "products"}),
        ("Ti/16", "32", "float32", {"model.remat": "full"}),
        ("S/16", "8", "bfloat16", {}),
        ("S/16", "8", "bfloat16", {"optimizer.name": "sgd", "polyak_decay": "0.999"}),
        ("B/16", "8", "float32", {}),
        ("B/16", "8", "bfloat16", {}),
        ("B/16", "8", "bfloat16", {"accumulation_steps": "4"}),
        ("B/16", "8", "bfloat16", {"model.remat": "products"}),
        ("B/16", "8", "bfloat16", {"model.remat": "full"}),
        ("B/16", "32", "bfloat16", {"accumulation_steps": "4"}),
        ("B/16", "32", "bfloat16", {"model.remat": "products"}),
        ("B/16", "32", "float32", {"model.remat": "full"}),
    )
)


def run_config(overrides: dict[str, str]) -> configuration.ConfigDict:
    """A run on the digits, enlarged to the model's images."""
    config = configuration.default()
    config.total_steps = STEPS
    config.optimizer.name = "adam"
    config.gradient_clip_norm = 1.0
    for key, text in overrides.items():
        configuration.override(config, key, text)
    return config


def measure(overrides: dict[str, str]) -> dict[str, int]:
    """{"estimate", "peak"} in bytes of a run, in this process."""
    from vit_jax import preflight, train

    setup = train.prepare(run_config(overrides))
    compiled = preflight.compile_train_step(setup)

    def steps(count: int) -> None:
        state = setup.initialise()
        batches = train.training_batches(setup, 0, train.Clock(setup.config.batch_size, 0))
        for _ in range(count):
            state, metrics = compiled(state, next(batches))
            metrics["train/loss"].block_until_ready()
        batches.close()

    steps(1)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    steps(STEPS)
    return {
        "estimate": preflight.needed_bytes(setup, compiled) or 0,
        "peak": status("VmHWM") - before,
    }


def status(key: str) -> int:
    """A row of /proc/self/status, in bytes."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(key))


def measure_apart(overrides: dict[str, str]) -> dict[str, Any]:
    """`measure` in a process whose malloc gives back what is freed at once."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-m", "vit_jax.studies.memory", json.dumps(overrides)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout.splitlines()[-1])


def table() -> None:
    print("| run | estimate, MiB | measured, MiB | estimate / measured |\n|-|-|-|-|")
    for overrides in RUNS:
        found = measure_apart(overrides)
        said = ", ".join(
            text if key == "model.variant" else f"{key.split('.')[-1]} {text}"
            for key, text in overrides.items()
        )
        share = found["estimate"] / found["peak"]
        mib = {key: value / 2**20 for key, value in found.items()}
        print(f"| {said} | {mib['estimate']:,.0f} | {mib['peak']:,.0f} | {share:.3f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    else:
        table()
