"""Curves over steps as HTML figures: SVG paths, without a library or the network.

The labels are HTML, not SVG, so that they keep their size when the curves stretch to the width of
the screen. A few lines of JavaScript show the values under the pointer; the figure works without.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from vit_jax.config import human

Points = list[tuple[int, float]]  # (step, value), NaN where the value was not finite
MAX_POINTS = 600  # maximum per curve; longer ones are thinned, keeping extremes


class Curve(NamedTuple):
    """One line of a chart; a smoothed curve is drawn over its raw values."""

    label: str
    points: Points
    raw: Points = []  # noqa: RUF012 (never changed)


def chart(
    title: str,
    curves: Sequence[Curve],
    show: Callable[[float], str] | None = None,
    *,
    may_be_log: bool = False,
    from_zero: bool = False,
) -> str:
    """A figure with one or more curves over steps, or a sentence if there is nothing to draw.

    Args:
      title: above the figure.
      curves: empty ones are left out.
      show: formats a value; `number` if None.
      may_be_log: use a logarithmic scale if the values span two powers of ten.
      from_zero: the scale begins at zero.
    """
    show = show or number
    curves = [curve for curve in curves if curve.points]
    values = [v for curve in curves for _, v in finite([*curve.points, *curve.raw])]
    if sentence := _too_little(curves, values, show):
        return (
            f"<figure><figcaption><b>{escape(title)}</b></figcaption>"
            f"<p class=empty>{escape(sentence)}</p></figure>"
        )

    log = may_be_log and min(values) > 0 and max(values) >= 100 * min(values)
    scale = math.log10 if log else float
    ticks = _log_ticks(min(values), max(values)) if log else _ticks(values, from_zero)
    low, high = scale(ticks[0]), scale(ticks[-1])
    last_step = max(1, *(step for curve in curves for step, _ in curve.points))
    steps = [
        tick for tick in _round_ticks(0, last_step, 5) if tick <= last_step and tick == int(tick)
    ]

    def x(step: float) -> float:
        return 1000 * step / last_step

    def y(value: float) -> float:
        return 1000 * (high - scale(value)) / (high - low)

    lines = [f'<path class=grid d="M0 {y(tick):.1f}H1000"/>' for tick in ticks]
    legend, data = [], []
    for index, curve in enumerate(curves):
        points, look = thin(curve.points), f"c{index % 4} d{index // 4 % 3}"
        if curve.raw:
            lines.append(f'<path class="raw {look}" d="{_path(thin(curve.raw), x, y)}"/>')
        lines.append(f'<path class="{look}" d="{_path(points, x, y)}"/>')
        key = f'<svg viewBox="0 0 20 8" aria-hidden=true><path class="{look}" d="M0 4H20"/></svg>'
        legend.append(f"<span>{key}{escape(curve.label)}</span>")
        data.append([curve.label, [[step, show(value)] for step, value in points]])
    if len(curves) == 1:
        legend = ["<span>smoothed, raw values behind</span>"] if curves[0].raw else []
    if log:
        legend.append("<span>log scale</span>")
    labels = [f'<i class=y style="top:{y(t) / 10:.2f}%">{escape(show(t))}</i>' for t in ticks]
    labels += [f'<i class=x style="left:{x(t) / 10:.2f}%">{escape(human(t))}</i>' for t in steps]
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{''.join(legend)}</figcaption>"
        f'<div class=plot tabindex=0 data-last="{last_step}" '
        f'data-curves="{escape(json.dumps(data))}">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio=none role=img '
        f'aria-label="{escape(_describe(title, curves, show))}">{"".join(lines)}</svg>'
        f"<div aria-hidden=true>{''.join(labels)}<u></u></div></div>"
        "<output aria-hidden=true></output></figure>"
    )


def finite(points: Points) -> Points:
    """The points with finite values."""
    return [point for point in points if math.isfinite(point[1])]


def smooth(points: Points) -> Points:
    """Averages over about 5% of the curve, from both sides, so that there is no lag.

    Non-finite values stay so. [] for a short or a constant curve.
    """
    values = {value for _, value in finite(points)}
    if len(points) < 20 or len(values) < 2:
        return []
    keep = 1 - 1 / max(3.0, len(points) / 20)
    forward = _average([value for _, value in points], keep)
    backward = _average([value for _, value in reversed(points)], keep)[::-1]
    return [(step, (a + b) / 2) for (step, _), a, b in zip(points, forward, backward, strict=True)]


def _average(values: Sequence[float], keep: float) -> list[float]:
    """Exponential moving average with bias correction."""
    total = weight = 0.0
    averages = []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + 1 - keep
        averages.append(total / weight if math.isfinite(value) else math.nan)
    return averages


def _too_little(
    curves: Sequence[Curve], values: Sequence[float], show: Callable[[float], str]
) -> str:
    """A sentence instead of a chart, or "" if there is enough to draw."""
    if not curves:
        return "Not logged."
    if not values:
        return "No value was finite."
    if all(len(curve.points) == 1 for curve in curves):
        said = [f"{label} {show(at[0][1])} at step {at[0][0]:,}" for label, at, _ in curves]
        return f"A single value: {', '.join(said)}."
    if min(values) == max(values):
        return f"{show(values[0])} throughout."
    return ""


def _describe(title: str, curves: Sequence[Curve], show: Callable[[float], str]) -> str:
    """A description of the curves for screen readers."""
    said = []
    for curve in curves:
        points = finite(curve.raw or curve.points)
        if not points:
            continue
        (first, a), (last, b) = points[0], points[-1]
        low = min(points, key=lambda point: point[1])
        high = max(points, key=lambda point: point[1])
        said.append(
            f"{curve.label}: {show(a)} at step {first}, {show(b)} at step {last}, "
            f"lowest {show(low[1])} at step {low[0]}, highest {show(high[1])} at step {high[0]}"
        )
    return f"{title} over steps. {'. '.join(said)}."


def _path(points: Points, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """An SVG path through the points, with gaps at non-finite values."""
    parts, drawing = [], False
    for index, (step, value) in enumerate(points):
        if not math.isfinite(value):
            drawing = False
            continue
        parts.append(f"{'L' if drawing else 'M'}{x(step):.1f} {y(value):.1f}")
        alone = index + 1 == len(points) or not math.isfinite(points[index + 1][1])
        if not drawing and alone:
            parts.append("h0")  # a dot
        drawing = True
    return "".join(parts)


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most `limit` points: the lowest and the highest of each segment, and both ends."""
    if len(points) <= limit:
        return points
    size = math.ceil(2 * len(points) / (limit - 2))
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        finite = [i for i in stretch if math.isfinite(points[i][1])]
        if finite:
            kept |= {
                min(finite, key=lambda i: points[i][1]),
                max(finite, key=lambda i: points[i][1]),
            }
        else:
            kept.add(start)
    return [points[i] for i in sorted(kept)]


def _round_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that enclose [low, high]."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _ticks(values: Sequence[float], from_zero: bool) -> list[float]:
    low, high = min(values), max(values)
    if low >= 0 and (from_zero or low < 0.4 * high):
        low = 0
    return _round_ticks(low, high, 4)


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose [low, high], at most six of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = math.ceil((last - first) / 5)
    return [10.0**exponent for exponent in range(first, last + every, every)]


def percent(value: float) -> str:
    return f"{100 * value:.1f}%".replace(".0%", "%")


def number(value: float) -> str:
    """Four significant digits at most: 0.4123, 3e-4, 12.5k."""
    if not math.isfinite(value):
        return "not finite"
    if abs(value) >= 9_999.5:
        return human(value)
    return scientific(value) if abs(value) < 0.001 else f"{value:.4g}"


def scientific(value: float) -> str:
    """0.0003 as "3e-4", three digits at most: for learning rates."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


#: Needs the colours --ink, --soft, --line, --paper and --c0 to --c3.
