"""One compilation for a TPU, in a separate process started by `vit_jax.bench.tpu`.

`python -m vit_jax.bench.tpu_worker REQUEST DIRECTORY PARENT` writes row.json (the row of `--json`,
or "error") and the HLO text. It ends with the process PARENT.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies

from vit_jax import config as configuration, files, models
from vit_jax.bench import Row, collectives, hlo, kernels, steps, tpu
from vit_jax.bench.tpu import CHIPS, HLO, Request
from vit_jax.data import workers
from vit_jax.errors import UserError, first_line
from vit_jax.models import cost
from vit_jax.numerics import Machine
from vit_jax.runtime import sharding


def main(argv: list[str]) -> None:
    text, directory, parent = argv
    workers.end_with_parent(int(parent))
    request = Request(*json.loads(text))
    jax.config.update("jax_traceback_in_locations_limit", -1)  # parts are identified by functions
    try:
        row = compile_for(request, Path(directory))
    except ValueError as error:  # a UserError, or a loop of unknown trip count
        row = {"error": str(error)}
    except jax.errors.JaxRuntimeError as error:
        row = {"error": refusal(str(error))}
    files.write_json(Path(directory) / "row.json", row)


def refusal(text: str) -> str:
    """The compiler's error, in one sentence."""
    first = text.strip().splitlines()[0]
    if "RESOURCE_EXHAUSTED" in first or "Ran out of memory" in first:
        said = first.partition("RESOURCE_EXHAUSTED: ")[2] or first
        return (
            f"it does not fit: {said.strip().rstrip('.')}; use a smaller --batch or "
            "--model=remat=products."
        )
    return first


def model_of(request: Request) -> models.ModelConfig:
    settings = {key: configuration.literal(value) for key, value in request.options}
    config = models.get_config(
        request.variant, image_size=request.image_size, num_classes=request.num_classes
    )
    return models.override(config, dtype=request.dtype, **settings)


def mesh_of(request: Request) -> jax.sharding.Mesh:
    """One chip, or all of a topology.

    Raises:
      UserError: there is no such topology.
    """
    name = f"{request.chip}:{request.topology or CHIPS[request.chip].host}"
    try:
        devices = topologies.get_topology_desc(topology_name=name, platform="tpu").devices
    except Exception as error:  # any exception of libtpu
        raise UserError(f"there is no topology {name} ({first_line(error)}).") from error
    chosen = devices if request.topology else devices[:1]
    return sharding.make_mesh(**dict(request.mesh), devices=np.asarray(chosen))


def compile_for(request: Request, directory: Path) -> Row:
    """The row of a request; writes the HLO text to `directory`."""
    config, mesh = model_of(request), mesh_of(request)
    chips, train = mesh.devices.size, request.task == "train"
    machine = Machine("tpu", chips)
    batch = request.batch * chips
    if request.peer:
        from vit_jax.bench import tpu_peers

        jitted, arguments = tpu_peers.step_of(*request.peer, config, mesh, batch, train=train)
    else:
        jitted, arguments = steps.step_of(config, machine, mesh, batch, train=train)
    begin = time.perf_counter()
    traced = jitted.trace(*arguments)
    compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    seconds = time.perf_counter() - begin
    text, memory = compiled.as_text(), compiled.memory_analysis()
    files.write_text(directory / HLO, text)
    flops = cost.train_flops_per_image(config) if train else 2 * cost.forward_macs(config)
    found = estimate(text, kernels.grids(traced.jaxpr.jaxpr), directory, request.chip)
    chip = CHIPS[request.chip]
    speed = request.batch * chip.clock / found["cycles"]
    return {
        "chip": request.chip,
        "topology": request.topology,
        "chips": chips,
        "mesh": dict(mesh.shape),
        "task": request.task,
        "variant": request.variant,
        "image_size": request.image_size,
        "batch": request.batch,
        "dtype": request.dtype,
        "model": dict(request.options),
        **found,
        "images_per_second": speed,
        "share_of_peak": speed * flops / chip.peak,
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "compile_seconds": seconds,
        "estimated_by": "the compiler",
        **tpu.versions(),
    }


def estimate(
    text: str, grids: dict[tuple[str, ...], kernels.Grid], directory: Path, chip_name: str
) -> Row:
    """The compiler's estimates for a program: cycles by part, kernels, collectives."""
    chip, instructions = CHIPS[chip_name], hlo.read(text)
    called = [one for one in instructions if one.cycles is None]
    scheduled = kernels.schedules(called, directory / "llo")
    costs = {
        one.name: kernels.cost_of(
            one,
            grids,
            scheduled[one.name],
            bytes_per_cycle=chip.hbm / chip.clock,
            cores=chip.cores,
        )
        for one in called
    }
    parts = hlo.parts(instructions, lambda one: costs[one.name].cycles)
    return {
        "cycles": sum(parts.values()),
        "kernel_cycles": sum(one.times * one.cycles for one in costs.values()),
        "parts": parts,
        "kernels": [one._asdict() for one in costs.values()],
        "collectives": exchanges(text),
    }


def exchanges(text: str) -> list[Row]:
    """The collectives, and how many estimated cycles overlap with each.

    An asynchronous one is a pair of instructions, or on TPU a first fusion, others that each send a
    piece beside a product, and a last one. Without either the overlap is 0.
    """
    computations = collectives.split_computations(text)
    caller = {
        called: (name, number)
        for name, lines in computations.items()
        for number, line in enumerate(lines)
        for called in hlo.CALLS.findall(line)
    }
    defined: dict[str, tuple[str, int]] = {}
    stages: dict[str, list[tuple[str, int]]] = {}
    for name, lines in computations.items():
        for number, line in enumerate(lines):
            if match := collectives.INSTRUCTION.search(line):
                place = caller.get(name, (name, number))
                channel = collectives.CHANNEL.search(line)
                defined[match[1]] = place
                stages.setdefault(channel[1] if channel else match[1], []).append(place)
                stages[match[1]] = stages[channel[1] if channel else match[1]]
            elif done := re.search(r"-done\(.*?%([\w.\-]+)\)", line):
                stages.setdefault(done[1], []).append((name, number))
    found = []
    for one in collectives.read(text):
        host = defined[one.name][0]
        numbers = [number for name, number in stages[one.name] if name == host]
        between = computations[host][min(numbers) + 1 : max(numbers)]
        beside = sum(int(cycles) for line in between for cycles in hlo.CYCLES.findall(line))
        row = {"name": one.name, "kind": one.kind, "bytes": one.size, "times": one.times}
        found.append({**row, "overlapped_cycles": beside})
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
