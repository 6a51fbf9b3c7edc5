"""vit-jax sweep: the paper's fine-tuning protocol, from learning rates to mean and deviation.

example:
  vit-jax sweep --config=configs/finetune.py:B/16,cifar10 \\
      --workdir=/runs/cifar10 --config.init_from=B/16-imagenet21k
  vit-jax sweep --config=configs/finetune.py:B/16,folder:/data/pets \\
      --workdir=/runs/pets --config.init_from=B/16-imagenet21k \\
      --learning_rates=0.003,0.01,0.03
  vit-jax sweep folder:/data/pets --workdir=/runs/pets

Each learning rate is tried with a part of the training set held out (those of Table 4 are in
configs/finetune.py: ImageNet 1%, CIFAR 2%, Pets and Flowers 10%); the best is trained on all of it
with each of --seeds, and tested. Every trial is a run in WORKDIR; run the command again to resume.
Writes WORKDIR/sweep.json.

With data instead of --config, the rest is chosen as by `vit-jax train DATA`; the candidates are
a third of its rate, the rate, and three times the rate.
"""

from __future__ import annotations

from absl import flags as absl_flags

from vit_jax.cli import options
from vit_jax.errors import UsageError, counted


def define(flags: absl_flags.FlagValues) -> None:
    options.define_config(flags)
    absl_flags.DEFINE_string("workdir", None, "Directory of the trials.", flag_values=flags)
    absl_flags.DEFINE_list(
        "learning_rates", [], "Candidates; by default the config's.", flag_values=flags
    )
    absl_flags.DEFINE_float(
        "held_out",
        None,
        "Percentage of the training set to choose on; by default the config's.",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "seeds", 3, "Number of runs with the chosen rate.", lower_bound=1, flag_values=flags
    )
    options.define_recipe(flags)
    options.define_processes(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    workdir = options.workdir(flags)
    try:
        rates = [float(rate) for rate in flags.learning_rates]
    except ValueError:
        raise UsageError("--learning_rates must be numbers, separated by commas.") from None
    spec = options.data_argument(flags, arguments)
    config = None if spec else options.read_config(flags)
    with options.processes(flags):
        if config is None:
            from vit_jax.training import own_data

            config = own_data.whole(spec, options.overrides(flags), flags.recipe or "paper")
        from vit_jax.runtime.distributed import say
        from vit_jax.studies.sweep import sweep

        result = sweep(
            config,
            workdir,
            learning_rates=rates,
            held_out=flags.held_out,
            seeds=flags.seeds,
            say=say,
        )
        say(
            f"learning rate {result['learning_rate']:g}: {100 * result['mean']:.2f}% "
            f"± {100 * result['std']:.2f} over {counted(flags.seeds, 'run')}; "
            f"in {workdir}/sweep.json"
        )
