"""The fine-tuning protocol (section 4.1, Table 4): choose a learning rate on a held-out part of the
training set, then train on all of it, and test each run once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from vit_jax import config as configuration, data, files
from vit_jax.config import ConfigDict
from vit_jax.data.specs import parse_spec
from vit_jax.errors import UserError
from vit_jax.studies import study
from vit_jax.training.run import train
from vit_jax.training.workdir import as_begun, changes

#: Settings that choose a step by its evaluation; they change no step.
CHOOSE = {"keep_best", "patience"}


def sweep(
    config: ConfigDict,
    workdir: str | Path,
    *,
    learning_rates: Sequence[float] = (),
    held_out: float | None = None,
    seeds: int = 3,
    say: Callable[[str], None] = print,
) -> dict:
    """Runs the protocol in `workdir`; each trial is a separate run there, and resumes.

    With `config.keep_best` rates are compared by their best evaluations. Final runs are not stopped
    early, since the test split must not select anything.

    Args:
      learning_rates, held_out: candidates, and the percentage of the training set to hold out; by
        default those of `config.sweep` (Table 4's, in configs/finetune.py).
      seeds: runs with the chosen rate on the whole training set.

    Returns:
      The content of `sweep.json`: the accuracy of every rate on the held-out part, the chosen rate,
      and the test accuracies with their mean and standard deviation.

    Raises:
      UserError: the data set has no separate test split; or as `train`.
      Preempted: asked to stop; the same call resumes.
    """
    workdir = Path(workdir).expanduser().resolve()
    train_split, test_split = splits(config)
    learning_rates = learning_rates or config.sweep.learning_rates
    held_out = config.sweep.held_out_percent if held_out is None else held_out
    dev_train, dev_eval = carve(train_split, held_out)
    trials: dict[str, tuple[float, ConfigDict]] = {}
    for rate in learning_rates:
        trial = on_splits(config, dev_train, dev_eval)
        trial.schedule.learning_rate = float(rate)
        configuration.check(trial)  # all of them, before the first takes hours
        if trials.setdefault(f"dev_{rate:g}", (rate, trial))[1] is not trial:
            raise UserError(f"The learning rate {rate:g} is given twice; give each once.")
    rows = []
    for name, (rate, trial) in trials.items():
        found = study.trial(trial, workdir / name)
        if found is None:
            rows.append({"learning_rate": float(rate), "accuracy": 0.0, "diverged": True})
            say(f"learning rate {rate:g}: diverged, counted as 0%")
            continue
        accuracy = score(found)
        rows.append({"learning_rate": float(rate), "accuracy": accuracy})
        say(f"learning rate {rate:g}: {100 * accuracy:.2f}% on {dev_eval}")
    if all("diverged" in row for row in rows):
        raise UserError(
            "All learning rates diverged; give lower ones with --learning_rates, or set "
            "config.gradient_clip_norm."
        )
    best = max(rows, key=lambda row: row["accuracy"])["learning_rate"]
    accuracies = []
    for seed in range(seeds):
        trial = on_splits(config, train_split, test_split)
        trial.schedule.learning_rate = best
        trial.seed = config.seed + seed
        trial.keep_best, trial.patience = "", 0
        place = workdir / f"final_{seed}"
        # One that began with these two, as earlier versions did, continues without them.
        changed = changes(place, as_begun(place, trial))
        known = bool(changed) and changed.keys() <= CHOOSE
        found = train(trial, place, allow_config_change=known)
        accuracies.append(score(found))
        say(f"seed {trial.seed}: {100 * accuracies[-1]:.2f}% on {test_split}")
    result = {
        "held_out": rows,
        "learning_rate": best,
        "accuracies": accuracies,
        "mean": float(np.mean(accuracies)),
        "std": float(np.std(accuracies)),
    }
    if jax.process_index() == 0:
        files.write_json(workdir / "sweep.json", result)
    return result


def score(metrics: Mapping[str, float]) -> float:
    """The metric to compare learning rates by: top-1, or mAP for several labels per image."""
    found = "eval/mAP" if "eval/mAP" in metrics else "eval/accuracy"
    if found not in metrics:
        raise UserError(
            "A sweep compares accuracies, which this objective does not report; use "
            "config.objective.name=classification."
        )
    return metrics[found]


def splits(config: ConfigDict) -> tuple[str, str]:
    """The training and the test split of the data set, without the data set's name."""
    train, test = config.data.train_split, config.data.eval_split
    if not (train and test):
        specs = data.default_splits(config.data.dataset, data_dir=config.data.data_dir)
        train, test = train or parse_spec(specs[0])[2], test or parse_spec(specs[1])[2]
    return train, test


def carve(split: str, held_out: float) -> tuple[str, str]:
    """A split as two: "train" and 10 as ("train[:90%]", "train[90%:]").

    The first part of a split (for data without a test split) is supported too: "train[:90%]" and 10
    are ("train[:81%]", "train[81%:90%]").

    Raises:
      UserError: the split is another slice.
    """
    found = re.fullmatch(r"([\w-]+)(?:\[:(\d+)%\])?", split)
    if not found:
        raise UserError(
            f"A sweep holds out the end of a training split such as train or train[:90%], which "
            f"{split!r} is not; set config.data.train_split."
        )
    name, whole = found[1], int(found[2] or 100)
    percent = round(whole * (100 - held_out)) / 100
    if not 0 < percent < whole:
        raise UserError(f"--held_out={held_out:g} must be between 0 and 100 percent.")
    last = "" if whole == 100 else f"{whole}%"
    return f"{name}[:{percent:g}%]", f"{name}[{percent:g}%:{last}]"


def on_splits(config: ConfigDict, train_split: str, eval_split: str) -> ConfigDict:
    """A copy of the configuration that trains and evaluates on these splits."""
    copy = config.copy_and_resolve_references()
    copy.data.train_split, copy.data.eval_split = train_split, eval_split
    return copy
