"""Whose a working directory is, and what a refused attempt leaves of it: every byte."""

import json
import shutil

import numpy as np
import pytest
from often import often
from tiny_runs import SETTINGS, contents, three_classes, train

import vit_jax
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.interop import unfinished as unfinished_runs
from vit_jax.models import saved
from vit_jax.runtime.logbook import read_metrics
from vit_jax.training import events


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert train(workdir) == 0
    return workdir


@pytest.fixture
def unfinished(finished, tmp_path):
    """As a run that was stopped at its fourth step."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "model")
    shutil.rmtree(workdir / "checkpoints" / "000000006")
    records = (workdir / "metrics.jsonl").read_text().splitlines()
    (workdir / "metrics.jsonl").write_text("\n".join(records[:4]) + "\n")
    return workdir


@pytest.fixture
def folder(tmp_path):
    return three_classes(tmp_path / "data")


def refused(workdir, capsys, *more):
    """The one line of a refusal, after which everything is as it was."""
    before = contents(workdir)
    capsys.readouterr()
    assert train(workdir, *more) == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1, error
    assert contents(workdir) == before
    return error


def test_an_unfinished_run_ends_as_the_whole_one(finished, unfinished):
    assert train(unfinished) == 0
    name = "model/model.safetensors"
    assert (unfinished / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize("name", ["lr[0.1]", "a*", "a?b", "a\\b"])
def test_no_run_begins_where_orbax_would_lose_its_checkpoints(tmp_path, capsys, name):
    """It takes the path for a pattern: they were written, and could never be read."""
    for place in (tmp_path / name, tmp_path / name / "run"):
        assert train(place) == 1
        assert "in its path, and no checkpoint there could be read" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_every_other_name_will_do(tmp_path):
    workdir = tmp_path / "ü #1 50%41 lr=0.1;{a}]:&|'\"+$HOME"
    assert train(workdir, "--config.total_steps=2", "--config.schedule.warmup_steps=1") == 0
    assert unfinished_runs.verify(workdir / "checkpoints" / "000000002") > 10


@pytest.mark.parametrize("what", ["moved", "gone", "other record"])
def test_a_run_that_lost_its_checkpoints_never_starts_again_by_itself(unfinished, capsys, what):
    if what == "moved":
        (unfinished / "checkpoints").rename(unfinished / "damaged")
        (unfinished / "checkpoints").mkdir()
    else:
        shutil.rmtree(unfinished / "checkpoints")
    step = "step 6"
    if what == "other record":
        (unfinished / "saved.json").write_text("[6]")
        step = "a damaged step"
    for _ in range(2):
        assert f"has lost its checkpoints: it saved {step}" in refused(unfinished, capsys)


def test_other_data_is_refused_and_the_first_command_resumes(unfinished, capsys):
    """A refused attempt once overwrote config.json."""
    error = refused(unfinished, capsys, "--config.data.dataset=digits[test]")
    more = ("--config.data.train_split=train[:90%]", "--config.data.eval_split=test")
    error = refused(unfinished, capsys, *more)
    assert "data.eval_split is '' there and 'test' here (and 1 more)" in error
    error = refused(unfinished, capsys, "--config.data.dataset=folder:x", "--config.batch_size=4")
    assert "data.dataset is 'digits' there and 'folder:x' here (and 1 more)" in error
    assert train(unfinished) == 0


def test_evaluation_data_may_change_when_that_is_allowed(unfinished, capsys):
    more = ("--config.data.train_split=train", "--config.data.eval_split=test[:50]")
    assert train(unfinished, *more, "--allow_config_change") == 0
    assert (
        "the data differ from those that this run began with: eval_data" in capsys.readouterr().out
    )
    assert (
        json.loads((unfinished / "evaluation.json").read_text())["classification"]["num_examples"]
        == 50
    )


def test_a_running_job_keeps_its_config(unfinished, capsys):
    """The lock comes before anything is written."""
    from vit_jax.training.checkpoint import Checkpoints

    held = Checkpoints(unfinished / "checkpoints")
    try:
        error = refused(unfinished, capsys, "--config.seed=3", "--allow_config_change")
    finally:
        held.close()
    assert "in use by" in error


def test_the_location_of_images_may_change(folder, tmp_path, capsys, monkeypatch):
    """A trailing slash, a relative path, another place."""
    workdir = tmp_path / "run"
    some = ("--config.total_steps=3",)
    assert train(workdir, f"--config.data.dataset=folder:{folder}", *some) == 0
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "elsewhere")
    for place in (f"{folder}/", "data", "./data", str(tmp_path / "elsewhere")):
        capsys.readouterr()
        assert train(workdir, f"--config.data.dataset=folder:{place}", *some) == 0, place
        assert "nothing to do" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "elsewhere" / "train" / "c2")
    shutil.rmtree(tmp_path / "elsewhere" / "test" / "c2")
    error = refused(workdir, capsys, "--config.data.dataset=folder:elsewhere", *some)
    assert "other data would have no effect" in error


def test_a_damaged_image_can_be_left_out_as_the_message_says(folder, tmp_path, capsys):
    workdir = tmp_path / "run"
    data = f"--config.data.dataset=folder:{folder}"
    assert train(workdir, data, "--config.total_steps=4") == 0
    bad = folder / "train" / "c0" / "train0.png"
    bad.write_bytes(b"no image")
    (tmp_path / "bad.txt").write_text("train/c0/train0.png\n")
    more = (data, f"--config.data.exclude={tmp_path / 'bad.txt'}")
    assert train(workdir, *more, "--allow_config_change") == 0  # 4 steps become 6
    out = capsys.readouterr().out
    assert "resumed from step 4" in out and "1 of 1 names found and removed" in out


def test_a_finished_run_goes_on_when_more_steps_are_asked_for(finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    assert "total_steps is 6 there and 9 here" in refused(workdir, capsys, "--config.total_steps=9")
    _, before = saved.load(workdir / "model")
    assert train(workdir, "--config.total_steps=9", "--allow_config_change") == 0
    assert "resumed from step 6" in capsys.readouterr().out
    _, after = saved.load(workdir / "model")
    assert any((before[path] != after[path]).any() for path in before)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 9 and records[-1]["final"] is True
    assert [record["step"] for record in records] == list(range(1, 10))


def test_a_finished_run_says_why_it_does_not_go_on(finished, tmp_path, capsys):
    """It once said that there is nothing to do, even when the model changed."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    error = refused(workdir, capsys, "--config.seed=5", "--allow_config_change")
    assert "has finished at step 6" in error and "seed" in error
    wider = ("--config.total_steps=9", "--config.model.mlp_dim=64", "--allow_config_change")
    assert "another model" in refused(workdir, capsys, *wider)


