"""Foreign settings are never silently ignored: each is read, irrelevant for a reason, or refused.

A table has a line for every setting of the other library's classes. A setting in a configuration
that is in no table is refused as well, if the other library would accept it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from vit_jax.errors import UserError, nearest, printable

#: A JSON object of the other library.
Values = Mapping[str, Any]


class Read(NamedTuple):
    """A setting that is read by name, or that the arrays must agree with."""


class Only(NamedTuple):
    """A setting for which our models support only these values."""

    values: tuple[Any, ...]


class Nothing(NamedTuple):
    """A setting that affects neither pixels nor inference, and why."""

    why: str


READ = Read()
OFF = Only((False, None, 0))
TRAINING = Nothing("it is for training only, which has its own settings here")
WORDS = Nothing("names and remarks")
Table = Mapping[str, Read | Only | Nothing]


def check(values: Values, table: Table, where: str, *, strict: bool = True) -> None:
    """Raises UserError for the first setting that our models do not support.

    Args:
      strict: refuse settings that are not in the table; otherwise print a note.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} has a {type(values).__name__} instead of settings.")
    unknown = []
    for key, value in values.items():
        rule = table.get(key)
        if rule is None:
            unknown.append(key)
        elif isinstance(rule, Only) and not any(_equal(value, one) for one in rule.values):
            refuse(where, key, value)
    if unknown and strict:
        raise UserError(
            f"{where}: {unknown[0]}={values[unknown[0]]!r} is an unknown setting."
            f"{nearest(unknown[0], table)}"
        )
    if unknown:
        names = printable(", ".join(unknown))
        print(f"{where}: ignored, not settings of this model: {names}")


def refuse(where: str, key: str, value: Any, why: str = "our models do not support it") -> NoReturn:
    """Raises UserError for a setting."""
    raise UserError(f"{where}: {key}={value!r} is not supported: {why}.")


def get(values: Values, key: str, default: Any, where: str, parse: Callable[[Any], Any]) -> Any:
    """A setting, parsed by `parse`; the default if it is missing or null.

    Raises:
      UserError: `parse` fails; names the setting.
    """
    value = values.get(key)
    if value is None:
        return default
    try:
        return parse(value)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        raise UserError(f"{where}: {key}={value!r} is not a valid value.") from None


def flag(value: Any) -> bool:
    """Exactly True or False."""
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def count(value: Any) -> int:
    """A positive whole number."""
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(value)
    return int(value)


def _equal(value: Any, one: Any) -> bool:
    """Equality in which 0 is not False, nor 1.0 True, as in JSON."""
    return value == one and (isinstance(value, bool) == isinstance(one, bool) or one is None)


def class_names(names: Any, classes: int, where: str) -> tuple[str, ...]:
    """The names of `classes` classes; () if there are none, or (with a note) a wrong number."""
    names = tuple(names.values() if isinstance(names, Mapping) else names)
    if names and len(names) != classes:
        print(
            f"{where}: names {len(names)} classes but the weights have {classes}; names are "
            "ignored, and classes are numbered"
        )
        return ()
    return tuple(map(str, names))
