"""Random deaths under a supervisor: whatever happens, a run ends in the undisturbed weights.

  python tests/soak.py --minutes=60 --seed=1
  python tests/soak.py --minutes=60 --seed=2 --config.roll_back.factor=1.5

Runs of two families in turn: one process with one device, and two processes of one device, whose
bytes are those of one process with two. Each is disturbed at random, by what `DISTURBANCES` and
`WHILE_IT_IS_DOWN` list, and started again as its launcher would, until it ends. Then its model must
have the bytes of a run that was left alone, and its log the losses. What happens is printed as it
comes; the first thing that is not as docs/reliability.md says ends the soak with exit code 1, and
the files stay where they are.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from tiny_runs import free_port

from vit_jax.runtime.logbook import read_metrics

TRAIN = [
    "train", "--config=configs/quickstart.py", "--config.pretrain=None",
    "--config.total_epochs=None", "--config.eval_every_epochs=None",
    "--config.eval_every_steps=150", "--config.schedule.warmup_steps=10",
    "--config.log_every_steps=5", "--config.checkpoint_every_steps=20",
    "--config.keep_checkpoints=3", "--config.batch_size=16", "--config.model.dropout_rate=0.1",
    "--config.polyak_decay=0.99", "--config.model.hidden_size=32", "--config.model.num_layers=1",
]  # fmt: skip
#: How many processes of one device a family has.
FAMILIES = {"one": 1, "two": 2}
#: Seconds until all processes of a job must have ended after one of them.
TOGETHER = 100
ROOT = Path(__file__).parents[1]


class Wrong(Exception):
    """Something that is not as promised."""


class Job(NamedTuple):
    """The processes of one attempt, and where they write what they print."""

    processes: list[subprocess.Popen]
    prints: list[Path]

    def alive(self) -> list[subprocess.Popen]:
        return [process for process in self.processes if process.poll() is None]

    def printed(self, rank: int) -> str:
        return self.prints[rank].read_text(errors="replace")


class Soak:
    """One run on its disk, disturbed until `until` (of time.monotonic)."""

    def __init__(
        self, family: str, steps: int, disk: Path, rng: random.Random, until: float, say: Callable
    ):
        self.steps = steps
        self.count, self.disk, self.rng, self.until, self.say = (
            FAMILIES[family], disk, rng, until, say,
        )  # fmt: skip
        self.workdir = disk / "run"
        self.filler = disk / "filler"
        self.mounted = os.path.ismount(disk)

    def start(self, prints: Path, *more: str, devices: int = 1) -> Job:
        join = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={self.count}"]
        join.append("--patience=60")  # so below TOGETHER, should the other be asked to stop before
        job = Job([], [])
        for rank in range(self.count):
            of_rank = [*join, f"--process_id={rank}"] if self.count > 1 else []
            command = [sys.executable, "-m", "vit_jax", *TRAIN, f"--workdir={self.workdir}"]
            command.append(f"--config.total_steps={self.steps}")
            job.prints.append(prints.with_suffix(f".{rank}"))
            with open(job.prints[-1], "wb") as out:
                job.processes.append(
                    subprocess.Popen(
                        [*command, *more, *of_rank], cwd=ROOT, stdout=out, stderr=out,
                        env={**os.environ, "JAX_PLATFORMS": "cpu",
                             "JAX_NUM_CPU_DEVICES": str(devices)},
                    )
                )  # fmt: skip
        return job

    def lines(self) -> list[dict]:
        file = self.workdir / "metrics.jsonl"
        return read_metrics(file) if file.exists() else []

    def step(self) -> int:
        records = self.lines()
        return int(records[-1]["step"]) if records else 0

    def steps_saved(self) -> list[Path]:
        return sorted((self.workdir / "checkpoints").glob("0????????"))

    def damaged(self) -> int:
        return len(list((self.workdir / "damaged").glob("0*")))


# --- what happens to a run that is under way: each returns what it has done, or "" --------------


def kill(soak: Soak, job: Job) -> str:
    rank = soak.rng.randrange(soak.count)
    job.processes[rank].kill()
    return f"kill -9 of process {rank}"


def kill_all(soak: Soak, job: Job) -> str:
    for process in job.processes:
        process.kill()
    return "kill -9 of all processes"


def term(soak: Soak, job: Job) -> str:
    rank = soak.rng.randrange(soak.count)
    job.processes[rank].terminate()
    return f"TERM to process {rank}"


def stop_and_continue(soak: Soak, job: Job) -> str:
    rank, seconds = soak.rng.randrange(soak.count), soak.rng.uniform(0.2, 5)
    job.processes[rank].send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    job.processes[rank].send_signal(signal.SIGCONT)
    return f"STOP of process {rank}, CONT after {seconds:.1f} s"


def freeze(soak: Soak, job: Job) -> str:
    """For good, of several: the others notice, and the launcher kills what is left."""
    if soak.count == 1 or soak.rng.random() < 0.5:  # it takes half a minute
        return ""
    rank = soak.rng.randrange(soak.count)
    job.processes[rank].send_signal(signal.SIGSTOP)
    others = [process for process in job.processes if process is not job.processes[rank]]
    with contextlib.suppress(subprocess.TimeoutExpired):
        for process in others:
            process.wait(TOGETHER)
    job.processes[rank].kill()
    return f"STOP of process {rank} for good"


def workers(job: Job) -> list[psutil.Process]:
    """The processes that decode images."""
    found = []
    for process in job.alive():
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child)
    return found


def kill_worker(soak: Soak, job: Job) -> str:
    if not (found := workers(job)):
        return ""
    with contextlib.suppress(psutil.Error):
        soak.rng.choice(found).kill()
    return "kill -9 of a data worker"


def stop_worker(soak: Soak, job: Job) -> str:
    if not (found := workers(job)):
        return ""
    with contextlib.suppress(psutil.Error):
        worker = soak.rng.choice(found)
        worker.suspend()
        time.sleep(soak.rng.uniform(0.2, 3))
        worker.resume()
    return "STOP and CONT of a data worker"


def full_disk(soak: Soak, job: Job) -> str:
    """No room but for a little, until the job ends or eight seconds are over."""
    if not soak.mounted:
        return ""
    left = soak.rng.choice([0, 0, soak.rng.randrange(200_000)])
    with contextlib.suppress(OSError), open(soak.filler, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)
    with contextlib.suppress(OSError):
        os.truncate(soak.filler, max(0, soak.filler.stat().st_size - left))
    wait(job, 8)
    soak.filler.unlink()
    return f"full disk, {left:,} bytes left"


def small_files(soak: Soak, job: Job) -> str:
    """As a quota: no file may grow beyond a size, until the job ends or eight seconds are over."""
    size = soak.rng.choice([0, 1000, 20_000])
    hard = resource.RLIM_INFINITY
    for process in job.alive():
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, hard))
    wait(job, 8)
    for process in job.alive():
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    return f"no file above {size:,} bytes"


#: How often each is chosen.
DISTURBANCES = {
    kill: 4, kill_all: 1, term: 3, stop_and_continue: 2, freeze: 1, kill_worker: 2, stop_worker: 1,
    full_disk: 3, small_files: 2,
}  # fmt: skip

# --- what happens while it is down: each returns what it has done, and what puts it back --------


def flip(soak: Soak) -> tuple[str, Callable[[], object] | None]:
    """A bit of the newest checkpoint, where there is one before it."""
    if len(steps := soak.steps_saved()) < 2:
        return "", None
    files = [
        path for path in sorted(steps[-1].rglob("*")) if path.is_file() and path.stat().st_size
    ]
    file = soak.rng.choice(files)
    content = bytearray(file.read_bytes())
    bit = soak.rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return f"bit {bit} of {file.relative_to(soak.workdir)} flipped", None


def out_of_reach(soak: Soak) -> tuple[str, Callable[[], object] | None]:
    """A part of the newest checkpoint, for one attempt: storage that does not answer."""
    if not (steps := soak.steps_saved()):
        return "", None
    away = soak.disk / "away"
    part = steps[-1] / "state" / "ocdbt.process_0"
    if not part.exists():
        return "", None
    shutil.move(part, away)

    def put_back() -> None:
        if not part.parent.exists():
            raise Wrong(f"{part.parent} was moved although it could not be read")
        shutil.move(away, part)

    return f"{part.relative_to(soak.workdir)} out of reach", put_back


WHILE_IT_IS_DOWN = {flip: 2, out_of_reach: 1}

# --- the supervisor -----------------------------------------------------------------------------


def wait(job: Job, seconds: float) -> bool:
    """Whether all processes ended within so many seconds."""
    deadline = time.monotonic() + seconds
    while job.alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not job.alive()


def disturb(soak: Soak, job: Job) -> str:
    """Waits for a moment that is drawn, then does to the job what is drawn; says what."""
    begin = soak.step() if soak.rng.random() < 0.75 else None
    while begin is not None and job.alive() and soak.step() == begin:
        time.sleep(0.05)
    if wait(job, soak.rng.uniform(0, 2 if begin is not None else 8)):
        return ""
    while True:
        act = soak.rng.choices(list(DISTURBANCES), list(DISTURBANCES.values()))[0]
        if done := act(soak, job):
            return done


#: What a sentence of an ending with 1 must hold, by the words of what was done.
CAUSES = {
    "full disk": ("No space", "RESOURCE_EXHAUSTED", "cannot be written", "was not written"),
    "no file above": ("too large", "cannot be written", "was not written"),
    "data worker": ("worker",),
    "out of reach": ("cannot be read",),
    "flipped": ("cannot be read",),
}


def limit_of(done: str) -> float:
    """The largest size of a file, by what `small_files` said."""
    words = done.split()
    return float(words[3].replace(",", "")) if done.startswith("no file above") else math.inf


#: Ends that a launcher starts again: asked to stop, the others did not come, killed, peer lost.
AGAIN = {42, 75, -9, 137, -6, 134}


def settle(soak: Soak, job: Job, happened: list[str]) -> bool:
    """Waits for the end of an attempt; whether the run is over.

    Raises:
      Wrong: it ended in another way than what happened to it explains.
    """
    if not wait(job, 600 if not happened else TOGETHER) and not happened:
        raise Wrong("ten minutes without an end")
    if job.alive() and any(done.startswith("kill") for done in happened):
        raise Wrong(f"after {happened} nobody ended in {TOGETHER} s")
    if job.alive() and any(process.poll() is not None for process in job.processes):
        raise Wrong(f"after {happened} only some of the processes ended in {TOGETHER} s")
    if not wait(job, 600):
        raise Wrong(f"after {happened}: ten minutes without an end")
    codes = [process.returncode for process in job.processes]
    for rank, code in enumerate(codes):
        printed = job.printed(rank)
        if "Traceback" in printed and code not in AGAIN:
            raise Wrong(f"after {happened}: a traceback\n{printed[-3000:]}")
        explained = any(
            any(words in printed for words in causes)
            for what, causes in CAUSES.items()
            if any(what in done for done in happened)
        )
        if len(printed.encode()) >= min(map(limit_of, happened), default=math.inf):
            explained = True  # what it said did not fit into the file of its output either
        lost = soak.count > 1 and "another process" in printed
        if code not in AGAIN | {0} and not (code == 1 and (explained or lost)):
            raise Wrong(f"after {happened}: process {rank} ended with {code}\n{printed[-3000:]}")
    return codes == [0] * soak.count


def disturbed(soak: Soak, logs: Path) -> collections.Counter[str]:
    """One run from its beginning to its end; what happened to it, counted."""
    counts: collections.Counter[str] = collections.Counter()
    attempt, over = 0, False
    while not over:
        attempt += 1
        more = [] if soak.rng.random() < 0.6 else ["--config.data.num_workers=1"]
        happened, put_back = [], None
        if attempt > 1 and time.monotonic() < soak.until and soak.rng.random() < 0.3:
            acts = list(WHILE_IT_IS_DOWN)
            act = soak.rng.choices(acts, list(WHILE_IT_IS_DOWN.values()))[0]
            done, put_back = act(soak)
            happened += [done] if done else []
        before = soak.damaged()
        job = soak.start(logs / f"{attempt:04d}", *more)
        try:
            if not put_back and time.monotonic() < soak.until and soak.rng.random() < 0.9:
                for _ in range(3):  # after what ends nothing comes another
                    if done := disturb(soak, job):
                        happened.append(done)
                    if not done or done.startswith(("kill", "TERM")) or not job.alive():
                        break
            over = settle(soak, job, happened)
        finally:
            for process in job.alive():
                process.kill()
                process.wait()
        if put_back:
            put_back()
        elif any("flipped" in done for done in happened):
            follow_advice(soak, job)
        codes = " ".join(str(process.returncode) for process in job.processes)
        aside = ", set aside" if soak.damaged() > before else ""
        what = "; ".join(happened) or "left alone"
        soak.say(f"attempt {attempt}: {what} -> {codes}, step {soak.step()}{aside}")
        counts.update(done.split(",")[0].split(" of process")[0] for done in map(kind, happened))
    return counts


def kind(done: str) -> str:
    """What is counted: "bit 7 of X flipped" as "a bit flipped"."""
    for words in ("flipped", "out of reach", "no file above", "full disk"):
        if words in done:
            return words
    return done


def follow_advice(soak: Soak, job: Job) -> None:
    """A checkpoint that is said to be unreadable is moved away, as the sentence says."""
    newest = soak.steps_saved()
    if newest and any("It may be intact" in job.printed(rank) for rank in range(soak.count)):
        shutil.move(newest[-1], soak.disk / f"moved-{time.monotonic_ns()}")


def check(soak: Soak, whole: Path) -> None:
    """Raises Wrong if a run did not end in the model and the losses of the undisturbed one."""
    model = "model/model.safetensors"
    if (soak.workdir / model).read_bytes() != (whole / model).read_bytes():
        raise Wrong(f"{soak.workdir / model} has other bytes than {whole / model}")
    losses = [
        {r["step"]: r["train/loss"] for r in read_metrics(where / "metrics.jsonl")
         if "train/loss" in r and r["step"] % 5 == 0}
        for where in (soak.workdir, whole)
    ]  # fmt: skip
    if losses[0] != losses[1] or max(losses[0]) != soak.steps:
        raise Wrong(f"the log of {soak.workdir} has other losses than that of {whole}")


def undisturbed(scratch: Path, steps: int, say: Callable) -> dict[str, Path]:
    """A run of each family that was left alone; between them the losses agree to 1e-5 at first."""
    found, losses = {}, []
    for family, devices in FAMILIES.items():
        disk = scratch / f"whole_{family}"
        disk.mkdir()
        soak = Soak("one", steps, disk, random.Random(0), 0.0, say)
        job = soak.start(disk / "log", devices=devices)
        if not settle(soak, job, []):
            raise Wrong(f"the undisturbed run failed\n{job.printed(0)[-3000:]}")
        found[family] = soak.workdir
        losses.append([r["train/loss"] for r in soak.lines() if r["step"] <= 20])
        say(f"undisturbed with {devices} device(s)")
    off = float(np.abs(np.subtract(*losses)).max())
    say(f"loss of the two families: {off:.1e} apart in the first 20 steps")
    if off > 1e-5:
        raise Wrong("the losses of the two families are more than 1e-5 apart")
    return found


@contextlib.contextmanager
def small_disk(place: Path):
    """A file system of 24 MB at `place`, where one may be mounted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield
    except BaseException:
        if mounted:  # what was found wrong is kept
            shutil.copytree(place, place.with_name(f"{place.name}_kept"), dirs_exist_ok=True)
        raise
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)  # a worker may live on


