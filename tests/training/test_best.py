"""The best checkpoint by a metric survives and is exported; a run ends when no better one comes."""

import json
import math
import shutil

import numpy as np
import pytest
import tiny_runs

from vit_jax import config as configuration
from vit_jax.errors import UserError
from vit_jax.interop import load, unfinished
from vit_jax.models import saved
from vit_jax.runtime.logbook import read_metrics
from vit_jax.training import events, run, workdir as workdir_files
from vit_jax.training.best import Best, Rule, of_model, rule_of
from vit_jax.training.workdir import finished_metrics

NAN = math.nan
ACCURACY = Rule("eval/accuracy", smaller=False, patience=2)
SETTINGS = [
    "--config.eval_every_steps=1", "--config.keep_best=eval/accuracy", "--config.polyak_decay=0.9",
    "--config.checkpoint_every_steps=4", "--config.total_steps=9", "--config.keep_checkpoints=1",
]  # fmt: skip


def follow(rule, values, best=None):
    """(steps that were the best when they came, the step at which nothing more is waited for)."""
    best, found, over = best or Best(rule), [], None
    for step, value in enumerate(values, start=1):
        if best.note(step, {rule.metric: value, "eval/other": step}):
            found.append(step)
        over = over or (step if best.is_over else None)
    return found, over


@pytest.mark.parametrize(
    "smaller, values, wanted, over",
    [
        (False, [0.1, 0.3, 0.2, 0.4, 0.4, 0.1, 0.9], [1, 2, 4, 7], 6),  # an equal one is no better
        (True, [0.1, 0.3, 0.05, 0.2], [1, 3], None),
        (False, [NAN, 0.2, NAN, math.inf, 0.3], [2, 5], 4),
        (True, [NAN, NAN], [], 2),
        (True, [-math.inf, 1.0], [2], None),
        (False, [0.0, 0.1, 0.2], [1, 2, 3], None),
    ],
)
def test_which_step_is_the_best_by_hand(smaller, values, wanted, over):
    rule = ACCURACY._replace(smaller=smaller)
    assert follow(rule, values) == (wanted, over)


def test_the_best_so_far_is_restored_from_a_checkpoint():
    best = Best(ACCURACY)
    follow(ACCURACY, [0.3, 0.2], best)
    record = json.loads(json.dumps(best.record()))
    assert record == {
        "metric": "eval/accuracy", "smaller": False, "step": 1, "since": 1, "evaluated": 2,
        "values": {"eval/accuracy": 0.3, "eval/other": 1},
    }  # fmt: skip
    again = Best(ACCURACY, record)
    assert not again.note(2, {"eval/accuracy": 0.9})  # step 2 counts once
    assert not again.note(3, {"eval/accuracy": np.float32(0.3)}) and again.is_over
    other = Best(ACCURACY._replace(metric="eval/loss"), record)
    assert (other.step, other.since, other.evaluated) == (None, 0, 0)


@pytest.mark.parametrize(
    "name, smaller",
    [
        ("eval/accuracy", False), ("eval/loss", True), ("eval/training_loss", True),
        ("eval/error", True), ("min:eval/right", True), ("max:eval/loss", False),
        ("eval/closeness", False), ("fewshot/folder:/data/loss/5_shots", False),
    ],
)  # fmt: skip
def test_losses_and_errors_are_better_when_they_are_smaller(name, smaller):
    config = configuration.default()
    config.keep_best = name
    rule = rule_of(config, {"eval": 5, "fewshot": 5})
    assert (rule.smaller, rule.metric) == (smaller, name.removeprefix("min:").removeprefix("max:"))


def test_keeping_the_best_is_off_by_default():
    assert rule_of(configuration.default(), {"eval": 5}) is None
    assert not Best(None).note(1, {}) and Best(None).record() is None and not Best(None).is_over


@pytest.mark.parametrize(
    "settings, sentence",
    [
        (["patience=3"], "config.patience=3 needs a metric to improve"),
        (["patience=-1"], "config.patience=-1 must be a whole number, 0 or more"),
        (["keep_best=accuracy"], "'accuracy' names no metric of an active evaluator"),
        (["keep_best=knn/digits/k_5"], "'knn/digits/k_5' names no metric of an active evaluator"),
        (["keep_best=eval/acuracy"], "no metric 'eval/acuracy'.*Did you mean 'eval/accuracy'"),
        (["keep_best=min:eval/"], "names no metric of an active evaluator"),
        (["keep_best=eval/accuracy", "eval_every_steps=None"], "runs once, at the end; set config."
         "eval_every_steps or config.eval_every_epochs"),
        (["keep_best=knn/digits/k_5", "evaluators.knn.data=digits"],
         "set config.evaluators.knn.every_steps or config.evaluators.knn.every_epochs"),
    ],
)  # fmt: skip
def test_invalid_metrics_are_refused_before_the_first_step(tmp_path, capsys, settings, sentence):
    flags = [f"--config.{setting}" for setting in ("eval_every_steps=2", *settings)]
    assert tiny_runs.train(tmp_path / "w", *flags) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and not (tmp_path / "w").exists()
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(error)


