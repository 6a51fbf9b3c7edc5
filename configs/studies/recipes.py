"""Not of the paper: what the strong recipe gives, where images are many, few, or photographs.

  vit-jax study --config=configs/studies/recipes.py:folder:/data/cifar10,folder:/data/flowers \\
      --workdir=DIR

The argument is DATASET,PHOTOS: images of 32 pixels, and photographs of any size. A ViT of 0.8M
parameters (configs/from_scratch_small.py, patches of 8 pixels) trains with recipe=paper and
recipe=strong in three settings: six epochs of all images, sixty epochs of a tenth of them, and
forty epochs of the photographs at 48 pixels; three seeds each, 10 to 20 minutes on a CPU core.
train_eval/accuracy is of training images without augmentation: what it is above eval/accuracy was
memorised.
"""

from vit_jax import config as configuration
from vit_jax.studies import plots

RECIPES = ("paper", "strong")
#: (percent of the training images, epochs, pixels)
SETTINGS = {"all": (100, 6, 32), "tenth": (10, 60, 32), "photos": (100, 40, 48)}
SEEDS = 3
METRICS = (plots.FINE_TUNED, "train_eval/accuracy")


def trials(argument=""):
    a = configuration.arguments(argument, dataset="tfds:cifar10", photos="tfds:oxford_flowers102")
    found = {}
    for setting, (percent, epochs, pixels) in SETTINGS.items():
        data = a["photos" if setting == "photos" else "dataset"]
        for recipe in RECIPES:
            for seed in range(SEEDS):
                c = configuration.load(f"configs/from_scratch_small.py:{data},{epochs},{recipe}")
                c.seed = seed
                c.model.update(image_size=pixels, patch_size=8)
                if percent < 100:
                    c.data.train_split, c.data.eval_split = f"train[:{percent}%]", "test"
                if setting == "photos":
                    c.augment.name = "inception_crop"
                    del c.augment.pad
                c.schedule.warmup_epochs, c.schedule.warmup_percent = None, 10.0
                c.eval_every_epochs, c.eval_training_images = epochs / 6, 1000
                found[f"{setting}-{recipe}_{seed}"] = c
    return found


def draw(outcomes):
    """Accuracy on test images during training, of the first seed, and at the end, of all."""
    figure, panels = plots.figure(len(SETTINGS) + 1, width=4.0)
    for axes, setting in zip(panels, SETTINGS, strict=False):
        for recipe in RECIPES:
            plots.curve(axes, outcomes.get(f"{setting}-{recipe}_0"), plots.FINE_TUNED, recipe)
        axes.set_title(setting)
        plots.style(axes, "step", "accuracy on test images (%)")
    groups = plots.over_seeds(outcomes, plots.FINE_TUNED)
    plots.categories(panels[-1], groups, "setting and recipe", "accuracy on test images (%)")
    return figure
