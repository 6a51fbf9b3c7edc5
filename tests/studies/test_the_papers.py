"""configs/studies/: the eleven studies of the paper, in its size and small, without any data."""

import ast
import fnmatch
import functools
import re
from pathlib import Path

import numpy as np
import pytest

from vit_jax import config as configuration, files, settings
from vit_jax.models import cost
from vit_jax.studies import estimate, plots, record, show, study
from vit_jax.training.setup import check_settings

ROOT = Path(__file__).parents[2]
FILES = {path.stem for path in (ROOT / "configs" / "studies").glob("*.py")}
STUDIES = sorted(FILES - {"reproduce", "recipes"})  # which are not the paper's own
#: What belongs to data, model and steps, in which the small setting differs and in nothing else.
SMALL = (
    "data.", "augment.", "eval_preprocess.", "model.", "batch_size", "total_", "eval_every_",
    "name", "schedule.warmup_", "log_every_steps", "checkpoint_every_steps",
    "evaluators.fewshot.data", "evaluators.fewshot.every_epochs", "polyak_decay",
)  # fmt: skip
SIZES = {"": "paper", "digits,2": "small"}
each = pytest.mark.parametrize("name", STUDIES)
in_both_sizes = pytest.mark.parametrize("argument", SIZES, ids=SIZES.get)


@functools.cache
def trials(name, argument):
    colon = ":" if argument else ""
    return study.load(f"configs/studies/{name}.py{colon}{argument}", {})


def outcomes(name, argument):
    """Made up: accuracies by chance, records of a few steps."""
    rng = np.random.default_rng(0)
    found = {}
    for trial, config in trials(name, argument).items():
        metrics = {"step": 10, "eval/accuracy": rng.uniform(0.3, 0.9)}
        if data := config.evaluators.fewshot.data:
            metrics[f"fewshot/{data}/5_shots"] = rng.uniform(0.3, 0.9)
        records = [metrics | {"step": step, "eval/accuracy": 0.1 * step} for step in (1, 2)]
        found[trial] = study.with_best(record.Outcome(config, metrics, [*records, metrics]))
    return found


def test_there_are_eleven_studies():
    assert sorted([
        "adam_sgd", "axial", "data_size", "few_shot", "head", "polyak", "position_embedding",
        "resolution", "scaling", "self_supervision", "shape",
    ]) == STUDIES  # fmt: skip


@in_both_sizes
@each
def test_every_trial_is_one_that_can_be(name, argument):
    seen, costs = {}, []
    for trial, config in first_seeds(trials(name, argument)).items():
        check_settings(config)
        costs.append(estimate.cost_of(trial, trials(name, argument), seen))
    assert all(found.steps and found.flops for found in costs)
    if argument:
        assert max(cost.num_params(found.model) for found in costs) <= 1.2e6
        tokens = [getattr(found.model, "num_tokens", 0) for found in costs]
        assert max(tokens) <= 65  # 64 and the class token


@each
def test_the_small_setting_differs_in_data_model_and_steps_alone(name):
    small, paper = (first_seeds(trials(name, argument)) for argument in ("digits,2", ""))
    same = small.keys() & paper.keys()
    assert same or name in ("few_shot", "scaling")  # their small ones have several lengths
    for trial in same:
        a, b = (configuration.flatten(each[trial].to_dict()) for each in (small, paper))
        differ = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
        assert {key for key in differ if not key.startswith(SMALL)} == set()


def first_seeds(trials):
    return {name: config for name, config in trials.items() if name.endswith("_0")}


@in_both_sizes
@each
def test_its_figure_is_drawn_whatever_came_out(name, argument, tmp_path):
    path = str(ROOT / "configs" / "studies" / f"{name}.py")
    whole = outcomes(name, argument)
    first = next(iter(whole))
    diverged = {n: o._replace(metrics=None) if n == first else o for n, o in whole.items()}
    missing = {n: o for n, o in whole.items() if n != first}
    by_row = {n: o._replace(records=[]) for n, o in whole.items()}
    none = {n: o._replace(metrics=None, records=[]) for n, o in whole.items()}
    for found in (whole, diverged, missing, by_row, none):
        figure = files.call_in(path, "draw", found)
        assert figure.axes and figure.axes[0].get_ylabel()
    figure = files.call_in(path, "draw", whole)
    figure.savefig(tmp_path / "figure.svg")
    drawn = [line for axes in figure.axes for line in axes.get_lines() if len(line.get_xdata())]
    assert drawn


@each
def test_its_page_has_the_papers_values(name):
    path = ROOT / "configs" / "studies" / f"{name}.py"
    values = files.values_in(str(path))
    groups = record.groups(trials(name, ""))
    for column in values.get("PAPER", {}).values():
        assert set(column) <= set(groups)
    found = outcomes(name, "")
    assert show.metrics(found, values["METRICS"])
    seeds = record.groups(trials(name, "digits,2"))
    assert {len(names) for names in seeds.values()} == {3}
    assert all(re.sub(r"_\d+$", "", n) == group for group, ns in seeds.items() for n in ns)


