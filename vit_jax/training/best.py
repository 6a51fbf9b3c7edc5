"""The best evaluation of a run so far, and early stopping.

The paper stops early, and reports the best validation accuracy, when training on subsets of JFT
(section 4.3, Figure 4). The best so far is part of every checkpoint's record, so that it is
consistent with the step that a run resumes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from vit_jax.config import ConfigDict
from vit_jax.errors import UserError, nearest
from vit_jax.models.fingerprints import BestRecord
from vit_jax.runtime import sharding
from vit_jax.runtime.logbook import scalar

#: Smaller is better for metrics whose name contains one of these words, otherwise larger.
SMALLER_IS_BETTER = ("loss", "error", "errors", "distance")
#: Prefixes of a metric that override this.
SAID = {"min:": True, "max:": False}
#: Metrics of the exported model in a finished run's last record, next to evaluators at the end.
OF_MODEL = "best/"


class Rule(NamedTuple):
    """metric: EVALUATOR/NAME. patience: evaluations without improvement; 0: never stop."""

    metric: str
    smaller: bool
    patience: int

    @property
    def evaluator(self) -> str:
        return self.metric.partition("/")[0]

    def __str__(self) -> str:
        return f"the {'smallest' if self.smaller else 'largest'} {self.metric}"


def rule_of(config: ConfigDict, periods: Mapping[str, int | None]) -> Rule | None:
    """The rule of `config.keep_best` and `config.patience`; None if unset.

    Args:
      periods: {evaluator: every so many steps; None: at the end only}.

    Raises:
      UserError: patience alone, an unknown evaluator, or one that runs once.
    """
    text, patience = config.keep_best, config.patience
    if not text:
        if patience:
            raise UserError(
                f"config.patience={patience} needs a metric to improve; name it with "
                "config.keep_best, e.g. eval/accuracy."
            )
        return None
    said = next((mark for mark in SAID if text.startswith(mark)), "")
    metric = text.removeprefix(said)
    evaluator, _, name = metric.partition("/")
    if not name or evaluator not in periods:
        there = ", ".join(f"{key}/..." for key in periods)
        raise UserError(
            f"config.keep_best={text!r} names no metric of an active evaluator; there are "
            f"{there}, e.g. eval/accuracy.{nearest(evaluator, periods)}"
        )
    if periods[evaluator] is None:
        own = evaluator not in config.evaluators
        every = "config.eval_every" if own else f"config.evaluators.{evaluator}.every"
        raise UserError(
            f"config.keep_best={text!r} has nothing to choose from: {evaluator} runs once, at the "
            f"end; set {every}_steps or {every}_epochs."
        )
    words = name.rpartition("/")[2].split("_")  # the rest may contain the path of a data set
    smaller = SAID[said] if said else any(word in SMALLER_IS_BETTER for word in words)
    return Rule(metric, smaller, patience)


def check_metric(rule: Rule, names: Mapping[str, object] | list[str]) -> None:
    """Raises UserError unless the metric is among `names`, the metrics of its evaluator."""
    if rule.metric not in names:
        raise UserError(
            f"config.keep_best: there is no metric {rule.metric!r}; there are {', '.join(names)}."
            f"{nearest(rule.metric, names)}"
        )


class Best:
    """The best evaluation of a run so far.

    step: None: none so far. values: all finite metrics of that step. since: evaluations after it
    without improvement. evaluated: the step of the last evaluation.

    Args:
      rule: None: keep no best.
      found: the record in the checkpoint that the run resumes from, if any.
    """

    def __init__(self, rule: Rule | None, found: BestRecord | None = None):
        self.rule = rule
        self.step: int | None = None
        self.values: dict[str, float] = {}
        self.since = self.evaluated = 0
        if rule and found and (found["metric"], found["smaller"]) == (rule.metric, rule.smaller):
            self.step, self.values = found["step"], found["values"]
            self.since, self.evaluated = found["since"], found["evaluated"]

    def note(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether the evaluation of a step is the best so far; process 0 decides.

        Non-finite values are never the best; of equal values the first is. Noting a step again has
        no effect.

        Raises:
          UserError: the metric is not among `metrics`.
        """
        rule = self.rule
        if rule is None or step <= self.evaluated:
            return False
        value = float(scalar(metrics.get(rule.metric, math.nan)))
        before = self.values.get(rule.metric)
        better = before is None or (value < before if rule.smaller else value > before)
        verdict = int(math.isfinite(value) and better) if rule.metric in metrics else 2
        verdict = sharding.gathered(verdict)[0]
        if verdict == 2:
            check_metric(rule, metrics)
        self.evaluated, self.since = step, self.since + 1
        if verdict == 1:
            numbers = {key: scalar(value) for key, value in metrics.items()}
            self.values = {key: n for key, n in numbers.items() if math.isfinite(n)}
            self.step, self.since = step, 0
        return verdict == 1

    @property
    def is_over(self) -> bool:
        """Whether patience is exhausted."""
        return bool(self.rule and self.rule.patience and self.since >= self.rule.patience)

    def record(self) -> BestRecord | None:
        """The record for a checkpoint."""
        if self.rule is None:
            return None
        return {
            "metric": self.rule.metric,
            "smaller": self.rule.smaller,
            "step": self.step,
            "values": self.values,
            "since": self.since,
            "evaluated": self.evaluated,
        }

    def __str__(self) -> str:
        if self.rule is None:
            return "the last step"
        if self.step is None:
            return f"the last step: no {self.rule.metric} was finite"
        return f"step {self.step}, {self.rule}: {self.values[self.rule.metric]:.6g}"


def of_model(record: Mapping[str, float]) -> dict[str, float]:
    """The last record of a run, with the metrics of the exported model."""
    own = {key.removeprefix(OF_MODEL): value for key, value in record.items() if OF_MODEL in key}
    return {**record, **{key: value for key, value in own.items() if "/" in key}}
