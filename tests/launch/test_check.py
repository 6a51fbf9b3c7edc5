"""What is refused where one types, by every launcher: launch/check.py."""

import importlib
import os
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from absl import flags as absl_flags
from often import often

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
CHECK = runpy.run_path(str(LAUNCH / "check.py"))

#: Each launcher's command that trains, but for its name and what follows `--`.
COMMANDS = {
    "tpu_vm.sh run": "--zone=us-west4-a",
    "tpu_vm.sh babysit": "--zone=us-west4-a --shared=gs://b",
    "compute_engine.sh run": "--zone=us-central1-c --project=p",
    "gke.sh run": "--image=i --claim=c",
    "kubernetes.sh run": "--image=i --claim=c",
    "skypilot.sh gpu": "--shared=gs://b",
    "skypilot.sh tpu": "--shared=gs://b",
    "xpk.sh": "--cluster=c --zone=us-west4-a --image=i --storage=s",
}
TRAIN = ["--config=configs/quickstart.py", "--workdir=/shared/a"]
#: Its config is on the hosts' share, and is not evaluated here, which takes seconds.
UNSEEN = ["--config=/shared/mine.py", "--workdir=/shared/a"]


def launch(command, *options, train=TRAIN, name="--name=vit", root=ROOT, **environment):
    """A dry run of a line of COMMANDS; `options` come in the place of its own."""
    script, *action = command.split()
    given = {word.partition("=")[0] for word in options} - {"--name"}
    usual = [word for word in COMMANDS[command].split() if word.partition("=")[0] not in given]
    words = [*action, *usual, name, *options]
    return subprocess.run(
        ["bash", root / "launch" / script, *words, "--dry-run", "--", *train],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def refused(done, message, code=1):
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.returncode == code
    assert done.stdout == ""


#: One of each way in which the source tree comes to the hosts.
each_way = pytest.mark.parametrize("command", ["tpu_vm.sh run", "gke.sh run", "skypilot.sh gpu"])
everywhere = pytest.mark.parametrize("command", COMMANDS)


@each_way
@pytest.mark.parametrize(
    "name",
    ["My Run", "123", "true", "null", "a: {b", "a" * 70, "-a", "a-", "a_b", "ä", "a;id", "$(id)",
     "a\nb", "'", "../a"],
)  # fmt: skip
def test_names(command, name):
    done = launch(command, name=f"--name={name}")
    assert done.returncode == 1
    assert f"--name={name}" in done.stderr
    assert done.stdout == ""


@everywhere
def test_a_name_that_is_empty_or_given_twice(command):
    done = launch(command, name="--name=")
    assert done.returncode == 2
    assert "--name=" in done.stderr and "is" in done.stderr
    refused(launch(command, "--name=other"), "--name is given twice.", 2)
    refused(launch(command, name="--name"), "--name needs a value", 2)


@pytest.mark.parametrize(
    "command, option, message",
    [
        ("kubernetes.sh run", "--gpus=0", "--gpus=0 is not a positive number."),
        ("kubernetes.sh run", "--gpus=x", "--gpus=x is not a positive number."),
        ("kubernetes.sh run", "--gpus=99", "--gpus=99 is more than 16."),
        ("kubernetes.sh run", "--nodes=08", "--nodes=08 is not a positive number."),
        ("kubernetes.sh run", "--nodes=0", "--nodes=0 is not a positive number."),
        ("kubernetes.sh run", "--nodes=٣", "--nodes=٣ is not a positive number."),
        ("kubernetes.sh run", "--memory=lots", "--memory=lots is not like 64Gi."),
        ("kubernetes.sh run", "--image=a b", "--image=a b is not the name of an image."),
        ("skypilot.sh gpu", "--nodes=1e3", "--nodes=1e3 is not a positive number."),
        ("skypilot.sh gpu", "--nodes=99999999999", "is more than 4096."),
        ("gke.sh run", "--slices=-1", "--slices=-1 is not a positive number."),
        ("gke.sh run", "--slices=1.5", "--slices=1.5 is not a positive number."),
        ("gke.sh run", "--topology=2x3", "a slice of v5e is one of 2x2, 2x4"),
        ("gke.sh run", "--topology=2x2x2", "a slice of v5e is one of 2x2, 2x4"),
        ("gke.sh run", "--topology=04x4", "a slice of v5e is one of"),
        ("gke.sh run", "--topology=4x4;id", "is not like 4x4."),
        ("gke.sh run", "--claim=a b", "--claim=a b is not a name"),
        ("tpu_vm.sh run", "--slices=abc", "--slices=abc is not a positive number."),
        ("tpu_vm.sh run", "--type=v5litepod-0", "0 behind v5litepod- is not a positive number."),
        ("tpu_vm.sh run", "--type=v5litepod-3", "v5litepod- has sizes of 1, 4"),
        ("tpu_vm.sh run", "--type=v4-12", "v4- has sizes of 8, 16"),
        ("tpu_vm.sh run", "--type=v4", "--type=v4: nothing behind v4-"),
        ("tpu_vm.sh run", "--poll=fast", "--poll=fast is not a number of seconds."),
        ("tpu_vm.sh run", "--project=my project", "--project=my project is not a name"),
        ("compute_engine.sh run", "--topology=2x2x3", "a slice of TPU7x is one of 2x2x1"),
        ("compute_engine.sh run", "--topology=4x4", "a slice of TPU7x is one of 2x2x1"),
        ("compute_engine.sh run", "--topology=8x4x4", "the smallest first"),
        ("compute_engine.sh run", "--machine=n1", "--machine=n1: give ct6e-standard-4t or tpu7x"),
        ("xpk.sh", "--type=h100", "--type=h100: give v2-"),
    ],
)
def test_counts_and_topologies(command, option, message):
    """No error of bash's own, and nothing that the cloud would find out."""
    refused(launch(command, option), message)


@pytest.mark.parametrize(
    "accelerator, topology, machines",
    [
        ("tpu-v5-lite-podslice", "2x2", 1),
        ("tpu-v6e-slice", "16x16", 64),
        ("tpu-v5p-slice", "2x2x1", 1),
        ("tpu-v5p-slice", "8x8x12", 192),
        ("tpu7x", "2x4x4", 8),
    ],
)
def test_topologies_that_there_are(accelerator, topology, machines):
    options = f"--accelerator={accelerator}", f"--topology={topology}"
    done = launch("gke.sh run", *options, train=UNSEEN)
    (jobset,) = yaml.safe_load_all(done.stdout)
    assert jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] == machines


