"""The data sets of a protocol: specs, opened on demand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from vit_jax import data
from vit_jax.data.relabel import with_classes
from vit_jax.data.remarks import one_class
from vit_jax.data.source import Source, shared_records
from vit_jax.data.specs import TRAIN_NAMES, open_splits
from vit_jax.errors import UserError


def no_progress(total: int, name: str) -> AbstractContextManager[Callable[[int], None]]:
    """A progress bar that shows nothing."""
    return contextlib.nullcontext(lambda count: None)


class DataSets(NamedTuple):
    """specs: see data/specs.py. data_dir: the directory of TFDS data sets.
    progress: (total, name) -> a context that takes the count so far.
    top_k: number of classes per image for the table of images.
    watched: for the data of a run, what it was evaluated on during training.
    """

    specs: tuple[str, ...]
    data_dir: str | None = None
    progress: Callable[[int, str], AbstractContextManager[Callable[[int], None]]] = no_progress
    top_k: int = 5
    watched: str = ""

    def one_spec(self) -> str:
        """The data set of a protocol that takes exactly one.

        Raises:
          UserError: there are several.
        """
        if len(self.specs) != 1:
            raise UserError("This suite takes one data set; give one with --data.")
        return self.specs[0]

    def open(self, spec: str = "") -> Source:
        """A data set, by default the only one; without a split, its evaluation split.

        Raises:
          UserError: it does not exist, or has no labels.
        """
        spec = data.evaluation_spec(spec or self.one_spec(), data_dir=self.data_dir)
        return data.open_source(spec, data_dir=self.data_dir, labelled=True)

    def validation(self, source: Source, spec: str, what: str) -> Source:
        """The data to choose a setting on, if `source` is the test data: the validation split, or
        what the run was evaluated on during training.

        Args:
          spec: other data, by default their validation split, or else test; "": the default.
          what: what is chosen, e.g. "threshold".

        Raises:
          UserError: there is none, or it shares records with `source`.
        """
        if not spec:
            base, splits, _ = open_splits(self.one_spec(), self.data_dir)
            if "validation" not in splits.names() and not self.watched:
                raise UserError(
                    f"{base} has no validation split to choose a {what} on, and test data must "
                    f"not be used; give other data with --{what}_data=SPEC."
                )
            spec = f"{base}[validation]" if "validation" in splits.names() else self.watched
        spec = data.evaluation_spec(spec, data_dir=self.data_dir, watch=True)
        found = data.open_source(spec, data_dir=self.data_dir, labelled=True)
        if shared := shared_records(found, source):
            raise UserError(
                f"A {what} must not be chosen on test data: {shared:,} records of "
                f"{found.spec} are in {source.spec}. Give others with --{what}_data=SPEC."
            )
        return found

    def training_and_evaluation(self, spec: str) -> tuple[Source, Source]:
        """Both splits of a data set, with the same classes under the same numbers.

        Raises:
          UserError: it does not exist, has no labels or a single class, or a split is named.
        """
        train, test = (
            data.open_source(split, data_dir=self.data_dir, labelled=True)
            for split in data.default_splits(spec, data_dir=self.data_dir)
        )
        if train.multilabel:
            raise UserError(
                f"{train.spec} has several labels per image, and this suite is for one; use "
                "--suite=classification."
            )
        if train.num_classes < 2:
            raise one_class(train)
        return train, with_classes(test, train.class_names, train.spec)

    def parts(self) -> list[Source]:
        """Opens what may be read: the split of a spec, or a data set's two splits, or one."""
        found: list[Source] = []
        for spec in self.specs:
            splits = [data.evaluation_spec(spec, data_dir=self.data_dir)]
            _, there, named = open_splits(spec, self.data_dir)
            if not named and set(there.names()) & set(TRAIN_NAMES):
                splits = [*data.default_splits(spec, data_dir=self.data_dir)]
            found += [
                data.open_source(split, data_dir=self.data_dir) for split in dict.fromkeys(splits)
            ]
        return found
