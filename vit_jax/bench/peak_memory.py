"""Memory of training runs, estimated before the first step and measured: docs/performance.md.

  python -m vit_jax.bench.peak_memory

Each run is `vit-jax train`, whose `metrics.jsonl` has both numbers, on digits enlarged to the
model's image size. On a CPU they are for the whole process (on Linux), on accelerators per device.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from vit_jax.runtime import logbook

STEPS = 8
#: Too little to retain freed pages.
SHORT = "memory_limit_gib"
#: Settings that differ from Adam with clipping; `image_size` and others are the variant's.
RUNS: tuple[dict[str, str], ...] = tuple(
    {"model.variant": variant, "batch_size": batch, "compute_dtype": dtype, **more}
    for variant, batch, dtype, more in (
        ("debug", "1024", "float32", {}),
        ("Ti/16", "8", "float32", {}),
        ("Ti/16", "32", "float32", {}),
        ("Ti/16", "32", "float32", {SHORT: "2"}),
        ("Ti/16", "32", "float32", {"accumulation_steps": "4"}),
        ("Ti/16", "32", "float32", {"model.remat": "full"}),
        ("Ti/16", "32", "float32", {"eval_every_steps": "3", SHORT: "2"}),
        ("S/16", "8", "bfloat16", {}),
        ("S/16", "8", "bfloat16", {"optimizer.name": "sgd", "polyak_decay": "0.999"}),
        ("B/16", "8", "float32", {}),
        ("B/16", "8", "bfloat16", {}),
        ("B/16", "8", "bfloat16", {SHORT: "4"}),
        ("B/16", "8", "bfloat16", {"checkpoint_every_steps": "3"}),
        ("B/16", "8", "bfloat16", {"checkpoint_every_steps": "3", SHORT: "5"}),
        ("B/16", "8", "bfloat16", {"model.remat": "products", SHORT: "3"}),
        ("B/16", "8", "bfloat16", {"model.remat": "full", SHORT: "3"}),
        ("B/16", "32", "bfloat16", {"accumulation_steps": "4", SHORT: "4"}),
        ("B/16", "8", "bfloat16", {"memory": "auto", SHORT: "3"}),
    )
)


def measure(overrides: dict[str, str]) -> dict[str, float]:
    """{"estimate", "peak"} of a run, in GiB.

    Raises:
      RuntimeError: the run failed; says how.
    """
    settings = {
        "total_steps": STEPS,
        "optimizer.name": "adam",
        "gradient_clip_norm": 1,
        **overrides,
    }
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.py"
        config.write_text("from vit_jax.config import default as get_config\n")
        command = [sys.executable, "-m", "vit_jax", "train", f"--workdir={directory}/run"]
        command.append(f"--config={config}")
        command += [f"--config.{key}={value}" for key, value in settings.items()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        record = logbook.read_metrics(Path(directory) / "run" / logbook.FILE_NAME)[-1]
    keys = {"estimate": "train/estimated_memory_gib", "peak": "train/peak_memory_gib"}
    return {name: record[key] for name, key in keys.items()}


def table() -> None:
    print("| run | estimate, GiB | peak, GiB | estimate / peak |\n|-|-|-|-|")
    for overrides in RUNS:
        estimate, peak = measure(overrides).values()
        said = ", ".join(
            text if key == "model.variant" else f"{key.split('.')[-1]} {text}"
            for key, text in overrides.items()
        )
        print(f"| {said} | {estimate:.2f} | {peak:.2f} | {estimate / peak:.2f} |", flush=True)


if __name__ == "__main__":
    table()
