"""config.deterministic: XLA is asked in time, and a GPU that was not asked is refused."""

import importlib
import os
import subprocess
import sys

import jax
import pytest
from absl import flags as absl_flags

from vit_jax.cli import main, options
from vit_jax.errors import UserError
from vit_jax.runtime import determinism


def test_the_flags_are_added_once_and_what_is_given_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=2 --xla_dump_to=/tmp/x")
    determinism.ask()
    determinism.ask()
    assert os.environ["XLA_FLAGS"].split() == [
        "--xla_gpu_autotune_level=2", "--xla_dump_to=/tmp/x", "--xla_gpu_deterministic_ops=true"
    ]  # fmt: skip


def test_a_gpu_that_was_not_asked_is_refused(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    determinism.check()  # a CPU is deterministic
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match="XLA_FLAGS='--xla_gpu_deterministic_ops=true --xla_gpu_au"):
        determinism.check()
    determinism.ask()
    determinism.check()


@pytest.mark.parametrize("command", ["train", "sweep"])
@pytest.mark.parametrize("value, asked", [("true", True), ("1", True), ("false", False)])
def test_deterministic_applies_to_data_without_a_config(command, value, asked, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    flags = absl_flags.FlagValues()
    importlib.import_module(f"vit_jax.cli.{command}").define(flags)
    flags([command, "digits", f"--set=deterministic={value}"])
    assert options.data_argument(flags, ["digits"]) == "digits"
    assert os.environ["XLA_FLAGS"].split() == (list(determinism.FLAGS) if asked else [])


def test_flags_are_set_before_jax_starts(monkeypatch, capsys):
    """XLA ends a process whose flags it does not know: this one of the JAX that is installed."""
    monkeypatch.setenv("XLA_FLAGS", "")
    given = ["--config=configs/quickstart.py", "--print_config", "--config.deterministic=true"]
    assert main(["train", *given]) == 0
    assert '"deterministic": true' in capsys.readouterr().out
    assert os.environ["XLA_FLAGS"].split() == list(determinism.FLAGS)
    program = "import jax; print(jax.numpy.ones(3).sum())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "3.0\n", done.stderr
