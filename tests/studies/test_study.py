"""The study machine: trials that start from others, rows that count, machines that share a workdir.

Runs are pretended, but for the one that is killed.
"""

import concurrent.futures
import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from image_folders import save
from tiny_runs import SETTINGS

from vit_jax import config as configuration, models
from vit_jax.cli import main
from vit_jax.errors import Diverged, UserError
from vit_jax.models import cost, saved
from vit_jax.runtime.logbook import read_metrics
from vit_jax.studies import estimate, record, study
from vit_jax.training import workdir as workdirs

ROOT = Path(__file__).parents[2]
TINY = [word for word in SETTINGS if not word.startswith(("--config=", "--config.pretrain"))]
FAMILY = """
'''A pre-trained model, and two that start from it.'''
from matplotlib.figure import Figure

from vit_jax import config
from vit_jax.studies import plots

PAPER = {"Table 0": {"tuned": 77.7}}


def trials(rate="0.01"):
    found = {}
    for seed in range(2):
        c = config.load("configs/quickstart.py", {"pretrain": "None", "total_steps": "6"})
        c.seed, c.total_epochs = seed, None
        c.schedule.learning_rate = float(rate)
        tuned = c.copy_and_resolve_references()
        tuned.init_from = f"trial:begin_{seed}"
        found |= {f"tuned_{seed}": tuned, f"begin_{seed}": c}
    return found


def draw(outcomes):
    figure = Figure()
    axes = figure.subplots()
    axes.plot([o.metrics["eval/accuracy"] for o in outcomes.values() if o.metrics])
    for name, outcome in outcomes.items():
        plots.curve(axes, outcome, "eval/accuracy", name)
    return figure
"""


@pytest.fixture
def family(tmp_path):
    file = tmp_path / "family.py"
    file.write_text(FAMILY)
    return str(file)


@pytest.fixture
def ran(monkeypatch):
    """The names of the trials that were run, by a training that takes no time."""
    names = []

    def pretend(config, workdir):
        names.append(workdir.name)
        workdirs.check_workdir(workdir, config, allow_change=False)
        if config.schedule.learning_rate >= 100:
            raise Diverged("not finite")
        workdirs.write_config(workdir, config)
        (workdir / "model").mkdir(exist_ok=True)
        (workdir / "model" / "config.json").write_text(f'{{"format": {json.dumps(saved.FORMAT)}}}')
        metrics = {"step": 6, "eval/accuracy": 0.5 + config.seed / 10, "final": True}
        earlier = {"step": 3, "train/loss": 2.5, "eval/accuracy": 0.25, "eval/num_examples": 8}
        log = [{"step": 1, "train/loss": 3.0}, earlier, metrics]
        (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in log))
        return metrics

    monkeypatch.setattr(study, "train", pretend)
    monkeypatch.setattr(study, "check", lambda config: None)
    return names


def run(family, workdir, *more):
    return main(["study", f"--config={family}", f"--workdir={workdir}", *more])


def rows(workdir):
    return {
        row["trial"]: row
        for row in csv.DictReader((workdir / "study.csv").read_text().splitlines())
    }


def remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_a_trial_comes_after_the_one_that_it_starts_from(family, ran, tmp_path):
    work = tmp_path / "work"
    assert run(family, work) == 0
    assert ran == ["begin_0", "tuned_0", "begin_1", "tuned_1"]
    there = json.loads((work / "tuned_1" / "config.json").read_text())
    assert there["init_from"] == str(work / "begin_1")
    assert rows(work)["tuned_1"]["init_from"] == "trial:begin_1"
    # the page: mean and deviation over seeds, the paper's value, links
    page = (work / "study.html").read_text()
    assert "55.00% ± 7.07 (2)" in page and "77.7" in page  # 50 and 60
    assert "A pre-trained model, and two that start from it." in page
    assert "not finished" not in page and "data:image/svg+xml" in page


def test_a_study_that_was_moved_goes_on(family, ran, tmp_path):
    assert run(family, tmp_path / "work") == 0
    (tmp_path / "work").rename(tmp_path / "elsewhere")
    assert run(family, tmp_path / "elsewhere") == 0
    assert set(rows(tmp_path / "elsewhere")) == {"begin_0", "tuned_0", "begin_1", "tuned_1"}


