"""The log of a run: JSON lines, TensorBoard, the terminal, and optionally Weights & Biases.

`WORKDIR/metrics.jsonl` is the primary log, the others are views. One strict JSON object per line:

    {"step": 200, "train/loss": 0.4123, "train/learning_rate": 0.0003, "seconds": 31.5}

`seconds` is the time spent in the run so far, without interruptions. A non-finite value is written
as `null`, since strict JSON has no NaN, and read back as NaN. The last line of a finished run has
`"final": true`. Each line is flushed, so that a killed run loses at most the line it was writing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, NoneType

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.runtime.event_files import EventFile

FILE_NAME = "metrics.jsonl"
#: Seconds between two lines of progress without a terminal.
BETWEEN_LINES = 30.0
Line = dict[str, float | None]  # as written: None for non-finite values


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Reads a `metrics.jsonl`, oldest first; non-finite values become NaN.

    A truncated last line (of a killed run) is dropped.

    Raises:
      UserError: an earlier line is invalid, so the file is damaged.
      FileNotFoundError: there is no such file.
    """
    records, damaged, num_lines = _parse(Path(path))
    if any(number < num_lines for number in damaged):
        raise UserError(f"{path}, line {damaged[0]}: not a record of a run; restore or delete it.")
    return [{k: math.nan if v is None else v for k, v in record.items()} for record in records]


class Logbook:
    """Writes the log of one run; every line, event and progress bar goes through here.

    A run that resumes at `start_step` drops what an earlier attempt logged after that step, so that
    every step occurs once. It also drops the mark `final` if steps remain.

    Args:
      workdir: where `metrics.jsonl` and the TensorBoard events go; made if missing.
      total_steps: the step at which the run ends.
      start_step: the last step already done: 0, or that of the restored checkpoint.
      wandb: also log to Weights & Biases (needs the extra `vit_jax[wandb]`).
      name: of the stage, shown before the bar, and before lines unless it is "train".
      enabled: False on all processes but the first: nothing is written.

    Raises:
      UserError: `wandb` is set but not installed.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        total_steps: int,
        start_step: int = 0,
        wandb: bool = False,
        name: str = "train",
        enabled: bool = True,
    ):
        self._enabled = enabled
        if not enabled:
            return
        self._total_steps = total_steps
        self._prefix = "" if name == "train" else f"{name} "
        self._wandb = None
        workdir = Path(workdir)
        library = _import_wandb() if wandb else None
        workdir.mkdir(parents=True, exist_ok=True)

        self._path = workdir / FILE_NAME
        records = _truncate(self._path, start_step, going_on=start_step < total_steps)
        self._last_step = int(records[-1]["step"] or 0) if records else 0
        self._seconds_before = max((r.get("seconds") or 0 for r in records), default=0.0)
        self._opened = time.monotonic()
        self._first_seen: tuple[int, float] | None = None
        self._printed: dict[int, set[str]] = {}  # the metrics on the lines of the last step
        self._last_line = -math.inf
        with self._writing():
            self._file = self._path.open("a", encoding="utf-8")
            self._tensorboard = EventFile(workdir, start_step)
        if library:
            self._wandb = _start_wandb(library, workdir, start_step)
        self._bar = None
        if sys.stdout.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                desc=name,
                unit="step",
                dynamic_ncols=True,
                file=sys.stdout,
            )

    def write(
        self, step: int, metrics: Mapping[str, npt.ArrayLike], *, final: bool = False
    ) -> None:
        """Logs `metrics` (scalars or arrays of one element) as the state after `step` steps.

        A step has one line: later metrics of it, such as its evaluation, are added to that line.
        `final` marks the last line of a finished run.
        """
        if not self._enabled:
            return
        values = {key: scalar(value) for key, value in metrics.items()}
        step, seconds = int(step), self._seconds_before + time.monotonic() - self._opened
        record: Line = {"step": step}
        record |= {key: value if math.isfinite(value) else None for key, value in values.items()}
        record["seconds"] = round(seconds, 3)
        if final:
            record["final"] = True
        with self._writing():
            if step == self._last_step:
                record = self._added_to_last(record)
            else:
                self._file.write(_dump(record))
                self._file.flush()
            self._last_step = step
            self._tensorboard.write(step, values)
        if self._wandb:
            self._wandb.log(values, step=step)
        if final or self._bar is None:  # what no line has shown
            shown, known = self._printed.get(step, set()), {**record, **values}
            values = {
                k: v for k, v in known.items() if "/" in k and v is not None and k not in shown
            }
        self._show(step, values, final=final, seconds=round(seconds, 3))

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if not self._enabled:
            return
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stdout)

    def advance(self, step: int) -> None:
        """Updates the progress to `step` steps, without logging."""
        if not self._enabled:
            return
        if self._first_seen is None:
            self._first_seen = (step, time.monotonic())
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Writes what is pending. Can be called again."""
        if not self._enabled:
            return
        self._enabled = False
        if self._bar is not None:
            self._bar.close()
        with self._writing(), contextlib.closing(self._tensorboard), contextlib.closing(self._file):
            pass
        if self._wandb:
            self._wandb.finish()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns a full disk into an error that names it."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            where = self._path.parent
            raise UserError(f"The log in {where} cannot be written ({reason}).") from error

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _added_to_last(self, record: Line) -> Line:
        """Adds to the line of the record's step; the file is replaced atomically."""
        records, _, _ = _parse(self._path)
        others = [other for other in records if other["step"] != record["step"]]
        for other in records:
            record = other | record if other["step"] == record["step"] else record
        self._file.close()
        _rewrite(self._path, [*others, record])
        self._file = self._path.open("a", encoding="utf-8")
        return record

    def _show(self, step: int, values: Mapping[str, float], *, final: bool, seconds: float) -> None:
        self.advance(step)
        only_training = all(key.startswith("train/") for key in values)
        if self._bar is not None:
            self._bar.set_postfix_str(summary(values))
            if not final and not any(key.startswith("eval/") for key in values):
                return
        elif only_training and step < self._total_steps and not final:
            if time.monotonic() - self._last_line < BETWEEN_LINES:
                return
            self._last_line = time.monotonic()
        self._printed = {step: self._printed.get(step, set()) | values.keys()}
        width = len(str(self._total_steps))
        parts = [f"{self._prefix}step {step:{width + 2}d}/{self._total_steps}", summary(values)]
        if final:
            parts.append(f"done in {duration_text(seconds)}")
        elif step < self._total_steps and self._bar is None:
            left = self._seconds_left(step)
            parts += [] if left is None else [f"eta {duration_text(left)}"]
        self.say("  ".join(part for part in parts if part))

    def _seconds_left(self, step: int) -> float | None:
        """Time left, from the speed since the first step seen here, without compilation."""
        first_step, first_time = self._first_seen or (step, 0.0)
        if step <= first_step:
            return None
        pace = (time.monotonic() - first_time) / (step - first_step)
        return pace * (self._total_steps - step)


