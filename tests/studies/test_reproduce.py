"""Published weights against published numbers, from one command, on stand-ins.

Weights of our own in the official layout lie where a download would be, and small data sets in the
place of TFDS: what is proved is the way, not the numbers.
"""

import csv
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_directory

from vit_jax import files, models
from vit_jax.cli import main
from vit_jax.interop import fetch, load, npz, published
from vit_jax.models import saved
from vit_jax.pages import paper
from vit_jax.studies import study, verdicts
from vit_jax.studies.study import Outcome

STUDY = Path(__file__).parents[2] / "configs" / "studies" / "reproduce.py"
SHAPE = {"hidden_size": 16, "num_layers": 1, "mlp_dim": 32, "num_heads": 2}
#: What makes a trial small, besides its weights and data.
SMALL = [
    *(f"--config.model.{key}={value}" for key, value in SHAPE.items()),
    "--config.model.image_size=64", "--config.eval_every_steps=1000", "--config.augment.resize=72",
]  # fmt: skip


def weights(name, **shape):
    """A model in the official layout, in the cache, in the place of the published file."""
    entry = published.PUBLISHED[name]
    config = models.get_config(entry.variant, **SHAPE, image_size=64, **shape)
    params = jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))
    rng = np.random.default_rng(0)
    params["head/kernel"] = rng.normal(size=params["head/kernel"].shape).astype(np.float32)
    file = fetch.place(entry.sources[0])[1]
    file = Path(str(file).replace("+", "%2B"))
    file.parent.mkdir(parents=True, exist_ok=True)
    npz.save(file, config, params)
    return config, params


def data_set(directory, name, splits, classes):
    rng = np.random.default_rng(1)
    records = {
        split: [
            (tfds_directory.png(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)), i % classes)
            for i in range(16)
        ]
        for split in splits
    }
    version = str(tfds.builder_cls(name).VERSION)
    names = [f"c{i}" for i in range(classes)]
    tfds_directory.write(directory, name, records, names, version=version)


def reproduce(tmp_path, only, *more):
    return main(
        [
            "study", f"--config={STUDY}", f"--workdir={tmp_path / 'runs'}", f"--only={only}",
            f"--config.data.data_dir={tmp_path / 'tfds'}", *SMALL, *more,
        ]
    )  # fmt: skip


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))


def test_fine_tuning_from_weights_that_a_download_brings(tmp_path, capsys, cache):
    weights("B/32-imagenet21k", num_classes=100, representation_size=16)
    data_set(tmp_path / "tfds", "cifar10", ("train", "test"), 10)
    short = ["--config.total_steps=3", "--config.schedule.warmup_steps=1", "--config.batch_size=8"]
    assert reproduce(tmp_path, "B-32_cifar10", *short) == 0
    said = capsys.readouterr().out
    assert "weights from B/32-imagenet21k" in said
    (row,) = [line for line in said.splitlines() if line.startswith("  B-32_cifar10")]
    assert "98.79" in row and "FAIL (Table 5)" in row and "0 of 1 pass" in said
    rows = list(csv.DictReader((tmp_path / "runs" / "study.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["B-32_cifar10"]
    page = (tmp_path / "runs" / "B-32_cifar10" / "report.html").read_text()
    assert "Beside the paper" not in page  # neither its shape nor its size is the paper's


def test_released_weights_are_evaluated_as_they_are(tmp_path, capsys, cache):
    config, params = weights("B/16-imagenet", num_classes=1000)
    data_set(tmp_path / "tfds", "imagenet2012", ("validation",), 1000)
    assert reproduce(tmp_path, "B-16_released", "--config.batch_size=8") == 0
    assert "84.53" in capsys.readouterr().out
    _, after = saved.load(tmp_path / "runs" / "B-16_released" / "model")
    for path, value in params.items():  # no weight has moved
        np.testing.assert_allclose(after[path], value, rtol=0, atol=1e-29)
    source = load.read("B/16-imagenet")[0]
    assert source.image_size == config.image_size


def outcome(accuracy):
    return Outcome(None, None if accuracy is None else {"eval/accuracy": accuracy}, [])


TARGETS = {name: verdicts.Target(98.79, 0.2, "Table 5") for name in "abcd"}


@pytest.mark.parametrize(
    "accuracy, said",
    [(0.9879, "pass"), (0.9860, "pass"), (0.9858, "FAIL"), (0.9999, "pass"), (None, "diverged")],
)
def test_verdicts_by_hand(accuracy, said):
    assert verdicts.verdict(outcome(accuracy), TARGETS["a"])[1] == said


def test_the_table_and_the_figure_say_the_same():
    outcomes = {"a": outcome(0.99), "b": outcome(0.95), "c": outcome(None)}
    lines = verdicts.table(TARGETS, outcomes)
    assert "99.00" in lines[1] and "+0.21" in lines[1] and "pass" in lines[1]
    assert "FAIL" in lines[2] and "diverged" in lines[3] and "1 of 3 pass" in lines[4]
    texts = [text.get_text() for text in verdicts.draw(TARGETS, outcomes).axes[0].texts]
    assert [text.split(", ")[-1] for text in texts] == ["pass", "FAIL", "diverged"]


def test_every_trial_has_a_published_number():
    trials = study.load(str(STUDY), {})
    targets = files.values_in(str(STUDY))["TARGETS"]
    assert set(trials) == set(targets) and len(trials) == 30 and all(targets.values())
    assert targets["L-16_pets"].value == 94.73 and targets["R50+B-16_released"].value == 83.72
    for config in trials.values():
        assert config.init_from in published.PUBLISHED
        assert config.model.image_size == (378 if config.model.variant == "H/14" else 384)
    assert paper.TABLE_5[paper.IN21K].keys() == {"B/16", "B/32", "L/16", "L/32", "H/14"}
