"""The paper's figures: as it prints them, and beside the runs that they correspond to."""

import json

import pytest

from vit_jax.data.kinds.vtab import TASKS
from vit_jax.models.variants import VARIANTS
from vit_jax.pages import paper, paper_section
from vit_jax.pages.paper import IN, IN21K, JFT, Known


def columns(rows):
    return [round(sum(column), 2) for column in zip(*rows, strict=True)]


def test_averages_of_the_paper_come_out():
    """Tables 7 and 9 print the mean of their rows."""
    for values, average in zip(paper.TABLE_7.values(), paper.TABLE_7_AVERAGES, strict=True):
        assert sum(values) / 5 == pytest.approx(average, abs=0.0051)
    means = [total / 19 for total in columns(paper.TABLE_9.values())]
    assert means == pytest.approx(paper.TABLE_9_MEANS, abs=0.0501)


def test_tables_that_repeat_each_other_agree():
    five, six, data = paper.TABLE_5[JFT], paper.TABLE_6, paper.TABLE_5_COLUMNS
    for (variant, epochs), values in six.items():
        if variant in five and (variant, epochs) not in (("L/16", 7), ("H/14", 14)):
            row = dict(zip(paper.TABLE_6_COLUMNS, values, strict=True))
            assert tuple(row[name] for name in data) == five[variant]
    for variant in ("R50x1", "R152x2"):
        row = dict(zip(paper.TABLE_6_COLUMNS, six[variant, 7], strict=True))
        found = tuple(row[name] for name in paper.TABLE_7_COLUMNS)
        assert found == paper.TABLE_7[variant, "adam"]
    for text, mean in zip(paper.TABLE_2[paper.VTAB][:3], paper.TABLE_9_MEANS, strict=True):
        assert float(text.partition("±")[0]) == pytest.approx(mean, abs=0.0501)


def test_sums_of_the_columns_are_those_of_the_printed_tables():
    rows = [row for table in paper.TABLE_5.values() for row in table.values()]
    assert columns(rows) == [1382.68, 1274.27, 1139.91, 1204.60, 1345.26, 1320.63]
    assert columns(paper.TABLE_6.values()) == [1520.59, 1597.76, 1781.84, 1654.58, 1720.05, 1774.59]
    first = [
        [float(text.partition("±")[0]) for text in texts[:3]] for texts in paper.TABLE_2.values()
    ]
    assert columns(first) == [648.19, 644.96, 633.32]
    assert sum(paper.TABLE_8.values()) == pytest.approx(509.945)


def test_rows_name_existing_tasks_and_variants():
    assert set(paper.TABLE_9) == set(TASKS)
    assert {cell.variant for cell in paper.cells()} <= set(VARIANTS)


@pytest.mark.parametrize(
    "known, data, wanted",
    [
        # Of ImageNet-21k: one row, nothing left open.
        (Known("B/16", 384, IN21K), "CIFAR-10", [("5", 98.95, "")]),
        (Known("B/16", 224, IN21K), "CIFAR-10", []),
        (Known("S/16", 384, IN21K), "CIFAR-10", []),
        (Known("B/16", 384, "folder:/a"), "CIFAR-10", []),
        (
            Known("R50x1", 384, JFT), "Pets",
            [("6", 91.11, "if pre-trained for 7 epochs"),
             ("7", 91.11, "if pre-trained for 7 epochs with ADAM"),
             ("7", 91.00, "if pre-trained for 7 epochs with SGD")],
        ),
        (Known("R50x1", 384, JFT, 7, "sgd"), "Pets", [("6", 91.11, ""), ("7", 91.0, "")]),
        (Known("R50x1", 384, JFT, 14), "Pets", []),
        (
            Known("H/14", 384), "ImageNet",
            [("5", 85.13, "if pre-trained on ImageNet-21k"), ("5", 88.04, "if pre-trained on JFT"),
             ("6", 88.08, "if pre-trained on JFT for 14 epochs")],
        ),
        (Known("H/14", 518, JFT), "ReaL", [("2", 90.72, "")]),
        (Known("B/16", 224, embedding=("2d", "every")), paper.FIVE_SHOT, [("8", 64.046, "")]),
        (Known("L/16", 384, IN21K), "vtab:dtd", [("9", 74.1, "")]),
        (Known("L/16", 384, IN21K), "VTAB", [("2", 72.72, ""), ("9", 72.7, "")]),
    ],
)  # fmt: skip
def test_rows_that_a_run_corresponds_to(known, data, wanted):
    found = [(m.cell.table, m.cell.value, m.condition) for m in paper.matches(known, data)]
    assert found == wanted


