"""The training and the evaluation step as the text that is compiled: what the holding test hashes.

`python tests/lowered_steps.py CASE ...` prints the canonical StableHLO text of these cases, which
must be of one number of devices; with no case it stores the hashes of all of them, which is only
right in a commit that says which arithmetic changed and why.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
STORED = Path(__file__).parent / "golden" / "lowered_steps.json"
#: Their versions change the text; they are stored beside the hashes.
MADE_WITH = ("jax", "flax", "optax")


class Case(NamedTuple):
    """Settings by their dotted keys, CPU devices of the process, the platform to lower for."""

    settings: dict[str, Any]
    devices: int = 1
    platform: str = "cpu"


DEBUG = {"model.variant": "debug"}
HALF = {"compute_dtype": "bfloat16"}
#: Of pre-training, with all that is optional.
RECIPE = DEBUG | {
    "model.representation_size": "hidden",
    "model.classifier": "map",
    "model.position_embedding": "2d",
    "model.dropout_rate": 0.1,
    "model.stochastic_depth_rate": 0.1,
    "loss.name": "sigmoid_cross_entropy",
    "loss.label_smoothing": 1e-4,
    "optimizer": {"name": "adam", "weight_decay": 0.1},
    "schedule.decay": "linear",
    "schedule.warmup_steps": 2,
    "gradient_clip_norm": 1.0,
    "polyak_decay": 0.9999,
    "mixup_alpha": 0.2,
}
CASES = {
    "debug_float32": Case(DEBUG),
    "debug_bfloat16_one_device": Case(DEBUG | HALF),
    "debug_bfloat16_two_devices": Case(DEBUG | HALF, devices=2),
    "recipe": Case(RECIPE),
    "recipe_threefry": Case(RECIPE | {"dropout_bits": "threefry"}),
    "scan_relative": Case(DEBUG | {"model.scan": True, "model.position_embedding": "relative"}),
    "hybrid": Case(
        {"model.variant": "R26+S/32", "model.num_layers": 1, "model.image_size": 64} | HALF,
        devices=2,
    ),
    "axial": Case(
        {"model.variant": "Axial-B/16", "model.num_layers": 1, "model.image_size": 32} | HALF,
        devices=2,
    ),
    "resnet": Case({"model.variant": "R50x1", "model.image_size": 32}),
    "axial_resnet": Case(
        {"model.variant": "Axial-R50x1", "model.image_size": 64} | HALF, devices=2
    ),
    "remat": Case(DEBUG | HALF | {"model.remat": "products"}, devices=2),
    "accumulation": Case(DEBUG | HALF | {"accumulation_steps": 2}, devices=2),
    "sharded": Case(DEBUG | HALF | {"mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 2}, devices=4),
    "tpu": Case(DEBUG | HALF, devices=2, platform="tpu"),
    "cuda": Case(DEBUG | HALF | {"model.attention": "xla"}, devices=2, platform="cuda"),
}


def canonical(text: str) -> str:
    """`text` without source locations, its symbols numbered in the order of their appearance."""
    text = re.sub(r"\\22body\\22: \\22([\w+/=]+)\\22", lambda m: kernel_text(m[1]), text)
    text = re.sub(r"^#loc.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r" loc\((?:[^()]|\([^()]*\))*\)", "", text)
    numbers: dict[str, str] = {}
    return re.sub(r"@[\w$.]+", lambda m: numbers.setdefault(m[0], f"@{len(numbers)}"), text)


def kernel_text(body: str) -> str:
    """The program of a kernel for TPUs, which stands in the step as bytes with source locations."""
    from jax._src.interpreters import mlir
    from jax._src.lib import tpu
    from jax._src.lib.mlir import ir

    context = mlir.make_ir_context()
    tpu.register_dialect(context)
    context.allow_unregistered_dialects = True
    with context:
        return str(ir.Module.parse(base64.b64decode(body)))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def configure(settings: dict[str, Any]) -> Any:
    """The default configuration with some settings changed."""
    from vit_jax import config

    changed = config.default()
    changed.model.num_classes = 10
    changed.batch_size, changed.total_steps = 8, 10
    for key, value in settings.items():
        *sections, name = key.split(".")
        target = changed
        for section in sections:
            target = target[section]
        target[name] = value
    return changed


def lower(case: Case) -> dict[str, str]:
    """{"train": ..., "eval": ...}: the canonical text of both steps, in this process's JAX."""
    import jax
    import numpy as np

    from vit_jax.evaluation import run
    from vit_jax.numerics import Machine
    from vit_jax.training.setup import abstract_batch, jit_train_step, set_up

    assert jax.device_count() == case.devices
    machine = Machine("tpu", case.devices) if case.platform == "tpu" else None  # None: this one
    setup = set_up(configure(case.settings), machine=machine)
    batch = abstract_batch(setup)
    b = batch["label"].sharding
    masked = batch | {
        "mask": jax.ShapeDtypeStruct((8,), np.bool_, sharding=b),
        "index": jax.ShapeDtypeStruct((8,), np.int32, sharding=b),
    }
    steps: dict[str, tuple[Callable, tuple]] = {
        "train": (jit_train_step(setup), (setup.program.abstract_state, batch)),
        "eval": (
            run.jit_eval_step(setup.program.objective.measure, setup.program.mesh),
            (setup.program.abstract_state.params, masked),
        ),
    }
    return {
        name: canonical(step.trace(*arguments).lower(lowering_platforms=(case.platform,)).as_text())
        for name, (step, arguments) in steps.items()
    }


@functools.cache
def in_a_process(devices: int) -> dict[str, dict[str, str]]:
    """The texts of all cases of so many devices, from a process that has them."""
    names = [name for name, case in CASES.items() if case.devices == devices]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(
        [sys.executable, __file__, *names],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def texts(name: str) -> dict[str, str]:
    return in_a_process(CASES[name].devices)[name]


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in MADE_WITH}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.path.insert(0, str(ROOT))
        print(json.dumps({name: lower(CASES[name]) for name in sys.argv[1:]}))
    else:
        hashes = {
            name: {step: digest(text) for step, text in texts(name).items()} for name in CASES
        }
        STORED.write_text(json.dumps({"made_with": versions(), "hashes": hashes}, indent=1) + "\n")
        print(f"{len(hashes)} cases in {STORED}")
