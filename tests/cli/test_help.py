"""What a terminal is shown: help in 80 columns, examples that parse, completion, closed pipes."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vit_jax import cli
from vit_jax.cli import completion, help, options
from vit_jax.errors import UserError
from vit_jax.interop import fetch
from vit_jax.runtime import logbook

ROOT = Path(__file__).parents[2]


def examples(name):
    """The command lines under "example:" of a command's docstring, without their comments."""
    text = importlib.import_module(f"vit_jax.cli.{name}").__doc__
    section = re.search(r"^example:\n((?:  .*\n)+)", text, re.MULTILINE)
    assert section, f"vit-jax {name} --help has no example"
    for line in section[1].replace("\\\n", " ").splitlines():
        if found := re.search(r"(vit-jax .*)", re.sub(r"  #.*", "", line)):
            yield found[1].rstrip(")")


EXAMPLES = [line for name in cli.COMMANDS for line in examples(name)]


@pytest.mark.parametrize("words", [[], *([name] for name in cli.COMMANDS)], ids=str)
def test_help_fits_80_columns(words, capsys):
    assert cli.main([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if len(line) > help.COLUMNS] == []
    assert "\033" not in text


@pytest.mark.parametrize("line", EXAMPLES, ids=lambda line: line[:60])
def test_an_example_is_a_command_line(line):
    _, name, *words = shlex.split(line)
    flags = completion.flags_of(name)
    arguments = flags([name, *(options.rewrite_overrides(words) if "set" in flags else words)])[1:]
    assert not arguments or name in cli.TAKE_ARGUMENTS
    if "config" in flags and (flags.config or "").startswith("configs/") and name != "study":
        assert options.read_config(flags)


def test_paragraphs_are_filled_and_examples_are_left():
    text = f"{'word ' * 29}word\nmore\n\nexample:\n  vit-jax {'x' * 90}\n"
    lines = help.reflow(text).splitlines()
    assert len(lines[0]) <= 80 and lines[1].endswith("word more")
    assert lines[-1] == f"  vit-jax {'x' * 90}"


def completed(*words):
    """What bash offers for the last of some words."""
    line = f"""{completion.script("bash")}
        compopt() {{ :; }}
        COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}
        _vit_jax; echo "${{COMPREPLY[@]}}" """
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout


def test_the_shell_completes_commands_flags_and_settings():
    assert completed("vit-jax", "tr").split() == ["train"]
    assert completed("vit-jax", "train", "--work").split() == ["--workdir="]
    assert completed("vit-jax", "evaluate", "--save_te").split() == ["--save_temperature"]
    rate = "--config.schedule.learning_rate="
    assert completed("vit-jax", "sweep", rate[:-5]).split() == [rate]
    assert completed("vit-jax", "predict", rate[:-5]).split() == []


#: A zsh with a terminal; what it shows after each line is typed.
ZSH = """
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "TERM=dumb; source ./c"
sleep 2
for typed in $'vit-jax tra\\t--work\\t' $'\\x15vit-jax convert c.o\\t'; do
  zpty -n -w z $typed
  sleep 2
  while zpty -rt z chunk; do print -rn -- $chunk; done
done
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_completes_as_well_and_files_too(tmp_path):
    (tmp_path / "c").write_text(completion.script("zsh"))
    (tmp_path / "c.other").touch()
    done = subprocess.run(
        ["zsh", "-c", ZSH], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    shown = done.stdout.replace("\b", "").replace("\r", "")
    assert "vit-jax train" in shown and "--workdir=" in shown and "--workdir= " not in shown
    assert "convert c.other" in shown


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train", "--workdri=x"], "'workdri'. Did you mean --workdir? See"),
        (["train", "--total_step=3"], "Did you mean 'total_steps'? See"),
        (["doctor", "--wat=1"], "'wat'. Did you mean --data, --data_dir, --patience? See"),
    ],
)
def test_a_misspelled_flag_has_one_hint(capsys, words, hint):
    assert cli.main(words) == cli.USAGE
    said = capsys.readouterr().err
    assert hint in said and said.count("Did you mean") == 1


def test_a_shell_without_a_name_is_wrong_usage(capsys):
    assert cli.main(["completion", "tcsh"]) == cli.USAGE
    assert "bash or zsh" in capsys.readouterr().err


KEEPS = """
import sys
from vit_jax import cli
cli.keep_writing()
for i in range(20_000):
    print("a line that fills the pipe")
    print("and one for errors", file=sys.stderr)
with open(sys.argv[1], "w") as file:
    file.write("done")
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_continues_when_its_output_pipe_closes(tmp_path, unbuffered):
    script = tmp_path / "script.py"
    script.write_text(KEEPS)
    line = f"{sys.executable} {script} {tmp_path / 'file'} 2>&1 | head -n 1"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env)
    assert (tmp_path / "file").read_text() == "done"
    assert done.stdout.count("\n") == 1 and not done.stderr


