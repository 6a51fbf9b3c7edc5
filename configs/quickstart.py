"""Both stages of the paper in miniature, on scikit-learn's handwritten digits: no download.

  vit-jax train --config=configs/quickstart.py --workdir=/tmp/quickstart

Pre-trains a small ViT with Adam at 16 pixels, then fine-tunes it with SGD at 20: the head is
replaced and the position embeddings are interpolated, as in sections 3.2 and 4.1.

Cost: about a minute on 2 CPU cores. Expected: 98% of the 360 test digits.
"""

from vit_jax import config as configuration

MODEL = dict(patch_size=4, hidden_size=64, num_layers=3, mlp_dim=128, num_heads=4)


def stage(name, size):
    c = configuration.default()
    c.name = name
    c.model.update(variant="debug", image_size=size, **MODEL)
    c.data.dataset = "digits"
    # Digits must not be flipped; a shift of one pixel does not change them.
    c.augment = configuration.ConfigDict({"name": "pad_crop", "pad": 1, "flip": False})
    c.batch_size = 32
    c.gradient_clip_norm = 1.0
    c.log_every_steps = 100
    c.checkpoint_every_steps = 500
    return c


def get_config():
    pretrain = stage("pre-train on digits at 16 pixels", size=16)
    pretrain.model.representation_size = "hidden"
    pretrain.model.head_bias = -2.3
    pretrain.total_epochs = 50.0
    pretrain.eval_every_epochs = 10.0
    pretrain.optimizer = configuration.ConfigDict({"name": "adam", "weight_decay": 0.1})
    pretrain.loss.name = "sigmoid_cross_entropy"
    pretrain.schedule.update(
        decay="linear", learning_rate=1.5e-3, final_learning_rate=1e-5, warmup_steps=100
    )

    c = stage("fine-tune on digits at 20 pixels", size=20)
    c.pretrain = pretrain
    c.total_epochs = 15.0
    c.eval_every_epochs = 5.0
    c.optimizer = configuration.ConfigDict({"name": "sgd", "momentum": 0.9})
    c.schedule.update(decay="cosine", learning_rate=0.03, warmup_steps=50)
    c.loss.label_smoothing = 0.1
    return c
