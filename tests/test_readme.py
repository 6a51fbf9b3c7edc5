"""Every command of the README and the guides is one that exists, with flags that it has."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from absl import flags as absl_flags
from tiny_runs import three_classes

from vit_jax.cli import COMMANDS, main, options
from vit_jax.studies import study

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands():
    """(page, command line) of every `vit-jax ...` line in a code block."""
    for page in PAGES:
        if page.parent.name == "ja":
            continue  # tests/test_japanese.py compares its code with the English page's
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                match = re.search(r"(?:^|&& |\| |time )(vit-jax [^|&>#]*)", line)
                if match:
                    yield page.relative_to(ROOT), match[1].strip()


FOUND = sorted(set(commands()), key=str)


def test_there_are_commands():
    assert len(FOUND) >= 4


@pytest.mark.parametrize("page, line", FOUND, ids=lambda value: str(value)[:60])
def test_a_documented_command_is_real(page, line):
    _, name, *words = shlex.split(line)
    if name in ("--help", "--version"):
        return
    assert name in COMMANDS, f"{page}: vit-jax {name} does not exist"
    command = importlib.import_module(f"vit_jax.cli.{name}")
    flags = absl_flags.FlagValues()
    command.define(flags)
    if words == ["--help"]:
        return
    flags([name, *(options.rewrite_overrides(words) if "set" in flags else words)])
    if name == "study":
        assert study.load(flags.config, options.overrides(flags))
        return
    if "config" in flags and flags.config:
        config = options.read_config(flags)
        assert config.total_steps or config.total_epochs


#: Two steps of a small model, by the config that a command takes its own from.
SHORT = [
    "--config.total_epochs=None", "--config.total_steps=2", "--config.eval_every_epochs=None",
    "--config.schedule.warmup_steps=0", "--config.batch_size=8",
    "--config.model.hidden_size=16", "--config.model.num_heads=2", "--config.model.mlp_dim=32",
    "--config.model.num_layers=1",
]  # fmt: skip
ALSO = {
    "train --config=configs/quickstart.py": [
        *SHORT,
        *(word.replace("config.", "config.pretrain.", 1) for word in SHORT),
    ],
    "train folder:": [*SHORT, "--config.eval_every_steps=1"],
}


def test_every_command_of_the_readme_runs(tmp_path, monkeypatch):
    """In their order, in one directory, on 90 images to train on and 90 to test."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    three_classes(tmp_path / "data" / "pets", 30)
    three_classes(tmp_path / "holiday-photos", 1)
    image = next((tmp_path / "data").rglob("*.png"))
    (tmp_path / "cat.jpg").write_bytes(image.read_bytes())
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^vit-jax (.*)$", README, re.MULTILINE)
    assert len(lines) >= 10
    for line in lines:
        more = [word for start, words in ALSO.items() if line.startswith(start) for word in words]
        words = re.sub(r"(?<![\w.])/(data|runs|tmp)/", r"\1/", line)
        assert main([*shlex.split(words), *more]) == 0, line


def test_links_of_the_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_files_and_modules_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:vit_jax|tests|configs|launch)/[\w/.-]+\.\w+)", text))
    files |= {f"{name.replace('.', '/')}.py" for name in re.findall(r"-m (vit_jax\.[\w.]+)", text)}
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []
