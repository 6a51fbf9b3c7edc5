"""The record survives kills and restarts, and each of its views says the same."""

from __future__ import annotations

import io
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.runtime import event_files
from vit_jax.runtime.logbook import Logbook, duration_text, read_metrics, summary

TRAIN = {"train/loss": 0.41234, "train/learning_rate": 3e-4, "train/images_per_second": 1234.4}


def strict(line: str) -> dict:
    """Parses JSON as other languages do: NaN and Infinity are errors."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(line, parse_constant=refuse)


def lines(workdir) -> list[dict]:
    text = (workdir / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [strict(line) for line in text.splitlines()]


def write_steps(workdir, steps, *, total_steps=20, start_step=0, final=False):
    with Logbook(workdir, total_steps=total_steps, start_step=start_step) as book:
        for step in steps:
            book.write(step, {"train/loss": 1 / step}, final=final and step == steps[-1])


class Terminal(io.StringIO):
    def isatty(self):
        return True


# --- metrics.jsonl ---


def test_every_line_is_one_record_and_the_last_one_is_final(tmp_path):
    write_steps(tmp_path, [5, 10], final=True)
    first, last = lines(tmp_path)
    assert (first["step"], first["train/loss"]) == (5, 0.2)
    assert first["seconds"] >= 0
    assert "final" not in first
    assert last["step"] == 10 and last["final"] is True


def test_any_kind_of_scalar_becomes_a_plain_number(tmp_path):
    import jax.numpy as jnp

    values = {
        "jax": jnp.float32(0.1),
        "numpy": np.float32(0.1),
        "half": jnp.bfloat16(0.5),
        "double": np.float64(1 / 3),
        "one": np.array([2.5]),
        "int": np.int64(7),
        "count": 3,
    }
    with Logbook(tmp_path, total_steps=1) as book:
        book.write(1, values)
    (record,) = lines(tmp_path)
    assert record["jax"] == record["numpy"] == 0.1  # and not 0.10000000149011612
    assert (record["half"], record["double"], record["one"]) == (0.5, 1 / 3, 2.5)
    assert isinstance(record["int"], int) and isinstance(record["count"], int)


def test_an_array_is_not_a_metric(tmp_path):
    with Logbook(tmp_path, total_steps=1) as book, pytest.raises(ValueError, match=r"\(2,\)"):
        book.write(1, {"x": np.zeros(2)})


def test_values_that_are_not_finite_are_null_and_read_as_nan(tmp_path):
    with Logbook(tmp_path, total_steps=3) as book:
        book.write(1, {"a": math.nan, "b": np.float32(math.inf), "c": 1.0})
    assert {k: lines(tmp_path)[0][k] for k in "abc"} == {"a": None, "b": None, "c": 1.0}
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(record["a"]) and math.isnan(record["b"]) and record["c"] == 1.0


def test_a_killed_run_has_all_its_lines(tmp_path):
    program = (
        "import sys, time\n"
        "from vit_jax.runtime.logbook import Logbook\n"
        "book = Logbook(sys.argv[1], total_steps=9)\n"
        "for step in range(1, 6): book.write(step, {'x': step})\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        while "written" not in process.stdout.readline():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    assert [record["x"] for record in lines(tmp_path)] == [1, 2, 3, 4, 5]


# --- resume ---


def test_resume_drops_what_came_after_the_checkpoint(tmp_path):
    write_steps(tmp_path, [5, 10, 12, 15])
    write_steps(tmp_path, [12, 15, 20], start_step=10, final=True)
    assert [record["step"] for record in lines(tmp_path)] == [5, 10, 12, 15, 20]


def test_a_run_that_starts_over_drops_everything(tmp_path):
    write_steps(tmp_path, [5, 10])
    write_steps(tmp_path, [3])
    assert [record["step"] for record in lines(tmp_path)] == [3]


@pytest.mark.parametrize("torn", ['{"step": 12, "train/lo', '{"step": 12}', "\0\0\0", "\xff"])
def test_a_torn_last_line_is_left_out_and_repaired(tmp_path, torn):
    write_steps(tmp_path, [5, 10])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + torn.encode("latin-1"))
    assert [record["step"] for record in read_metrics(path)][:2] == [5, 10]
    write_steps(tmp_path, [15], start_step=10)
    assert [record["step"] for record in lines(tmp_path)] == [5, 10, 15]


def test_a_complete_line_without_its_newline_is_kept(tmp_path):
    write_steps(tmp_path, [5, 10])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    write_steps(tmp_path, [15], start_step=10)
    assert [record["step"] for record in lines(tmp_path)] == [5, 10, 15]


@pytest.mark.parametrize("step", ["1O", "1e999", '10, "train/other": "low"'])
def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path, step):
    write_steps(tmp_path, [5, 10, 15])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 10', f'"step": {step}'))
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2"):
        read_metrics(path)
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "missing.jsonl")


def test_a_finished_run_that_goes_on_is_not_final_any_more(tmp_path):
    write_steps(tmp_path, [10, 20], total_steps=20, final=True)
    write_steps(tmp_path, [30, 40], total_steps=40, start_step=20, final=True)
    assert [(r["step"], r.get("final")) for r in lines(tmp_path)] == [
        (10, None),
        (20, None),
        (30, None),
        (40, True),
    ]


def test_a_finished_run_started_again_has_one_final_line(tmp_path):
    write_steps(tmp_path, [10, 20], final=True)
    before = (tmp_path / "metrics.jsonl").read_text()
    write_steps(tmp_path, [], start_step=20)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    write_steps(tmp_path, [20], start_step=20, final=True)
    assert [(r["step"], r.get("final")) for r in lines(tmp_path)] == [(10, None), (20, True)]


def test_the_file_is_replaced_at_once(tmp_path, monkeypatch):
    write_steps(tmp_path, [5, 10, 15])
    before = (tmp_path / "metrics.jsonl").read_text()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Logbook(tmp_path, total_steps=20, start_step=10)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_elapsed_time_continues_after_a_resume(tmp_path):
    write_steps(tmp_path, [5])
    path = tmp_path / "metrics.jsonl"
    path.write_text(re.sub(r'"seconds": [\d.]+', '"seconds": 100.0', path.read_text()))
    write_steps(tmp_path, [10], start_step=5)
    assert 100 <= lines(tmp_path)[-1]["seconds"] < 110


def test_other_processes_write_nothing(tmp_path, capsys):
    workdir = tmp_path / "run"
    with Logbook(workdir, total_steps=9, enabled=False) as book:
        book.write(1, TRAIN)
        book.say("hello")
        book.advance(2)
    assert not workdir.exists()
    assert capsys.readouterr().out == ""


# --- TensorBoard ---


def scalars(workdir) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(workdir), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_written(tmp_path):
    with Logbook(tmp_path, total_steps=20) as book:
        book.write(10, TRAIN)
        book.write(20, {**TRAIN, "eval/accuracy": 0.5, "eval/loss": math.nan})
    read = scalars(tmp_path)
    assert read["train/loss"] == [(10, pytest.approx(0.41234)), (20, pytest.approx(0.41234))]
    assert read["eval/accuracy"] == [(20, 0.5)]
    assert math.isnan(read["eval/loss"][0][1])
    assert "tensorflow" not in sys.modules


def test_torch_is_not_imported_to_write_events(tmp_path):
    (tmp_path / "torch.py").write_text("print('torch is here'); Tensor = None")
    script = (
        "import sys; from vit_jax.runtime.logbook import Logbook\n"
        f"with Logbook({str(tmp_path / 'run')!r}, total_steps=1) as book: pass\n"
        "import tensorboardX; assert 'torch' not in sys.modules\n"
        "import torch"  # who wants it finds it
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout.count("torch is here")) == (0, 1), done.stderr


def test_tensorboard_has_each_step_once_after_a_resume(tmp_path):
    write_steps(tmp_path, [5, 10, 12, 15])
    write_steps(tmp_path, [12, 20], start_step=10)
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [5, 10, 12, 20]


def test_a_full_disk_is_one_sentence_and_nothing_waits(tmp_path, monkeypatch, capfd):
    """No file may grow: the writer of tensorboardX died in its thread, and the next values hung."""
    monkeypatch.setattr(event_files, "FLUSH_EVERY", 0.0)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    book = Logbook(tmp_path, total_steps=1000)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
        for step in range(1, 40):
            with pytest.raises(UserError, match=f"The log in {tmp_path} cannot be written"):
                book.write(step, TRAIN)
        with pytest.raises(UserError, match="cannot be written"):
            book.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "Traceback" not in capfd.readouterr().err


# --- the terminal ---


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    with Logbook(tmp_path, total_steps=1000) as book:
        book.advance(100)
        book.write(200, {**TRAIN, "eval/accuracy": 0.972, "eval/loss": 0.1, "train/other": 5})
        book.say("saved")
        book.write(1000, TRAIN, final=True)
    out = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"step    200/1000  loss 0\.4123  lr 3\.0e-4  1234 img/s  eval accuracy 97\.2%"
        r"  eval loss 0\.1000  eta 0s",
        out[0],
    )
    assert out[1] == "saved"
    assert re.fullmatch(r"step   1000/1000  loss 0\.4123 .* img/s  done in 0s", out[2])


def test_the_last_step_says_each_number_once(tmp_path, capsys):
    with Logbook(tmp_path, total_steps=10) as book:
        book.advance(8)
        book.write(9, TRAIN)
        book.write(10, TRAIN)
        book.write(10, {"eval/accuracy": 0.5})
        book.write(10, {"eval/loss": 2.0, "train/peak": 1.0}, final=True)
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("eta 0s") and out[1].endswith("img/s")
    assert out[2:] == [
        "step   10/10  eval accuracy 50.0%",
        "step   10/10  eval loss 2.0000  done in 0s",
    ]


def test_without_a_terminal_lines_of_training_are_half_a_minute_apart(
    tmp_path, capsys, monkeypatch
):
    """An hour with a row a second, an evaluation at every tenth minute: 120 lines, not 3,600."""
    now = 0.0
    monkeypatch.setattr("vit_jax.runtime.logbook.time.monotonic", lambda: now)
    with Logbook(tmp_path, total_steps=3600) as book:
        for step in range(1, 3601):
            now = float(step)
            book.write(step, {"train/loss": 1.0})
            if step % 600 == 5:
                book.write(step, {"eval/accuracy": 0.5})
        book.write(3600, {"train/peak_memory_gib": 1.0}, final=True)
    assert len(lines(tmp_path)) == 3600
    out = capsys.readouterr().out.splitlines()
    assert 120 <= len(out) <= 130
    shown = [int(line.split("/")[0].removeprefix("step")) for line in out]
    assert shown[:4] == [1, 5, 31, 61] and shown[-2:] == [3600, 3600]
    assert "loss 1.0000  eval accuracy 50.0%" in out[1]  # of which no line has shown the loss


def test_the_time_left_follows_the_pace(tmp_path, capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr("vit_jax.runtime.logbook.time.monotonic", lambda: now)
    with Logbook(tmp_path, total_steps=100) as book:
        now = 500.0  # the compilation
        book.advance(1)
        now = 520.0
        book.write(11, {"train/loss": 1.0})
    assert "eta 2m58s" in capsys.readouterr().out  # 89 steps of 2 s


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with Logbook(tmp_path, total_steps=50, start_step=10, name="pretrain") as book:
        for step in range(11, 50):
            book.advance(step)
        book.write(40, TRAIN)
        book.say("saved")
        book.write(50, {"eval/accuracy": 0.5}, final=True)
    text = terminal.getvalue()
    assert "pretrain" in text and "50/50" in text
    assert re.search(r"[\r\n]saved\n", text)
    assert re.search(r"[\r\n]pretrain step   50/50  eval accuracy 50.0%  done in \d+s\n", text)
    assert "step   40/50" not in text  # the bar shows it
    assert "loss 0.4123" in text


def test_numbers_are_short():
    assert summary({"train/learning_rate": 0.0, "train/loss": 1.0}) == "loss 1.0000  lr 0"
    assert summary({"train/learning_rate": 12.0}) == "lr 1.2e1"
    assert summary({"train/loss": math.nan}) == "loss nan"
    assert summary({"train/images_per_second": 4.25}) == "4.2 img/s"
    assert summary({"train/input_wait_percent": 62.4}) == "waits for input 62%"
    assert summary({"train/input_wait_percent": 2.4}) == ""
    assert summary({"train/skipped_updates": 0}) == ""
    assert summary({"train/skipped_updates": 2}) == "skipped 2"
    assert summary({"eval/real_accuracy": 0.9}) == "eval real accuracy 90.0%"
    assert summary({"eval/training_loss": 0.5}) == "eval loss as trained 0.5000"
    assert [duration_text(s) for s in (8, 80, 8000, 800_000)] == ["8s", "1m20s", "2h13m", "9d06h"]
    assert duration_text(59.7) == "1m00s"


# --- Weights & Biases ---


@pytest.fixture
def fake_wandb(monkeypatch):
    calls: list[tuple] = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append(("log", step, values)),
        finish=lambda: calls.append(("finish",)),
    )
    module = types.ModuleType("wandb")
    module.init = lambda **options: calls.append(("init", options)) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_wandb_gets_the_same_numbers(tmp_path, fake_wandb):
    (tmp_path / "config.json").write_text('{"batch_size": 8}')
    with Logbook(tmp_path, total_steps=9, wandb=True) as book:
        book.write(3, {"train/loss": np.float32(0.1)})
    (_, options), log, finish = fake_wandb
    assert options["config"] == {"batch_size": 8} and options["name"] == tmp_path.name
    assert log == ("log", 3, {"train/loss": 0.1})
    assert finish == ("finish",)


def test_wandb_goes_on_with_the_same_run_after_a_resume_only(tmp_path, fake_wandb):
    for start_step in (0, 5, 0):
        Logbook(tmp_path, total_steps=9, start_step=start_step, wandb=True).close()
    ids = [call[1]["id"] for call in fake_wandb if call[0] == "init"]
    assert ids[0] == ids[1] != ids[2]


def test_a_missing_wandb_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'vit_jax\[wandb\]'"):
        Logbook(tmp_path / "run", total_steps=9, wandb=True)
    assert not (tmp_path / "run").exists()
