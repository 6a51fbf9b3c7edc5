"""Every setting of an experiment in one table: its default, what it may be, and what it means.

From it come `config.default()`, the checks before a run, the list of `vit-jax train --help`,
docs/settings.md (`python -m vit_jax.settings`), and what may change when a run is resumed.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vit_jax.errors import UserError, nearest
from vit_jax.kinds import (
    ABOVE_0,
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
    whole,
    word,
)


class Setting(NamedTuple):
    """default: None is decided by the variant or the data. free: it may differ when a run goes on,
    since neither its data nor its arithmetic depend on it. option: it exists only where the
    function that its section names takes it.
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
    "name": Setting("", TEXT, "Shown in reports.", free=True),
    "seed": Setting(0, COUNT, "Of the weights, the order of the data, crops and dropout."),
    # The model: fields of the variant's configuration; what is not set is the variant's.
    "model.variant": Setting(
        "B/16",
        TEXT,
        "A row of Table 1 or another name of `vit_jax.variants()`; checkpoint: that of init_from.",
    ),
    "model.image_size": Setting(
        None, PIXELS, "Pixels; 224 in pre-training, 384 and more in fine-tuning (section 3.2)."
    ),
    "model.num_classes": Setting(None, POSITIVE, "Outputs; by default the classes of the data."),
    "model.channels": Setting(
        None, POSITIVE, "Of the images; 3: RGB, 1: grey, others as they are stored."
    ),
    "model.patch_size": Setting(None, PIXELS, "P of section 3.1; of a hybrid in features."),
    "model.hidden_size": Setting(None, POSITIVE, "D of Table 1."),
    "model.num_layers": Setting(None, POSITIVE, "L of Table 1."),
    "model.mlp_dim": Setting(None, POSITIVE, "Hidden units of the MLP of a block (Table 1)."),
    "model.num_heads": Setting(None, POSITIVE, "k of Appendix A; divides hidden_size."),
    "model.depths": Setting(None, each(POSITIVE), "Of a ResNet: the units of each stage."),
    "model.width_factor": Setting(None, ABOVE_0, "Of a ResNet: times 64 channels at the root."),
    "model.representation_size": Setting(
        None,
        either(POSITIVE, word("hidden")),
        "The pre-training head's hidden layer (section 3.1); hidden: as wide as the model.",
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
    "model.head_bias": Setting(None, REAL, "The head's bias at the beginning."),
    "model.pool_padding": Setting(
        None, word("zeros", "lowest"), "Around the root pooling of a ResNet; zeros: as released."
    ),
    "model.layer_norm_epsilon": Setting(None, BETWEEN_0_AND_1, "1e-6; other families' differ."),
    "model.dropout_rate": Setting(None, BELOW_1, "After every dense layer but q, k, v (Table 3)."),
    "model.stochastic_depth_rate": Setting(
        None, FROM_0_TO_1, "Of the last layer; rises linearly from 0."
    ),
    "model.remat": Setting(
        None,
        either(FLAG, word("none", "products", "full")),
        "What the backward pass computes again to save memory; True is full.",
    ),
    "model.scan": Setting(None, FLAG, "Blocks as one loop: compiles faster, runs a little slower."),
    "model.attention": Setting(
        None, word("auto", "xla", "cudnn", "fused"), "The kernel: cuDNN's on GPUs, ours on TPUs."
    ),
    "init_from": Setting("", TEXT, "Any checkpoint that load_model reads; empty: from scratch."),
    "keep_head": Setting(
        False, FLAG, "The head of init_from stays; otherwise a zero head replaces it (3.2)."
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
    "data.data_dir": Setting(None, TEXT, "Where TFDS data sets lie.", free=True),
    "data.orient": Setting(True, FLAG, "Photos are turned upright by EXIF, but for TFDS' own."),
    "data.sampling": Setting(
        "uniform",
        word("uniform", "balanced"),
        "uniform: every image once an epoch; balanced: every class equally often (docs/data.md).",
    ),
    "data.exclude": Setting("", TEXT, "A file of record names to leave out of training."),
    "data.max_bad_images": Setting(
        0, COUNT, "Images that cannot be read and are left out; more end the run.", free=True
    ),
    "data.max_image_pixels": Setting(
        100_000_000, whole(1), "An image whose header says more is not decoded.", free=True
    ),
    "data.num_threads": Setting(
        4,
        whole(1, 1024),
        "That decode images, in each process.",
        free=True,
    ),
    "data.num_workers": Setting(
        0,
        whole(0, 1024),
        "Processes that decode instead of threads.",
        free=True,
    ),
    "augment.name": Setting(
        "inception_crop", TEXT, "inception_crop, resize_crop, resize_flip or pad_crop."
    ),
    "augment.area": option(
        rising(UP_TO_1), "Least and most share of the image that is cropped; 0.05 and 1."
    ),
    "augment.aspect": option(rising(ABOVE_0), "Least and most width over height."),
    "augment.resize": option(PIXELS, "Pixels before the crop; 448 for 384 in BiT."),
    "augment.pad": option(COUNT, "Pixels of zeros around the image before the crop."),
    "augment.flip": option(FLAG, "Half of the images are mirrored."),
    "augment.policy": option(
        word("none", "trivial"),
        "After it: trivial is one of 14 changes of colour or shape, TrivialAugment (2103.10158).",
    ),
    "eval_preprocess.name": Setting(
        "resize", TEXT, "resize, resize_center_crop, square_center_crop, objectnet or pillow."
    ),
    "eval_preprocess.resize": option(either(ABOVE_0, each(ABOVE_0, 2)), "Pixels before the crop."),
    "eval_preprocess.interpolation": option(
        word("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"), "Of pillow."
    ),
    "eval_preprocess.fit": option(
        word("squash", "cover", "contain"), "Of pillow: how the aspect ratio is treated."
    ),
    "eval_preprocess.whole": option(word("down", "nearest"), "Of pillow: how sides are rounded."),
    "eval_preprocess.centre": option(word("down", "nearest"), "Of pillow: the crop's corner."),
    "eval_preprocess.fill": option(each(whole(0, 255), 3), "Of pillow: around the image, RGB."),
    # Optimisation.
    "batch_size": Setting(
        512,
        POSITIVE,
        "Of all devices and accumulation steps; 4096 in pre-training (Table 3), 512 "
        "in fine-tuning (Table 4).",
    ),
    "eval_batch_size": Setting(
        None, POSITIVE, "By default as many as a forward pass of training.", free=True
    ),
    "accumulation_steps": Setting(1, POSITIVE, "Micro-batches of a batch."),
    "total_steps": Setting(None, POSITIVE, "Length of the run; wins over total_epochs."),
    "total_epochs": Setting(None, ABOVE_0, "The same in epochs of the training data."),
    "objective.name": Setting(
        "classification", TEXT, "What training minimises; of your own: FILE.py:FUNCTION."
    ),
    "loss.name": Setting(
        "softmax_cross_entropy", TEXT, "softmax_cross_entropy; pre-training: sigmoid_cross_entropy."
    ),
    "loss.label_smoothing": Setting(0.0, BELOW_1, "0.0001 on ImageNet-21k in pre-training."),
    "class_weights": Setting(
        "none",
        TEXT,
        "Of the loss: none; balanced, rare classes more; or a JSON file of {class: weight}.",
    ),
    "optimizer.name": Setting("sgd", TEXT, "sgd in fine-tuning, adam in pre-training (4.1)."),
    "optimizer.momentum": option(BELOW_1, "Of sgd; 0.9 (section 4.1)."),
    "optimizer.beta1": option(BELOW_1, "Of adam; 0.9 (section 4.1)."),
    "optimizer.beta2": option(BELOW_1, "Of adam; 0.999 (section 4.1)."),
    "optimizer.epsilon": option(ABOVE_0, "Of adam; 1e-8."),
    "optimizer.weight_decay": option(
        NONNEGATIVE, "Decoupled in adam (0.1 on JFT, 0.03 on ImageNet-21k); L2 in sgd."
    ),
    "optimizer.decay_on": option(word("all", "kernels"), "What weight decay shrinks."),
    "optimizer.accumulator_dtype": option(word("bfloat16", "float32"), "Of the momentum of sgd."),
    "schedule.decay": Setting("cosine", TEXT, "linear (Table 3), cosine (4), staircase, constant."),
    "schedule.learning_rate": Setting(0.03, ABOVE_0, "After the warm-up (Tables 3 and 4)."),
    "schedule.final_learning_rate": Setting(0.0, NONNEGATIVE, "Of linear: at the end; 1e-5."),
    "schedule.boundaries_percent": Setting(
        (), each(PERCENT), "Of staircase: where the rate falls by ten."
    ),
    "schedule.warmup_steps": Setting(None, COUNT, "10,000 in pre-training, 500 in fine-tuning."),
    "schedule.warmup_epochs": Setting(None, NONNEGATIVE, "The same in epochs."),
    "schedule.warmup_percent": Setting(None, BELOW_100, "The same in percent of the run."),
    "sweep.learning_rates": Setting(
        (0.001, 0.003, 0.01, 0.03),
        each(ABOVE_0),
        "What `vit-jax sweep` chooses from (Table 4).",
        free=True,
    ),
    "sweep.held_out_percent": Setting(
        10.0, PERCENT, "Of the training split, to choose on (section 4.1).", free=True
    ),
    "gradient_clip_norm": Setting(None, ABOVE_0, "Global norm of the gradient; 1 in Tables 3, 4."),
    "dropout_bits": Setting(
        "hash",
        word("hash", "threefry"),
        "Of dropout and stochastic depth: a hash of step, place and "
        "example, the same however a batch is split; or JAX's generator, as before.",
    ),
    "mixup_alpha": Setting(0.0, NONNEGATIVE, "Pairs of images are mixed by Beta(a, a); 0: not."),
    "cutmix_alpha": Setting(
        0.0,
        NONNEGATIVE,
        "A box of 1 - Beta(a, a) of an image is that of another (arXiv 1905.04899); 0: not. With "
        "mixup_alpha each is in half of the steps.",
    ),
    "layer_decay": Setting(
        1.0, UP_TO_1, "A layer's rate in the next one's; the head's is whole (arXiv 2106.08254)."
    ),
    "freeze_blocks": Setting(
        0, COUNT, "The first so many blocks, and what is before them, stay as in init_from."
    ),
    "polyak_decay": Setting(None, BETWEEN_0_AND_1, "Of the average of the weights; 0.9999 (4.1)."),
    "polyak_ramp": Setting(
        False, FLAG, "The decay rises as (1 + t) / (10 + t) instead of being bias-corrected."
    ),
    "max_skipped_steps": Setting(
        20, POSITIVE, "Ends a run after so many gradients in a row that are not finite.", free=True
    ),
    # The machine.
    "watchdog_seconds": Setting(
        1800.0, NONNEGATIVE, "A run that stands still for so long is ended; 0: never.", free=True
    ),
    "memory": Setting(
        "as_configured",
        word("as_configured", "auto"),
        "auto chooses model.remat and accumulation_steps that fit the device.",
    ),
    "memory_limit_gib": Setting(
        None, ABOVE_0, "Of a device that others use too; by default all of it.", free=True
    ),
    "compute_dtype": Setting(
        "auto", word("auto", "float32", "bfloat16"), "auto: bfloat16 on accelerators."
    ),
    "deterministic": Setting(
        False, FLAG, "GPUs give the same bits each time, and are slower (docs/reliability.md)."
    ),
    "mesh.data": Setting(
        -1,
        DEVICES,
        "Devices that hold copies of the weights; -1: the rest.",
        free=True,
    ),
    "mesh.fsdp": Setting(
        1, DEVICES, "Devices that share the weights and split the batch.", free=True
    ),
    "mesh.tensor": Setting(1, DEVICES, "Devices that split every layer's width.", free=True),
    # What a run writes, and when.
    "log_every_steps": Setting(50, POSITIVE, "A line of metrics.jsonl.", free=True),
    "profile_steps": Setting(
        (),
        each(POSITIVE, 0, 2),
        "(first, last): traced into WORKDIR/profile.",
        free=True,
    ),
    "eval_every_steps": Setting(None, POSITIVE, "By default at the end only.", free=True),
    "eval_every_epochs": Setting(None, ABOVE_0, "The same in epochs.", free=True),
    "eval_training_images": Setting(
        0,
        COUNT,
        "So many training images are evaluated beside, as train_eval/...: without crops, mixing, "
        "smoothing and weights.",
        free=True,
    ),
    "checkpoint_every_steps": Setting(
        1000,
        POSITIVE,
        "A run that is killed goes on from one.",
        free=True,
    ),
    "keep_checkpoints": Setting(2, POSITIVE, "The newest so many; older ones go.", free=True),
    "keep_best": Setting(
        "",
        TEXT,
        "A metric, e.g. eval/accuracy: its best checkpoint is kept and exported. Smaller is better "
        "of a loss or error; min: or max: before the name says it.",
    ),
    "patience": Setting(
        0, COUNT, "Evaluations without a better keep_best that end the run (Figure 4); 0: none."
    ),
    "wandb": Setting(False, FLAG, "Also log to Weights & Biases.", free=True),
}
OPEN_SECTIONS = ("augment", "eval_preprocess", "evaluators", "loss", "objective", "optimizer")
#: All of them may differ when a run goes on.
FREE_SECTIONS = ("evaluators",)


def check(values: Mapping[str, object], where: str = "config") -> None:
    """Raises UserError for a value, of those by their dotted keys, that its setting cannot have."""
    for key, value in values.items():
        setting = SETTINGS.get(key)
        if setting is None or (value is None and setting.default is None):
            continue
        if isinstance(value, numbers.Integral) and abs(int(value)) >= 2**31:
            raise UserError(f"{where}.{key}={value} is larger than any that makes sense.")
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
    """(name, with its default where it has one; what it may be; what it means) of every setting."""
    for key, setting in SETTINGS.items():
        default = "" if setting.default is None else f"={shown(setting.default)}"
        yield key + default, setting.kind.text, setting.meaning


def shown(value: object) -> str:
    """A default as it is written on a command line."""
    return f"({','.join(map(str, value))})" if isinstance(value, tuple) else str(value)


HEAD = """# Settings
Every setting of an experiment, made by `python -m vit_jax.settings` from the table that is also
checked before a run. A config file sets them as `c.batch_size = 512`, the command line as
`--config.batch_size=512`; what has no default is decided by the variant or the data, or is off.
Those marked * may differ when a run goes on.

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
