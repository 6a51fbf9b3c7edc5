"""The options of an evaluator, read from its signature and docstring.

    def worst_class(forward: Forward, data: DataSets, *, at_least: int = 1) -> Result:

has the option `at_least`: the flag --worst_class.at_least, and the config key
config.evaluators.worst_class.at_least. Its help text is in the docstring, under "Args:".
"""

from __future__ import annotations

import ast
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from vit_jax.errors import UserError, nearest


class Option(NamedTuple):
    """kind: its type. text: its description, in one line."""

    name: str
    kind: object
    default: object
    text: str


def options_of(evaluator: Callable, name: str = "") -> dict[str, Option]:
    """{name: Option}, in the order of the signature.

    Raises:
      UserError: it is not an evaluator, or an option has no default or an unsupported type.
    """
    name = name or getattr(evaluator, "__name__", str(evaluator))
    try:
        takes = list(inspect.signature(evaluator).parameters.values())
        kinds = typing.get_type_hints(evaluator)
    except (TypeError, ValueError, NameError) as error:
        raise UserError(f"{name} is not an evaluator ({error}).") from error
    own = takes[2:]
    if len(takes) < 2 or any(p.kind is not p.KEYWORD_ONLY or p.default is p.empty for p in own):
        raise UserError(
            f"{name} is not an evaluator: define {name}(forward, data, *, option=default)."
        )
    texts = _arguments(inspect.getdoc(evaluator) or "")
    found = {}
    for p in own:
        kind = kinds.get(p.name, type(p.default))
        try:
            read(p.default, kind, p.name)
        except ValueError as error:
            raise UserError(f"The default of {name}'s option {error}") from error
        found[p.name] = Option(p.name, kind, p.default, texts.get(p.name, ""))
    return found


def declared(name: str) -> Callable:
    """The signature and docstring of the package's evaluator `name`, from the source of NAME.py.

    The file is parsed, not imported: importing JAX would take seconds of `--help`.
    """
    tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
    kept: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            node.body, node.returns = node.body[:1], None
            for given in node.args.args:  # forward and data, whose types are not imported
                given.annotation = None
            kept.append(node)
        elif isinstance(node, ast.Assign) and not any(
            isinstance(part, (ast.Name, ast.Call)) for part in ast.walk(node.value)
        ):
            kept.append(node)  # constants used as defaults
    names: dict[str, object] = {"Literal": Literal}
    exec(compile(ast.Module(kept, []), f"{name}.py", "exec"), names)
    found = names[name]
    assert callable(found)
    return found


def _arguments(doc: str) -> dict[str, str]:
    """{name: text} of the section "Args:" of a docstring."""
    section = re.search(r"^Args:\n((?:  .*\n?|\n)*)", doc, re.MULTILINE)
    entries = re.findall(
        r"^  (\w+): (.*(?:\n    .*)*)", section[1] if section else "", re.MULTILINE
    )
    return {name: " ".join(text.split()) for name, text in entries}


def read(value: object, kind: object, where: str) -> object:
    """`value` as the type of an option; text is parsed as on a command line: "5,10", "sweep".

    Args:
      kind: bool, int, float, str, tuple[T, ...], Literal[...], None, or a union of them.
      where: the name of the setting, for messages.

    Raises:
      UserError: it is not a choice of the Literal.
      ValueError: it has the wrong type.
    """
    inside = typing.get_args(kind)
    wrong = f"{where}={value!r} must be {describe(kind)}."
    if _is_union(kind):
        for one in inside:
            try:
                return read(value, one, where)
            except ValueError:
                continue
        raise (UserError if any(map(_is_choice, inside)) else ValueError)(wrong)
    if _is_choice(kind):
        if value in inside:
            return value
        raise UserError(wrong)
    if typing.get_origin(kind) is tuple:
        text = value.strip("()[] ") if isinstance(value, str) else value
        parts = [p for p in text.split(",") if p.strip()] if isinstance(text, str) else text
        parts = parts if isinstance(parts, (list, tuple)) else [parts]
        if not parts:
            raise ValueError(wrong)
        try:
            return tuple(read(part, inside[0], where) for part in parts)
        except ValueError as error:
            raise type(error)(wrong) from None
    if kind is type(None) and value in (None, "None"):
        return None
    if kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if kind is str and isinstance(value, str):
        return value
    try:
        if kind is int and isinstance(value, (int, str)) and not isinstance(value, bool):
            return int(value)
        if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        raise ValueError(wrong) from None
    raise ValueError(wrong)


def _is_union(kind: object) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _is_choice(kind: object) -> bool:
    return typing.get_origin(kind) is Literal


WORDS: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "None",
}


def describe(kind: object) -> str:
    """A type in words."""
    inside = typing.get_args(kind)
    if _is_union(kind):
        return " or ".join(describe(one) for one in inside if one is not type(None))
    if _is_choice(kind):
        return " or ".join(map(str, inside))
    if typing.get_origin(kind) is tuple:
        return f"{WORDS[inside[0]].removeprefix('a ')}s, separated by commas"
    if kind not in WORDS:
        raise UserError(f"options cannot be {kind}; use bool, int, float, str, Literal or tuple.")
    return WORDS[kind]


def shown(value: object) -> str:
    """A default as written on a command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def chosen(
    known: Mapping[str, Option], given: Mapping[str, object], where: str
) -> dict[str, object]:
    """All options: the given values, and the defaults of the others.

    Args:
      where: the section, e.g. "config.evaluators.knn".

    Raises:
      UserError: an unknown option (names the nearest), or a value of the wrong type.
    """
    values = {name: option.default for name, option in known.items()}
    for name, value in given.items():
        if name not in known:
            hint = nearest(f"{where}.{name}", [f"{where}.{other}" for other in known])
            raise UserError(f"{where}.{name} is not a setting.{hint}")
        try:
            values[name] = read(value, known[name].kind, f"{where}.{name}")
        except ValueError as error:
            raise UserError(str(error)) from None
    return values


def reference(table: Mapping[str, Callable]) -> str:
    """A table of all options in Markdown: docs/evaluation.md."""
    lines = ["| option | default | |", "|-|-|-|"]
    for name, evaluator in table.items():
        for option in options_of(evaluator).values():
            default = f"`{shown(option.default)}`" if option.default not in ("", None) else "–"
            lines.append(f"| `{name}.{option.name}` | {default} | {option.text.rstrip('.')} |")
    return "\n".join(lines)
