"""The process of one contender: builds its job, then runs rounds on request.

Communicates with its parent by JSON lines: its argument is a Spec, and its input lines are
{"logits": file of images, "out": file}, {"warm": true}, {"round": seconds} and {"quit": true}.
Logits come first, since training changes the weights.
"""

from __future__ import annotations

import json
import os
import sys
import time

from vit_jax.bench import Row

BEGIN = time.perf_counter()


def main(argv: list[str]) -> None:
    contender, text = argv
    spec_of = json.loads(text)
    if contender == "weights":
        write_weights(*spec_of)
        return
    # Output of libraries must not be mixed with answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(answer: Row) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        serve(contender, spec_of, say)
    except Exception as error:
        if "VIT_JAX_BENCH_DEBUG" in os.environ:
            raise
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        say({"error": f"{type(error).__name__}: {reason}"})


def write_weights(out: str, variant: str, size: int, classes: int, formats: list) -> None:
    """Writes one random model with a random head below `out`: ours, and in each (format, name)."""
    import jax
    import numpy as np

    from vit_jax import models
    from vit_jax.interop import convert, export
    from vit_jax.models import saved

    config = models.get_config(variant, image_size=size, num_classes=classes)
    params = jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))
    kernel = np.random.default_rng(0).normal(0, 0.02, params["head/kernel"].shape)
    saved.save(f"{out}/native", config, params | {"head/kernel": kernel.astype(np.float32)})
    for form, name in formats:
        make = export.export if form in export.FORMATS else convert.convert
        make(f"{out}/native", f"{out}/{name}", form)


def serve(contender: str, spec_of: Row, say) -> None:
    import numpy as np

    from vit_jax.bench import jobs, peers
    from vit_jax.runtime import host_memory

    pause = lambda seconds: None  # noqa: E731
    if contender == "vit_jax" and host_memory.keep_freed_pages():  # as in its commands
        pause = host_memory.wait_for_free
    spec = jobs.Spec(**{**spec_of, "options": tuple(map(tuple, spec_of["options"]))})
    if contender == "machine":
        say(jobs.machine(spec))
        return
    if contender == "vit_jax":
        job = jobs.build(spec)
    elif contender == "decode":
        job = jobs.decode_only(spec)
    else:
        job = peers.find(contender)(spec)
    say({"flops": job.flops, "images": job.images, "build": time.perf_counter() - BEGIN})
    for line in sys.stdin:
        order = json.loads(line)
        if "warm" in order:
            begin = time.perf_counter()
            job.step()
            first = time.perf_counter() - begin
            job.step()
            say({"first": first})
        elif "round" in order:
            say(run_round(job, order["round"], pause))
        elif "logits" in order:
            assert job.logits is not None
            np.save(order["out"], job.logits(np.load(order["logits"])))
            say({})
        else:
            break
    say({"peak": peak_memory()})


def run_round(job, seconds: float, pause) -> Row:
    """The duration of every step of a round, and the CPU seconds of all threads per step.

    A step that returns a number reports its own duration. `pause(seconds)` is what a training loop
    does after a step; it counts.
    """
    found: list[float] = []
    for _ in range(job.unmeasured):
        job.step()
    busy, end = time.process_time(), time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        begin = time.perf_counter()
        said = job.step()
        pause(time.perf_counter() - begin)
        found.append(said if isinstance(said, float) else time.perf_counter() - begin)
    return {"seconds": found, "cpu_seconds": (time.process_time() - busy) / len(found)}


def peak_memory() -> int:
    """Peak bytes on the device by this process; on a CPU, of the process."""
    import resource

    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return int(sys.modules["torch"].cuda.max_memory_allocated())
    if "jax" in sys.modules:
        stats = sys.modules["jax"].local_devices()[0].memory_stats() or {}
        if stats.get("peak_bytes_in_use"):
            return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main(sys.argv[1:])