def test_parts_and_patterns_take_along_what_their_trials_need(family, ran, tmp_path):
    assert run(family, tmp_path / "a", "--trial=2/2") == 0
    assert ran == ["begin_1", "tuned_1"]
    assert not (tmp_path / "a" / "study.png").exists()
    assert "not finished" in (tmp_path / "a" / "study.html").read_text()
    ran.clear()
    assert run(family, tmp_path / "b", "--only=tuned_0") == 0
    assert ran == ["begin_0", "tuned_0"]
    ran.clear()
    assert run(family, tmp_path / "b", "--trial=3/3") == 0  # more machines than families
    assert ran == []


def test_a_trial_says_why_it_cannot_start(family, ran, tmp_path, capsys):
    assert run(f"{family}:1000", tmp_path / "work") == 1
    said = capsys.readouterr()
    assert "tuned_0 (it starts from the trial begin_0, which diverged.)" in said.err
    assert rows(tmp_path / "work")["begin_0"]["diverged"] == "True"
    ran.clear()  # what diverged does so again: it is not tried
    assert run(f"{family}:1000", tmp_path / "work") == 1
    assert ran == []

    (tmp_path / "broken" / "begin_0").mkdir(parents=True)
    (tmp_path / "broken" / "begin_0" / "config.json").write_text('{"format": 2, "seed": 7}')
    assert run(family, tmp_path / "broken") == 1
    err = capsys.readouterr().err
    assert re.search(r"failed: begin_0 \(.*another configuration: .* there and .* here", err)
    assert "tuned_0 (it starts from the trial begin_0, which failed.)" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("'a': of('b'), 'b': of('a')", "trial . starts from itself"),
        ("'a': of('a')", "trial a starts from itself"),
        ("'abc': of(''), 'b': of('abd')", "b starts from 'abd', which is not one .* mean 'abc'"),
    ],
)
def test_invalid_parents_are_refused(tmp_path, capsys, line, message):
    file = tmp_path / "own.py"
    file.write_text(
        "from vit_jax import config\n\n\ndef of(parent):\n    c = config.default()\n"
        "    c.init_from = f'trial:{parent}' if parent else ''\n    return c\n\n\n"
        f"def trials():\n    return {{{line}}}\n"
    )
    assert run(file, tmp_path / "work") == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "work").exists()


def test_a_row_without_its_folder_counts_as_done(family, ran, tmp_path, capsys):
    work = tmp_path / "work"
    assert run(family, work) == 0
    kept = ("study.csv", "curves.csv", "study.png")
    before = {name: (work / name).read_bytes() for name in kept}
    curves = before["curves.csv"].decode().splitlines()
    assert curves[:3] == ["trial,step,eval/accuracy", "begin_0,3,0.25", "begin_0,6,0.5"]
    assert len(curves) == 9
    for name in ("begin_0", "tuned_0"):
        remove(work / name)
    ran.clear()
    assert run(family, work) == 0
    assert ran == ["begin_1", "tuned_1"]  # which return at once
    assert "trial tuned_0: done, by its row in study.csv" in capsys.readouterr().out
    assert {name: (work / name).read_bytes() for name in kept} == before
    assert "4 trials" in (work / "study.html").read_text()
    # a record that came without any folder
    (tmp_path / "alone").mkdir()
    for name in kept[:2]:
        (tmp_path / "alone" / name).write_bytes(before[name])
    ran.clear()
    assert run(family, tmp_path / "alone") == 0
    assert ran == []
    assert {name: (tmp_path / "alone" / name).read_bytes() for name in kept} == before


def test_a_row_of_another_configuration_runs_again(family, ran, tmp_path, capsys):
    work = tmp_path / "work"
    assert run(family, work) == 0
    for name in ("begin_0", "tuned_0", "begin_1", "tuned_1"):
        remove(work / name)
    old = rows(work)
    capsys.readouterr()
    ran.clear()
    assert run(f"{family}:0.02", work, "--only=*_0") == 0
    said = capsys.readouterr().out
    there, here = old["begin_0"]["config"], rows(work)["begin_0"]["config"]
    assert there != here and ran == ["begin_0", "tuned_0"]
    assert "trial begin_0: runs again, since its row in study.csv has another" in said
    assert f"({there} there, {here} here)" in said and "2 of 4 trials" in said
    assert rows(work)["begin_1"] == old["begin_1"]  # until its own comes
    assert len((work / "curves.csv").read_text().splitlines()) == 9