@pytest.mark.parametrize(
    "accelerator, topology", [("tpu-v5p-slice", "4x4"), ("tpu7x", "4x4x6"), ("tpu7x", "64x64x64")]
)
def test_topologies_that_there_are_not(accelerator, topology):
    done = launch("gke.sh run", f"--accelerator={accelerator}", f"--topology={topology}")
    refused(done, f"--topology={topology}: a slice of ")


def test_switches():
    """--spot=false is not spot; two ways to pay exclude each other."""

    def create(script, *options):
        words = ["create", "--name=v", "--zone=us-a", "--dry-run", *options]
        return subprocess.run(
            ["bash", LAUNCH / script, *words], capture_output=True, text=True, check=False
        )

    for value in ("false", "no"):
        assert "--spot" not in create("tpu_vm.sh", f"--spot={value}").stdout
    for option in ("--spot", "--spot=true", "--spot=yes"):
        assert "--spot" in create("tpu_vm.sh", option).stdout
    refused(create("tpu_vm.sh", "--spot=maybe"), "--spot=maybe: give --spot, or --spot=false.", 2)
    refused(
        create("tpu_vm.sh", "--spot", "--reserved"), "--spot and --reserved exclude each other.", 2
    )
    refused(
        create("compute_engine.sh", "--project=p", "--spot", "--reservation=r"),
        "--spot and --reservation exclude each other.",
        2,
    )
    assert "--spot" not in create("tpu_vm.sh", "--spot=false", "--reserved").stdout


@each_way
@pytest.mark.parametrize(
    "workdir",
    ["/tmp/x", "/shared", "/shared/", "/shared/..", "/shared/../tmp/x", "/sharedx/a", "//tmp/a",
     "/shared/a/../../b", "/", "shared/a", "~/a", "gs://b/a", "."],
)  # fmt: skip
def test_a_workdir_that_would_be_gone(command, workdir):
    done = launch(command, train=["--config=configs/quickstart.py", f"--workdir={workdir}"])
    refused(done, f"--workdir={workdir} is not ")


