"""The small setting of a study: the paper's trials with other data, a small model and few steps.

A study of the paper reads its argument with `setting`: without one it has the paper's size, with
DATASET[,EPOCHS] it is small, a few minutes per trial on two CPU cores. Both load the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vit_jax import config as configuration
from vit_jax.config import ConfigDict
from vit_jax.studies.record import TRIAL

#: Models of at most a million parameters and 64 tokens of 32 pixels, instead of the paper's.
B: dict[str, object] = dict(hidden_size=64, num_layers=4, mlp_dim=128, num_heads=4)
L: dict[str, object] = dict(hidden_size=96, num_layers=6, mlp_dim=192, num_heads=6)
MODELS: dict[str, dict[str, object]] = {
    "b/32": dict(hidden_size=32, num_layers=4, mlp_dim=64, num_heads=2, patch_size=8),
    "B/32": B | dict(patch_size=8),
    "B/16": B | dict(patch_size=4),
    "L/32": L | dict(patch_size=8),
    "L/16": L | dict(patch_size=4),
    "H/14": dict(hidden_size=128, num_layers=6, mlp_dim=256, num_heads=8, patch_size=4),
    "Axial-B/32": B | dict(patch_size=8),
    "Axial-B/16": B | dict(patch_size=4),
    "R50x1": dict(depths=(1, 1, 1), width_factor=0.5),
    "R152x2": dict(depths=(1, 2, 2), width_factor=0.5),
    "Axial-R50x1": dict(depths=(1, 1, 1), width_factor=0.5),
}
#: Patches that do not divide 384 pixels: a VALID convolution reads 378 of them.
WHOLE = {"H/14": 14}
#: Image sizes, instead of the paper's.
PIXELS = {224: 32, 378: 32, 384: 32, 512: 32, 518: 32}
SEEDS = 3
BATCH_SIZE = 128


class Setting(NamedTuple):
    """The choice by the argument of a study. dataset: of the small setting; "": the paper's."""

    dataset: str
    epochs: float
    seeds: int

    def load(
        self, source: str, seed: int = 0, *, share: float = 1.0, **model: object
    ) -> ConfigDict:
        """The trial of a configuration file, in this setting.

        Args:
          share: fraction of the epochs of the small setting.
          model: settings of the small model that differ from MODELS.
        """
        c = configuration.load(source)
        c.seed = seed
        return self.shrink(c, share, model) if self.dataset else c

    def shrink(self, c: ConfigDict, share: float, model: dict[str, object]) -> ConfigDict:
        """Sets data, model and steps of the small setting; everything else is unchanged."""
        c.name = f"{c.name}, small on {self.dataset}"
        c.data.dataset, c.data.train_split, c.data.eval_split = self.dataset, "", ""
        if c.evaluators.fewshot.data:
            c.evaluators.fewshot.data = self.dataset
        c.augment = configuration.ConfigDict(
            {"name": "pad_crop", "pad": 4, "flip": self.dataset != "digits"}
        )
        c.eval_preprocess = configuration.ConfigDict({"name": "resize"})

        pixels = PIXELS[c.model.image_size]
        for key, value in ({"image_size": pixels} | MODELS[c.model.variant] | model).items():
            c.model[key] = value
        if c.model.head_bias:
            c.model.head_bias = -2.3  # log(1/10), as -6.9 is log(1/1000) for ImageNet

        c.batch_size = BATCH_SIZE
        c.total_steps, c.total_epochs = None, max(self.epochs * share, 0.01)
        c.schedule.warmup_steps, c.schedule.warmup_percent = None, 10.0
        c.eval_every_steps, c.eval_every_epochs = None, max(self.epochs * share / 5, 0.01)
        c.log_every_steps, c.checkpoint_every_steps = 50, 200
        return c

    def fine_tune(
        self, parent: str, begun: ConfigDict, dataset: str, seed: int = 0, *, size: int = 384,
        **model: object,
    ) -> ConfigDict:  # fmt: skip
        """The trial of configs/finetune.py that starts from the trial `parent` in `begun`.

        Args:
          model: as in `load`.
        """
        size -= size % WHOLE.get(begun.model.variant, 1)
        c = configuration.load(f"configs/finetune.py:{begun.model.variant},{dataset},{size}")
        c.seed, c.init_from = seed, TRIAL + parent
        for key, value in begun.model.items():
            if key not in ("image_size", "representation_size", "head_bias", "dropout_rate"):
                c.model[key] = value
        shape = {key: begun.model.get(key) for key in MODELS.get(c.model.variant, ())}
        return self.shrink(c, 0.5, shape | model) if self.dataset else c

    def targets(self, names: Iterable[str]) -> tuple[str, ...]:
        """The data sets to transfer to; the small setting has only its own."""
        return (self.dataset,) if self.dataset else tuple(names)

    def watch(self, c: ConfigDict, **every: object) -> ConfigDict:
        """Adds ImageNet's 5-shot accuracy (section 4.1), at the end or at an interval."""
        c.evaluators.fewshot.data = self.dataset or "tfds:imagenet2012"
        c.evaluators.fewshot.shots = (5,)
        for key, value in every.items():
            c.evaluators.fewshot[key] = value
        return c


def setting(argument: str, *, seeds: int = SEEDS) -> Setting:
    """The setting of [DATASET[,EPOCHS]]: cifar10, a data spec, or "" for the paper's.

    Args:
      seeds: per trial in the small setting; the paper's has one.
    """
    if not argument:
        return Setting("", 0.0, 1)
    a = configuration.arguments(argument, dataset="digits", epochs=5.0)
    dataset = str(a["dataset"])
    own = ":" in dataset or dataset == "digits"
    return Setting(dataset if own else f"tfds:{dataset}", float(a["epochs"]), seeds)
