"""Figure 8 (Appendix D.2): depth, width, MLP width and patch size, one at a time and together.

  vit-jax study --config=configs/studies/shape.py:cifar10 --workdir=DIR
  vit-jax study --config=configs/studies/shape.py --dry_run

Without an argument the rows are those of the paper, around 8 layers of width 1024 with patches of
32, on JFT for 7 epochs. With [DATASET[,EPOCHS]] a model with 1/32 of the width trains on images of
24 pixels, with 4 to 64 patches; three seeds of each row, up to some minutes each on two CPU cores.
Compute is training FLOPs per image, relative to the base.

Expected (Figure 8): depth helps most, visibly up to 64 layers but less beyond 16; width least;
smaller patches help without more parameters; scaling all dimensions together is robust.
"""

from vit_jax import config as configuration
from vit_jax.studies import estimate, plots, small

CURVES = {
    "depth": ("depth-1", "depth-2", "depth-4", "base", "depth-16", "depth-32", "depth-64"),
    "patch size": ("patch-56", "base", "patch-28", "patch-16", "patch-14"),
    "MLP width": ("mlp-512", "mlp-1024", "base", "mlp-4096", "mlp-8192"),
    "width": ("width-256", "width-512", "base", "width-2048"),
    "all": ("all-half", "base", "all-double"),
}
ROWS = tuple(dict.fromkeys(row for rows in CURVES.values() for row in rows))
PATCHES = {56: 12, 32: 8, 28: 6, 16: 4, 14: 3}  # for 24 pixels, instead of 224
METRICS = (plots.FEW_SHOT, plots.FINE_TUNED)


def shape(row):
    """The small model of a row."""
    model = configuration.load(f"configs/ablation.py:fig8/{row}").model
    return dict(
        image_size=24, patch_size=PATCHES[model.patch_size], num_layers=model.num_layers,
        hidden_size=model.hidden_size // 32, mlp_dim=model.mlp_dim // 32,
        num_heads=model.num_heads // 4, scan=model.num_layers > 8,
    )  # fmt: skip


def trials(argument=""):
    setting = small.setting(argument)
    return {
        f"{row}_{seed}": setting.watch(
            setting.load(f"configs/ablation.py:fig8/{row}", seed, **shape(row))
        )
        for row in ROWS
        for seed in range(setting.seeds)
    }


def draw(outcomes):
    """Few-shot accuracy against relative compute, a curve per dimension."""
    figure, (axes,) = plots.figure(width=6.5)
    groups = plots.over_seeds(outcomes, plots.FEW_SHOT)
    compute = {
        plots.group_of(name): estimate.flops_per_image(outcome.config)
        for name, outcome in outcomes.items()
    }
    base = compute.get("base", 1)
    for number, (curve, rows) in enumerate(CURVES.items()):
        rows = [row for row in rows if groups.get(row)]
        places = [compute[row] / base for row in rows]
        plots.dots(axes, places, [groups[row] for row in rows], curve, f"C{number}")
    plots.style(axes, "relative compute", "5-shot accuracy (%)", log=True)
    return figure
