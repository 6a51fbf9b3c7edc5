"""Benchmarks: speed beside other implementations, machines, and compilers' estimates.

Each contender is a separate process; the contenders of a task take turns in short rounds, so that
other load affects all of them, and the median round counts. May import all that training may;
nothing below imports it.
"""

from __future__ import annotations

from typing import Any

#: A JSON object of measurements or facts.
Row = dict[str, Any]
