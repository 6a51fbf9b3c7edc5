"""Every setting of an experiment in one table: default, valid values, and meaning.

It defines `config.default()`, the checks before a run, the list of `vit-jax train --help`,
docs/settings.md (`python -m vit_jax.settings`), and what may change when a run resumes.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vit_jax.errors import UserError, nearest
from vit_jax.kinds import (
    ABOVE_0,
    ABOVE_1,
    BELOW_1,
    BELOW_100,
    BETWEEN_0_AND_1,
    COUNT,
    DEVICES,
    FLAG,
    FROM_0_TO_1,
    NONNEGATIVE,
    PERCENT,
    PIXELS,
    POSITIVE,
    REAL,
    SECTION,
    TEXT,
    UP_TO_1,
    Kind,
    each,
    either,
    rising,
    sides,
    whole,
    word,
)


class Setting(NamedTuple):
    """default: None: decided by the variant or the data. free: it may differ when a run resumes,
    since neither data nor arithmetic depend on it. option: it exists only if the function named in
    its section takes it.
    """

    default: object
    kind: Kind
    meaning: str
    free: bool = False
    option: bool = False


def option(kind: Kind, meaning: str) -> Setting:
    return Setting(None, kind, meaning, option=True)


#: In the order of the documentation.
SETTINGS: dict[str, Setting] = {
    "name": Setting("", TEXT, "Name in reports.", free=True),
    "seed": Setting(0, COUNT, "Seed of the weights, the order of the data, crops and dropout."),
    # The model: fields of the variant's configuration; None: the variant's value.
    "model.variant": Setting(
        "B/16",
        TEXT,
        "A row of Table 1 or another name of `vit_jax.variants()`; checkpoint: that of init_from.",
    ),
    "model.image_size": Setting(
        None, PIXELS, "Pixels; 224 in pre-training, 384 and more in fine-tuning (section 3.2)."
    ),
    "model.num_classes": Setting(None, POSITIVE, "Outputs; by default the classes of the data."),
    "model.channels": Setting(None, whole(1, 512), "Channels; 3: RGB, 1: grey, others as stored."),
    "model.patch_size": Setting(None, PIXELS, "Pixels (P of section 3.1); features for a hybrid."),
    "model.hidden_size": Setting(None, POSITIVE, "D of Table 1."),
    "model.num_layers": Setting(None, POSITIVE, "L of Table 1."),
    "model.mlp_dim": Setting(None, POSITIVE, "Hidden units of the MLP of a block (Table 1)."),
    "model.num_heads": Setting(None, POSITIVE, "k of Appendix A; divides hidden_size."),
    "model.depths": Setting(None, each(POSITIVE), "For a ResNet: units per stage."),
    "model.width_factor": Setting(
        None, ABOVE_0, "For a ResNet: multiple of 64 channels at the root."
    ),
    "model.representation_size": Setting(
        None,
        either(POSITIVE, word("hidden")),
        "Width of the pre-training head's hidden layer (section 3.1); hidden: hidden_size.",
    ),
    "model.classifier": Setting(
        None, word("token", "gap", "map"), "Class token, mean, or attention pooling (D.3)."
    ),
    "model.position_embedding": Setting(
        None, word("none", "1d", "2d", "relative"), "Appendix D.4, Table 8."
    ),
    "model.position_embedding_at": Setting(
        None, word("stem", "every", "shared"), "Where it is added (Table 8)."
    ),
    "model.head_bias": Setting(None, REAL, "Initial bias of the head."),
    "model.pool_padding": Setting(
        None,
        word("zeros", "lowest"),
        "Padding of the root pooling of a ResNet; zeros: as released.",
    ),
    "model.layer_norm_epsilon": Setting(None, BETWEEN_0_AND_1, "1e-6; other families differ."),
    "model.dropout_rate": Setting(None, BELOW_1, "After every dense layer but q, k, v (Table 3)."),
    "model.stochastic_depth_rate": Setting(
        None, FROM_0_TO_1, "Rate of the last layer; rises linearly from 0."
    ),
    "model.remat": Setting(
        None,
        either(FLAG, word("none", "products", "full")),
        "Rematerialisation in the backward pass, to save memory; True is full.",
    ),
    "model.scan": Setting(None, FLAG, "Blocks as one loop: compiles faster, runs slightly slower."),
    "model.attention": Setting(
        None, word("auto", "xla", "cudnn", "fused"), "The kernel: cuDNN's on GPUs, ours on TPUs."
    ),
    "init_from": Setting("", TEXT, "Any checkpoint that load_model reads; empty: from scratch."),
    "keep_head": Setting(
        False, FLAG, "Keep the head of init_from; otherwise a zero head replaces it (3.2)."
    ),
    "pretrain": Setting(
        None, SECTION, "A configuration to run first, in WORKDIR/pretrain; then init_from."
    ),
    # Data.
    "data.dataset": Setting(
        "digits", TEXT, "digits, folder:PATH, tfds:NAME, vtab:TASK, hf:ORG/NAME (docs/data.md)."
    ),
    "data.train_split": Setting("", TEXT, "As in TFDS, e.g. train[:98%]; empty: the data's own."),
    "data.eval_split": Setting("", TEXT, "The same for evaluation."),
    "data.data_dir": Setting(None, TEXT, "Directory of TFDS data sets.", free=True),
    "data.orient": Setting(True, FLAG, "Apply EXIF orientation, except in TFDS data sets."),
    "data.sampling": Setting(
        "uniform",
        word("uniform", "balanced"),
        "uniform: every image once an epoch; balanced: every class equally often (docs/data.md).",
    ),
    "data.exclude": Setting("", TEXT, "A file of record names to leave out of training."),
    "data.max_bad_images": Setting(
        0, COUNT, "How many unreadable images may be skipped; more end the run.", free=True
    ),
    "data.max_image_pixels": Setting(
        100_000_000, whole(1), "Larger images, by their header, are refused.", free=True
    ),
    "data.num_threads": Setting(
        4, whole(1, 1024), "Threads that decode images, per process.", free=True
    ),
    "data.num_workers": Setting(
        0, whole(0, 1024), "Processes that decode, instead of threads.", free=True
    ),
    "augment.name": Setting(
        "inception_crop", TEXT, "inception_crop, resize_crop, resize_flip or pad_crop."
    ),
    "augment.area": option(
        rising(UP_TO_1), "Minimum and maximum fraction of the image's area to crop; 0.05 and 1."
    ),
    "augment.aspect": option(
        rising(ABOVE_0), "Minimum and maximum aspect ratio, width over height."
    ),
    "augment.resize": option(PIXELS, "Pixels before the crop; 448 for 384 in BiT."),
    "augment.pad": option(COUNT, "Zero padding in pixels around the image before the crop."),
    "augment.flip": option(FLAG, "Flip half of the images."),
    "augment.policy": option(
        word("none", "trivial"),
        "After the crop; trivial: one of 14 operations, TrivialAugment (2103.10158).",
    ),
    "eval_preprocess.name": Setting(
        "resize", TEXT, "resize, resize_center_crop, square_center_crop, objectnet or pillow."
    ),
    "eval_preprocess.resize": option(sides(ABOVE_0), "Pixels before the crop."),
    "eval_preprocess.interpolation": option(
        word("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"), "Of pillow."
    ),
    "eval_preprocess.fit": option(
        word("squash", "cover", "contain"), "For pillow: treatment of the aspect ratio."
    ),
    "eval_preprocess.whole": option(word("down", "nearest"), "For pillow: rounding of sides."),
    "eval_preprocess.centre": option(
        word("down", "nearest"), "For pillow: rounding of the crop's corner."
    ),
    "eval_preprocess.fill": option(
        each(whole(0, 255), 3), "For pillow: colour around the image, RGB."
    ),
    # Optimisation.
    "batch_size": Setting(
        512,
        POSITIVE,
        "Over all devices and accumulation steps; 4096 in pre-training (Table 3), 512 "
        "in fine-tuning (Table 4).",
    ),
    "eval_batch_size": Setting(
        None, POSITIVE, "By default the micro-batch of training.", free=True
    ),
    "accumulation_steps": Setting(1, POSITIVE, "Micro-batches per batch."),
    "total_steps": Setting(None, POSITIVE, "Length of the run; overrides total_epochs."),
    "total_epochs": Setting(None, ABOVE_0, "The same in epochs of the training data."),
    "objective.name": Setting(
        "classification", TEXT, "What training minimises; your own: FILE.py:FUNCTION."
    ),
    "loss.name": Setting(
        "softmax_cross_entropy", TEXT, "softmax_cross_entropy; pre-training: sigmoid_cross_entropy."
    ),
    "loss.label_smoothing": Setting(0.0, BELOW_1, "0.0001 on ImageNet-21k in pre-training."),
    "class_weights": Setting(
        "none",
        TEXT,
        "In the loss: none; balanced: rare classes more; or a JSON file of {class: weight}.",
    ),
    "optimizer.name": Setting("sgd", TEXT, "sgd in fine-tuning, adam in pre-training (4.1)."),
    "optimizer.momentum": option(BELOW_1, "For sgd; 0.9 (section 4.1)."),
    "optimizer.beta1": option(BELOW_1, "For adam; 0.9 (section 4.1)."),
    "optimizer.beta2": option(BELOW_1, "For adam; 0.999 (section 4.1)."),
    "optimizer.epsilon": option(ABOVE_0, "For adam; 1e-8."),
    "optimizer.weight_decay": option(
        NONNEGATIVE, "Decoupled in adam (0.1 on JFT, 0.03 on ImageNet-21k); L2 in sgd."
    ),
    "optimizer.decay_on": option(word("all", "kernels"), "Parameters with weight decay."),
    "optimizer.accumulator_dtype": option(
        word("bfloat16", "float32"), "Of the momentum buffer of sgd."
    ),
    "schedule.decay": Setting("cosine", TEXT, "linear (Table 3), cosine (4), staircase, constant."),
    "schedule.learning_rate": Setting(0.03, ABOVE_0, "After the warm-up (Tables 3 and 4)."),
    "schedule.final_learning_rate": Setting(0.0, NONNEGATIVE, "For linear: final value; 1e-5."),
    "schedule.boundaries_percent": Setting(
        (), each(PERCENT), "For staircase: where the rate is divided by ten."
    ),
    "schedule.warmup_steps": Setting(None, COUNT, "10,000 in pre-training, 500 in fine-tuning."),
    "schedule.warmup_epochs": Setting(None, NONNEGATIVE, "The same in epochs."),
    "schedule.warmup_percent": Setting(None, BELOW_100, "The same in percent of the run."),
    "sweep.learning_rates": Setting(
        (0.001, 0.003, 0.01, 0.03),
        each(ABOVE_0),
        "Candidates of `vit-jax sweep` (Table 4).",
        free=True,
    ),
    "sweep.held_out_percent": Setting(
        10.0, PERCENT, "Held out from the training split to choose a rate (section 4.1).", free=True
    ),
    "gradient_clip_norm": Setting(None, ABOVE_0, "Global norm of the gradient; 1 in Tables 3, 4."),
    "dropout_bits": Setting(
        "hash",
        word("hash", "threefry"),
        "Random bits of dropout and stochastic depth; hash: of step, position and example, for any "
        "micro-batches; threefry: JAX's generator, as in earlier runs.",
    ),
    "mixup_alpha": Setting(0.0, NONNEGATIVE, "Mixes pairs of images by Beta(a, a); 0: off."),
    "cutmix_alpha": Setting(
        0.0,
        NONNEGATIVE,
        "Replaces a box of 1 - Beta(a, a) of the image (arXiv 1905.04899); 0: off. With "
        "mixup_alpha, each in half of the steps.",
    ),
    "layer_decay": Setting(
        1.0,
        UP_TO_1,
        "A layer's learning rate relative to the next one's; 1 for the head (arXiv 2106.08254).",
    ),
    "freeze_blocks": Setting(
        0, COUNT, "Freezes this many first blocks and all before them; needs init_from."
    ),
    "polyak_decay": Setting(
        None, BETWEEN_0_AND_1, "Decay of the average of the weights; 0.9999 (4.1)."
    ),
    "polyak_ramp": Setting(
        False, FLAG, "The decay rises as (1 + t) / (10 + t) instead of being bias-corrected."
    ),
    "max_skipped_steps": Setting(
        20,
        POSITIVE,
        "Consecutive skipped updates that end a run; below 17 possibly before roll_back acts.",
        free=True,
    ),
    "roll_back.factor": Setting(None, ABOVE_1, "Rolls back at this multiple of the usual loss."),
    "roll_back.window": Setting(100, POSITIVE, "Steps whose median is the usual loss."),
    "roll_back.limit": Setting(3, POSITIVE, "Maximum number of roll-backs in a run.", free=True),
    # The machine.
    "watchdog_seconds": Setting(
        1800.0, NONNEGATIVE, "Ends a run without progress for this long; 0: never.", free=True
    ),
    "memory": Setting(
        "as_configured",
        word("as_configured", "auto"),
        "auto chooses model.remat and accumulation_steps that fit the device.",
    ),
    "memory_limit_gib": Setting(
        None, ABOVE_0, "Limit on a shared device; by default all its memory.", free=True
    ),
    "compute_dtype": Setting(
        "auto", word("auto", "float32", "bfloat16"), "auto: bfloat16 on accelerators."
    ),
    "deterministic": Setting(
        False, FLAG, "Bitwise determinism on GPUs, which is slower (docs/reliability.md)."
    ),
    "mesh.data": Setting(
        -1,
        DEVICES,
        "Data parallelism: devices with copies of the weights; -1: the rest.",
        free=True,
    ),
    "mesh.fsdp": Setting(1, DEVICES, "Devices that shard weights and split the batch.", free=True),
    "mesh.tensor": Setting(
        1, DEVICES, "Tensor parallelism: devices that split every layer's width.", free=True
    ),
    # Output of a run, and its intervals.
    "log_every_steps": Setting(50, POSITIVE, "Interval of lines in metrics.jsonl.", free=True),
    "profile_steps": Setting(
        (),
        each(POSITIVE, 0, 2),
        "(first, last): steps to trace into WORKDIR/profile.",
        free=True,
    ),
    "eval_every_steps": Setting(None, POSITIVE, "Interval; by default only at the end.", free=True),
    "eval_every_epochs": Setting(None, ABOVE_0, "The same in epochs.", free=True),
    "eval_training_images": Setting(
        0,
        COUNT,
        "Also evaluates this many training images, as train_eval/...: without crops, mixing, "
        "smoothing and weights.",
        free=True,
    ),
    "checkpoint_every_steps": Setting(
        1000,
        POSITIVE,
        "Interval of checkpoints, from which a killed run resumes.",
        free=True,
    ),
    "keep_checkpoints": Setting(2, POSITIVE, "How many of the newest are kept.", free=True),
    "keep_best": Setting(
        "",
        TEXT,
        "A metric, e.g. eval/accuracy: its best checkpoint is kept and exported. Smaller is better "
        "for a loss or error; override by min: or max: before the name.",
    ),
    "patience": Setting(
        0,
        COUNT,
        "Stops after this many evaluations without improvement of keep_best (Figure 4); 0: off.",
    ),
    "wandb": Setting(False, FLAG, "Also log to Weights & Biases.", free=True),
}
OPEN_SECTIONS = ("augment", "eval_preprocess", "evaluators", "loss", "objective", "optimizer")
#: All of them may differ when a run resumes.
FREE_SECTIONS = ("evaluators",)


def check(values: Mapping[str, object], where: str = "config") -> None:
    """Raises UserError for an invalid value among {dotted key: value}."""
    for key, value in values.items():
        setting = SETTINGS.get(key)
        if setting is None or (value is None and setting.default is None):
            continue
        if isinstance(value, numbers.Integral) and abs(int(value)) >= 2**31:
            raise UserError(f"{where}.{key}={value} is too large.")
        if not setting.kind.holds(value):
            words = [part.strip(" ,") for part in re.split(r", | or ", setting.kind.text)]
            close = nearest(value, words) if isinstance(value, str) and len(words) > 1 else ""
            raise UserError(f"{where}.{key}={value!r} must be {setting.kind.text}.{close}")


def is_free(key: str) -> bool:
    """Whether a setting may differ when a run is resumed."""
    name = key.removeprefix("pretrain.")
    setting = SETTINGS.get(name)
    return name.split(".")[0] in FREE_SECTIONS or (setting is not None and setting.free)


def rows() -> Iterator[tuple[str, str, str]]:
    """(name with its default, if any; valid values; meaning) of every setting."""
    for key, setting in SETTINGS.items():
        default = "" if setting.default is None else f"={shown(setting.default)}"
        yield key + default, setting.kind.text, setting.meaning


def shown(value: object) -> str:
    """A default as written on a command line."""
    return f"({','.join(map(str, value))})" if isinstance(value, tuple) else str(value)


HEAD = """# Settings
Every setting of an experiment, generated by `python -m vit_jax.settings` from the table that also
serves to check a run. A config file sets them as `c.batch_size = 512`, the command line as
`--config.batch_size=512`. Those without a default are set by the variant or the data, or off.
Those marked * may differ when a run resumes.

| setting | may be | means |
|-|-|-|
"""


def document() -> str:
    """docs/settings.md."""
    lines = []
    for (name, kind, meaning), key in zip(rows(), SETTINGS, strict=True):
        lines.append(f"| `{name}`{' *' if is_free(key) else ''} | {kind} | {meaning} |")
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
