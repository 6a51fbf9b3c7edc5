"""Scenario 32: hostile input costs bounded memory and time, and is refused with its name."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import pytest

from vit_jax import data
from vit_jax.data.decode import decode
from vit_jax.data.image_files import read_image_file
from vit_jax.errors import UserError
from vit_jax.evaluation.predict import find_images
from vit_jax.interop import load, npz
from vit_jax.models import saved


def png(width: int, height: int) -> bytes:
    """A PNG of one colour: a row compresses to nothing."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    pixels = b"".join(packer.compress(row) for _ in range(min(height, 64))) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_32_an_image_is_refused_by_its_header():
    with pytest.raises(UserError, match=r"has 15500x15500 pixels, more than .*max_image_pixels"):
        decode(png(15_500, 15_500), "bomb")
    image = io.BytesIO()
    PIL.Image.new("L", (60, 40)).save(image, "JPEG")
    for name, train in (("inception_crop", True), ("resize", False)):
        small, large = (
            data.make_transform(name=name, size=(8, 8), train=train, max_pixels=most)
            for most in (2399, 2400)
        )
        rng = np.random.default_rng(0)
        assert large.read(image.getvalue(), "photo", rng).shape == (8, 8, 3)
        with pytest.raises(UserError, match="max_image_pixels=2399"):
            small.read(image.getvalue(), "photo", rng)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "sparse"])
def test_32_only_regular_files_are_read_as_images(tmp_path, kind):
    file = tmp_path / "photo.jpg"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        with open(file, "wb") as opened:
            opened.truncate(2**40)
    with pytest.raises(UserError, match=r"photo\.jpg"):
        read_image_file(file)
    if kind in ("fifo", "device"):
        assert find_images([str(file)]) == [file]  # predict names it and goes on
        with pytest.raises(UserError, match="has no images"):
            find_images([str(tmp_path)])


def test_32_formats_that_run_programs_are_refused():
    """Pillow hands PostScript to its interpreter."""
    with pytest.raises(UserError, match="not a known image format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "evil.jpg")


@pytest.mark.parametrize(
    "form, changes, message",
    [
        ("native", {"num_layers": 2**31}, "2,147,483,648 blocks"),
        ("native", {"hidden_size": 2**31}, "heads|has shape"),
        ("native", {"hidden_size": 2**61 - 1}, "heads would"),
        ("native", {"hidden_size": 2**40, "num_heads": 2**20}, "has shape"),
        ("huggingface", {"num_hidden_layers": 2**31}, "2,147,483,648 blocks|num_hidden_layers"),
        ("huggingface", {"hidden_size": 2**31}, "cls_token has shape"),
        ("timm", {"model_args": {"depth": 2**31}}, "depth|blocks"),
    ],
)
def test_32_counts_are_bounded_by_the_weights_beside_them(
    weights, tmp_path, form, changes, message
):
    shutil.copytree(weights / form, tmp_path / form)
    file = tmp_path / form / "config.json"
    values = json.loads(file.read_text())
    if "model_args" in changes:
        changes = {"model_args": {**values["model_args"], **changes["model_args"]}}
    file.write_text(json.dumps(values | changes))
    with pytest.raises(UserError, match=message):
        load.read(tmp_path / form)


def test_32_no_byte_is_read_that_the_model_does_not_need(weights, tmp_path, monkeypatch):
    """The header of a sparse file of a terabyte, and an archive that inflates, are refused."""
    monkeypatch.setattr(saved, "load_file", lambda file: pytest.fail("the arrays were read"))
    shutil.copytree(weights / "native", tmp_path / "native")
    file = tmp_path / "native" / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["head/bias"] = {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}
    text = json.dumps(header).encode()
    with open(file, "wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(2**40 + len(text))
    with pytest.raises(UserError, match=r"head/bias has shape \(274877906944,\)"):
        load.read(tmp_path / "native")

    monkeypatch.undo()
    config, params = load.read(weights / "native")
    official = npz.to_foreign(npz.layout(config), params)
    official["pre_logits/kernel"] = np.zeros((32, 3000_000), np.float32)  # 384 MB in 400 kB
    official["pre_logits/bias"] = np.zeros(5, np.float32)
    np.savez_compressed(tmp_path / "bomb.npz", **official)
    monkeypatch.setattr(np, "load", lambda *a, **k: pytest.fail("the arrays were read"))
    with pytest.raises(UserError, match=r"bomb\.npz: "):
        load.read(tmp_path / "bomb.npz")


def test_32_a_fifo_is_no_checkpoint(weights, tmp_path):
    shutil.copytree(weights / "native", tmp_path / "native")
    file = tmp_path / "native" / "model.safetensors"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="is not a regular file"):
        load.read(tmp_path / "native")
    os.mkfifo(tmp_path / "w.npz")
    with pytest.raises(UserError, match=r"w\.npz"):
        load.read(tmp_path / "w.npz")


def test_32_memory_stays_bounded(tmp_path):
    """A process of its own, whose peak is measured: 240 million pixels cost nothing."""
    (tmp_path / "bomb.png").write_bytes(png(15_500, 15_500))
    code = (
        "import sys, resource, pathlib\n"
        "from vit_jax.data.decode import decode\n"
        "from vit_jax.errors import UserError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode(pathlib.Path(sys.argv[1]).read_bytes(), 'bomb')\n"
        "except UserError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000  # KiB
