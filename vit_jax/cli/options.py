"""Flags shared by several commands."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags as absl_flags

from vit_jax import files
from vit_jax.config import ConfigDict, default, flatten, load, override
from vit_jax.errors import Preempted, UsageError, UserError, WorkerLost, nearest, one_line
from vit_jax.runtime import host_memory


def check_values(flags: absl_flags.FlagValues) -> None:
    """Refuses NaN, and expands ~, as a shell does except in `--flag=~/...`."""
    for name in flags:
        value = flags[name].value
        if isinstance(value, float) and math.isnan(value):
            raise UsageError(f"--{name}={value} is not a number.")
        if isinstance(value, str):
            flags[name].value = os.path.expanduser(value)
        elif isinstance(value, list):
            flags[name].value = list(map(os.path.expanduser, value))


def define_config(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "config",
        None,
        "Config file, with an argument after a colon: configs/finetune.py:B/16,cifar10; or the "
        "config.json of a run, which is read as data. "
        "--config.KEY=VALUE changes a setting.",
        flag_values=flags,
    )
    define_overrides(flags)


def define_overrides(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_multi_string(
        "set", [], "KEY=VALUE, the same as --config.KEY=VALUE.", flag_values=flags
    )


def define_recipe(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_enum(
        "recipe",
        None,
        ["paper", "strong"],
        "With data instead of --config: paper, the default, or strong (configs/own.py).",
        flag_values=flags,
    )


def data_argument(flags: absl_flags.FlagValues, arguments: list[str]) -> str:
    """The data given instead of --config; "" if there are none.

    Raises:
      UsageError: more than one argument, both, or neither.
    """
    if not arguments:
        if flags.recipe:
            raise UsageError(
                "--recipe is for data instead of --config; configs with recipes take them "
                "as an argument, e.g. --config=configs/own.py:recipe=strong."
            )
        if not flags.config:
            raise UsageError("--config=FILE is required, or data, e.g. folder:/data/pets.")
        if flags.config.startswith(("folder:", "tfds:", "hf:")):
            raise UsageError(f"{flags.config} is data, not a config; leave out --config=.")
        return ""
    spec, *more = arguments
    if more:
        raise UsageError(f"unexpected argument {more[0]!r}; the data are {spec}.")
    if flags.config:
        raise UsageError(
            f"unexpected argument {spec!r} beside --config; give either data or a config."
        )
    set_determinism(overrides(flags).get("deterministic", "").lower() in ("true", "1"))
    return spec


def rewrite_overrides(words: list[str]) -> list[str]:
    """`--config.KEY=VALUE` as `--set=KEY=VALUE`, which absl can parse."""
    return [re.sub(r"^--?config\.", "--set=", word) for word in words]


def of_setting(name: str) -> str:
    """A hint for an unknown flag: the setting that was probably meant."""
    settings = flatten(default().to_dict())
    same = [key for key in settings if key == name or key.endswith(f".{name}")]
    if same:
        return f" It is a setting: --config.{same[0]}=VALUE."
    hint = nearest(name, [key.rpartition(".")[2] for key in settings if "evaluators" not in key])
    return f" Settings are given as --config.KEY=VALUE.{hint}"


def read_config(flags: absl_flags.FlagValues) -> ConfigDict:
    """The configuration of `--config`, with its overrides; a .json is from an earlier run."""
    if not flags.config:
        raise UsageError("--config=FILE is required.")
    given = overrides(flags)
    if flags.config.endswith(".json"):
        from vit_jax.training.workdir import config_of

        config = config_of(Path(flags.config), given)
        for key, text in given.items():
            override(config, key, text)
    else:
        config = load(flags.config, given)
    stages = [each for each in (config, config.get("pretrain")) if isinstance(each, ConfigDict)]
    set_determinism(any(stage.get("deterministic") for stage in stages))
    return config


def batch_hint(flags: absl_flags.FlagValues, config: ConfigDict) -> str:
    """A note on the learning rate if --config.batch_size is smaller than the config's own batch."""
    given = overrides(flags)
    if "batch_size" not in given or flags.config.endswith(".json"):
        return ""
    others = {key: value for key, value in given.items() if key != "batch_size"}
    usual, batch, rate = load(flags.config, others), config.batch_size, config.schedule
    parts = usual.batch_size // batch
    if "schedule.learning_rate" in given or parts < 2 or "accumulation_steps" in given:
        return ""
    scaled = rate.learning_rate * batch / usual.batch_size
    return (
        f"note: the learning rate is for batches of {usual.batch_size}, not {batch}: scale it "
        f"(linear rule: --config.schedule.learning_rate={scaled:.2g}), or keep the batch with "
        f"--config.accumulation_steps={parts} and without --config.batch_size."
    )


def set_determinism(wanted: bool) -> None:
    """Sets the flags of `config.deterministic`, before JAX initialises devices."""
    if wanted:
        from vit_jax.runtime import determinism

        determinism.ask()


def overrides(flags: absl_flags.FlagValues) -> dict[str, str]:
    """{key: value} of every `--config.KEY=VALUE`."""
    found = {}
    for item in flags.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--config.{key} needs a value: --config.{key}=VALUE.")
        found[key] = value
    return found


def workdir(flags: absl_flags.FlagValues) -> str:
    """The directory of `--workdir`; a bucket's URL is not one.

    Raises:
      UsageError: it is missing, or a URL such as gs://BUCKET/RUN.
    """
    if not flags.workdir:
        raise UsageError("--workdir=DIR is required.")
    _, separator, rest = flags.workdir.partition("://")
    if separator:
        raise UsageError(
            f"--workdir={flags.workdir} is not a directory; give a path such as "
            f"/shared/{rest} on NFS, or on a mounted gs:// bucket with a hierarchical namespace "
            "(docs/launch.md)."
        )
    return flags.workdir


