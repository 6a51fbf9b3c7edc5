"""Training and every protocol know classes by their names, and refuse what cannot be learnt."""

import jax
import numpy as np
import pytest
from image_folders import class_folders, save

from vit_jax import config as configuration, data, models
from vit_jax.errors import UserError
from vit_jax.evaluation import features, matching
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.forward import of_model
from vit_jax.evaluation.protocols import EVALUATORS
from vit_jax.runtime import sharding
from vit_jax.training.setup import set_up

datasets = pytest.importorskip("datasets")
NAMES = ("blue", "green", "red")
COLOURS = {"blue": (20, 20, 220), "green": (20, 220, 20), "red": (220, 20, 20)}


@pytest.fixture
def permuted(tmp_path):
    """train numbers its classes blue, green, red; test red, blue, green."""
    import PIL.Image

    tables = {}
    for split, order in (("train", NAMES), ("test", ("red", "blue", "green"))):
        labels = [i % 3 for i in range(12)]
        tables[split] = datasets.Dataset.from_dict(
            {
                "image": [PIL.Image.new("RGB", (16, 16), COLOURS[order[i]]) for i in labels],
                "label": labels,
            },
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(order))}
            ),
        )
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "set"))
    return f"hf:{tmp_path}/set"


def config_of(spec, **settings):
    config = configuration.default()
    config.total_steps, config.batch_size = 2, 8
    config.model.update(variant="debug", image_size=16, patch_size=4)
    config.data.dataset = spec
    for key, text in settings.items():
        configuration.override(config, key.replace("__", "."), text)
    return config


def prepared(spec, **settings):
    return set_up(
        config_of(spec, **settings), mesh=sharding.make_mesh(devices=jax.devices()[:1], data=1)
    )


def evaluate(name, model, spec, **options):
    mesh = sharding.make_mesh(devices=jax.devices()[:1], data=1)
    return EVALUATORS[name](of_model(*model, mesh, batch_size=4), DataSets((spec,)), **options)


@pytest.fixture(scope="module")
def by_colour():
    """A model of the three classes that is right about each of the three colours."""
    config = models.get_config(
        "debug", image_size=16, patch_size=4, num_classes=3, labels=NAMES,
        preprocessing=(("name", "resize"),),
    )  # fmt: skip
    init, _ = models.as_functions(config)
    params = {key: np.asarray(value) for key, value in jax.jit(init)(jax.random.key(0)).items()}
    images = np.stack([np.full((16, 16, 3), COLOURS[name], np.uint8) for name in NAMES])
    source = data.ArraySource(images, [0, 1, 2])
    ((found, _),) = features.batches_of_features(config, params, source, batch_size=3)
    (kernel,) = [key for key in params if key.startswith("head") and params[key].ndim == 2]
    params[kernel] = 10 * np.linalg.pinv(found)  # logits 10 for its own colour, 0 for the others
    return config, params


def test_training_is_watched_under_the_classes_of_the_training_split(permuted):
    setup = prepared(permuted)
    assert setup.program.model.labels == setup.data.evaluation.class_names == NAMES
    for i in range(12):
        record = setup.data.evaluation[i]
        pixel = tuple(int(v) for v in data.decode(record["image"], record["name"])[0, 0])
        assert COLOURS[NAMES[record["label"]]] == pixel


@pytest.mark.parametrize("split", ["train", "test", "train+test"])
def test_evaluation_is_right_whatever_the_order(permuted, by_colour, split):
    """100% on the split whose classes are numbered otherwise."""
    found = evaluate("classification", by_colour, f"{permuted}[{split}]")
    assert found.record["accuracy"] == 1.0


@pytest.mark.parametrize("suite", ["knn", "probe", "fewshot"])
def test_protocols_of_features_are_right_whatever_the_order(permuted, by_colour, suite):
    options = {"knn": dict(k=(1,)), "fewshot": dict(shots=(1,), seeds=1), "probe": {}}[suite]
    found = evaluate(suite, by_colour, permuted, **options)
    assert list(found.metrics.values()) == [1.0]


def test_classes_of_the_same_count_and_other_names_are_refused(tmp_path, by_colour):
    """Unless they are to be matched by number, which is said."""
    for old, new in (("blue", "x"), ("green", "y"), ("red", "z")):
        for i in range(2):
            save(tmp_path / "train" / new / f"{i}.png", COLOURS[old], (16, 16))
    spec = f"folder:{tmp_path}"
    with pytest.raises(UserError, match=rf"has the class 'x', .*{spec}\?match=number"):
        evaluate("classification", by_colour, f"{spec}[train]")
    found = evaluate("classification", by_colour, f"{spec}?match=number[train]")
    assert found.record["accuracy"] == 1.0
    assert "classes matched by number" in found.table[0]


