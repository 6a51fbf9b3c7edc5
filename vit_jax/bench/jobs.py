"""The tasks of this package in a benchmark, each a step that can be repeated."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config as configuration, data, models, numerics
from vit_jax.bench import Row
from vit_jax.data.source import digest
from vit_jax.data.specs import open_source
from vit_jax.errors import UserError
from vit_jax.interop import load
from vit_jax.models import cost
from vit_jax.numerics import plain, remat
from vit_jax.objectives.classification import classification
from vit_jax.runtime import sharding
from vit_jax.training import optim, state as train_state
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.step import make_train_step

#: The optimizer of every contender: Adam with decoupled decay, clipped gradients.
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-3, 0.1, 1.0


#: Threads of an input pipeline, and steps until its prefetched batches are used up.
CORES = os.cpu_count() or 1
BUFFERED = 2 * CORES + 16
#: Nominal number of records: shuffling only 64 would cost more than decoding them.
NUM_RECORDS = 1_281_167


class Spec(NamedTuple):
    """One measurement. weights: a directory that this contender reads; "": a random model."""

    task: str
    variant: str
    image_size: int
    batch: int
    dtype: str
    weights: str = ""
    num_classes: int = 1000
    options: tuple[tuple[str, str], ...] = ()  # settings of the model, as text
    data: str = ""  # data spec of JPEG files for the input; "": synthetic


class Job(NamedTuple):
    """step: does the work once and waits for it. images: per step; flops: per step.

    logits: (images float32 in [-1, 1]) -> logits float32, where the task has a model.
    """

    step: Callable[[], Any]
    images: int
    flops: float = 0.0
    logits: Callable[[np.ndarray], np.ndarray] | None = None
    unmeasured: int = 1  # warm-up steps of a round, after another contender's turn


def model_of(spec: Spec) -> tuple[models.ModelConfig, models.Params]:
    """The configuration and the weights, on the device."""
    if spec.weights:
        config, params = load.read(spec.weights)
    else:
        config = models.get_config(
            spec.variant, image_size=spec.image_size, num_classes=spec.num_classes
        )
        params = jax.jit(models.as_functions(config)[0])(jax.random.key(0))
    settings = {key: configuration.literal(text) for key, text in spec.options}
    config = models.override(config, dtype=spec.dtype, **settings)
    return config, jax.device_put(dict(params))


def random_images(spec: Spec) -> np.ndarray:
    """A batch of pixels (b, h, w, 3) uint8."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (spec.batch, spec.image_size, spec.image_size, 3)).astype(np.uint8)


def logits_function(config: models.ModelConfig, params: models.Params) -> Callable:
    """The model on float images, compiled when it is first called."""
    _, apply = models.as_functions(config)
    run = jax.jit(apply)

    def logits(images: np.ndarray) -> np.ndarray:
        return np.asarray(run(params, images), np.float32)

    return logits


def inference(spec: Spec) -> Job:
    """Logits of a batch that is on the device, from uint8."""
    config, params = model_of(spec)
    _, apply = models.as_functions(config)
    run = jax.jit(lambda params, images: apply(params, models.normalise(images)))
    images = jnp.asarray(random_images(spec))
    return Job(
        lambda: run(params, images).block_until_ready(),
        spec.batch,
        2 * cost.forward_macs(config) * spec.batch,
        logits_function(config, params),
    )


def train(spec: Spec) -> Job:
    """One optimisation step of the trainer, on a batch that is on the device."""
    config, params = model_of(spec)
    _, apply = models.as_functions(config)
    optimizer = optim.adam(weight_decay=WEIGHT_DECAY)
    mesh = sharding.make_mesh()
    start, _ = train_state.initialise(dict, params, optimizer, mesh, polyak=False)
    step = jax.jit(
        make_train_step(
            classification(apply, config.num_classes),
            optimizer,
            schedule=lambda step: jnp.float32(LEARNING_RATE),
            seed=0,
            gradient_clip_norm=CLIP,
        ),
        donate_argnums=0,
        compiler_options=remat.compiler_options(config.remat),
    )
    batch = sharding.to_devices(
        {
            "image": random_images(spec),
            "label": (np.arange(spec.batch) % config.num_classes).astype(np.int32),
        },
        mesh,
    )
    state = [start()]

    def once() -> None:
        state[0], metrics = step(state[0], batch)
        metrics["train/loss"].block_until_ready()

    return Job(
        once,
        spec.batch,
        cost.train_flops_per_image(config) * spec.batch,
        logits_function(config, params),
    )


