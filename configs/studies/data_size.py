"""Figures 3 and 4 (section 4.3): how much data a ViT needs, against ResNets.

  vit-jax study --config=configs/studies/data_size.py:cifar10 --workdir=DIR
  vit-jax study --config=configs/studies/data_size.py --dry_run

Trials `part-...` are Figure 4: random parts of the data, each inside the next one, for the same
epochs and without more regularisation (configs/few_shot.py); the figure shows linear 5-shot
accuracy at the best evaluation, as with early stopping. Trials `full-...` are Figure 3: models that
are pre-trained on data sets of increasing size and then fine-tuned.

Parts are the first records of the split: those of a folder are in the order of a hash of their
paths, and those of TFDS are shuffled as they are prepared, so that a part is a random sample, not
stratified, and contained in larger ones. All seeds use the same parts.

Without an argument these are the paper's: 9, 30, 90 and 303 million images of JFT; ImageNet,
ImageNet-21k and JFT. With [DATASET[,EPOCHS]] they are 3, 10, 30 and 100% of any data set with
splits train and test, and small models; three seeds each, up to some minutes each on two CPU cores.

Expected (section 4.3): on the smallest part B/32 is far behind R50x1, and ahead from 90M images on;
L/16 against R152x2 likewise. On ImageNet L is worse than B, on ImageNet-21k they agree, on JFT L is
better (Table 5).
"""

from vit_jax.studies import plots, small

PARTS = {"9M": 9_000_000, "30M": 30_000_000, "90M": 90_000_000, "300M": 0}
SHARES = {"3%": 3, "10%": 10, "30%": 30, "100%": 100}
MODELS = ("L/16", "L/32", "B/32", "b/32", "R50x1", "R152x2")
FULL_MODELS = ("B/32", "B/16", "L/32", "L/16", "H/14")
#: Figure 3's data sets, and the part of the small setting that stands for each.
FULL = {"imagenet": "10%", "imagenet21k": "30%", "jft": "100%"}
EPOCHS = {("jft", "L/16"): 14}  # of Table 5; the others are the first of Table 3
METRICS = (plots.FEW_SHOT, f"best/{plots.FEW_SHOT}", plots.FINE_TUNED)
TABLE_5 = {  # ImageNet after fine-tuning
    "imagenet": dict(zip(FULL_MODELS, (73.38, 77.91, 71.16, 76.53), strict=False)),
    "imagenet21k": dict(zip(FULL_MODELS, (81.28, 83.97, 80.99, 85.15, 85.13), strict=True)),
    "jft": dict(zip(FULL_MODELS, (80.73, 84.15, 84.37, 87.12, 88.04), strict=True)),
}
PAPER = {
    "ImageNet after fine-tuning, Table 5 (%)": {
        f"full-{data}-{variant.replace('/', '-')}.tuned": accuracy
        for data, row in TABLE_5.items()
        for variant, accuracy in row.items()
    }
}


def part(setting, variant, size, seed):
    """A trial of Figure 4."""
    count = 0 if setting.dataset else PARTS[size]
    c = setting.load(f"configs/few_shot.py:{variant},jft,{count}", seed)
    if setting.dataset:
        cut(c, size)
    setting.watch(c, every_epochs=setting.epochs / 5 if setting.dataset else 0.5)
    return stop_early(c)


def cut(c, share):
    """The first part of the training split; evaluation data are complete."""
    c.data.train_split, c.data.eval_split = f"train[:{SHARES[share]}%]", "test"


def stop_early(c):
    """Keeps the best checkpoint, and stops after five evaluations without a better one."""
    c.keep_best, c.patience = "eval/accuracy", 5
    return c


def trials(argument=""):
    setting = small.setting(argument)
    variants = ("B/16", "L/16", "R50x1") if setting.dataset else MODELS
    found = {}
    for variant in variants:
        for size in SHARES if setting.dataset else PARTS:
            for seed in range(setting.seeds):
                name = f"part-{size.rstrip('%')}-{variant.replace('/', '-')}_{seed}"
                found[name] = part(setting, variant, size, seed)
    for data, share in FULL.items():
        for variant in ("B/16", "L/16") if setting.dataset else FULL_MODELS:
            if (data, variant) == ("imagenet", "H/14"):
                continue  # not in Table 5
            for seed in range(setting.seeds):
                epochs = EPOCHS.get((data, variant), 0)
                c = setting.load(f"configs/pretrain.py:{variant},{data},{epochs}", seed)
                name = f"full-{data}-{variant.replace('/', '-')}"
                if setting.dataset:
                    cut(c, share)
                found[f"{name}_{seed}"] = stop_early(c)
                found[f"{name}.tuned_{seed}"] = setting.fine_tune(
                    f"{name}_{seed}", c, "imagenet", seed
                )
    return found


def draw(outcomes):
    """Figure 4's few-shot accuracy, at its best, and Figure 3's after fine-tuning."""
    figure, (parts, full) = plots.figure(2)
    best = plots.over_seeds(outcomes, plots.FEW_SHOT, "part-", best=True)
    tuned = plots.over_seeds(outcomes, plots.FINE_TUNED, "full-")
    tuned = {k.removesuffix(".tuned"): v for k, v in tuned.items() if k.endswith(".tuned")}
    for axes, groups in ((parts, best), (full, tuned)):
        sizes = list(dict.fromkeys(group.partition("-")[0] for group in groups))
        variants = dict.fromkeys(group.partition("-")[2] for group in groups)
        for number, variant in enumerate(variants):
            values = [groups.get(f"{size}-{variant}", []) for size in sizes]
            plots.dots(axes, range(len(sizes)), values, variant, f"C{number}")
        axes.set_xticks(range(len(sizes)), sizes)
    plots.style(parts, "part of the data (images, in small %)", "best 5-shot accuracy (%)")
    plots.style(full, "pre-trained on", "accuracy after fine-tuning (%)")
    return figure
