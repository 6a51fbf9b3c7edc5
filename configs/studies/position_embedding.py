"""Table 8 (Appendix D.4): which position embedding a ViT needs, and where it is added.

  vit-jax study --config=configs/studies/position_embedding.py:cifar10 --workdir=DIR
  vit-jax study --config=configs/studies/position_embedding.py --dry_run

Without an argument the rows are those of the paper: B/16 on JFT for 7 epochs each, of about 224
exaFLOPs (Table 6). With [DATASET[,EPOCHS]] a small model trains on any data, three seeds of each
row, some minutes each on two CPU cores (digits: half a minute).

Expected (Table 8, ImageNet 5-shot): none is worse (61.4%), all others agree (64.0 to 64.3%).
"""

from vit_jax.studies import plots, small

ROWS = (
    "none", "1d-stem", "1d-every", "1d-shared", "2d-stem", "2d-every", "2d-shared", "relative",
)  # fmt: skip
METRICS = (plots.FEW_SHOT, plots.FINE_TUNED)
PAPER = {
    "B/16 on JFT, ImageNet 5-shot (%)": {
        "none": 61.382, "1d-stem": 64.206, "1d-every": 63.964, "1d-shared": 64.292,
        "2d-stem": 64.001, "2d-every": 64.046, "2d-shared": 64.022, "relative": 64.032,
    }
}  # fmt: skip


def trials(argument=""):
    setting = small.setting(argument)
    return {
        f"{row}_{seed}": setting.watch(setting.load(f"configs/ablation.py:table8/{row}", seed))
        for row in ROWS
        for seed in range(setting.seeds)
    }


def draw(outcomes):
    """Few-shot accuracy of every seed, and the mean of each row."""
    figure, (axes,) = plots.figure(width=7)
    groups = plots.over_seeds(outcomes, plots.FEW_SHOT)
    plots.categories(axes, groups, "position embedding", "5-shot accuracy (%)")
    return figure
