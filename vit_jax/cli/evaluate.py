"""vit-jax evaluate: evaluate a model by one or more protocols, every example exactly once.

example:
  vit-jax evaluate --checkpoint=/runs/pets
  vit-jax evaluate --checkpoint=/runs/pets \\
      --data='folder:/data/pets[test]' --predictions=pets.csv
  vit-jax evaluate --checkpoint=/runs/pets --calibrate --save_temperature
  vit-jax evaluate --checkpoint=pets.onnx --data='folder:/data/pets[test]'
  vit-jax evaluate --checkpoint=/runs/tags --threshold=per_class \\
      --save_threshold --data='folder:/data/tags.csv?separator=;[test]'
  vit-jax evaluate --checkpoint=ViT-B_16.npz --suite=fewshot,knn \\
      --data=folder:/data/pets,digits
  vit-jax evaluate --checkpoint=/runs/imagenet --suite=real \\
      --data='folder:/data/imagenet[val]' --real_labels=real.json
  vit-jax evaluate --checkpoint=/runs/imagenet --suite=objectnet \\
      --data=/data/objectnet-1.0
  vit-jax evaluate --checkpoint=B/16-imagenet21k --suite=vtab \\
      --out=/runs/vtab --tasks=dtd,pets

--suite is any of:
  classification  top-1, top-5, every class, calibration, confusions, mistakes;
                  for several labels per image mAP, and F1 at a threshold
  fewshot         ridge regression from frozen features, 1 to 25 shots (4.1)
  knn, probe      cosine neighbours, logistic regression, from frozen features
  real            ImageNet ReaL, with --real_labels=real.json or
                  --data=tfds:imagenet2012_real
  objectnet       the 113 objects that ImageNet has, from the unpacked data
  vtab            VTAB-1k: fine-tunes on every task that is prepared; resumes
  FILE.py:NAME    an evaluator of your own, see CONTRIBUTING.md
fewshot, knn and probe use the training and the evaluation split of each data set; an export
must have been made with --features. vtab needs a checkpoint. Images are prepared by the model's
preprocessing; classes are matched by name if both sides have names. Writes evaluation.json, CSV
files, pictures and evaluation.html into --out, with the paper's numbers where a row corresponds.
Without --data, classification uses the test split of the run's own data, or else its evaluation
data, says which, and writes into WORKDIR/test or beside it.
An option of a protocol is --PROTOCOL.OPTION, or --OPTION for every protocol of --suite that has it.
--config.KEY=VALUE changes a setting of vtab's runs (configs/vtab.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from vit_jax import files
from vit_jax.cli import options, runtime
from vit_jax.config import EVALUATORS, pick
from vit_jax.errors import UsageError, UserError, printable

if TYPE_CHECKING:
    from vit_jax.evaluation.forward import Forward
    from vit_jax.evaluation.run_data import Remembered

#: Flags for vtab only.
VTAB = ("tasks", "size", "learning_rates", "set")


def define(flags: absl_flags.FlagValues) -> None:
    options.define_checkpoint(flags)
    runtime.define(flags)
    options.define_images(flags)
    absl_flags.DEFINE_list(
        "suite", ["classification"], "Protocols, separated by commas.", flag_values=flags
    )
    options.define_data(flags)
    absl_flags.DEFINE_integer("batch_size", 64, "Global batch.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_string(
        "out", None, "Directory of the results; by default the checkpoint's.", flag_values=flags
    )
    absl_flags.DEFINE_list(
        "tasks", [], "Tasks of vtab; by default all that are prepared.", flag_values=flags
    )
    absl_flags.DEFINE_integer("size", 384, "Image size of vtab's runs.", flag_values=flags)
    absl_flags.DEFINE_list(
        "learning_rates",
        [],
        "For vtab: candidates, chosen by the mean on val200; by default 0.01, without a choice.",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "save_threshold",
        False,
        "Save the chosen threshold in the model, for predict and later evaluations.",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "save_temperature",
        False,
        "Save the temperature of --calibrate in the model, for predict, later evaluations and "
        "exports.",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "predictions",
        None,
        "A new .csv or .parquet file with a row per image, of --suite=classification.",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "top_k", 5, "Number of classes per image in it.", lower_bound=1, flag_values=flags
    )
    options.define_overrides(flags)
    options.define_processes(flags)
    from vit_jax.evaluation.options import declared

    define_options(flags, {name: declared(name) for name in EVALUATORS})


def define_for(flags: absl_flags.FlagValues, words: list[str]) -> None:
    """The flags of the plug-ins that a command line names with --suite."""
    for i, word in enumerate(words):
        flag, _, value = word.lstrip("-").partition("=")
        if word.startswith("-") and flag == "suite":
            names = (value or "".join(words[i + 1 : i + 2])).split(",")
            plugins = {key_of(name): name for name in names if ".py:" in name}
            define_options(flags, {key: pick({}, name, "--suite") for key, name in plugins.items()})


def define_options(flags: absl_flags.FlagValues, table: Mapping) -> None:
    """--E.NAME for every option NAME of an evaluator E, and --NAME for all that have it."""
    from vit_jax.evaluation.options import options_of, shown

    same: dict[str, list[tuple[str, bool]]] = {}
    for key, evaluator in table.items():
        for option in options_of(evaluator, key).values():
            flag = f"{key}.{option.name}"
            default = shown(option.default)
            text = f"{option.text}{f' [{default}]' if default else ''}"
            as_flag(option.kind is bool)(flag, None, text, flag_values=flags)
            same.setdefault(option.name, []).append((flag, option.kind is bool))
    for name, those in same.items():
        if name not in flags:
            text = f"The same as {', '.join(f'--{flag}' for flag, _ in those)}."
            as_flag(all(switch for _, switch in those))(name, None, text, flag_values=flags)


def as_flag(switch: bool) -> Callable[..., object]:
    """Declares an option as a flag; a boolean needs no value."""
    return absl_flags.DEFINE_bool if switch else absl_flags.DEFINE_string


def key_of(name: str) -> str:
    """The name of an evaluator in flags and files: worst_class for "worst.py:worst_class"."""
    return name.rpartition(":")[2]


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    checkpoint = options.checkpoint(flags)
    if not flags.suite:
        raise UsageError("--suite= is empty; name a protocol, such as classification.")
    remembers = not flags.data and flags.suite == ["classification"]
    with options.processes(flags):
        import jax

        options.allow_images(flags)
        runtime.check(checkpoint, flags.runtime)
        from vit_jax.data.specs import split_specs
        from vit_jax.evaluation import per_image, protocols, result, run_data
        from vit_jax.evaluation.data_sets import DataSets
        from vit_jax.interop import load
        from vit_jax.runtime.distributed import say
        from vit_jax.studies import vtab

        table = protocols.EVALUATORS | {"vtab": vtab.suite}
        if len({key_of(name) for name in flags.suite}) < len(flags.suite):
            raise UsageError(f"--suite={','.join(flags.suite)} has two of the same name.")
        evaluators = {key_of(name): pick(table, name, "--suite") for name in flags.suite}
        if not flags.data and not remembers and flags.suite != ["vtab"]:
            raise UsageError(f"--data=SPEC is required for --suite={','.join(flags.suite)}.")
        out = out_directory(flags, checkpoint)
        files.check_directory(out)
        files.read_json(out / "evaluation.json")  # results are added to it: not if it is damaged
        chosen = chosen_options(flags, evaluators)
        saves = flags.save_threshold or flags.save_temperature
        check_saves(flags, checkpoint, chosen)
        rows = predictions_file(flags)
        data = DataSets(split_specs(flags.data or ""), flags.data_dir, options.progress)
        if remembers:
            own = run_data.data_of(checkpoint, flags.data_dir)
            data = DataSets((own.spec,), own.data_dir, options.progress, watched=own.watched)
            out = out if flags.out else beside(own)
            say(f"data: {own.spec}, {own.why}")
        result.earlier(out)
        data = data._replace(top_k=flags.top_k)
        for name, evaluator in evaluators.items():  # before the model is read
            if evaluator in protocols.EVALUATORS.values():
                protocols.sources(evaluator, data, chosen[name])
        forward = None
        for name, evaluator in evaluators.items():
            if evaluator is vtab.suite:
                found = vtab.suite(vtab_request(flags, checkpoint, out))
            else:
                forward = forward or runtime.forward(checkpoint, flags.batch_size, flags.runtime)
                if rows and name == "classification":
                    per_image.check(rows, forward.labels, several=forward.multilabel)
                found = protocols.evaluate(evaluator, forward, data, chosen[name])
            if jax.process_index() == 0:
                record = {"checkpoint": checkpoint, **facts_of(forward), **found.record}
                file = result.write(out, name, record, found)
                print("\n".join(map(printable, found.table)))
                print(f"  in {file} and {file.with_suffix('.html').name}")
                if rows and found.images and name == "classification":
                    per_image.write(rows, found.images())
                    print(f"  each image in {rows}")
                if saves and found.model:
                    print(f"  saved in {load.replace_settings(checkpoint, found.model)}")


def beside(found: Remembered) -> Path:
    """The directory of results on a run's own data: WORKDIR/test, or test-2 beside it, ..."""
    name = "test" if found.spec.endswith("[test]") else "validation"
    return options.free(found.workdir / name)