def words(key: str) -> str:
    """ "eval/top5_accuracy" as "eval top5 accuracy"; "training_loss" has smoothing and weights."""
    return key.replace("training_loss", "loss as trained").replace("/", " ").replace("_", " ")


def summary(metrics: Mapping[str, float]) -> str:
    """The main numbers for the terminal, as `loss 0.4123  lr 3.0e-4  1234 img/s  ...`."""
    parts = []
    for key, value in sorted(metrics.items(), key=lambda item: item[0] != "train/loss"):
        stage, _, name = key.partition("/")
        if key == "train/loss":
            parts.append(f"loss {value:.4f}")
        elif key == "train/learning_rate":
            mantissa, _, exponent = f"{value:.1e}".partition("e")
            parts.append(
                f"lr {mantissa}e{int(exponent)}" if exponent and value else f"lr {value:g}"
            )
        elif key == "train/images_per_second":
            parts.append(f"{value:.{0 if value >= 10 else 1}f} img/s")
        elif key == "train/input_wait_percent" and value >= 10:
            parts.append(f"waits for input {value:.0f}%")
        elif key == "train/skipped_updates" and value > 0:
            parts.append(f"skipped {value:.0f}")
        elif stage == "eval" and name.endswith(("accuracy", "mAP")):
            parts.append(f"{words(key)} {100 * value:.1f}%")
        elif stage == "eval" and name != "num_examples":
            parts.append(f"{words(key)} {value:.4f}")
    return "  ".join(parts)


def duration_text(seconds: float) -> str:
    """8 as "8s", 80 as "1m20s", 8000 as "2h13m", 800000 as "9d06h"."""
    total = round(seconds)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    if total < 86400:
        return f"{total // 3600}h{total % 3600 // 60:02d}m"
    return f"{total // 86400}d{total % 86400 // 3600:02d}h"


def scalar(value: npt.ArrayLike) -> float | int:
    """A Python number; a float32 becomes the shortest decimal that reads back equal."""
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"a metric must be one number, not an array of shape {array.shape}")
    if np.issubdtype(array.dtype, np.integer):
        return int(array.item())
    return float(str(array.reshape(())[()])) if array.dtype == np.float32 else float(array.item())


def _dump(record: Line) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _parse(path: Path) -> tuple[list[Line], list[int], int]:
    """(records, numbers of invalid lines, number of lines)."""
    lines = path.read_bytes().splitlines()
    records, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line, parse_constant=lambda _: None)
            record["step"] = int(record["step"])
            if not all(isinstance(value, (int, float, NoneType)) for value in record.values()):
                raise TypeError("a value is not a number")
            records.append(record)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            damaged.append(number)
    return records, damaged, len(lines)


def _truncate(path: Path, start_step: int, *, going_on: bool) -> list[Line]:
    """Drops a truncated line and what came after `start_step`; returns the remaining records.

    When the run continues, its former last line keeps its metrics but loses the mark `final`.
    """
    if not path.exists():
        return []
    if not path.is_file():
        raise UserError(f"{path} is not a file; move it away, or use another --workdir.")
    records, _, _ = _parse(path)
    records = [record for record in records if (record["step"] or 0) <= start_step]
    if going_on:
        for record in records:
            record.pop("final", None)
    _rewrite(path, records)
    return records


def _rewrite(path: Path, records: list[Line]) -> None:
    """Replaces the file atomically: a reader sees either the old or the new one."""
    new = "".join(_dump(record) for record in records)
    if path.read_text(encoding="utf-8", errors="replace") == new:
        return
    files.write_text(path, new)


def _import_wandb() -> ModuleType:
    try:
        import wandb
    except ImportError:
        raise UserError(
            "config.wandb is on, but wandb is not installed: "
            "run `pip install 'vit_jax[wandb]'`, or pass --config.wandb=false."
        ) from None
    return wandb


def _start_wandb(library: ModuleType, workdir: Path, start_step: int):
    """Starts a run, or resumes the one of this working directory."""
    id_file = workdir / "wandb_id.txt"
    if start_step == 0 or not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:8] + "\n")
    config_file = workdir / "config.json"
    return library.init(
        project="vit_jax",
        name=workdir.resolve().name,
        dir=str(workdir),
        id=id_file.read_text().strip(),
        resume="allow",
        config=json.loads(config_file.read_text()) if config_file.exists() else None,
    )
