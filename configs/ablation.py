"""One row of an ablation of the paper each: Tables 7 and 8, Figures 8, 9 and 13.

  vit-jax train --config=configs/ablation.py:table8/2d-every --workdir=DIR
  vit-jax train --config=configs/ablation.py:fig8/depth-64,tfds:imagenet21k --workdir=DIR

The argument is ROW[,DATASET[,EPOCHS]]; `python configs/ablation.py` lists the rows. All are
pre-training runs at 224 pixels with the hyper-parameters of Table 3 for JFT, on your copy of JFT or
any other data set, and are compared by ImageNet 5-shot accuracy.

Expected, ImageNet 5-shot. Table 8 (B/16): none 0.614; 1-D 0.642 at the stem, 0.640 in every layer,
0.643 shared; 2-D 0.640, 0.640, 0.640; relative 0.640. Figure 9: the class token at 8e-4 and GAP at
3e-4 agree, GAP at 8e-4 is worse. Figure 13, read off: R50 0.50, Axial-R50 0.56, B/32 0.565,
Axial-B/32 0.585, B/16 0.64, Axial-B/16 0.65. Figure 8: depth helps most, width least.
Cost: each about that of B/16 or B/32 on JFT for 7 epochs, 224 or 55 exaFLOPs (Table 6).
"""

from vit_jax import config as configuration

#: Figure 8's base: 8 layers, 1024 wide, MLP 2048, patches of 32. The paper does not state the
#: number of heads; 16 is that of the other models of this width.
BASE = dict(
    variant="L/32", num_layers=8, hidden_size=1024, mlp_dim=2048, num_heads=16, patch_size=32
)

ROWS = {
    # Table 7: Adam against SGD for ResNets.
    **{
        f"table7/{variant}-{optimizer}": dict(variant=variant, sgd=optimizer == "sgd")
        for variant in ("R50x1", "R152x2")
        for optimizer in ("adam", "sgd")
    },
    # Table 8: kinds of position embedding, and where they are added.
    "table8/none": dict(variant="B/16", position_embedding="none"),
    **{
        f"table8/{kind}-{place}": dict(
            variant="B/16", position_embedding=kind, position_embedding_at=place
        )
        for kind in ("1d", "2d")
        for place in ("stem", "every", "shared")
    },
    "table8/relative": dict(variant="B/16", position_embedding="relative"),
    # Figure 8: one side of the shape at a time, and all together.
    "fig8/base": BASE,
    **{f"fig8/depth-{n}": {**BASE, "num_layers": n} for n in (1, 2, 4, 16, 32, 64)},
    **{f"fig8/patch-{n}": {**BASE, "patch_size": n} for n in (56, 28, 16, 14)},
    **{f"fig8/mlp-{n}": {**BASE, "mlp_dim": n} for n in (512, 1024, 4096, 8192)},
    **{f"fig8/width-{n}": {**BASE, "hidden_size": n} for n in (256, 512, 2048)},
    "fig8/all-half": {
        **BASE, "num_layers": 4, "hidden_size": 512, "mlp_dim": 1024, "num_heads": 8
    },
    "fig8/all-double": {
        **BASE, "num_layers": 16, "hidden_size": 2048, "mlp_dim": 4096, "num_heads": 32,
        "patch_size": 16,
    },
    # Figure 9: the class token against global average pooling.
    "fig9/token-8e-4": dict(variant="B/16", classifier="token", learning_rate=8e-4),
    "fig9/gap-8e-4": dict(variant="B/16", classifier="gap", learning_rate=8e-4, linear_head=True),
    "fig9/gap-3e-4": dict(variant="B/16", classifier="gap", learning_rate=3e-4, linear_head=True),
    # Figure 13: axial attention.
    **{
        f"fig13/{variant}": dict(variant=variant)
        for variant in ("B/32", "B/16", "Axial-B/32", "Axial-B/16", "R50x1", "Axial-R50x1")
    },
}  # fmt: skip


def get_config(argument=""):
    a = configuration.arguments(argument, row="table8/1d-stem", dataset="jft", epochs=7)
    row = dict(configuration.choose(ROWS, a["row"], "row"))
    variant, sgd = row.pop("variant"), row.pop("sgd", False)
    learning_rate, linear_head = row.pop("learning_rate", None), row.pop("linear_head", False)

    c = configuration.load(
        f"configs/pretrain.py:{variant},{a['dataset']},{a['epochs']},like=jft,sgd={sgd}"
    )
    c.name = f"ablation {a['row']} on {a['dataset']}"
    c.model.update(row)
    if learning_rate is not None:
        c.schedule.learning_rate = learning_rate
    if linear_head:
        c.model.representation_size = None
    return c


if __name__ == "__main__":
    print("\n".join(ROWS))