@each
def test_its_docstring_says_what_to_expect(name):
    text = ast.get_docstring(ast.parse((ROOT / "configs" / "studies" / f"{name}.py").read_text()))
    first = text.splitlines()[0]
    assert re.match(r"(Figures?|Table|Section|B\.1\.2)", first), first
    assert f"vit-jax study --config=configs/studies/{name}.py:cifar10 --workdir=DIR" in text
    assert "Expected" in text and "CPU cores" in text


@each
def test_it_imports_the_studies_and_the_configuration_alone(name):
    tree = ast.parse((ROOT / "configs" / "studies" / f"{name}.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= {"vit_jax", "vit_jax.studies", "vit_jax.studies.estimate"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]


def test_the_ablations_are_those_of_the_one_table():
    rows = files.values_in(str(ROOT / "configs" / "ablation.py"))["ROWS"]
    used = {
        f"{figure}/{row}"
        for name, figure in (
            ("position_embedding", "table8"), ("head", "fig9"), ("shape", "fig8"),
            ("axial", "fig13"), ("adam_sgd", "table7"),
        )
        for row in files.values_in(str(ROOT / "configs" / "studies" / f"{name}.py"))["ROWS"]
    }  # fmt: skip
    assert used == set(rows)
    one = trials("position_embedding", "")["2d-every_0"]
    row = configuration.load("configs/ablation.py:table8/2d-every")
    differ = set(configuration.differences(row.to_dict(), one.to_dict()))
    assert {key for key in differ if not settings.is_free(key)} == set()


def test_parts_of_the_data_lie_inside_each_other():
    small, paper = trials("data_size", "digits,2"), trials("data_size", "")
    assert small["part-3-B-16_0"].data.train_split == "train[:3%]"
    assert small["part-3-B-16_2"].data.train_split == "train[:3%]"
    assert paper["part-9M-L-16_0"].data.train_split == "train[:9000000]"
    assert paper["part-300M-L-16_0"].data.train_split == "train"
    few, many = (
        set(study_source(small[f"part-{share}-B-16_0"]).names()) for share in (10, 30)
    )  # fmt: skip
    assert few < many and len(few) == round(0.1 * 1437)


def study_source(config):
    from vit_jax.training.sources import open_sources

    return open_sources(config)[0]


def test_the_published_rows_are_those_of_table_6():
    table = files.values_in(str(ROOT / "configs" / "studies" / "scaling.py"))["TABLE_6"]
    assert set(table) == set(cost.TABLE_6)
    # the means of Table 7 (Appendix D.1) are of the same numbers
    table_7 = files.values_in(str(ROOT / "configs" / "studies" / "adam_sgd.py"))["TABLE_7"]
    means = {row: round(sum(found) / 5, 2) for row, found in table_7.items()}
    assert means["R50x1-adam"] == 89.33 and means["R152x2-adam"] == 94.01
    assert means["R50x1-sgd"] == 88.79 and means["R152x2-sgd"] == 93.72
    assert table["R50x1", 7] == table_7["R50x1-adam"]


def test_a_power_law_is_found_with_its_interval():
    x = np.array([1.0, 10.0, 100.0, 1000.0])
    fit = plots.power_law(x, 5 * x**-0.25)
    assert (fit.scale, fit.exponent) == pytest.approx((5, -0.25))
    assert fit.low == pytest.approx(fit.high)
    # log y = 0, 1, 1, 2 over log x = 0, 1, 2, 3: slope 0.6, its error sqrt(0.2 / 2 / 5)
    fit = plots.power_law(np.exp([0, 1, 2, 3]), np.exp([0, 1, 1, 2]))
    assert fit.exponent == pytest.approx(0.6)
    assert fit.high - fit.exponent == pytest.approx(4.302653 * 0.02**0.5)  # t of 2 degrees
    assert plots.power_law([1, 2], [1, 2]) is None


def test_a_pareto_front():
    points = [(1, 1), (2, 5), (2, 3), (3, 4), (4, 5), (5, 6)]
    assert plots.pareto(points) == [(1, 1), (2, 5), (5, 6)]
    assert plots.rank_correlation([(1, 1), (2, 3), (3, 2)]) == pytest.approx(0.5)
    assert plots.rank_correlation([(1, 1), (1, 2), (1, 3)]) is None


def test_a_metric_by_its_pattern():
    found = record.Outcome(None, {"fewshot/a/5_shots": 0.5, "best/fewshot/a/5_shots": 0.7}, [])
    assert plots.value(found, plots.FEW_SHOT) == 50 and fnmatch.fnmatch("a/b", "a/*")
    names = {"x_0": found, "x_1": found._replace(metrics=None), "y": found}
    assert plots.over_seeds(names, plots.FEW_SHOT) == {"x": [50], "y": [50]}
    best = plots.over_seeds(names, plots.FEW_SHOT, best=True)
    assert best == {"x": [70], "y": [70]}
