"""The curves show what was measured: no extreme lost, no gap closed, no number misplaced."""

from __future__ import annotations

import html
import json
import math
import re

import pytest

from vit_jax.pages import charts
from vit_jax.pages.charts import Curve, chart


def ramp(n: int) -> charts.Points:
    return [(step, float(step)) for step in range(1, n + 1)]


def paths(figure: str) -> list[str]:
    return [d for d in re.findall(r' d="([^"]+)"', figure) if "V" not in d and "H" not in d]


def coordinates(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def test_points_are_where_they_belong():
    figure = chart("Loss", [Curve("loss", [(0, 0.0), (50, 4.0), (100, 2.0)])])
    (path,) = paths(figure)
    assert coordinates(path) == [(0, 1000), (500, 0), (1000, 500)]  # y points down
    assert '<i class=y style="top:0.00%">4</i>' in figure
    assert '<i class=x style="left:100.00%">100</i>' in figure


def test_a_value_that_is_not_finite_leaves_a_gap():
    points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, 3.0), (5, math.inf), (6, 4.0), (7, 5.0)]
    (path,) = paths(chart("Loss", [Curve("loss", points)]))
    assert path.count("M") == 3
    assert len(coordinates(path)) == 5
    assert path.count("h0") == 1  # the point alone is a dot
    assert "nan" not in path and "inf" not in path


def test_a_logarithmic_scale_only_where_it_helps():
    points = [(1, 100.0), (2, 1.0), (3, 0.01)]
    figure = chart("Loss", [Curve("loss", points)], may_be_log=True)
    assert "log scale" in figure
    assert [y for _, y in coordinates(paths(figure)[0])] == [0, 500, 1000]
    assert "log scale" not in chart("Loss", [Curve("loss", points)])
    assert "log scale" not in chart("Loss", [Curve("loss", ramp(50))], may_be_log=True)
    assert "log scale" not in chart("Loss", [Curve("loss", [(0, 0.0), *points])], may_be_log=True)


@pytest.mark.parametrize(
    "curves, sentence",
    [
        ([], "Not logged."),
        ([Curve("a", [])], "Not logged."),
        ([Curve("a", [(1, math.nan), (2, math.nan)])], "No value was finite."),
        (
            [Curve("a", [(9, 0.5)]), Curve("b", [(9, 0.7)])],
            "A single value: a 0.5 at step 9, b 0.7",
        ),
        ([Curve("a", [(1, 0.5), (2, 0.5)])], "0.5 throughout."),
    ],
)
def test_an_empty_chart_is_a_sentence(curves, sentence):
    figure = chart("Loss", curves)
    assert sentence in figure
    assert "<svg" not in figure


def test_all_values_at_step_zero_are_drawn_too():
    assert len(coordinates(paths(chart("Loss", [Curve("loss", [(0, 1.0), (0, 2.0)])]))[0])) == 2


def test_several_curves_have_a_legend_and_differ():
    curves = [Curve(f"<{i}>", [(1, float(i)), (2, i + 1.0)]) for i in range(6)]
    figure = chart("Accuracy", curves)
    assert all(html.escape(f"<{i}>") in figure for i in range(6))
    assert "<0>" not in figure
    looks = re.findall(r'<path class="(c\d d\d)" d="M\d+\.', figure)
    assert len(looks) == len(set(looks)) == 6


def test_the_label_says_what_the_curve_shows():
    points = [(10, 3.0), (20, 1.0), (30, 2.0)]
    label = re.search(r'aria-label="([^"]+)"', chart("Loss", [Curve("loss", points)])).group(1)
    for fact in ("3 at step 10", "2 at step 30", "lowest 1 at step 20", "highest 3 at step 10"):
        assert fact in label


def test_the_read_out_has_the_values():
    figure = chart("Rate", [Curve('a"b', [(1, 0.0001), (2, 0.5)])])
    data = json.loads(html.unescape(re.search(r'data-curves="([^"]+)"', figure).group(1)))
    assert data == [['a"b', [[1, "1e-4"], [2, "0.5"]]]]


def test_thinning_keeps_the_extremes_and_the_ends():
    points = [(step, math.sin(step / 50)) for step in range(20_000)]
    points[7777] = (7777, 99.0)
    points[12_345] = (12_345, -99.0)
    thin = charts.thin(points)
    assert len(thin) <= charts.MAX_POINTS
    assert {points[0], points[-1], points[7777], points[12_345]} <= set(thin)
    assert thin == sorted(thin)
    assert charts.thin(points[:600]) == points[:600]


def test_thinning_keeps_a_long_gap():
    points = [(s, math.nan if 4000 < s < 6000 else s % 7.0) for s in range(10_000)]
    assert any(math.isnan(value) for _, value in charts.thin(points))


def test_smoothing_does_not_lag_and_takes_the_noise_away():
    noisy = [(step, value + (-1) ** step * 10) for step, value in ramp(1000)]
    middle = charts.smooth(noisy)[400:-400]
    assert all(abs(value - step) < 1 for step, value in middle)


def test_smoothing_leaves_gaps_and_short_curves():
    points = ramp(100)
    points[50] = (51, math.nan)
    smooth = charts.smooth(points)
    assert math.isnan(smooth[50][1]) and math.isfinite(smooth[51][1])
    assert charts.smooth(ramp(19)) == []
    assert charts.smooth([(step, 1.0) for step in range(100)]) == []


@pytest.mark.parametrize("low, high", [(0, 1), (0.02, 0.9), (-3, 8), (0, 20_000), (1e-6, 3e-4)])
def test_ticks_are_round_and_enclose_the_values(low, high):
    ticks = charts._ticks([low, high], from_zero=False)
    assert ticks[0] <= low and ticks[-1] >= high
    assert 3 <= len(ticks) <= 8
    assert all(len(f"{tick:.12g}".replace("-", "").rstrip("0")) <= 6 for tick in ticks)


def test_log_ticks_are_few():
    for low, high in [(1e-3, 1), (1e-12, 1e9), (0.3, 50)]:
        ticks = charts._log_ticks(low, high)
        assert ticks[0] <= low and ticks[-1] >= high * 0.999
        assert len(ticks) <= 7


@pytest.mark.parametrize(
    "value, text",
    [
        (0.41234, "0.4123"),
        (0.0003, "3e-4"),
        (0, "0"),
        (12_345, "12.3k"),
        (math.nan, "not finite"),
        (9_999.7, "10k"),
        (999_700, "1M"),
    ],
)
def test_numbers(value, text):
    assert charts.number(value) == text


def test_learning_rates_and_percents():
    assert [charts.scientific(v) for v in (0, 0.003, 0.00125)] == ["0", "3e-3", "1.25e-3"]
    assert [charts.percent(v) for v in (0.972, 1, 0.25)] == ["97.2%", "100%", "25%"]
