"""Which values of a parametrized test are tried each time, and which once a week."""

import pytest


def often(*values, weekly=()):
    """`values`, and the `weekly` ones marked `long`; several arguments are a tuple."""
    marked = (value if isinstance(value, tuple) else (value,) for value in weekly)
    return [*values, *(pytest.param(*value, marks=pytest.mark.long) for value in marked)]
