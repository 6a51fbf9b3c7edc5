"""vit-jax train: pretrain or fine-tune a model; the same command again resumes the run.

example:
  vit-jax train --config=configs/quickstart.py --workdir=/tmp/quickstart
  vit-jax train --config=configs/finetune.py:B/16,folder:/data/pets --workdir=/runs/pets \\
      --config.init_from=/weights/ViT-B_16.npz --config.schedule.learning_rate=0.01

Any setting of the config can be given as --config.key=value. A run leaves in WORKDIR its
config.json, metrics.jsonl, TensorBoard events, checkpoints/, model/, evaluation.json and
report.html. Exit codes: 0 done, 1 error, 2 wrong usage, 42 asked to stop and saved.
"""

from __future__ import annotations

from absl import flags as absl_flags

from vit_jax.cli import options


def define(flags: absl_flags.FlagValues) -> None:
    options.define_config(flags)
    absl_flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=flags)
    absl_flags.DEFINE_bool(
        "allow_config_change", False, "Resume although the config differs.", flag_values=flags
    )
    options.define_processes(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> int | None:
    workdir = options.workdir(flags)
    config = options.read_config(flags)
    with options.processes(flags):
        from vit_jax.training.run import train

        train(config, workdir, allow_config_change=flags.allow_config_change)
    return None