@pytest.fixture
def scripted(monkeypatch):
    """Accuracies in the order in which weights are first evaluated; seen again, they are the same.

    `crash(at)`: the next evaluation of that number, from 1, fails.
    """

    class Script:
        def __init__(self):
            self.values, self.seen, self.crash_at = [], {}, 0

        def __call__(self, params, on_batch):
            weights = b"".join(np.asarray(params[name]).tobytes() for name in sorted(params))
            if weights not in self.seen and self.crash_at == len(self.seen) + 1:
                self.crash_at = 0
                raise RuntimeError("as if killed")
            value = self.seen.setdefault(weights, self.values[min(len(self.seen), 8)])
            return {"eval/accuracy": value, "eval/loss": 1 - value, "eval/num_examples": 4}

    script = Script()
    real = run.evaluators
    late = {"knn": lambda params, on_batch: {"knn/late": script(params, on_batch)["eval/loss"]}}
    monkeypatch.setattr(
        run,
        "evaluators",
        lambda *given: {k: late.get(k, script) for k in real(*given)},
    )
    return script


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("0*"))


def weights(workdir):
    return (workdir / "model" / "model.safetensors").read_bytes()


RISES_AND_FALLS = [0.1, 0.5, 0.4, 0.6, 0.3, 0.2, 0.1, 0.2, 0.3]


def test_the_best_survives_and_is_exported(tmp_path, scripted):
    scripted.values = RISES_AND_FALLS
    assert tiny_runs.train(tmp_path, *SETTINGS, "--config.evaluators.knn.data=digits") == 0
    assert checkpoints(tmp_path) == [4, 9]
    _, best, _ = unfinished.load_step(tmp_path / "checkpoints" / f"{4:09d}")
    _, last, _ = unfinished.load_step(tmp_path / "checkpoints" / f"{9:09d}")
    _, found = saved.load(tmp_path / "model")
    assert all(np.array_equal(found[path], value) for path, value in best.items())
    assert not all(np.array_equal(found[path], value) for path, value in last.items())
    assert json.loads((tmp_path / "model" / "config.json").read_text())["run"] == {
        "step": 4, "last_step": 9, "best": "eval/accuracy", "value": 0.6,
    }  # fmt: skip
    record = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert record["final"] and record["step"] == 9 and record["eval/accuracy"] == 0.3
    assert (record["best/step"], record["best/eval/accuracy"]) == (4, 0.6)
    # What runs once sees what is exported, and callers get the metrics of that.
    assert record["best/knn/late"] == pytest.approx(0.4) and "knn/late" not in record
    metrics = finished_metrics(tmp_path)
    assert metrics["eval/accuracy"] == 0.6 and metrics["knn/late"] == pytest.approx(0.4)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())["classification"]
    assert (evaluation["step"], evaluation["accuracy"]) == (4, 0.6)
    assert "from step 4, with the best eval accuracy: 60" in (
        (tmp_path / "report.html").read_text().replace("eval/accuracy", "eval accuracy")
    )


def test_patience_ends_the_run_and_it_can_be_given_more(tmp_path, capsys, scripted):
    scripted.values = RISES_AND_FALLS
    assert tiny_runs.train(tmp_path, *SETTINGS, "--config.patience=3") == 0
    said = capsys.readouterr().out
    assert "stops at step 7 of 9: 3 evaluations without improvement on step 4, the largest" in said
    assert checkpoints(tmp_path) == [4, 7]
    assert not unfinished.is_unfinished(tmp_path)
    _, found = load.read(str(tmp_path))  # of model/, not of the last checkpoint
    _, best, _ = unfinished.load_step(tmp_path / "checkpoints" / f"{4:09d}")
    assert all(np.array_equal(found[path], value) for path, value in best.items())
    early = weights(tmp_path)
    assert tiny_runs.train(tmp_path, *SETTINGS, "--config.patience=3") == 0
    assert "has finished at step 7; nothing to do" in capsys.readouterr().out
    assert tiny_runs.train(tmp_path, *SETTINGS, "--config.patience=5") == 1
    assert "patience is 3 there and 5 here" in capsys.readouterr().err
    more = [*SETTINGS, "--config.patience=5", "--allow_config_change"]
    scripted.values = [*RISES_AND_FALLS[:7], 0.7, 0.1]
    assert tiny_runs.train(tmp_path, *more) == 0
    assert "resumed from step 7" in capsys.readouterr().out
    assert finished_metrics(tmp_path)["best/step"] == 8 and weights(tmp_path) != early
    assert checkpoints(tmp_path) == [8, 9]
    # Without it the last step is exported again.
    assert tiny_runs.train(tmp_path / "plain", *SETTINGS, "--config.keep_best=") == 0
    assert "best/step" not in finished_metrics(tmp_path / "plain")
    _, last, _ = unfinished.load_step(tmp_path / "checkpoints" / f"{9:09d}")
    _, found = saved.load(tmp_path / "plain" / "model")
    assert all(np.array_equal(found[path], value) for path, value in last.items())