def attention(spec: Spec) -> Job:
    """Attention alone, forward and backward: softmax(q k^T / sqrt(d)) v of one layer."""
    config = models.get_config(spec.variant, image_size=spec.image_size)
    if not isinstance(config, models.ViTConfig):
        raise UserError(f"{spec.variant} has no attention of its own to measure.")
    heads, tokens = config.num_heads, config.num_tokens
    width, product = config.hidden_size // heads, numerics.of(spec.dtype).product
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (spec.batch, heads, tokens, width), jnp.dtype(spec.dtype))
        for key in keys
    )

    def loss(q, k, v):
        return jnp.square(
            plain.attend(plain.attention_weights(q, k, product=product), v, product=product)
        ).sum()

    run = jax.jit(jax.grad(loss, (0, 1, 2)))
    macs = 2 * spec.batch * heads * tokens * tokens * width
    return Job(lambda: jax.block_until_ready(run(q, k, v)), spec.batch, 6 * macs)


def checkpoint(spec: Spec) -> Job:
    """How long an asynchronous save of the whole state blocks a training step."""
    _, params = model_of(spec)
    optimizer = optim.adam(weight_decay=WEIGHT_DECAY)
    start, _ = train_state.initialise(dict, params, optimizer, sharding.make_mesh(), polyak=False)
    state = start()
    directory = tempfile.TemporaryDirectory(prefix="vit_jax_bench_")
    checkpoints = Checkpoints(Path(directory.name) / "checkpoints", keep=1)
    saved = [0]

    def once() -> float:
        saved[0] += 1
        begin = time.perf_counter()
        checkpoints.save(saved[0], state, {"step": saved[0]})
        stalled = time.perf_counter() - begin
        checkpoints.wait()
        return stalled

    once.keep = directory  # type: ignore[attr-defined]
    return Job(once, 0)


