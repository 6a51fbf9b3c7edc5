"""Section 4.1: whether linear few-shot accuracy predicts accuracy after fine-tuning.

  vit-jax study --config=configs/studies/few_shot.py:cifar10 --workdir=DIR
  vit-jax study --config=configs/studies/few_shot.py --dry_run

The paper uses it where fine-tuning is too expensive (Figures 4, 8, 9, 13; Table 8). Here the same
models are evaluated both ways: ImageNet 5-shot from the frozen pre-trained model, and fine-tuned on
ImageNet at 384 pixels. Without an argument they are pre-trained on JFT for Table 3's epochs. With
[DATASET[,EPOCHS]] small ones are pre-trained on any data for a quarter, half or all of the epochs;
three seeds each, some minutes each on two CPU cores. The correlation is of ranks.

Expected: the two agree on which model is better. Published are the numbers of Table 5.
"""

from vit_jax.studies import plots, small

MODELS = ("B/32", "B/16", "L/32", "L/16", "H/14", "R50x1", "R152x2")
SHARES = (0.25, 0.5, 1.0)
METRICS = (plots.FEW_SHOT, plots.FINE_TUNED)
PAPER = {
    "ImageNet after fine-tuning (%)": {
        "B-32.tuned": 80.73, "B-16.tuned": 84.15, "L-32.tuned": 84.37, "L-16.tuned": 87.12,
        "H-14.tuned": 88.04, "R50x1.tuned": 77.54, "R152x2.tuned": 84.97,
    }
}  # fmt: skip


def trials(argument=""):
    setting = small.setting(argument)
    variants = ("B/32", "B/16", "R50x1") if setting.dataset else MODELS
    found = {}
    for variant in variants:
        for share in SHARES if setting.dataset else (1.0,):
            for seed in range(setting.seeds):
                group = variant.replace("/", "-") + (f"-{share:g}" if setting.dataset else "")
                epochs = 14 if variant == "L/16" else 0
                source = f"configs/pretrain.py:{variant},jft,{epochs}"
                c = setting.watch(setting.load(source, seed, share=share))
                found[f"{group}_{seed}"] = c
                found[f"{group}.tuned_{seed}"] = setting.fine_tune(
                    f"{group}_{seed}", c, "imagenet", seed
                )
    return found


def draw(outcomes):
    """Accuracy after fine-tuning against few-shot accuracy, one dot per model."""
    figure, (axes,) = plots.figure()
    pairs = []
    for name, outcome in outcomes.items():
        group, _, seed = name.rpartition("_")
        x = plots.value(outcome, plots.FEW_SHOT)
        y = plots.value(outcomes.get(f"{group}.tuned_{seed}"), plots.FINE_TUNED)
        if x is not None and y is not None:
            pairs.append((x, y))
    correlation = plots.rank_correlation(pairs)
    axes.plot(
        [x for x, _ in pairs], [y for _, y in pairs], "o", alpha=0.6,
        label="" if correlation is None else f"rank correlation {correlation:.2f}",
    )  # fmt: skip
    plots.style(axes, "5-shot accuracy (%)", "accuracy after fine-tuning (%)")
    return figure
