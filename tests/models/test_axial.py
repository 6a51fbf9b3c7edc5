"""Axial models (Appendix D.6): who attends to whom, by hand; and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.models import cost
from vit_jax.models.axial import AxialConv, RelativeAttention
from vit_jax.models.layers import Keys
from vit_jax.numerics import PLAIN

KEY = jax.random.key(3)
SMALL = dict(image_size=(32, 48), patch_size=8, hidden_size=16, mlp_dim=32, num_heads=2)


def make(**settings):
    config = models.get_config("Axial-B/32", **{**SMALL, "num_layers": 1, **settings})
    init, apply = models.as_functions(config)
    return config, jax.jit(init)(KEY), jax.jit(apply, static_argnames="return_intermediates")


@pytest.mark.parametrize("silent, axis", [("column", 0), ("row", 1)])
def test_each_half_attends_along_one_axis(silent, axis):
    """With one half's outputs at zero, a changed token changes its row (or column) and no other."""
    config, params, apply = make()
    for path in params:
        if f"/{silent}/attention/out" in path or f"/{silent}/mlp/dense2" in path:
            params[path] = jnp.zeros_like(params[path])
    x = jax.random.normal(KEY, (1, 32, 48, 3))
    changed = x.at[:, 8:16, 16:24].add(1.0)  # the token (1, 2) of the grid (4, 6)
    tokens = [apply(params, y, return_intermediates=True)[1]["block_0"] for y in (x, changed)]
    differs = (tokens[0] != tokens[1]).any(-1).reshape(config.grid)
    expected = np.zeros(config.grid, bool)
    if axis == 0:
        expected[1, :] = True
    else:
        expected[:, 2] = True
    np.testing.assert_array_equal(differs, expected)


def test_both_halves_of_a_block_reach_every_patch():
    _, params, apply = make()
    x = jax.random.normal(KEY, (1, 32, 48, 3))
    changed = x.at[:, 8:16, 16:24].add(1.0)
    tokens = [apply(params, y, return_intermediates=True)[1]["block_0"] for y in (x, changed)]
    assert (tokens[0] != tokens[1]).any(-1).all()


def test_axial_has_no_class_token_and_twice_the_blocks():
    axial, plain = models.get_config("Axial-B/16"), models.get_config("B/16", classifier="gap")
    block = 4 * 768 * 768 + 4 * 768 + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    assert cost.num_params(axial) - cost.num_params(plain) == 12 * block
    with pytest.raises(UserError, match="has no class token"):
        models.get_config("Axial-B/16", classifier="token")


def test_attention_cannot_be_returned():
    _, params, apply = make()
    with pytest.raises(UserError, match="along rows and columns"):
        apply(params, jnp.zeros((1, 32, 48, 3)), return_intermediates=("attention",))


def test_relative_attention_by_hand():
    layer = RelativeAttention(8, 2, 5, numerics=PLAIN, keys=Keys(KEY))
    x = jax.random.normal(KEY, (1, 1, 5, 8))
    got = layer(x)[0, 0]
    qkv = np.einsum("nc,cthe->thne", x[0, 0], layer.qkv.kernel[...]) + np.asarray(
        layer.qkv.bias[...]
    ).reshape(3, 2, 1, 4)
    table = np.asarray(layer.relative[...])
    for head in range(2):
        q, k, v = qkv[:, head]
        for i in range(5):
            r = table[:, [i - j + 4 for j in range(5)]]  # three of (5, 4)
            logits = [q[i] @ k[j] + q[i] @ r[0, j] + k[j] @ r[1, j] for j in range(5)]
            weights = np.asarray(jax.nn.softmax(np.array(logits) / 2.0))
            expected = sum(weights[j] * (v[j] + r[2, j]) for j in range(5))
            np.testing.assert_allclose(got[i, 4 * head : 4 * head + 4], expected, atol=1e-5)


@pytest.mark.parametrize("stride, shape", [(1, (5, 6)), (2, (3, 3))])
def test_the_stride_averages(stride, shape):
    layer = AxialConv(8, 2, stride, (5, 6), numerics=PLAIN, keys=Keys(KEY))
    assert layer(jax.random.normal(KEY, (2, 5, 6, 8))).shape == (2, *shape, 8)


def test_axial_resnet_runs_and_learns_its_positions():
    config = models.get_config(
        "Axial-R50x1", depths=(1, 2), width_factor=0.5, image_size=(64, 48), num_classes=3
    )
    init, apply = models.as_functions(config)
    params = jax.jit(init)(KEY)
    assert params["stages/0/0/conv2/column/relative"].shape == (3, 2 * 16 - 1, 4)
    assert params["stages/0/0/conv2/row/relative"].shape == (3, 2 * 12 - 1, 4)
    assert params["stages/1/1/conv2/row/relative"].shape == (3, 2 * 6 - 1, 8)
    run = jax.jit(apply, static_argnames="return_intermediates")
    logits, out = run(params, jnp.ones((2, 64, 48, 3)), return_intermediates=True)
    assert logits.shape == (2, 3) and out["stage_2"].shape == (2, 8, 6, 256)


def test_heads_must_divide():
    with pytest.raises(UserError, match="width 64 does not divide into 7 heads"):
        models.get_config("Axial-R50x1", axial_heads=7)
