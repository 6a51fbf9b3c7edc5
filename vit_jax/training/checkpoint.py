"""Training checkpoints: Orbax, asynchronous and atomic, with verification of every array.

Orbax alone silently restores a flipped bit or another dtype, and reports a failed save one save
later. This layer adds a fingerprint of every array, compares names, shapes and dtypes before
restoring, and checks after every step whether the save in flight has failed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from vit_jax import files
from vit_jax.errors import Diverged, UserError
from vit_jax.models.fingerprints import (
    RULE,
    Record,
    check_rule,
    checked,
    digest_of,
    fingerprints,
    tree_spec,
)
from vit_jax.runtime import replicas, sharding
from vit_jax.training import orbax_threads
from vit_jax.training.state import TrainState

#: Advice when the best checkpoint of a run is lost.
WITHOUT_BEST = (
    "Restore it from a copy, or continue without it: --config.keep_best= --config.patience=0 "
    "--allow_config_change."
)
WITHOUT_ROLL_BACK = (
    "Restore it from a copy, or continue without: --config.roll_back.factor=None "
    "--allow_config_change."
)
BEST = "the best of this run"
#: Beside the directory: the last step whose checkpoint is known to be on the disk.
SAVED = "saved.json"
#: Held by the job that uses the directory.
LOCK = ".lock"


class CheckpointError(UserError):
    """A checkpoint that was not written, or is damaged; the message says which and why."""


class Unreadable(Exception):
    """A checkpoint that could not be read, but is not proved to be damaged."""


class NewestAndBest(policies.PreservationPolicy):
    """Keeps the newest checkpoints, and those that they name: the best, and for roll-backs."""

    def __init__(self, count: int, directory: Path):
        self.count, self.directory = count, directory
        self.named: dict[int, set[int | None]] = {}

    def should_preserve(
        self, checkpoints: Sequence, *, context: policies.PreservationContext
    ) -> list[bool]:
        newest = {info.step for info in checkpoints[-self.count :]}
        kept = newest.union(*map(self.named_by, newest))
        return [info.step in kept for info in checkpoints]

    def named_by(self, step: int) -> set[int | None]:
        if step not in self.named:
            meta: dict = {}
            with contextlib.suppress(UserError):  # damaged: `restore` will report it
                meta = files.read_json(self.directory / f"{step:09d}" / "meta" / "metadata") or {}
            self.note(step, meta)
        return self.named[step]

    def note(self, step: int, meta: Mapping) -> None:
        best, back = meta.get("best") or {}, meta.get("roll_back") or {}
        self.named[step] = {best.get("step"), *back.get("anchors", ())}


class Checkpoints:
    """The checkpoints of one run, in a directory that one job at a time may use.

    Raises:
      UserError: another job (named) uses the directory, or it cannot be written.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        self.directory = Path(directory).resolve()
        self._pending: int | None = None
        self._failed: list[type[Exception]] = []
        self._policy = NewestAndBest(keep, self.directory)
        orbax_threads.silence_raised_errors()
        if jax.process_index() == 0:
            self._lock()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoint directory locked")
        replicas.write_small_arrays_whole()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                step_format_fixed_length=9,
                cleanup_tmp_directories=True,  # safe: this process has the lock
                enable_async_checkpointing=True,
                async_options=ocp.options.AsyncOptions(barrier_sync_fn=orbax_threads.barrier()),
            ),
        )

    def _lock(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock_file = open(self.directory / LOCK, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"Cannot write to {self.directory}: {error.strerror}.") from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.seek(0)
            holder = self._lock_file.read().decode().strip() or "another job"
            self._lock_file.close()
            raise UserError(
                f"{self.directory.parent} is in use by {holder}; "
                "wait for that job or use another --workdir."
                if isinstance(error, BlockingIOError)
                else f"{self.directory} cannot be locked ({error.strerror}); use a --workdir on a "
                "file system with locks."
            ) from None
        self._lock_file.seek(0)
        self._before = self._lock_file.read()  # restored at the end: a refusal leaves no trace
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its text
            self._lock_file.truncate(0)
            self._lock_file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())

    def check(self) -> bool:
        """Whether the save in flight has just ended. Cheap; call after every step.

        Raises:
          CheckpointError: it has failed.
        """
        if self._pending is None or self._manager.is_saving_in_progress():
            return False
        self.wait()
        return True

    def wait(self) -> None:
        """Waits for the save in flight and raises CheckpointError if it failed."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        with self._writing(step):
            self._manager.wait_until_finished()
        if jax.process_index() == 0:
            files.write_json(self.directory.parent / SAVED, {"step": step})

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Names the place of what Orbax raises: a full disk does not say whose it is."""
        try:
            yield
        except Exception as error:
            self._failed.append(type(error))
            last = self._last_before(step)
            self._check_place(last)
            self._manager.reload()
            reason = str(error).split("\n")[0][:200]
            raise CheckpointError(
                f"Checkpoint {step} was not written to {self.directory} ({reason}); "
                f"{'there is none before it' if last is None else f'the last good one is {last}'}. "
                "Free space or fix the disk, then run the same command again."
            ) from error

    def _check_place(self, newest: int | None) -> None:
        """Raises CheckpointError if the directory was moved; Orbax would make it again."""
        if not (self.directory / LOCK).exists():
            raise CheckpointError(
                f"{self.directory} was moved or removed during the run, after checkpoint {newest}. "
                "Move it back, or give --workdir where it is now, and run the same command again."
            )

    def _last_before(self, step: int) -> int | None:
        """The newest checkpoint before `step`, whose own folder may exist but be incomplete."""
        return max((s for s in self._manager.all_steps() if s < step), default=None)

    def save(self, step: int, state: TrainState, meta: Record) -> bool:
        """Saves in the background unless `step` is saved already; returns whether it did.

        Raises:
          Diverged: the state is not finite.
          CheckpointError: the directory is no longer there.
        """
        if self._manager.latest_step() == step:
            return False
        self.wait()
        self._check_place(self._manager.latest_step())
        marks, bad = checked(state)
        if bad:
            raise Diverged(
                f"The update of step {step} or an earlier one was not finite ({bad[0]}) and was "
                f"not saved; the last good checkpoint is {self._manager.latest_step()}. Lower "
                "config.schedule.learning_rate, then start again or resume with "
                "--allow_config_change."
            )
        record: Record = {
            **meta,
            "step": step,
            "fingerprint": RULE,
            "spec": tree_spec(state),
            "fingerprints": marks,
        }
        record["digest"] = digest_of(record)
        self._policy.note(step, record)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(record)
        )
        with self._writing(step):
            written = self._manager.save(step, args=arguments, force=True)
        if not written:
            raise CheckpointError(f"Checkpoint {step} was refused by {self.directory}.")
        self._pending = step
        return True

    def latest_meta(self) -> Record | None:
        """The newest readable record of a checkpoint, without its arrays."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                meta = self._read_meta(step)
            except Exception:  # damaged: `restore` will report it
                continue
            if meta.get("digest", digest_of(meta)) == digest_of(meta) and "spec" in meta:
                return meta
        return None

    def _read_meta(self, step: int) -> Record:
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        meta: Record = restored["meta"]
        return meta.copy()

    def restore(self, abstract: TrainState) -> tuple[TrainState, Record] | None:
        """The newest checkpoint that passes verification, as (state, meta).

        A damaged checkpoint is moved to `damaged/`, never deleted, and the one before it is tried.
        One that cannot be read may be intact: nothing is moved then. None only if there is none.

        Args:
          abstract: the state as shapes, dtypes and shardings, for any number of devices.

        Raises:
          UserError: the checkpoint is for another model or optimizer. Nothing is moved.
          CheckpointError: one cannot be read (the cause is named), or all of them are damaged.
        """
        reasons = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            unread, reason, result = None, None, None
            try:
                reason, result = self._try_restore(step, abstract)
            except Unreadable as error:
                unread = str(error)
            verdict = 2 if unread else int(reason is not None)
            verdict = max(sharding.gathered(verdict))
            if verdict == 2:
                raise CheckpointError(
                    f"Checkpoint {step} in {self.directory} cannot be read "
                    f"({unread or 'on another process'}). It may be intact: nothing was moved. Run "
                    "the same command when the storage responds, or move "
                    f"{self.directory / f'{step:09d}'} away to resume from the one before."
                )
            if verdict == 0:
                return result
            reasons.append(f"step {step}: {reason or 'damaged on another process'}")
            self._set_aside(step)
            print(f"warning: checkpoint set aside in damaged/: {reasons[-1]}", flush=True)
        if reasons:
            raise CheckpointError(
                f"No checkpoint in {self.directory} can be used ({'; '.join(reasons)}). Restore "
                "the directory from a copy, or start again with another --workdir."
            )
        return None

    def restore_named(self, step: int, abstract: TrainState, role: str) -> TrainState:
        """Reads the checkpoint with a role in the run: BEST, or for a roll-back.

        Raises:
          CheckpointError: it is damaged, or cannot be read.
        """
        reason, result = None, None
        try:
            reason, result = self._try_restore(step, abstract)
        except Unreadable as error:
            reason = f"cannot be read ({error})"
        if max(sharding.gathered(int(reason is not None))) or result is None:
            raise CheckpointError(
                f"Checkpoint {step} in {self.directory}, {role}, cannot be used "
                f"({reason or 'on another process'}). "
                f"{WITHOUT_BEST if role == BEST else WITHOUT_ROLL_BACK}"
            )
        return result[0]

    def check_best(self, step: int | None) -> None:
        """Raises CheckpointError if the best checkpoint so far is missing."""
        gone = step is not None and step not in self._manager.all_steps()
        if max(sharding.gathered(int(gone))):
            raise CheckpointError(
                f"{self.directory} has lost checkpoint {step}, the best of this run so far. "
                f"{WITHOUT_BEST}"
            )

    def _try_restore(
        self, step: int, abstract: TrainState
    ) -> tuple[str | None, tuple[TrainState, Record] | None]:
        try:
            meta = self._read_meta(step)
        except Exception as error:
            return _damage(error), None
        if meta.get("digest", digest_of(meta)) != digest_of(meta) or "spec" not in meta:
            return "its record does not match its checksum", None
        found = meta["spec"]
        rule = check_rule(meta, f"Checkpoint {step} in {self.directory}")
        self._compare(step, found, tree_spec(abstract))
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
            state = restored["state"]
        except Exception as error:
            return _damage(error), None
        now = fingerprints(state, rule)
        damaged = [name for name, value in meta["fingerprints"].items() if now.get(name) != value]
        if damaged:
            return f"{len(damaged)} damaged arrays, e.g. {damaged[0]}", None
        return None, (state, meta)

    def _compare(self, step: int, found: Mapping, wanted: Mapping) -> None:
        found = {name: list(value) for name, value in found.items()}
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                there, here = (_describe(tree.get(name)) for tree in (found, wanted))
                raise UserError(
                    f"Checkpoint {step} in {self.directory} is for another model or optimizer: "
                    f"{name} is {there} there and {here} in this configuration. Use the "
                    "configuration that the run began with, or another --workdir."
                )

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            source = self.directory / f"{step:09d}"
            target = self.directory.parent / "damaged" / f"{step:09d}-{time.time_ns()}"
            target.parent.mkdir(exist_ok=True)
            shutil.move(source, target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoint {step} set aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits for the save in flight and releases the directory."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(*self._failed):  # which raises a failed save again
                self._manager.close()
            if jax.process_index() == 0:
                with contextlib.suppress(OSError), self._lock_file:
                    self._lock_file.truncate(0)
                    self._lock_file.write(self._before)


#: Texts of errors about bytes that were read but are invalid.
DAMAGE = re.compile(r"DATA_LOSS|OUT_OF_RANGE|JSONDecodeError|UnicodeDecodeError|checksum|CRC-?32")


def _damage(error: BaseException) -> str:
    """The damage that a read error proves.

    Raises:
      Unreadable: the error does not prove damage.
    """
    seen: BaseException | None = error
    while seen is not None:
        if DAMAGE.search(f"{type(seen).__name__}: {seen}"):
            return f"damaged ({_first_line(seen)})"
        error, seen = seen, seen.__cause__ or seen.__context__
    raise Unreadable(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:200]}".split("\n")[0]


def _describe(spec: list | None) -> str:
    return f"{spec[1]} {tuple(spec[0])}" if spec else "absent"
