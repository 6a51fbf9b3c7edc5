"""vit-jax configs and vit-jax weights: what there is, and how one gets it."""

from pathlib import Path

import pytest
from tiny_runs import contents

from vit_jax import config as configuration
from vit_jax.cli import configs, main
from vit_jax.errors import UserError
from vit_jax.interop import fetch, published


def test_every_config_is_listed_with_its_first_line(capsys):
    assert main(["configs"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    root = Path(configuration.shipped())
    assert set(lines) == {path.relative_to(root).as_posix() for path in root.rglob("*.py")}
    assert lines["finetune.py"].strip().startswith("Fine-tuning, Table 4")
    assert all(line.strip().endswith((".", "it.")) for line in lines.values())


@pytest.mark.parametrize(
    "name, file",
    [
        ("finetune", "finetune.py"),
        ("configs/finetune.py", "finetune.py"),
        ("studies/shape", "shape.py"),
        ("shape", "shape.py"),
        ("few_shot", "few_shot.py"),
    ],
)
def test_a_copy_is_the_config_and_never_overwrites(name, file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "cp", name]) == 0
    assert f"--config={file}" in capsys.readouterr().out
    below = "studies" if "shape" in name else ""
    found = Path(configuration.shipped()) / below / file
    assert (tmp_path / file).read_bytes() == found.read_bytes()
    (tmp_path / file).write_text("mine")
    assert main(["configs", "cp", name]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "is not overwritten" in err
    assert contents(tmp_path) == {file: b"mine"}
    (tmp_path / "there").mkdir()
    assert main(["configs", "cp", name, "there"]) == 0
    assert configuration.find_file(str(tmp_path / "there" / file))


def test_a_copy_is_used_as_the_shipped_one(tmp_path):
    configs.copy("finetune", str(tmp_path / "mine.py"))
    argument = ":B/32,folder:/x,224"
    mine = configuration.load(f"{tmp_path / 'mine.py'}{argument}")
    assert mine == configuration.load(f"configs/finetune.py{argument}")


@pytest.mark.parametrize(
    "words, code, part",
    [
        (["configs", "cp"], 2, "cp NAME [FILE]"),
        (["configs", "finetune"], 2, "cp NAME [FILE]"),
        (["configs", "cp", "finetun"], 1, "Did you mean 'finetune.py'"),
        (["configs", "cp", "finetune", "mine.txt"], 1, "must end with .py"),
        (["configs", "cp", "finetune", "no/such/mine.py"], 1, "No such file"),
        (["configs", "cp", "finetune:B/16", "x.py"], 1, "without its argument, finetune"),
        (["weights", "get"], 2, "get NAME"),
        (["weights", "B/16-imagenet"], 2, "get NAME"),
        (["weights", "get", "B/16-imagenet21"], 1, "Did you mean 'B/16-imagenet21k'"),
    ],
)
def test_bad_input_is_one_sentence(words, code, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and part in err
    assert contents(tmp_path) == {}


def test_weights_says_what_is_here_and_get_fetches_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = []

    def download(url, target, source):
        asked.append(source)
        if "21k/" not in source:
            raise UserError(f"{source} cannot be downloaded.")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"weights")

    monkeypatch.setattr(fetch, "download", download)
    few = ("B/16-imagenet21k", "R50+B/16-imagenet")
    monkeypatch.setattr(published, "PUBLISHED", {name: published.PUBLISHED[name] for name in few})
    assert main(["weights"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == ["B/16-imagenet21k", "224", "21,843", "413", "Apache-2.0", "83.97%", "no"]
    assert rows[2][4:] == ["–", "–", "no"] and asked == []
    assert main(["weights", "get", few[0]]) == 0
    out = capsys.readouterr().out
    assert "about 413 MB from gs://vit_models" in out and "ViT-B_16.npz" in out
    assert main(["weights", "get", few[0]]) == 0
    assert "exists:" in capsys.readouterr().out and len(asked) == 1
    assert main(["weights", "get", few[1]]) == 1
    assert "could not be fetched" in capsys.readouterr().err
    assert main(["weights"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("yes")


def test_what_is_cached_from_another_source_is_not_fetched_again(tmp_path, monkeypatch):
    from vit_jax.interop import load

    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "download", None)
    entry = published.Published("B/16", 224, 1, ("gs://a/x.npz", "https://b/y.npz"), "", 1)
    monkeypatch.setitem(published.PUBLISHED, "two-places", entry)
    place = fetch.place("https://b/y.npz")[1]
    place.write_bytes(b"")
    assert load.local_path("two-places") == place
