"""Products, LayerNorm and attention in fewer bits: rounded operands, exact otherwise, both ways."""

import collections
import functools
import json
import os
import re
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from often import often

from vit_jax import models, numerics
from vit_jax.errors import UserError
from vit_jax.numerics import Machine, gpu, norm, one_cpu
from vit_jax.numerics.dense import affine, aligned, bfloat16_product, rounded_product
from vit_jax.objectives.classification import classification
from vit_jax.training import optim, state
from vit_jax.training.step import make_train_step


def rounded(x):
    return np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32), np.float64)


@pytest.mark.parametrize(
    "rows, i, o",
    [(1, 7, 5), (6, 1024, 3), (2, 64, 10), (3, 5, 7), (17, 64, 128), (33, 96, 24), (8, 1, 1)],
)
def test_product_and_gradients_by_hand(rows, i, o):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (rows, i)), jax.random.normal(keys[1], (i, o))
    dy = jax.random.normal(keys[2], (rows, o))
    y, pull = jax.vjp(jax.jit(one_cpu.bfloat16_product), x, kernel)
    dx, dkernel = jax.jit(pull)(dy)
    assert y.dtype == dx.dtype == dkernel.dtype == jnp.float32
    a, b, c = rounded(x), rounded(kernel), rounded(dy)
    for found, wanted in ((y, a @ b), (dx, c @ b.T), (dkernel, a.T @ c)):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("out_dtype", [jnp.bfloat16, jnp.float32])
def test_the_product_of_accelerators_by_hand(out_dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (6, 16)).astype(jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (16, 3, 4))
    dy = jax.random.normal(keys[2], (6, 3, 4)).astype(out_dtype)
    product = jax.jit(lambda x, kernel: rounded_product(x, kernel, out_dtype))
    y, pull = jax.vjp(product, x, kernel)
    dx, d_kernel = jax.jit(pull)(dy)
    assert y.dtype == out_dtype and dx.dtype == jnp.bfloat16 and d_kernel.dtype == jnp.float32
    a, b, c = (rounded(v).reshape(len(v), -1) for v in (x, kernel, dy))
    assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    assert_close(np.asarray(d_kernel).reshape(16, -1), a.T @ c)
    bits = dict(rtol=2**-8, atol=1e-5)  # bfloat16 has 8
    np.testing.assert_allclose(np.asarray(dx, np.float64), c @ b.T, **bits)
    if out_dtype == jnp.float32:
        assert_close(np.asarray(y).reshape(6, -1), a @ b)
    else:
        np.testing.assert_allclose(np.asarray(y, np.float64).reshape(6, -1), a @ b, **bits)