def check_saves(
    flags: absl_flags.FlagValues, checkpoint: str, chosen: Mapping[str, Mapping[str, object]]
) -> None:
    """Raises UsageError or UserError if there is nothing to save, or the model is not our own."""
    from vit_jax.interop import load

    thresholds = any(each.get("threshold") in ("one", "per_class") for each in chosen.values())
    if flags.save_threshold and not thresholds:
        raise UsageError("--save_threshold needs --threshold=one or --threshold=per_class.")
    if flags.save_temperature and not any(each.get("calibrate") for each in chosen.values()):
        raise UsageError("--save_temperature needs --calibrate.")
    if flags.save_threshold or flags.save_temperature:
        load.own_directory(checkpoint)


def predictions_file(flags: absl_flags.FlagValues) -> Path | None:
    """The file of --predictions, if there is to be one and it can be written.

    Raises:
      UsageError: it is for another suite.
      UserError: see per_image.check.
    """
    from vit_jax.evaluation import per_image

    if flags.predictions is None:
        if flags["top_k"].present:
            raise UsageError("--top_k needs --predictions=FILE.")
        return None
    if "classification" not in flags.suite:
        raise UsageError("--predictions needs --suite=classification.")
    file = Path(flags.predictions)
    per_image.check(file)
    return file


