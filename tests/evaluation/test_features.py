"""Features of a data set, streamed to files."""

import errno
import threading

import jax
import numpy as np
import pytest

from vit_jax import data, models
from vit_jax.cli import main
from vit_jax.data.source import ArraySource
from vit_jax.errors import UserError
from vit_jax.evaluation import features, run
from vit_jax.interop import peers
from vit_jax.models import saved
from vit_jax.runtime import sharding


@pytest.fixture(scope="module")
def model():
    config = models.get_config("debug", num_classes=3)
    params = jax.jit(models.as_functions(config)[0])(jax.random.key(0))
    return config, jax.device_get(params)


@pytest.fixture(scope="module")
def source():
    return data.open_source("digits[test[:21]]")


def collect(model, source, **options):
    pairs = list(features.batches_of_features(*model, source, batch_size=8, **options))
    return np.concatenate([f for f, _ in pairs]), np.concatenate([y for _, y in pairs])


@pytest.mark.parametrize(
    "options, shape",
    [
        ({}, (64,)),
        ({"layer": "block_0"}, (17, 64)),
        ({"layer": "block_0", "pool": "mean"}, (64,)),
        ({"layer": "encoded", "pool": "token"}, (64,)),
        ({"layer": "logits"}, (3,)),
    ],
)
def test_layers_and_pools(model, source, options, shape):
    found, labels = collect(model, source, **options)
    assert found.shape == (21, *shape)
    assert list(labels) == [source[i]["label"] for i in range(21)]
    config, params = model
    transform = data.make_transform(name="resize", size=config.image_size, train=False)
    images = np.stack([transform(source[i]["image"]) for i in range(21)])
    _, apply = models.as_functions(config)
    logits, out = apply(params, models.normalise(images), return_intermediates=True)
    wanted = {"logits": logits, **out}[options.get("layer", "pre_logits")]
    if options.get("pool") == "mean":
        wanted = wanted[:, 1:].mean(axis=1)
    if options.get("pool") == "token":
        wanted = wanted[:, 0]
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("withheld", [-1, [-1, -1, -1]])
def test_images_without_a_label_have_features(model, source, withheld):
    """Of a test split with withheld labels, as of competitions; only an unreadable one has none."""
    images = [source[i]["image"] for i in range(3)]
    several = isinstance(withheld, list)
    labels = [[0, 1, 1] if several else 2, withheld, withheld]
    unlabelled = ArraySource(np.stack(images), labels, "abc")
    bad: list[str] = []
    images[2] = images[2].astype(float)
    unlabelled.images = images
    found, labels_found = collect(model, unlabelled, on_bad=bad.append)
    wanted, _ = collect(model, source)
    np.testing.assert_allclose(found[:2], wanted[:2], atol=2e-5)
    assert np.isnan(found[2]).all() and len(bad) == 1 and "float64" in bad[0]
    np.testing.assert_array_equal(labels_found, labels)
    readable = data.Subset(unlabelled, np.arange(2), "two")
    probes = peers.photographs(model[0], readable)  # for exports, which read no label
    assert probes.shape == (2, *model[0].image_size, 3)


def test_files(model, tmp_path, capsys):
    pq = pytest.importorskip("pyarrow.parquet")
    saved.save(tmp_path / "m", *model)
    base = ["features", f"--checkpoint={tmp_path / 'm'}", "--data=digits[test[:21]]"]
    assert main([*base, f"--out={tmp_path / 'f.npy'}", "--batch_size=8"]) == 0
    assert "21 x 64 pre_logits" in capsys.readouterr().out
    array, labels = np.load(tmp_path / "f.npy"), np.load(tmp_path / "f.labels.npy")
    assert main([*base, f"--out={tmp_path / 'f.parquet'}", "--batch_size=5"]) == 0
    table = pq.read_table(tmp_path / "f.parquet").to_pydict()
    assert table["label"] == list(labels) and table["name"][1] == "digits[test]/5"
    np.testing.assert_allclose(np.array(table["features"]), array, atol=2e-5)
    assert main([*base, f"--out={tmp_path / 'f.npy'}"]) == 1
    assert "would be overwritten" in capsys.readouterr().err
    (tmp_path / "f.npy").unlink()  # its labels are left
    assert main([*base, f"--out={tmp_path / 'f.npy'}"]) == 1
    assert "f.labels.npy exists and would be overwritten" in capsys.readouterr().err
    assert main([*base, f"--out={tmp_path / 'f.csv'}"]) == 1
    assert "must end in .npy or .parquet" in capsys.readouterr().err


def test_an_interrupt_leaves_no_thread(model, source):
    def interrupt(count):
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    resize = data.evaluation_transform((8, 8), ())
    with pytest.raises(KeyboardInterrupt):
        run.over_source(
            lambda batch: {}, source, resize, batch_size=8, mesh=sharding.make_mesh(),
            on_batch=interrupt,
        )  # fmt: skip
    batches = features.batches_of_features(*model, source, batch_size=8)
    next(batches)
    batches.close()
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not [name for name in left if "_feed" in name]


def test_an_output_path_below_a_file_is_refused_first(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match=r"f\.npy cannot be written: .*a is not a directory"):
        features.check(tmp_path / "a" / "f.npy")


def test_a_full_disk_leaves_no_half_of_the_features(tmp_path, monkeypatch):
    def save(file, labels):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", save)
    batches = iter([(np.zeros((2, 3), np.float32), np.zeros(2, np.int32))])
    with pytest.raises(UserError, match=r"f\.labels\.npy cannot be written"):
        features.write(tmp_path / "f.npy", batches, ["a", "b"])
    assert not list(tmp_path.iterdir())


def test_bad_layers(model, source):
    with pytest.raises(UserError, match="Did you mean 'pre_logits'"):
        next(features.batches_of_features(*model, source, layer="prelogits"))
    with pytest.raises(UserError, match="there are none, mean, token"):
        next(features.batches_of_features(*model, source, pool="max"))
