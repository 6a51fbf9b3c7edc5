"""A model of many machines: traffic, step time, goodput and cost of the paper's runs.

  python -m vit_jax.bench.scale          # the predicted tables of docs/scale.md
  python -m vit_jax.bench.scale --read   # traffic read from the compiled steps, beside ours

Everything but `--read` is arithmetic on the datasheets and assumptions in the tables below.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh

from vit_jax import config as configuration, data, models
from vit_jax.bench import collectives
from vit_jax.models import ViTConfig, cost
from vit_jax.runtime import sharding
from vit_jax.training.setup import abstract_batch, jit_train_step, set_up

BATCH = 4096  # Table 3
GRADIENT_BYTES, COMPUTE_BYTES = 4, 2  # float32 sums; kernels are gathered in bfloat16
STATE_BYTES = 12  # per parameter: weights and Adam's two moments, float32


class Chip(NamedTuple):
    """An accelerator by its vendor's datasheet, and two assumptions about it.

    peak: dense bfloat16 FLOP/s. hbm: bytes/s. memory: bytes. link: bytes/s that a chip sends to its
    neighbours (v5e: four links of a 2-D torus; H100: NVLink). network: bytes/s of its own network
    card, 0 if all chips are neighbours. node: chips that `link` connects. host: chips of one host.
    Assumed: mfu, the share of the peak that a step's arithmetic reaches by itself; price, dollars
    per chip and hour, an example to be replaced by yours.
    """

    peak: float
    hbm: float
    memory: float
    link: float
    network: float
    node: int
    host: int
    mfu: float
    price: float


CHIPS = {
    # Google Cloud, "TPU v5e": 197 TFLOP/s, 16 GB at 819 GB/s, 1600 Gbit/s between chips. Its mfu is
    # without the update: the compiler says 76% for L/16, 64 images a chip (docs/performance.md).
    "v5e": Chip(197e12, 819e9, 16e9, 200e9, 0.0, 256, 4, mfu=0.74, price=1.20),
    # NVIDIA, "H100 SXM": 989 TFLOP/s dense, 80 GB at 3.35 TB/s, NVLink 900 GB/s both ways together;
    # one ConnectX-7 of 400 Gbit/s per GPU, as in a DGX H100.
    "H100": Chip(989e12, 3.35e12, 80e9, 450e9, 50e9, 8, 8, mfu=0.40, price=3.00),
}
LINK_EFFICIENCY = 0.8  # assumed: fraction of a link's datasheet bandwidth

#: (chip, mesh): the machines of docs/scale.md.
MACHINES = (
    ("v5e", dict(data=256)),
    ("v5e", dict(data=16, fsdp=16)),
    ("v5e", dict(data=1, fsdp=256)),
    ("v5e", dict(data=64, tensor=4)),
    ("H100", dict(data=512)),
    ("H100", dict(data=64, fsdp=8)),
    ("H100", dict(data=64, tensor=8)),
)
RUNS = (("L/16", 7), ("L/16", 14), ("H/14", 14))  # Table 2 and Table 6, on JFT-300M


# --- traffic ------------------------------------------------------------------------------------


def vit_config(variant: str) -> ViTConfig:
    """The model of the paper's JFT-300M runs."""
    config = cost.pretraining_config(variant)
    assert isinstance(config, ViTConfig)
    return config


