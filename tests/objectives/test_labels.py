"""Images without labels, or of one class, for objectives that read none; refused for the others."""

import re

import pytest
import tiny_runs
from image_folders import class_folders, save

from vit_jax import config as configuration
from vit_jax.data import specs
from vit_jax.errors import UserError
from vit_jax.runtime.logbook import read_metrics
from vit_jax.training.objective import needs_labels
from vit_jax.training.setup import check
from vit_jax.training.sources import open_sources

MASKED = ["--config.objective.name=masked_patches", "--config.loss.label_smoothing=0"]


def flat(root, *folders, count=20):
    for folder in folders or ("",):
        for i in range(count):
            save(root / folder / f"{i}.png", (8 * i % 256, 20, 200), (20, 20))
    return root


def with_data(root, objective="masked_patches"):
    config = configuration.default()
    config.data.dataset, config.objective.name = f"folder:{root}", objective
    config.total_steps, config.batch_size = 2, 8
    config.model.variant, config.model.image_size = "debug", 16
    config.model.patch_size = 4
    return config


LAYOUTS = {
    "flat": ([""], (18, 2)),
    "flat in two splits": (["train", "test"], (20, 20)),
    "one class": (["dogs"], (18, 2)),
    "one class in two splits": (["train/dogs", "val/dogs"], (20, 20)),
    "deeper": (["a/b", "a/c"], (36, 4)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_are_found_without_classes(tmp_path, layout):
    folders, counts = LAYOUTS[layout]
    config = with_data(flat(tmp_path / "photos", *folders))
    train, evaluation, _ = open_sources(config, labelled=False)
    assert (len(train), len(evaluation)) == counts and train.num_classes == 1
    assert not {train.name(i) for i in range(counts[0])} & {
        evaluation.name(i) for i in range(counts[1])
    }
    check(config)  # as a stage that comes later
    with pytest.raises(UserError, match=r"no class folders|splits, not classes|has only one class"):
        check(with_data(tmp_path / "photos", "classification"))


def test_existing_classes_are_kept(tmp_path):
    config = with_data(class_folders(tmp_path, count=10))
    train, _, _ = open_sources(config, labelled=False)
    assert train.class_names == ("blue", "green", "red")


@pytest.mark.parametrize(
    "content, sentence",
    [
        ({}, "has no class folders"),
        ({"notes.txt": "x"}, "has no class folders"),
        ({"train.csv": "image,label\nnowhere.png,a\nelsewhere.png,b\n"}, "nowhere.png|elsewhere"),
    ],
)
def test_folders_without_images_are_refused(tmp_path, content, sentence):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        open_sources(with_data(tmp_path), labelled=False)


def test_splits_without_images_are_not_passed_over(tmp_path):
    flat(tmp_path, "train")
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError):
        open_sources(with_data(tmp_path), labelled=False)


def test_open_source_needs_class_folders(tmp_path):
    with pytest.raises(UserError, match="has no class folders"):
        specs.open_source(f"folder:{flat(tmp_path)}")


def test_which_objectives_need_labels():
    config = configuration.default()
    assert needs_labels(config)
    config.objective.name = "masked_patches"
    assert not needs_labels(config)


def test_a_flat_folder_is_trained_on_and_classification_refuses_it(tmp_path, capsys):
    folder = flat(tmp_path / "photos")
    data = f"--config.data.dataset=folder:{folder}"
    short = [
        "--config.total_steps=3",
        "--config.model.image_size=16",
        "--config.model.patch_size=4",
    ]
    assert tiny_runs.train(tmp_path / "w", data, *MASKED, *short) == 0
    assert read_metrics(tmp_path / "w" / "metrics.jsonl")[-1]["eval/loss"] > 0
    capsys.readouterr()
    assert tiny_runs.train(tmp_path / "x", data, *short) == 1
    error = capsys.readouterr().err
    assert re.search("photos has no class folders; it must be FOLDER/CLASS/image.jpg", error)
    assert len(error.splitlines()) == 1 and not (tmp_path / "x").exists()
