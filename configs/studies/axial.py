"""Figure 13 (Appendix D.6): axial attention against ViTs and a ResNet, accuracy against compute.

  vit-jax study --config=configs/studies/axial.py:cifar10 --workdir=DIR
  vit-jax study --config=configs/studies/axial.py --dry_run

Without an argument the rows are those of the paper, on JFT for 7 epochs each. With
[DATASET[,EPOCHS]] small models train on any data, three seeds of each row, some minutes each on two
CPU cores.

Expected (Figure 13): an axial ViT is better than the ViT with the same patches and costs more, by
another MLP in each block; an axial ResNet is better than its ResNet and slow.
"""

from vit_jax.studies import estimate, plots, small

ROWS = ("R50x1", "Axial-R50x1", "B/32", "Axial-B/32", "B/16", "Axial-B/16")
METRICS = (plots.FEW_SHOT, plots.FINE_TUNED)


def trials(argument=""):
    setting = small.setting(argument)
    return {
        f"{row.replace('/', '-')}_{seed}": setting.watch(
            setting.load(f"configs/ablation.py:fig13/{row}", seed)
        )
        for row in ROWS
        for seed in range(setting.seeds)
    }


def draw(outcomes):
    """Few-shot accuracy against the training FLOPs of an image."""
    figure, (axes,) = plots.figure(width=6)
    groups = plots.over_seeds(outcomes, plots.FEW_SHOT)
    for number, (row, values) in enumerate(groups.items()):
        outcome = next(o for name, o in outcomes.items() if plots.group_of(name) == row)
        cost = estimate.flops_per_image(outcome.config) / 1e9
        plots.dots(axes, [cost], [values], row, f"C{number}", line=False)
    plots.style(axes, "training GFLOPs of an image", "5-shot accuracy (%)", log=True)
    return figure