LOSES = """
import os, sys
from vit_jax import cli
cli.keep_writing(whole=sys.argv[1] == "whole")
full = os.open("/dev/full", os.O_WRONLY)
os.dup2(full, 1)
print("a line", flush=sys.argv[1] != "whole")
print("begun", file=sys.stderr, flush=True)
if sys.argv[1] == "both":
    os.dup2(full, 2)
print("and one more")
sys.exit(3)
"""


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("lossy", "begun\nvit-jax: 20 bytes of stdout could not be written (No space left).\n"),
        ("both", "begun\n"),
        ("whole", "begun\n"),  # there the command itself fails, and says why
    ],
)  # fmt: skip
def test_a_full_disk_under_the_output_does_not_change_the_exit_code(tmp_path, case, said):
    script = tmp_path / "script.py"
    script.write_text(LOSES)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        [sys.executable, script, case], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 3 and done.stderr.replace(" on device", "") == said


CLOSED = """
import os, sys
from vit_jax import cli
cli.open_streams()
with open(sys.argv[1], "w") as file:
    file.write(f"{file.fileno() > 2} {sys.stdin.read()!r} {print('nowhere', flush=True)}")
    os.write(1, b"a library"); os.write(2, b"another")
"""


def test_closed_streams_are_the_null_device(tmp_path):
    """A cron job's `>&-`: the next file had the number of standard output, and got its lines."""
    (tmp_path / "script.py").write_text(CLOSED)
    line = f"{sys.executable} {tmp_path}/script.py {tmp_path}/file <&- >&- 2>&-"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(["bash", "-c", line], env=env).returncode == 0
    assert (tmp_path / "file").read_text() == "True '' None"


def test_programs_are_kept_only_where_they_can_be(tmp_path, monkeypatch):
    """Without a home, or with a read-only one, JAX would warn at every program."""
    told = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr("jax.config.update", lambda name, value: told.update({name: value}))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    options.prepare_jax()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    options.prepare_jax()
    assert "jax_compilation_cache_dir" not in told
    with pytest.raises(UserError, match=r"no home directory; set HOME or XDG_CACHE_HOME\."):
        fetch.cache_directory()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options.prepare_jax()
    assert told["jax_compilation_cache_dir"] == f"{tmp_path}/cache/vit_jax/xla"


def test_a_printing_command_ends_when_its_output_pipe_closes():
    line = f"{sys.executable} -m vit_jax completion bash | true; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and not done.stderr


def hint(*words):
    flags = completion.flags_of("train")
    flags(
        ["train", *options.rewrite_overrides(["--config=configs/finetune.py:B/16,cifar10", *words])]
    )
    return options.batch_hint(flags, options.read_config(flags))


def test_a_smaller_batch_comes_with_the_linear_rule():
    smaller = "--config.batch_size=64"
    rate = options.load("configs/finetune.py:B/16,cifar10").schedule.learning_rate
    assert f"--config.schedule.learning_rate={rate / 8:.2g})" in hint(smaller)
    assert "--config.accumulation_steps=8" in hint(smaller)
    assert hint() == hint("--config.batch_size=1024") == ""
    assert hint(smaller, "--config.schedule.learning_rate=0.01") == ""


def test_without_a_terminal_progress_is_lines_with_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(logbook, "BETWEEN_LINES", 0.0)
    with options.progress(4_000, "features") as at:
        at(1_000)
        at(4_000)
    said = capsys.readouterr().err
    assert re.fullmatch(r"features: 1,000 of 4,000 images, eta \d+s\n", said)
