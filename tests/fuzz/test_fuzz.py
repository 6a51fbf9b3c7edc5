"""Hostile bytes at every door: what comes out is right, or one sentence that names the file.

A few seconds here, always the same tries. For longer, with other ones:

  FUZZ_EXAMPLES=20000 pytest tests/fuzz --hypothesis-seed=7

A finding is kept in corpus/, as small as it can be, under the name of the test that found it.
"""

import functools
import io
import json
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest

from vit_jax import config as configuration, data, models
from vit_jax.data import prepare
from vit_jax.data.decode import decode, image_size, orientation
from vit_jax.data.specs import parse_spec
from vit_jax.errors import UserError
from vit_jax.evaluation import forward
from vit_jax.evaluation.predict import find_images, predict
from vit_jax.interop import convert, export, load, npz, timm
from vit_jax.models import saved
from vit_jax.runtime import sharding
from vit_jax.training import workdir

pytest.importorskip("hypothesis")  # of [test]
from hypothesis import HealthCheck, given, settings, strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
CORPUS = Path(__file__).parent / "corpus"
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's remarks on damage


def fuzzed(strategy, share=1.0):
    """Runs a test on what `strategy` makes, with one directory for all tries."""

    def decorate(test):
        limits = settings(
            max_examples=EXAMPLES or int(60 * share),
            derandomize=not EXAMPLES and not any("--hypothesis-seed" in a for a in sys.argv),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        return limits(given(made=strategy)(test))

    return decorate


def outcome(call, name):
    """What `call` returns, or the sentence with which it refused; nothing else may come."""
    try:
        return call()
    except UserError as error:
        text = str(error)
    assert str(name) in text, text
    assert "\n" not in text and len(text) < 3000, text
    return text


# --- what is made of bytes, text and JSON -------------------------------------------------------

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "drop", "repeat", "put"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 2**32 - 1),
    ),
    max_size=4,
)


def edited(content: bytes, edits) -> bytes:
    """Bytes with flipped bits, cut off, and with parts dropped, repeated or overwritten."""
    for kind, where, number in edits:
        at, length = int(where * len(content)), 1 + number % 64
        if kind == "flip" and content:
            changed = bytearray(content)
            changed[at] ^= 1 << number % 8
            content = bytes(changed)
        elif kind == "cut":
            content = content[:at]
        elif kind == "drop":
            content = content[:at] + content[at + length :]
        elif kind == "repeat":
            content = content[:at] + content[at : at + length] * 2 + content[at + length :]
        elif kind == "put":
            word = number.to_bytes(4, "little")
            content = content[:at] + word + content[at + 4 :]
    return content


NUMBERS = st.one_of(
    st.integers(-2, 5),
    st.sampled_from([2**31 - 1, 2**31, 2**63, 10**30, -(2**31), 0.5, -0.0, 1e308, float("nan")]),
)
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), NUMBERS, st.text(max_size=4), st.sampled_from(["", "gelu"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
CHANGES = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(["set", "delete", "add"]), VALUES),
    min_size=1,
    max_size=3,
)


def places(value, at=()):
    """Every key and index of a JSON value."""
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    for key, inner in inside:
        yield (*at, key)
        yield from places(inner, (*at, key))


def changed(value, changes):
    """A copy of a JSON value, something in it replaced, deleted or added."""
    value = json.loads(json.dumps(value))
    for number, what, new in changes:
        found = list(places(value))
        if not found:
            return value
        *above, key = found[number % len(found)]
        holder = value
        for part in above:
            holder = holder[part]
        if what == "set":
            holder[key] = new
        elif what == "delete":
            del holder[key]
        elif isinstance(holder, dict):
            holder[str(new)[:9]] = new
    return value


# --- weights ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """A small model in every format that holds weights."""
    root = tmp_path_factory.mktemp("seeds")
    shape = dict(hidden_size=8, num_heads=2, mlp_dim=8, num_layers=1, image_size=8)
    config = models.get_config("debug", num_classes=2, labels=("a", "b"), **shape)
    rng = np.random.default_rng(0)
    params = {
        path: rng.standard_normal(leaf.shape, np.float32)
        for path, leaf in models.abstract_params(config).items()
    }
    saved.save(root / "native", config, params)
    timm.save(root / "timm", config, params)
    convert.FORMATS["huggingface"].save(root / "huggingface", config, params)
    npz.save(root / "official.npz", config, params)
    return root


def copy(seeds, form) -> Path:
    where = seeds / "tried" / form
    shutil.rmtree(where, ignore_errors=True)
    shutil.copytree(seeds / form, where)
    return where


FORMS = st.sampled_from(["native", "timm", "huggingface"])


@fuzzed(st.tuples(FORMS, EDITS))
def test_safetensors(seeds, made):
    form, edits = made
    where = copy(seeds, form)
    file = where / "model.safetensors"
    content = edited(file.read_bytes(), edits)
    same = content == file.read_bytes()
    wanted = load.read(where)[1] if same else None
    file.write_bytes(content)
    found = outcome(lambda: load.read(where), where)
    assert wanted is None or found[1].keys() == wanted.keys()


