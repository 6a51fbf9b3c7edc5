"""docs/results: records are of the studies as they are now, and pages say what is in them."""

import re
import statistics
from pathlib import Path

import pytest

from vit_jax.studies import record, study

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
RECORDS = sorted(path.parent.name for path in RESULTS.glob("*/study.csv"))


def argument(name: str) -> str:
    """The argument of a study in the command of its page, or of docs/RESULTS.md."""
    page = RESULTS / f"{name}.md"
    text = (page if page.exists() else ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    return re.search(rf"--config=configs/studies/{name}\.py:(\S+)", text)[1]


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_counts_for_the_study_as_it_is(name):
    trials = study.load(f"configs/studies/{name}.py:{argument(name)}", {})
    rows = record.read(RESULTS / name)
    assert rows and set(rows) <= set(trials)
    for trial, row in rows.items():
        assert row["config"] == record.digest(trial, trials), trial
    assert set(record.read_curves(RESULTS / name)) == set(rows)
    assert (RESULTS / f"{name}.md").exists() == (set(rows) == set(trials))  # a claim needs them all


@pytest.mark.parametrize("name", [path.stem for path in RESULTS.glob("*.md")])
def test_a_page_says_what_its_record_has(name):
    """Each row of its table: | `group` | mean ± deviation |, of the metrics in the head."""
    text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    head, *lines = re.findall(r"^\| `(.*?)` \| (.*) \|$", text, re.MULTILINE)
    metrics = re.findall(r"`(.*?)`", head[1])
    rows = record.read(RESULTS / name)
    assert metrics and len(lines) == len({trial.rpartition("_")[0] for trial in rows})
    for group, cells in lines:
        for metric, cell in zip(metrics, cells.split(" | "), strict=True):
            seeds = [row for trial, row in rows.items() if trial.rpartition("_")[0] == group]
            values = [100 * float(row[metric]) for row in seeds]
            assert len(values) >= 2
            mean, deviation = statistics.fmean(values), statistics.stdev(values)
            assert cell == f"{mean:.1f} ± {deviation:.1f}", (group, metric)
