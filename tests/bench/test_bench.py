"""`vit-jax bench`: its rows, its proof of equal logits, and peers that cannot run."""

import json
import subprocess
import sys

import numpy as np
import pytest

from vit_jax import models
from vit_jax.bench import jobs, measure
from vit_jax.cli import main
from vit_jax.errors import UserError

KEYS = {
    "contender", "task", "variant", "image_size", "batch", "dtype", "images_per_second",
    "peak_memory_bytes", "compile_seconds", "mfu",
}  # fmt: skip
SMALL = ["--variant=debug", "--image_size=32", "--batch=4", "--rounds=2", "--seconds=0.05"]

#: A peer of one's own: the same model, or one that is not the same.
PEER = """
from vit_jax.bench import jobs

def same(spec):
    return jobs.build(spec)

def other(spec):
    job = jobs.build(spec)
    return job._replace(logits=lambda images: job.logits(images) + 1.0)

def broken(spec):
    raise RuntimeError("no such hardware")
"""


@pytest.fixture
def own_peer(tmp_path, monkeypatch):
    (tmp_path / "own_peer.py").write_text(PEER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield
    sys.modules.pop("own_peer", None)


def test_json_has_its_documented_fields(tmp_path, own_peer, capsys):
    file, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = [
        "bench", *SMALL, "--dtypes=float32", "--tasks=latency",
        "--peers=own_peer:same,own_peer:broken", f"--json={file}", f"--plot={plot}",
    ]  # fmt: skip
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "skipped: own_peer:broken, latency: RuntimeError: no such hardware" in said
    assert "TFLOP/s in float32 products, qkv" in said and "of our time" in said
    rows = json.loads(file.read_text())
    assert len(rows) == 2 and all(set(row) >= KEYS for row in rows)
    for row in rows:
        assert row["images_per_second"] > 0 and row["peak_memory_bytes"] > 1 << 20
        assert row["images_per_second"] == pytest.approx(row["batch"] / (row["milliseconds"] / 1e3))
        assert row["mfu"] > 0 and len(row["rounds"]) == 2
        assert row["milliseconds_p50"] <= row["milliseconds_p99"]
    assert {row["batch"] for row in rows} == {1}
    assert plot.stat().st_size > 1000


def test_a_peer_with_other_logits_is_refused(own_peer, known_machine, capsys):
    arguments = ["bench", *SMALL, "--dtypes=float32", "--tasks=inference"]
    assert main([*arguments, "--peers=own_peer:other"]) == 1
    assert "own_peer:other gives other logits" in capsys.readouterr().err


def test_every_other_task(tmp_path, known_machine):
    file = tmp_path / "bench.json"
    arguments = ["bench", *SMALL, "--tasks=train,input,checkpoint,attention", "--peers="]
    assert main([*arguments, f"--json={file}"]) == 0
    rows = json.loads(file.read_text())
    assert [(row["task"], row["contender"]) for row in rows] == [
        ("train", "vit_jax"), ("input", "vit_jax"), ("input", "decode"),
        ("checkpoint", "vit_jax"), ("attention", "vit_jax"),
    ]  # fmt: skip
    assert all(row["images_per_second"] > 0 for row in rows if row["task"] != "checkpoint")
    assert rows[3]["images_per_second"] is None and rows[3]["milliseconds"] > 0


def test_a_contender_that_was_killed_is_an_error():
    spec = jobs.Spec("train", "debug", 32, 4, "float32")
    contender = object.__new__(measure.Contender)
    contender.name, contender.spec = "timm", spec
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    contender.process = subprocess.Popen(["true"], text=True, **pipes)
    contender.process.wait()
    with pytest.raises(UserError, match="timm, train: its process ended"):
        contender.ask(warm=True)


def test_unknown_names_are_refused(tmp_path, capsys):
    assert main(["bench", "--tasks=trian"]) == 1
    assert "Did you mean 'train'" in capsys.readouterr().err
    assert main(["bench", "--peers=tim"]) == 1
    assert "no peer 'tim'" in capsys.readouterr().err
    assert main(["bench", "--dtypes=int8"]) == 2
    assert main(["bench", "--tasks=train", "--data=digits"]) == 2
    assert "--data is for --tasks=input" in capsys.readouterr().err
    assert main(["bench", "--tasks="]) == 2
    assert "--tasks= is empty" in capsys.readouterr().err
    assert main(["bench", "--plot=bars.foo"]) == 2  # known before it takes minutes
    assert main(["bench", "--json=tests"]) == 2
    assert "tests is a directory" in capsys.readouterr().err
    for flag in ("json", "plot"):
        (tmp_path / "bench.png").write_text("kept")
        assert main(["bench", f"--{flag}={tmp_path / 'bench.png'}"]) == 1
        assert "bench.png exists and would be overwritten" in capsys.readouterr().err
    assert main(["bench", "--variant=B16", "--peers=", "--tasks=inference"]) == 1
    assert "Did you mean 'B/16'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word, part",
    [("--model=atention=xla", "no setting model.atention"), ("--data=folder:no", "no folder")],
)
def test_mistakes_are_found_before_the_machine_is_measured(capsys, monkeypatch, word, part):
    monkeypatch.delattr(measure, "measure_machine")
    task = "input" if "data" in word else "inference"
    assert main(["bench", "--variant=debug", f"--tasks={task}", "--peers=", word]) == 1
    assert part in capsys.readouterr().err


def test_flops_and_shapes_by_hand():
    config = models.get_config("B/16", image_size=224)
    shapes = jobs.gemm_shapes(config, 8)
    assert shapes["mlp 1"] == (8 * 197, 768, 3072) and shapes["qkv"] == (8 * 197, 768, 3 * 768)
    spec = jobs.Spec("train", "B/16", 224, 8, "float32")
    assert measure.ours_flops(spec) == pytest.approx(6 * 17.56e9 * 8, rel=0.01)
    assert jobs.product_rate(64, 64, 64, "float32", rounds=1) > 1e6


def test_logits_of_a_job_are_the_models():
    spec = jobs.Spec("inference", "debug", 32, 2, "float32", num_classes=5)
    job = jobs.build(spec)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    config, params = jobs.model_of(spec)
    wanted = models.as_functions(config)[1](params, images)
    np.testing.assert_allclose(job.logits(images), wanted, atol=1e-6)
    options = (("attention", "xla"), ("remat", "products"), ("scan", "True"))
    changed, _ = jobs.model_of(spec._replace(options=options))
    assert (changed.attention, changed.remat, changed.scan) == ("xla", "products", True)
    with pytest.raises(UserError, match=r"no setting model\.atention.*attention"):
        jobs.model_of(spec._replace(options=(("atention", "xla"),)))
    with pytest.raises(UserError, match="no attention"):
        jobs.build(jobs.Spec("attention", "R50x1", 32, 2, "float32"))
