"""vit-jax study: named trials, each an ordinary run; a table, a figure and a page at the end.

example:
  vit-jax study --config=configs/studies/position_embedding.py:digits \\
      --workdir=/runs/positions
  vit-jax study --config=configs/studies/scaling.py --dry_run  # its cost
  vit-jax study --config=my_study.py --workdir=/runs/mine \\
      --config.total_steps=100
  vit-jax study --config=my_study.py --workdir=/shared/mine --trial=2/4
  vit-jax study --config=my_study.py --workdir=/runs/mine --only='rate_*'

--trial=2/4 is the second of four parts, one per machine. The study's file defines trials(), named
configurations, and draw(), a figure of the results. The trial NAME is a run in WORKDIR/NAME; run
the command again to resume. --config.KEY=VALUE changes a setting of every trial. A failed trial
does not stop others; it is named at the end, and the exit code is 1. Writes study.csv, study.json
and study.html into WORKDIR, and when all trials are finished study.png and study.svg.

A trial without a folder is done if study.csv has its row, with the hash of its configuration. A
trial that starts from another one is in the same part of --trial; --only includes its parent.
--dry_run lists trials with their parameters, steps, exaFLOPs and hours on this machine.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from absl import flags as absl_flags

from vit_jax.cli import options
from vit_jax.errors import UsageError, UserError


def define(flags: absl_flags.FlagValues) -> None:
    options.define_config(flags)
    absl_flags.DEFINE_string("workdir", None, "Directory of the trials.", flag_values=flags)
    absl_flags.DEFINE_string("only", "", "Trials whose names match the pattern.", flag_values=flags)
    absl_flags.DEFINE_string("trial", "1/1", "I/N: the I-th of N parts.", flag_values=flags)
    absl_flags.DEFINE_bool("dry_run", False, "List the trials and their cost.", flag_values=flags)
    options.define_processes(flags)


def part(text: str) -> tuple[int, int]:
    """ "2/4" as (2, 4), and "0/4" as (4, 4): Kubernetes counts its pods from 0."""
    match = re.fullmatch(r"(0|[1-9]\d*)/([1-9]\d*)", text)
    if not match or int(match[1]) > int(match[2]):
        raise UsageError(f"--trial={text} must be I/N with I from 1 to N, e.g. --trial=1/4.")
    return int(match[1]) or int(match[2]), int(match[2])


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    is_listed = flags.dry_run and not flags.workdir
    workdir = None if is_listed else Path(options.workdir(flags)).resolve()
    if not flags.config:
        raise UsageError("--config=FILE is required.")
    share = part(flags.trial)
    with options.processes(flags):
        from vit_jax.runtime.distributed import say
        from vit_jax.studies import estimate, show, study

        trials = study.load(flags.config, options.overrides(flags))
        mine = study.chosen(trials, flags.only, share)
        if flags.dry_run:
            done = study.outcomes(trials, workdir) if workdir else {}
            # Standard output has the table alone.
            say("measuring this machine's speed, up to a minute", file=sys.stderr)
            for line in estimate.listing(trials, mine, done):
                say(line)
            return
        assert workdir is not None
        failed = study.run(trials, mine, workdir, flags.config, say)
        found = study.write(flags.config, trials, workdir, {})
        show.show(flags.config, trials, found, workdir, failed)
        for line in study.lines(flags.config, found):
            say(line)
        whole = len(found) == len(trials)
        drawn = f", drawn in {workdir / 'study.png'}" if whole else ""
        say(f"{len(found)} of {len(trials)} trials in {workdir / 'study.csv'}{drawn}")
        say(f"page: {workdir / 'study.html'}")
        if failed:
            raise UserError(
                f"{len(failed)} of {len(trials)} trials failed: "
                + "; ".join(f"{name} ({error})" for name, error in failed.items())
                + " Run the same command to retry."
            )
