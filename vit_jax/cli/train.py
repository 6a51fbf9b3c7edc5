"""vit-jax train: pretrain or fine-tune a model; the same command again resumes the run.

example:
  vit-jax train folder:/data/pets
  vit-jax train --config=configs/quickstart.py --workdir=/tmp/quickstart
  vit-jax train --config=configs/finetune.py:B/16,folder:/data/pets \\
      --workdir=/runs/pets --config.init_from=/weights/ViT-B_16.npz \\
      --config.schedule.learning_rate=0.01
  vit-jax train --config=/runs/pets/config.json \\
      --workdir=/runs/again --config.seed=1

Any setting of the config can be given as --config.key=value. A run writes to WORKDIR its
config.json, metrics.jsonl, TensorBoard events, checkpoints/, model/, evaluation.json and
report.html. Exit codes: 0 done, 1 error, 2 wrong usage, 42 asked to stop and saved.

With data (folder:, tfds:, hf:, digits) instead of --config, the rest is chosen: published weights
on this machine (vit-jax weights), size, steps, learning rate, batch. The run is in
./runs/NAME-DATE; the same command resumes the newest unfinished run with the same data and
settings. The equivalent command with --config is printed. See configs/own.py for the choices.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from absl import flags as absl_flags

from vit_jax import config as configuration
from vit_jax.cli import options
from vit_jax.config import ConfigDict
from vit_jax.errors import UsageError


def define(flags: absl_flags.FlagValues) -> None:
    options.define_config(flags)
    absl_flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=flags)
    absl_flags.DEFINE_bool(
        "new",
        False,
        "With data instead of --config: start a new run even if one is unfinished.",
        flag_values=flags,
    )
    options.define_recipe(flags)
    absl_flags.DEFINE_bool(
        "print_config", False, "Print the configuration as JSON, and exit.", flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "allow_config_change", False, "Resume although the config differs.", flag_values=flags
    )
    options.define_processes(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    if spec := options.data_argument(flags, arguments):
        train_on(flags, spec)
        return
    if flags.new:
        raise UsageError("--new is for `vit-jax train DATA`; here --workdir names the run.")
    if flags.print_config:
        print_config(options.read_config(flags))
        return
    workdir = options.workdir(flags)
    config = options.read_config(flags)
    hint = options.batch_hint(flags, config)
    with options.processes(flags):
        from vit_jax.runtime.distributed import say
        from vit_jax.training.run import train

        if hint:
            say(hint)
        train(config, workdir, allow_config_change=flags.allow_config_change)


def print_config(config: ConfigDict) -> None:
    configuration.check(config)
    print(configuration.to_json(config), end="")


def train_on(flags: absl_flags.FlagValues, spec: str) -> None:
    """Trains on data given without a config."""
    if flags.new and flags.workdir:
        raise UsageError("--new and --workdir exclude each other; leave one out.")
    given = options.overrides(flags)
    workdir = options.workdir(flags) if flags.workdir else ""
    with options.processes(flags):
        import jax

        from vit_jax.training import own_data

        if jax.process_count() > 1 and not workdir and not flags.print_config:
            raise UsageError("--workdir=DIR is required with several processes, the same for all.")
        with contextlib.redirect_stdout(sys.stderr if flags.print_config else sys.stdout):
            chosen = own_data.recipe(spec, given, flags.recipe or "paper")
        config = chosen.config()
        if flags.print_config:
            print_config(config)
            return
        configuration.check(config)
        place, note = Path(workdir), "workdir:"
        if not workdir:
            place, note = own_data.find_workdir(config, spec, new=flags.new)
        own_data.show(chosen, place, note)
        from vit_jax.training.run import train

        train(config, place, allow_config_change=flags.allow_config_change)
        if config.objective.name == "classification":
            own_data.show_next(place)
