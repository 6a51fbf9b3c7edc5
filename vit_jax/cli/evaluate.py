"""vit-jax evaluate: a checkpoint by one or several protocols, every example exactly once.

example:
  vit-jax evaluate --checkpoint=/runs/pets --data='folder:/data/pets[test]'
  vit-jax evaluate --checkpoint=ViT-B_16.npz --suite=fewshot,knn --data=folder:/data/pets,digits
  vit-jax evaluate --checkpoint=/runs/imagenet --suite=real --data='folder:/data/imagenet[val]' \\
      --real_labels=real.json

--suite is any of: classification (top-1, top-5, every class, calibration), fewshot (ridge
regression from frozen features, section 4.1), knn (cosine neighbours), real (ImageNet ReaL).
fewshot and knn take the training and the evaluation split of each data set. Images are prepared as
the checkpoint says; classes are matched by name where both sides have names. Writes
evaluation.json and CSV files into --out.
"""

from __future__ import annotations

import re
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
    absl_flags.DEFINE_list("k", ["1", "5", "10", "20"], "Of knn.", flag_values=flags)
    absl_flags.DEFINE_string("real_labels", None, "real.json of ReaL.", flag_values=flags)
    options.define_processes(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    checkpoint = options.checkpoint(flags)
    if arguments:
        raise UsageError(f"unexpected argument {arguments[0]!r}.")
    if not flags.data:
        raise UsageError("--data=SPEC is needed.")
    try:
        shots, ks = (tuple(map(int, values)) for values in (flags.shots, flags.k))
    except ValueError:
        raise UsageError("--shots and --k are numbers, separated by commas.") from None
    where = Path(checkpoint)
    if flags.out is None and not where.exists():
        raise UsageError("--out=DIR is needed for a checkpoint that is not on disk.")
    out = Path(flags.out) if flags.out else (where if where.is_dir() else where.parent)
    with options.processes(flags):
        import jax

        from vit_jax import sharding
        from vit_jax.evaluation import suites
        from vit_jax.interop import load

        for name in flags.suite:
            if name not in suites.SUITES:
                raise UserError(
                    f"There is no suite {name!r}; there are {', '.join(suites.SUITES)}."
                    f"{nearest(name, suites.SUITES)}"
                )
        config, params = load.read(checkpoint)
        request = suites.Request(
            config,
            params,
            specs=split_specs(flags.data),
            data_dir=flags.data_dir,
            batch_size=flags.batch_size,
            mesh=sharding.make_mesh(),
            progress=options.progress,
            shots=shots,
            seeds=flags.seeds,
            l2=flags.l2,
            ks=ks,
            real_labels=flags.real_labels,
        )
        for name in flags.suite:
            result = suites.SUITES[name](request)
            if jax.process_index() == 0:
                record = {"checkpoint": checkpoint, **result.record}
                file = suites.write(out, name, record, result.rows)
                print("\n".join(result.table))
                print(f"  in {file}")


def split_specs(text: str) -> tuple[str, ...]:
    """Data specs separated by commas, but not by those inside brackets."""
    return tuple(part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip())
