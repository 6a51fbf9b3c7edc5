"""The YAML that the launchers make: what it says, and that its own schemas take it."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vit_jax.cli import study

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
TRAIN = ["--", "--config=/shared/pretrain.py:B/16,imagenet21k", '--workdir=/shared/a "b"']
WORDS = ["train", *TRAIN[1:]]


def manifests(script, *options, train=TRAIN):
    """The YAML documents of a dry run."""
    words = ["run", "--dry-run", "--name=vit", "--image=registry/vit-jax:1", "--claim=shared"]
    done = subprocess.run(
        ["bash", LAUNCH / script, *words, *options, *train],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "${" not in done.stdout
    return list(yaml.safe_load_all(done.stdout))


def env(name):
    lines = (LAUNCH / "env" / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and line[0] != "#")


def container(job):
    (found,) = job["template"]["spec"]["containers"]
    return found


def end_of(job, code):
    """What a Job does when its container ends with `code`: the first rule that matches counts."""
    for rule in job["podFailurePolicy"]["rules"]:
        if code in rule.get("onExitCodes", {}).get("values", []):
            assert rule["onExitCodes"]["operator"] == "In"
            assert rule["onExitCodes"]["containerName"] == container(job)["name"]
            return rule["action"]
    return "retry" if job["backoffLimit"] else "Job fails"


def test_a_jobset_is_one_job_per_slice_and_one_pod_per_host():
    (jobset,) = manifests("gke.sh", "--topology=4x8", "--slices=2", "--accelerator=tpu-v6e-slice")
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert slices["replicas"] == 2
    assert job["parallelism"] == job["completions"] == 8  # 32 chips, 4 to a host
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    assert container(job)["args"] == WORDS
    assert {item["name"]: item["value"] for item in container(job)["env"]} == env("tpu.env")


def test_a_jobset_starts_again_after_anything_but_an_error():
    (jobset,) = manifests("gke.sh")
    policy = jobset["spec"]["failurePolicy"]
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert [end_of(job, code) for code in (1, 2)] == ["FailJob", "FailJob"]
    assert [end_of(job, code) for code in (42, 134, 143)] == ["Job fails"] * 3
    (rule,) = policy["rules"]  # of JobSet: what is not named here starts it again
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert policy["maxRestarts"] >= 50
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 120


def test_one_gpu_node_needs_no_coordinator():
    service, job = manifests("kubernetes.sh")
    assert container(job["spec"])["args"] == WORDS
    assert container(job["spec"])["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert {item["name"]: item["value"] for item in container(job["spec"])["env"]} == env("gpu.env")
    assert service["spec"]["clusterIP"] == "None"


def test_gpu_nodes_find_pod_0_by_name():
    service, job = manifests("kubernetes.sh", "--nodes=3")
    spec = job["spec"]
    assert spec["parallelism"] == spec["completions"] == 3
    assert container(spec)["args"] == [
        *WORDS,
        "--coordinator=vit-0.vit:8476",
        "--num_processes=3",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]
    assert service["metadata"]["name"] == spec["template"]["spec"]["subdomain"] == "vit"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert spec["completionMode"] == "Indexed"


def test_a_gpu_job_ends_at_an_error_and_not_at_a_preemption():
    _, job = manifests("kubernetes.sh", "--nodes=2")
    codes = (1, 2, 42, 134)
    assert [end_of(job["spec"], code) for code in codes] == [
        "FailJob",
        "FailJob",
        "Ignore",
        "retry",
    ]
    assert job["spec"]["podFailurePolicy"]["rules"][0]["action"] == "Ignore"  # node drained


STUDY = ["study", "--config=/shared/shape.py:digits", "--workdir=/shared/shape"]


def test_each_pod_of_a_study_has_a_part_of_its_own():
    _, job = manifests("kubernetes.sh", "--nodes=4", train=["--", *STUDY])
    spec = job["spec"]
    assert spec["parallelism"] == spec["completions"] == 4
    assert container(spec)["args"] == [*STUDY, "--trial=$(JOB_COMPLETION_INDEX)/4"]
    # What one pod cannot run does not end the others.
    assert spec["backoffLimitPerIndex"] >= 50 and "backoffLimit" not in spec
    assert [end_of(spec, code) for code in (1, 2, 42)] == ["FailIndex", "FailIndex", "Ignore"]
    _, one = manifests("kubernetes.sh", train=["--", *STUDY])
    assert container(one["spec"])["args"][-1] == "--trial=$(JOB_COMPLETION_INDEX)/1"
    parts = [study.part(f"{index}/4") for index in range(4)]  # pods count from 0
    assert sorted(parts) == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_other_launchers_say_who_starts_a_study():
    words = ["run", "--dry-run", "--name=vit", "--image=r/v:1", "--claim=shared", "--", *STUDY]
    done = subprocess.run(["bash", LAUNCH / "gke.sh", *words], capture_output=True, text=True)
    assert done.returncode == 2 and "slurm.sbatch and kubernetes.sh" in done.stderr


def test_a_template_and_its_values_must_agree(tmp_path):
    template = tmp_path / "t.yaml"
    template.write_text("# a comment with ${nothing}\nname: ${name}\n")
    render = [sys.executable, LAUNCH / "render.py", template]
    done = subprocess.run([*render, "name=a"], capture_output=True, text=True)
    assert done.stdout == "name: a\n"
    for values in (["nme=a"], [], ["name=a", "more=b"]):
        done = subprocess.run([*render, *values], capture_output=True, text=True)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_kubernetes_takes_the_manifests():
    """The API's own schemas, strictly: an unknown field is an error."""
    validate = pytest.importorskip("kubernetes_validate").validate
    (jobset,) = manifests("gke.sh")
    jobs = [
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "spec": job["template"]["spec"]}
        for job in jobset["spec"]["replicatedJobs"]
    ]
    least = re.findall(r"Kubernetes (1\.\d+)", (ROOT / "docs" / "launch.md").read_text())
    assert set(least) == {"1.29"}
    for script in ("gke.sh", "kubernetes.sh"):
        assert "Needs Kubernetes 1.29" in (LAUNCH / script).read_text()
    gpus = [
        *manifests("kubernetes.sh"),
        *manifests("kubernetes.sh", "--nodes=2"),
        *manifests("kubernetes.sh", "--nodes=2", train=["--", *STUDY]),
    ]
    for document in [*jobs, *gpus]:
        for version in (*least, "1.34"):
            validate(document, version, strict=True)