@fuzzed(st.tuples(FORMS, CHANGES))
def test_the_header_of_safetensors(seeds, made):
    form, changes = made
    where = copy(seeds, form)
    file = where / "model.safetensors"
    content = file.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(changed(json.loads(content[8:size]), changes)).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[size:])
    outcome(lambda: load.read(where), where)


@fuzzed(st.tuples(FORMS, CHANGES), share=2)
def test_config_json(seeds, made):
    form, changes = made
    where = copy(seeds, form)
    files = sorted(where.glob("*.json"))
    file = files[changes[0][0] % len(files)]
    file.write_text(json.dumps(changed(json.loads(file.read_text()), changes)))
    outcome(lambda: load.read(where), where)


@fuzzed(st.tuples(FORMS, EDITS))
def test_the_bytes_of_config_json(seeds, made):
    form, edits = made
    where = copy(seeds, form)
    file = where / "config.json"
    file.write_bytes(edited(file.read_bytes(), edits))
    outcome(lambda: load.read(where), where)


@fuzzed(EDITS)
def test_npz(seeds, made):
    content = (seeds / "official.npz").read_bytes()
    file = seeds / "tried.npz"
    file.write_bytes(edited(content, made))
    outcome(lambda: load.read(file), file)


@fuzzed(
    st.tuples(
        st.lists(
            st.tuples(st.integers(0, 10**6), st.sampled_from(["drop", "shape", "name"])), max_size=3
        ),
        st.lists(st.integers(0, 3), max_size=4),
        st.sampled_from(["f4", "f8", "i8", "c8", "U3", "S2", "M8[s]", "?", "V4", "f2"]),
    )
)
def test_the_arrays_of_npz(seeds, made):
    changes, shape, dtype = made
    with np.load(seeds / "official.npz") as opened:
        arrays = dict(opened)
    for number, what in changes:
        names = sorted(arrays)
        name = names[number % len(names)]
        array = arrays.pop(name)
        if what == "shape":
            arrays[name] = np.zeros(shape, dtype)
        elif what == "name":
            arrays[name[:-1] or "a"] = array
    file = seeds / "arrays.npz"
    np.savez(file, **arrays)
    outcome(lambda: load.read(file), file)


@pytest.fixture(scope="module")
def exported(seeds):
    """The smallest model as an ONNX file without its checksum, so that damage gets further."""
    pytest.importorskip("onnxruntime")
    export.export(str(seeds / "native"), seeds / "served.onnx", "onnx")
    content = (seeds / "served.onnx").read_bytes()
    return content.replace(b"checksum", b"checksux")


@fuzzed(EDITS, share=0.3)
def test_onnx(seeds, exported, made):
    file = seeds / "tried.onnx"
    file.write_bytes(edited(exported, made))
    found = outcome(lambda: export.open_exported(file), file.name)
    if not isinstance(found, str):
        outcome(lambda: found.run(np.zeros((2, *found.image_size, found.channels), np.float32)), "")


# --- configurations of runs ---------------------------------------------------------------------

RUN = json.loads(configuration.to_json(configuration.load("quickstart.py")))


@fuzzed(CHANGES, share=0.5)
def test_the_configuration_of_a_run(seeds, made):
    file = seeds / "run.json"
    file.write_text(json.dumps(changed(RUN, made)))
    found = outcome(lambda: workdir.config_of(file), file)
    assert isinstance(found, str) or json.loads(configuration.to_json(found))["format"] == 2


@fuzzed(EDITS)
def test_the_bytes_of_the_configuration_of_a_run(seeds, made):
    file = seeds / "run.json"
    file.write_bytes(edited(json.dumps(RUN).encode(), made))
    outcome(lambda: workdir.config_of(file), file)


# --- what is predicted --------------------------------------------------------------------------


@fuzzed(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 10**6), EDITS),
            st.sampled_from(
                ["a", "gone.png", "", "~", "~nobody/a.png", "[x]", "a" * 300, "\0", "\udcff.png"]
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    share=0.3,
)
def test_predictions(seeds, made):
    """Images, folders and names that are none: each is named, and the others are classified."""
    place = seeds / "images"
    shutil.rmtree(place, ignore_errors=True)
    (place / "a").mkdir(parents=True)
    names = []
    for i, one in enumerate(made):
        if isinstance(one, str):
            names.append(one if one.startswith("~") else str(place / one))
            continue
        names.append(str(place / f"{i}.jpg"))
        number, edits = one
        (place / f"{i}.jpg").write_bytes(edited(ENCODED[number % len(ENCODED)], edits))
    found = outcome(lambda: find_images(names, say=lambda note: None), "")
    if not isinstance(found, str):
        rows = list(predict(forward_of(seeds), found))
        assert len(rows) == len(found)
        assert all(("error" in row) != ("predictions" in row) for row in rows)
        assert all(row["image"] in row.get("error", row["image"]) for row in rows)


