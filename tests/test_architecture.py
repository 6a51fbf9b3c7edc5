"""Rules of the architecture: which imports and file names are allowed, what an import costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "vit_jax").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

#: The subpackages, each with those that it may import besides itself. Imports inside of functions
#: count: they save time at the start of a command, and hide nothing.
MAY_IMPORT: dict[str, str] = {
    "errors": "",
    "files": "errors",
    "numerics": "errors",
    "kinds": "",
    "settings": "errors kinds",
    "config": "errors files settings",
    "runtime": "errors files",
    "data": "errors files",
    "pages": "errors files config runtime",
    "models": "errors files numerics",
    "objectives": "errors numerics models",
    "interop": "errors files numerics models data",
    "evaluation": "errors files runtime data pages models objectives",
}
MAY_IMPORT["inspection"] = MAY_IMPORT["dedup"] = f"{MAY_IMPORT['evaluation']} evaluation interop"
MAY_IMPORT["training"] = (
    f"{MAY_IMPORT['interop']} {MAY_IMPORT['evaluation']} config interop evaluation"
)
for _package in ("studies", "bench", "doctor"):
    MAY_IMPORT[_package] = (
        f"{MAY_IMPORT['training']} training inspection dedup studies bench doctor"
    )
MAY_IMPORT["cli"] = " ".join(MAY_IMPORT)
#: Narrower than their subpackage.
NO_INTEROP = ("vit_jax.training.loop", "vit_jax.training.step")

#: Where Flax may be imported: the modules are NNX, all other code sees functions.
MAY_IMPORT_FLAX = ("vit_jax.models", "vit_jax.interop")

#: A module longer than this holds more than one thing.
LONGEST = 400

#: Names that say nothing about what is inside.
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "tools"}


def module_name(path: Path) -> str:
    """The dotted name of a file below the root: vit_jax/models/vit.py is vit_jax.models.vit."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Dotted names of what a file imports anywhere in it; `from a import b` gives a and a.b."""
    own = module_name(path).split(".")
    package = own if path.name == "__init__.py" else own[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            found |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return found


def is_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def offences(importers, forbidden) -> list[str]:
    """ "a imports b" for each file that imports what `forbidden(name)` is true of."""
    return [
        f"{module_name(path)} imports {name}"
        for path in importers
        for name in sorted(imports(path))
        if forbidden(name)
    ]


def subpackage_of(name: str) -> str:
    """The subpackage of a module: data of vit_jax.data.kinds.vtab, "" of the package itself."""
    return name.split(".")[1] if "." in name else ""


def imported_modules(path: Path) -> set[str]:
    """The package's own modules among what a file imports, without its own packages."""
    own = module_name(path)
    return {
        name
        for name in imports(path) & {module_name(other) for other in PACKAGE}
        if name not in (own, "vit_jax") and not own.startswith(f"{name}.")
    }


def test_the_files_are_found():
    assert {"vit_jax.models.vit", "vit_jax.files"} <= {module_name(path) for path in PACKAGE}
    assert CONFIGS
    assert "vit_jax.errors" in imports(ROOT / "vit_jax" / "config.py")


def test_imports_are_read_in_all_their_forms(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "vit_jax" / "data" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import a.b as c\nfrom d import e\ndef f():\n    from . import g\n    from ..h import i\n"
    )
    assert imports(path) == {
        *("a.b", "d", "d.e"),
        *("vit_jax.data", "vit_jax.data.g", "vit_jax.h", "vit_jax.h.i"),
    }


def test_a_subpackage_imports_what_its_row_allows():
    wrong = []
    for path in PACKAGE:
        package = subpackage_of(module_name(path))
        if package in ("", "__main__"):
            continue  # the lazy public API, and the way into the commands
        allowed = {package, *MAY_IMPORT[package].split()}
        wrong += [
            f"{module_name(path)} imports {name}"
            for name in sorted(imported_modules(path))
            if subpackage_of(name) not in allowed
        ]
    assert wrong == []


def test_every_subpackage_has_a_row_and_an_order():
    found = {subpackage_of(module_name(path)) for path in PACKAGE} - {"", "__main__"}
    assert found == set(MAY_IMPORT)
    rows = list(MAY_IMPORT)
    free = {"studies", "bench", "doctor", "inspection", "dedup", "cli"}  # the top layer
    for number, package in enumerate(rows):
        above = set(rows[number:]) - free
        assert package in free or not above & set(MAY_IMPORT[package].split()), package


def test_nothing_imports_in_a_circle():
    graph = {module_name(path): imported_modules(path) for path in PACKAGE}

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph[name]
        return seen

    assert [name for name in graph if name in reach(name)] == []


def test_the_step_and_the_loop_know_no_foreign_format():
    narrow = [path for path in PACKAGE if module_name(path) in NO_INTEROP]
    assert len(narrow) == len(NO_INTEROP)
    assert offences(narrow, lambda name: is_in(name, ("vit_jax.interop",))) == []


def test_modules_are_small_enough_to_hold_in_the_head():
    lines = {module_name(path): len(path.read_text().splitlines()) for path in PACKAGE}
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}


