"""The smallest runs of the command line, and three classes of images that are told by colour."""

import os
import socket
import subprocess
import sys

import numpy as np
import PIL.Image

from vit_jax.cli import main

SETTINGS = [
    "--config=configs/quickstart.py", "--config.pretrain=None", "--config.total_epochs=None",
    "--config.total_steps=6", "--config.eval_every_epochs=None", "--config.schedule.warmup_steps=2",
    "--config.log_every_steps=1", "--config.checkpoint_every_steps=2", "--config.batch_size=8",
    "--config.model.hidden_size=16", "--config.model.num_heads=2", "--config.model.mlp_dim=32",
    "--config.model.num_layers=1", "--config.keep_checkpoints=2",
]  # fmt: skip


def train(workdir, *more):
    """A run of six steps; returns the exit code."""
    return main(["train", *SETTINGS, f"--workdir={workdir}", *more])


def contents(directory):
    """The bytes of every file."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def three_classes(directory, count=8):
    """A folder with `count` images of each class in train/ and in test/."""
    for split in ("train", "test"):
        for label in range(3):
            for i in range(count):
                file = directory / split / f"c{label}" / f"{split}{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image = np.full((9, 8, 3), 20 * i % 250, np.uint8)
                image[..., label] = 250
                PIL.Image.fromarray(image).save(file)
    return directory


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def start(command, processes: int, devices: int, own=(), **options) -> list[subprocess.Popen]:
    """The processes of one job on this machine. own: more words for each of them."""
    join = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={processes}"]
    join = join if processes > 1 else []
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), **options,
    }  # fmt: skip
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "vit_jax", *command, *join),
                *([f"--process_id={i}"] if join else []), *(own[i] if own else []),
            ],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip


def finish(job, seconds: float = 400) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of every process."""
    found = []
    for process in job:
        out, err = process.communicate(timeout=seconds)
        found.append((process.returncode, out, err))
    return found
