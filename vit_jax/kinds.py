"""Valid values of settings: kinds, with a description and a test."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import NamedTuple


class Kind(NamedTuple):
    """Valid values: a description, a test, and the Python type to parse text as."""

    text: str
    holds: Callable[[object], bool]
    type: type


def whole(low: int, high: int = 2**31 - 1) -> Kind:
    def holds(value: object) -> bool:
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            return False
        return low <= int(value) <= high

    most = "or more" if high == 2**31 - 1 else f"to {high:,}"
    return Kind(f"a whole number, {low} {most}", holds, int)


def number(text: str, test: Callable[[float], bool] = lambda value: True) -> Kind:
    def holds(value: object) -> bool:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return False
        return abs(float(value)) < 3.4e38 and test(float(value))  # finite in float32; NaN is not

    return Kind(f"a number{text}", holds, float)


def word(*words: str) -> Kind:
    *others, last = words
    text = f"{', '.join(others)} or {last}" if others else last
    return Kind(text, lambda value: isinstance(value, str) and value in words, str)


def either(one: Kind, other: Kind) -> Kind:
    text = f"{one.text}, or {other.text}"
    return Kind(text, lambda value: one.holds(value) or other.holds(value), object)


def each(kind: Kind, *counts: int) -> Kind:
    """A sequence of `counts` values; of any number without `counts`."""

    def holds(value: object) -> bool:
        if not isinstance(value, (list, tuple)) or (counts and len(value) not in counts):
            return False
        return all(map(kind.holds, value))

    count = f"{' or '.join(map(str, counts))} values, each " if counts else "a list, each "
    return Kind(count + kind.text, holds, tuple)


def sides(kind: Kind) -> Kind:
    """One value for both sides of an image, or (height, width)."""
    holds = either(kind, each(kind, 2)).holds
    return Kind(f"{kind.text}, or (height, width)", holds, object)


def rising(kind: Kind) -> Kind:
    least_most = each(kind, 2)

    def holds(value: object) -> bool:
        if not isinstance(value, (list, tuple)) or not least_most.holds(value):
            return False
        return value[0] <= value[1]

    return Kind(f"(least, most), each {kind.text}", holds, tuple)


TEXT = Kind("text", lambda value: isinstance(value, str), str)
FLAG = Kind("True or False", lambda value: isinstance(value, bool), bool)
SECTION = Kind("a configuration", lambda value: False, object)  # those are checked apart
COUNT, POSITIVE = whole(0), whole(1)
REAL = number("")
NONNEGATIVE = number(", 0 or more", lambda value: value >= 0)
ABOVE_0 = number(" above 0", lambda value: value > 0)
ABOVE_1 = number(" above 1", lambda value: value > 1)
FROM_0_TO_1 = number(" in [0, 1]", lambda value: 0 <= value <= 1)
UP_TO_1 = number(" in (0, 1]", lambda value: 0 < value <= 1)
BELOW_1 = number(" in [0, 1)", lambda value: 0 <= value < 1)
BETWEEN_0_AND_1 = number(" in (0, 1)", lambda value: 0 < value < 1)
PERCENT = number(" in (0, 100)", lambda value: 0 < value < 100)
BELOW_100 = number(" in [0, 100)", lambda value: 0 <= value < 100)
PIXELS = sides(POSITIVE)
DEVICES = either(whole(1), Kind("-1: all that are left", lambda value: value == -1, int))