@functools.cache
def shapes(config: ViTConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(path, shape) of every parameter."""
    return tuple((path, leaf.shape) for path, leaf in models.abstract_params(config).items())


def abstract_mesh(axes: dict[str, int]) -> AbstractMesh:
    """A mesh by its sizes; no devices are needed."""
    return AbstractMesh(tuple(axes.get(name, 1) for name in sharding.AXES), sharding.AXES)


def traffic(config: ViTConfig, mesh: Any, batch_size: int = BATCH) -> dict[str, float]:
    """Bytes that each device sends in a step, by purpose, on rings along the axes of the mesh.

    "gather" over fsdp: each split kernel twice, for the forward and the backward pass. "scatter"
    over fsdp: its gradient once. "sum" over data: the gradient of what this device keeps.
    "activations" over tensor: two sums in the forward and two in the backward pass of a layer.
    """
    d, f, t = (mesh.shape[name] for name in sharding.AXES)
    sent = dict.fromkeys(("gather", "scatter", "sum", "activations"), 0.0)
    for path, shape in shapes(config):
        axes = sharding.param_spec(path, shape, mesh)
        size = math.prod(shape) / (t if "tensor" in axes else 1)
        if "fsdp" in axes:
            sent["gather"] += 2 * size * COMPUTE_BYTES * (f - 1) / f
            sent["scatter"] += size * GRADIENT_BYTES * (f - 1) / f
            size /= f
        else:
            sent["scatter"] += 2 * size * GRADIENT_BYTES * (f - 1) / f
        sent["sum"] += 2 * size * GRADIENT_BYTES * (d - 1) / d
    rows = batch_size / (d * f) * config.num_tokens
    activation = rows * config.hidden_size * GRADIENT_BYTES
    sent["activations"] = 4 * config.num_layers * activation * 2 * (t - 1) / t
    return sent


AXIS_OF = {"gather": "fsdp", "scatter": "fsdp", "sum": "data", "activations": "tensor"}


def bandwidth(chip: Chip, mesh: Any, axis: str) -> float:
    """Bytes/s that one chip can send to a ring along `axis`; the last axis is the nearest.

    Within a node: the links, on a torus those of the dimensions that the ring spans. Across nodes:
    the network cards of the chips of a node that are on the same ring.
    """
    sizes = [mesh.shape[name] for name in sharding.AXES]
    position = sharding.AXES.index(axis)
    stride, size = math.prod(sizes[position + 1 :]), sizes[position]
    if not chip.network:  # a 16 x 16 torus has two dimensions, with half of the links each
        share = 1.0 if size > math.isqrt(chip.node) else 0.5
        return chip.link * share * LINK_EFFICIENCY
    if stride * size <= chip.node:
        return chip.link * LINK_EFFICIENCY
    on_this_node = max(1, chip.node // stride)
    return min(chip.link, on_this_node * chip.network) * LINK_EFFICIENCY


class Step(NamedTuple):
    """Predicted seconds of a step. update: reading and writing the optimizer's state."""

    compute: float
    update: float
    gradients: float  # gather, scatter and sum: can run beside the arithmetic
    activations: float  # tensor parallel: the next product waits for it

    @property
    def overlapped(self) -> float:
        return max(self.compute, self.gradients) + self.activations + self.update

    @property
    def serial(self) -> float:
        return sum(self)


def predict_step(variant: str, chip: Chip, axes: dict[str, int], batch_size: int = BATCH) -> Step:
    """Seconds of one training step of the pre-training configuration on a mesh of chips."""
    config, mesh = vit_config(variant), abstract_mesh(axes)
    chips = math.prod(axes.values())
    sent = traffic(config, mesh, batch_size)
    seconds = {name: sent[name] / bandwidth(chip, mesh, AXIS_OF[name]) for name in sent}
    # Read the gradient, read and write weights and moments.
    moved = state_per_device(config, mesh) * (2 + GRADIENT_BYTES / STATE_BYTES)
    return Step(
        cost.train_flops_per_image(config) * batch_size / (chips * chip.peak * chip.mfu),
        moved / chip.hbm,
        seconds["gather"] + seconds["scatter"] + seconds["sum"],
        seconds["activations"],
    )


def state_per_device(config: ViTConfig, mesh: Any) -> float:
    """Bytes of weights and Adam's moments that one device holds."""
    total = 0.0
    for path, shape in shapes(config):
        axes = [axis for axis in sharding.param_spec(path, shape, mesh) if axis]
        total += STATE_BYTES * math.prod(shape) / math.prod(mesh.shape[a] for a in axes)
    return total


def table_steps(variants: Iterable[str] = ("L/16", "H/14")) -> list[str]:
    """Predicted step times, as Markdown."""
    rows = [
        "| model | chips | mesh | state GB | sent MB | compute | update | sums, gathers "
        "| activations | overlapped | one by one | images/s |",
        "|-|-|-|-|-|-|-|-|-|-|-|-|",
    ]
    for variant in variants:
        config = vit_config(variant)
        for name, axes in MACHINES:
            mesh, step = abstract_mesh(axes), predict_step(variant, CHIPS[name], axes)
            times = (*step, step.overlapped, step.serial)
            rows.append(
                f"| {variant} | {math.prod(axes.values())} {name} | {mesh_text(axes)} "
                f"| {state_per_device(config, mesh) / 1e9:.2f} "
                f"| {sum(traffic(config, mesh).values()) / 1e6:,.0f} | "
                + " | ".join(f"{1e3 * seconds:.1f}" for seconds in times)
                + f" | {BATCH / step.overlapped:,.0f} |"
            )
    return rows


def mesh_text(axes: dict[str, int]) -> str:
    return " × ".join(f"{name} {size}" for name, size in axes.items() if size > 1)


#: Assumed: bytes of a stored JPEG (ImageNet's mean); images of 500 x 375 that a core decodes and
#: crops in a second (measured: 1,100 on one core of an AMD EPYC).
JPEG_BYTES, IMAGES_PER_CORE = 110e3, 1000


def table_input(variants: Iterable[str] = ("L/16", "H/14")) -> list[str]:
    """What the fastest mesh of each machine asks of each host's input, as Markdown."""
    rows = [
        "| model | chips | images/s | hosts | images/s per host | cores per host "
        "| MB/s read per host | MB per step to its chips |",
        "|-|-|-|-|-|-|-|-|",
    ]
    for variant in variants:
        for name, chip in CHIPS.items():
            meshes = [axes for machine, axes in MACHINES if machine == name]
            seconds = min(predict_step(variant, chip, axes).overlapped for axes in meshes)
            chips = math.prod(meshes[0].values())
            hosts, rate = chips // chip.host, BATCH / seconds
            image = math.prod(vit_config(variant).image_size) * 3  # uint8
            rows.append(
                f"| {variant} | {chips} {name} | {rate:,.0f} | {hosts} | {rate / hosts:,.0f} "
                f"| {math.ceil(rate / hosts / IMAGES_PER_CORE)} "
                f"| {rate / hosts * JPEG_BYTES / 1e6:,.0f} | {BATCH * image / hosts / 1e6:.1f} |"
            )
    return rows


class Jft(data.Source):  # what follows is read from compiled steps
    """A data set of JFT-300M's size that cannot be read; enough to prepare a run."""

    spec, fingerprint = "jft", "none"
    num_classes = cost.JFT_CLASSES
    class_names = tuple(map(str, range(cost.JFT_CLASSES)))

    def __len__(self) -> int:
        return cost.JFT_IMAGES

    def __getitem__(self, index: int) -> data.Record:
        raise NotImplementedError


def compiled_text(variant: str, mesh: Mesh, **settings: Any) -> str:
    """HLO of the training step of `configs/pretrain.py:VARIANT,jft` on a mesh, in bfloat16."""
    config = configuration.load(f"configs/pretrain.py:{variant},jft")
    config.compute_dtype = "bfloat16"
    config.model.update(settings)
    setup = set_up(config, sources=(Jft(), Jft()), mesh=mesh)
    state, batch = setup.program.abstract_state, abstract_batch(setup)
    return jit_train_step(setup).lower(state, batch).compile().as_text()


def read_traffic(variant: str, mesh: Mesh) -> dict[str, collectives.Total]:
    """Collectives of a step, from the HLO of one and of two layers: the rest are alike."""
    layers = vit_config(variant).num_layers
    one, two = (
        collectives.totals(collectives.read(compiled_text(variant, mesh, num_layers=n)))
        for n in (1, 2)
    )
    nothing = collectives.Total(0, 0, 0.0)
    return {
        kind: collectives.Total(
            *(
                round(a + (layers - 1) * (b - a))
                for a, b in zip(one.get(kind, nothing), two[kind], strict=True)
            )
        )
        for kind in two
    }


def table_read(machines: Iterable[tuple[str, dict[str, int]]]) -> Iterable[str]:
    """Traffic read from the HLO of CPU devices beside `traffic`, as Markdown."""
    yield "| model | mesh | read: kind | times | result MB | sent MB | our formula, sent MB |"
    yield "|-|-|-|-|-|-|-|"
    for variant in ("L/16", "H/14"):
        config = vit_config(variant)
        for _, axes in machines:
            devices = jax.devices()[: math.prod(axes.values())]
            mesh = sharding.make_mesh(**axes, devices=devices)
            sent = {name: value for name, value in traffic(config, mesh).items() if value}
            ours = ", ".join(f"{name} {value / 1e6:,.0f}" for name, value in sent.items())
            for kind, total in read_traffic(variant, mesh).items():
                yield (
                    f"| {variant} | {mesh_text(axes)} | {kind} | {total.times} "
                    f"| {total.size / 1e6:,.0f} | {total.moved / 1e6:,.0f} | {ours} |"
                )


# --- goodput --------------------------------------------------------------------------------------

#: Assumptions. Llama 3's report (arXiv 2407.21783, section 3.3.4) counts 419 unexpected stops in 54
#: days on 2,048 hosts of 8 H100, which is one in 6,300 hours of a host.
HOST_HOURS_BETWEEN_FAILURES = 6_300.0
RESTART_SECONDS = 300.0  # scheduling, compilation, restoring
COPY_BYTES_PER_SECOND = 5e9  # device to host; the step waits (255 MB took 0.05 s)
WRITE_BYTES_PER_SECOND = 0.5e9  # host to storage, in the background


class Goodput(NamedTuple):
    """interval: seconds between saves. share: of the time that goes into steps that are kept."""

    interval: float
    share: float


def goodput(
    stall: float, failure: float, restart: float, write: float, interval: float | None = None
) -> Goodput:
    """The share of time that is not lost, at an interval or at the best (Young 1974, Daly 2006).

    Lost are `stall` of every interval, and at each failure, every `failure` seconds, the restart,
    half an interval on average, and a save that was still being written. The best interval is
    sqrt(2 stall failure), not below the time that writing takes. All in seconds.
    """
    best = max(math.sqrt(2 * stall * failure), write)
    interval = best if interval is None else interval
    lost = stall / (interval + stall) + (restart + interval / 2 + write) / failure
    return Goodput(interval, max(0.0, 1 - lost))


def table_goodput(variant: str = "H/14", hosts: Iterable[int] = (1, 8, 64, 512)) -> list[str]:
    """Best checkpoint interval and goodput against the number of H100 hosts, as Markdown."""
    size = STATE_BYTES * sum(math.prod(shape) for _, shape in shapes(vit_config(variant)))
    rows = [
        "| hosts | hours between failures | stall s | write s | step s | best interval "
        "| checkpoint_every_steps | goodput | at 1,000 steps |",
        "|-|-|-|-|-|-|-|-|-|",
    ]
    chip = CHIPS["H100"]
    for count in hosts:
        step = predict_step(variant, chip, dict(data=count, fsdp=chip.host)).overlapped
        stall = 0.1 + size / count / COPY_BYTES_PER_SECOND
        write = size / count / WRITE_BYTES_PER_SECOND
        failure = 3600 * HOST_HOURS_BETWEEN_FAILURES / count
        best = goodput(stall, failure, RESTART_SECONDS, write)
        usual = goodput(stall, failure, RESTART_SECONDS, write, interval=1000 * step)
        rows.append(
            f"| {count} | {failure / 3600:,.0f} | {stall:.2f} | {write:.1f} | {step:.3f} "
            f"| {best.interval / 60:.0f} min | {round(best.interval / step, -1):,.0f} "
            f"| {best.share:.2%} | {usual.share:.2%} |"
        )
    return rows


# --- cost -----------------------------------------------------------------------------------------


def chip_hours(variant: str, epochs: float, chip: Chip, mfu: float) -> float:
    """Hours of one chip that pre-training on JFT-300M takes, at a share `mfu` of its peak."""
    return cost.exaflops(variant, epochs) * 1e18 / (chip.peak * mfu) / 3600


def table_cost() -> list[str]:
    """What the paper's runs cost on today's chips, as Markdown; without failures and evaluation."""
    rows = [
        "| run | exaFLOPs | chip | MFU assumed | chip-hours | hours on 256 v5e or 512 H100 "
        "| $ per chip-hour, example | $ |",
        "|-|-|-|-|-|-|-|-|",
    ]
    for variant, epochs in RUNS:
        for name, chip in CHIPS.items():
            hours = chip_hours(variant, epochs, chip, chip.mfu)
            count = {"v5e": 256, "H100": 512}[name]
            rows.append(
                f"| {variant}, {epochs} epochs | {cost.exaflops(variant, epochs):,.0f} | {name} "
                f"| {chip.mfu:.0%} | {hours:,.0f} | {hours / count:.1f} "
                f"| {chip.price:.2f} | {hours * chip.price:,.0f} |"
            )
    return rows


# --- commands -------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Predictions for many chips; see docs/scale.md.")
    parser.add_argument("--read", action="store_true", help="compile and read; takes minutes")
    options = parser.parse_args()
    if options.read:
        jax.config.update("jax_num_cpu_devices", 512)
        for line in table_read(MACHINES):
            print(line, flush=True)
        return
    for table in (table_steps(), table_input(), table_goodput(), table_cost()):
        print("\n".join(table), end="\n\n")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