def facts_of(forward: Forward | None) -> dict[str, object]:
    """The entry of a model in evaluation.json; empty for vtab alone."""
    if forward is None:
        return {}
    return {"variant": forward.variant, "image_size": list(forward.image_size)}


def out_directory(flags: absl_flags.FlagValues, checkpoint: str) -> Path:
    """The directory of results.

    Raises:
      UsageError: it must be given.
      UserError: there is no such checkpoint.
    """
    if flags.out:
        return Path(flags.out)
    where = Path(checkpoint)
    if "checkpoints" in (where.name, where.parent.name):
        raise UsageError("--out=DIR is required: nothing is written into the checkpoints of a run.")
    if not where.exists():
        from vit_jax.interop import load

        load.check_named(checkpoint)
        raise UsageError("--out=DIR is required for a checkpoint that is not on disk.")
    return where if where.is_dir() else where.parent


def chosen_options(
    flags: absl_flags.FlagValues, evaluators: Mapping
) -> dict[str, dict[str, object]]:
    """{evaluator: its options}, from flags and defaults.

    Raises:
      UsageError: a value of the wrong type, or a flag that no evaluator reads.
    """
    from vit_jax.evaluation.options import options_of, read
    from vit_jax.evaluation.protocols import EVALUATORS as FUNCTIONS

    unread = {name for name in VTAB if flags[name].present and "vtab" not in evaluators}
    for known in FUNCTIONS.values():
        unread |= {name for name in options_of(known) if flags[name].present}
    unread |= {name for name in flags if "." in name and flags[name].present}
    chosen: dict[str, dict[str, object]] = {}
    for key, evaluator in evaluators.items():
        chosen[key] = {}
        for option in options_of(evaluator, key).values() if key != "vtab" else ():
            chosen[key][option.name] = option.default
            for flag in (option.name, f"{key}.{option.name}"):
                if flags[flag].present:
                    unread.discard(flag)
                    try:
                        chosen[key][option.name] = read(flags[flag].value, option.kind, f"--{flag}")
                    except UserError:
                        raise
                    except ValueError as error:
                        raise UsageError(str(error)) from None
    if unread:
        flag = min(unread)
        named = "--config.KEY" if flag == "set" else f"--{flag}"
        raise UsageError(f"{named} is not an option of --suite={','.join(flags.suite)}.")
    return chosen


def vtab_request(flags: absl_flags.FlagValues, checkpoint: str, out: Path):
    """The request for vtab."""
    from vit_jax.studies import vtab

    try:
        rates = tuple(map(float, flags.learning_rates))
    except ValueError:
        raise UsageError("--learning_rates must be numbers, separated by commas.") from None
    return vtab.Request(
        checkpoint=checkpoint,
        out=out,
        tasks=tuple(flags.tasks),
        size=flags.size,
        learning_rates=rates,
        overrides=tuple(options.overrides(flags).items()),
        data_dir=flags.data_dir,
    )