def test_weights_that_are_needed_are_made_again(family, ran, tmp_path, capsys):
    work = tmp_path / "work"
    assert run(family, work, "--only=begin_0") == 0
    remove(work / "begin_0")
    ran.clear()
    assert run(family, work, "--only=tuned_0") == 0
    assert ran == ["begin_0", "tuned_0"]
    assert "begin_0: runs again, since others need its weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (
            "study.csv",
            lambda text: text + text.splitlines()[1] + "\n",
            "line 4: a second row of its trial",
        ),
        ("study.csv", lambda text: text[:-5], "instead of a number|no row of a trial"),
        ("study.csv", lambda text: "<<<<<<< HEAD\n" + text, "line 2: no row of a trial"),
        ("study.csv", lambda text: text.replace("0.5", "many"), "'many' instead of a number"),
        ("curves.csv", lambda text: text[:-8], "curves.csv, line 5: no row of a trial"),
        ("curves.csv", lambda text: text.replace(",3,", ",3.5,"), "curves.csv: step of the trial"),
    ],
)
def test_a_damaged_record_is_refused(family, ran, tmp_path, capsys, file, damage, message):
    work = tmp_path / "work"
    assert run(family, work, "--only=*_0") == 0
    remove(work / "begin_0")
    remove(work / "tuned_0")
    (work / file).write_text(damage((work / file).read_text()))
    before = (work / file).read_bytes()
    assert run(family, work) == 1
    assert re.search(message, capsys.readouterr().err)
    assert (work / file).read_bytes() == before


def one(**settings):
    c = configuration.load("configs/quickstart.py", {"pretrain": "None"})
    for key, value in settings.items():
        configuration.override(c, key.replace("__", "."), value)
    return c


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"schedule__learning_rate": "0.5"}, False),
        ({"seed": "1"}, False),
        ({"total_steps": "7"}, False),
        ({"init_from": "elsewhere"}, False),
        ({"evaluators__knn__data": "digits"}, False),
        ({"data__dataset": "folder:/a/flowers"}, False),
        ({"name": "other"}, True),
        ({"log_every_steps": "7"}, True),
        ({"mesh__fsdp": "2"}, True),
        ({"data__data_dir": "/data"}, True),
    ],
)
def test_the_hash_is_of_what_decides_the_result(settings, same):
    assert (record.digest("a", {"a": one()}) == record.digest("a", {"a": one(**settings)})) == same


def test_the_hash_knows_the_data_by_its_name_and_the_parent_by_its_hash():
    def of(dataset):
        return record.digest("a", {"a": one(data__dataset=dataset)})

    assert of("folder:/data/pets") == of("folder:/mnt/x/pets/") != of("folder:/data/cats")
    assert of("hf:org/pets") != of("hf:other/pets")
    child = one(init_from="trial:p")
    families = [{"p": one(seed=seed), "c": child} for seed in ("0", "1")]
    first, second = (record.digest("c", each) for each in families)
    assert first != second
    assert record.groups({"c_0": one(), "c_1": one(seed="1"), "d": one(total_steps="9")}) == {
        "c": ["c_0", "c_1"], "d": ["d"],
    }  # fmt: skip
    assert re.fullmatch("[0-9a-f]{12}", first)
    # a committed record counts in later versions: what is in the hash must not change by itself
    assert record.digest("a", {"a": configuration.default()}) == "44136fa355b3"


def test_machines_that_write_at_once_lose_no_row(tmp_path):
    """A lock of a file holds between threads as between machines: each opens it."""
    barrier = threading.Barrier(2)

    def write(letter):
        barrier.wait()
        for number in range(20):
            with record.locked(tmp_path):
                row = {"trial": f"{letter}{number}", "config": "0", "seed": 0}
                record.write("s", tmp_path, [row])

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(write, "ab"))
    assert len(record.read(tmp_path)) == 40


