"""The report says what the record says, alone on one page, whatever the record holds."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from vit_jax.errors import UserError
from vit_jax.pages.report import write_report

CONFIG = {
    "name": "",
    "seed": 7,
    "model": {"variant": "Ti/16"},
    "data": {"dataset": "digits"},
    "init_from": "",
}


def log(directory, records) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "metrics.jsonl").write_text(text)


def a_run(*, steps=1000, every=10, accuracies=(0.5, 0.9, 0.85)) -> list[dict]:
    records = [
        {
            "step": step,
            "train/loss": 2.5 * 0.99 ** (step // every),
            "train/learning_rate": 1e-3 * (1 - step / steps),
            "train/images_per_second": 1234.0,
            "train/gradient_norm": 1.0 + step % 3,
            "seconds": step / 10,
        }
        for step in range(every, steps + 1, every)
    ]
    for index, accuracy in enumerate(accuracies, start=1):
        record = records[len(records) * index // len(accuracies) - 1]
        record["eval/accuracy"] = accuracy
        record["eval/real_accuracy"] = accuracy + 0.05
    records[-1]["final"] = True
    return records


class Page(HTMLParser):
    """The tree of a page: fails on tags that are not closed in order."""

    VOID = ("meta", "br", "hr", "img", "link")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data + " "

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def report(workdir) -> Page:
    path = write_report(workdir)
    assert path == workdir / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def words(page: Page) -> str:
    return " ".join(page.text.split())


def test_the_summary_has_the_numbers_of_the_run(tmp_path):
    log(tmp_path, a_run())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    text = words(report(tmp_path))
    assert "Ti/16 on digits" in text and "seed 7" in text
    assert "eval accuracy 85% best 90% at step 660" in text
    assert "train loss 0.9151 from 2.475" in text
    assert "steps 1,000" in text
    assert "images/s 1,234 median" in text
    assert "time 1m40s" in text
    assert "Finished." in text


def test_a_mean_average_precision_is_in_percent():
    from vit_jax.pages import report as page, study

    kept = page._kept({"keep_best": "max:eval/mAP"}, {"best/step": 4, "best/eval/mAP": 0.5})
    assert kept == " The model is from step 4, with the best eval/mAP: 50%."
    assert study._cell("eval/mAP", (0.8125, 0.01), 2) == "81.25% ± 1.00 (2)"


def test_the_curves_are_there_and_described(tmp_path):
    log(tmp_path, a_run())
    page = report(tmp_path)
    described = [svg["aria-label"] for svg in page.all("svg") if svg.get("role") == "img"]
    for title in ("Training loss", "Evaluation accuracy", "Learning rate"):
        assert any(label.startswith(f"{title} over steps.") for label in described), title
    assert "1234 throughout." in page.text
    accuracy = next(label for label in described if label.startswith("Evaluation"))
    assert "real accuracy: 55% at step 330" in accuracy
    assert "1 more: train gradient norm" in page.text
    assert len(described) == 4


def test_the_page_is_self_contained(tmp_path):
    log(tmp_path, a_run())
    page = report(tmp_path)
    raw = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|\bsrc=|\bhref=|@import|url\(", raw)
    assert "prefers-color-scheme: dark" in raw
    assert "width=device-width" in raw
    assert not (tmp_path / "report.html.tmp").exists()
    assert page.all("html")[0]["lang"] == "en" and page.all("title")


def test_a_run_in_two_stages_shows_both(tmp_path):
    log(tmp_path / "pretrain", a_run(steps=2000, accuracies=(0.3,)))
    log(tmp_path, a_run(steps=500, accuracies=(0.97,)))
    text = words(report(tmp_path))
    before, after = text.split("Fine-tuning")
    assert "Pre-training" in before and "steps 2,000" in before and "30%" in before
    assert "steps 500" in after and "97%" in after
    assert "A single value: accuracy 97% at step 500" in after


def test_the_second_stage_has_not_begun(tmp_path):
    log(tmp_path / "pretrain", a_run())
    text = words(report(tmp_path))
    assert "Fine-tuning Nothing has been logged." in text
    assert "Finished" not in text


def test_a_run_that_is_not_finished_says_so(tmp_path):
    log(tmp_path, a_run()[:50])
    assert "Not finished: last record at step 500." in words(report(tmp_path))


def test_nothing_logged_is_said_and_not_drawn(tmp_path):
    page = report(tmp_path)
    assert "Nothing has been logged." in page.text
    assert not page.all("svg")


def test_a_run_that_diverged(tmp_path):
    records = a_run()
    for record in records[40:]:
        record["train/loss"] = None
    log(tmp_path, records)
    text = words(report(tmp_path))
    assert "60 not finite" in text
    raw = (tmp_path / "report.html").read_text()
    assert "nan" not in raw.lower()


def test_all_text_is_escaped(tmp_path):
    evil = "\"'><script>alert(1)</script><b x='"
    records = a_run()
    for record in records:
        record[f"train/{evil}"] = record["step"] / 7
        record[f"eval/{evil}accuracy"] = record["step"] / 1000
    log(tmp_path, records)
    (tmp_path / "config.json").write_text(
        json.dumps({**CONFIG, "name": evil, "init_from": evil, "loss": {evil: evil}})
    )
    (tmp_path / "evaluation.json").write_text(json.dumps({evil: evil}))
    page = report(tmp_path)
    assert len(page.all("script")) == 1
    assert page.text.count("<script>alert(1)</script>") >= 5


def test_the_evaluation_is_a_table(tmp_path):
    evaluation = {
        "classification": {"accuracy": 0.81234, "loss": 0.5, "num_examples": 50_000},
        "real": None,
        "per_class": list(range(100)),
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    text = words(report(tmp_path))
    assert "classification: accuracy 81.23%" in text
    assert "classification: num examples 50,000" in text
    assert "real not measured" in text
    assert "per class 100 values" in text


def test_a_long_run_stays_a_small_page(tmp_path):
    log(tmp_path, a_run(steps=20_000, every=1))
    report(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 250_000


def test_the_config_is_there_in_full(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    page = report(tmp_path)
    assert json.dumps(CONFIG, indent=2) in page.text


def test_errors_name_the_file(tmp_path):
    with pytest.raises(UserError, match="no working directory"):
        write_report(tmp_path / "missing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json is not a JSON object"):
        write_report(tmp_path)
