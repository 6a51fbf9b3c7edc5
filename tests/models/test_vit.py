"""What a ViT promises besides its logits: initialisers, dropout places, intermediates, options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from often import often

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.models import layers

KEY = jax.random.key(7)


@functools.cache
def functions(config):
    """Compiled once for all tests: (init, apply)."""
    init, apply = models.as_functions(config)
    return jax.jit(init), jax.jit(apply, static_argnames="return_intermediates")


def make(seed=0, **settings):
    """(config, params, apply); the head is random, so that logits say something."""
    config = models.get_config("debug", **{"num_classes": 5, **settings})
    init, apply = functions(config)
    params = init(jax.random.key(seed))
    shape = params["head/kernel"].shape
    params["head/kernel"] = jax.random.normal(jax.random.key(1), shape) / shape[0] ** 0.5
    return config, params, apply


def images(config, batch=2, seed=0):
    shape = (batch, *config.image_size, config.channels)
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1)


def test_initialisers():
    """PAPER.md A: each kind of parameter, by its spread and its zeros."""
    config = models.get_config(
        "S/32", num_layers=1, num_classes=7, representation_size="hidden", head_bias=-10.0
    )
    params = jax.jit(models.as_functions(config)[0])(KEY)
    d, m = config.hidden_size, config.mlp_dim

    def spread(path):
        return float(jnp.std(params[path]))

    assert spread("patch_embedding/kernel") == pytest.approx((1 / (32 * 32 * 3)) ** 0.5, rel=0.02)
    assert not params["patch_embedding/bias"].any() and not params["class_token"].any()
    assert spread("position_embedding/0/embedding") == pytest.approx(0.02, rel=0.03)
    xavier = (2 / (d + d)) ** 0.5  # q, k and v are initialised apart: fans d and d
    for i in range(3):
        kernel = params["blocks/0/attention/qkv/kernel"][:, i]
        assert float(jnp.std(kernel)) == pytest.approx(xavier, rel=0.02)
        assert float(jnp.abs(kernel).max()) == pytest.approx(xavier * 3**0.5, rel=0.01)
    assert spread("blocks/0/attention/out/kernel") == pytest.approx(xavier, rel=0.02)
    assert not params["blocks/0/attention/qkv/bias"].any()
    for dense in ("blocks/0/mlp/dense1", "blocks/0/mlp/dense2"):
        assert spread(f"{dense}/kernel") == pytest.approx((2 / (d + m)) ** 0.5, rel=0.02)
        assert spread(f"{dense}/bias") == pytest.approx(1e-6, rel=0.1)
    assert (params["blocks/0/mlp_norm/scale"] == 1).all()
    assert spread("pre_logits/kernel") == pytest.approx((1 / d) ** 0.5, rel=0.02)
    assert not params["head/kernel"].any() and (params["head/bias"] == -10).all()


def test_seeds():
    a, b, c = (make(seed)[1]["blocks/1/mlp/dense1/kernel"] for seed in (0, 0, 1))
    assert (a == b).all() and not (a == c).any()


def test_without_a_key_nothing_is_dropped_and_with_one_something_is():
    config, params, apply = make(dropout_rate=0.5)
    x = images(config)
    assert (apply(params, x) == apply(params, x)).all()
    dropped = apply(params, x, key=KEY)
    assert (dropped == apply(params, x, key=KEY)).all()
    assert not jnp.allclose(dropped, apply(params, x))
    assert not jnp.allclose(dropped, apply(params, x, key=jax.random.key(8)))


@pytest.mark.parametrize("rate, calls", [(0.0, 0), (0.1, 1 + 2 * 3)])
def test_dropout_places(rate, calls, monkeypatch):
    """After the position embedding; per layer after the attention, the GELU and the last dense."""
    from vit_jax.models import layers, vit

    seen = []

    def count(x, rate, key, *, shape=None):
        if key is not None and rate and shape is None:
            seen.append(x.shape)
        return x

    for module in (layers, vit):
        monkeypatch.setattr(module, "dropout", count)
    config, params, _ = make(dropout_rate=rate)
    models.as_functions(config)[1](params, images(config), key=KEY)  # traced with the count
    assert len(seen) == calls
    if calls:
        assert seen[0] == (2, 17, 64) and seen.count((2, 17, 128)) == config.num_layers


def test_stochastic_depth_drops_whole_branches_and_more_in_later_layers():
    config, params, apply = make(stochastic_depth_rate=1.0, num_layers=3)
    x = images(config, batch=64)
    _, out = apply(params, x, key=KEY, return_intermediates=True)
    kept = [
        float((out[f"block_{i}"] != previous).any(axis=(1, 2)).mean())
        for i, previous in enumerate((out["embedded"], out["block_0"], out["block_1"]))
    ]
    assert kept[0] == 1.0 and kept[2] == 0.0  # rates 0, 1/2 and 1
    assert 0.55 < kept[1] < 0.95  # either of two branches, each kept with 1/2
    _, still = apply(params, x, return_intermediates=True)
    assert (still["block_2"] != still["block_1"]).any()


def test_stochastic_depth_keeps_the_expectation():
    from vit_jax.models.layers import dropout

    x = jnp.ones((20_000, 1, 1))
    kept = dropout(x, 0.3, KEY, shape=(20_000, 1, 1))
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.7)}
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    "option", often({"scan": True, "remat": True}, weekly=[{"remat": True}, {"scan": True}])
)
def test_remat_and_scan_change_neither_logits_nor_gradients(option):
    _, params, plain = make(dropout_rate=0.1)
    config, _, other = make(dropout_rate=0.1, **option)
    x = images(config)

    def loss(apply, params):
        return (apply(params, x, key=KEY) ** 2).sum()

    a, da = jax.jit(jax.value_and_grad(functools.partial(loss, plain)))(params)
    b, db = jax.jit(jax.value_and_grad(functools.partial(loss, other)))(params)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    for path in da:
        np.testing.assert_allclose(da[path], db[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_scan_says_what_it_cannot_do():
    config, params, apply = make(scan=True, position_embedding_at="every")
    with pytest.raises(UserError, match=r"model\.scan=True needs position embeddings at the stem"):
        apply(params, images(config))


@pytest.mark.parametrize(
    "place, count, kind",
    often(
        *[("stem", 1, "1d"), ("every", 3, "2d"), ("shared", 1, "1d")],
        weekly=[("stem", 1, "2d"), ("every", 3, "1d"), ("shared", 1, "2d")],
    ),
)
def test_position_embeddings_of_table_8(kind, place, count):
    config, params, apply = make(
        num_layers=3, position_embedding=kind, position_embedding_at=place, image_size=(32, 48)
    )
    tables = {path.split("/")[1] for path in params if path.startswith("position_embedding/")}
    assert tables == {str(i) for i in range(count)}
    x = images(config)
    logits = apply(params, x)
    for i in range(count):  # each one matters
        other = dict(params)
        for path in params:
            if path.startswith(f"position_embedding/{i}/"):
                other[path] = params[path] + jax.random.normal(KEY, params[path].shape)
        assert not jnp.allclose(apply(other, x), logits)
    if kind == "2d":
        assert params["position_embedding/0/y"].shape == (4, 32)
        assert params["position_embedding/0/x"].shape == (6, 32)


def test_two_dimensional_embedding_by_hand():
    from vit_jax.models.ablations import PositionEmbedding2D
    from vit_jax.models.layers import Keys

    config = models.get_config("debug", position_embedding="2d", image_size=(16, 24))
    table = PositionEmbedding2D(config, keys=Keys(KEY))
    got = table.table()
    assert got.shape == (1, 7, 64)
    y, x = table.y[...], table.x[...]
    np.testing.assert_array_equal(got[0, 0], table.class_token[0])
    np.testing.assert_array_equal(got[0, 1 + 3 + 2], jnp.concatenate([y[1], x[2]]))


def test_relative_attention_by_hand():
    """logit(q, k) = (q . k + q . r[p_q - p_k]) / sqrt(e), with the raster positions p."""
    config, params, apply = make(num_layers=1, position_embedding="relative", num_heads=2)
    path = "blocks/0/attention/relative"
    assert params[path].shape == (2 * 17 - 1, 32)
    params[path] = jax.random.normal(KEY, params[path].shape)
    x = images(config, batch=1)
    _, out = apply(params, x, return_intermediates=("attention",))
    z = out["embedded"]
    z = (z - z.mean(-1, keepdims=True)) / jnp.sqrt(z.var(-1, keepdims=True) + 1e-6)
    qkv = jnp.einsum("bnd,dthe->tbhne", z, params["blocks/0/attention/qkv/kernel"])
    q, k = qkv[0, 0], qkv[1, 0]
    logits = np.zeros((2, 17, 17))
    for head in range(2):
        for i in range(17):
            for j in range(17):
                r = params[path][i - j + 16]
                logits[head, i, j] = q[head, i] @ k[head, j] + q[head, i] @ r
    expected = jax.nn.softmax(logits / 32**0.5)
    np.testing.assert_allclose(out["attention"][0, 0], expected, atol=2e-5)


def test_without_position_embeddings_patches_have_no_order():
    config, params, apply = make(position_embedding="none")
    x = images(config)
    swapped = jnp.concatenate([x[:, 8:], x[:, :8]], axis=1)  # moves a row of patches
    np.testing.assert_allclose(apply(params, swapped), apply(params, x), atol=1e-5)
    config, params, apply = make()
    assert not jnp.allclose(apply(params, swapped), apply(params, x), atol=1e-5)


@pytest.mark.parametrize("classifier, tokens", [("token", 17), ("gap", 16), ("map", 16)])
def test_classifiers_and_intermediates(classifier, tokens):
    config, params, apply = make(classifier=classifier, representation_size=24)
    x = images(config)
    logits, out = apply(params, x, return_intermediates=True)
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    assert "attention" not in out
    assert out["embedded"].shape == out["block_1"].shape == out["encoded"].shape == (2, tokens, 64)
    assert out["pooled"].shape == (2, 64) and out["pre_logits"].shape == (2, 24)
    if classifier == "token":
        np.testing.assert_array_equal(out["pooled"], out["encoded"][:, 0])
    if classifier == "gap":
        np.testing.assert_allclose(out["pooled"], out["encoded"].mean(1), atol=1e-6)
    hidden = jnp.tanh(out["pre_logits"])  # the tanh comes after what features are taken from
    np.testing.assert_allclose(
        logits, hidden @ params["head/kernel"] + params["head/bias"], atol=1e-5
    )
    named, out = apply(params, x, return_intermediates=("attention",))
    np.testing.assert_array_equal(named, logits)
    assert out["attention"].shape == (2, 2, 4, tokens, tokens)
    np.testing.assert_allclose(out["attention"].sum(-1), 1, rtol=1e-5)


def test_map_pooling_does_not_depend_on_the_order_of_tokens():
    config, params, apply = make(classifier="map", position_embedding="none")
    x = images(config)
    np.testing.assert_allclose(
        apply(params, jnp.concatenate([x[:, 8:], x[:, :8]], axis=1)), apply(params, x), atol=1e-5
    )


@pytest.mark.parametrize("channels", often(1, 5, weekly=[2]))
def test_any_number_of_channels(channels):
    config, params, apply = make(channels=channels)
    assert apply(params, images(config)).shape == (2, 5)


@pytest.mark.parametrize("patch, size", [((8, 4), (32, 32)), ((4, 8), (20, 48))])
def test_patches_need_not_be_square(patch, size):
    config, params, apply = make(patch_size=patch, image_size=size)
    assert config.grid == (size[0] // patch[0], size[1] // patch[1])
    assert apply(params, images(config)).shape == (2, 5)


def test_another_shape_than_the_grid_is_refused():
    _, params, apply = make()
    with pytest.raises(UserError, match=r"built for images of \(32, 32, 3\) but got \(40, 32, 3\)"):
        apply(params, jnp.zeros((1, 40, 32, 3)))


def test_bfloat16_computes_in_it_and_returns_float32():
    config, params, apply = make()
    _, _, half = make(dtype="bfloat16")
    x = images(config)
    logits, out = half(params, x, return_intermediates=True)
    assert logits.dtype == jnp.float32 and out["block_0"].dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, apply(params, x), atol=0.05)
    assert not jnp.array_equal(logits, apply(params, x))


def test_the_public_model():
    import vit_jax

    model = vit_jax.create_model("debug", num_classes=3, image_size=(16, 24), seed=1)
    assert model.variant == "debug" and model.image_size == (16, 24)
    assert model.labels == () and model.preprocessing == {}
    assert model.num_params == sum(p.size for p in models.get_params(model).values())
    logits = model(jnp.zeros((2, 16, 24, 3)))
    assert logits.shape == (2, 3) and not logits.any()  # a zero head
    _, out = jax.jit(lambda x: model(x, return_intermediates=True))(jnp.zeros((1, 16, 24, 3)))
    assert out["encoded"].shape == (1, 7, 64)


@pytest.mark.parametrize("variant", ["debug", "R50x1"])
def test_inputs_that_are_not_images_in_range_are_refused(variant):
    """One line that names floats in [-1, 1] and vit_jax.preprocess, before any arithmetic."""
    config = models.get_config(variant, num_classes=3, image_size=32)
    if variant == "R50x1":
        config = models.replace(config, depths=(1,))
    else:
        config = models.replace(config, hidden_size=32, num_layers=1, mlp_dim=32, num_heads=2)
    model = models.abstract(config)  # what is wrong is said before any arithmetic
    images = np.zeros((2, 32, 32, 3), np.float32)
    layers.check_images(images, config)
    wrong = [
        images.astype(np.uint8), images.astype(np.int32), images > 0, images[0], images + 255,
        jnp.asarray(images).at[0, 0, 0, 0].set(-200), images.tolist(), images[..., :1],
    ]  # fmt: skip
    for given in wrong:
        with pytest.raises(UserError) as caught:
            model(given)
        text = str(caught.value)
        assert "\n" not in text
        if np.shape(given)[-1] == 3:
            assert "floats in [-1, 1]" in text and "vit_jax.preprocess" in text
    with pytest.raises(UserError, match="uint8"):
        jax.jit(lambda x: model(x))(wrong[0])
    noise = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    layers.check_images(noise, config)  # scaled in another way, as people may want it


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 3, 32, 32), np.float32), "last axis is not 3 channels"),
        (np.zeros((2, 32, 32, 4), np.float32), "last axis is not 3 channels"),
        (np.zeros((0, 32, 32, 3), np.float32), "an empty batch"),
        (np.full((1, 32, 32, 3), np.nan, np.float32), "values up to nan"),
        (np.full((1, 32, 32, 3), np.inf, np.float32), "values up to inf"),
    ],
)
def test_inputs_that_are_not_images(images, message):
    model = models.build(models.get_config("debug", num_classes=3))
    with pytest.raises(UserError, match=message):
        model(images)


def test_a_constant_in_a_traced_function_is_checked():
    model = models.build(models.get_config("debug", num_classes=3))
    images = jnp.zeros((1, 32, 32, 3))
    assert jax.jit(lambda: model(images))().shape == (1, 3)
    loud = images + 99
    with pytest.raises(UserError, match="values up to 99"):
        jax.jit(lambda: model(loud))()


@pytest.mark.parametrize(
    "settings",
    [
        dict(dropout_rate=1.0), dict(dropout_rate=float("nan")), dict(stochastic_depth_rate=-0.1),
        dict(layer_norm_epsilon=-1.0), dict(layer_norm_epsilon=float("nan")),
    ],
)  # fmt: skip
def test_rates_have_a_range(settings):
    with pytest.raises(UserError, match=f"model.{next(iter(settings))}="):
        models.get_config("debug", **settings)


@pytest.mark.parametrize(
    "setting", [dict(patch_size=0), dict(num_heads=0), dict(num_layers=0), dict(mlp_dim=-1)]
)
def test_a_size_below_one_is_named(setting):
    ((key, value),) = setting.items()
    with pytest.raises(
        UserError, match=f"model.{key}=.*{value}.* must be a whole number, 1 or more"
    ):
        models.get_config("B/16", **setting)


@pytest.mark.parametrize("variant", ["debug", "R50x1"])
def test_a_name_that_is_no_intermediate_is_refused(variant):
    config = models.get_config(variant, image_size=32, num_classes=2)
    init, apply = models.as_functions(config)
    params = jax.eval_shape(init, KEY)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for asked in (("pre_logit",), "pre_logit"):
        run = functools.partial(apply, return_intermediates=asked)
        with pytest.raises(UserError, match=r"no intermediate 'pre_logit'.* 'pre_logits'"):
            jax.eval_shape(run, params, images)
    run = functools.partial(apply, return_intermediates="pre_logits")
    assert "pre_logits" in jax.eval_shape(run, params, images)[1]