def say_of(say: Callable, name: str, text: str) -> None:
    say(f"{name} {text}")


def soak(minutes: float, seed: int, steps: int = 600) -> collections.Counter[str]:
    """Disturbs runs for so long, and waits for the end of the last one; what happened, counted.

    Raises:
      Wrong: something is not as promised.
    """
    begin, rng = time.monotonic(), random.Random(seed)
    scratch = Path(tempfile.mkdtemp(prefix="soak_"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(scratch / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    counts: collections.Counter[str] = collections.Counter()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:7.1f} s  {text}", flush=True)

    say(f"seed {seed}, files in {scratch}")
    whole = undisturbed(scratch, steps, say)
    until, number = time.monotonic() + 60 * minutes, 0
    while not number or time.monotonic() < until:
        number += 1
        family = list(FAMILIES)[number % 2]
        name = f"{number:03d}_{family}"
        logs = scratch / f"{number:03d}_logs"
        logs.mkdir()
        with small_disk(scratch / name):
            of_run = functools.partial(say_of, say, name)
            run = Soak(family, steps, scratch / name, rng, until, of_run)
            counts += disturbed(run, logs)
            check(run, whole[family])
        counts["runs"] += 1
        say(f"{name} ended in the undisturbed bytes")
        shutil.rmtree(scratch / name)
        shutil.rmtree(logs)
    say("; ".join(f"{what} {count}" for what, count in counts.most_common()))
    shutil.rmtree(scratch)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600, help="of each run")
    asked, settings = parser.parse_known_args()
    if strange := [word for word in settings if not word.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    TRAIN.extend(settings)
    try:
        soak(asked.minutes, asked.seed, asked.steps)
    except Wrong as error:
        print(f"not as promised: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
