"""A small model, set up to train on some of the devices."""

import jax

from vit_jax import config as configuration
from vit_jax.runtime import sharding
from vit_jax.training.setup import set_up

MODEL = dict(patch_size=4, hidden_size=64, num_layers=2, mlp_dim=128, num_heads=4)
ONE, MESH = dict(devices=1), dict(data=2, fsdp=2, tensor=2)


def prepared(axes=ONE, **settings):
    config = configuration.default()
    config.total_steps = 10
    config.batch_size = 64
    config.model.update(variant="debug", image_size=16, **MODEL)
    for key, text in settings.items():
        configuration.override(config, key.replace("__", "."), text)
    axes = dict(axes)
    devices = jax.devices()[: axes.pop("devices", 8)]
    return set_up(config, mesh=sharding.make_mesh(devices=devices, **axes))