def logits_of(model):
    images = np.linspace(-1, 1, 2 * 20 * 20 * 3, dtype=np.float32).reshape(2, 20, 20, 3)
    return np.asarray(model(images))


@pytest.mark.parametrize(
    "settings",
    often(["--config.polyak_decay=0.5"], weekly=[[]]),
    ids=["averaged", "plain"],
)
def test_an_unfinished_run_is_a_model(tmp_path, settings, capsys):
    """Its newest good checkpoint, with the weights that an evaluation sees, and its step."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(whole, *settings) == 0
    shutil.copytree(whole, run)
    shutil.rmtree(run / "model")
    want = logits_of(vit_jax.load_model(whole))
    assert np.ptp(want) > 0
    capsys.readouterr()
    before = contents(run)
    assert np.array_equal(logits_of(vit_jax.load_model(run)), want)
    said = capsys.readouterr().out
    assert "step 6 of 6" in said and ("averaged" in said) == bool(settings)
    for name in ("checkpoints", "checkpoints/000000006", "checkpoints/6"):
        assert np.array_equal(logits_of(vit_jax.load_model(run / name)), want), name
    earlier = logits_of(vit_jax.load_model(run / "checkpoints" / "4"))
    assert "step 4 of 6" in capsys.readouterr().out
    assert not np.array_equal(earlier, want)
    file = run / "checkpoints" / "000000006" / "meta" / "metadata"
    file.write_text(file.read_text().replace('"total_steps": 6', '"total_steps": 7', 1))
    before = contents(run)
    assert np.array_equal(logits_of(vit_jax.load_model(run)), earlier)
    assert "warning" in capsys.readouterr().out
    assert contents(run) == before


def test_a_finished_run_that_goes_on_is_its_newest_checkpoint(finished, tmp_path, capsys):
    """`model/` is of step 6 until the run has finished again."""
    run, longer = tmp_path / "run", tmp_path / "longer"
    for workdir in (run, longer):
        shutil.copytree(finished, workdir)
    raised = ["--config.total_steps=8", "--allow_config_change", "--config.keep_checkpoints=9"]
    assert train(longer, *raised, "--config.checkpoint_every_steps=1") == 0
    shutil.copytree(longer / "checkpoints" / "000000007", run / "checkpoints" / "000000007")
    capsys.readouterr()
    logits = logits_of(vit_jax.load_model(run))
    assert "step 7 of 8" in capsys.readouterr().out
    want = logits_of(vit_jax.load_model(longer / "checkpoints" / "7"))
    assert np.array_equal(logits, want)
    capsys.readouterr()
    assert not np.array_equal(logits_of(vit_jax.load_model(longer)), want)
    assert "unfinished" not in capsys.readouterr().out


def test_every_command_reads_an_unfinished_run(unfinished, tmp_path, capsys, folder):
    image = next(folder.rglob("*.png"))
    given = f"--checkpoint={unfinished}"
    for command in (
        ["evaluate", given, "--data=digits", "--suite=classification", f"--out={tmp_path / 'e'}"],
        ["predict", given, str(image)],
        ["features", given, "--data=digits", f"--out={tmp_path / 'f.npy'}"],
        ["inspect", given, f"--images={image.parent}", f"--out={tmp_path / 'i'}"],
        ["export", given, "--format=stablehlo", f"--out={tmp_path / 's'}"],
        ["convert", str(unfinished), str(tmp_path / "m.npz"), "--to=npz"],
    ):
        capsys.readouterr()
        assert main(command) == 0, (command, capsys.readouterr())
        assert "step 4 of 6" in capsys.readouterr().out, command


def test_nothing_is_written_among_the_checkpoints(unfinished, capsys):
    before = contents(unfinished)
    for name in ("checkpoints", "checkpoints/4", "checkpoints/000000004"):
        assert main(["evaluate", f"--checkpoint={unfinished / name}", "--data=digits"]) == 2
        assert "--out=DIR is required" in capsys.readouterr().err
    assert contents(unfinished) == before


def test_a_run_without_a_checkpoint_says_so(tmp_path, unfinished):
    shutil.rmtree(unfinished / "checkpoints")
    with pytest.raises(UserError, match="has not saved a checkpoint yet"):
        vit_jax.load_model(unfinished)
    (tmp_path / "two" / "pretrain").mkdir(parents=True)
    with pytest.raises(UserError, match=r"two/pretrain"):
        vit_jax.load_model(tmp_path / "two")


def test_a_run_that_was_stopped_before_its_first_step_begins_again(finished, tmp_path):
    """The lock is all that it left."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / ".lock").write_text("process 1 on nowhere")
    assert train(run) == 0
    name = "model/model.safetensors"
    assert (run / name).read_bytes() == (finished / name).read_bytes()


