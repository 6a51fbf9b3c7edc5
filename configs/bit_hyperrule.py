"""BiT-HyperRule: fine-tuning ResNets (arXiv 1912.11370, section 3.3; the baselines of Table 2).

  vit-jax train --config=configs/bit_hyperrule.py:R50x1,tfds:cifar10 --workdir=DIR \\
      --config.init_from=BiT-M-R50x1.npz

The argument is VARIANT,DATASET[,SIZE]: the rule has no other settings. The size class of the data
set (small below 20,000 examples, medium below 500,000, large) decides steps, warm-up, the three
divisions of the learning rate by ten, and mixup. The paper's data sets are known by name; others
count as small unless `examples=N` gives their size.

SGD with momentum 0.9 at 0.003, batch 512, softmax, no weight decay, no dropout. Images are resized
to 160 and cropped to 128 where the originals are smaller than 96x96 pixels, otherwise 448 and 384;
480 is cropped from 512. Images of other data sets are assumed to be large: give SIZE 128 if they
are small, as the plan will note.

Cost: 500, 10,000 or 20,000 steps. Expected from JFT with SGD (Table 7): CIFAR-10 R50x1 97.46,
R152x2 99.07.
"""

from vit_jax import config as configuration

#  examples below: steps, warm-up, learning rate divided by 10 at these percents, mixup
RULE = (
    (20_000, dict(steps=500, warmup=100, boundaries=(40, 60, 80), mixup=0.0)),
    (500_000, dict(steps=10_000, warmup=500, boundaries=(30, 60, 90), mixup=0.1)),
    (float("inf"), dict(steps=20_000, warmup=500, boundaries=(30, 60, 90), mixup=0.1)),
)
EXAMPLES = {
    "tfds:imagenet2012": 1_281_167, "tfds:cifar10": 50_000, "tfds:cifar100": 50_000,
    "tfds:oxford_iiit_pet": 3_680, "tfds:oxford_flowers102": 1_020, "digits": 1_437,
}  # fmt: skip
RESIZE = {128: 160, 384: 448, 480: 512}  # before the crop
SMALL_IMAGES = ("tfds:cifar10", "tfds:cifar100", "digits")


def get_config(argument=""):
    a = configuration.arguments(
        argument, variant="R50x1", dataset="tfds:cifar10", size=0, examples=0
    )
    examples = a["examples"] or EXAMPLES.get(a["dataset"], 1)
    rule = next(rule for below, rule in RULE if examples < below)
    size = a["size"] or (128 if a["dataset"] in SMALL_IMAGES else 384)

    c = configuration.default()
    c.name = f"BiT-HyperRule: {a['variant']} on {a['dataset']} at {size}"
    c.model.variant = a["variant"]
    c.model.image_size = size
    c.data.dataset = a["dataset"]
    resize = RESIZE.get(size) or round(size * (160 / 128 if size < 128 else 448 / 384))
    c.augment = configuration.ConfigDict({"name": "resize_crop", "resize": resize})
    c.eval_preprocess = configuration.ConfigDict({"name": "resize"})

    c.batch_size = 512
    c.total_steps = rule["steps"]
    c.optimizer = configuration.ConfigDict({"name": "sgd", "accumulator_dtype": "float32"})
    c.schedule.update(decay="staircase", learning_rate=0.003, warmup_steps=rule["warmup"])
    c.schedule.boundaries_percent = rule["boundaries"]
    c.mixup_alpha = rule["mixup"]
    c.eval_every_steps = max(100, rule["steps"] // 10)
    c.checkpoint_every_steps = 500
    return c
