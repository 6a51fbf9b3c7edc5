"""Temperatures by hand and against scipy and scikit-learn; what has them, and what they go into."""

import json

import jax
import numpy as np
import pytest
from scipy import optimize

import vit_jax
from vit_jax import data, models
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.evaluation import calibration, features
from vit_jax.interop import convert, export, load
from vit_jax.models import adapt, saved


def random_case(sharpness=4.0, n=400, k=5, seed=0):
    """Logits whose right temperature is about `sharpness`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (chances.cumsum(axis=1) > rng.uniform(size=(n, 1))).argmax(axis=1)
    return (sharpness * logits).astype(np.float32), labels


def loss(logits, labels, temperature):
    z = logits.astype(np.float64) / temperature
    return float((np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), labels]).mean())


def test_by_hand():
    """Two classes, logits (2, 0), right three times of four: sigmoid(2 / T) = 3/4, T = 2 / ln 3."""
    logits, labels = np.tile(np.float32([[2, 0]]), (4, 1)), np.array([0, 0, 1, 0])
    found = calibration.fit_temperature(logits, labels, "x")
    assert found == pytest.approx(2 / np.log(3), rel=1e-7)
    shifted = calibration.fit_temperature(logits + np.float32(1000), labels, "x")
    assert shifted == pytest.approx(found, rel=1e-7)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 4.0])
def test_temperature_is_the_minimum_that_scipy_finds(sharpness, monkeypatch):
    monkeypatch.setattr(calibration, "CHUNK", 150)  # which does not divide the examples
    logits, labels = random_case(sharpness)
    found = calibration.fit_temperature(logits, labels, "x")
    wanted = optimize.minimize_scalar(
        lambda log: loss(logits, labels, np.exp(log)), bounds=(-4, 4), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    assert found == pytest.approx(np.exp(wanted.x), rel=1e-5)
    assert 0.7 * sharpness < found < 1.4 * sharpness


def test_temperature_equals_that_of_sklearn():
    inside = pytest.importorskip("sklearn.calibration", reason="of scikit-learn from 1.8 on")
    if not hasattr(inside, "_TemperatureScaling"):
        pytest.skip("of scikit-learn from 1.8 on")
    logits, labels = random_case()
    wanted = 1 / inside._TemperatureScaling().fit(logits, labels).beta_
    assert calibration.fit_temperature(logits, labels, "x") == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    "labels, message",
    [([0, 0], "all 2 are correct"), ([1, 1], "do not depend on the labels")],
)
def test_logits_that_cannot_be_calibrated_are_refused(labels, message):
    with pytest.raises(UserError, match=message):
        calibration.fit_temperature(np.float32([[2, 0], [3, 0]]), np.array(labels), "x")


# --- models -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of digits that is far too sure: ridge regression on its features, times a hundred."""
    directory = tmp_path_factory.mktemp("digits")
    config = models.get_config(
        "debug", num_classes=10, image_size=16, patch_size=4, labels=tuple(map(str, range(10))),
        preprocessing=(("name", "resize"),),
    )  # fmt: skip
    params = jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))
    source = data.open_source("digits[train[300:700]]")
    found = list(features.batches_of_features(config, params, source, batch_size=80))
    x, labels = (np.concatenate(part) for part in zip(*found, strict=True))
    centred, wanted = x - x.mean(axis=0), np.eye(10)[labels] - 0.1
    ridge = centred.T @ centred + np.eye(64)
    params["head/kernel"] = 100 * np.linalg.solve(ridge, centred.T @ wanted).astype(np.float32)
    params["head/bias"] = -x.mean(axis=0) @ params["head/kernel"]
    saved.save(directory, config, params)
    return directory


def evaluated(checkpoint, out, *more):
    given = [f"--checkpoint={checkpoint}", f"--out={out}", "--batch_size=64"]
    code = main(["evaluate", *given, "--data=digits[test]", *more])
    record = out / "evaluation.json"
    return code, json.loads(record.read_text())["classification"] if record.exists() else {}


OTHERS = "--temperature_data=digits[train[:300]]"


@pytest.fixture(scope="module")
def calibrated(checkpoint, tmp_path_factory):
    """(the model with its temperature, the record of the evaluation that fitted it)."""
    place = tmp_path_factory.mktemp("calibrated")
    saved.save(place / "model", *load.read(str(checkpoint)))
    before = (place / "model" / "model.safetensors").read_bytes()
    code, record = evaluated(
        place / "model", place / "out", "--calibrate", OTHERS, "--save_temperature"
    )
    assert code == 0 and (place / "model" / "model.safetensors").read_bytes() == before
    return place / "model", record