def define_processes(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0, for several processes.", flag_values=flags
    )
    absl_flags.DEFINE_integer("num_processes", 0, "Number of processes.", flag_values=flags)
    absl_flags.DEFINE_integer("process_id", -1, "Index of this process, from 0.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "patience", 300, "Seconds to wait for the others.", lower_bound=1, flag_values=flags
    )


@contextlib.contextmanager
def processes(flags: absl_flags.FlagValues) -> Iterator[None]:
    """Joins the job's other processes, and shuts down cleanly. Data sets are listed once."""
    prepare_jax()
    import jax

    from vit_jax.data.specs import listed_once
    from vit_jax.runtime import distributed

    distributed.join(
        flags.coordinator, flags.num_processes, flags.process_id, patience=flags.patience
    )
    try:
        with listed_once():
            yield
    except Exception as error:
        if not distributed.lost_peer(error):
            together = jax.process_count() > 1 and not isinstance(error, Preempted)
            if together or isinstance(error, WorkerLost):
                exit_with_error(error)
            raise
        # A clean shutdown would wait for the process that is gone.
        reason = str(error).strip().split("\n")[0]
        print(
            f"process {jax.process_index()} of {jax.process_count()}: another process of the job "
            f"died or froze ({reason}); see its log. The same command resumes from the last "
            "checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        os.abort()  # as JAX does when its heartbeats miss a process: 134 everywhere
    finally:
        if jax.process_count() > 1:
            jax.distributed.shutdown()


#: Seconds that a process with an error waits for the others, or its threads, to end as well.
LEAVING = 5.0


def exit_with_error(error: Exception) -> None:
    """Prints the error that ends this process, and makes sure that it ends.

    A clean shutdown needs all processes: JAX would wait for 30 s and then abort, with another exit
    code and without the message. It needs all threads as well.
    """
    print(one_line(error), file=sys.stderr, flush=True)
    error.said = True  # type: ignore[attr-defined]
    timer = threading.Timer(LEAVING, os._exit, (1,))
    timer.daemon = True
    timer.start()


def prepare_jax() -> None:
    """Sets up JAX for every command: a compilation cache, and retained memory."""
    host_memory.keep_freed_pages()

    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with contextlib.suppress(UserError):  # JAX would warn at every program
            place = files.user_cache() / "vit_jax" / "xla"
            files.check_above(place)
            jax.config.update("jax_compilation_cache_dir", str(place))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # The dozens of small programs of a checkpoint take longer in total than the step.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def define_checkpoint(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "checkpoint",
        None,
        "A workdir, an exported, Hugging Face or timm directory, an official .npz, hf:ORG/NAME, "
        "gs://..., https://..., or a published name such as B/16-imagenet21k.",
        flag_values=flags,
    )
    define_verify(flags)


def define_verify(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_bool(
        "verify", True, "Verify the checksums in a file of weights.", flag_values=flags
    )


def define_data(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("data", None, "Data set, e.g. folder:PATH[test].", flag_values=flags)
    absl_flags.DEFINE_string("data_dir", None, "Directory of TFDS data sets.", flag_values=flags)


def define_images(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_integer(
        "max_image_pixels",
        100_000_000,
        "Larger images, by their header, are refused.",
        lower_bound=1,
        flag_values=flags,
    )


def allow_images(flags: absl_flags.FlagValues) -> None:
    """Sets the size limit of images to `--max_image_pixels`."""
    from vit_jax.data.decode import allow_pixels

    allow_pixels(flags.max_image_pixels)


def free(place: Path) -> Path:
    """A path that does not exist: `place`, or with -2, -3, ... before its suffix."""
    number, found = 1, place
    while os.path.lexists(found):
        number += 1
        found = place.with_name(f"{place.stem}-{number}{place.suffix}")
    return found


def define_tolerance(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_float(
        "tolerance",
        1e-4,
        "Maximum difference of logits, relative to the largest logit.",
        lower_bound=0.0,
        flag_values=flags,
    )


def proof_text(target: str, proof) -> str:
    """The line that a conversion prints: the result's path and the differences."""
    features = ""
    if proof.features is not None:
        features = f"pre-logits and tokens within {proof.features:.1g} of the largest, "
    head = " under a random classifier, as its own is all zeros" if proof.random_head else ""
    lines = [
        f"{target}: maximum logit difference {proof.difference:.2g} "
        f"(largest logit {proof.scale:.3g}){head}, top-1 equal on {proof.same_top1:.0%} of "
        f"{proof.images} photographs, {features}run by {proof.runtime}",
        *(f"  {note}" for note in proof.notes),
    ]
    return "\n".join(lines)


def checkpoint(flags: absl_flags.FlagValues) -> str:
    """The path of `--checkpoint`."""
    if not flags.checkpoint:
        raise UsageError("--checkpoint=PATH is required.")
    return flags.checkpoint


@contextlib.contextmanager
def progress(total: int, name: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, otherwise a line every half minute; both show the time left.

    Yields a function of the count so far.
    """
    from tqdm import tqdm

    from vit_jax.runtime import logbook

    begin = said = time.monotonic()

    def line(count: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= logbook.BETWEEN_LINES and 0 < count < total:
            said = now
            left = (now - begin) / count * (total - count)
            text = f"{name}: {count:,} of {total:,} images, eta {logbook.duration_text(left)}"
            print(text, file=sys.stderr, flush=True)

    with tqdm(total=total, desc=name, unit=" images", disable=None, leave=False) as bar:
        yield line if bar.disable else lambda count: bar.update(count - bar.n)