def test_fewer_classes_and_numbers_go_on_working(tmp_path, by_colour):
    """A part of the classes by name; numbers where names are not known."""
    class_folders(tmp_path / "some", classes=("red", "blue"))
    found = evaluate("classification", by_colour, f"folder:{tmp_path}/some[train]")
    assert found.record["accuracy"] == 1.0
    for number, name in enumerate(NAMES):
        save(tmp_path / "numbers" / str(number) / "0.png", COLOURS[name], (16, 16))
    found = evaluate("classification", by_colour, f"folder:{tmp_path}/numbers[train]")
    assert found.record["accuracy"] == 1.0
    nameless = models.replace(by_colour[0], labels=()), by_colour[1]
    mapping, remark = matching.match_labels(
        nameless[0], data.open_source(f"folder:{tmp_path}/numbers")
    )
    assert mapping.tolist() == [0, 1, 2] and remark == ""


def test_classes_without_a_training_image_are_said(tmp_path):
    class_folders(tmp_path / "a")
    rows = [f"a/{c}/0.png,{c},train" for c in NAMES] + ["a/red/1.png,rot,test"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows, ""]))
    notes = prepared(f"folder:{tmp_path}/t.csv").notes
    assert (
        "1 classes have no training image (e.g. 'rot'): 1 of the 1 evaluation records cannot be "
        "right" in notes
    )
    class_folders(tmp_path / "b", classes=[f"c{i:03}" for i in range(50)], count=1)
    notes = prepared(f"folder:{tmp_path}/b").notes
    assert any(note.startswith("5 classes have no training image (e.g. 'c0") for note in notes)


def test_one_class_is_not_trained_on(tmp_path, by_colour):
    """With the folder that was meant."""
    class_folders(tmp_path / "dataset")
    spec = f"folder:{tmp_path}"
    with pytest.raises(UserError, match=rf"one class, 'dataset'.*\(blue, green, red\).*{spec}/dat"):
        prepared(spec)
    with pytest.raises(UserError, match="has only one class, 'dataset'"):
        evaluate("knn", by_colour, spec)


def test_labels_that_are_withheld_are_refused_before_the_first_step(tmp_path):
    """The record is named."""
    class_folders(tmp_path / "a", count=5)
    rows = [f"a/{c}/{i}.png,{c},train" for c in NAMES for i in range(4)] + ["a/red/4.png,-1,test"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows, ""]))
    spec = f"folder:{tmp_path}/t.csv"
    with pytest.raises(UserError, match=r"\[test\]: the record a/red/4.png has no label"):
        prepared(spec, data__train_split="train", data__eval_split="test")
    setup = prepared(spec)
    assert setup.data.evaluation.spec == f"{spec}[train[90%:]]"
    assert any("[test] is not used: its labels are withheld" in note for note in setup.notes)


def test_the_plan_says_which_split_is_used_for_what(tmp_path):
    """Validation is watched, test is for the end; eval_split alone is enough."""
    for name in ("train", "val", "test"):
        class_folders(tmp_path / name)
    (tmp_path / "train" / "red" / "x.heic").write_bytes(b"x")
    spec = f"folder:{tmp_path}"
    setup = prepared(spec)
    assert setup.data.evaluation.spec == f"{spec}[validation]"
    text = "\n".join(setup.notes)
    assert "training is evaluated on validation; test is for the end: vit-jax evaluate" in text
    assert "1 .heic" in text
    for split in ("test", "val"):
        setup = prepared(spec, data__eval_split=split)
        assert setup.data.train.spec == f"{spec}[train]"
        assert {n.split("/")[0] for n in setup.data.evaluation.names()} == {split}
    with pytest.raises(UserError, match="belong together"):
        prepared(spec, data__train_split="train[:50%]")


def test_small_images_are_said(tmp_path):
    """BiT-HyperRule takes 128 for originals under 96x96."""
    for name in NAMES:
        for i in range(4):
            save(tmp_path / name / f"{i}.png", COLOURS[name], (32, 30))
    config = configuration.load(f"configs/bit_hyperrule.py:R50x1,folder:{tmp_path}")
    config.model.update(variant="debug", patch_size=64)
    config.batch_size = 8
    mesh = sharding.make_mesh(devices=jax.devices()[:1], data=1)
    (note,) = [n for n in set_up(config, mesh=mesh).notes if "small" in n]
    assert note.startswith("the images are small, about 32x30, and enlarged to 384x384; for origin")
    config.model.image_size = 128
    assert not [n for n in set_up(config, mesh=mesh).notes if "small" in n]
