"""The message of an error is one line, whatever it quotes."""

import pytest

from vit_jax.errors import UserError, one_line


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
    assert str(UserError(f"no image {quoted}.")) == f"no image {shown}."
    assert one_line(UserError(quoted)) == f"vit-jax: error: {shown}"
