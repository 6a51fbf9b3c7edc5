"""No foreign setting is ignored: each is read, changes nothing for a reason, or is refused by name.

A table has a line for every setting that the other side's own classes know. What stands in a
configuration and in no table is refused as well, where the other side would take it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from vit_jax.errors import UserError, nearest

#: A JSON object of the other side.
Values = Mapping[str, Any]


class Read(NamedTuple):
    """A setting that is honoured: by name, or because the arrays must agree with it."""


class Only(NamedTuple):
    """A setting of which our models have these values alone."""

    values: tuple[Any, ...]


class Nothing(NamedTuple):
    """A setting that changes neither pixels nor inference, and why."""

    why: str


READ = Read()
OFF = Only((False, None, 0))
TRAINING = Nothing("it matters in training alone, which has its own settings here")
WORDS = Nothing("names and remarks")
Table = Mapping[str, Read | Only | Nothing]


def check(values: Values, table: Table, where: str, *, strict: bool = True) -> None:
    """Raises UserError that names the first setting that our models cannot follow.

    Args:
      strict: settings that the table does not know are refused; otherwise they are said.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} holds no settings but a {type(values).__name__}.")
    unknown = []
    for key, value in values.items():
        rule = table.get(key)
        if rule is None:
            unknown.append(key)
        elif isinstance(rule, Only) and not any(_equal(value, one) for one in rule.values):
            refuse(where, key, value)
    if unknown and strict:
        raise UserError(
            f"{where}: {unknown[0]}={values[unknown[0]]!r} is a setting that is not known here."
            f"{nearest(unknown[0], table)}"
        )
    if unknown:
        print(f"{where}: not read, as they are no settings of this model: {', '.join(unknown)}")


def refuse(
    where: str, key: str, value: Any, why: str = "our models have no place for it"
) -> NoReturn:
    """Raises UserError for a setting."""
    raise UserError(f"{where}: {key}={value!r} cannot be followed: {why}.")


def get(values: Values, key: str, default: Any, where: str, parse: Callable[[Any], Any]) -> Any:
    """A setting as `parse` makes it; the default where it is missing or null.

    Raises:
      UserError: `parse` fails; names the setting.
    """
    value = values.get(key)
    if value is None:
        return default
    try:
        return parse(value)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        raise UserError(f"{where}: {key}={value!r} is no value of this setting.") from None


def flag(value: Any) -> bool:
    """True or False, and nothing that is only like it."""
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def count(value: Any) -> int:
    """A positive whole number."""
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(value)
    return int(value)


def _equal(value: Any, one: Any) -> bool:
    """0 is not False here, nor 1.0 True: JSON tells them apart, and so do people."""
    return value == one and (isinstance(value, bool) == isinstance(one, bool) or one is None)


def class_names(names: Any, classes: int, where: str) -> tuple[str, ...]:
    """The names of `classes` classes; () where there are none, or another number, which is said."""
    names = tuple(names.values() if isinstance(names, Mapping) else names)
    if names and len(names) != classes:
        print(
            f"{where}: names {len(names)} classes and the weights have {classes}; the names are "
            "left out, and classes are known by their numbers"
        )
        return ()
    return tuple(map(str, names))
