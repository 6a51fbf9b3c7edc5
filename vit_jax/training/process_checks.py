"""Checks before the first step that all processes of a job agree; otherwise names the difference.

With different configurations they would silently train a mixture; with different workdirs they
would deadlock at the first checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jaxlib
import numpy as np
from jax.experimental import multihost_utils

from vit_jax import __version__, config as configuration
from vit_jax.config import ConfigDict
from vit_jax.errors import UserError
from vit_jax.runtime import sharding
from vit_jax.training.sources import Data

#: Settings that may differ: where a host has the data, which is known by its content, and how it
#: reads them.
OF_A_HOST = ("dataset", "data_dir", "exclude", "num_threads", "num_workers")
#: Seconds that network storage may take to show what another host has written.
PATIENCE = 10.0

Facts = Mapping[str, object]


def agree(workdir: Path, config: ConfigDict, **more: object) -> None:
    """Compares configuration, versions and workdir of all processes; a no-op in a single process.

    Args:
      more: other facts that must be equal, by name.

    Raises:
      UserError: on every process; names what differs, and where. The disk is unchanged.
    """
    if jax.process_count() == 1:
        return
    facts: dict[str, object] = {
        **{f"the version of {name}": version for name, version in versions().items()},
        **of_config(config),
        **more,
    }
    check_equal(facts)
    check_shared(workdir)


def check_equal(facts: Facts) -> None:
    """Raises UserError, on every process, for the first fact that differs."""
    if jax.process_count() > 1 and (problem := difference(gathered(facts))):
        raise UserError(problem)


def versions() -> dict[str, str]:
    """Versions of the packages that affect results."""
    return {
        "vit_jax": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def of_config(config: ConfigDict) -> dict[str, object]:
    """{"config.KEY": value} for the settings that must be equal on all processes."""
    flat = configuration.flatten(json.loads(configuration.to_json(config)))
    return {
        f"config.{key}": value
        for key, value in flat.items()
        if not (key.split(".")[-2:-1] == ["data"] and key.split(".")[-1] in OF_A_HOST)
    }


def of_data(data: Data) -> dict[str, object]:
    """Facts about the data that must be equal on all processes."""
    return {
        "the training data": [data.train.spec, len(data.train), data.train.fingerprint],
        "the evaluation data": [
            data.evaluation.spec, len(data.evaluation), data.evaluation.fingerprint,
        ],
    }  # fmt: skip


def difference(facts: Sequence[Facts]) -> str | None:
    """The differing values by process; None if all agree."""
    names = dict.fromkeys(name for mine in facts for name in mine)
    for name in names:
        values: dict[str, list[str]] = {}
        for process, mine in enumerate(facts):
            values.setdefault(repr(mine.get(name, "absent")), []).append(str(process))
        if len(values) > 1:
            found = "; ".join(f"{text} on process {', '.join(at)}" for text, at in values.items())
            return (
                f"The processes of this job differ: {name} is {found}. Start all of them with the "
                "same command, code and packages."
            )
    return None


def gathered(facts: Facts) -> list[Facts]:
    """All-gather of the facts of each process."""
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    longest = max(sharding.gathered(len(text)))
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, longest)
    return [json.loads(row.tobytes()) for row in rows]


def check_shared(workdir: Path) -> None:
    """Raises UserError, on every process, unless all see what process 0 writes to `workdir`."""
    first = jax.process_index() == 0
    with sign(workdir) if first else contextlib.nullcontext(("", "")) as (name, problem):
        said = gathered({"name": name, "problem": problem})[0]
        sees = first or not said["name"] or appears(workdir / str(said["name"]))
        missing = [i for i, found in enumerate(sharding.gathered(int(sees))) if not found]
    if said["problem"]:
        raise UserError(f"Process 0 cannot write to --workdir: {said['problem']}.")
    if missing:
        them = ", ".join(map(str, missing))
        raise UserError(
            f"The --workdir of process {them} is not that of process 0 ({workdir} on process "
            f"{jax.process_index()}); all processes need one directory, on storage that they share."
        )


@contextlib.contextmanager
def sign(workdir: Path) -> Iterator[tuple[str, str]]:
    """A file with a random name in `workdir`; removed afterwards, as are new folders.

    Yields:
      Its name, and why it could not be written ("" on success).
    """
    name, problem = f".together-{secrets.token_hex(16)}", ""
    new = [path for path in (workdir, *workdir.parents) if not path.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / name).touch()
    except OSError as error:
        name, problem = "", f"{workdir} ({error.strerror})"
    try:
        yield name, problem
    finally:
        with contextlib.suppress(OSError):
            if name:
                (workdir / name).unlink()
            for path in new:
                path.rmdir()


def appears(file: Path) -> bool:
    """Whether a file exists, or appears within PATIENCE: network storage may be late."""
    end = time.monotonic() + PATIENCE
    while not os.path.exists(file):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