def jpegs(count: int = 64, height: int = 375, width: int = 500) -> list[bytes]:
    """Synthetic photographs: smooth colours with some noise, as JPEG files of quality 90."""
    import io

    import PIL.Image

    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8))
        image = np.asarray(coarse.resize((width, height), PIL.Image.Resampling.BICUBIC), np.int16)
        image = (image + rng.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(image).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def encoded_files(spec: Spec, most: int = 512) -> list[bytes]:
    """The JPEG files of the input task, in memory: of `spec.data`, or synthetic.

    Raises:
      UserError: `spec.data` has no JPEG files.
    """
    if not spec.data:
        return jpegs()
    source = open_source(spec.data)
    records = (source[index]["image"] for index in range(min(len(source), 4 * most)))
    files = [data for data in records if isinstance(data, bytes) and data[:2] == b"\xff\xd8"]
    if not files:
        raise UserError(f"--data={spec.data} has no JPEG files for the input task.")
    return files[:most]


class JpegSource(data.Source):
    """JPEG files in memory as a source of ImageNet's nominal size."""

    def __init__(self, files: list[bytes]):
        self.files, self.spec, self.num_classes = files, "jpegs", 10
        self.class_names = tuple(map(str, range(10)))
        self.fingerprint = digest(*files)

    def __len__(self) -> int:
        return NUM_RECORDS

    def __getitem__(self, index: int) -> data.Record:
        file = self.files[int(index) % len(self.files)]
        return {"image": file, "label": int(index) % 10, "name": str(index)}


def input_pipeline(spec: Spec) -> Job:
    """Training batches from JPEG files: decoded, cropped, resized, mirrored."""
    transform = data.make_transform(
        name="inception_crop", size=(spec.image_size, spec.image_size), train=True
    )
    batches = data.train_batches(
        JpegSource(encoded_files(spec)), transform, batch_size=spec.batch, seed=0,
        num_threads=CORES,
    )  # fmt: skip
    return Job(lambda: next(batches), spec.batch, unmeasured=BUFFERED)


def decode_only(spec: Spec) -> Job:
    """A lower bound for the input pipeline: decode and resize whole images, on as many threads."""
    import concurrent.futures

    files = encoded_files(spec)
    pool = concurrent.futures.ThreadPoolExecutor(CORES)
    size = (spec.image_size, spec.image_size)
    resize = data.make_transform(name="resize", size=size, train=False)
    position = [0]

    def once() -> None:
        chosen = [files[(position[0] + i) % len(files)] for i in range(spec.batch)]
        position[0] += spec.batch
        list(pool.map(lambda file: resize(data.decode(file, "")), chosen))

    return Job(once, spec.batch)


def matmul_ceiling(dtype: str) -> float:
    """FLOP/s of a large square product in `dtype` with float32 results: the peak for MFU."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    return product_rate(n, n, n, dtype)


def product_rate(m: int, k: int, n: int, dtype: str, rounds: int = 3) -> float:
    """FLOP/s of (m, k) @ (k, n), the best of several rounds of about 0.1 s."""
    a = jax.random.normal(jax.random.key(0), (m, k), jnp.dtype(dtype))
    b = jax.random.normal(jax.random.key(1), (k, n), jnp.dtype(dtype))

    @jax.jit
    def run(a, b, repeats):
        def body(_, a):  # each product feeds the next, so that none is optimised away
            product = jnp.matmul(a, b, preferred_element_type=jnp.float32)
            return a + (product[:, :1] * 1e-9).astype(a.dtype)

        return jax.lax.fori_loop(0, repeats, body, a)

    def seconds(repeats: int) -> float:
        begin = time.perf_counter()
        run(a, b, repeats).block_until_ready()
        return time.perf_counter() - begin

    seconds(1)
    repeats = max(1, round(0.1 / seconds(1)))
    return 2 * m * k * n * repeats / min(seconds(repeats) for _ in range(rounds))


def copy_rate(megabytes: int = 256) -> float:
    """Bytes read and written per second by a copy on the device."""
    x = jnp.zeros((megabytes << 18,), jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    copy(x).block_until_ready()
    best = math.inf
    for _ in range(5):
        begin = time.perf_counter()
        copy(x).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2 * x.nbytes / best


def gemm_shapes(config: models.ViTConfig, batch: int) -> dict[str, tuple[int, int, int]]:
    """The products (m, k, n) of a ViT's layers, at a batch size."""
    rows, d, hidden = batch * config.num_tokens, config.hidden_size, config.mlp_dim
    return {
        "qkv": (rows, d, 3 * d),
        "out": (rows, d, d),
        "mlp 1": (rows, d, hidden),
        "mlp 2": (rows, hidden, d),
    }


def machine(spec: Spec) -> Row:
    """Peak rates of this machine: FLOP/s of a large product and of the model's, copy bytes/s."""
    found: Row = {
        "device": jax.devices()[0].device_kind,
        "matmul": matmul_ceiling(spec.dtype),
        "copy": copy_rate(),
    }
    config = models.get_config(spec.variant, image_size=spec.image_size)
    if isinstance(config, models.ViTConfig):
        found["products"] = {
            name: product_rate(*shape, spec.dtype)
            for name, shape in gemm_shapes(config, spec.batch).items()
        }
    return found


TASKS: dict[str, Callable[[Spec], Job]] = {
    "train": train,
    "inference": inference,
    "latency": inference,  # batch 1, with percentiles
    "attention": attention,
    "checkpoint": checkpoint,
    "input": input_pipeline,
}


def build(spec: Spec) -> Job:
    """The job of this package for a measurement."""
    return TASKS[spec.task](spec)
