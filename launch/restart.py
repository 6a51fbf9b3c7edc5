"""Runs a command of a job, and decides whether to restart it; for all launchers.

    python3 launch/restart.py run [--again] [--folder=DIR] [--waits=N] vit-jax train ...
    python3 launch/restart.py codes
    python3 launch/restart.py saved --workdir=DIR ...

`run` forwards SIGTERM and ends with the exit code of the command, or with 1 when a restart is
pointless: the run was started LIMIT + 1 times without saving a new step. With --again it restarts
the command itself, until DIR/stop exists or it gets SIGTERM; DIR/exit has the last code. --waits is
how often the other processes may be missing (100: machines that are requested one by one can take
hours). `codes` prints the exit codes that are restarted, `saved` the number of saved steps. Needs
only Python.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time

#: Exit codes after which the command is restarted, and their meaning.
AGAIN = {
    42: "asked to stop, and saved",
    75: "the other processes did not join",
    134: "another process of the job died",
    137: "killed",
}
#: How often a run may be restarted without a new saved step, and without the other processes.
LIMIT, WAITS = 5, 100
NO_STATE = {"step": -1, "tries": 0, "waits": 0}


def say(text: str) -> None:
    print(f"launch/restart.py: {text}", file=sys.stderr, flush=True)


def workdir_of(words: list[str]) -> str:
    """The directory of `--workdir` in a command line, "" without one."""
    found = ""
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in ("--workdir", "-workdir"):
            found = value if equals else "".join(words[position + 1 : position + 2])
    return os.path.abspath(os.path.expanduser(found)) if found else ""


def saved_steps(workdir: str) -> int:
    """The number of saved steps, over all stages and trials; -1: none."""
    try:
        below = sorted(entry.path for entry in os.scandir(workdir) if entry.is_dir())
    except OSError:
        below = []
    total = -1
    for stage in (workdir, *(path for path in below if os.path.basename(path) != "pretrain")):
        while stage and os.path.isdir(stage):
            total = max(total, 0) + stage_step(stage) if stage_step(stage) >= 0 else total
            stage = os.path.join(stage, "pretrain")
    return total


def stage_step(stage: str) -> int:
    try:
        with open(os.path.join(stage, "saved.json"), encoding="utf-8") as file:
            return int(json.load(file)["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


class Attempts:
    """Counts starts of a run without progress, in a file that outlives the machine."""

    def __init__(self, workdir: str, folder: str = "", most_waits: int = WAITS):
        self.workdir, self.most_waits = workdir, most_waits
        names = ("MEGASCALE_SLICE_ID", "JOB_COMPLETION_INDEX", "SKYPILOT_NODE_RANK",
                 "SLURM_ARRAY_TASK_ID")  # fmt: skip
        process = "-".join(os.environ[name] for name in names if os.environ.get(name)) or "0"
        self.path = os.path.join(folder or os.path.join(workdir, "restarts"), f"{process}.json")
        self.job = os.environ.get("SLURM_JOB_ID") or os.environ.get("SKYPILOT_TASK_ID") or ""
        self.step, self.tries, self.waits = saved_steps(workdir), 0, 0

    def begin(self) -> str:
        """Counts a start; returns the reason to refuse it, or ""."""
        before = self._read()
        self.step = saved_steps(self.workdir)
        further = self.step > before["step"]
        self.tries = 1 if further else before["tries"] + 1
        self.waits = 0 if further else before["waits"]
        if self.tries > LIMIT + 1:
            return self._in_vain("killed with its machine")
        self._write()
        return ""

    def end(self, code: int) -> str:
        """Records an end; returns the reason not to restart, or ""."""
        if code not in AGAIN:
            self._forget()
            return f"exit code {code} is not restarted"
        if saved_steps(self.workdir) > self.step:
            return ""
        if code == 75:
            self.tries, self.waits = self.tries - 1, self.waits + 1
            self._write()
        if self.tries > LIMIT or self.waits > self.most_waits:
            return self._in_vain(f"exit code {code}: {AGAIN[code]}")
        return ""

    def _in_vain(self, last: str) -> str:
        self._forget()
        step = f"step {self.step}" if self.step >= 0 else "its first step"
        return (
            f"error: started {self.tries + self.waits} times without saving anything beyond "
            f"{step} (last end: {last}); not restarted. See the log for the cause; the command "
            "starts counting again."
        )

    def _read(self) -> dict:
        try:
            with open(self.path, encoding="utf-8") as file:
                state = json.load(file)
            if state.get("job", "") == self.job:
                return {key: int(state[key]) for key in NO_STATE}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return dict(NO_STATE)

    def _write(self) -> None:
        state = {"job": self.job, "step": self.step, "tries": self.tries, "waits": self.waits}
        try:  # an unmounted share must not be created
            if not os.path.isdir(os.path.join("/", *self.path.split("/")[1:2])):
                raise FileNotFoundError(2, "it is not mounted")
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with open(f"{self.path}.new", "w", encoding="utf-8") as file:
                json.dump(state, file)
            os.replace(f"{self.path}.new", self.path)
        except OSError as error:
            say(f"warning: starts are not counted: {self.path}: {error.strerror}")

    def _forget(self) -> None:
        try:
            os.remove(self.path)
            if os.path.basename(os.path.dirname(self.path)) == "restarts":
                os.rmdir(os.path.dirname(self.path))
        except OSError:  # it is missing, or not empty
            pass


class Supervisor:
    """Runs one command at a time, and forwards SIGTERM to it."""

    def __init__(self, stop: str = ""):
        self.stop, self.asked, self.child = stop, False, None
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, lambda *_: None)  # the terminal signals the command as well

    def _on_term(self, number, frame) -> None:
        self.asked = True
        if self.child is not None:
            self.child.send_signal(signal.SIGTERM)

    def ends(self) -> bool:
        """Whether to stop."""
        return self.asked or bool(self.stop and os.path.exists(self.stop))

    def run(self, command: list[str]) -> int:
        """Runs a command to its end; a signal counts as 128 + its number, as in a shell."""
        # SIGTERM comes either before the command, which then does not start, or is forwarded.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            if signal.SIGTERM in signal.sigpending() or self.ends():
                return 42
            self.child = subprocess.Popen(command, preexec_fn=_in_child)
        except OSError as error:
            say(f"error: {command[0]}: {error.strerror}")
            return 127
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        code = self.child.wait()
        self.child = None
        if self.asked and code == -signal.SIGTERM:
            return 42  # it had not begun: nothing to save
        return code if code >= 0 else 128 - code

    def pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.ends() and time.monotonic() < until:
            time.sleep(0.1)


def _in_child() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if sys.platform == "linux":  # if the supervisor is killed, the run saves and ends
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG


def run(command: list[str], *, again: bool = False, folder: str = "", waits: int = WAITS) -> int:
    """Restarts the command until it is not to be restarted; returns its last exit code."""
    supervisor = Supervisor(os.path.join(folder, "stop") if folder else "")
    attempts = Attempts(workdir_of(command), folder, waits)
    while True:
        problem = attempts.begin()
        code = 1 if problem else supervisor.run(command)
        stopped = again and supervisor.ends()
        problem = problem or ("" if stopped else attempts.end(code))
        if problem:
            if problem.startswith("error: "):
                say(problem)
                code = 1
            break
        if not again or stopped:
            break
        delay = float(os.environ.get("RESTART_DELAY") or 10)
        say(f"{time.strftime('%F %T')} exit code {code}: {AGAIN[code]}; restarting")
        supervisor.pause(delay)
        if supervisor.ends():
            break
    if folder:
        with open(os.path.join(folder, "exit"), "w", encoding="utf-8") as file:
            file.write(f"{code}\n")
    return code


def main(words: list[str]) -> int:
    if words == ["codes"]:
        print(*AGAIN)
        return 0
    if words[:1] == ["saved"]:
        print(saved_steps(workdir_of(words)))
        return 0
    if words[:1] != ["run"]:
        print((__doc__ or "").strip())
        return 0 if words in (["-h"], ["--help"]) else 2
    again, folder, waits, rest = False, "", WAITS, words[1:]
    while rest and rest[0].startswith("--"):
        option, _, value = rest.pop(0).partition("=")
        if option == "--":
            break
        if option == "--again":
            again = True
        elif option == "--folder":
            folder = value
        elif option == "--waits":
            waits = int(value)
        else:
            say(f"error: there is no option {option}.")
            return 2
    if not rest:
        say("error: give the command to run.")
        return 2
    return run(rest, again=again, folder=folder, waits=waits)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
