"""The row for TPUs, its kernels interpreted: against the plain row, on one device and on meshes."""

import functools
import importlib.util
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from often import often

from vit_jax import config, models, numerics
from vit_jax.errors import UserError
from vit_jax.numerics import Machine, plain, self_check, short_attention, tpu
from vit_jax.runtime import sharding
from vit_jax.training import kernel_check
from vit_jax.training.setup import computed_as, set_up

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
    "b, n, h, e",
    often(
        *[(2, 5, 4, 16), (1, 197, 5, 32), (1, 257, 3, 80)],
        weekly=[(2, 50, 3, 64), (1, 197, 2, 64)],
    ),
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


def test_heads_are_grouped_to_whole_lanes():
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
    params = jax.jit(init)(jax.random.key(0))
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
    often(
        ("debug", {"scan": True, "remat": True}),
        ("Ti/16", {"num_layers": 1, "image_size": 48}),
        weekly=[("debug", {"num_layers": 1, "remat": "products"})],
    ),
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
    "axes",
    often(
        dict(data=2, fsdp=2, tensor=2),
        weekly=[dict(data=8), dict(data=4, tensor=2), dict(fsdp=8)],
    ),
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


@pytest.mark.parametrize(
    "backend, axes",
    [("cpu", dict(fsdp=8)), ("gpu", dict(fsdp=8)), ("tpu", dict(fsdp=8)),
     ("tpu", dict(data=2, fsdp=2, tensor=2))],
)  # fmt: skip
def test_weights_are_gathered_and_not_activations(backend, axes):
    """Of 64 images, no device ever has more than its own, forward or backward.

    XLA's partitioner chose otherwise, which made a step of H/14 on TPUs three times as long.
    """
    changes = dict(image_size=32, patch_size=8, hidden_size=48, num_layers=2, dtype="bfloat16")
    config = models.get_config("debug", num_heads=4, mlp_dim=96, num_classes=10, **changes)
    init, apply = models.as_functions(config, models.numerics_of(config, Machine(backend, 8)))
    mesh = sharding.make_mesh(**{"data": 1} | axes)
    params = {
        path: jax.ShapeDtypeStruct(
            leaf.shape,
            leaf.dtype,
            sharding=NamedSharding(mesh, sharding.param_spec(path, leaf.shape, mesh)),
        )
        for path, leaf in jax.eval_shape(init, jax.random.key(0)).items()
    }
    where = sharding.batch_sharding(mesh)
    images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32, sharding=where)
    gradient = jax.jit(jax.grad(lambda params, images: apply(params, images).sum()))
    text = gradient.lower(params, images).compile().as_text()
    moved = re.findall(r"= (.*?) (?:all-gather|all-reduce|all-to-all|reduce-scatter)\(", text)
    assert " all-gather(" in text  # weights
    rows = "|".join(str(64 * tokens) for tokens in (1, 16, 17))
    assert not [shape for shape in moved if re.search(rf"\[({rows}),", shape)]


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
        (dict(backend="cpu"), "not a TPU"),
        (dict(relative=True), "relative"),
        (dict(head_size=20), "head size is 20"),
        (dict(tokens=10000), "10000 tokens do not fit"),
    ):
        assert not asked("auto", **changes)
        with pytest.raises(UserError, match=f"fused' is not supported: .*{text}.*use 'auto'"):
            asked("fused", **changes)


def test_the_row_says_what_it_is():
    config = models.get_config("B/16", dtype="bfloat16")
    text = numerics.describe(models.numerics_of(config, Machine("tpu", 4)))
    assert text == "bfloat16 products and activations, attention by one fused kernel (4 TPUs)"
    relative = models.replace(config, position_embedding="relative")
    assert "kernel" not in numerics.describe(models.numerics_of(relative, ONE))
    plain_one = models.numerics_of(models.replace(config, attention="xla"), ONE)
    assert isinstance(plain_one.attention, functools.partial)
    with pytest.raises(UserError, match="the device is not a TPU"):
        models.numerics_of(models.replace(config, attention="fused"), Machine("cpu", 1))
    axial = models.get_config("Axial-B/16", dtype="bfloat16")
    assert "kernel" not in numerics.describe(models.numerics_of(axial, ONE))


def clock_of(*seconds):
    """A clock that says what each run of `verify` took: of the kernel first, then of XLA."""
    times = iter([t for length in seconds for t in (0.0, length)])
    return lambda: next(times)


def verify(kernel=tpu.attention, seconds=(1.0, 2.0)):
    return self_check.verify(
        2, 5, 2, 16, "float32", kernel=kernel, clock=clock_of(*seconds), repeats=1
    )


