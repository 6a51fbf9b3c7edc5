"""vit-jax configs: list the experiments of the package, or copy one to edit.

example:
  vit-jax configs
  vit-jax configs cp finetune my_finetune.py
  vit-jax train --config=my_finetune.py:B/16,folder:/data/pets \\
      --workdir=/runs/pets

`configs` lists each with the first line of its docstring. `configs cp NAME [FILE]` copies one, by
default into this directory under its own name; an existing file is never overwritten.
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

from absl import flags as absl_flags

from vit_jax import config as configuration, files
from vit_jax.cli import help
from vit_jax.errors import UsageError, UserError, nearest


def define(flags: absl_flags.FlagValues) -> None:
    del flags


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    if not arguments:
        rows = listed()
        width = max(map(len, rows))
        for name, line in rows.items():
            begin = f"{name:<{width}}  "
            print(help.entry(begin, line) if sys.stdout.isatty() else begin + line)
        return
    action, *names = arguments
    if action != "cp" or len(names) not in (1, 2):
        raise UsageError("usage: `vit-jax configs`, or `vit-jax configs cp NAME [FILE]`.")
    print(copy(*names))


def listed() -> dict[str, str]:
    """{name: the first line of its docstring} of every shipped config, studies last."""
    root = Path(configuration.shipped())
    found = [*sorted(root.glob("*.py")), *sorted((root / "studies").glob("*.py"))]
    return {
        path.relative_to(root).as_posix(): first_line(path)
        for path in found
        if path.name != "__init__.py"
    }


def first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def find(name: str) -> str:
    """The shipped config of a name: finetune, configs/finetune.py, studies/shape, shape.

    Raises:
      UserError: there is none; names the nearest.
    """
    there = list(listed())
    wanted = name.removeprefix("configs/").removesuffix(".py") + ".py"
    for short in (str, os.path.basename):  # a study may have the same name as a config
        if found := next((path for path in there if short(path) == wanted), None):
            return found
    raise UserError(
        f"There is no config {name!r}.{nearest(wanted, there)} `vit-jax configs` lists them."
    )


def copy(name: str, target: str = "") -> str:
    """Copies a config; prints where it is and how to use it.

    Raises:
      UserError: there is no such config, or the target exists.
    """
    if ":" in name:
        raise UserError(f"{name}: give the config without its argument, {name.partition(':')[0]}.")
    found = Path(configuration.shipped()) / find(name)
    place = Path(target or found.name)
    if place.is_dir():
        place = place / found.name
    if os.path.lexists(place):
        raise UserError(f"{place} exists and is not overwritten; choose another FILE.")
    if place.suffix != ".py":
        raise UserError(f"{place} must end with .py: a config is a Python file.")
    files.write_text(place, found.read_text(encoding="utf-8"))
    command = "study" if found.parent.name == "studies" else "train"
    return f"{place}, a copy of {found.name}: vit-jax {command} --config={place} --workdir=DIR"
