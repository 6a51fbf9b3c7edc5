"""vit-jax evaluate: the accuracy of a checkpoint on a data set, every example exactly once.

example:
  vit-jax evaluate --checkpoint=/runs/pets --data='folder:/data/pets[test]'
  vit-jax evaluate --checkpoint=ViT-B_16.npz --data='tfds:imagenet2012[validation]' --out=results

Images are prepared as the checkpoint says. Classes are matched by name where both sides have names.
Writes evaluation.json and a CSV with the accuracy of every class into --out.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags as absl_flags

from vit_jax.cli import options
from vit_jax.errors import UsageError, UserError, nearest

SUITES = ("classification",)


def define(flags: absl_flags.FlagValues) -> None:
    options.define_checkpoint(flags)
    absl_flags.DEFINE_list(
        "suite", ["classification"], f"Which of: {', '.join(SUITES)}.", flag_values=flags
    )
    options.define_data(flags)
    absl_flags.DEFINE_integer("batch_size", 64, "Global batch.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_string(
        "out", None, "Directory of the results; by default the checkpoint's.", flag_values=flags
    )
    options.define_processes(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    checkpoint = options.checkpoint(flags)
    if arguments:
        raise UsageError(f"unexpected argument {arguments[0]!r}.")
    if not flags.data:
        raise UsageError("--data=SPEC is needed.")
    for suite in flags.suite:
        if suite not in SUITES:
            raise UserError(
                f"There is no suite {suite!r}; there is {', '.join(SUITES)}."
                f"{nearest(suite, SUITES)}"
            )
    where = Path(checkpoint)
    out = Path(flags.out) if flags.out else (where if where.is_dir() else where.parent)
    with options.processes(flags):
        import jax

        from vit_jax import data, sharding
        from vit_jax.evaluation import suites
        from vit_jax.interop import load

        spec = flags.data
        if not spec.endswith("]"):
            spec = data.default_splits(spec, data_dir=flags.data_dir)[1]
        source = data.open_source(spec, data_dir=flags.data_dir)
        config, params = load.read(checkpoint)
        with options.progress(len(source), "evaluate") as on_batch:
            summary, rows, remark = suites.run_classification(
                config,
                params,
                source,
                batch_size=flags.batch_size,
                mesh=sharding.make_mesh(),
                on_batch=on_batch,
            )
        if jax.process_index() == 0:
            record = {"data": spec, "checkpoint": checkpoint, **summary}
            file = suites.write(out, "classification", record, rows)
            print_table(config.variant, spec, summary, rows, remark)
            print(f"written to {file}")


def print_table(variant: str, spec: str, summary: dict, rows: list[dict], remark: str) -> None:
    """The result for a person: the summary, and the five hardest classes."""
    if remark:
        print(f"note: {remark}", file=sys.stderr)
    print(f"{variant} on {spec}: {summary['num_examples']:,} examples")
    print(f"  accuracy        {100 * summary['accuracy']:6.2f}%")
    print(f"  top-5 accuracy  {100 * summary['top5_accuracy']:6.2f}%")
    print(f"  loss            {summary['loss']:7.4f}")
    known = [row for row in rows if row["examples"]]
    for row in sorted(known, key=lambda row: row["accuracy"])[:5]:
        print(f"  {100 * row['accuracy']:6.2f}%  {row['class']} ({row['examples']})")