@pytest.mark.parametrize(
    "spec, name",
    [
        ("tfds:cifar10[test]", "CIFAR-10"), ("tfds:cifar10:3.0.2[test]", "CIFAR-10"),
        ("tfds:cifar10[train[98%:]]", ""), ("tfds:cifar10", ""), ("tfds:cifar10_1[test]", ""),
        ("tfds:imagenet2012[validation]", "ImageNet"), ("folder:/data/cifar10[test]", ""),
        ("vtab:dtd[test]", "vtab:dtd"), ("vtab:dtd[val200]", ""),
    ],
)  # fmt: skip
def test_the_data_are_those_of_the_paper(spec, name):
    assert paper.data_set(spec) == name


def test_only_the_whole_protocol_compares():
    record = {"data": "tfds:cifar10[test]", "accuracy": 0.5}
    assert paper.measured({"classification": record}) == {"CIFAR-10": 50.0}
    assert not paper.measured({"classification": {**record, "num_bad_images": 1}})
    assert paper.measured({"real": {"accuracy": 0.9, "num_scored": 46_837}}) == {"ReaL": 90.0}
    assert not paper.measured({"real": {"accuracy": 0.9, "num_scored": 46_836}})
    tasks = {"tasks": {"dtd": 0.7, "kitti_distance": 0.8}, "remarks": {"kitti_distance": "3.2.0"}}
    assert paper.measured({"vtab": tasks | {"mean": 0.75}}) == {"vtab:dtd": pytest.approx(70.0)}
    five = [{"data": "tfds:imagenet2012", "shots": k, "accuracy": k / 10} for k in (1, 5)]
    assert paper.measured({"fewshot": {"results": five}}) == {"ImageNet 5-shot": 50.0}


def run_in(directory, *, model=None, **config):
    """A workdir as far as the pages read it."""
    (directory / "model").mkdir(parents=True)
    row = {"num_layers": 12, "hidden_size": 768, "mlp_dim": 3072, "num_heads": 12}
    shape = {"format": "vit_jax", "variant": "B/16", "image_size": [384, 384], **row}
    (directory / "model" / "config.json").write_text(json.dumps(shape | (model or {})))
    written = {"data": {"dataset": "tfds:cifar10"}, "init_from": "", "pretrain": None} | config
    (directory / "config.json").write_text(json.dumps(written))
    return directory


RECORD = {"classification": {"data": "tfds:cifar10[test]", "accuracy": 0.9875}}
STAGE = {
    "data": {"dataset": "tfds:imagenet21k"}, "total_epochs": 90.0, "optimizer": {"name": "adam"},
}  # fmt: skip


def test_pre_training_that_a_run_records(tmp_path):
    def known(name, **config):
        return paper_section.model_of(str(run_in(tmp_path / name, **config)), {})

    assert known("a", init_from="B/16-imagenet21k").pretrained == IN21K
    assert known("b", init_from="gs://vit_models/imagenet21k/ViT-B_16.npz").pretrained == IN21K
    assert known("c", init_from="gs://vit_models/augreg/B_16.npz").pretrained not in (IN21K, "")
    assert known("d", init_from="/weights/ViT-B_16.npz").pretrained == ""
    assert known("e").pretrained == "nothing"
    staged = known("f", pretrain=STAGE)
    assert staged == Known("B/16", 384, IN21K, 90, "adam")
    first = run_in(tmp_path / "first", **STAGE)
    assert known("g", init_from=str(first)) == staged
    masked = STAGE | {"objective": {"name": "masked_patches"}}
    assert known("h", pretrain=masked).pretrained == "no labels"
    assert known("i", model={"num_layers": 6}).variant == ""
    assert known("j", model={"classifier": "gap"}).variant == ""
    assert known("k", init_from=str(tmp_path / "g")).pretrained == "several data sets"
    of_npz = paper_section.model_of(
        "/w/ViT-B_16.npz", {"variant": "B/16", "image_size": [384, 384]}
    )
    assert of_npz == Known("B/16", 384)


def test_the_section_has_the_figure_beside_ours(tmp_path):
    workdir = run_in(tmp_path / "w", init_from="B/16-imagenet21k")
    html = paper_section.section(workdir, RECORD)
    for text in ("98.75%", "98.95%", "-0.20", "Table 5, B/16", "99.37±0.06"):
        assert f"<td>{text}</td>" in html
    assert "VIVI" not in html
    vtab = {"vtab": {"tasks": {"dtd": 0.7}, "variant": "L/16", "image_size": [384, 384],
                     "checkpoint": "L/16-imagenet21k"}}  # fmt: skip
    html = paper_section.section(workdir, vtab)
    assert "<th scope=col>VIVI" in html and html.count("<td>–</td>") == 4
    assert paper_section.section(run_in(tmp_path / "x"), RECORD) == ""


def test_figures_are_of_the_paper_alone():
    assert paper.others(IN) == ("87.54±0.02", "88.4/88.5")
    assert paper.others("vtab:dtd") == ("–", "–")
