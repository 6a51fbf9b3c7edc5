"""Records with several labels: their options, storage and counts.

The labels of such a record are (k,) int8: 1 for each class that it has. A record without any class
is an ordinary example. Withheld labels are NO_LABEL in every entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vit_jax.data.labels import NO_LABEL
from vit_jax.errors import UserError

#: ?multilabel=true: a record may have several labels. ?separator=; implies it.
MULTILABEL, SEPARATOR = "multilabel", "separator"
#: Limit on the label matrix, records x classes, one byte each.
MOST_BYTES = 16 * 2**30


def asked(options: Mapping[str, str], base: str) -> bool:
    """Whether the options of a spec mean several labels per record.

    Raises:
      UserError: an invalid value.
    """
    value = options.get(MULTILABEL, "true" if SEPARATOR in options else "false")
    if value not in ("true", "false"):
        raise UserError(f"{base}: {MULTILABEL}={value} must be {MULTILABEL}=true or =false.")
    if value == "false" and SEPARATOR in options:
        raise UserError(f"{base}: {SEPARATOR}= is for several labels, but {MULTILABEL}=false.")
    return value == "true"


def how(base: str, more: str = "") -> str:
    """The spec that requests it."""
    return f"{base}{'&' if '?' in base else '?'}{more or f'{MULTILABEL}=true'}"


def matrix(records: Sequence[Iterable[int] | None], num_classes: int, spec: str) -> np.ndarray:
    """(n, k) int8 from the class indices of n records; None: withheld.

    Raises:
      UserError: it would not fit into memory.
    """
    check_size(len(records), num_classes, spec)
    found = np.zeros((len(records), num_classes), np.int8)
    for row, numbers in zip(found, records, strict=True):
        if numbers is None:
            row[:] = NO_LABEL
        else:
            row[list(numbers)] = 1
    return found


def check_size(count: int, num_classes: int, spec: str) -> None:
    """Raises UserError for a matrix of labels that is too large."""
    if count * num_classes > MOST_BYTES:
        raise UserError(
            f"{spec}: {count:,} records of {num_classes:,} classes each take "
            f"{count * num_classes / 2**30:.0f} GiB for their labels; leave out rare classes."
        )


def withheld(labels: np.ndarray) -> np.ndarray:
    """Which labels (n,) or (n, k) are withheld: (n,) bool."""
    return np.less(labels if labels.ndim == 1 else labels.min(axis=1, initial=0), 0)


def counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of records per class, from labels (n,) or (n, k): (num_classes,) int64."""
    known = labels[~withheld(labels)]
    if known.ndim == 1:
        return np.bincount(known, minlength=num_classes)
    found = np.zeros(num_classes, np.int64)
    found[: known.shape[1]] = known.sum(axis=0, dtype=np.int64)
    return found


def from_numbers(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(n,) indices or (n, k') as (n, num_classes) int8; classes beyond k' are 0."""
    found = np.zeros((len(labels), num_classes), np.int8)
    if labels.ndim == 1:
        found[np.arange(len(labels)), labels] = 1
    else:
        found[:, : labels.shape[1]] = labels
    return found
