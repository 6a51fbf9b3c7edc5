"""A gcloud whose cloud is the folder $CLOUD: what launch/tpu_vm.sh and compute_engine.sh call.

CLOUD/calls has every command line. CLOUD/requests/NAME has the states that `describe` shows, one a
line, the last one for good. CLOUD/hosts/NAME-I is the home of host I of node NAME: `ssh` runs its
command there, and `scp` copies there. CLOUD/broken may name a host that ssh does not reach, and
CLOUD/error holds what `describe` fails with.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["CLOUD"])
HOSTS = int(os.environ.get("HOSTS_PER_NODE", "2"))
STATES = os.environ.get("STATES", "WAITING_FOR_RESOURCES PROVISIONING ACTIVE").split()


def flag(name, default=""):
    return next((w.split("=", 1)[1] for w in sys.argv if w.startswith(f"--{name}=")), default)


def homes(node):
    return sorted((CLOUD / "hosts").glob(f"{node}-*"))


def boot(home):
    """A new machine: the Python and the uv that worker.sh install calls, and a vit-jax of ours."""
    for name, text in {
        "bin/python3": "exit 0\n",
        "bin/sudo": 'echo "sudo $*" >>"$HOME/sudo.log"\n',
        "bin/mountpoint": "exit 1\n",
        "bin/gcsfuse": "exit 0\n",
        ".local/bin/uv": 'mkdir -p venv/bin; echo "uv $*" >>uv.log\n'
        f"cp {shlex.quote(str(CLOUD / 'vit-jax'))} venv/bin/vit-jax\n",
    }.items():
        program = home / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/bash\n{text}")
        program.chmod(0o755)


def on_host(home, command):
    if (CLOUD / "broken").exists() and (CLOUD / "broken").read_text() == home.name:
        return 255
    path = f"{home / 'bin'}:/usr/bin:/bin"
    environment = {"HOME": str(home), "PATH": path, "RESTART_DELAY": "0", "CLOUD": str(CLOUD)}
    return subprocess.run(["bash", "-c", command], cwd=home, env=environment).returncode


def main(words):
    with (CLOUD / "calls").open("a") as calls:
        calls.write(shlex.join(["gcloud", *words]) + "\n")
    words = words[1:] if words[0] == "alpha" else words
    if words[:4] == ["compute", "tpus", "queued-resources", "create"]:
        name = words[4]
        (CLOUD / "requests" / name).write_text("\n".join(STATES))
        count = int(flag("node-count", "0"))
        for node in [f"{name}-{i}" for i in range(count)] or [flag("node-id")]:
            for host in range(HOSTS):
                boot(CLOUD / "hosts" / f"{node}-{host}")
    elif words[:4] == ["compute", "tpus", "queued-resources", "describe"]:
        request = CLOUD / "requests" / words[4]
        if (CLOUD / "error").exists():
            sys.exit((CLOUD / "error").read_text())
        if not request.exists():
            sys.exit("ERROR: (gcloud) NOT_FOUND: Resource was not found")
        state, *rest = request.read_text().split("\n")
        print(state)
        if rest:
            request.write_text("\n".join(rest))
    elif words[:4] == ["compute", "tpus", "queued-resources", "delete"]:
        (CLOUD / "requests" / words[4]).unlink()
        for home in homes(words[4]):
            shutil.rmtree(home)
    elif words[:4] == ["compute", "tpus", "tpu-vm", "scp"]:
        node, _, target = words[5].partition(":")
        for home in homes(node):
            shutil.copy(words[4], home / target)
    elif words[:4] == ["compute", "tpus", "tpu-vm", "ssh"]:
        which = homes(words[4]) if flag("worker") == "all" else homes(words[4])[:1]
        return max(on_host(home, flag("command")) for home in which)
    elif words[:3] == ["compute", "instance-groups", "managed"] or "templates" in words[1]:
        if words[3:4] == ["create"] and words[1] == "instance-groups":
            for host in range(int(flag("size"))):
                boot(CLOUD / "hosts" / f"{words[4]}-{host}")
        elif words[3:4] == ["list-instances"]:
            print(*reversed([home.name for home in homes(words[4])]), sep="\n")
    elif words[:2] == ["compute", "scp"]:
        host, _, target = words[3].partition(":")
        shutil.copy(words[2], CLOUD / "hosts" / host / target)
    elif words[:2] == ["compute", "ssh"]:
        return on_host(CLOUD / "hosts" / words[2], flag("command"))
    elif words[:2] != ["compute", "resource-policies"]:
        sys.exit(f"fake gcloud: {shlex.join(words)}?")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
