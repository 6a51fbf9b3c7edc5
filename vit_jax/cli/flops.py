"""vit-jax flops: cost of models: parameters, multiply-accumulates, training FLOPs.

example:
  vit-jax flops B/16 L/16 --image_size=384
  vit-jax flops --table1 --table6      # beside the published figures

One multiply-accumulate (MAC) is two FLOPs; a training step costs three forward passes. Without
arguments every variant is listed. --json prints Table 6 as JSON, or the given variants.
"""

from __future__ import annotations

import json

from absl import flags as absl_flags

from vit_jax.errors import UsageError


def define(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_integer(
        "image_size", 224, "Pixels per side.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "num_classes", 1000, "Classes of the linear head.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_bool("table1", False, "Table 1: parameters.", flag_values=flags)
    absl_flags.DEFINE_bool("table6", False, "Table 6: pre-training compute.", flag_values=flags)
    absl_flags.DEFINE_bool("json", False, "JSON instead of a table.", flag_values=flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    from vit_jax.models import cost

    tables = flags.table1 or flags.table6
    if tables and flags.json:
        raise UsageError(
            "--json prints Table 6, or the variants given; leave out --table1 and --table6."
        )
    if not arguments and (tables or flags.json):
        for name in ("image_size", "num_classes"):
            if flags[name].present:
                raise UsageError(f"--{name} is for variants; the tables use the paper's.")
    if flags.json and not arguments:
        print(json.dumps(cost.table_6(), indent=2))
        return
    if flags.table1:
        print_table_1()
    if flags.table6:
        print_table_6()
    if arguments or not tables:
        print_variants(flags, arguments)


def print_variants(flags: absl_flags.FlagValues, names: list[str]) -> None:
    """A row per variant: parameters, MACs and training FLOPs per image."""
    from vit_jax import models
    from vit_jax.models import cost

    rows = []
    for name in names or [name for name in models.VARIANTS if not name.startswith("debug")]:
        size = flags.image_size
        config = models.get_config(name, image_size=size, num_classes=flags.num_classes)
        rows.append((name, cost.num_params(config), cost.forward_macs(config) / 1e9))
    if flags.json:
        unknown = {"exaflops": None, "published_exaflops": None}
        table = [
            {"variant": name, "epochs": None, "params": params, "gmacs": gmacs, **unknown}
            for name, params, gmacs in rows
        ]
        print(json.dumps(table, indent=2))
        return
    print(f"{'variant':<12} {'parameters':>13} {'GMAC':>9} {'training GFLOP':>15}   per image")
    for name, params, gmacs in rows:
        print(f"{name:<12} {params:>13,} {gmacs:>9.2f} {6 * gmacs:>15.1f}")


def print_table_1() -> None:
    """Parameters of Base, Large and Huge, with 1000 classes, beside the published millions."""
    from vit_jax import models
    from vit_jax.models import cost

    print("Table 1       layers  hidden   MLP  heads   parameters  published")
    for name, published in cost.TABLE_1.items():
        config = models.get_config(name, num_classes=1000)
        shape = [getattr(config, field) for field in cost.TABLE_1_FIELDS]
        print(
            f"  {name:<12}{shape[0]:>6}{shape[1]:>8}{shape[2]:>6}{shape[3]:>7}"
            f"{cost.num_params(config):>13,}{published:>10}M"
        )


def print_table_6() -> None:
    """exaFLOPs of the pre-training runs on JFT-300M."""
    from vit_jax.models import cost

    print("Table 6       epochs   parameters    GMAC  exaFLOPs  published     off")
    for row in cost.table_6():
        off = row["exaflops"] / row["published_exaflops"] - 1
        remark = f"   the paper is inconsistent: {row['note']}" if row["note"] else ""
        print(
            f"  {row['variant']:<12}{row['epochs']:>6}{row['params']:>13,}{row['gmacs']:>8.2f}"
            f"{row['exaflops']:>10.1f}{row['published_exaflops']:>11}{off:>+8.1%}{remark}"
        )