@functools.cache
def forward_of(seeds):
    config, params = load.read(seeds / "native")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return forward.of_model(config, params, mesh)


# --- data ---------------------------------------------------------------------------------------

CELLS = st.sampled_from(
    ["a.png", "b.png", "path", "label", "split", "train", "test", "0", "1", "007", "-1", "", " ",
     "cat", "cat,dog", '"', '""', "\n", "\r", ",", ";", "\t", "|", "sep=,", "\0", "é", "\ufeff",
     "is_test", "1e9", "100000000", "../a.png", "/etc/passwd", "\\", "nan", "True"]
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("table")
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        PIL.Image.new("RGB", (3, 3), (90 * i, 0, 0)).save(root / name)
    return root


OPTIONS = st.sampled_from(
    ["", "?multilabel", "?multilabel&separator=,", "?label=cat", "?image=path", "?split=split",
     "?label=0,1", "?encoding=utf-7", "?encoding=idna", "?multilabel&label=cat,dog"]
)  # fmt: skip


@fuzzed(st.tuples(st.lists(CELLS, max_size=24), st.binary(max_size=3), OPTIONS), share=3)
def test_csv(folder, made):
    cells, raw, options = made
    text = "path,label\na.png,x\nb.png,y\n" if len(cells) % 2 else ""
    content = (text + "".join(cells)).encode() + raw
    (folder / "train.csv").write_bytes(content)
    source = outcome(lambda: data.open_source(f"folder:{folder}/train.csv{options}"), folder)
    if not isinstance(source, str):
        outcome(lambda: [source[i] for i in range(len(source))], "")


@fuzzed(
    st.tuples(
        st.sampled_from(["digits", "folder:", "vtab:", "", "none", "tfds:", "hf:"]),
        st.one_of(st.text(max_size=12), st.text("[]:%+trainesv0189-_/ .~", max_size=16)),
    ),
    share=2,
)
def test_data_specs(made):
    """Names of TFDS and the hub are parsed only: others would be looked for on the network."""
    spec = "".join(made)
    outcome(lambda: parse_spec(spec), "")
    if made[0] not in ("tfds:", "hf:"):
        source = outcome(lambda: data.open_source(spec, data_dir="/nonexistent"), "")
        assert isinstance(source, str) or len(source) > 0


def encodings() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    found = []
    for kind, mode in (
        ("PNG", "RGB"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
        ("JPEG", "L"), ("GIF", "P"), ("TIFF", "RGB"), ("TIFF", "L"), ("WEBP", "RGB"),
        ("BMP", "RGB"), ("JPEG2000", "RGB"), ("ICO", "RGBA"), ("PPM", "RGB"), ("TGA", "RGB"),
    ):  # fmt: skip
        file = io.BytesIO()
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        more = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
        PIL.Image.fromarray(pixels).convert(mode).save(file, kind, **more)
        found.append(file.getvalue())
    return found


ENCODED = encodings()


@fuzzed(st.tuples(st.integers(0, len(ENCODED) - 1), EDITS), share=4)
def test_images(made):
    number, edits = made
    content = edited(ENCODED[number], edits)
    found = outcome(lambda: decode(content, "photo.jpg", orient=True), "photo.jpg")
    assert isinstance(found, str) or (found.dtype == np.uint8 and found.shape[2:] == (3,))
    outcome(lambda: image_size(content, "photo.jpg"), "photo.jpg")
    assert orientation(content) in range(1, 9)


@fuzzed(st.tuples(st.integers(1, 3), EDITS))
def test_archives(folder, made):
    members, edits = made
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("a.png", "b.png", "c.png")[:members]:
            archive.add(folder / name, name)
    file = folder / "n00000001.tar"
    file.write_bytes(edited(content.getvalue(), edits))
    outcome(lambda: [read() for _, read in prepare._members(file, str)], file)


# --- findings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.name for path in CORPUS.iterdir()))
def test_earlier_findings_stay_fixed(name, tmp_path):
    """kind-what.suffix, of a table with its encoding: table_idna-path.csv."""
    (kind, _, encoding), file = name.split("-")[0].partition("_"), tmp_path / name
    shutil.copy(CORPUS / name, file)
    if kind == "image":
        outcome(lambda: decode(file.read_bytes(), name, orient=True), name)
    elif kind == "table":
        options = f"?encoding={encoding}" if encoding else ""
        outcome(lambda: data.open_source(f"folder:{file}{options}"), tmp_path)
    elif kind == "archive":
        outcome(lambda: [read() for _, read in prepare._members(file, str)], file)
    elif kind == "model":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(tmp_path / "model")
        outcome(lambda: load.read(tmp_path / "model"), tmp_path)
    else:
        outcome(lambda: load.read(file), file)
