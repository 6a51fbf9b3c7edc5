"""vit-jax evaluate: a checkpoint by one or several protocols, every example exactly once.

example:
  vit-jax evaluate --checkpoint=/runs/pets --data='folder:/data/pets[test]'
  vit-jax evaluate --checkpoint=ViT-B_16.npz --suite=fewshot,knn --data=folder:/data/pets,digits
  vit-jax evaluate --checkpoint=/runs/imagenet --suite=real --data='folder:/data/imagenet[val]' \\
      --real_labels=real.json
  vit-jax evaluate --checkpoint=/runs/imagenet --suite=objectnet --data=/data/objectnet-1.0
  vit-jax evaluate --checkpoint=B/16-imagenet21k --suite=vtab --out=/runs/vtab --tasks=dtd,pets

--suite is any of:
  classification  top-1, top-5, every class, calibration, confusions, the surest mistakes
  fewshot         ridge regression from frozen features, 1 to 25 shots (section 4.1)
  knn, probe      cosine neighbours, and logistic regression, from frozen features
  real            ImageNet ReaL: --real_labels=real.json, or --data=tfds:imagenet2012_real
  objectnet       the 113 objects that ImageNet has, from the unpacked data set
  vtab            VTAB-1k: fine-tunes on every task that is prepared; resumes where it stopped
fewshot, knn and probe take the training and the evaluation split of each data set. Images are
prepared as the checkpoint says; classes are matched by name where both sides have names. Writes
evaluation.json, CSV files and pictures into --out. --config.KEY=VALUE changes a setting of vtab's
runs (configs/vtab.py).
"""

from __future__ import annotations

from pathlib import Path

from absl import flags as absl_flags

from vit_jax.cli import options
from vit_jax.errors import UsageError, UserError, nearest


def define(flags: absl_flags.FlagValues) -> None:
    options.define_checkpoint(flags)
    absl_flags.DEFINE_list(
        "suite", ["classification"], "Protocols, separated by commas.", flag_values=flags
    )
    options.define_data(flags)
    absl_flags.DEFINE_integer("batch_size", 64, "Global batch.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_string(
        "out", None, "Directory of the results; by default the checkpoint's.", flag_values=flags
    )
    absl_flags.DEFINE_list("shots", ["1", "5", "10", "25"], "Of fewshot.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "seeds", 3, "Draws of few-shot examples.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_string("l2", "1024", "Of fewshot: a number, or sweep.", flag_values=flags)
    absl_flags.DEFINE_string(
        "preprocessing", "protocol", "Of fewshot's images: protocol, or model.", flag_values=flags
    )
    absl_flags.DEFINE_list("k", ["1", "5", "10", "20"], "Of knn.", flag_values=flags)
    absl_flags.DEFINE_string("real_labels", None, "real.json of ReaL.", flag_values=flags)
    absl_flags.DEFINE_list("tasks", [], "Of vtab; all that are prepared.", flag_values=flags)
    absl_flags.DEFINE_integer("size", 384, "Image size of vtab's runs.", flag_values=flags)
    absl_flags.DEFINE_list(
        "learning_rates",
        [],
        "Of vtab, to choose one from by the mean on val200; by default 0.01, without choosing.",
        flag_values=flags,
    )
    options.define_overrides(flags)
    options.define_processes(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    checkpoint = options.checkpoint(flags)
    if not flags.data and flags.suite != ["vtab"]:
        raise UsageError("--data=SPEC is needed.")
    try:
        shots, ks = (tuple(map(int, values)) for values in (flags.shots, flags.k))
        rates = tuple(map(float, flags.learning_rates))
    except ValueError:
        raise UsageError(
            "--shots, --k and --learning_rates are numbers, separated by commas."
        ) from None
    where = Path(checkpoint)
    if flags.out is None and "checkpoints" in (where.name, where.parent.name):
        raise UsageError("--out=DIR is needed: nothing is written among the checkpoints of a run.")
    if flags.out is None and not where.exists():
        raise UsageError("--out=DIR is needed for a checkpoint that is not on disk.")
    out = Path(flags.out) if flags.out else (where if where.is_dir() else where.parent)
    with options.processes(flags):
        import jax

        from vit_jax.data.specs import split_specs
        from vit_jax.evaluation import suites
        from vit_jax.interop import load
        from vit_jax.runtime import sharding
        from vit_jax.studies import vtab

        table = suites.SUITES | {"vtab": vtab.suite}
        for name in flags.suite:
            if name not in table:
                raise UserError(
                    f"There is no suite {name!r}; there are {', '.join(table)}."
                    f"{nearest(name, table)}"
                )
        config, params = load.read(checkpoint)
        request = suites.Request(
            config,
            params,
            specs=split_specs(flags.data or ""),
            data_dir=flags.data_dir,
            batch_size=flags.batch_size,
            mesh=sharding.make_mesh(),
            progress=options.progress,
            shots=shots,
            seeds=flags.seeds,
            l2=flags.l2,
            preprocessing=flags.preprocessing,
            k=ks,
            real_labels=flags.real_labels,
            checkpoint=checkpoint,
            out=out,
            tasks=tuple(flags.tasks),
            size=flags.size,
            learning_rates=rates,
            overrides=tuple(options.overrides(flags).items()),
        )
        for name in flags.suite:
            result = table[name](request)
            if jax.process_index() == 0:
                record = {"checkpoint": checkpoint, **result.record}
                file = suites.write(out, name, record, result)
                print("\n".join(result.table))
                print(f"  in {file}")
