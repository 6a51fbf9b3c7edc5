"""Options as signatures have them, as command lines and configurations give them."""

import re
from pathlib import Path
from typing import Literal

import pytest

from vit_jax.errors import UserError
from vit_jax.evaluation import options
from vit_jax.evaluation.protocols import EVALUATORS

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", EVALUATORS)
def test_a_signature_is_the_same_without_an_import(name):
    declared = options.declared(name)
    assert options.options_of(declared) == options.options_of(EVALUATORS[name])
    assert declared.__doc__ == EVALUATORS[name].__doc__


@pytest.mark.parametrize("name", EVALUATORS)
def test_a_default_is_read_as_it_is_shown_and_every_option_is_explained(name):
    """What --help shows can be typed again."""
    for option in options.options_of(EVALUATORS[name]).values():
        assert options.read(options.shown(option.default), option.kind, "x") == option.default
        assert options.read(option.default, option.kind, "x") == option.default
        assert len(option.text) > 10, option.name


@pytest.mark.parametrize(
    "value, kind, wanted",
    [
        ("5,10", tuple[int, ...], (5, 10)),
        ("(5,)", tuple[int, ...], (5,)),
        ([5, 10], tuple[int, ...], (5, 10)),
        (5, tuple[int, ...], (5,)),
        ("sweep", float | Literal["sweep"], "sweep"),
        ("1e3", float | Literal["sweep"], 1000.0),
        (3, float, 3.0),
        ("None", int | None, None),
        ("true", bool, True),
        (False, bool, False),
        ("", str, ""),
    ],
)
def test_values(value, kind, wanted):
    found = options.read(value, kind, "x")
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(
    "value, kind",
    [
        ("five", int), (2.5, int), (True, int), (True, float), ("5,x", tuple[int, ...]),
        ("", tuple[int, ...]), ((), tuple[int, ...]), (5, str), (1, bool), ("sweeep", Literal["a"]),
        (None, int), ([1], float | Literal["sweep"]),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused(value, kind):
    with pytest.raises(ValueError, match=r"^--x=.* must be "):
        options.read(value, kind, "--x")


def test_choices_are_wrong_for_the_user_and_types_for_the_command_line():
    """Exit codes: 1 and 2."""
    with pytest.raises(UserError, match="must be a number or sweep"):
        options.read("x", float | Literal["sweep"], "--l2")
    with pytest.raises(ValueError) as error:
        options.read("x", tuple[int, ...], "--k")
    assert not isinstance(error.value, UserError)


def test_the_documented_options_are_those_of_the_signatures():
    """On a difference, docs/evaluation.md takes the table of options.reference(EVALUATORS)."""
    page = (ROOT / "docs" / "evaluation.md").read_text()
    (table,) = re.findall(r"^\| option \| default \| \|\n(?:\|.*\n)+", page, re.MULTILINE)
    assert table.strip() == options.reference(EVALUATORS)
