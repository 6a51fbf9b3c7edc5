"""Fine-tuning, Table 4 (section 4.1, Appendix B.1.1): every row, and Table 2's higher resolutions.

  vit-jax train --config=configs/finetune.py:B/16,cifar10 --workdir=DIR \\
      --config.init_from=ViT-B_16.npz --config.schedule.learning_rate=0.01

The argument is VARIANT,DATASET[,SIZE]. VARIANT may be `checkpoint`, for the architecture of
`init_from`. DATASET is imagenet, cifar10, cifar100, pets or flowers, which set the paper's steps
and splits, or any data spec: folder:PATH, tfds:NAME, hf:ORG/NAME. SIZE is the resolution in pixels,
384 by default, of which H/14 takes the 378 that its patches divide. 512 for L/16 and 518 for H/14
are Table 2's ImageNet runs, which also average the weights (Polyak, 0.9999):
`L/16,imagenet,512`, `H/14,imagenet,518`.

SGD with momentum 0.9 (bfloat16 accumulator), batch 512, cosine decay, no weight decay, gradients
clipped at global norm 1, a zero-initialised linear head. The learning rate is swept on a held-out
part of the training set: 0.003, 0.01, 0.03 and 0.06 for ImageNet, 0.001, 0.003, 0.01 and 0.03 for
the others; the default is 0.03 (0.01 for CIFAR).

Cost: 20,000 steps on ImageNet, 10,000 on CIFAR, 500 on Pets and Flowers. Expected from
ImageNet-21k weights (Table 5): ImageNet B/16 83.97, L/16 85.15; CIFAR-10 B/16 98.95, L/16 99.16;
CIFAR-100 B/16 91.67; Pets B/16 94.43; Flowers B/16 99.38.
"""

from vit_jax import config as configuration

#   TFDS name, steps, warm-up, learning rate, the percent held out to choose it, test split
DATASETS = {
    "imagenet": dict(
        dataset="tfds:imagenet2012", steps=20_000, warmup=500, learning_rate=0.03,
        train="train", held_out=1, test="validation",
    ),
    "cifar10": dict(
        dataset="tfds:cifar10", steps=10_000, warmup=500, learning_rate=0.01,
        train="train", held_out=2, test="test",
    ),
    "cifar100": dict(
        dataset="tfds:cifar100", steps=10_000, warmup=500, learning_rate=0.01,
        train="train", held_out=2, test="test",
    ),
    "pets": dict(
        dataset="tfds:oxford_iiit_pet", steps=500, warmup=100, learning_rate=0.03,
        train="train", held_out=10, test="test",
    ),
    "flowers": dict(
        dataset="tfds:oxford_flowers102", steps=500, warmup=100, learning_rate=0.03,
        train="train", held_out=10, test="test",
    ),
}  # fmt: skip

RATES = {"imagenet": (0.003, 0.01, 0.03, 0.06)}  # to choose from; all others:
COMMON_RATES = (0.001, 0.003, 0.01, 0.03)
OWN = dict(
    steps=500, warmup=100, learning_rate=0.03, held_out=10
)  # small sets: the Pets and Flowers row
POLYAK_SIZES = {512, 518}


def get_config(argument=""):
    a = configuration.arguments(argument, variant="B/16", dataset="cifar10", size=0, dev=False)
    patch = a["variant"].rpartition("/")[2]
    dataset, size = a["dataset"], a["size"] or (378 if patch == "14" else 384)
    own = ":" in dataset or dataset == "digits"
    row = OWN if own else configuration.choose(DATASETS, dataset, "dataset")

    c = configuration.default()
    c.name = f"fine-tune {a['variant']} on {dataset} at {size}"
    c.model.variant = a["variant"]
    c.model.image_size = size
    if own:
        c.data.dataset = dataset
    else:
        c.data.dataset = row["dataset"]
        kept = 100 - row["held_out"]
        c.data.train_split = f"{row['train']}[:{kept}%]" if a["dev"] else row["train"]
        c.data.eval_split = f"{row['train']}[{kept}%:]" if a["dev"] else row["test"]

    # "As in BiT": resize to a square, random crop, flip; the test image is only resized.
    resize = round(size * 448 / 384)
    c.augment = configuration.ConfigDict({"name": "resize_crop", "resize": resize})
    c.eval_preprocess = configuration.ConfigDict({"name": "resize"})

    c.batch_size = 512
    c.total_steps = row["steps"]
    c.optimizer = configuration.ConfigDict(
        {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0, "accumulator_dtype": "bfloat16"}
    )
    c.schedule.decay = "cosine"
    c.schedule.learning_rate = row["learning_rate"]
    c.schedule.warmup_steps = row["warmup"]
    c.sweep.learning_rates = RATES.get(dataset, COMMON_RATES)
    c.sweep.held_out_percent = float(row["held_out"])
    c.gradient_clip_norm = 1.0
    c.loss = configuration.ConfigDict({"name": "softmax_cross_entropy", "label_smoothing": 0.0})
    if dataset == "imagenet" and size in POLYAK_SIZES:
        c.polyak_decay = 0.9999

    c.log_every_steps = 50
    c.eval_every_steps = max(100, row["steps"] // 10)
    c.checkpoint_every_steps = 500
    return c
