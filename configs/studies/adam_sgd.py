"""Table 7 (Appendix D.1): ResNets pre-trained with Adam or SGD, accuracy after fine-tuning.

  vit-jax study --config=configs/studies/adam_sgd.py:cifar10 --workdir=DIR
  vit-jax study --config=configs/studies/adam_sgd.py --dry_run

Without an argument R50x1 and R152x2 are pre-trained on JFT for 7 epochs (50 and 563 exaFLOPs, Table
6) and fine-tuned on five data sets (Table 4; with the learning rate of configs/finetune.py, without
a sweep). With [DATASET[,EPOCHS]] small ResNets are pre-trained and fine-tuned on any data, three
seeds each, some minutes each on two CPU cores.

Expected (Table 7, mean of the five): R50x1 89.33 with Adam and 88.79 with SGD; R152x2 94.01 and
93.72. Adam is better on most data sets.
"""

from vit_jax.studies import plots, small

ROWS = ("R50x1-adam", "R50x1-sgd", "R152x2-adam", "R152x2-sgd")
TARGETS = ("imagenet", "cifar10", "cifar100", "pets", "flowers")
METRICS = (plots.FINE_TUNED,)
TABLE_7 = {
    "R50x1-adam": (77.54, 97.67, 86.07, 91.11, 94.26),
    "R50x1-sgd": (78.24, 97.46, 85.17, 91.00, 92.06),
    "R152x2-adam": (84.97, 99.06, 92.05, 95.37, 98.62),
    "R152x2-sgd": (84.37, 99.07, 91.06, 94.79, 99.32),
}
PAPER = {
    "top-1 (%)": {
        f"{row}.{target}": accuracy
        for row, found in TABLE_7.items()
        for target, accuracy in zip(TARGETS, found, strict=True)
    }
}


def trials(argument=""):
    setting = small.setting(argument)
    found = {}
    for row in ROWS:
        for seed in range(setting.seeds):
            c = setting.load(f"configs/ablation.py:table7/{row}", seed)
            found[f"{row}_{seed}"] = c
            for target in setting.targets(TARGETS):
                name = f"{row}.{target if target in TARGETS else 'own'}_{seed}"
                found[name] = setting.fine_tune(f"{row}_{seed}", c, target, seed)
    return found


def draw(outcomes):
    """Accuracy after fine-tuning, the mean over the data sets and each of them."""
    figure, (axes,) = plots.figure(width=6)
    targets = dict.fromkeys(
        group.partition(".")[2] for group in map(plots.group_of, outcomes) if "." in group
    )
    for number, target in enumerate(targets):
        values = [
            plots.over_seeds(outcomes, plots.FINE_TUNED).get(f"{row}.{target}", []) for row in ROWS
        ]
        plots.dots(axes, range(len(ROWS)), values, target, f"C{number}", line=False)
    axes.set_xticks(range(len(ROWS)), ROWS)
    plots.style(axes, "pre-trained with", "accuracy after fine-tuning (%)")
    return figure
