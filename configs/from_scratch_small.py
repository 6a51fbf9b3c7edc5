"""A small ViT from scratch on a data set of CIFAR-10's size: 32-pixel images, tens of thousands.

  vit-jax train --config=configs/from_scratch_small.py:folder:/data/cifar10 --workdir=DIR

The argument is DATASET[,EPOCHS[,RECIPE]]; the recipe is paper, or strong, which adds STRONG below.
The paper trains nothing this small; from its ImageNet row (Table 3) come Adam with strong weight
decay, warm-up and cosine decay, and clipping at 1. Blocks have no dropout. Patches of 4 pixels give
64 tokens.

docs/RESULTS.md has the accuracy and the curve of a run, with its cost.
"""

from vit_jax import config as configuration

#   as in configs/own.py: more augmentation, mixup and CutMix, stochastic depth
STRONG = {
    "augment.policy": "trivial", "mixup_alpha": 0.2, "cutmix_alpha": 1.0,
    "model.stochastic_depth_rate": 0.1,
}  # fmt: skip
RECIPES = {"paper": {}, "strong": STRONG}


def get_config(argument=""):
    a = configuration.arguments(argument, dataset="tfds:cifar10", epochs=12, recipe="paper")
    c = configuration.default()
    c.name = f"ViT from scratch on {a['dataset']}"
    c.model.update(
        variant="Ti/16", patch_size=4, hidden_size=128, num_layers=6, mlp_dim=256, num_heads=4
    )
    c.model.image_size = 32
    c.data.dataset = a["dataset"]
    c.augment = configuration.ConfigDict({"name": "pad_crop", "pad": 4})
    c.eval_preprocess = configuration.ConfigDict({"name": "resize"})

    c.batch_size = 128
    c.total_epochs = float(a["epochs"])
    c.optimizer = configuration.ConfigDict({"name": "adam", "weight_decay": 0.1})
    c.schedule.update(decay="cosine", learning_rate=1e-3, warmup_epochs=1.0)
    c.gradient_clip_norm = 1.0
    c.loss = configuration.ConfigDict({"name": "softmax_cross_entropy", "label_smoothing": 0.1})

    c.log_every_steps = 50
    c.eval_every_epochs = 1.0
    c.checkpoint_every_steps = 500
    for key, value in configuration.choose(RECIPES, a["recipe"], "recipe").items():
        configuration.override(c, key, str(value))
    return c
