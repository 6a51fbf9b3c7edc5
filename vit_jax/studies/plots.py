"""Shared by the figures of studies: values over seeds, axes of one style, a fitted power law.

Missing and diverged trials are left out.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vit_jax.studies.record import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Outcomes = Mapping[str, Outcome]

FINE_TUNED = "eval/accuracy"
FEW_SHOT = "fewshot/*/5_shots"


def value(outcome: Outcome | None, metric: str) -> float | None:
    """A metric of a trial in percent, by a pattern of its name; None if missing."""
    for key, found in (outcome.metrics or {} if outcome else {}).items():
        if fnmatch.fnmatchcase(key, metric) and math.isfinite(found):
            return 100 * found
    return None


def group_of(name: str) -> str:
    """The name of a trial without its seed: "none" for none_2."""
    return re.sub(r"_\d+$", "", name)


def over_seeds(
    outcomes: Outcomes, metric: str, prefix: str = "", *, best: bool = False
) -> dict[str, list[float]]:
    """{group: values} of the trials whose names begin with `prefix`, which is removed.

    Args:
      best: the highest value during training instead of the last: early stopping, in hindsight.
    """
    found: dict[str, list[float]] = {}
    for name, outcome in outcomes.items():
        if name.startswith(prefix):
            values = found.setdefault(group_of(name).removeprefix(prefix), [])
            last = value(outcome, metric)
            highest = value(outcome, f"best/{metric}") if best else None
            values += [v for v in (last if highest is None else highest,) if v is not None]
    return found


def curve(axes: Axes, outcome: Outcome | None, metric: str, label: str) -> None:
    """A metric over the steps of a trial; empty if its log is not available."""
    points = [
        (each["step"], 100 * found)
        for each in (outcome.records if outcome else [])
        for key, found in each.items()
        if fnmatch.fnmatchcase(key, metric) and not key.startswith("best/")
    ]
    if points:
        axes.plot([x for x, _ in points], [y for _, y in points], label=label)


def figure(columns: int = 1, width: float = 5.0) -> tuple[Figure, list[Axes]]:
    """A figure with this many panels side by side."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width * columns, 3.4), layout="constrained")
    return drawn, list(np.atleast_1d(drawn.subplots(1, columns)))


def style(axes: Axes, x: str, y: str, *, log: bool = False) -> None:
    """Labels, grid, and on the horizontal axis a logarithmic scale."""
    axes.set(xlabel=x, ylabel=y)
    if log:
        axes.set_xscale("log")
    axes.grid(axis="both" if log else "y", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def dots(
    axes: Axes,
    places: Sequence[float],
    values: Sequence[Sequence[float]],
    label: str = "",
    color: str = "tab:blue",
    *,
    line: bool = True,
) -> None:
    """A dot per seed, and their means joined by a line; missing values are skipped."""
    points = [(x, found) for x, found in zip(places, values, strict=True) if len(found)]
    for x, found in points:
        axes.plot([x] * len(found), found, "o", color=color, alpha=0.4, markersize=4)
    means = [sum(found) / len(found) for _, found in points]
    axes.plot(
        [x for x, _ in points], means, "-" if line else "_", color=color, label=label or None,
        markersize=18, markeredgewidth=2,
    )  # fmt: skip


def categories(axes: Axes, groups: Mapping[str, Sequence[float]], x: str, y: str) -> None:
    """A column per group of trials, with its seeds and their mean."""
    dots(axes, range(len(groups)), list(groups.values()), line=False)
    for place, values in enumerate(groups.values()):
        if len(values):
            mean = sum(values) / len(values)
            axes.annotate(f"{mean:.1f}", (place + 0.2, mean), va="center", fontsize=8)
    long = sum(map(len, groups)) > 40
    axes.set_xticks(
        range(len(groups)),
        list(groups),
        rotation=30 if long else 0,
        ha="right" if long else "center",
    )
    axes.set_xlim(-0.5, len(groups) - 0.2)
    style(axes, x, y)


class PowerLaw(NamedTuple):
    """y = scale * x ** exponent; (low, high) is the 95% confidence interval of the exponent."""

    scale: float
    exponent: float
    low: float
    high: float


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """The least-squares line of log y over log x; None for fewer than three different x.

    The interval is Student's, for independent errors of equal variance in log y.
    """
    from scipy import stats

    if len(set(x)) < 3 or min(y) <= 0:
        return None
    fit = stats.linregress(np.log(x), np.log(y))
    reach = float(stats.t.ppf(0.975, len(x) - 2) * fit.stderr)
    slope = float(fit.slope)
    return PowerLaw(float(np.exp(fit.intercept)), slope, slope - reach, slope + reach)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of (cost, value), by increasing cost."""
    front: list[tuple[float, float]] = []
    for cost, found in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or found > front[-1][1]:
            front.append((cost, found))
    return front


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation; None for fewer than three pairs or if all are equal."""
    from scipy import stats

    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    if len(pairs) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(stats.spearmanr(x, y).statistic)
