"""Section 3.2: fine-tuning at a higher resolution than pre-training.

  vit-jax study --config=configs/studies/resolution.py:cifar10 --workdir=DIR
  vit-jax study --config=configs/studies/resolution.py --dry_run

L/16 is pre-trained at 224 pixels and fine-tuned on ImageNet at 224, 384 and 512; the position
embeddings are resized, and there are more patches. Without an argument pre-training is on JFT for
14 epochs (1,567 exaFLOPs, Table 6). With [DATASET[,EPOCHS]] a small model is pre-trained at 16
pixels and fine-tuned at 16, 24 and 32 on any data; three seeds, some minutes each on two CPU cores.

Expected: higher is better. Published for ImageNet are L/16 at 384, 87.12 (Table 5), and 87.76 at
512, where the weights are also averaged (Table 2; see configs/studies/polyak.py).
"""

from vit_jax.studies import plots, small

SIZES = {224: 16, 384: 24, 512: 32}  # and those of the small setting
METRICS = (plots.FINE_TUNED,)
PAPER = {"ImageNet, L/16 on JFT (%)": {"at-384": 87.12}}


def trials(argument=""):
    setting = small.setting(argument)
    found = {}
    for seed in range(setting.seeds):
        c = setting.load("configs/pretrain.py:L/16,jft,14", seed, image_size=SIZES[224])
        found[f"pretrain_{seed}"] = c
        for size, pixels in SIZES.items():
            found[f"at-{size}_{seed}"] = setting.fine_tune(
                f"pretrain_{seed}", c, "imagenet", seed, size=size, image_size=pixels
            )
            found[f"at-{size}_{seed}"].polyak_decay = None
    return found


def draw(outcomes):
    """Accuracy at every fine-tuning resolution."""
    figure, (axes,) = plots.figure()
    groups = plots.over_seeds(outcomes, plots.FINE_TUNED, "at-")
    plots.dots(axes, range(len(groups)), list(groups.values()))
    pixels = {
        plots.group_of(name): str(o.config.model.image_size)
        for name, o in outcomes.items() if name.startswith("at-")
    }  # fmt: skip
    axes.set_xticks(range(len(groups)), [pixels[f"at-{group}"] for group in groups])
    plots.style(axes, "fine-tuned at (pixels)", "accuracy (%)")
    return figure
