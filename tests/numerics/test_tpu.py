"""The row for TPUs, its kernels interpreted: against the plain row, on one device and on meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import models, numerics
from vit_jax.errors import UserError
from vit_jax.numerics import Machine, plain, short_attention, tpu
from vit_jax.runtime import sharding

ONE = Machine("tpu", 1)


def close(found, wanted, tolerance):
    """Within a share of the largest value that is wanted."""
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    assert found.shape == wanted.shape and np.isfinite(found).all()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def random(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def compare(qkv, dy, tolerance, *, apart=True):
    """Attention and its gradients by the kernels, against Eq. 6 to 8 in float32.

    apart: each of the gradients of q, k and v by its own largest value. Where the softmax is
    saturated, those of q and k are nothing but rounding, and the largest of all three counts.
    """
    y, pull = jax.vjp(jax.jit(tpu.attention), qkv)
    wanted, pull_plain = jax.vjp(jax.jit(plain.attention), qkv.astype(jnp.float32))
    assert y.dtype == qkv.dtype
    close(y, wanted, tolerance)
    (found,), (gradient,) = pull(dy.astype(y.dtype)), pull_plain(dy.astype(jnp.float32))
    assert found.dtype == qkv.dtype
    for part in range(3) if apart else [slice(None)]:
        close(found[:, :, part], gradient[:, :, part], tolerance)


@pytest.mark.parametrize(
    "b, n, h, e", [(2, 5, 4, 16), (2, 50, 3, 64), (1, 197, 2, 64), (1, 197, 5, 32), (1, 257, 3, 80)]
)
def test_the_kernel_is_the_equation(b, n, h, e):
    qkv, dy = random((b, n, 3, h, e)), random((b, n, h * e), seed=1)
    compare(qkv, dy, 5e-6)
    # Operands have 8 bits: half a unit in the last place, 2^-9, once or twice.
    qkv, dy = qkv.astype(jnp.bfloat16), dy.astype(jnp.bfloat16)
    compare(qkv, dy, 2**-7)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-3), (jnp.bfloat16, 2**-6)])
def test_extreme_logits(dtype, tolerance):
    """Logits of ten thousands, of either sign; one that outdoes all others; all the same.

    One number is kept of the softmax, log sum exp: of 1e4 in float32 its rounding is 1e-3.
    """
    qkv, dy = random((1, 50, 3, 2, 64), dtype), random((1, 50, 128), dtype, seed=1)
    saturated = functools.partial(compare, dy=dy, tolerance=tolerance, apart=False)
    saturated(qkv * jnp.array([100, 40, 1], dtype)[:, None, None])
    one = qkv.at[:, 7, 1].set(100).at[:, :, 0].set(jnp.abs(qkv[:, :, 0]) + 1)
    y = np.asarray(tpu.attention(one), np.float32)
    close(y, np.broadcast_to(np.asarray(one[:, 7, 2], np.float32).reshape(1, 1, -1), y.shape), 1e-6)
    saturated(one)
    saturated(qkv.at[:, :, 1].set(-3))
    largest = jnp.einsum("nhe,mhe->hnm", *(qkv[0, :, i].astype(jnp.float32) for i in (0, 1))).max()
    assert 4000 * largest / 8 > 1e4  # as the first line says


def test_heads_are_taken_in_whole_lanes():
    found = {size: list(map(len, short_attention.groups(12, size))) for size in (32, 64, 80, 128)}
    assert found == {32: [4, 4, 4], 64: [2] * 6, 80: [8, 4], 128: [1] * 12}
    assert [list(group) for group in short_attention.groups(3, 64)] == [[0, 1], [2]]


def loss_and_gradients(config, row, images, params, where=None):
    _, apply = models.as_functions(config, row)

    def loss(params, images):
        logits = apply(params, images)
        return jnp.square(logits.astype(jnp.float32)).mean()

    return jax.jit(jax.value_and_grad(loss))(params, images)


def model(variant, **more):
    config = models.get_config(variant, num_classes=5, **more)
    init, _ = models.as_functions(config, numerics.PLAIN)
    params = init(jax.random.key(0))
    params["head/kernel"] = jax.random.normal(jax.random.key(1), params["head/kernel"].shape)
    for path in params:  # zeros would hide a bias that is lost
        if path.endswith("bias"):
            params[path] = params[path] + 0.1 * random(params[path].shape)
    images = jax.random.uniform(jax.random.key(2), (8, *config.image_size, 3), minval=-1)
    return config, params, images


def assert_same(found, wanted, tolerance):
    np.testing.assert_allclose(found[0], wanted[0], rtol=tolerance)
    for path, gradient in wanted[1].items():
        size = np.linalg.norm(gradient) + 1e-5
        assert np.linalg.norm(found[1][path] - gradient) < tolerance * size, path


@pytest.mark.parametrize(
    "variant, more",
    [
        ("debug", {"num_layers": 1, "remat": "products"}),
        ("debug", {"scan": True, "remat": True}),
        ("Ti/16", {"num_layers": 1, "image_size": 48}),
    ],
)
def test_a_model_is_the_plain_one(variant, more):
    config, params, images = model(variant, **more)
    wanted = loss_and_gradients(config, numerics.PLAIN, images, params)
    row = models.numerics_of(config, ONE)
    assert row.attention is tpu.attention
    assert_same(loss_and_gradients(config, row, images, params), wanted, 1e-4)


def test_a_model_in_bfloat16():
    config, params, images = model("debug", num_layers=1)
    wanted = loss_and_gradients(config, numerics.PLAIN, images, params)
    half = models.replace(config, dtype="bfloat16")
    row = models.numerics_of(half, ONE)
    assert row.dtype == row.activation_dtype == jnp.bfloat16
    found = loss_and_gradients(half, row, images, params)
    np.testing.assert_allclose(found[0], wanted[0], rtol=0.02)
    flat = lambda tree: np.concatenate([np.ravel(tree[path]) for path in sorted(tree)])  # noqa: E731
    difference = np.linalg.norm(flat(found[1]) - flat(wanted[1]))
    assert difference < 0.04 * np.linalg.norm(flat(wanted[1]))


@pytest.mark.parametrize(
    "axes", [dict(data=8), dict(data=4, tensor=2), dict(fsdp=8), dict(data=2, fsdp=2, tensor=2)]
)
def test_on_a_mesh(axes):
    """A device has its own images and heads; nothing is gathered for the kernel."""
    config, params, images = model("debug", num_layers=1)
    row = models.numerics_of(config, Machine("tpu", 8))
    wanted = loss_and_gradients(config, row, images, params)
    mesh = sharding.make_mesh(**axes)
    params = sharding.params_to_devices(params, mesh)
    images = jax.device_put(images, sharding.batch_sharding(mesh))
    assert_same(loss_and_gradients(config, row, images, params), wanted, 1e-5)

    tensor = axes.get("tensor", 1)
    where = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, None, "tensor", None))
    qkv = jax.device_put(random((8, 5, 3, 4, 16)), where)
    text = jax.jit(tpu.attention).lower(qkv).compile().as_text()
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all"))
    y = jax.jit(tpu.attention)(qkv)
    assert y.addressable_shards[0].data.shape == (tensor, 5, 64 // tensor)


def test_heads_or_images_that_do_not_divide_are_not_split():
    mesh = sharding.make_mesh(data=4, tensor=2)
    qkv = random((3, 5, 3, 3, 16))
    wanted, pull = jax.vjp(tpu.attention, qkv)
    on_mesh = jax.device_put(qkv, NamedSharding(mesh, PartitionSpec()))
    found, pull_mesh = jax.vjp(jax.jit(tpu.attention), on_mesh)
    close(found, wanted, 1e-6)
    close(pull_mesh(found)[0], pull(wanted)[0], 1e-6)


def test_when_attention_is_fused():
    def asked(attention, **changes):
        settings = dict(backend="tpu", dtype="bfloat16", heads=12, head_size=64, tokens=197)
        return tpu.fused_attention(attention, **(settings | dict(relative=False) | changes))

    assert asked("auto") and asked("fused") and not asked("xla") and not asked("cudnn")
    assert asked("auto", dtype="float32") and asked("auto", head_size=80, tokens=257, heads=16)
    for changes, text in (
        (dict(backend="cpu"), "no TPU"),
        (dict(relative=True), "relative"),
        (dict(head_size=20), "20 wide"),
        (dict(tokens=10000), "10000 tokens are too many"),
    ):
        assert not asked("auto", **changes)
        with pytest.raises(UserError, match=f"fused' cannot be: .*{text}.*use 'auto'"):
            asked("fused", **changes)


def test_the_row_says_what_it_is():
    config = models.get_config("B/16", dtype="bfloat16")
    text = numerics.describe(models.numerics_of(config, Machine("tpu", 4)))
    assert text == "bfloat16 products and activations, attention by one fused kernel (4 TPUs)"
    relative = models.replace(config, position_embedding="relative")
    assert "kernel" not in numerics.describe(models.numerics_of(relative, ONE))
    plain_one = models.numerics_of(models.replace(config, attention="xla"), ONE)
    assert isinstance(plain_one.attention, functools.partial)
    with pytest.raises(UserError, match="no TPU"):
        models.numerics_of(models.replace(config, attention="fused"), Machine("cpu", 1))
    axial = models.get_config("Axial-B/16", dtype="bfloat16")
    assert "kernel" not in numerics.describe(models.numerics_of(axial, ONE))