def test_a_pod_asks_for_cores_and_memory():
    """Otherwise it is the first to go when a node runs short."""
    (jobset,) = manifests("gke.sh")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert container(job)["resources"]["requests"] == {"cpu": 32, "memory": "96Gi"}
    for options, requests in [
        ((), {"cpu": 32, "memory": "128Gi"}),
        (("--gpus=1",), {"cpu": 4, "memory": "16Gi"}),
        (("--cpus=7", "--memory=9Gi"), {"cpu": 7, "memory": "9Gi"}),
    ]:
        _, job = manifests("kubernetes.sh", *options)
        assert container(job["spec"])["resources"]["requests"] == requests


@pytest.mark.parametrize("script", ["gke.sh", "kubernetes.sh"])
def test_a_pod_counts_its_starts(script):
    """What ends for good ends with 1; 75, 134 and 137 are restarted."""
    *_, job = manifests(script)
    if script == "gke.sh":
        job = job["spec"]["replicatedJobs"][0]["template"]
    command = ["python", "/vit_jax/launch/restart.py", "run", "vit-jax"]
    assert container(job["spec"])["command"] == command
    assert {end_of(job["spec"], code) for code in (75, 134, 137)} <= {"retry", "Job fails"}
    assert "launch/restart.py" in (LAUNCH / "Dockerfile").read_text()


@pytest.mark.parametrize(
    "script, selector",
    [
        ("kubernetes.sh", "job-name=vit"),
        ("gke.sh", "jobset.sigs.k8s.io/jobset-name=vit,jobset.sigs.k8s.io/job-index=0"),
    ],
)
def test_logs_are_those_of_the_newest_pod_of_rank_0(script, selector, tmp_path):
    """Whole, and of one pod."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\n'
        '[ "$1" = logs ] || printf "pod/old\\npod/new\\n"\n'
    )
    kubectl.chmod(0o755)
    subprocess.run(
        ["bash", LAUNCH / script, "logs", "--name=vit"],
        check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    asked, shown = (tmp_path / "calls").read_text().splitlines()
    assert asked == (
        f"get pods --selector={selector},batch.kubernetes.io/job-completion-index=0 "
        "--sort-by=.metadata.creationTimestamp --output=name"
    )
    assert shown == "logs --follow pod/new"


@pytest.mark.slow
def test_jobset_takes_the_manifest():
    """The fields of JobSet itself, from models made of its definition."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    (jobset,) = manifests("gke.sh")
    spec = jobset["spec"]
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"

    def fields(model):
        return {field.alias or name for name, field in model.model_fields.items()}

    assert set(spec) <= fields(models.JobsetV1alpha2JobSetSpec)
    assert set(spec["failurePolicy"]) <= fields(models.JobsetV1alpha2FailurePolicy)
    models.JobsetV1alpha2JobSetSpec.from_dict(spec)
    for rule in spec["failurePolicy"]["rules"]:
        assert set(rule) <= fields(models.JobsetV1alpha2FailurePolicyRule)
    for replicated in spec["replicatedJobs"]:
        assert set(replicated) <= fields(models.JobsetV1alpha2ReplicatedJob)


