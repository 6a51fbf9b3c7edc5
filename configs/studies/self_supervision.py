"""B.1.2: masked patch prediction against training from scratch and supervised pre-training.

  vit-jax study --config=configs/studies/self_supervision.py:cifar10 --workdir=DIR
  vit-jax study --config=configs/studies/self_supervision.py --dry_run

B/16 is pre-trained with each target, with 15% instead of 50% of the patches corrupted, for a part
of the steps, and with labels; all are then fine-tuned on ImageNet at 384 pixels. Trial scratch is
pre-trained on ImageNet itself, supervised (Table 5). Without an argument pre-training is on JFT, 1M
steps of 4096 images. With [DATASET[,EPOCHS]] small models are pre-trained on the images of any data
set and fine-tuned on a tenth of its labels, which scratch has as well, in as many steps as for all
images; three seeds each, some minutes each on two CPU cores.

Expected (B.1.2): 79.9% on ImageNet, 2% above scratch and 4% below supervised pre-training; 15% and
the target pixels are slightly worse; gains flatten after 100k steps, and pre-training on ImageNet
gives similar ones.
"""

from vit_jax.studies import plots, small

#: Arguments of configs/masked_patch.py, and the corrupted fraction.
MASKED = {
    "mean_colour": ("jft,1000000,mean_colour", 0.5),
    "downsized": ("jft,1000000,downsized", 0.5),
    "pixels": ("jft,1000000,pixels", 0.5),
    "corrupted-15": ("jft,1000000,mean_colour", 0.15),
    "steps-100k": ("jft,100000,mean_colour", 0.5),
    "steps-10k": ("jft,10000,mean_colour", 0.5),
    "on-imagenet": ("imagenet,1000000,mean_colour", 0.5),
}
#: Arguments of configs/pretrain.py.
LABELLED = {"scratch": "imagenet", "supervised": "jft"}
#: Fraction of the epochs of the small setting, if not all; on-imagenet has a part of the images.
SHARES = {"steps-100k": 0.5, "steps-10k": 0.1}
METRICS = (plots.FINE_TUNED,)
PAPER = {
    "ImageNet, B/16 (%)": {
        "mean_colour.tuned": 79.9, "scratch.tuned": 77.91, "supervised.tuned": 84.15
    }
}  # fmt: skip


def few_labels(c, percent=10):
    """Only the labelled images of the small setting, in as many steps as for all images."""
    c.data.train_split, c.data.eval_split = f"train[:{percent}%]", "test"
    c.total_epochs *= 100 / percent
    c.eval_every_epochs *= 100 / percent


def trials(argument=""):
    setting = small.setting(argument)
    found = {}
    for seed in range(setting.seeds):
        begun = {}
        for name, (source, corrupted) in MASKED.items():
            source = f"configs/masked_patch.py:B/16,{source}"
            begun[name] = setting.load(source, seed, share=SHARES.get(name, 1.0))
            begun[name].objective.corrupted = corrupted
        for name, data in LABELLED.items():
            begun[name] = setting.load(f"configs/pretrain.py:B/16,{data}", seed)
        if setting.dataset:
            few_labels(begun["scratch"])
            few_labels(begun["on-imagenet"])
        for name, c in begun.items():
            found[f"{name}_{seed}"] = c
            tuned = setting.fine_tune(f"{name}_{seed}", c, "imagenet", seed)
            if setting.dataset:
                few_labels(tuned)
            found[f"{name}.tuned_{seed}"] = tuned
    return found


def draw(outcomes):
    """Accuracy after fine-tuning for every kind of pre-training."""
    figure, (axes,) = plots.figure(width=8)
    groups = plots.over_seeds(outcomes, plots.FINE_TUNED)
    tuned = {k.removesuffix(".tuned"): v for k, v in groups.items() if k.endswith(".tuned")}
    plots.categories(axes, tuned, "pre-training", "accuracy after fine-tuning (%)")
    return figure