def test_columns_are_the_same_wherever_the_data_lie():
    config = configuration.default()
    metric, best = (
        "fewshot/folder:{}pets[train]/5_shots",
        "best/fewshot/folder:{}pets[train]/5_shots",
    )
    found = {
        place: record.Outcome(
            config, {"step": 3, metric.format(place): 0.5, best.format(place): 0.7}, []
        )
        for place in ("/data/", "/mnt/a b/", "")
    }
    rows = record.rows(dict.fromkeys(found, config), found)
    assert all(row[metric.format("")] == 0.5 and row[best.format("")] == 0.7 for row in rows)
    assert not [key for key in rows[0] if "/data" in key]
    two = {metric.format("/a/"): 0.1, metric.format("/b/"): 0.2}  # of one name: both are kept
    [row] = record.rows({"x": config}, {"x": record.Outcome(config, two, [])})
    assert {key: row[key] for key in two} == two


def test_the_best_of_several_evaluations_is_kept():
    for key in ("eval/accuracy", "eval/mAP"):
        records = [{"step": s, key: a} for s, a in ((1, 0.2), (2, 0.9), (3, 0.4))]
        found = study.with_best(record.Outcome(None, dict(records[-1]), records))
        assert found.metrics[f"best/{key}"] == 0.9 and found.metrics[key] == 0.4
    row = {"trial": "a", "diverged": "False", "step": "3", "best/eval/accuracy": "0.9"}
    assert record.outcome_of(None, row).metrics == {"step": 3, "best/eval/accuracy": 0.9}


def test_kill_9_loses_no_more_than_the_steps_since_a_checkpoint(tmp_path, capsys):
    """Two trials, the second from the first; killed in the second and started again."""
    file, work = tmp_path / "family.py", tmp_path / "work"
    file.write_text(FAMILY)
    # the second trial is the longer one
    file.write_text(
        FAMILY.replace("        found |=", "        tuned.total_steps = 200\n        found |=")
    )
    tiny = [word for word in TINY if "total_steps" not in word and "checkpoint" not in word]
    tiny += ["--config.checkpoint_every_steps=20", "--config.eval_batch_size=360"]
    words = ["study", f"--config={file}", f"--workdir={work}", "--only=*_0", *tiny]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "vit_jax", *words], env=environment, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 300
    while not (work / "tuned_0" / "saved.json").exists() and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(rows(work)) == ["begin_0"]  # what has ended is on the record
    saved_step = json.loads((work / "tuned_0" / "saved.json").read_text())["step"]
    logged = read_metrics(work / "tuned_0" / "metrics.jsonl")[-1]["step"]
    assert 0 < saved_step <= logged < 200
    assert main(words) == 0
    said = capsys.readouterr().out
    assert saved_step <= int(re.search(r"resumed from step (\d+)", said)[1])
    assert "begin_0 has finished at step 6; nothing to do." in said
    assert list(rows(work)) == ["begin_0", "tuned_0"]
    steps = [each["step"] for each in read_metrics(work / "tuned_0" / "metrics.jsonl")]
    assert steps == sorted(steps) and steps[-1] == 200


# --dry_run


def listing(source, *more, capsys):
    code = main(["study", f"--config={source}", "--dry_run", *more])
    return code, capsys.readouterr().out.splitlines()


@pytest.fixture
def timed(monkeypatch):
    def speed(model):
        return estimate.Speed(1e12, 1, estimate.timed_model(model))

    monkeypatch.setattr(estimate, "speed_of", speed)


#: The largest studies take too long for a test.
PARTS = {"scaling": "B-32-7ep*", "data_size": "*-B-32*", "adam_sgd": "R50x1*", "shape": "depth*"}


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "configs" / "studies").glob("*.py"))
)
def test_a_dry_run_of_the_papers_size_needs_no_data(name, timed, capsys):
    only = PARTS.get(name, "*")
    code, lines = listing(f"configs/studies/{name}.py", f"--only={only}", capsys=capsys)
    trials = study.chosen(study.load(f"configs/studies/{name}.py", {}), only)
    assert code == 0 and len(lines) == len(trials) + 5
    assert not any("–" in line for line in lines)
    assert lines[len(trials) + 1].startswith(f"total: {len(trials)} trials, ")


@pytest.mark.parametrize("variant", ["B/32", "R50x1", "debug-hybrid", "debug-axial"])
def test_parameters_of_any_number_of_classes(variant):
    for classes in (1, 7):
        model = models.get_config(variant, num_classes=classes)
        assert estimate.parameters(model) == cost.num_params(model)


