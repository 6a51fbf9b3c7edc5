"""Figure 5, Table 6 (section 4.4): transfer accuracy against the compute of pre-training.

  vit-jax study --config=configs/studies/scaling.py:cifar10 --workdir=DIR
  vit-jax study --config=configs/studies/scaling.py --dry_run

Without an argument the rows are those of Table 6: eighteen models on JFT, fine-tuned on five data
sets; 15,721 exaFLOPs of pre-training. With [DATASET[,EPOCHS]] small ViTs and ResNets are
pre-trained for one or two times the epochs and fine-tuned on any data, three seeds each, up to some
minutes each on two CPU cores. Compute is counted by `models/cost.py`.

The figure shows all models, the Pareto front, and a power law of error over compute for each
family, with a 95% interval of the exponent. Expected (section 4.4): ViTs reach the same accuracy
with 2 to 4 times less compute than ResNets; hybrids are better at small budgets only; nothing
saturates.
"""

from vit_jax.studies import plots, small
from vit_jax.studies.estimate import flops_per_image

TARGETS = ("imagenet", "cifar10", "cifar100", "pets", "flowers")
#: Table 6: (variant, epochs) and the accuracy on TARGETS.
TABLE_6 = {
    ("B/32", 7): (80.73, 98.61, 90.49, 93.40, 99.27),
    ("B/16", 7): (84.15, 99.00, 91.87, 95.80, 99.56),
    ("L/32", 7): (84.37, 99.19, 92.52, 95.83, 99.45),
    ("L/16", 7): (86.30, 99.38, 93.46, 96.81, 99.66),
    ("L/16", 14): (87.12, 99.38, 94.04, 97.11, 99.56),
    ("H/14", 14): (88.08, 99.50, 94.71, 97.11, 99.71),
    ("R50x1", 7): (77.54, 97.67, 86.07, 91.11, 94.26),
    ("R50x2", 7): (82.12, 98.29, 89.20, 93.43, 97.02),
    ("R101x1", 7): (80.67, 98.48, 89.17, 94.08, 95.95),
    ("R152x1", 7): (81.88, 98.82, 90.22, 94.17, 96.94),
    ("R152x2", 7): (84.97, 99.06, 92.05, 95.37, 98.62),
    ("R152x2", 14): (85.56, 99.24, 91.92, 95.75, 98.75),
    ("R200x3", 14): (87.22, 99.34, 93.53, 96.32, 99.04),
    ("R50+B/32", 7): (84.90, 99.01, 92.24, 95.75, 99.46),
    ("R50+B/16", 7): (85.58, 99.14, 92.63, 96.65, 99.40),
    ("R50+L/32", 7): (85.68, 99.24, 92.93, 96.97, 99.43),
    ("R50+L/16", 7): (86.60, 99.18, 93.64, 97.03, 99.40),
    ("R50+L/16", 14): (87.12, 99.31, 93.89, 97.36, 99.11),
}
SMALL = tuple(
    (variant, times)
    for variant in ("b/32", "B/32", "B/16", "L/16", "H/14", "R50x1", "R152x2")
    for times in (1, 2)
)
METRICS = (plots.FINE_TUNED,)


def named(variant, epochs):
    return f"{variant.replace('/', '-')}-{epochs}ep"


PAPER = {
    "top-1 (%)": {
        f"{named(*row)}.{target}": accuracy
        for row, found in TABLE_6.items()
        for target, accuracy in zip(TARGETS, found, strict=True)
    }
}


def trials(argument=""):
    setting = small.setting(argument)
    found = {}
    for variant, epochs in SMALL if setting.dataset else TABLE_6:
        for seed in range(setting.seeds):
            source = f"configs/pretrain.py:{variant},jft,{7 if setting.dataset else epochs}"
            c = setting.load(source, seed, share=epochs)
            parent = f"{named(variant, epochs)}_{seed}"
            found[parent] = c
            for target in setting.targets(TARGETS):
                name = f"{named(variant, epochs)}.{target if target in TARGETS else 'own'}_{seed}"
                found[name] = setting.fine_tune(parent, c, target, seed)
    return found


def points(outcomes):
    """{family: [(training FLOPs, mean error over the targets in percent), ...]}."""
    found = {}
    for name, outcome in outcomes.items():
        if "." in name or outcome.metrics is None or "step" not in outcome.metrics:
            continue
        group, _, seed = name.rpartition("_")
        values = [
            plots.value(other, plots.FINE_TUNED)
            for child, other in outcomes.items()
            if child.startswith(f"{group}.") and child.endswith(f"_{seed}")
        ]
        values = [v for v in values if v is not None]
        if not values:
            continue
        images = outcome.metrics["step"] * outcome.config.batch_size
        error = 100 - sum(values) / len(values)
        variant = outcome.config.model.variant
        is_hybrid, is_resnet = "+" in variant, variant.startswith("R")
        family = "hybrid" if is_hybrid else "ResNet" if is_resnet else "ViT"
        point = (images * flops_per_image(outcome.config), error)
        found.setdefault(family, []).append(point)
    return found


def draw(outcomes):
    """The error after fine-tuning against compute, both logarithmic."""
    figure, (axes,) = plots.figure(width=7)
    families = points(outcomes)
    for number, (family, found) in enumerate(families.items()):
        x, y = zip(*found, strict=True)
        axes.plot(x, y, "o", color=f"C{number}", alpha=0.6, label=family)
        if fit := plots.power_law(x, y):
            ends = [min(x), max(x)]
            label = f"{fit.exponent:.3f} [{fit.low:.3f}, {fit.high:.3f}]"
            line = [fit.scale * end**fit.exponent for end in ends]
            axes.plot(ends, line, "--", color=f"C{number}", label=f"{family}: exponent {label}")
    every = [(x, -y) for found in families.values() for x, y in found]
    front = plots.pareto(every)
    axes.step(
        [x for x, _ in front], [-y for _, y in front], where="post", color="0.6",
        label="Pareto front",
    )  # fmt: skip
    if every:
        axes.set_yscale("log")
    plots.style(axes, "training FLOPs", "mean error after fine-tuning (%)", log=True)
    return figure
