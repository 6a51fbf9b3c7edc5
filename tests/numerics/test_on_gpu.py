"""What only an NVIDIA GPU can prove: its kernels against the paper's formulas on the CPU.

JAX_PLATFORMS=cuda,cpu pytest tests/numerics/test_on_gpu.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, numerics
from vit_jax.numerics import gpu, plain

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="needs a GPU, and JAX_PLATFORMS=cuda,cpu"
)


def distance(found, wanted):
    """||found - wanted|| / ||wanted||, in float64."""
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("tokens, heads, width", [
    (197, 12, 64), (50, 12, 64), (577, 16, 64), (257, 16, 80), (196, 3, 64),
])  # fmt: skip
def test_cudnn_attention_is_the_equation(tokens, heads, width):
    keys = jax.random.split(jax.random.key(tokens), 2)
    qkv = jax.random.normal(keys[0], (2, tokens, 3, heads, width)).astype(jnp.bfloat16)
    dy = jax.random.normal(keys[1], (2, tokens, heads * width)).astype(jnp.bfloat16)

    def fused(qkv):
        return gpu.attention(qkv)[:, :tokens]

    found, pull = jax.vjp(jax.jit(fused), qkv)
    (gradient,) = pull(dy)
    with jax.default_device(jax.devices("cpu")[0]):
        exact = jax.device_put((qkv, dy), jax.devices("cpu")[0])
        wanted, pull = jax.vjp(plain.attention, exact[0].astype(jnp.float32))
        (wanted_gradient,) = pull(exact[1].astype(jnp.float32))
    assert found.shape == wanted.shape
    assert 1e-5 < distance(found, wanted) < 1e-2
    assert 1e-5 < distance(gradient, wanted_gradient) < 2e-2


@pytest.mark.parametrize("variant, more", [
    ("B/16", {"num_layers": 2}),
    ("H/14", {"num_layers": 2}),
    ("B/16", {"num_layers": 2, "scan": True, "remat": True}),
    ("B/32", {"num_layers": 2, "classifier": "gap"}),
    ("R50+B/16", {"num_layers": 1}),
])  # fmt: skip
@pytest.mark.parametrize("dtype, logits, gradients", [
    ("float32", 2e-3, 1e-2), ("bfloat16", 2e-2, 6e-2),
])  # fmt: skip
def test_models_equal_the_plain_ones_on_the_cpu(variant, more, dtype, logits, gradients):
    config = models.get_config(variant, image_size=224, num_classes=7, dtype=dtype, **more)
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        init, apply = models.as_functions(models.override(config, dtype="float32"), numerics.PLAIN)
        params = dict(jax.jit(init)(jax.random.key(0)))
        head = params["head/kernel"]  # zero, as it begins
        params["head/kernel"] = jax.random.normal(jax.random.key(1), head.shape)
        images = jax.random.uniform(jax.random.key(2), (2, 224, 224, 3), minval=-1)

        def value_and_gradients(apply, params, images):
            loss = lambda p: (jnp.square(y := apply(p, images)).mean(), y)  # noqa: E731
            (_, y), found = jax.value_and_grad(loss, has_aux=True)(params)
            return y, found

        wanted, wanted_gradients = jax.jit(lambda p, x: value_and_gradients(apply, p, x))(
            params, images
        )
    _, apply = models.as_functions(config)
    found, found_gradients = jax.jit(lambda p, x: value_and_gradients(apply, p, x))(
        *jax.device_put((params, images), jax.devices("gpu")[0])
    )
    flat = lambda tree: np.concatenate([np.ravel(tree[key]) for key in sorted(tree)])  # noqa: E731
    close = distance(found, wanted), distance(flat(found_gradients), flat(wanted_gradients))
    print(f"{variant} {more} {dtype}: logits {close[0]:.1e}, gradients {close[1]:.1e}")
    assert 0 < close[0] < logits and 0 < close[1] < gradients