def fail_once(monkeypatch, owner, name, when):
    """The function fails before it does anything, at the first call that `when` is true of.

    Returns a list that is not empty once it has happened.
    """
    real, happened = getattr(owner, name), []

    def function(*given, **named):
        if not happened and when(*given):
            happened.append(True)
            raise RuntimeError("as if killed")
        return real(*given, **named)

    monkeypatch.setattr(owner, name, function)
    return happened


POINTS = {
    "before step 4 is saved": (events, "save", lambda _, step, __: step == 4),
    "saved and not evaluated": (events, "evaluate", lambda *given: given[2] == 4),
    "before the best is noted": (events, "keep_if_best", lambda *given: given[2] == 4),
    "after the best is saved": (events, "keep_if_best", lambda *given: given[2] == 5),
    "before the end is saved": (events, "save", lambda _, step, __: step == 7),
    "before the best is read": (events, "best_state", lambda *_: True),
    "before the export": (run, "export", lambda *_: True),
    "before evaluation.json": (run, "write_evaluation", lambda *_: True),
    "after the export": (workdir_files.files, "write_json", lambda path, _: "eval" in str(path)),
}


def test_a_run_that_is_cut_off_at_each_point_ends_in_the_same_bytes(
    tmp_path, monkeypatch, scripted
):
    scripted.values = RISES_AND_FALLS
    settings = [*SETTINGS, "--config.patience=3"]
    assert tiny_runs.train(tmp_path / "whole", *settings) == 0
    for point, where in POINTS.items():
        with monkeypatch.context() as patched:
            happened = fail_once(patched, *where)
            assert tiny_runs.train(tmp_path / "cut", *settings) == 1 and happened, point
    assert tiny_runs.train(tmp_path / "cut", *settings) == 0
    for file in ("model/model.safetensors", "model/config.json", "evaluation.json"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert checkpoints(tmp_path / "cut") == checkpoints(tmp_path / "whole") == [4, 7]

    def said(workdir):
        keys = ("step", "eval/accuracy", "best/step", "best/eval/accuracy", "final")
        records = read_metrics(workdir / "metrics.jsonl")
        return [{key: record.get(key) for key in keys} for record in records]

    assert said(tmp_path / "cut") == said(tmp_path / "whole")


def test_without_a_finite_value_the_last_step_is_exported(tmp_path, capsys, scripted):
    scripted.values = [NAN] * 9
    assert tiny_runs.train(tmp_path, *SETTINGS) == 0
    assert "the last step: no eval/accuracy was finite" in capsys.readouterr().out
    run_said = json.loads((tmp_path / "model" / "config.json").read_text())["run"]
    assert run_said == {"step": 9, "last_step": 9} and checkpoints(tmp_path) == [9]
    assert "best/step" not in finished_metrics(tmp_path)


def test_a_best_checkpoint_that_is_gone_is_missed_before_training(tmp_path, capsys, scripted):
    scripted.values, scripted.crash_at = RISES_AND_FALLS, 9
    assert tiny_runs.train(tmp_path, *SETTINGS) == 1
    assert checkpoints(tmp_path) == [4, 9]
    shutil.move(tmp_path / "checkpoints" / f"{4:09d}", tmp_path / "away")
    before = tiny_runs.contents(tmp_path)
    capsys.readouterr()
    assert tiny_runs.train(tmp_path, *SETTINGS) == 1
    error = capsys.readouterr().err
    assert "has lost checkpoint 4, the best of this run so far" in error
    assert len(error.splitlines()) == 1 and tiny_runs.contents(tmp_path) == before
    off = [*SETTINGS, "--config.keep_best=", "--config.patience=0", "--allow_config_change"]
    assert tiny_runs.train(tmp_path, *off) == 0  # as the sentence says


def test_a_metric_that_only_its_evaluator_knows_is_refused_at_its_first_evaluation(
    tmp_path, capsys
):
    knn = ["data=digits", "k=(1,)", "every_steps=2"]
    flags = [f"--config.evaluators.knn.{setting}" for setting in knn]
    assert tiny_runs.train(tmp_path, *flags, "--config.keep_best=knn/digits/k_5") == 1
    error = capsys.readouterr().err
    assert "no metric 'knn/digits/k_5'; there are knn/digits/k_1." in error
    assert checkpoints(tmp_path) == [2]


def test_the_metrics_of_a_model_are_those_of_its_step():
    record = {"step": 9, "eval/a": 1.0, "best/step": 4, "best/eval/a": 2.0, "train/loss": 0.5}
    assert of_model(record) == {**record, "eval/a": 2.0}
    with pytest.raises(UserError, match="no metric"):
        Best(ACCURACY).note(1, {"eval/loss": 1.0})
