"""vit-jax study: named trials, each an ordinary run; a table and a figure at the end.

example:
  vit-jax study --config=configs/studies/position_embedding.py --workdir=/runs/positions
  vit-jax study --config=my_study.py --workdir=/runs/mine --config.total_steps=100

The study's file defines trials(), named configurations, and draw(), a figure of what came out. The
trial NAME is a run in WORKDIR/NAME; run the command again to go on. --config.KEY=VALUE changes a
setting of every trial. Writes study.csv, study.json, study.png and study.svg into WORKDIR.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags as absl_flags

from vit_jax.cli import options
from vit_jax.errors import UsageError


def define(flags: absl_flags.FlagValues) -> None:
    options.define_config(flags)
    absl_flags.DEFINE_string("workdir", None, "Directory of the trials.", flag_values=flags)
    options.define_processes(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    workdir = Path(options.workdir(flags)).expanduser().resolve()
    if not flags.config:
        raise UsageError("--config=FILE is needed.")
    with options.processes(flags):
        from vit_jax.runtime.distributed import say
        from vit_jax.studies import study

        trials = study.load(flags.config, options.overrides(flags))
        outcomes = study.run(trials, workdir, say)
        study.write(flags.config, outcomes, workdir)
        for line in study.table(outcomes):
            say(line)
        say(f"in {workdir / 'study.csv'}, drawn in {workdir / 'study.png'}")
