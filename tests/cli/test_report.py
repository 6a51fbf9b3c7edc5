"""vit-jax report: the page of a run while it goes, and several runs on one page."""

import json
import re

import pytest
from tiny_runs import contents, train

from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.pages import compare, report
from vit_jax.training import live


def a_run(place, *, rate, losses, final=True, **more):
    place.mkdir(parents=True)
    config = {"name": str(place), "schedule": {"learning_rate": rate}, "seed": 0, **more}
    (place / "config.json").write_text(json.dumps(config))
    records = [
        {"step": 10 * i, "train/loss": loss, "eval/accuracy": 1 - loss / 4, "seconds": 2.0 * i}
        for i, loss in enumerate(losses, start=1)
    ]
    records[-1] |= {"final": True} if final else {}
    (place / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return place


@pytest.fixture
def two(tmp_path):
    a_run(tmp_path / "a", rate=0.1, losses=[2.0, 1.0, 1.5], only_here=True)
    a_run(tmp_path / "b", rate=0.2, losses=[2.0, 0.4], final=False)
    return tmp_path / "a", tmp_path / "b"


def rows(text):
    """{first cell: the others} of the tables of a page."""
    found = {}
    for row in re.findall(r"<tr><th scope=row>(.*?)</tr>", text):
        name, *cells = re.split(r"</?t[hd][^>]*>", row)
        found[name] = [cell for cell in cells if cell]
    return found


def test_runs_are_compared_on_one_page(two, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "a", "b"]) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    text = (tmp_path / "comparison.html").read_text()
    found = rows(text)
    assert found["schedule.learning_rate"] == ["0.1", "0.2"]
    assert found["only_here"] == ["true", "–"]
    assert "seed" not in found and "name" not in found  # the same, and says nothing
    assert found["state"] == ["finished", "not finished"] and found["step"] == ["30", "20"]
    assert found["eval accuracy, last"] == ["62.5%", "90%"]
    assert found["eval accuracy, best"] == ["75% at step 20", "90% at step 20"]
    assert found["train loss, last"] == ["1.5", "0.4"]
    curves = re.findall(r'data-curves="(.*?)"', text)
    assert all("&quot;a&quot;" in curve and "&quot;b&quot;" in curve for curve in curves)
    assert len(curves) == 2  # the loss and the accuracy; nothing else was logged
    assert 'http-equiv="refresh"' in text  # b goes on
    # Nothing is overwritten.
    (tmp_path / "comparison.html").write_text("mine")
    assert main(["report", "a", "b"]) == 0
    assert (tmp_path / "comparison-2.html").exists()
    assert (tmp_path / "comparison.html").read_text() == "mine"


def test_runs_are_told_apart_by_as_much_of_their_path_as_it_takes(two, tmp_path):
    other = a_run(tmp_path / "more" / "a", rate=0.1, losses=[1.0])
    text = compare.render([two[0], other])
    assert f"{tmp_path.name}/a" in text and "more/a" in text


def test_the_page_of_one_run(two, tmp_path, capsys):
    assert main(["report", str(two[0])]) == 0
    page = two[0] / "report.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert "Finished." in page.read_text() and 'http-equiv="refresh' not in page.read_text()
    assert main(["report", str(two[1]), f"--out={tmp_path / 'page.html'}"]) == 0
    assert "Not finished: last record at step 20" in (tmp_path / "page.html").read_text()
    assert 'http-equiv="refresh"' in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    "words, code, part",
    [
        ([], 2, "report RUN"),
        (["nowhere"], 1, "no working directory 'nowhere'"),
        (["a", "nowhere"], 1, "no working directory 'nowhere'"),
        (["a", "./a"], 1, "given twice"),
        (["."], 1, "It contains runs: name one, such as damaged."),
        (["--checkpoint=a"], 2, "It is an argument: vit-jax report RUN."),
        (["a", "b", "--out=b/config.json"], 1, "is not overwritten"),
        (["a", "--out=b/config.json"], 1, "is not overwritten"),
        (["a", "b", "--out=no/such/file.html"], 1, "cannot be written"),
        (["a", "--out=page"], 1, "--out=page must end in .html"),
        (["a", ""], 1, "no working directory ''"),
        (["a/model"], 1, "a/model is not a run but a model"),
        (["a", "damaged"], 1, "line 1: not a record"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    words, code, part, two, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "a" / "model").mkdir()
    (tmp_path / "a" / "model" / "config.json").write_text('{"format": "vit_jax"}')
    (tmp_path / "damaged" / "metrics.jsonl").write_text("{\n{}\n")
    before = contents(tmp_path)
    assert main(["report", *words]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and part in err
    assert contents(tmp_path) == before


def test_at_most_twelve_runs_are_compared(tmp_path):
    places = [a_run(tmp_path / f"r{i}", rate=i, losses=[1.0]) for i in range(13)]
    assert "12 runs side by side" in compare.render(places[:12])
    with pytest.raises(UserError, match="13 runs are too many"):
        compare.render(places)


def test_the_page_is_there_from_the_first_line_of_the_log_on(tmp_path, monkeypatch):
    """Whatever a page costs: it is written after the first line, then when time has passed."""
    now, pages = [0.0], []

    def write(workdir):
        pages.append(now[0])
        now[0] += 0.5

    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(report, "write_report", write)
    event = live.page(tmp_path, lambda step: True)
    for second in (0.0, 1.0, 40.0, 51.0, 52.0, 102.0):
        now[0] = max(now[0], second)
        event.act(1, None, {})
    assert pages == [0.0, 51.0, 102.0]  # 100 times what one takes


def test_a_page_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, capsys):
    def write(workdir):
        raise UserError("the disk is full.")

    monkeypatch.setattr(report, "write_report", write)
    event = live.page(tmp_path, lambda step: True)
    event.act(1, None, {})
    event.act(2, None, {})
    assert capsys.readouterr().out.count("the disk is full") == 1


def test_training_writes_its_page_while_it_goes(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(live, "SECONDS", 0.0)
    monkeypatch.setattr(live, "TIMES", 0.0)
    write = report.write_report

    def note(workdir):
        page = write(workdir)
        seen.append(page.read_text())
        return page

    monkeypatch.setattr(report, "write_report", note)
    assert train(tmp_path / "run") == 0
    assert len(seen) == 7  # six lines of the log, and the end
    assert "Not finished: last record at step 1." in seen[0]
    assert "Finished." in seen[-1]
