"""Fills a template: python3 launch/render.py TEMPLATE NAME=VALUE... prints it.

`${NAME}` is replaced by VALUE. A name without a value, and a value without a name, is an error.
Needs nothing but Python.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def render(template: str, values: dict[str, str]) -> str:
    """Replaces `${NAME}` outside of comments; raises ValueError for a name on one side only."""
    lines = [line for line in template.splitlines(keepends=True) if not line.startswith("#")]
    text = "".join(lines).lstrip("\n")
    names = set(re.findall(r"\$\{(\w+)\}", text))
    if names != set(values):
        raise ValueError(f"{', '.join(sorted(names ^ set(values)))}: in one of template and values")
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], text)


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        sys.exit(print((__doc__ or "").strip()))
    path, *pairs = sys.argv[1:]
    try:
        print(render(Path(path).read_text(), dict(pair.split("=", 1) for pair in pairs)), end="")
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")