def test_few_modules_are_at_the_top_level():
    top = [name for name in map(module_name, PACKAGE) if name.count(".") == 1]
    modules = [path for path in (ROOT / "vit_jax").glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= 8 and set(top) >= {"vit_jax.errors", "vit_jax.files", "vit_jax.config"}


def test_each_subpackage_says_what_it_is_for_and_what_it_may_import():
    for path in PACKAGE:
        name = module_name(path)
        if path.name == "__init__.py" and name.count(".") == 1:
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert len(text) > 60 and ("import" in text or name == "vit_jax.cli"), name


def test_configs_import_only_the_config_module():
    def is_foreign(name: str) -> bool:
        is_ours = is_in(name, ("vit_jax.config",)) or name == "vit_jax"
        return not is_ours and name.split(".")[0] not in sys.stdlib_module_names

    assert offences(CONFIGS, is_foreign) == []


def test_nothing_imports_the_commands_or_the_configs():
    others = [
        path
        for path in PACKAGE
        if not is_in(module_name(path), ("vit_jax.cli", "vit_jax.__main__"))
    ]
    assert offences(others, lambda name: is_in(name, ("vit_jax.cli",))) == []
    everywhere = ("configs", "launch", "vit_jax.configs")
    assert offences(PACKAGE, lambda name: is_in(name, everywhere)) == []


def test_flax_stays_where_the_modules_are():
    others = [path for path in PACKAGE if not is_in(module_name(path), MAY_IMPORT_FLAX)]
    assert offences(others, lambda name: is_in(name, ("flax",))) == []


def test_tensorflow_is_never_imported_at_run_time():
    """Only the preparation of data may, and only inside the function that needs it."""
    at_top = []
    for path in PACKAGE:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            at_top += [f"{module_name(path)} imports {n}" for n in names if is_heavy(n)]
    assert at_top == []


def is_heavy(name: str) -> bool:
    return name.split(".")[0] in ("tensorflow", "torch", "transformers", "timm", "wandb")


@pytest.mark.parametrize("folder", ["vit_jax", "configs", "tests"])
def test_files_are_named_after_what_is_in_them(folder):
    named = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")]
    assert [str(path) for path in named if path.stem in EMPTY_NAMES] == []


def test_the_package_imports_quickly_and_without_other_frameworks():
    program = (
        "import json, sys, time\n"
        "start = time.perf_counter()\n"
        "import vit_jax\n"
        "print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    seconds, modules = json.loads(done.stdout)
    assert seconds < 2
    assert [name for name in modules if is_heavy(name)] == []


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["evaluate", "--help"]])
def test_help_imports_neither_jax_nor_numpy(words):
    program = (
        "import sys\n"
        "from vit_jax.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "found = {'jax', 'numpy', 'flax', 'grain', 'cv2'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, check=True)


def test_tests_have_eight_devices():
    assert jax.default_backend() != "cpu" or jax.device_count() == 8