@pytest.mark.parametrize(
    "workdir", ["/shared/a/../b", "/shared//a", "//shared/a", "/shared/a b'\""]
)
def test_a_workdir_that_stays(workdir):
    done = launch("gke.sh run", train=[UNSEEN[0], f"--workdir={workdir}"])
    assert done.returncode == 0, done.stderr
    assert f"--workdir={workdir}" in container_words(done)


def container_words(done):
    (jobset,) = yaml.safe_load_all(done.stdout)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job["template"]["spec"]["containers"][0]["args"]


@each_way
@pytest.mark.parametrize(
    "train, message, code",
    [
        (["train", *TRAIN], "unexpected 'train' among the flags of vit-jax train. Leave", 2),
        ([*TRAIN, "--confg.seed=1"], "there is no flag --confg.seed of vit-jax train", 2),
        ([*TRAIN, "--dry-run"], "there is no flag --dry-run of vit-jax train; put it before --", 2),
        ([*TRAIN, "--process_id=1"], "--process_id is set by the launcher", 2),
        ([*TRAIN, "--patience=0"], "--patience=0 is not a positive number.", 1),
        ([*TRAIN, TRAIN[0]], "--config is given twice.", 2),
        ([*TRAIN, "--workdir=/shared/b"], "--workdir is given twice.", 2),
        ([TRAIN[0], "--workdir=/shared/lr[0.1]"], "lr[0.1] has [ in its path; checkpoints", 1),
        (["--config=", TRAIN[1]], "-- --config=FILE is required.", 2),
        ([TRAIN[1], "--config"], "-- --config=FILE is required.", 2),
        ([*TRAIN, "--config.seed"], "--config.seed needs a value", 2),
        ([*TRAIN, "--config.seed=x"], "--config.seed='x' is not of type int.", 1),
        ([*TRAIN, "--config.sed=1"], "--config.sed is not a setting. Did you mean 'seed'?", 1),
        (["--config=configs/no.py", TRAIN[1]], "configs/no.py: there is no such file", 1),
        (["--config=configs", TRAIN[1]], "configs: there is no such file", 1),
        (["--config=../../../../../etc/passwd", TRAIN[1]], "is outside of", 1),
        (["--config=/etc/passwd", TRAIN[1]], "is ", 1),
        (["--config=configs/pretrain.py:B/16,no", TRAIN[1]], "dataset='no' has no entry", 1),
        (["--config=configs/quickstart.py:a", TRAIN[1]], "get_config", 1),
    ],
    ids=lambda value: "" if isinstance(value, (list, int)) else value[:40],
)
def test_flags_and_configs(command, train, message, code):
    """Found out here, and not after the image is pulled."""
    refused(launch(command, train=train), message, code)


@pytest.mark.parametrize(
    "setting, message",
    [
        ("model.variant=B/17", "no variant 'B/17'. Did you mean 'B/16'?"),
        ("evaluators.fewshot.shotz=3", "fewshot.shotz is not a setting"),
    ],
)
def test_values_are_checked_by_the_package(setting, message):
    refused(launch("gke.sh run", train=[*TRAIN, f"--config.{setting}"]), message)


@everywhere
def test_every_launcher_asks_the_checker(command):
    """One of each kind."""
    refused(launch(command, name="--name=My Run"), "--name=My Run: small letters")
    refused(launch(command, train=[TRAIN[0], "--workdir=/tmp/x"]), "is not inside /shared")
    refused(launch(command, train=["--config=configs/no.py", TRAIN[1]]), "there is no such file")
    refused(launch(command, train=["train", *TRAIN]), "unexpected 'train'", 2)


@everywhere
def test_flags_in_two_words_are_read_as_the_trainer_reads_them(command):
    train = ["--config", "/shared/pretrain.py:B/16,imagenet21k", "-workdir", "/shared/a b"]
    done = launch(command, train=[*train, "--allow_config_change", "--set", "seed=1"])
    assert done.returncode == 0, done.stderr
    refused(launch(command, train=[*train[:3], "/tmp/a"]), "--workdir=/tmp/a is not inside /shared")


