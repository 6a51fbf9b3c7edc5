"""Table 8 (Appendix D.4) in small: does a ViT need position embeddings, and of which kind?

  vit-jax study --config=configs/studies/position_embedding.py --workdir=DIR
  vit-jax study --config=configs/studies/position_embedding.py:folder:/data/pets,30 --workdir=DIR

The argument is [DATASET[,EPOCHS]]. Four kinds, with three seeds each, train a small model from
scratch with the same hyper-parameters. The paper's own setting is configs/ablation.py:table8/... .

Expected: in the paper, without position embeddings 0.614, with any kind 0.640 to 0.643 (ImageNet
5-shot of B/16 on JFT). Measured on digits, test accuracy, mean of three seeds: none 80.4%, 1-D
92.1%, 2-D 86.6%, relative 84.2%: without is behind here too, but the rest are not equal after 20
epochs of 1,437 images. Cost: twelve trials of 30 seconds each on two CPU cores.
"""

from matplotlib.figure import Figure

from vit_jax import config as configuration

KINDS = ("none", "1d", "2d", "relative")
SEEDS = 3


def trials(argument=""):
    values = configuration.arguments(argument, dataset="digits", epochs=20.0)
    found = {}
    for kind in KINDS:
        for seed in range(SEEDS):
            c = configuration.default()
            c.name = f"position embedding: {kind}"
            c.seed = seed
            c.model.variant = "debug"
            c.model.image_size = 16
            c.model.patch_size = 4
            c.model.hidden_size = 64
            c.model.num_layers = 4
            c.model.mlp_dim = 128
            c.model.num_heads = 4
            c.model.position_embedding = kind
            c.data.dataset = values["dataset"]
            c.augment = configuration.ConfigDict({"name": "pad_crop", "pad": 1, "flip": False})
            c.batch_size = 64
            c.total_epochs = values["epochs"]
            c.optimizer = configuration.ConfigDict({"name": "adam", "weight_decay": 0.1})
            c.schedule.learning_rate = 1e-3
            c.schedule.warmup_percent = 10.0
            c.gradient_clip_norm = 1.0
            found[f"{kind}_{seed}"] = c
    return found


def draw(outcomes):
    """Accuracy of every seed, and the mean of each kind."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for place, kind in enumerate(KINDS):
        found = [
            100 * outcomes[f"{kind}_{seed}"].metrics["eval/accuracy"]
            for seed in range(SEEDS)
            if outcomes[f"{kind}_{seed}"].metrics
        ]
        if not found:
            continue
        axes.plot([place] * len(found), found, "o", color="tab:blue", alpha=0.6)
        mean = sum(found) / len(found)
        axes.plot([place - 0.25, place + 0.25], [mean, mean], color="tab:blue")
        axes.annotate(f"{mean:.1f}%", (place + 0.28, mean), va="center", fontsize=8)
    axes.set_xticks(range(len(KINDS)), KINDS)
    axes.set_xlim(-0.5, len(KINDS) - 0.3)
    axes.set_xlabel("position embedding")
    axes.set_ylabel("accuracy (%)")
    axes.grid(axis="y", alpha=0.3)
    return figure
