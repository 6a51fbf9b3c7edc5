"""Checks the arguments of a launcher on the user's machine, before anything is paid for.

    python3 launch/check.py LAUNCHER ACTION DEFAULTS... -- WORDS...

DEFAULTS are NAME=VALUE for each option of the launcher; ? is required. WORDS are the arguments:
options, then `--` and the flags of `vit-jax train`. Prints assignments for a shell: the options,
`train` (what follows `--`), and `hosts` and `machine` if there is a topology. Bad input gets one
line, with exit code 2 for wrong usage and 1 for an invalid value. Needs only Python; the config is
evaluated by the first Python found that has ml_collections.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARED = "/shared"

#: For each launcher: how the source tree is sent to the hosts, and its actions.
LAUNCHERS = {
    "tpu_vm.sh": ("git", "create wait setup run status logs stop delete babysit"),
    "compute_engine.sh": ("git", "create wait setup run status logs stop delete"),
    "gke.sh": ("image", "pool run status logs stop"),
    "kubernetes.sh": ("image", "run status logs stop"),
    "xpk.sh": ("image", ""),
    "skypilot.sh": ("folder", "gpu tpu"),
    "slurm.sbatch": ("here", ""),
}
TRAINS = ("run", "babysit", "gpu", "tpu", "")
#: Launchers that give each job of an array, or each pod, a part of a study's trials.
STUDIES = ("slurm.sbatch", "kubernetes.sh")
#: Options that an action needs and others do not, and what their values are called.
NEEDS = {
    "gke.sh run": "image claim",
    "gke.sh pool": "cluster location zone",
    "kubernetes.sh run": "image claim",
    "tpu_vm.sh babysit": "shared",
}
CALLED = {"image": "IMAGE", "claim": "NAME of a PersistentVolumeClaim"}
EXCLUSIVE = (("spot", "reserved"), ("spot", "reservation"))
#: Files that `git archive` must contain for a host to install it.
SOURCE = ("setup.py", "pyproject.toml", "README.md", "vit_jax", "configs", "launch/worker.sh",
          "launch/restart.py", "launch/env/tpu.env", "launch/requirements.txt")  # fmt: skip

FLAT = ["2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"]
DEEP = ["2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"]
#: TPU generations: (GKE's accelerator, machine with four chips, image family, maximum chips).
GENERATIONS = {
    "v5e": ("tpu-v5-lite-podslice", "ct5lp-hightpu-4t", "", 256),
    "v5p": ("tpu-v5p-slice", "ct5p-hightpu-4t", "", 6144),
    "v6e": ("tpu-v6e-slice", "ct6e-standard-4t", "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e", 256),
    "TPU7x": ("tpu7x", "tpu7x-standard-4t", "ubuntu-accel-2404-amd64-tpu-tpu7x", 9216),
}
#: Accelerator types of the Cloud TPU API: unit of the number, minimum, maximum.
TYPES = {"v2": (8, 8, 512), "v3": (8, 8, 2048), "v4": (8, 8, 8192), "v5p": (8, 8, 12288),
         "v5litepod": (0, 1, 256), "v6e": (0, 1, 256)}  # fmt: skip

program = "launch"


def fail(text: str, code: int = 1) -> NoReturn:
    if code == 2:
        print(f"{program}: {text} See {program} --help.", file=sys.stderr)
    else:
        print(f"{program}: error: {text}", file=sys.stderr)
    sys.exit(code)


def note(text: str) -> None:
    print(f"{program}: note: {text}", file=sys.stderr)


# The problem with a value; "" if it is valid.


def like(pattern: str, says: str) -> Callable[[str], str]:
    return lambda value: "" if re.fullmatch(pattern, value) else says


def name(value: str) -> str:
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", value):
        return ": small letters, digits and -, beginning with a letter and not ending with -."
    if len(value) > 40:
        return f" has {len(value)} letters; at most 40, because machines add to it."
    if value in ("true", "false", "yes", "no", "on", "off", "null"):
        return " has a special meaning in YAML or as --NAME; use another."
    return ""


def count(least: int, most: int) -> Callable[[str], str]:
    what = "a positive number" if least == 1 else f"a number from {least}"

    def check(value: str) -> str:
        if not re.fullmatch(r"0|[1-9][0-9]*", value) or int(value[:9]) < least:
            return f" is not {what}."
        return f" is more than {most}." if len(value) > 9 or int(value) > most else ""

    return check


def shared(value: str) -> str:
    store, export = r"gs://[A-Za-z0-9][\w.-]*/?", r"[A-Za-z0-9][\w.-]*:/(?!/)[^\s'\"]*"
    if re.fullmatch(f"{store}|{export}", value, re.ASCII):
        return ""
    if re.match(r"gs://[^/]+/.", value):
        return ": a bucket is mounted as a whole; give gs://BUCKET alone."
    return " is neither gs://BUCKET nor HOST:/EXPORT."


CHECKS: dict[str, Callable[[str], str]] = {
    "name": name,
    "nodes": count(1, 4096),
    "gpus": count(1, 16),
    "cpus": count(1, 1024),
    "slices": count(1, 256),
    "restarts": count(0, 10000),
    "poll": like(r"[0-9]{1,4}(\.[0-9]+)?", " is not a number of seconds."),
    "memory": like(r"[1-9][0-9]*(Mi|Gi|Ti)", " is not like 64Gi."),
    "image": like(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*", " is not the name of an image."),
    "shared": shared,
}
WORD = like(r"[A-Za-z0-9][A-Za-z0-9._/:-]*", " is not a name: letters, digits, - . _ : / only.")


def tpu_type(value: str, more: tuple[str, ...] = ()) -> str:
    generation, _, number = value.partition("-")
    if generation in more:
        return ""
    if generation not in TYPES:
        return ": give v2-, v3-, v4-, v5litepod-, v5p- or v6e-N, or --version=RUNTIME."
    step, least, most = TYPES[generation]
    if problem := count(1, most)(number):
        return f": {number or 'nothing'} behind {generation}-{problem}"
    size = int(number)
    if size < least or (size % step if step else size & (size - 1)):
        return f": {generation}- has sizes of {f'{step}, 16, ...' if step else '1, 4, 8, 16, ...'}."
    return ""


def topology(value: str, generation: str) -> str:
    if not re.fullmatch(r"[0-9]{1,3}(x[0-9]{1,3}){1,2}", value):
        return f" is not like {'4x4' if generation in ('v5e', 'v6e') else '2x2x4'}."
    sides = [int(side) for side in value.split("x")]
    chips = chips_of(value)
    most = GENERATIONS[generation][3]
    if chips < 4:
        return " has fewer than four chips; a machine has four."
    if generation in ("v5e", "v6e"):
        return "" if value in FLAT else f": a slice of {generation} is one of {', '.join(FLAT)}."
    large = len(sides) == 3 and sides == sorted(sides) and not any(side % 4 for side in sides)
    if value in DEEP or (large and chips <= most and value == "x".join(map(str, sides))):
        return ""
    return (
        f": a slice of {generation} is one of {', '.join(DEEP)}, or larger with three sides that "
        f"are multiples of 4, the smallest first, and at most {most} chips."
    )


def chips_of(value: str) -> int:
    chips = 1
    for side in value.split("x"):
        chips *= int(side)
    return chips


def parse(options: dict[str, str], words: list[str]) -> list[str]:
    """Fills `options` from WORDS; returns what follows `--`."""
    given = set()
    for position, word in enumerate(words):
        if word == "--":
            return words[position + 1 :]
        option, equals, value = word.partition("=")
        option = option[2:] if word.startswith("--") else ""
        if option not in options:
            fail(f"there is no option {word}.", 2)
        if option in given and options[option] not in ("yes", "no"):
            fail(f"--{option} is given twice.", 2)
        given.add(option)
        if options[option] in ("yes", "no"):
            meant = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
            if equals and value not in meant:
                fail(f"{word}: give --{option}, or --{option}=false.", 2)
            options[option] = meant[value] if equals else "yes"
        elif not equals:
            fail(f"--{option} needs a value: --{option}=...", 2)
        elif not value and options[option] == "?":
            continue
        elif not value:
            fail(f"--{option}= is empty; give a value, or leave it out.", 2)
        else:
            options[option] = value
    return []


def check_options(launcher: str, action: str, options: dict[str, str]) -> dict[str, str]:
    """Exits with a message for an invalid value; returns derived values."""
    for option, value in options.items():
        if value == "?":
            fail(f"--{option}=... is required.", 2)
    more = {}
    table = dict(CHECKS)
    if launcher == "skypilot.sh":  # knows more stores
        table["shared"] = like(r"[a-z0-9]+://[^\s'\"]+", " is not the URL of a store.")
    if launcher == "xpk.sh":
        table["type"] = lambda value: tpu_type(value, ("tpu7x",)) or WORD(value)
    elif not options.get("version"):
        table["type"] = tpu_type
    chosen = ""
    for option, column in (("accelerator", 0), ("machine", 1)):
        if option in options and "topology" in options:
            rows = {row[column]: key for key, row in GENERATIONS.items() if column == 0 or row[2]}
            chosen = rows.get(options[option], "")
            if not chosen:
                fail(f"--{option}={options[option]}: give {' or '.join(rows)}.")
    if chosen:
        table["topology"] = lambda value: topology(value, chosen)
    for option, value in options.items():
        if not value or value in ("yes", "no"):
            continue
        if problem := table.get(option, WORD)(value):
            fail(f"--{option}={value}{problem}")
    for a, b in EXCLUSIVE:
        if options.get(a, "no") != "no" and options.get(b, "") not in ("", "no"):
            fail(f"--{a} and --{b} exclude each other.", 2)
    if chosen:
        more["hosts"] = str(chips_of(options["topology"]) // 4)
        more["machine"] = GENERATIONS[chosen][1]
        if "image-family" in options:
            more["image_family"] = options["image-family"] or GENERATIONS[chosen][2]
    for option in NEEDS.get(f"{launcher} {action}", "").split():
        if not options[option] and option != "shared":
            fail(f"--{option}={CALLED.get(option, '...')} is required.", 2)
    return more


#: The flags of each command that take a value; those of processes are the launchers' own.
VALUES = {"train": ("config", "workdir", "set", "patience")}
VALUES["study"] = (*VALUES["train"], "only")
SWITCHES = {"train": ("allow_config_change", "debug"), "study": ("dry_run", "debug")}
OF_LAUNCHERS = {"train": ("coordinator", "num_processes", "process_id")}
OF_LAUNCHERS["study"] = (*OF_LAUNCHERS["train"], "trial")
NOT_IN_JOBS = {"train": ("new", "print_config", "recipe"), "study": ()}


def parse_train(words: list[str], command: str = "train") -> tuple[str, str, list[str]]:
    """The config, the workdir and the KEY=VALUE of the flags of `vit-jax train`, or `study`."""
    values, switches = VALUES[command], SWITCHES[command]
    found: dict[str, str] = {}
    overrides = []
    rest = iter(words)
    for word in rest:
        match = re.fullmatch(r"--?([A-Za-z][\w.-]*)(?:=(.*))?", word, re.DOTALL)
        if not match:
            again = {
                "train": " Leave out the word train.",
                "study": f" A study is started by {' and '.join(STUDIES)}, with the word first.",
            }.get(word if command == "train" else "", "")
            fail(f"unexpected {word!r} among the flags of vit-jax {command}.{again}", 2)
        flag, value = match[1], match[2]
        if flag.startswith("config."):
            overrides.append(f"{flag[7:]}={value}")
            if value is None:
                fail(f"--{flag} needs a value: --{flag}=VALUE.", 2)
        elif flag in values:
            if value is None:
                value = next(rest, "")
            if flag == "set":
                overrides.append(value)
                continue
            if flag in found:
                fail(f"--{flag} is given twice.", 2)
            found[flag] = value
        elif flag in OF_LAUNCHERS[command]:
            fail(f"--{flag} is set by the launcher; leave it out.", 2)
        elif flag in NOT_IN_JOBS[command]:
            fail(f"--{flag} is for runs that are started by hand; leave it out.", 2)
        elif flag.removeprefix("no") not in switches and flag not in switches:
            before = "; put it before --" if flag in ("dry-run", "help") else ""
            fail(f"there is no flag --{flag} of vit-jax {command}{before}.", 2)
    for flag, called in (("config", "FILE"), ("workdir", "DIR")):
        if not found.get(flag):
            fail(f"-- --{flag}={called} is required.", 2)
    if problem := count(1, 10**6)(found.get("patience", "300")):
        fail(f"--patience={found['patience']}{problem}")
    return found["config"], found["workdir"], overrides


def check_workdir(way: str, workdir: str) -> None:
    if odd := re.search(r"[\[*?\\]", workdir):  # as in vit_jax/training/workdir.py
        fail(f"--workdir={workdir} has {odd[0]} in its path; checkpoints could not be read again.")
    if way == "here":
        if "://" in workdir:
            fail(f"--workdir={workdir} is not a directory; mount the bucket (docs/launch.md).")
        if re.match(r"/(tmp|var/tmp|dev/shm|run)(/|$)", os.path.normpath(workdir)):
            note(
                f"--workdir={workdir} is on one machine; a job that is queued again may not see it"
            )
        return
    if not workdir.startswith("/"):
        fail(
            f"--workdir={workdir} is not a path that starts with /; every host must see the same "
            "directory, so mount the bucket or disk (docs/launch.md)."
        )
    whole = "/" + os.path.normpath(workdir).lstrip("/")
    if not whole.startswith(f"{SHARED}/"):
        fail(
            f"--workdir={workdir} is not inside {SHARED} and would be deleted with the machine; "
            f"give a --workdir in {SHARED}."
        )


def check_config(way: str, config: str, overrides: list[str], command: str = "train") -> None:
    """Exits with a message if the hosts would not find the config, or it does not evaluate."""
    path = config.partition(":")[0]
    if way != "here":
        if os.path.normpath(path).startswith(f"{SHARED}/"):
            if not os.path.isfile(path):
                note(f"--config={path} is not checked: there is no such file here")
                return
        else:
            check_place(way, path)
    elif os.path.isdir(path):
        fail(f"--config={path} is a directory.")
    evaluate(way, config, overrides, command)


def check_place(way: str, path: str) -> None:
    """Checks that the file is in the part of the source tree that is sent to the hosts."""
    folder = os.path.join(ROOT, "configs") if way == "image" else ROOT
    found = os.path.normpath(os.path.join(ROOT, path))
    if not os.path.isfile(found):  # those that come with the package are found by their names
        shipped = os.path.join(ROOT, "configs", os.path.basename(path))
        if not os.path.isfile(shipped):
            fail(f"--config={path}: there is no such file in {ROOT}.")
        found = shipped
    elif os.path.isabs(path):
        fail(f"--config={path} is a path of this machine; give it as seen from {ROOT}.")
    inside = os.path.realpath(found).startswith(os.path.realpath(folder) + os.sep)
    if not inside or not found.startswith(folder + os.sep):
        what = "the image has only configs/" if way == "image" else "only the source tree is sent"
        fail(f"--config={path} is outside of {folder}: {what}. Put it there, or in {SHARED}.")
    new = git("ls-files", "--error-unmatch", "--", found) if way == "git" else ""
    if "did not match" in new:
        fail(f"--config={path} is untracked, and only tracked files are sent: git add it first.")


#: Exit code 3: this Python cannot evaluate configs.
EVALUATE = """
import sys
root, command, config, *overrides = sys.argv[1:]
sys.path.insert(0, root)
try:
    import ml_collections
