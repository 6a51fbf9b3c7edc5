"""Supervised pre-training, Table 3 (section 4.1, Appendix B.1): every row.

  vit-jax train --config=configs/pretrain.py:L/16,imagenet21k --workdir=DIR

The argument is VARIANT,DATASET[,EPOCHS]. DATASET is imagenet, imagenet21k or jft, which choose the
paper's hyper-parameters, and the data is read from TFDS; any other data spec (folder:PATH,
tfds:NAME, hf:ORG/NAME) trains with the hyper-parameters of `like=`, e.g.
`B/16,folder:/data/plants,like=imagenet`. JFT-300M is private: give your own copy with `like=jft`.

`sgd=true` pre-trains as BiT did, for Table 7's comparison of Adam with SGD: 0.03 per 256 images,
momentum 0.9, weight decay 1e-4, divided by ten at 10, 23, 30 and 37 of 40 epochs, scaled to the
number of epochs (the paper does not say how it did so).

Adam(0.9, 0.999), batch 4096, 10k warm-up steps, 224 pixels, weight decay on every parameter times
the current learning rate, sigmoid cross-entropy, a hidden tanh layer in the head. Gradients are
clipped at global norm 1 on ImageNet only. Linear decay ends at 1e-5.

Cost in TPUv3-core-days: L/16 on ImageNet-21k 230, L/16 on JFT 680, H/14 on JFT 2,500 (Table 2).
Expected top-1 of the pre-trained model at 224 pixels on held-out images: ImageNet-21k B/16 47.9,
B/32 44.0, L/16 49.9, L/32 45.4, H/14 49.1; ImageNet from scratch B/16 74.8, B/32 69.2, L/16 72.6,
L/32 66.9. Table 5 has what they reach after fine-tuning.
"""

from vit_jax import config as configuration

#   data: TFDS name, classes, examples, epochs, weight decay, dropout, decay, clip
DATASETS = {
    "imagenet": dict(
        dataset="tfds:imagenet2012", train_split="train[:99%]", eval_split="train[99%:]",
        epochs=300, weight_decay=0.3, dropout_rate=0.1, decay="cosine", clip=1.0, head_bias=-6.9,
    ),
    "imagenet21k": dict(
        dataset="tfds:imagenet21k", train_split="train[102400:]", eval_split="train[:102400]",
        epochs=90, weight_decay=0.03, dropout_rate=0.1, decay="linear", clip=None, head_bias=-10.0,
        label_smoothing=1e-4,
    ),
    "jft": dict(
        dataset="tfds:jft", train_split="train", eval_split="validation",
        epochs=7, weight_decay=0.1, dropout_rate=0.0, decay="linear", clip=None, head_bias=-10.0,
    ),
}  # fmt: skip

# JFT: the learning rate depends on the model (Table 3); H/14 trains 14 epochs.
JFT_LEARNING_RATE = {
    "B/16": 8e-4, "B/32": 8e-4, "L/32": 6e-4, "L/16": 4e-4, "H/14": 3e-4,
    "R50x1": 1e-3, "R50x2": 1e-3, "R101x1": 8e-4, "R152x1": 6e-4, "R152x2": 6e-4,
    "R50+B/16": 8e-4, "R50+B/32": 8e-4, "R50+L/32": 2e-4, "R50+L/16": 4e-4,
    "R200x3": 6e-4, "b/32": 8e-4,  # these are not in Table 3: as their counterparts
    "Axial-B/16": 8e-4, "Axial-B/32": 8e-4, "Axial-R50x1": 1e-3,
}  # fmt: skip
JFT_EPOCHS = {"H/14": 14, "R200x3": 14}
LEARNING_RATE = {"imagenet": 3e-3, "imagenet21k": 1e-3}


def get_config(argument=""):
    a = configuration.arguments(
        argument, variant="B/16", dataset="imagenet21k", epochs=0, like="imagenet21k", sgd=False
    )
    variant, dataset, like = a["variant"], a["dataset"], a["like"]
    own = ":" in dataset or dataset == "digits"
    row = configuration.choose(DATASETS, like if own else dataset, "like" if own else "dataset")
    like = like if own else dataset
    is_resnet = variant.removeprefix("Axial-").startswith("R") and "+" not in variant

    c = configuration.default()
    c.name = f"pre-train {variant} on {dataset}"
    c.model.variant = variant
    c.model.image_size = 224
    c.model.head_bias = row["head_bias"]
    if not is_resnet:
        c.model.representation_size = "hidden"
        c.model.dropout_rate = row["dropout_rate"]

    c.data.dataset = dataset if own else row["dataset"]
    if not own:
        c.data.train_split, c.data.eval_split = row["train_split"], row["eval_split"]
    c.augment = configuration.ConfigDict({"name": "inception_crop"})
    c.eval_preprocess = configuration.ConfigDict({"name": "resize_center_crop", "resize": 256})

    c.batch_size = 4096
    if like == "jft":
        c.total_epochs = float(a["epochs"] or JFT_EPOCHS.get(variant, row["epochs"]))
        learning_rate = configuration.choose(JFT_LEARNING_RATE, variant, "variant")
    else:
        c.total_epochs = float(a["epochs"] or row["epochs"])
        learning_rate = LEARNING_RATE[like]
    c.optimizer = configuration.ConfigDict(
        {"name": "adam", "beta1": 0.9, "beta2": 0.999, "weight_decay": row["weight_decay"]}
    )
    c.schedule.decay = row["decay"]
    c.schedule.learning_rate = learning_rate
    c.schedule.final_learning_rate = 1e-5 if row["decay"] == "linear" else 0.0
    c.schedule.warmup_steps = 10_000
    c.gradient_clip_norm = row["clip"]
    if a["sgd"]:
        c.optimizer = configuration.ConfigDict(
            {"name": "sgd", "weight_decay": 1e-4, "accumulator_dtype": "float32"}
        )
        c.schedule.update(decay="staircase", learning_rate=0.03 * c.batch_size / 256)
        c.schedule.update(final_learning_rate=0.0, warmup_steps=5_000)
        c.schedule.boundaries_percent = (25, 57.5, 75, 92.5)
    c.loss = configuration.ConfigDict(
        {"name": "sigmoid_cross_entropy", "label_smoothing": row.get("label_smoothing", 0.0)}
    )

    c.log_every_steps = 100
    c.eval_every_steps = 5_000
    c.checkpoint_every_steps = 1_000
    return c
