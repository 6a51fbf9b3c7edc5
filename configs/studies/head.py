"""Figure 9 (Appendix D.3): the class token against global average pooling.

  vit-jax study --config=configs/studies/head.py:cifar10 --workdir=DIR
  vit-jax study --config=configs/studies/head.py --dry_run

Without an argument the rows are those of the paper, on JFT for 7 epochs each, of about 224 exaFLOPs
(Table 6); the paper does not name the model, here it is B/16. With [DATASET[,EPOCHS]] a small model
trains on any data, three seeds of each row, some minutes each on two CPU cores.

Expected (Figure 9): the class token at 8e-4 and average pooling at 3e-4 agree; average pooling at
8e-4 is worse: the difference was due to the learning rate, not the head.
"""

from vit_jax.studies import plots, small

ROWS = ("token-8e-4", "gap-3e-4", "gap-8e-4")
METRICS = (plots.FEW_SHOT, plots.FINE_TUNED)


def trials(argument=""):
    setting = small.setting(argument)
    return {
        f"{row}_{seed}": setting.watch(
            setting.load(f"configs/ablation.py:fig9/{row}", seed),
            every_epochs=setting.epochs / 5 if setting.dataset else 1.0,
        )
        for row in ROWS
        for seed in range(setting.seeds)
    }


def draw(outcomes):
    """Few-shot accuracy during training, of the first seed, and at the end, of all."""
    figure, (over_steps, at_end) = plots.figure(2)
    for row in ROWS:
        found = outcomes.get(f"{row}_0")
        plots.curve(over_steps, found, plots.FEW_SHOT, row)
    plots.style(over_steps, "step", "5-shot accuracy (%)")
    groups = plots.over_seeds(outcomes, plots.FEW_SHOT)
    plots.categories(at_end, groups, "head and learning rate", "5-shot accuracy (%)")
    return figure
