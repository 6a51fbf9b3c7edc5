"""Remat policies: what each keeps and computes again, and that none changes a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from often import often

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.numerics import remat

VIT = dict(variant="debug", image_size=32, num_classes=5, num_layers=3, head_bias=0.5)
RESNET = dict(variant="R50x1", image_size=32, num_classes=5, depths=(2,))


def gradient(config):
    """The jitted gradient of a loss, as training compiles it, and its arguments as shapes."""
    _, apply = models.as_functions(config)

    def loss(params, images):
        return (apply(params, images, key=jax.random.key(1)) ** 2).sum()

    run = jax.jit(jax.grad(loss), compiler_options=remat.compiler_options(config.remat))
    images = jax.ShapeDtypeStruct((32, *config.image_size, 3), jnp.float32)
    return run, (models.abstract_params(config), images)


def temporaries(settings, policy):
    run, shapes = gradient(models.get_config(**settings, remat=policy))
    return run.lower(*shapes).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("extra", often({"scan": True}, weekly=[{}]), ids=str)
def test_each_policy_keeps_less_than_the_one_before(extra):
    sizes = [temporaries({**VIT, **extra}, policy) for policy in remat.POLICIES]
    assert sizes[1] < 0.8 * sizes[0], sizes
    assert sizes[2] < 0.8 * sizes[1], sizes


def test_a_resnet_keeps_less_too():
    none, products, full = (temporaries(RESNET, policy) for policy in remat.POLICIES)
    assert full < products < none


def test_products_are_kept_and_the_rest_is_computed_again():
    def operations(policy):
        run, shapes = gradient(models.get_config(**VIT, remat=policy))
        text = run.lower(*shapes).compile().as_text()
        return text.count(" dot("), text.count(" tanh(")

    dots, tanhs = zip(*(operations(policy) for policy in remat.POLICIES), strict=True)
    layers = VIT["num_layers"]
    # The second product of the MLP is not needed, and of attention, two have no parameters.
    assert dots == (dots[0], dots[0] + 2 * layers, dots[0] + 5 * layers)
    assert tanhs == (2 * layers,) * 3  # activations are cheap, so none keeps theirs


@pytest.mark.parametrize("policy", often("products", weekly=["full"]))
def test_gradients_are_the_same(policy):
    config = models.get_config(**VIT, dropout_rate=0.1)
    run, (_, images) = gradient(config)
    params = jax.jit(models.as_functions(config)[0])(jax.random.key(0))
    params["head/kernel"] += 0.1
    x = jax.random.normal(jax.random.key(2), images.shape)
    again, _ = gradient(models.replace(config, remat=policy))
    wanted, found = run(params, x), again(params, x)
    for path in wanted:
        np.testing.assert_allclose(found[path], wanted[path], rtol=1e-4, atol=1e-4, err_msg=path)


def test_true_and_false_are_names_as_well():
    assert [remat.name_of(setting) for setting in (False, True)] == ["none", "full"]


@pytest.mark.parametrize("settings", [VIT, RESNET], ids=["vit", "resnet"])
def test_an_unknown_policy_names_the_nearest(settings):
    with pytest.raises(UserError, match=r"model\.remat='product' does not exist.*'products'"):
        models.get_config(**settings, remat="product")