def test_the_kernel_is_checked_before_it_is_used():
    verdict = verify()
    assert verdict.fused and "takes 0.50 of the time" in verdict.text
    slow = verify(seconds=(3.0, 2.0))
    assert not slow.fused and "slower" in slow.text and "1.50" in slow.text
    wrong = verify(lambda qkv: tpu.attention(qkv) * 1.03)
    assert not wrong.fused and "wrong" in wrong.text
    not_a_number = verify(lambda qkv: tpu.attention(qkv) * jnp.nan)
    assert not not_a_number.fused and "wrong" in not_a_number.text

    @jax.custom_vjp
    def wrong_gradient(qkv):
        return tpu.attention(qkv)

    wrong_gradient.defvjp(lambda qkv: (tpu.attention(qkv), qkv), lambda qkv, dy: (0 * qkv,))
    assert "wrong" in verify(wrong_gradient).text

    def refused(qkv):
        raise RuntimeError("out of vector memory")

    assert not verify(refused).fused and "out of vector memory" in verify(refused).text


def test_a_verdict_is_kept_for_the_same_chip_and_shapes():
    clock = clock_of(1.0, 2.0)  # it runs out at a second measurement
    ask = functools.partial(self_check.verify, 2, 5, 2, 16, "float32", clock=clock, repeats=1)
    assert ask() is ask()


def test_a_run_uses_what_the_check_allows_and_goes_on_with_it(tmp_path):
    c = config.load("configs/quickstart.py")
    c.update(pretrain=None, batch_size=64, compute_dtype="bfloat16")
    c.mesh.update(data=4, tensor=2)
    setup = set_up(c, machine=Machine("tpu", 8))
    heads, size = setup.program.model.num_heads // 2, 16
    asked = []

    def settle(setup, fused, name):
        def verify(*shapes):
            asked.append(shapes)
            return self_check.Verdict(fused, f"said {fused}")

        (tmp_path / name).mkdir(exist_ok=True)
        found, keep = kernel_check.check_kernel(setup, tmp_path / name, verify=verify)
        kernel_check.write(tmp_path / name, keep)
        return found, keep

    found, keep = settle(setup, True, "a")
    assert found is setup and keep["fused"] and setup.notes[-1] == "said True"
    tokens = setup.program.model.num_tokens
    assert asked == [(16, tokens, heads, size, "bfloat16")]  # of one device
    found, _ = settle(setup, False, "b")
    assert found.program.model.attention == "xla"
    assert "kernel" not in numerics.describe(found.program.numerics)
    # What was found is kept, and is another matter for other shapes.
    for fused, name in ((False, "a"), (True, "b")):
        again, _ = settle(setup, fused, name)
        assert (again is setup) == (name == "a") and len(asked) == 2
        assert setup.notes[-1].endswith("(found when the run began)")
    forced = computed_as(setup, attention="fused")
    assert settle(forced, False, "b")[0] is forced and len(asked) == 2  # whatever is kept
    file = tmp_path / "b" / kernel_check.FILE
    file.write_text(file.read_text().replace(f"{tokens},", "99,"))
    assert settle(setup, True, "b")[0] is setup and len(asked) == 3
    file.write_text('{"fused": 3}')
    with pytest.raises(UserError, match=r"attention\.json is damaged; remove it"):
        settle(setup, True, "b")
    assert settle(forced, False, "c")[0] is forced
    plain = computed_as(setup, attention="xla")
    assert settle(plain, True, "d") == (plain, None) and len(asked) == 4  # nothing to check
    assert not (tmp_path / "d" / kernel_check.FILE).exists()


SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from vit_jax import models
from vit_jax.numerics import Machine
device = topologies.get_topology_desc(topology_name="v5e:2x2", platform="tpu").devices[0]
mesh = jax.sharding.Mesh(np.array([device]), ("data",))
where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
config = models.get_config("B/16", dtype="bfloat16", num_layers=1)
init, apply = models.as_functions(config, models.numerics_of(config, Machine("tpu", 1)))
shapes = jax.eval_shape(init, jax.random.key(0)), jax.ShapeDtypeStruct((16, 224, 224, 3), "float32")
shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)
step = jax.jit(jax.grad(lambda params, images: apply(params, images).mean())).trace(*shapes)
print(step.lower(lowering_platforms=("tpu",)).compile().as_text())
"""


@pytest.mark.compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_compiler_copies_nothing_around_the_kernel():
    """The kernels compile, and their neighbours read and write q, k and v as the kernels do."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count('custom_call_target="tpu_custom_call"') == 2
    # Programs of their own have an estimate; what is inside of others costs nothing.
    alone = r"= bf16\[16,197,(2304|3,12,64)\]\S* copy\(.*estimated_cycles"
    assert not re.findall(alone, done.stdout)