def test_a_model_is_calibrated_and_remembers_it(calibrated, checkpoint, tmp_path, capsys):
    model, record = calibrated
    assert record["temperature_from"] == "digits[train[:300]]"
    assert record["calibration_error"] < 0.7 * record["calibration_error_before"]
    assert record["loss"] < record["loss_before"] and record["temperature"] > 1
    assert load.read(str(model))[0].temperature == record["temperature"]
    _, plain = evaluated(checkpoint, tmp_path / "plain")
    assert "temperature" not in plain and plain["accuracy"] == record["accuracy"]
    assert plain["loss"] == pytest.approx(record["loss_before"], rel=1e-6)
    assert plain["calibration_error"] == pytest.approx(record["calibration_error_before"])
    capsys.readouterr()
    _, again = evaluated(model, tmp_path / "again")
    assert "the model's own" in capsys.readouterr().out
    assert again["loss"] == pytest.approx(record["loss"], rel=1e-6)
    assert again["calibration_error"] == record["calibration_error"]
    code, other = evaluated(model, tmp_path / "other", "--calibrate", OTHERS)
    assert code == 0  # it is fitted to the logits, whatever the model has
    assert other["temperature"] == pytest.approx(record["temperature"], rel=1e-6)
    assert other["calibration_error_before"] == record["calibration_error"]


def chances(logits):
    values = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)


def test_predictions_have_it(calibrated):
    model = vit_jax.load_model(calibrated[0])
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    logits = np.asarray(model(vit_jax.preprocess(model, image)))
    (rows,) = vit_jax.predict(model, image, top_k=10)
    found = {row["label"]: row["probability"] for row in rows}
    wanted = chances(logits / calibrated[1]["temperature"])[0]
    assert [found[k] for k in range(10)] == pytest.approx(list(wanted), rel=1e-4)
    assert wanted.max() < 0.9 * chances(logits).max()


def test_other_formats_fold_the_temperature_into_the_classifier(calibrated, tmp_path):
    """Where there is no place for it; ours keeps it beside the logits."""
    model, record = str(calibrated[0]), calibrated[1]
    config, params = load.read(model)
    proof = convert.convert(model, tmp_path / "m.npz", "npz")
    assert any("divided by the temperature" in note for note in proof.notes)
    _, other = load.read(str(tmp_path / "m.npz"), variant=None)
    np.testing.assert_allclose(
        other["head/kernel"] * record["temperature"], params["head/kernel"], rtol=1e-5
    )
    proof = convert.convert(model, tmp_path / "native", "native")
    assert proof.notes == () and load.read(str(tmp_path / "native"))[0] == config
    proof = export.export(model, tmp_path / "served", "stablehlo")
    assert any("divided by the temperature" in note for note in proof.notes)
    _, served = evaluated(tmp_path / "served", tmp_path / "out")
    assert "temperature" not in served and served["accuracy"] == record["accuracy"]
    assert served["loss"] == pytest.approx(record["loss"], rel=1e-4)


def test_new_classes_drop_the_temperature(calibrated):
    config, _ = load.read(str(calibrated[0]))
    assert adapt.retarget(config, num_classes=3).temperature is None
    assert adapt.retarget(config, image_size=32).temperature == config.temperature
    for changes, message in (
        (dict(temperature=0.0), "temperature=0.0 must be"),
        (dict(temperature=float("nan")), "temperature=nan must be"),
        (dict(temperature="hot"), "temperature='hot' must be"),
        (dict(temperature=2.0, multilabel=True), "one label per image"),
    ):
        with pytest.raises(UserError, match=message):
            models.replace(config, **changes)


@pytest.mark.parametrize(
    "more, message",
    [
        (("--calibrate",), "digits has no validation split to choose a temperature on"),
        (("--calibrate", "--temperature_data=digits[test[:90]]"), "90 records of digits"),
        (("--calibrate", "--temperature_data=digits[validation]"), "no split 'validation'"),
        ((OTHERS,), "--temperature_data needs --calibrate"),
        (("--save_temperature",), "--save_temperature needs --calibrate"),
        (("--calibrate", "--suite=knn"), "--calibrate is not an option of --suite=knn"),
    ],
)
def test_invalid_options_are_refused(checkpoint, tmp_path, capsys, more, message):
    code, record = evaluated(checkpoint, tmp_path / "out", *more)
    err = capsys.readouterr().err
    assert code in (1, 2) and record == {} and message in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()
