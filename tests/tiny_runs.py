"""The smallest runs of the command line, and three classes of images that are told by colour."""

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
                image = np.full((9, 8, 3), 20 * i, np.uint8)
                image[..., label] = 250
                PIL.Image.fromarray(image).save(file)
    return directory
