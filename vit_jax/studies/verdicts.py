"""Trials compared with published accuracies, pass or fail, as a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vit_jax.interop.published import PUBLISHED
from vit_jax.pages import paper
from vit_jax.pages.figures import Figure, new_figure
from vit_jax.studies.study import Outcome


class Target(NamedTuple):
    """The accuracy to reach, in percent. tolerance: how far below still passes."""

    value: float
    tolerance: float
    source: str


def of_table_5(variant: str, pretrained: str, data: str, tolerance: float) -> Target | None:
    """An accuracy of Table 5; None if there is none. Names are those of pages/paper.py."""
    row = paper.TABLE_5[pretrained].get(variant)
    if row is None:
        return None
    value = dict(zip(paper.TABLE_5_COLUMNS, row, strict=True))[data]
    return Target(value, tolerance, "Table 5")


def of_released(name: str, tolerance: float) -> Target:
    """The accuracy of published weights on ImageNet, from the authors' repository."""
    return Target(float(PUBLISHED[name].accuracy.split()[0]), tolerance, "repository")


def verdict(outcome: Outcome, target: Target) -> tuple[float | None, str]:
    """The accuracy in percent, and "pass", "FAIL" or "diverged"; higher also passes."""
    accuracy = (outcome.metrics or {}).get("eval/accuracy")
    if accuracy is None:
        return None, "diverged"
    passes = 100 * accuracy >= target.value - target.tolerance
    return 100 * accuracy, "pass" if passes else "FAIL"


def table(targets: Mapping[str, Target], outcomes: Mapping[str, Outcome]) -> list[str]:
    """A line per trial: here, published, difference, tolerance, verdict; then the count."""
    if not outcomes:
        return []
    width = max(map(len, outcomes))
    lines = [f"  {'':<{width}}    here  published  difference  tolerance  "]
    verdicts = []
    for name, outcome in outcomes.items():
        target = targets[name]
        found, said = verdict(outcome, target)
        verdicts.append(said)
        here, difference = "      –", "         –"
        if found is not None:
            here, difference = f"{found:7.2f}", f"{found - target.value:+10.2f}"
        lines.append(
            f"  {name:<{width}} {here}    {target.value:7.2f}  {difference}  "
            f"{target.tolerance:9.2f}  {said} ({target.source})"
        )
    return [*lines, f"  {verdicts.count('pass')} of {len(verdicts)} pass"]


def draw(targets: Mapping[str, Target], outcomes: Mapping[str, Outcome]) -> Figure:
    """The difference to the published accuracy of each trial, with its tolerance."""
    figure, ((axes,),) = new_figure(1, 1, 6, 1.2 + 0.3 * len(outcomes))
    for place, (name, outcome) in enumerate(outcomes.items()):
        target = targets[name]
        axes.barh(place, target.tolerance, left=-target.tolerance, color="0.85", height=0.7)
        found, said = verdict(outcome, target)
        if found is None:
            axes.annotate(said, (0, place), va="center", fontsize=8)
            continue
        colour = "tab:green" if said == "pass" else "tab:red"
        axes.plot(found - target.value, place, "o", color=colour)
        axes.annotate(
            f"  {found:.2f} ({target.value:.2f}), {said}",
            (found - target.value, place),
            va="center",
            fontsize=8,
        )
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks(range(len(outcomes)), list(outcomes))
    axes.invert_yaxis()
    axes.set_xlabel("accuracy less the published one (points); grey: tolerance")
    return figure
