"""Whether an objective needs labels: a mark on its function, known before data and model exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Make = TypeVar("Make", bound=Callable)


def reads_no_labels(make: Make) -> Make:
    """Marks an objective's function: images without labels, or of one class, are accepted.

    The labels in its batches are arbitrary.
    """
    setattr(make, "reads_labels", False)  # noqa: B010 (mypy has no function attributes)
    return make


def reads_labels(make: Callable) -> bool:
    """Whether an objective's function lacks that mark."""
    return getattr(make, "reads_labels", True)
