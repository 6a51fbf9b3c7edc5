"""Your own images: settings from a few facts; used by `vit-jax train folder:/data/pets`.

  vit-jax train --config=configs/own.py:images=3312,pixels=500,pretrained=true --workdir=DIR \\
      --config.data.dataset=folder:/data/pets --config.init_from=B/16-imagenet21k

The facts are the argument: images, their number in training; pixels, their shorter side;
pretrained, whether there are initial weights; variant and size, of those weights, or the variant to
train from scratch; resolution, if given; accelerator, True unless on a CPU; multilabel; flip,
whether images may be flipped; recipe, paper or strong.

With weights, Table 4 of the paper and BiT-HyperRule, which it follows: SGD with momentum 0.9,
cosine decay, clipping at 1, no weight decay, 500, 10,000 or 20,000 steps of 512 images by the size
of the data. The learning rate is proportional to the batch, and at least 0.003. On a CPU batches
have 32 images, and there are fewer steps where they would take days.

Without, as configs/from_scratch_small.py: Adam at 0.001 with strong weight decay, and a ViT of 64
tokens. The paper's models need pre-training: this one is for a first look, or for simple images.

recipe=strong adds to either what the paper does not have (STRONG below): more augmentation, mixup
and CutMix, stochastic depth, and with weights lower learning rates for lower layers.

Cost: with weights 16,000 images on a CPU, 256,000 on an accelerator, if they are fewer than 20,000.
Expected: Table 5 has Pets and Flowers (94.43 and 99.38 from B/16 on ImageNet-21k, at batch 512);
docs/RESULTS.md has results from scratch. The exported model is from the best evaluation.
"""

from vit_jax import config as configuration

#   training images below: steps (Table 4, BiT-HyperRule), the same on a CPU, warm-up in percent,
#   learning rate at batch 512 (Table 4: Pets and Flowers; CIFAR; ImageNet)
FINE_TUNING = (
    (20_000, dict(steps=500, cpu_steps=500, warmup=20, rate=0.03)),
    (500_000, dict(steps=10_000, cpu_steps=2_000, warmup=5, rate=0.01)),
    (float("inf"), dict(steps=20_000, cpu_steps=4_000, warmup=2.5, rate=0.03)),
)
BATCH, CPU_BATCH, LEAST_RATE = 512, 32, 0.003
SMALL = 96  # BiT-HyperRule: smaller images gain nothing from more pixels than the weights had
LARGER = {224: 384}  # section 3.2: fine-tuning gains from more pixels than in pre-training
FOURTEEN = {224: 518}  # the same with patches of 14 pixels (Table 2)

#   shorter side below: pixels, patch size; 64 tokens except for the smallest
FROM_SCRATCH = (
    (17, dict(size=16, patch=4)),
    (64, dict(size=32, patch=4)),
    (float("inf"), dict(size=64, patch=8)),
)
#   settings of recipe=strong: with weights, and without; not for digits
STRONG = {
    True: {
        "augment.policy": "trivial", "mixup_alpha": 0.2, "layer_decay": 0.75,
        "model.stochastic_depth_rate": 0.1,
    },
    False: {
        "augment.policy": "trivial", "mixup_alpha": 0.2, "cutmix_alpha": 1.0,
        "model.stochastic_depth_rate": 0.1,
    },
}  # fmt: skip
RECIPES = {"paper": False, "strong": True}
#   number of training images that are also evaluated: on a CPU, on an accelerator
TRAINING_IMAGES = {False: 256, True: 2_000}
SCRATCH_BATCH, SEEN = 128, 600_000  # images: 12 epochs of CIFAR-10, as measured
MOST_EPOCHS, LEAST_EPOCHS = 100, 3


def get_config(argument=""):
    a = configuration.arguments(
        argument, images=1_000, pixels=224, pretrained=False, variant="", size=224,
        resolution=0, accelerator=False, multilabel=False, flip=True,
        recipe="paper",
    )  # fmt: skip
    c = configuration.default()
    (fine_tune if a["pretrained"] else from_scratch)(c, a)
    if configuration.choose(RECIPES, a["recipe"], "recipe"):
        for key, value in STRONG[a["pretrained"]].items():
            if key != "augment.policy" or a["flip"]:
                configuration.override(c, key, str(value))
    c.loss.name = "sigmoid_cross_entropy" if a["multilabel"] else "softmax_cross_entropy"
    c.gradient_clip_norm = 1.0
    c.memory = "auto"  # the batch is kept, with accumulation if it does not fit
    rate = c.schedule.learning_rate
    c.sweep.learning_rates = tuple(float(f"{rate * times:.3g}") for times in (1 / 3, 1, 3))
    every = max(1, c.total_steps // 20)
    c.log_every_steps = max(1, min(50, c.total_steps // 100))
    c.eval_every_steps = c.checkpoint_every_steps = every
    c.eval_training_images = min(a["images"], TRAINING_IMAGES[a["accelerator"]])
    c.keep_best = "eval/mAP" if a["multilabel"] else "eval/accuracy"
    return c


def row_of(table, number):
    return next(row for below, row in table if number < below)


def batch_of(images, most):
    """The largest power of two up to the number of images, from 8 to `most`."""
    return min(most, max(8, 2 ** (max(images, 1).bit_length() - 1)))


def fine_tune(c, a):
    row = row_of(FINE_TUNING, a["images"])
    c.model.variant = a["variant"] or "B/16"
    size = a["size"]
    if a["accelerator"] and a["pixels"] >= SMALL:
        size = (FOURTEEN if c.model.variant.endswith("/14") else LARGER).get(size, size)
    size = a["resolution"] or size
    c.model.image_size = size
    c.augment = configuration.ConfigDict(
        {"name": "resize_crop", "resize": round(size * 448 / 384), "flip": a["flip"]}
    )
    c.batch_size = batch_of(a["images"], BATCH if a["accelerator"] else CPU_BATCH)
    c.total_steps = row["steps" if a["accelerator"] else "cpu_steps"]
    c.optimizer = configuration.ConfigDict(
        {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0, "accumulator_dtype": "bfloat16"}
    )
    c.schedule.decay = "cosine"
    c.schedule.learning_rate = max(LEAST_RATE, row["rate"] * c.batch_size / BATCH)
    c.schedule.warmup_percent = float(row["warmup"])


def from_scratch(c, a):
    row = row_of(FROM_SCRATCH, a["pixels"])
    size = a["resolution"] or (a["size"] if a["variant"] else row["size"])
    c.model.variant = a["variant"] or "Ti/16"
    if not a["variant"]:
        patch = max(1, size // 8) if a["resolution"] else row["patch"]
        c.model.update(patch_size=patch, hidden_size=128, num_layers=6, mlp_dim=256, num_heads=4)
    c.model.image_size = size
    small = a["pixels"] < 64 or not a["flip"]
    crop = {"name": "pad_crop", "pad": max(1, size // 8)} if small else {"name": "inception_crop"}
    c.augment = configuration.ConfigDict({**crop, "flip": a["flip"]})
    c.batch_size = batch_of(a["images"] // 8, SCRATCH_BATCH)
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, SEEN / max(1, a["images"])))
    c.total_steps = max(20, round(epochs * a["images"] / c.batch_size))
    c.optimizer = configuration.ConfigDict({"name": "adam", "weight_decay": 0.1})
    c.schedule.update(decay="cosine", learning_rate=1e-3)
    c.schedule.warmup_percent = 5.0
    c.loss.label_smoothing = 0.0 if a["multilabel"] else 0.1