@pytest.mark.parametrize("name", ["train", "study"])
def test_all_flags_of_a_command_are_known(name):
    flags = absl_flags.FlagValues()
    importlib.import_module(f"vit_jax.cli.{name}").define(flags)
    absl_flags.DEFINE_bool("debug", False, "", flag_values=flags)
    tables = ("VALUES", "SWITCHES", "OF_LAUNCHERS", "NOT_IN_JOBS")
    assert {flag for table in tables for flag in CHECK[table][name]} == set(flags)


def test_a_config_on_the_share_is_said_to_be_unchecked():
    done = launch("gke.sh run", train=["--config=/shared/configs/mine.py", TRAIN[1]])
    assert done.returncode == 0
    assert "--config=/shared/configs/mine.py is not checked" in done.stderr


def test_without_ml_collections_the_file_is_looked_for_and_that_is_said(tmp_path):
    has = ["/usr/bin/python3", "-c", "import ml_collections"]
    if not Path(has[0]).exists() or subprocess.run(has, capture_output=True).returncode == 0:
        pytest.skip("needs a /usr/bin/python3 without ml_collections")
    for name in ("bash", "dirname", "basename", "sed", "git", "cat"):
        (tmp_path / name).symlink_to(shutil.which(name))
    (tmp_path / "python3").symlink_to(has[0])
    environment = {"PATH": str(tmp_path), "VIRTUAL_ENV": "", "PYTHONPATH": ""}
    done = launch("gke.sh run", **environment)
    assert done.returncode == 0, done.stderr
    assert "was not evaluated: no Python here has ml_collections" in done.stderr
    done = launch("gke.sh run", train=["--config=configs/no.py", TRAIN[1]], **environment)
    refused(done, "--config=configs/no.py: there is no such file in")


@pytest.mark.parametrize("shared", ["mybucket", "gs://", "gs://b/folder", "/mnt", "h:mnt", "a b:/"])
@pytest.mark.parametrize("command", ["tpu_vm.sh run", "compute_engine.sh run"])
def test_the_shared_folder(command, shared):
    """Before anything is created."""
    refused(launch(command, f"--shared={shared}"), f"--shared={shared}")


def test_babysit_needs_a_shared_folder():
    words = ["babysit", "--name=v", "--zone=z", "--dry-run", "--shared=mybucket", "--", *TRAIN]
    done = subprocess.run(["bash", LAUNCH / "tpu_vm.sh", *words], capture_output=True, text=True)
    refused(done, "--shared=mybucket is neither gs://BUCKET nor HOST:/EXPORT.")


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """The source tree, without .git."""
    folder = tmp_path_factory.mktemp("tree") / "a tree"
    skip = shutil.ignore_patterns(".git", "tests", "docs", ".*cache", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=skip, symlinks=True)
    return folder


