"""A table with a row for each image: in order, each once, and in no other file's place."""

import csv
import json

import jax
import numpy as np
import pytest
from tiny_runs import contents, three_classes

from vit_jax import data, models
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.evaluation import per_image, predict
from vit_jax.models import saved

NAMES = ("c0", "c1", "c2")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model with a random classifier, and three classes of eight images."""
    directory = tmp_path_factory.mktemp("place")
    three_classes(directory / "set")
    config = models.get_config(
        "debug", num_classes=3, image_size=8, patch_size=4, labels=NAMES,
        preprocessing=(("name", "resize"),),
    )  # fmt: skip
    params = jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))
    params["head/kernel"] = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    saved.save(directory / "model", config, params)
    return directory


def evaluate(place, out, *more, spec=None):
    spec = spec or f"folder:{place}/set[test]"
    given = [f"--checkpoint={place}/model", f"--data={spec}", f"--out={out}", "--batch_size=16"]
    return main(["evaluate", *given, *more])


def rows_of(file):
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_every_image_has_a_row_in_order(place, tmp_path, capsys):
    file = tmp_path / "new" / "f.csv"
    assert evaluate(place, tmp_path / "out", f"--predictions={file}", "--top_k=2") == 0
    assert f"each image in {file}" in capsys.readouterr().out
    rows, source = rows_of(file), data.open_source(f"folder:{place}/set[test]")
    assert [row["image"] for row in rows] == source.names() and len(rows) == 24
    assert [row["label"] for row in rows] == [NAMES[k] for k in source.labels]
    head = ["image", "label", "correct", "class_1", "probability_1", "class_2", "probability_2"]
    assert list(rows[0]) == head
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())["classification"]
    right = [row["label"] == row["class_1"] for row in rows]
    assert [row["correct"] for row in rows] == [str(r).lower() for r in right]
    assert record["accuracy"] == pytest.approx(np.mean(right)) and 0 < sum(right) < 24
    # as predict says of the same file
    image = place / "set" / rows[5]["image"]
    assert main(["predict", f"--checkpoint={place}/model", "--json", str(image)]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["predictions"][:2]
    assert [row["class"] for row in said] == [rows[5]["class_1"], rows[5]["class_2"]]
    for k, row in enumerate(said, 1):
        assert float(rows[5][f"probability_{k}"]) == pytest.approx(row["probability"], rel=1e-5)
    confusion = rows_of(tmp_path / "out" / "evaluation_confusion.csv")
    assert [row["label \\ prediction"] for row in confusion] == list(NAMES)
    pairs = [(row["label"], row["class_1"]) for row in rows]
    assert {(a["label \\ prediction"], b): int(a[b]) for a in confusion for b in NAMES} == {
        (a, b): pairs.count((a, b)) for a in NAMES for b in NAMES
    }


def test_parquet_has_the_same(place, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("f.csv", "f.parquet"):
        assert evaluate(place, tmp_path / "out", f"--predictions={tmp_path / name}") == 0
    table = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    rows = rows_of(tmp_path / "f.csv")
    assert list(table) == list(rows[0]) and "class_3" in table and "class_4" not in table
    for name, values in table.items():
        cells = [row[name] for row in rows]
        if name == "correct":
            assert values == [cell == "true" for cell in cells]
        elif name.startswith("probability"):
            assert values == [float(cell) for cell in cells]
        else:
            assert values == cells


def test_an_image_that_cannot_be_read_has_an_empty_row(place, tmp_path):
    three_classes(tmp_path / "set", count=2)
    broken = tmp_path / "set" / "test" / "c1" / "test0.png"
    broken.write_bytes(b"\x89PNG\r\n broken")
    file = tmp_path / "f.csv"
    more = (f"--predictions={file}", "--max_bad_images=1")
    assert evaluate(place, tmp_path, *more, spec=f"folder:{tmp_path}/set[test]") == 0
    rows = rows_of(file)
    assert len(rows) == 6 and rows[2]["image"].endswith("c1/test0.png")
    assert {value for key, value in rows[2].items() if key != "image"} == {""}
    for row in [*rows[:2], *rows[3:]]:
        assert row["image"].startswith(f"test/{row['label']}/") and row["class_1"]


@pytest.mark.parametrize(
    "more, message",
    [
        (("--predictions={}/there.csv",), "there.csv exists and would be overwritten"),
        (("--predictions={}/link.csv",), "link.csv exists and would be overwritten"),
        (("--predictions={}/f.txt",), "f.txt must end in .csv or .parquet"),
        (("--predictions={}/there.csv/f.csv",), "there.csv is not a directory"),
        (("--predictions={}/f.csv", "--suite=knn"), "--predictions needs --suite=classification"),
        (("--top_k=3",), "--top_k needs --predictions"),
    ],
)
def test_nothing_is_overwritten(place, tmp_path, capsys, more, message):
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "link.csv").symlink_to(tmp_path / "nowhere")
    before = contents(tmp_path)
    more = [word.format(tmp_path) for word in more]
    assert evaluate(place, tmp_path / "out", *more) in (1, 2)
    err = capsys.readouterr().err
    assert message in err and err.count("\n") <= 2 and contents(tmp_path) == before


def test_names_with_commas_quotes_and_lines(tmp_path):
    columns = {"image": ["a,b.png", 'say "x".png', None], "labels": [["a", "b,c"], [], None]}
    per_image.write(tmp_path / "f.csv", columns)
    assert [list(row.values()) for row in rows_of(tmp_path / "f.csv")] == [
        ["a,b.png", "a;b,c"], ['say "x".png', ""], ["", ""],
    ]  # fmt: skip
    with pytest.raises(UserError, match="The class 'a;b' contains ;"):
        per_image.check(tmp_path / "g.csv", ("x", "a;b"), several=True)
    per_image.check(tmp_path / "g.csv", ("x", "a;b"))
    with pytest.raises(UserError, match="exists"):
        per_image.write(tmp_path / "f.csv", columns)


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'vit_jax\[hf\]'"):
        per_image.check(tmp_path / "f.parquet")


def test_no_confusion_matrix_for_too_many_classes(monkeypatch):
    from vit_jax.evaluation import classification

    monkeypatch.setattr(classification, "MATRIX", 2)
    results = {"label": np.array([0]), "prediction": np.array([1])}
    results |= {"confidence": np.array([0.5]), "correct": np.array([0])}
    shown = classification.shown(results, data.ArraySource(np.zeros((1, 2, 2)), [0]), NAMES)
    assert "tables" not in shown and shown["pictures"]["confusion"]() is None


def test_predict_writes_a_table(place, tmp_path, capsys):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b/2.png", "a/1.png"):
        (tmp_path / name).write_bytes((place / "set" / "test" / "c0" / "test1.png").read_bytes())
    (tmp_path / "a" / "3.png").write_bytes(b"\x89PNG\r\n broken")
    out = tmp_path / "new" / "f.csv"
    words = ["predict", f"--checkpoint={place}/model", f"--out={out}", "--top_k=2"]
    assert main([*words, str(tmp_path / "a"), "http://127.0.0.1:1/x.png"]) == 1
    said = capsys.readouterr()
    assert "2 of 4 images could not be read" in said.err and f"4 images in {out}" in said.out
    rows = rows_of(out)
    names = [str(tmp_path / "a" / name) for name in ("1.png", "3.png", "b/2.png")]
    assert [row["image"] for row in rows] == [*names, "http://127.0.0.1:1/x.png"]
    assert "cannot be decoded" in rows[1]["error"] and "cannot be fetched" in rows[3]["error"]
    assert rows[1]["class_1"] == "" and rows[0]["error"] == "" and "class_3" not in rows[0]
    assert rows[0]["class_1"] == rows[2]["class_1"] in NAMES
    before = out.read_bytes()
    assert main([*words, str(tmp_path / "a")]) == 1 and out.read_bytes() == before
    assert "exists and would be overwritten" in capsys.readouterr().err
    assert main([*words, "--json", str(tmp_path / "a")]) == 2


def test_a_table_of_several_labels():
    row = [
        {"label": 1, "class": "dog", "probability": 0.9, "threshold": 0.5, "chosen": True},
        {"label": 0, "class": "cat", "probability": 0.4, "threshold": 0.5, "chosen": False},
    ]
    found = predict.table(
        [{"image": "a", "predictions": row}, {"image": "b", "error": "no"}], 2, several=True
    )
    assert found == {
        "image": ["a", "b"], "predicted": [["dog"], None], "class_1": ["dog", None],
        "probability_1": [0.9, None], "class_2": ["cat", None], "probability_2": [0.4, None],
        "error": [None, "no"],
    }  # fmt: skip
