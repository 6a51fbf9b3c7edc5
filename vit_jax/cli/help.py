"""The text of `--help`, in 80 columns: a command's docstring, its flags, and the settings."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from types import ModuleType

from absl import flags as absl_flags

COLUMNS = 80


def overview(commands: Mapping[str, str]) -> str:
    """Every command, one per line."""
    width = max(map(len, commands))
    rows = "\n".join(entry(f"  {name:<{width}}  ", text) for name, text in commands.items())
    return (
        "usage: vit-jax COMMAND [--flag=value ...]\n\n"
        f"The Vision Transformer in JAX.\n\n{rows}\n\n"
        "vit-jax COMMAND --help shows an example and every flag. A first run:\n"
        "  vit-jax train --config=configs/quickstart.py --workdir=/tmp/quickstart"
    )


def of_command(command: ModuleType, flags: absl_flags.FlagValues) -> str:
    """A command's docstring, its flags, and the settings if it takes them."""
    rows = [reflow((command.__doc__ or "").strip()), "\nflags:"]
    for key in sorted(flags):
        flag = flags[key]
        default = f" [{flag.default}]" if flag.default not in (None, "", False, []) else ""
        text = flag.help.partition(";\n")[0]  # absl adds to those that may be repeated
        rows += [f"  --{key}", entry(" " * 6, f"{text}{default}")]
    if "set" in flags:
        from vit_jax import settings

        rows.append("\nsettings, as --config.KEY=VALUE:")
        for key, kind, meaning in settings.rows():
            rows += [hanging(f"  {key}  ({kind})"), entry(" " * 6, meaning)]
    return "\n".join(rows)


def entry(begin: str, text: str) -> str:
    """Text after `begin`, with a hanging indent of its width."""
    return textwrap.fill(
        text,
        COLUMNS,
        initial_indent=begin,
        subsequent_indent=" " * len(begin),
        break_on_hyphens=False,
    )


def hanging(text: str) -> str:
    return textwrap.fill(text, COLUMNS, subsequent_indent=" " * 4, drop_whitespace=True)


def reflow(text: str) -> str:
    """Paragraphs wrapped to COLUMNS; indented lines, such as examples, are kept."""
    lines: list[str] = []
    paragraph: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line and not line.startswith(" "):
            paragraph.append(line)
            continue
        if paragraph:
            lines.append(textwrap.fill(" ".join(paragraph), COLUMNS, break_on_hyphens=False))
            paragraph = []
        lines.append(line)
    return "\n".join(lines).rstrip()
