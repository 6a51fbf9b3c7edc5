"""Speed beside other implementations, and what measures machines or asks their compilers.

Each contender is a process of its own; the contenders of a task take turns in short rounds, so that
whatever else the machine does falls on all of them, and the median round counts. May touch all that
training touches; nothing below imports it.
"""

from __future__ import annotations

from typing import Any

#: What is measured or known of one thing, by names: numbers, text, and more of them; JSON.
Row = dict[str, Any]
