"""Self-supervised pre-training by masked patch prediction (Appendix B.1.2).

  vit-jax train --config=configs/masked_patch.py:B/16,jft --workdir=DIR
  vit-jax train --config=configs/masked_patch.py:S/16,folder:/data/photos,100000 --workdir=DIR \\
      --config.batch_size=256

The argument is VARIANT,DATASET[,STEPS[,TARGET]]. DATASET is one of configs/pretrain.py or a data
spec; labels are not read, so a folder of images without class folders is enough. STEPS is 1,000,000
by default, about 14 epochs of JFT-300M. TARGET is what is predicted for a corrupted patch:
mean_colour, downsized or pixels. Other options of B.1.2 are in config.objective
(vit_jax/objectives/masked_patches.py).

Adam, batch 4096, 2e-4, 10k warm-up steps, cosine decay, 224 pixels. The paper does not give weight
decay and dropout: here 0.1 and none, its choice for JFT (Table 3), and a linear head.

Fine-tune with --config=configs/finetune.py:B/16,imagenet --config.init_from=DIR; the mask embedding
and the objective's head are dropped.

Cost: as a step of supervised pre-training, with target downsized 7% more.
Expected: 79.9% on ImageNet after fine-tuning, 2% above training from scratch and 4% below
supervised pre-training; 15% corruption and target pixels are slightly worse; gains flatten after
100k steps, and pre-training on ImageNet gives similar ones.
"""

from vit_jax import config as configuration

DATASETS = {
    "imagenet": ("tfds:imagenet2012", "train[:99%]", "train[99%:]"),
    "imagenet21k": ("tfds:imagenet21k", "train[102400:]", "train[:102400]"),
    "jft": ("tfds:jft", "train", "validation"),
}


def get_config(argument=""):
    a = configuration.arguments(
        argument, variant="B/16", dataset="jft", steps=1_000_000, target="mean_colour"
    )
    dataset = a["dataset"]

    c = configuration.default()
    c.name = f"masked patches, {a['variant']} on {dataset}"
    c.model.variant = a["variant"]
    c.model.image_size = 224
    if ":" in dataset or dataset == "digits":
        c.data.dataset = dataset
    else:
        row = configuration.choose(DATASETS, dataset, "dataset")
        c.data.dataset, c.data.train_split, c.data.eval_split = row
    c.augment = configuration.ConfigDict({"name": "inception_crop"})
    c.eval_preprocess = configuration.ConfigDict({"name": "resize_center_crop", "resize": 256})

    c.objective = configuration.ConfigDict({"name": "masked_patches", "target": a["target"]})
    c.batch_size = 4096
    c.total_steps = a["steps"]
    c.optimizer = configuration.ConfigDict(
        {"name": "adam", "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.1}
    )
    c.schedule.decay = "cosine"
    c.schedule.learning_rate = 2e-4
    c.schedule.warmup_steps = min(10_000, a["steps"] // 10)

    c.log_every_steps = 100
    c.eval_every_steps = 5_000
    c.checkpoint_every_steps = 1_000
    return c
