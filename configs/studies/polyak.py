"""Section 4.1, Table 2: fine-tuning with and without averaging the weights (Polyak).

  vit-jax study --config=configs/studies/polyak.py:cifar10 --workdir=DIR
  vit-jax study --config=configs/studies/polyak.py --dry_run

L/16 is pre-trained and fine-tuned on ImageNet at 512 pixels, 20,000 steps, with weights averaged by
0.9999 and without. Without an argument pre-training is on JFT for 14 epochs (1,567 exaFLOPs, Table
6). With [DATASET[,EPOCHS]] a small model is pre-trained and fine-tuned on any data with 0.99, since
its steps are about a hundredth; three seeds, some minutes each on two CPU cores.

Expected: the average is slightly better and varies less. Published is ImageNet with it, 87.76 ±
0.03 (Table 2); the paper does not give the accuracy without.
"""

from vit_jax.studies import plots, small

DECAYS = {"averaged": 0.9999, "last": None}
SMALL_DECAY = 0.99
METRICS = (plots.FINE_TUNED,)
PAPER = {"ImageNet, L/16 on JFT at 512 (%)": {"averaged": "87.76 ± 0.03"}}


def trials(argument=""):
    setting = small.setting(argument)
    found = {}
    for seed in range(setting.seeds):
        c = setting.load("configs/pretrain.py:L/16,jft,14", seed)
        found[f"pretrain_{seed}"] = c
        for name, decay in DECAYS.items():
            tuned = setting.fine_tune(f"pretrain_{seed}", c, "imagenet", seed, size=512)
            tuned.polyak_decay = SMALL_DECAY if decay and setting.dataset else decay
            found[f"{name}_{seed}"] = tuned
    return found


def draw(outcomes):
    """Accuracy of the averaged and of the last weights."""
    figure, (axes,) = plots.figure()
    groups = plots.over_seeds(outcomes, plots.FINE_TUNED)
    groups.pop("pretrain", None)
    plots.categories(axes, groups, "weights", "accuracy after fine-tuning (%)")
    return figure
