"""vit-jax prepare: make data sets readable without TensorFlow.

example:
  vit-jax prepare tfds:cifar10                # a download
  vit-jax prepare tfds:imagenet2012 --data_dir=/tfds # TFRecord to ArrayRecord
  vit-jax prepare imagenet21k /data/imagenet21k_tars # one tar for each class
  vit-jax prepare vtab                       # which of the 19 tasks are ready
  vit-jax prepare vtab:caltech101            # the data set of a task

TensorFlow is needed once, to prepare data that are not on disk yet; converting TFRecord files, and
everything else, works without it.
"""

from __future__ import annotations

from absl import flags as absl_flags

from vit_jax.errors import UsageError


def define(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("data_dir", None, "Directory of TFDS data sets.", flag_values=flags)
    absl_flags.DEFINE_string(
        "manual_dir", None, "Directory of manual downloads, for data behind a login.",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_integer(
        "shards", 512, "Number of files of imagenet21k.", lower_bound=1, flag_values=flags
    )


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    from vit_jax.data import prepare
    from vit_jax.data.kinds import vtab

    if not arguments:
        raise UsageError("give what to prepare: tfds:NAME, vtab, vtab:TASK or imagenet21k DIR.")
    what, *rest = arguments
    of = {"shards": what == "imagenet21k", "manual_dir": what not in ("imagenet21k", "vtab")}
    for name, is_read in of.items():
        if flags[name].present and not is_read:
            raise UsageError(f"--{name} has no meaning for {what}.")
    if what == "imagenet21k":
        if len(rest) != 1:
            raise UsageError("imagenet21k needs the directory of its class archives.")
        prepare.prepare_imagenet21k(rest[0], flags.data_dir, shards=flags.shards)
        return
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}.")
    if what == "vtab":
        report = prepare.readiness(flags.data_dir)
        for name, (ready, text) in report.items():
            print(f"  {'ready' if ready else '-':<6} {name:<20} {text}")
        print(f"{sum(ready for ready, _ in report.values())} of {len(report)} tasks are ready")
        return
    kind, _, name = what.partition(":")
    if kind == "vtab" and name:
        name = vtab.find_task(name).dataset
    elif kind != "tfds" or not name:
        raise UsageError(f"{what!r} is not one of tfds:NAME, vtab, vtab:TASK, imagenet21k DIR.")
    prepare.prepare_tfds(name, flags.data_dir, manual_dir=flags.manual_dir)
