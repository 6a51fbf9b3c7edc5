"""The message of an error is one line, whatever it quotes."""

import pytest

from vit_jax.errors import Preempted, UsageError, UserError, one_line


@pytest.mark.parametrize(
    ("quoted", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\r\tb", r"a\r\tb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\u2028b", r"a\u2028b"),
        ("K\u00e4se \u732b", "K\u00e4se \u732b"),
    ],
)
def test_control_characters_are_shown_and_nothing_else_changes(quoted, shown):
    for kind in (UserError, UsageError, Preempted):
        assert str(kind(f"no image {quoted}.")) == f"no image {shown}."
    assert one_line(UserError(quoted)) == f"vit-jax: error: {shown}"


def test_of_other_errors_the_first_line_counts():
    assert one_line(OSError("a\x1b\nb")).startswith(r"vit-jax: error: OSError: a\x1b (--debug")
