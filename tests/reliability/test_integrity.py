"""Scenarios 19, 20 and 33: a bit that flips on the disk is noticed, in every file of weights."""

import importlib.util
import json
import shutil
import warnings
import zipfile

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from tiny_runs import train

import vit_jax
from vit_jax import files, models
from vit_jax.cli import main
from vit_jax.doctor import checkpoints
from vit_jax.errors import UserError
from vit_jax.interop import export, load, npz, timm, unfinished
from vit_jax.models import saved


def flip(file, rng, first=0):
    """One bit of the second half of a file, where the numbers are."""
    content = bytearray(file.read_bytes())
    at = int(rng.integers(first or len(content) // 2, len(content)))
    content[at] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)


@pytest.mark.parametrize("form", ["native", "timm", "huggingface"])
def test_33_a_flipped_bit_of_a_model_is_named(weights, form, tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(20):
        shutil.copytree(weights / form, tmp_path / form, dirs_exist_ok=True)
        flip(tmp_path / form / "model.safetensors", rng)
        with pytest.raises(UserError, match=r"model\.safetensors is damaged: \S+ does not match"):
            vit_jax.load_model(tmp_path / form)
    vit_jax.load_model(tmp_path / form, verify=False)  # as it is


def test_33_a_flipped_bit_anywhere_in_a_header_is_never_silent(weights, tmp_path):
    """Refused with the file's name, or nothing of what is read has changed."""
    rng = np.random.default_rng(0)
    source = (weights / "native" / "model.safetensors").read_bytes()
    wanted = saved.read_safetensors(weights / "native" / "model.safetensors")
    size = 8 + int.from_bytes(source[:8], "little")
    file = tmp_path / "model.safetensors"
    refused = 0
    for _ in range(300):
        content = bytearray(source)
        content[int(rng.integers(size))] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        found, problem = wanted, ""
        try:
            found = saved.read_safetensors(file)
        except UserError as error:
            problem = str(error)
        assert not problem or str(file) in problem
        refused += bool(problem)
        if found.keys() == wanted.keys():
            assert all(found[n].tobytes() == wanted[n].tobytes() for n in wanted)
    assert refused > 250


def test_33_other_readers_see_the_same_arrays(weights):
    """The sums are in the metadata of safetensors and in the comment of the archive."""
    with np.load(weights / "official.npz") as file:
        names = file.files
    with zipfile.ZipFile(weights / "official.npz") as archive:
        assert [f"{name}.npy" for name in names] == archive.namelist()
        assert archive.testzip() is None and len(json.loads(archive.comment)["sha256"]) == len(
            names
        )
    config, params = load.read(weights / "native")
    assert sorted(names) == sorted(
        name for entry in npz.layout(config).values() for name in entry.names
    )
    there = safetensors.numpy.load_file(weights / "native" / "model.safetensors")
    assert there.keys() == params.keys()
    with safetensors.safe_open(weights / "timm" / "model.safetensors", "np") as opened:
        assert sorted(opened.metadata()) == ["format", "sha256"]
        assert len(json.loads(opened.metadata()["sha256"])) == len(opened.keys())


def test_33_sums_of_an_official_file(weights, tmp_path, monkeypatch):
    """zip's own CRC sees a flip; ours, that other numbers were written beside the old sums."""
    file = tmp_path / "w.npz"
    config, params = load.read(weights / "native")
    shutil.copy(weights / "official.npz", file)
    assert vit_jax.load_model(file) is not None
    with zipfile.ZipFile(file) as archive:
        comment = archive.comment
    npz.save(file, config, {**params, "head/bias": np.asarray(params["head/bias"]) + 1})
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = comment
    with pytest.raises(
        UserError, match=r"w\.npz is damaged: head/bias does not match its checksum"
    ):
        vit_jax.load_model(file)
    vit_jax.load_model(file, verify=False)
    flip(file, np.random.default_rng(0), first=2000)
    with pytest.raises(UserError, match=r"w\.npz"):
        vit_jax.load_model(file)


def test_33_equal_models_give_equal_bytes(weights, tmp_path):
    config, params = load.read(weights / "native")
    for i in range(6):  # the library writes its metadata in a random order
        timm.save(tmp_path / str(i), config, params)
    assert len({(tmp_path / str(i) / "model.safetensors").read_bytes() for i in range(6)}) == 1


def test_33_a_damaged_stablehlo_export_is_refused(weights, tmp_path):
    export.save_stablehlo(tmp_path / "s", *load.read(weights / "native"), export.Options())
    export.open_stablehlo(tmp_path / "s")
    for name in ("weights.safetensors", "model.stablehlo"):
        shutil.copytree(tmp_path / "s", tmp_path / name)
        flip(tmp_path / name / name, np.random.default_rng(0))
        with pytest.raises(UserError, match=f"{name} is damaged"):
            export.open_stablehlo(tmp_path / name)
        shutil.copytree(tmp_path / "s", tmp_path / f"without {name}")
        (tmp_path / f"without {name}" / name).unlink()
        with pytest.raises(UserError, match=f"without {name}/{name} is missing; copy or export"):
            export.open_exported(tmp_path / f"without {name}")
    unverified = files.VERIFY.set(False)  # as of an export without checksums
    try:
        (tmp_path / "s" / "model.stablehlo").write_bytes(b"")
        with pytest.raises(UserError, match=r"model\.stablehlo is damaged \(unpack_from"):
            export.open_stablehlo(tmp_path / "s")
        vit_jax.save_model(vit_jax.create_model("debug", num_classes=7), tmp_path / "other")
        other = saved.read_safetensors(tmp_path / "other" / "model.safetensors")
        saved.write_safetensors(tmp_path / "model.stablehlo" / "weights.safetensors", other)
        shutil.copy(
            tmp_path / "weights.safetensors" / "model.stablehlo", tmp_path / "model.stablehlo"
        )
        with pytest.raises(UserError, match=r"its model\.stablehlo is for other weights"):
            export.open_stablehlo(tmp_path / "model.stablehlo")
    finally:
        files.VERIFY.reset(unverified)


def test_19_doctor_reads_every_value_of_every_checkpoint(tmp_path, capsys, monkeypatch, caplog):
    run = tmp_path / "run"
    assert train(run, "--config.polyak_decay=0.9") == 0
    capsys.readouterr()
    assert main(["doctor", f"--checkpoint={run}"]) == 0
    said = capsys.readouterr().out
    assert said.count("arrays, all verified") == 3, said
    assert "does not exist" not in caplog.text  # a warning of Orbax

    for step in (4, 6):  # one bit of the optimizer's state, which no evaluation reads
        real = unfinished.fingerprints

        def flipped(tree, rule, step=step, real=real):
            if int(tree["step"]) == step:
                tree["opt_state"] = jax.tree.map(np.array, tree["opt_state"])
                leaf = max(jax.tree.leaves(tree["opt_state"]), key=np.size)
                leaf.reshape(-1).view(np.uint32)[0] ^= 1
            return real(tree, rule)

        with monkeypatch.context() as patch:
            patch.setattr(unfinished, "fingerprints", flipped)
            wrong = [finding for finding in checkpoints.integrity(run) if not finding.ok]
        assert [finding.name for finding in wrong] == [f"checkpoint {step}"]
        assert "is damaged (.opt_state" in wrong[0].text

    flip(run / "model" / "model.safetensors", np.random.default_rng(0))
    assert main(["doctor", f"--checkpoint={run}", "--verify=false"]) == 1  # always
    assert "WRONG  model" in capsys.readouterr().out
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "image.png")
    predict = ["predict", f"--checkpoint={run}", str(tmp_path / "image.png")]
    assert main(predict) == 1
    assert "is damaged" in capsys.readouterr().err
    assert main([*predict, "--verify=false"]) == 0


def test_33_a_model_without_checksums_is_loaded(weights, tmp_path):
    shutil.copytree(weights / "native", tmp_path / "old")
    file = tmp_path / "old" / "model.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(file), file)
    vit_jax.load_model(tmp_path / "old")
    flip(file, np.random.default_rng(0))
    vit_jax.load_model(tmp_path / "old")


# --- 51: what was exported ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(weights, tmp_path_factory):
    """{form: an exported model}, of the formats that can be written here."""
    root, found = tmp_path_factory.mktemp("served"), {}
    for form, name, needs in (
        ("stablehlo", "served", "jax"), ("onnx", "m.onnx", "onnxruntime"),
        ("openvino", "m.xml", "openvino"),
    ):  # fmt: skip
        if importlib.util.find_spec(needs):
            with warnings.catch_warnings(action="ignore"):
                export.export(str(weights / "native"), root / name, form, batch_size=1)
            found[form] = root / name
    return found


@pytest.mark.parametrize("form", ["stablehlo", "onnx", "openvino", "savedmodel"])
def test_51_a_flipped_bit_of_an_export_is_refused(served, form, tmp_path):
    """Anywhere in any of its files; SavedModels are checked before TensorFlow reads them."""
    rng = np.random.default_rng(0)
    if form == "savedmodel":
        source = tmp_path / "saved"
        (source / "variables").mkdir(parents=True)
        for name in ("saved_model.pb", "variables/variables.index", "variables/v.data"):
            (source / name).write_bytes(rng.bytes(500))
        export.write_facts(source, models.get_config("debug", num_classes=3))
    elif form not in served:
        pytest.skip(f"{form} cannot be written here")
    else:
        source = served[form]
    place = tmp_path / "tried" / source.name
    names = [""] if source.is_file() else []
    names += [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    assert export.has_checksum(source)
    opened = export.FORMATS[form][1]
    for trial in range(24):
        shutil.rmtree(place.parent, ignore_errors=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, _made(place))
        beside = [] if source.is_dir() else export.parts(source)[1:]
        for part in beside:
            if part.exists():
                shutil.copy(part, place.with_name(part.name))
        files = [place / name if name else place for name in names]
        files += [path for path in place.parent.iterdir() if path.is_file() and path != place]
        file = files[trial % len(files)]
        content = file.read_bytes()
        flip(file, rng, first=1)
        at = content.find(b"checksum")
        if at >= 0 and file.read_bytes()[at : at + 21] != content[at : at + 21]:
            continue  # the name of the checksum alone: nothing else has changed
        with pytest.raises(UserError, match=r"is damaged|is not JSON") as refused:
            opened(place)
        assert str(place) in str(refused.value)


def _made(place):
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def test_51_doctor_verifies_an_export_always(served, tmp_path, capsys):
    place = tmp_path / "served"
    shutil.copytree(served["stablehlo"], place)
    assert main(["doctor", f"--checkpoint={place}"]) == 0
    assert "every byte verified" in capsys.readouterr().out
    (place / "README.md").write_text("what somebody wrote beside it")
    facts = json.loads((place / "facts.json").read_text())
    assert main(["doctor", f"--checkpoint={place}"]) == 0
    (place / "facts.json").write_text(json.dumps(facts | {"labels": ["a", "b", "c"]}))
    capsys.readouterr()
    assert main(["doctor", f"--checkpoint={place}", "--noverify"]) == 1
    assert "is damaged" in capsys.readouterr().out
    del facts["files"], facts["checksum"]  # as of an earlier version
    (place / "facts.json").write_text(json.dumps(facts))
    assert main(["doctor", f"--checkpoint={place}"]) == 0
    assert "of an earlier version, no checksum" in capsys.readouterr().out
