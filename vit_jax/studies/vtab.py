"""VTAB-1k (section 4.1): fine-tuning on nineteen tasks with 1,000 images each, and their mean.

Every task is an ordinary run of configs/vtab.py in its own workdir, so that it resumes. With
several learning rates, one is chosen for all tasks: by the mean on the 200 validation images, after
training on the 800.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_jax import config as configuration, files
from vit_jax.data import prepare
from vit_jax.data.kinds.vtab import GROUPS, TASKS, find_task
from vit_jax.errors import UserError
from vit_jax.evaluation.result import Result
from vit_jax.runtime.distributed import say
from vit_jax.studies import study
from vit_jax.training.run import train


class Request(NamedTuple):
    """The request of `vit-jax evaluate --suite=vtab`.

    tasks: (): all that are prepared. learning_rates: (): that of configs/vtab.py. overrides:
    (dotted key, text) of its settings.
    """

    checkpoint: str
    out: Path
    tasks: tuple[str, ...] = ()
    size: int = 384
    learning_rates: tuple[float, ...] = ()
    overrides: tuple[tuple[str, str], ...] = ()
    data_dir: str | None = None


def suite(request: Request) -> Result:
    """Runs the requested tasks that are prepared; others are reported and skipped.

    Raises:
      UserError: no task is prepared, or there is no such task.
    """
    for name in request.tasks:
        find_task(name)
    report = prepare.readiness(request.data_dir)
    wanted = [name for name in TASKS if not request.tasks or name in request.tasks]
    for name in wanted:
        prepared, text = report[name]
        say(f"  {'ready' if prepared else 'missing':<8} {name:<21} {text}")
    ready = [name for name in wanted if report[name][0]]
    if not ready:
        raise UserError(f"None of the {len(wanted)} tasks is prepared; see `vit-jax prepare vtab`.")

    def run(name: str, rate: float | None, *, choosing: bool) -> float:
        part = f"choose_{rate:g}" if choosing else "final"
        config = task_config(request, name, rate, choosing=choosing)
        place = request.out / "vtab" / name / part
        metrics = study.trial(config, place) if choosing else train(config, place)
        if metrics is None:
            say(f"{TASKS[name].title}, {part}: diverged, counted as 0%")
            return 0.0
        accuracy = metrics["eval/accuracy"]
        say(f"{TASKS[name].title}, {part}: {100 * accuracy:.2f}%")
        return accuracy

    record: dict[str, object] = {"image_size": [request.size] * 2}
    rate = request.learning_rates[0] if request.learning_rates else None
    if len(request.learning_rates) > 1:
        means = {
            r: float(np.mean([run(name, r, choosing=True) for name in ready]))
            for r in request.learning_rates
        }
        rate = max(means, key=lambda r: means[r])
        record["mean_on_val200"] = {f"{r:g}": mean for r, mean in means.items()}
    if rate is not None:
        record["learning_rate"] = rate
    found = {name: run(name, rate, choosing=False) for name in ready}
    model = files.read_json(request.out / "vtab" / ready[0] / "final" / "model" / "config.json")
    record["variant"] = (model or {}).get("variant")
    remarks = {name: report[name][1] for name in ready if report[name][1] != "prepared"}
    summary = averages(found)
    rows = [
        {
            "task": TASKS[name].title,
            "group": TASKS[name].group,
            "accuracy": accuracy,
            "remark": remarks.get(name, ""),
        }
        for name, accuracy in found.items()
    ]
    record |= {"tasks": found, **summary, "remarks": remarks}
    metrics = {key: value for key, value in summary.items() if isinstance(value, float)}
    return Result(record, table(found, remarks), metrics, rows)


def task_config(
    request: Request, name: str, rate: float | None, *, choosing: bool
) -> configuration.ConfigDict:
    """configs/vtab.py for a task, from the checkpoint of the request and with its overrides."""
    argument = f"checkpoint,{name},{request.size},dev={choosing}"
    config = configuration.load(f"configs/vtab.py:{argument}")
    config.init_from = request.checkpoint
    config.data.data_dir = request.data_dir
    for key, text in request.overrides:
        configuration.override(config, key, text)
    if rate is not None:
        config.schedule.learning_rate = rate
    return config


def averages(found: Mapping[str, float]) -> dict[str, float]:
    """The mean of all tasks and of each group, and whether all tasks are in it.

    An incomplete group or benchmark has a `partial_` mean, which is not comparable.
    """
    summary: dict[str, float] = {"num_tasks": len(found), "complete": len(found) == len(TASKS)}
    sets: dict[str, Sequence[str]] = {"mean": list(TASKS)}
    sets |= {group: [n for n in TASKS if TASKS[n].group == group] for group in GROUPS}
    for key, names in sets.items():
        mine = [found[name] for name in names if name in found]
        if mine:
            partial = "" if len(mine) == len(names) else "partial_"
            summary[f"{partial}{key}"] = float(np.mean(mine))
    return summary


def table(found: Mapping[str, float], remarks: Mapping[str, str]) -> list[str]:
    """Table 9's rows, then the means."""
    summary = averages(found)
    lines = ["VTAB-1k"]
    for name, accuracy in found.items():
        remark = f"   ({remarks[name]})" if name in remarks else ""
        lines.append(f"  {TASKS[name].title:<12} {100 * accuracy:6.2f}{remark}")
    for key in (*GROUPS, "mean"):
        total = sum(1 for task in TASKS.values() if key in ("mean", task.group))
        count = sum(1 for name in found if key in ("mean", TASKS[name].group))
        if count:
            partial = "" if count == total else f"   partial: {count} of {total} tasks"
            value = summary[key if count == total else f"partial_{key}"]
            lines.append(f"  {key.capitalize():<12} {100 * value:6.2f}{partial}")
    if remarks:
        lines.append("  Splits differ from the benchmark's, so numbers are not comparable.")
    return lines