def commit(tree):
    git = ["git", "-C", tree, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=a"], check=True)


def test_a_source_tree_that_cannot_be_sent(tree, tmp_path):
    """One line, where one types."""
    here = {"root": tree, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    refused(launch("tpu_vm.sh babysit", **here), "the hosts get the tracked files of")
    setup = ["setup", "--name=v", "--zone=z", "--project=p", "--dry-run"]
    done = subprocess.run(
        ["bash", tree / "launch/compute_engine.sh", *setup], capture_output=True, text=True
    )
    refused(done, "not a git repository")
    other = tmp_path / "other"
    shutil.copytree(tree, other)
    subprocess.run(["git", "-C", other, "init", "--quiet"], check=True)
    refused(launch("tpu_vm.sh babysit", root=other), "it has no commit")
    commit(other)
    assert launch("tpu_vm.sh babysit", root=other).returncode == 0
    (other / "configs/mine.py").write_text((other / "configs/quickstart.py").read_text())
    mine = ["--config=configs/mine.py", "--workdir=/shared/a"]
    refused(launch("tpu_vm.sh babysit", root=other, train=mine), "is untracked")
    assert launch("gke.sh run", root=other, train=mine).returncode == 0  # docker copies all
    shutil.move(other / "configs/mine.py", other / "mine.py")
    mine[0] = "--config=mine.py"
    refused(launch("gke.sh run", root=other, train=mine), "the image has only configs/")
    (other / "launch/worker.sh").unlink()
    refused(launch("tpu_vm.sh babysit", root=other), "has no launch/worker.sh")


@pytest.mark.parametrize(
    "command",
    often(
        *["tpu_vm.sh run", "gke.sh run", "xpk.sh"],
        weekly=sorted({*COMMANDS} - {"tpu_vm.sh run", "gke.sh run", "xpk.sh"}),
    ),
)
def test_valid_arguments_pass_and_a_dry_run_leaves_nothing(command, tree):
    if not (tree / ".git").exists():
        commit(tree)

    def there():
        return sorted(tree.rglob("*"))

    before = there()
    done = launch(command, root=tree)
    assert done.returncode == 0, done.stderr
    assert "--workdir=/shared/a" in done.stdout
    assert there() == before


STUDY = ["study", "--config=configs/studies/head.py:digits", "--workdir=/scratch/a"]


def test_a_study_of_slurm_is_checked_and_shown():
    def dry_run(*words):
        return subprocess.run(
            ["bash", LAUNCH / "slurm.sbatch", *words, "--dry-run"],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip

    done = dry_run(*STUDY, "--only=gap*")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(
        "vit-jax study '--config=configs/studies/head.py:digits' '--workdir=/scratch/a' "
        "'--only=gap*' --trial=I/N"
    )
    for words, code, message in (
        ([*STUDY, "--trial=1/2"], 2, "--trial is set by the launcher"),
        ([*STUDY, "--allow_config_change"], 2, "no flag --allow_config_change of vit-jax study"),
        ([*STUDY, "--config.batch_size=0"], 1, "config.batch_size=0 must be"),
        (
            ["study", "--config=configs/studies/heads.py", STUDY[2]],
            1,
            "mean 'configs/studies/head.py",
        ),
        ([*STUDY[1:], "study"], 2, "unexpected 'study'"),
    ):
        refused(dry_run(*words), message, code)


@pytest.mark.parametrize("words", ["--help", "--dry-run -h", "--config=a -h"])
def test_help_of_slurm(words):
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", *words.split()], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "sbatch --ntasks-per-node=4 --gpus-per-node=4" in done.stdout
    assert "the job stays pending" in done.stdout


@pytest.mark.parametrize(
    "train, message",
    [
        (["--config=configs/quickstart.py"], "--workdir=DIR is required"),
        (["--workdir=/scratch/a"], "--config=FILE is required"),
        (["--config=no.py", "--workdir=/scratch/a"], "no config file 'no.py'"),
        (["--config=configs/pretrain.py:B/16,no", "--workdir=/scratch/a"], "has no entry"),
        (["--config=configs/quickstart.py", "--workdir=gs://b/a"], "is not a directory"),
        ([*TRAIN, "--num_processes=2"], "--num_processes is set by the launcher"),
        ([*TRAIN, "more"], "unexpected 'more'"),
        ([], "--config=FILE is required"),
    ],
)
@pytest.mark.parametrize("where", ["first", "last"])
def test_slurm_checks_in_a_dry_run(train, message, where):
    words = ["--dry-run", *train] if where == "first" else [*train, "--dry-run"]
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == ""


def test_arguments_reach_the_pods_unchanged():
    """Kubernetes replaces $(NAME) in arguments, YAML and the shell have their own characters."""
    odd = "/shared/$(HOME) $HOME 'a' \"b\" {c: d} #e `f`"
    done = launch("gke.sh run", train=[UNSEEN[0], f"--workdir={odd}"])
    assert f"--workdir={odd.replace('$(', '$$(')}" in container_words(done)
    done = launch("skypilot.sh gpu", train=[UNSEEN[0], f"--workdir={odd}"])
    words = shlex.split(done.stdout.splitlines()[-1])
    (sent,) = [word for word in words if word.startswith("--env=TRAIN=")]
    assert shlex.split(sent.removeprefix("--env=TRAIN="))[-1] == f"--workdir={odd}"
