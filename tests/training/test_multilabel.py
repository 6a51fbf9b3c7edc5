"""Several labels an image, from the table to the model, and what is done with it afterwards."""

import csv
import json

import jax
import numpy as np
import PIL.Image
import pytest
import tiny_runs
from sklearn import metrics
from small_run import prepared

from vit_jax import config as configuration, data, models
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.evaluation import figures, forward as forwards, multilabel
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.protocols import EVALUATORS
from vit_jax.evaluation.result import Result
from vit_jax.interop import export, huggingface, load
from vit_jax.models import saved
from vit_jax.runtime import sharding
from vit_jax.training.objective import is_plain
from vit_jax.training.setup import abstract_batch, jit_train_step, set_up
from vit_jax.training.workdir import check_data, run_meta

NAMES = ("blue", "green", "red")
SIGMOID = "--config.loss.name=sigmoid_cross_entropy"


def write(directory, parts=(("train", 24), ("validation", 12), ("test", 12))):
    """Images in which each colour is there or not, and a table of them; no image is `white`."""
    rng, rows = np.random.default_rng(0), []
    for split, count in parts:
        for i in range(count):
            has = rng.integers(0, 2, 3)
            image = np.full((9, 8, 3), 20, np.uint8)
            image[..., has[::-1] == 1] = 230
            PIL.Image.fromarray(image).save(directory / f"{split}{i}.png")
            rows.append((f"{split}{i}.png", *has, int(split == "train" and i < 2), split))
    with open(directory / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", *NAMES, "white", "split"), *rows])
    return f"folder:{directory}/t.csv?multilabel=true"


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tags"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, spec):
    """A run of 40 steps, with rare classes weighted."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    more = ("--config.total_steps=40", "--config.log_every_steps=40", "--config.mixup_alpha=0.1")
    more += ("--config.class_weights=balanced", "--config.checkpoint_every_steps=40")
    assert tiny_runs.train(workdir, f"--config.data.dataset={spec}", SIGMOID, *more) == 0
    return workdir


def evaluate(workdir, spec, out, *more):
    return main(["evaluate", f"--checkpoint={workdir}", f"--data={spec}", f"--out={out}", *more])


def test_training_is_watched_by_mean_average_precision(run, spec):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = next(line["eval/mAP"] for line in lines if "eval/mAP" in line)
    record = json.loads((run / "evaluation.json").read_text())["classification"]
    assert record["mAP"] == found and record["num_examples"] == 12
    assert record["loss"] != record["training_loss"]  # without and with weights
    assert 0.5 < found <= 1.0 and "eval mAP" in (run / "report.html").read_text()


def logits_and_labels(checkpoint, spec):
    config, params = load.read(checkpoint)
    source = data.open_source(spec)
    transform = data.evaluation_transform(config.image_size, config.preprocessing)
    images = [transform.read(source[i]["image"], "x", None) for i in range(len(source))]
    _, apply = models.as_functions(config)
    params = jax.tree.map(jax.numpy.asarray, params)
    return np.asarray(apply(params, models.normalise(np.stack(images)))), source.labels


def test_evaluation_equals_sklearn(run, spec, tmp_path, capsys):
    assert evaluate(run, f"{spec}[test]", tmp_path, "--threshold=0.4") == 0
    record = json.loads((tmp_path / "evaluation.json").read_text())["classification"]
    logits, labels = logits_and_labels(run, f"{spec}[test]")
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    wanted = metrics.average_precision_score(labels[:, :3], logits[:, :3], average="macro")
    assert record["mAP"] == pytest.approx(wanted, abs=1e-6)
    micro = metrics.f1_score(labels[:, :3], scores[:, :3] >= 0.4, average="micro")
    if not (scores[:, 3] >= 0.4).any():
        assert record["micro_f1"] == pytest.approx(micro)
    assert record["classes_without_examples"] == ["white"]
    assert record["threshold"] == 0.4 and record["threshold_from"] == "as given"
    out = capsys.readouterr().out
    assert "of 3 classes" in out and "1 classes have no example here" in out and "white" in out
    with open(tmp_path / "evaluation_classification_per_class.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [*NAMES, "white"]
    assert rows[3]["average_precision"] == "" and rows[0]["threshold"] == "0.4"


def test_every_image_has_its_sets_in_a_table_and_the_wrong_ones_a_picture(
    run, spec, tmp_path, monkeypatch
):
    shown = {}
    monkeypatch.setattr(
        figures, "sheet", lambda source, rows, titles: shown.update(zip(rows, titles, strict=True))
    )
    file = tmp_path / "f.csv"
    more = ("--threshold=0.4", f"--predictions={file}", "--top_k=4")
    assert evaluate(run, f"{spec}[test]", tmp_path, *more) == 0
    with open(file, newline="") as opened:
        rows = list(csv.DictReader(opened))
    logits, labels = logits_and_labels(run, f"{spec}[test]")
    names, scores = (*NAMES, "white"), 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert len(rows) == len(labels)
    for row, there, chances in zip(rows, labels, scores, strict=True):
        sets = [set(filter(None, row[key].split(";"))) for key in ("labels", "predicted")]
        assert sets[0] == {names[k] for k in np.flatnonzero(there)}
        assert sets[1] == {names[k] for k in np.flatnonzero(chances >= 0.4)}
        assert row["correct"] == str(sets[0] == sets[1]).lower()
        order = np.argsort(-chances)
        assert [row[f"class_{i}"] for i in range(1, 5)] == [names[k] for k in order]
        assert float(row["probability_4"]) == pytest.approx(chances[order[3]], abs=1e-5)
    losses = np.logaddexp(0, logits * (1 - 2.0 * labels)).sum(axis=1)
    wrong = [i for i in np.argsort(-losses, kind="stable") if rows[i]["correct"] == "false"]
    assert list(shown) == wrong and wrong  # the largest loss first
    for i, title in shown.items():
        said = scores[i] >= 0.4
        parts = (("missed", labels[i] & ~said), ("wrong", said & ~labels[i].astype(bool)))
        lines = [(what, [names[k] for k in np.flatnonzero(row == 1)]) for what, row in parts]
        assert title.split("\n") == [f"{w}: {', '.join(those)}" for w, those in lines if those]


def test_a_threshold_is_chosen_on_validation_and_saved(run, spec, tmp_path, capsys):
    model = tmp_path / "model"
    saved.save(model, *load.read(run))
    before = (model / "model.safetensors").read_bytes()
    assert evaluate(model, f"{spec}[test]", tmp_path, "--threshold=per_class") == 0
    assert load.read(model)[0].thresholds == ()  # not asked for
    more = ("--threshold=per_class", "--save_threshold")
    assert evaluate(model, f"{spec}[test]", tmp_path, *more) == 0
    assert "1 classes have no example to choose a threshold on: white" in capsys.readouterr().out
    config, _ = load.read(model)
    logits, labels = logits_and_labels(model, f"{spec}[validation]")
    assert (model / "model.safetensors").read_bytes() == before
    wanted, without = multilabel.choose_thresholds(logits, labels, each=True)
    assert config.thresholds == pytest.approx(wanted, abs=1e-5) and without == [3]
    assert evaluate(model, f"{spec}[test]", tmp_path) == 0
    record = json.loads((tmp_path / "evaluation.json").read_text())["classification"]
    assert record["threshold_from"] == "the model's own" and record["threshold"] == "per class"

    image = spec.removeprefix("folder:").partition("/t.csv")[0] + "/test0.png"
    assert main(["predict", f"--checkpoint={model}", "--json", image]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["predictions"]
    assert sum(row["probability"] for row in rows) != pytest.approx(1.0, abs=1e-3)
    for row in rows:
        assert row["threshold"] == config.thresholds[row["label"]]
        assert row["chosen"] == (row["probability"] >= row["threshold"])
    assert main(["predict", f"--checkpoint={model}", image]) == 0
    assert capsys.readouterr().out.count("* ") == sum(row["chosen"] for row in rows)


@pytest.mark.parametrize(
    "part, more, message",
    [
        ("[validation]", ("--threshold=one",), "must not be chosen on test data: 12 records"),
        ("[test]", ("--threshold=1.5",), "threshold=1.5 must be a probability"),
        ("[test]", ("--threshold=nan",), "threshold=nan must be a probability"),
        ("[test]", ("--threshold=each",), "must be a number or model or one or per_class"),
        ("[test]", ("--threshold_data=digits",), "--threshold_data needs --threshold="),
        ("[test]", ("--threshold=one", "--threshold_data=digits[test]"), "has the class"),
        ("[test]", ("--save_threshold",), "--save_threshold needs --threshold=one"),
        ("", ("--suite=knn",), "several labels per image, and this suite is for one"),
        ("", ("--suite=fewshot",), "several labels per image, and this suite is for one"),
    ],
)
def test_invalid_evaluations_are_refused(run, spec, tmp_path, capsys, part, more, message):
    assert evaluate(run, spec + part, tmp_path, *more) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "evaluation.json").exists()


def test_without_validation_data_no_threshold_is_chosen(run, tmp_path, capsys):
    spec = write(tmp_path, (("train", 6), ("test", 6)))
    assert evaluate(run, f"{spec}[test]", tmp_path / "out", "--threshold=one") == 1
    assert "has no validation split to choose a threshold on" in capsys.readouterr().err
    more = ("--threshold=one", f"--threshold_data={spec}[train]")
    assert evaluate(run, f"{spec}[test]", tmp_path / "out", *more) == 0


def test_models_and_data_of_other_kinds(run, spec, tmp_path, capsys):
    """A model of one label is refused on several; one of several takes one for several."""
    for name in NAMES:
        (tmp_path / "one_each" / name).mkdir(parents=True)
        image = np.full((9, 8, 3), 20, np.uint8)
        image[..., 2 - NAMES.index(name)] = 230
        PIL.Image.fromarray(image).save(tmp_path / "one_each" / name / "0.png")
    config, params = load.read(run)
    assert evaluate(run, f"folder:{tmp_path}/one_each[train]", tmp_path / "out") == 0
    assert "one label per image" in capsys.readouterr().out
    one = models.replace(config, multilabel=False)
    saved.save(tmp_path / "one", one, params)
    assert evaluate(tmp_path / "one", f"{spec}[test]", tmp_path / "out") == 1
    assert "was trained for one" in capsys.readouterr().err
    assert evaluate(tmp_path / "one", f"folder:{tmp_path}/one_each[train]", tmp_path / "out",
                    "--threshold=one") == 1  # fmt: skip
    assert "thresholds are for several" in capsys.readouterr().err


def test_training_refuses_what_contradicts(spec, tmp_path, capsys):
    for more, message in (
        ((), "set config.loss.name=sigmoid_cross_entropy"),
        ((SIGMOID, "--config.data.sampling=balanced"), "data with one label per image"),
        ((SIGMOID, "--config.class_weights=nowhere.json"), "nowhere.json does not exist"),
    ):
        workdir = tmp_path / "run"
        assert tiny_runs.train(workdir, f"--config.data.dataset={spec}", *more) == 1
        assert message in capsys.readouterr().err
        assert not workdir.exists()


class Begun:
    """The checkpoints of a run that has begun with another setup."""

    def __init__(self, setup):
        self.setup = setup

    def latest_meta(self):
        return run_meta(self.setup)


def test_changed_class_weights_are_noticed(tmp_path):
    """A file that changed between two calls, under the same name."""
    file = tmp_path / "weights.json"

    def with_weight(last):
        file.write_text(json.dumps({str(i): 1.0 for i in range(9)} | {"9": last}))
        return prepared(class_weights=str(file))

    one, two, plain = with_weight(1.0), with_weight(2.0), prepared()
    for begun, now in ((one, two), (plain, two), (two, plain)):
        with pytest.raises(UserError, match=r"class_weights is .*, but was"):
            check_data(now, Begun(begun), False)
        check_data(now, Begun(begun), True)
    check_data(two, Begun(with_weight(2.0)), False)
    assert "class_weights" not in run_meta(plain)


# --- formats ------------------------------------------------------------------------------------


def test_single_label_models_are_written_as_before(tmp_path):
    values = saved.config_to_json(models.get_config("debug"))
    assert not {"multilabel", "thresholds"} & set(values)
    config = models.get_config("debug", num_classes=2, multilabel=True, thresholds=(0.25, 0.5))
    assert (
        saved.config_from_json(json.loads(json.dumps(saved.config_to_json(config))), "x") == config
    )


@pytest.mark.parametrize(
    "values",
    [(0.1, 0.2), (1.5,), (float("nan"),), ("a",), 0.5],
)
def test_thresholds_that_cannot_be(values):
    with pytest.raises(UserError, match=r"model\.thresholds"):
        models.get_config("debug", num_classes=3, multilabel=True, thresholds=values)
    with pytest.raises(UserError, match="for models with several labels"):
        models.get_config("R50x1", num_classes=3, thresholds=(0.5,))


def test_hugging_face_both_ways(tmp_path):
    config = models.get_config("debug", num_classes=3, multilabel=True, labels=NAMES)
    params = jax.device_get(models.get_params(models.build(config)))
    huggingface.save(tmp_path / "hf", config, params)
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert values["problem_type"] == "multi_label_classification"
    assert load.read(tmp_path / "hf")[0].multilabel
    huggingface.save(tmp_path / "one", models.replace(config, multilabel=False), params)
    assert "problem_type" not in json.loads((tmp_path / "one" / "config.json").read_text())
    assert not load.read(tmp_path / "one")[0].multilabel


def test_exports_carry_labels_and_thresholds(run, spec, tmp_path, capsys):
    assert main(["export", f"--checkpoint={run}", "--format=stablehlo",
                 f"--out={tmp_path}/e", f"--data={spec}[test]"]) == 0  # fmt: skip
    assert "mAP on" in capsys.readouterr().out
    found = export.open_exported(tmp_path / "e")
    assert found.multilabel and found.thresholds == ()
    facts = json.loads((tmp_path / "e" / "facts.json").read_text())
    assert facts["probabilities"] == "sigmoid"
    assert evaluate(tmp_path / "e", f"{spec}[test]", tmp_path / "out") == 0
    one = json.loads((tmp_path / "out" / "evaluation.json").read_text())["classification"]
    assert 0.5 < one["mAP"] <= 1.0


def test_features_have_all_labels(run, spec, tmp_path):
    file = tmp_path / "f.npy"
    assert main(["features", f"--checkpoint={run}", f"--data={spec}[test]", f"--out={file}"]) == 0
    labels = np.load(tmp_path / "f.labels.npy")
    assert labels.tolist() == data.open_source(f"{spec}[test]").labels.tolist()


def test_an_evaluator_while_training(run, spec):
    config, params = load.read(run)
    forward = forwards.of_model(config, params, sharding.make_mesh())
    result = EVALUATORS["classification"](forward, DataSets((f"{spec}[test]",)))
    assert isinstance(result, Result) and set(result.metrics) >= {"mAP", "micro_f1", "macro_f1"}


def test_the_loss_is_measured_twice_only_if_they_differ():
    config = configuration.default()
    assert is_plain(config, False) and not is_plain(config, True)
    config.loss.name = "sigmoid_cross_entropy"
    assert is_plain(config, True) and not is_plain(config, False)
    config.loss.label_smoothing = 0.1
    assert not is_plain(config, True)


def test_a_step_is_the_same_on_one_device_and_on_several():
    """Of a model with more classes than the data have, with weights, in two micro-batches."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (32, 3))
    source = data.ArraySource(rng.integers(0, 256, (32, 8, 8, 3), np.uint8), labels, NAMES)
    config = configuration.default()
    config.model.update(variant="debug", image_size=8, patch_size=4, hidden_size=16)
    config.model.update(num_layers=1, num_heads=2, mlp_dim=16, num_classes=5)
    config.update(batch_size=16, total_steps=4, accumulation_steps=2, class_weights="balanced")
    config.loss.name = "sigmoid_cross_entropy"
    batch = {"image": source.images[:16], "label": source.labels[:16]}
    found = []
    for devices in (1, 2):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        setup = set_up(config, sources=(source, source), mesh=mesh)
        assert abstract_batch(setup)["label"].shape == (16, 3)
        state = setup.program.initialise()
        on_mesh = sharding.to_devices(batch, mesh)
        _, metrics_of = jit_train_step(setup)(state, on_mesh)
        found.append(float(metrics_of["train/loss"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    weights = setup.data.class_weights
    wanted = weights[:3] * labels[:16] + (1 - labels[:16])  # a head of zeros: every p is 1/2
    assert found[0] == pytest.approx(np.log(2) * (wanted.sum(axis=1) + 2).mean(), rel=1e-3)