def sky_task(kind):
    return yaml.safe_load((LAUNCH / "skypilot" / f"{kind}.yaml").read_text())


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_skypilot_retries_what_restart_allows_and_no_error(kind):
    """The same codes as everywhere."""
    recovery = sky_task(kind)["resources"]["job_recovery"]
    codes = list(runpy.run_path(str(LAUNCH / "restart.py"))["AGAIN"])
    assert recovery == {"max_restarts_on_errors": 0, "recover_on_exit_codes": codes}
    assert codes == [42, 75, 134, 137]


@pytest.mark.parametrize(
    "kind, nodes, more",
    [
        ("tpu", 1, []),
        ("gpu", 1, []),
        ("gpu", 2, ["--coordinator=10.0.0.1:8476", "--num_processes=2", "--process_id=1"]),
    ],
)
def test_what_skypilot_runs_on_a_node(tmp_path, kind, nodes, more):
    program = tmp_path / "venv" / "bin" / "vit-jax"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "$XLA_FLAGS$LIBTPU_INIT_ARGS"; exit 42\n')
    program.chmod(0o755)
    environment = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "TRAIN": "--config=c.py '--workdir=/shared/a b'",
        "SKYPILOT_NUM_NODES": str(nodes),
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NODE_RANK": "1",
    }
    done = subprocess.run(
        ["bash", "-c", sky_task(kind)["run"]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    *words, flags = done.stdout.splitlines()
    assert words == ["train", "--config=c.py", "--workdir=/shared/a b", *more]
    assert flags.startswith("--xla_")
    assert done.returncode == 42


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_skypilot_takes_the_task(kind, tmp_path):
    """SKY_PYTHON is a Python with SkyPilot, which brings many dependencies."""
    python = os.environ.get("SKY_PYTHON")
    if not python:
        pytest.skip("needs SKY_PYTHON, a Python with skypilot")
    program = (
        "import sys, sky; task = sky.Task.from_yaml(sys.argv[1]);"
        "print(sorted(str(r.accelerators) for r in task.resources), *task.storage_mounts)"
    )
    done = subprocess.run(
        [python, "-c", program, LAUNCH / "skypilot" / f"{kind}.yaml"],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
             "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.splitlines()[-1]
    assert said.endswith(" /shared")
    assert ("tpu-v5litepod-16" if kind == "tpu" else "'H100': 8") in said


@pytest.mark.slow
def test_xpk_takes_the_command():
    xpk = os.environ.get("XPK") or shutil.which("xpk")
    if not xpk:
        pytest.skip("needs xpk")
    words = ["--dry-run", "--cluster=c", "--zone=us-west4-a", "--image=i", "--storage=s"]
    done = subprocess.run(
        ["bash", LAUNCH / "xpk.sh", *words, *TRAIN], capture_output=True, text=True, check=True
    )
    used = set(re.findall(r"(?:^| )'?(--[a-z-]+)=", done.stdout.split("--command=")[0]))
    help_text = subprocess.run(
        [xpk, "workload", "create", "--help"], capture_output=True, text=True
    ).stdout
    known = set(re.findall(r"^\s+(--[a-z-]+)", help_text, re.MULTILINE))
    assert used and used <= known


def test_the_image_has_what_the_package_needs():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    text = " ".join(line for line in lines if not line.startswith("#"))
    for source in re.findall(r"COPY (.*?) \S+(?= (?:COPY|RUN))", text):
        for name in source.split():
            assert (ROOT / name).exists(), name
    assert 'ENTRYPOINT ["vit-jax"]' in text  # no shell between the signal and the program
    extras = re.findall(r'^    "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert {"gpu", "tpu"} <= set(extras)