def test_the_figures_of_a_dry_run(timed, capsys):
    source = "configs/studies/scaling.py"
    _, lines = listing(source, "--only=B-16-7ep_0", capsys=capsys)
    name, params, steps, exaflops, hours = lines[1].split()
    assert (name, params, steps) == ("B-16-7ep_0", "100,455,027", f"{round(7 * 303e6 / 4096):,}")
    assert float(exaflops) == pytest.approx(224, rel=0.01)  # Table 6
    assert float(hours) == pytest.approx(float(exaflops) * 1e18 / 1e12 / 3600, rel=0.01)
    # fine-tuning: 20,000 steps of 512 images of 384 pixels, 55.48 GMACs each (section L)
    _, lines = listing(source, "--only=B-16-7ep.imagenet_0", capsys=capsys)
    tuned = lines[2].split()
    assert tuned[:3] == ["B-16-7ep.imagenet_0", "86,859,496", "20,000"]
    assert float(tuned[3]) == pytest.approx(6 * 55.48e9 * 512 * 20_000 / 1e18, rel=0.01)
    assert "2 trials" in lines[3]


def test_a_dry_run_says_what_it_cannot_know(timed, capsys, tmp_path):
    source = "configs/studies/polyak.py:folder:/nowhere/pets"
    code, lines = listing(source, capsys=capsys)
    assert code == 0 and all(line.split()[1:] == ["–"] * 4 for line in lines[1:10])
    assert lines[-1].startswith("unknown for 9 trials without their data: folder:/nowhere/pets")
    assert "total: 9 trials, 0 exaFLOPs" not in lines[10] and "without 9" in lines[10]


def test_a_dry_run_knows_images_without_classes_where_no_label_is_read(tmp_path):
    for i in range(10):
        save(tmp_path / f"{i}.png")
    config = configuration.load(f"configs/masked_patch.py:B/16,folder:{tmp_path},10")
    assert estimate.data_of(config, {}) == estimate.Known(num_classes=1, examples=9)


def test_a_dry_run_says_what_is_done(family, ran, timed, tmp_path, capsys):
    work = tmp_path / "work"
    assert run(family, work, "--only=*_0") == 0
    before = sorted(work.rglob("*"))
    capsys.readouterr()
    code, lines = listing(family, f"--workdir={work}", capsys=capsys)
    assert code == 0 and [line.endswith("done") for line in lines[1:5]] == [
        True,
        True,
        False,
        False,
    ]
    assert lines[5].startswith("total: 4 trials") and lines[6].startswith("left: 2 trials")
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("variant", ["H/14", "R50+L/16", "R200x3", "Axial-B/32"])
def test_the_timed_model_is_a_part_of_the_largest(variant):
    whole = models.get_config(variant, num_classes=1000)
    cut = estimate.timed_model(whole)
    assert cost.num_params(cut) < 1.2e8 and cut.image_size == whole.image_size
    assert cost.forward_macs(cut) < cost.forward_macs(whole) / 2


def test_a_cpu_times_a_model_of_seconds():
    found = [models.get_config(name, image_size=224) for name in ("B/32", "L/16", "R200x3", "H/14")]
    assert estimate.to_time(found).variant == "L/16"
    assert estimate.to_time(found[:1]).variant == "B/32" and estimate.to_time([]) is None
    assert estimate.to_time(found[2:3]).variant == "R200x3"  # there is none but this


def test_speed_is_measured(monkeypatch):
    monkeypatch.setattr(estimate, "MICRO_BATCHES", (1, 2))
    speed = estimate.speed_of(models.get_config("debug", image_size=32, num_classes=10))
    assert 1e6 < speed.flops < 1e15 and speed.micro_batch in (1, 2)
    assert math.isfinite(speed.flops)


def test_a_trial_that_cannot_be_is_named_in_a_dry_run(family, timed, capsys):
    more = ["--config.model.hidden_size=7"]
    assert main(["study", f"--config={family}", "--dry_run", *more]) == 1
    assert "The trial begin_0: " in capsys.readouterr().err
    with pytest.raises(UserError, match="trial begin_0"):
        estimate.listing({"begin_0": one(model__hidden_size="7")}, {"begin_0": one(
            model__hidden_size="7")}, {})  # fmt: skip