def test_zeros_that_align_rows_change_nothing():
    x, kernel = jnp.ones((2, 588), jnp.bfloat16), jnp.ones((588, 5))
    assert aligned(x, 1).shape == (2, 592) and aligned(kernel, 0).shape == (592, 5)
    assert aligned(kernel, 1).shape == (588, 8)
    assert aligned(jnp.ones((2, 768)), 1).shape == (2, 768)
    product = jax.jit(
        functools.partial(affine, multiply=bfloat16_product, activation_dtype=jnp.float32)
    )
    padded = product(x, kernel, jnp.zeros(5))
    np.testing.assert_array_equal(padded, np.full((2, 5), 588.0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_and_its_gradient_are_those_of_the_formula(dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    x = (3 * jax.random.normal(keys[0], (5, 32)) + 1).astype(dtype)
    scale, bias = jax.random.normal(keys[1], (32,)), jax.random.normal(keys[2], (32,))
    dy = jax.random.normal(keys[3], (5, 32)).astype(dtype)

    def formula(x, scale, bias):
        x = x.astype(jnp.float32)
        y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
        return (y * scale + bias).astype(dtype)

    found, pull = jax.vjp(lambda *a: norm.normalised(*a, 1e-3, dtype), x, scale, bias)
    wanted, pull_formula = jax.vjp(formula, x, scale, bias)
    tolerance = 1e-5 if dtype == jnp.float32 else 2**-7
    for a, b in zip((found, *pull(dy)), (wanted, *pull_formula(dy)), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


def lowered_step(config, batch=4):
    """The training step of a model as it is handed to the compiler of an accelerator."""
    init, apply = models.as_functions(config)
    optimizer = optim.adam(weight_decay=0.1)
    step = make_train_step(
        classification(apply, config.num_classes), optimizer,
        schedule=lambda step: jnp.float32(1e-3), seed=0,
    )  # fmt: skip
    shapes = jax.eval_shape(
        lambda key: state.create(init(key), optimizer, polyak=False), jax.random.key(0)
    )
    images = {
        "image": jax.ShapeDtypeStruct((batch, *config.image_size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    return jax.jit(step).trace(shapes, images).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(
    "variant, more",
    often(
        ("debug", {"scan": True, "remat": True, "dropout_rate": 0.1}),
        ("debug", {"classifier": "map", "position_embedding": "relative"}),
        ("R50+B/16", {"num_layers": 1, "image_size": 32}),
        ("Axial-B/16", {"num_layers": 1, "image_size": 32}),
        weekly=[
            ("debug", {}),
            ("debug", {"representation_size": 64, "patch_size": 2}),
            ("Axial-R50x1", {"image_size": 32}),
        ],
    ),
)
def test_no_product_of_a_step_is_in_float32(variant, more):
    """A float32 operand would halve the speed of a GPU, and JAX's own gradients have them."""
    assert numerics.of("bfloat16").activation_dtype == jnp.bfloat16  # there are several CPUs
    config = models.get_config(variant, dtype="bfloat16", **more)
    found = collections.Counter()
    for line in lowered_step(config).splitlines():
        match = re.search(r"stablehlo\.(dot_general|convolution).* : \((.*?)\) ->", line)
        if match:
            found[match[1], *re.findall(r"(bf16|f32)>", match[2])] += 1
    assert found and {kinds[1:] for kinds in found} == {("bf16", "bf16")}, found


@pytest.mark.parametrize(
    "size, classifier", often((32, "token"), weekly=[(24, "gap")])
)  # 65 and 36 tokens
def test_fused_attention_equals_the_equation(size, classifier):
    """cuDNN cannot run here: JAX's own implementation takes its place, lengths and all."""
    config = models.get_config(
        "debug", image_size=size, patch_size=4, num_classes=5, classifier=classifier
    )
    init, apply = models.as_functions(config)
    params = jax.jit(init)(jax.random.key(0))
    params["head/kernel"] = jax.random.normal(jax.random.key(1), params["head/kernel"].shape)
    images = jax.random.uniform(jax.random.key(2), (3, size, size, 3), minval=-1)

    def value_and_gradients(apply):
        return jax.jit(jax.value_and_grad(lambda p: jnp.square(apply(p, images)).mean()))(params)

    wanted, wanted_gradients = value_and_gradients(apply)
    attention, calls = jax.nn.dot_product_attention, []

    def in_its_place(*qkv, implementation, **more):
        calls.append((implementation, qkv[0].shape[1], more["key_value_seq_lengths"]))
        return attention(*qkv, implementation="xla", **more)

    row = models.numerics_of(config)._replace(attention=gpu.attention)
    with mock.patch.object(jax.nn, "dot_product_attention", in_its_place):
        _, apply = models.as_functions(config, row)
        found, gradients = value_and_gradients(apply)
    assert {name for name, _, _ in calls} == {"cudnn"}
    assert all(n % 2 == 0 for _, n, _ in calls)  # its gradient refuses others
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for path, gradient in gradients.items():
        norm = np.linalg.norm(wanted_gradients[path])
        assert np.linalg.norm(gradient - wanted_gradients[path]) < 1e-5 * norm, path


def test_when_attention_is_fused():
    good = dict(capability=9.0, dtype="bfloat16", head_size=64, relative=False)
    assert gpu.fused_attention("auto", **good)
    assert not gpu.fused_attention("xla", **good)
    wrong = {"dtype": "float32", "relative": True, "head_size": 192, "capability": 7.5}
    for key, value in wrong.items():
        assert not gpu.fused_attention("auto", **(good | {key: value}))
    with pytest.raises(UserError, match=r"cudnn.*not an NVIDIA GPU"):
        gpu.fused_attention("cudnn", **(good | {"capability": 0.0}))
    with pytest.raises(UserError, match="float32, not bfloat16"):
        gpu.fused_attention("cudnn", **(good | {"dtype": "float32"}))
    trained = models.get_config("B/16", dtype="bfloat16", attention="cudnn")
    with pytest.raises(UserError, match=r"cudnn.*not an NVIDIA GPU"):
        models.as_functions(trained)  # when it is built, before anything runs
    models.as_functions(models.at_rest(trained))  # what is stored goes anywhere
    with pytest.raises(UserError, match=r"model\.attention='cuda' does not exist"):
        models.get_config("B/16", attention="cuda")


SCRIPT = """
import json, jax, jax.numpy as jnp, numpy as np
from vit_jax import models
from vit_jax import numerics
assert jax.device_count() == 1 and numerics.of("bfloat16").activation_dtype == jnp.float32
found = {}
cases = ("Ti/16", {"num_layers": 1}), ("debug", {"scan": True, "remat": True})
for variant, more in cases:
    config = models.get_config(variant, image_size=32, num_classes=5, **more)
    init, _ = models.as_functions(config)
    params = jax.jit(init)(jax.random.key(0))
    params["head/kernel"] = jax.random.normal(jax.random.key(1), params["head/kernel"].shape)
    images = jax.random.uniform(jax.random.key(2), (4, 32, 32, 3), minval=-1)
    results = []
    for dtype in ("float32", "bfloat16"):
        _, apply = models.as_functions(models.replace(config, dtype=dtype))
        loss = lambda p: jnp.square(apply(p, images)).mean()
        logits = jax.jit(apply)(params, images)
        results.append((logits, jax.jit(jax.grad(loss))(params)))
    (a, ga), (b, gb) = results
    norm = lambda tree: sum(float(jnp.square(x).sum()) for x in tree.values()) ** 0.5
    name = f"{variant} {more}"
    found[name] = [
        float(jnp.abs(a - b).max() / jnp.abs(a).max()),
        norm({k: ga[k] - gb[k] for k in ga}) / norm(ga),
    ]
print(json.dumps(found))
"""


def test_models_on_one_cpu_device_in_bfloat16():
    """Logits and gradients within what rounding operands to 8 bits allows, of those in float32."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name, (logits, gradients) in json.loads(done.stdout).items():
        assert 1e-5 < logits < 0.02, (name, logits)
        assert 1e-5 < gradients < 0.04, (name, gradients)


MACHINES = (Machine("cpu", 1), Machine("tpu", 4), Machine("cpu", 8), Machine("gpu", 1))


@pytest.mark.parametrize(
    "variant, machines",
    often(
        *[("debug", MACHINES), ("debug-resnet", MACHINES[:2]), ("debug-axial", MACHINES[1:2])],
        weekly=[("debug-hybrid", MACHINES[:2]), ("debug-axial", MACHINES[:1])],
    ),
)
def test_every_row_computes_what_the_paper_says(variant, machines):
    """The rows of machines against the plain one, in float32, with gradients."""
    config = models.get_config(variant, num_classes=5)
    init, plain = models.as_functions(config, numerics.PLAIN)
    params = jax.jit(init)(jax.random.key(0))
    params["head/kernel"] = jax.random.normal(jax.random.key(1), params["head/kernel"].shape)
    images = jax.random.uniform(jax.random.key(2), (2, *config.image_size, 3), minval=-1)

    def value_and_gradients(apply):
        return jax.jit(jax.value_and_grad(lambda p: jnp.square(apply(p, images)).mean()))(params)

    wanted, wanted_gradients = value_and_gradients(plain)
    for machine in machines:
        row = models.numerics_of(config, machine)
        found, gradients = value_and_gradients(models.as_functions(config, row)[1])
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        for path, gradient in gradients.items():
            size = np.linalg.norm(wanted_gradients[path]) + 1e-6
            assert np.linalg.norm(gradient - wanted_gradients[path]) < 1e-4 * size, (machine, path)


def test_the_row_is_chosen_once_and_says_what_it_is():
    one, several = (numerics.of("bfloat16", Machine("cpu", count)) for count in (1, 8))
    assert one is numerics.of("bfloat16", Machine("cpu", 1))  # modules of it are equal
    assert numerics.describe(one) == "bfloat16 products, float32 activations (one CPU)"
    assert numerics.describe(several) == "bfloat16 products and activations (8 CPUs)"
    h100 = Machine("gpu", 1, 9.0)
    row = numerics.of("bfloat16", h100, attention="auto", head_size=64)
    assert row.attention is gpu.attention and "attention by cuDNN (one GPU)" in numerics.describe(
        row
    )


def test_axial_attention_trains_in_bfloat16_on_one_cpu():
    config = models.get_config("debug-axial", dtype="bfloat16", num_classes=3)
    init, apply = models.as_functions(config, models.numerics_of(config, Machine("cpu", 1)))
    params, shape = jax.eval_shape(init, jax.random.key(0)), (1, *config.image_size, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    jax.eval_shape(jax.grad(lambda p, x: apply(p, x).sum()), params, images)
