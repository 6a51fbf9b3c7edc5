"""`vit-jax COMMAND ...`: parses the command line and calls the rest.

Each command is a module of this package with a docstring (its help), `define(flags)` that declares
its absl flags, and `main(flags, arguments) -> int | None`. Flags that depend on others, such as
options of a plug-in, are declared by `define_for(flags, words)`. Only the commands of
TAKE_ARGUMENTS take positional arguments.
"""

from __future__ import annotations

import atexit
import importlib
import io
import os
import signal
import sys
import threading
import traceback

from absl import flags as absl_flags

from vit_jax import files
from vit_jax.cli import help
from vit_jax.errors import (
    FAILED,
    OK,
    PREEMPTED,
    USAGE,
    Preempted,
    UsageError,
    UserError,
    first_line,
    nearest,
    one_line,
)
from vit_jax.runtime import host_memory

COMMANDS = {
    "train": "pretrain or fine-tune; run it again to resume",
    "configs": "list the shipped experiments, or copy one to edit",
    "weights": "list published weights, or download them",
    "report": "the page of a run, finished or not; compare several runs",
    "sweep": "the fine-tuning protocol: choose a learning rate, then mean and deviation",
    "study": "named trials, each a run; a table and a figure of the results",
    "prepare": "data sets: TFDS, TFRecord to ArrayRecord, ImageNet-21k, VTAB",
    "evaluate": "accuracy of a checkpoint on a data set",
    "predict": "the most likely classes of your images",
    "features": "write an intermediate of the model for every image to a file",
    "dedup": "training images that repeat test images: their ids, and a page of them",
    "convert": "convert weights for Hugging Face, timm, or to official .npz",
    "export": "a model for serving: ONNX, OpenVINO, StableHLO, SavedModel",
    "inspect": "look inside a checkpoint: the paper's figures, as a page",
    "doctor": "check the installation, devices, data and checkpoints",
    "bench": "speed, beside other implementations",
    "flops": "parameters, FLOPs and the paper's cost tables",
    "completion": "shell completion of commands, flags and settings, for bash and zsh",
}
TAKE_ARGUMENTS = (
    *("completion", "configs", "convert", "flops", "inspect", "predict", "prepare"),
    *("report", "sweep", "train", "weights"),
)
#: What is a flag of other commands and an argument here, with an example.
NO_FLAGS = {
    ("train", "data"): "folder:/data/pets",
    ("sweep", "data"): "folder:/data/pets",
    ("report", "checkpoint"): "RUN",
    ("report", "workdir"): "RUN",
}
#: Commands whose only output is printed: they end when the reader does (`vit-jax ... | head`). The
#: others write files, and continue.
PRINT = ("completion", "configs", "flops", "predict")
RESUMES = ("train", "sweep", "study")
#: Variables that schedulers and JAX read as numbers; empty means unset.
SCHEDULERS = ("JAX_", "SLURM_", "OMPI_", "PMIX_", "TPU_", "MEGASCALE_", "COORDINATOR_")