except ImportError:
    sys.exit(3)
if sys.version_info < (3, 11):
    sys.exit(3)
from vit_jax import config as configuration
from vit_jax.errors import UserError
try:
    settings = dict(item.split("=", 1) for item in overrides)
    if command == "study":
        try:
            from vit_jax.studies import study
        except ImportError:
            sys.exit(3)
        trials = study.load(config, settings).values()
    else:
        trials = [configuration.load(config, settings)]
    for loaded in trials:
        configuration.check(loaded)
        try:
            from vit_jax.training import setup
        except ImportError:
            pass
        else:
            setup.check_memory(loaded)
            setup.check_names(loaded)
except UserError as error:
    sys.exit(str(error))
except Exception as error:
    first = (str(error).strip().splitlines() or [""])[0]
    sys.exit(f"--config={config}: {type(error).__name__}: {first}")
"""


def pythons() -> list[str]:
    """Pythons to try for ml_collections: this one, the active environment's, the tree's own."""
    found = [sys.executable]
    for folder in (os.environ.get("VIRTUAL_ENV", ""), os.path.join(ROOT, ".venv")):
        if folder:
            found.append(os.path.join(folder, "bin", "python"))
    if installed := shutil.which("vit-jax"):
        with open(installed, "rb") as script:
            first = script.readline(1000).decode(errors="replace").strip()
        if "python" in os.path.basename(first) and not first.endswith(" python3"):
            found.append(first.removeprefix("#!").split(" ")[0])
    return [python for python in found if os.access(python, os.X_OK)]


def evaluate(way: str, config: str, overrides: list[str], command: str) -> None:
    for item in overrides:
        if "=" not in item:
            fail(f"--set={item} needs a value: --set=KEY=VALUE.", 2)
    for python in pythons():
        done = subprocess.run(
            [python, "-B", "-c", EVALUATE, ROOT, command, config, *overrides],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd=None if way == "here" else ROOT,
            text=True,
        )
        if done.returncode == 0:
            return
        if done.returncode != 3:
            fail((done.stderr.strip().splitlines() or [f"--config={config} ends Python"])[-1])
    path = config.partition(":")[0]
    if way == "here" and not os.path.isfile(path) and not os.path.isfile(os.path.join(ROOT, path)):
        fail(f"--config={path}: there is no such file.")
    note("the config file exists but was not evaluated: no Python here has ml_collections")


def git(*words: str) -> str:
    """The error of a git command, in one line; "" on success."""
    try:
        done = subprocess.run(
            ["git", "-C", ROOT, *words], capture_output=True, text=True, errors="replace"
        )
    except FileNotFoundError:
        return "git is not installed"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or ["no"])[0].removeprefix("fatal: ")


def check_source() -> None:
    """Checks that the tree is in git, with everything that a host installs."""
    if problem := git("rev-parse", "--verify", "--quiet", "HEAD^{commit}"):
        problem = "it has no commit" if problem == "no" else problem
        fail(
            f"the hosts get the tracked files of {ROOT}, but {problem}. Clone the repository, or "
            "create one: git init && git add --all && git commit."
        )
    for path in SOURCE:
        if not os.path.exists(os.path.join(ROOT, path)):
            fail(f"the source tree {ROOT} has no {path}; the hosts would need it.")
        if git("ls-files", "--error-unmatch", "--", path):
            fail(f"{path} is untracked, and only tracked files are sent: git add it.")


def main(arguments: list[str]) -> None:
    global program
    launcher, action, *rest = arguments
    program = f"launch/{launcher}"
    cut = rest.index("--")
    options = {"dry-run": "no"}
    options |= dict(default.split("=", 1) for default in rest[:cut])
    way, actions = LAUNCHERS[launcher]
    if action not in actions.split() and (action or actions):
        fail(f"there is no action {action or repr('')}. Give {', '.join(actions.split())}.", 2)
    train = rest[cut + 1 :]
    if launcher != "slurm.sbatch":
        train = parse(options, train)
    more = check_options(launcher, action, options)
    if action in TRAINS:
        studies = launcher in STUDIES and train[:1] == ["study"]
        command, flags = ("study", train[1:]) if studies else ("train", train)
        config, workdir, overrides = parse_train(flags, command)
        if "shared" in NEEDS.get(f"{launcher} {action}", "") and not options["shared"]:
            fail(
                f"{action} deletes the TPU and its disks at the end; give --shared=gs://BUCKET and "
                f"a --workdir in {SHARED}, to keep the run."
            )
        check_workdir(way, workdir)
    elif train:
        fail(f"{action} takes no flags of vit-jax train.", 2)
    if way == "git" and action in ("setup", "babysit"):
        check_source()
    if action in TRAINS:
        check_config(way, config, overrides, command)
    for option, value in {**{k.replace("-", "_"): v for k, v in options.items()}, **more}.items():
        print(f"{option}={shlex.quote(value)}")
    print(f"train=({' '.join(map(shlex.quote, train))})")


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(__doc__.strip())
    else:
        main(sys.argv[1:])