def test_fewer_steps_than_are_saved_are_refused(unfinished, capsys):
    error = refused(unfinished, capsys, "--config.total_steps=3", "--allow_config_change")
    assert "step 4, beyond config.total_steps=3" in error


def test_other_data_of_a_finished_run(finished, tmp_path, folder, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    other = f"--config.data.dataset=folder:{folder}"
    error = refused(run, capsys, other, "--allow_config_change")
    assert "finished" in error and "allow_config_change" not in error


@pytest.mark.parametrize(
    "name, text",
    [("config.json", "[]"), ("config.json", "{"), ("saved.json", "{")],
)
def test_files_of_a_run_that_are_something_else(unfinished, name, text, capsys):
    if name == "saved.json":
        shutil.rmtree(unfinished / "checkpoints")
    (unfinished / name).write_text(text)
    assert name in refused(unfinished, capsys)


def test_an_exchanged_record_is_treated_as_damage(finished, tmp_path, capsys):
    """Whatever it holds, the checkpoint before it is used."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "model")
    (run / "checkpoints/000000006/meta/metadata").write_text('{"a": 1}')
    assert train(run) == 0
    out = capsys.readouterr().out
    assert "set aside" in out and "resumed from step 4" in out
    name = "model/model.safetensors"
    assert (run / name).read_bytes() == (finished / name).read_bytes()


def test_a_stage_that_has_begun_does_not_train_the_one_before(tmp_path, capsys):
    stages = [
        setting.replace("--config.", "--config.pretrain.")
        for setting in SETTINGS
        if "pretrain" not in setting and "--config=" not in setting
    ]
    both = [s for s in SETTINGS if "pretrain" not in s]
    run = tmp_path / "run"
    assert main(["train", *both, *stages, f"--workdir={run}"]) == 0
    shutil.rmtree(run / "pretrain")
    capsys.readouterr()
    assert main(["train", *both, *stages, f"--workdir={run}"]) == 0
    assert "nothing to do" in capsys.readouterr().out and not (run / "pretrain").exists()
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "000000006")
    assert main(["train", *both, *stages, f"--workdir={run}"]) == 0
    assert "resumed from step 4" in capsys.readouterr().out and not (run / "pretrain").exists()


@pytest.mark.parametrize("failing", often(6, weekly=[3]))
def test_a_saved_step_without_evaluation_is_evaluated_on_resume(tmp_path, monkeypatch, failing):
    """The order is log, save, evaluate; what was cut off is made up for, once."""
    more = ("--config.eval_every_steps=3", "--config.checkpoint_every_steps=3")
    assert train(tmp_path / "whole", *more) == 0
    whole = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    evaluate = events.evaluate

    def cut_off(shared, evaluators, step, *others):
        if step == failing:
            raise RuntimeError("cut off")
        evaluate(shared, evaluators, step, *others)

    monkeypatch.setattr(events, "evaluate", cut_off)
    run = tmp_path / "run"
    assert train(run, *more) == 1
    there = read_metrics(run / "metrics.jsonl")
    assert there[-1]["step"] == failing and "train/loss" in there[-1]
    assert "eval/loss" not in there[-1]
    monkeypatch.setattr(events, "evaluate", evaluate)
    assert train(run, *more) == 0
    found = read_metrics(run / "metrics.jsonl")
    keys = ("step", "train/loss", "eval/loss", "final")
    assert [[r.get(key) for key in keys] for r in found] == [
        [r.get(key) for key in keys] for r in whole
    ]
    assert [r["step"] for r in found if "eval/loss" in r] == [3, 6]