def main(argv: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code; without `argv`, the one of this process."""
    if argv is None:
        argv = sys.argv[1:]
        prepare_process(argv)
        if not argv or argv[0] not in PRINT:
            keep_writing(whole=not argv or argv[0] not in RESUMES)
    argv = list(argv)
    if hasattr(sys.stdout, "reconfigure"):  # so that paths that are not UTF-8 can be printed
        sys.stdout.reconfigure(errors="backslashreplace")
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help.overview(COMMANDS))
        return OK if argv else USAGE
    if argv[0] == "--version":
        from vit_jax import __version__

        print(f"vit_jax {__version__}")
        return OK
    name, *rest = argv
    if name not in COMMANDS:
        return usage(f"there is no command {name!r}.{nearest(name, COMMANDS)}", "vit-jax --help")
    options = importlib.import_module("vit_jax.cli.options")
    command = importlib.import_module(f"vit_jax.cli.{name}")
    flags = absl_flags.FlagValues()
    absl_flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=flags)
    command.define(flags)
    verified = files.VERIFY.get()
    try:
        if hasattr(command, "define_for"):
            command.define_for(flags, rest)
        if any(word in ("-h", "--help", "--helpfull") for word in rest):
            print(help.of_command(command, flags))
            return OK
        if "set" in flags:
            rest = options.rewrite_overrides(rest)
        arguments = flags([f"vit-jax {name}", *rest])[1:]
        if arguments and name not in TAKE_ARGUMENTS:
            hint = ""
            if "checkpoint" in flags and not flags.checkpoint:
                hint = " A checkpoint is given as --checkpoint=PATH."
            raise UsageError(f"unexpected argument {arguments[0]!r}.{hint}")
        options.check_values(flags)
        if "verify" in flags:
            files.VERIFY.set(flags.verify)
        code = command.main(flags, arguments) or OK
        sys.stdout.flush()
        return code
    except absl_flags.UnrecognizedFlagError as error:
        known, _, similar = first_line(error).partition(" Did you mean: ")
        similar = similar.removesuffix(" ?").replace(", ", ", --")
        hint = f" Did you mean --{similar}?" if similar else ""
        if "set" in flags and not similar:
            hint = options.of_setting(error.flagname)
        if (name, error.flagname) in NO_FLAGS:
            hint = f" It is an argument: vit-jax {name} {NO_FLAGS[name, error.flagname]}."
        return usage(f"{known.rstrip('.')}.{hint}", f"vit-jax {name} --help")
    except absl_flags.Error as error:
        return usage(f"{first_line(error).rstrip('.')}.", f"vit-jax {name} --help")
    except UsageError as error:
        return usage(str(error), f"vit-jax {name} --help")
    except UserError as error:
        return fail(error, bool(flags["debug"].value))
    except Preempted as stop:
        print(stop, flush=True)
        return PREEMPTED
    except BrokenPipeError as error:
        if name not in PRINT:  # of another process
            return fail(error, bool(flags["debug"].value))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `vit-jax ... | head`
        return OK
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if flags["debug"].value:
            raise
        return fail(error, False)
    finally:
        files.VERIFY.set(verified)


def prepare_process(argv: list[str]) -> None:
    """Prepares the process before anything slow: SIGTERM ends it, empty variables are unset.

    SIGTERM while a run starts ends it at once, with the exit code for a restart; nothing is lost.
    The first process of a container would ignore it otherwise. A thread handles the signal, because
    the main one may wait in JAX for the others; the training loop installs its own handler.
    """
    open_streams()
    for name in [name for name, value in os.environ.items() if not value]:
        if name.startswith(SCHEDULERS):
            del os.environ[name]
    host_memory.keep_freed_pages()  # before the first thread, which would get memory of its own
    code = PREEMPTED if argv[:1] and argv[0] in RESUMES else 128 + signal.SIGTERM
    reads, writes = os.pipe()
    os.set_blocking(writes, False)

    def starting(number, frame) -> None:
        """Does nothing: the thread handles it."""

    def watch() -> None:
        while data := os.read(reads, 1):
            if data[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is starting:
                print(
                    "vit-jax: asked to stop outside the training loop: nothing to save",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(code)

    def in_worker() -> None:
        """In a forked process, SIGTERM ends that process only."""
        signal.set_wakeup_fd(-1)
        if signal.getsignal(signal.SIGTERM) is starting:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, starting)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=in_worker)
    threading.Thread(target=watch, daemon=True, name="TERM").start()


def open_streams() -> None:
    """Closed standard streams (`vit-jax ... >&-`) become the null device.

    Otherwise a file would get the number of one, and what libraries print would be written into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
        os.set_inheritable(number, True)
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


class Lossy(io.FileIO):
    """A file that discards what is written after its reader has gone.

    Unless it must be `whole`, it also discards what cannot be written, as on a full disk, and
    counts it in `lost`.
    """

    def __init__(self, descriptor: int, whole: bool):
        super().__init__(descriptor, "w", closefd=False)
        self.whole, self.lost, self.reason = whole, 0, ""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        except OSError as error:
            if self.whole:
                raise UserError(f"Standard output cannot be written ({error.strerror}).") from error
            self.lost, self.reason = self.lost + len(data), error.strerror or str(error)
        return len(data)


def keep_writing(whole: bool = False) -> None:
    """Standard output and error never break, so that `vit-jax train ... 2>&1 | head` continues.

    On a full disk, what is printed is discarded, which is said at the end; with `whole`, standard
    output raises UserError instead.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            file = Lossy(stream.fileno(), whole and name == "stdout")
            atexit.register(tell_lost, file, name)
            setattr(
                sys,
                name,
                io.TextIOWrapper(
                    io.BufferedWriter(file),
                    encoding=stream.encoding,
                    errors=stream.errors,
                    line_buffering=stream.line_buffering,
                    write_through=stream.write_through,
                ),
            )


def tell_lost(file: Lossy, name: str) -> None:
    """Says at the end of the process what could not be printed.

    A command that failed for that reason has said so; Python's last flush would change its code.
    """
    told, file.whole = file.whole, False
    getattr(sys, name).flush()
    if file.lost and not told:
        lost = f"{file.lost:,} bytes of {name} could not be written ({file.reason})"
        print(f"vit-jax: {lost}.", file=sys.stderr)


def usage(problem: str, where: str) -> int:
    print(f"vit-jax: {problem} See {where}.", file=sys.stderr)
    return USAGE


def fail(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if not getattr(error, "said", False):
        print(one_line(error), file=sys.stderr)
    return FAILED
