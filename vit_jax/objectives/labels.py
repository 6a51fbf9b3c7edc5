"""Whether an objective needs labels: known of its function, before any data or model exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Make = TypeVar("Make", bound=Callable)


def reads_no_labels(make: Make) -> Make:
    """Marks a function that makes an objective: images without labels, or of one class, will do.

    The labels in its batches may be anything.
    """
    setattr(make, "reads_labels", False)  # noqa: B010 (mypy knows no attributes of functions)
    return make


def reads_labels(make: Callable) -> bool:
    """Whether an objective's function is not marked so."""
    return getattr(make, "reads_labels", True)
