"""Scenario 61: what commands write besides a run, on a disk that is too small for it."""

import re
import subprocess

import pytest
import tiny_runs

from vit_jax.cli import main
from vit_jax.interop import export

IMAGES = "--data=digits[test]"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "run"
    assert tiny_runs.train(place) == 0
    return place


@pytest.fixture
def small(tmp_path):
    """A file system of 20 kB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, named",
    [
        # An array in a file that is mapped into memory: a write beyond the disk is SIGBUS.
        (("features", "--checkpoint=RUN", IMAGES, "--out=SMALL/f.npy"), "f.npy"),
        (("export", "--checkpoint=RUN", "--format=stablehlo", "--out=SMALL/served"), "served"),
        (("export", "--checkpoint=RUN", "--format=onnx", "--out=SMALL/m.onnx"), "m.onnx"),
        (("export", "--checkpoint=RUN", "--format=openvino", "--out=SMALL/m.xml"), "m.xml"),
        (("export", "--checkpoint=RUN", "--layout=triton", "--out=SMALL/all"), "all/run"),
        (("convert", "RUN", "SMALL/m.npz", "--to=npz"), "m.npz"),
        (("convert", "RUN", "SMALL/hf", "--to=huggingface"), "hf"),
        (("convert", "RUN", "SMALL/native", "--to=native"), "native"),
    ],
    ids=lambda value: " ".join(value[:3:2]) if isinstance(value, tuple) else None,
)
def test_61_one_sentence_names_the_output_and_nothing_is_left(run, small, capsys, command, named):
    given = [part.replace("RUN", str(run)).replace("SMALL", str(small)) for part in command]
    if command[0] == "export":
        form = command[2].partition("--format=")[2] or "onnx"
        for package in export.PACKAGES[form]:
            pytest.importorskip(package)
    assert main(given) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"vit-jax: error: {small / named} cannot be written ("), said
    assert "No space left" in said or "OpenVINO could not" in said
    assert [path.name for path in small.iterdir()] == []


@pytest.mark.slow
def test_61_pictures_before_the_disk_is_full_stay(run, small, capsys):
    assert main(["inspect", f"--checkpoint={run}", f"--out={small / 'in'}"]) == 1
    said = capsys.readouterr().err
    assert re.search(rf"error: {small / 'in'}/\w+\.(png|npz) cannot be written \(No space", said)
    written = [path.suffix for path in (small / "in").iterdir()]
    assert ".png" in written and ".partial" not in written
