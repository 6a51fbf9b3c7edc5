"""`tfds:NAME`: prepared TensorFlow Datasets, read from ArrayRecord without TensorFlow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vit_jax.data import multilabel
from vit_jax.data.columns import Columns, ManyColumns
from vit_jax.data.source import Rows, TableSource
from vit_jax.data.splits import repeats, slice_split
from vit_jax.errors import UserError, first_line, nearest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils.shard_utils import FileInstruction


class TfdsSplits:
    """The splits of a prepared TFDS data set, read from ArrayRecord without TensorFlow."""

    def __init__(self, name: str, data_dir: str | None, options: Mapping[str, str] | None = None):
        """options: "image" and "label", the columns if not the usual ones; "multilabel" for a label
        that is a list of classes, or has 0 or 1 for each.
        """
        import tensorflow_datasets as tfds

        options = options or {}
        self.tfds, self.name = tfds, name
        query = "&".join(f"{key}={value}" for key, value in options.items())
        self.base = f"tfds:{name}{'?' if query else ''}{query}"
        where = os.path.expanduser(
            data_dir or os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR
        )
        try:
            self.builder = tfds.builder(name, data_dir=data_dir)
        except Exception as error:
            unknown = isinstance(error, tfds.core.registered.DatasetNotFoundError)
            reason = "" if unknown else f" TFDS says: {first_line(error)}"
            raise UserError(
                f"There is no prepared TFDS data set {name!r} in {where}; "
                f"run `vit-jax prepare tfds:{name}`, or set config.data.data_dir.{reason}"
            ) from error
        if not self.builder.info.splits:
            raise UserError(
                f"The TFDS data set {name!r} is not prepared in {where}; "
                f"run `vit-jax prepare tfds:{name}`, or set config.data.data_dir."
            )
        use_array_record(self.builder.info)
        keys = self.builder.info.supervised_keys or ("image", "label")
        self.image_key = options.get("image", keys[0])
        self.label_key = options.get("label", keys[1])
        self.multilabel = multilabel.asked(options, self.base)

    def names(self) -> list[str]:
        return list(self.builder.info.splits)

    def __call__(self, split: str) -> TableSource:
        spec, info = f"{self.base}[{split}]", self.builder.info
        rows = self.rows(split)
        feature = dict(info.features.items()).get(self.label_key)
        classes = getattr(feature, "num_classes", None)
        listed = self.is_list(feature)
        if self.multilabel and not listed:
            classes = self.width_of_matrix(feature)
        elif listed and classes and not self.multilabel:
            raise UserError(
                f"{spec}: {self.label_key} has several labels per record; read it with "
                f"{multilabel.how(self.base)}"
            )
        if not classes or self.image_key not in info.features:
            labels = [
                key
                for key, other in info.features.items()
                if getattr(other, "num_classes", None) and self.is_list(other) == self.multilabel
            ]
            what = "image" if self.image_key not in info.features else "class label"
            raise UserError(
                f"{spec} has no {what} {getattr(self, f'{what.split()[-1]}_key')!r}; it has "
                f"{', '.join(info.features)}; labels are {', '.join(labels) or 'none of them'}. "
                f"Name it: tfds:{self.name}?{what.split()[-1]}=COLUMN"
            )
        names = getattr(feature, "names", None) or list(map(str, range(classes)))
        read = Columns(self.image_key, self.label_key)
        if self.multilabel:
            multilabel.check_size(len(rows), classes, spec)
            read = ManyColumns(self.image_key, self.label_key, classes if listed else 0)
        version = str(info.version)
        sizes = {name: part.num_examples for name, part in info.splits.items()}
        parts = slice_split(split, sizes, self.base)
        stored = [(f"tfds:{self.name}/{version}/{name}", part) for name, part in parts]
        return TableSource(
            rows,
            read,
            names,
            spec=spec,
            version=version,
            stored=stored,
            notes=repeats(parts, spec),
            multilabel=self.multilabel,
        )

    def is_list(self, feature: object) -> bool:
        """Whether a feature is a list."""
        return isinstance(feature, self.tfds.features.Sequence)

    def width_of_matrix(self, feature: tfds.features.FeatureConnector | None) -> int:
        """The length of a feature that has 0 or 1 for each class; 0 if it is something else."""
        if feature is None or type(feature) is not self.tfds.features.Tensor:
            return 0
        return int(feature.shape[0] or 0) if len(feature.shape) == 1 else 0

    def rows(self, split: str) -> Rows:
        """The records of a split as stored, images still encoded."""
        spec, info = f"{self.base}[{split}]", self.builder.info
        for part in re.split(r"\+", re.sub(r"\[[^\]]*\]", "", split)):
            if part.strip() not in info.splits:
                raise UserError(
                    f"{spec}: there is no split {part.strip()!r}; there are "
                    f"{', '.join(info.splits)}.{nearest(part, info.splits)}"
                )
        try:
            self.instructions(split)
        except ValueError as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise UserError(f"{spec} is not a part of the data set: {reason}.") from error
        encoded = {
            key: self.tfds.decode.SkipDecoding()
            for key, feature in info.features.items()
            if isinstance(feature, self.tfds.features.Image)
        }
        try:
            rows = self.builder.as_data_source(split, decoders=encoded)
        except NotImplementedError as error:
            raise UserError(
                f"{spec} is stored as TFRecord, which needs TensorFlow to read; "
                f"run `vit-jax prepare tfds:{self.name}` once to convert it to ArrayRecord."
            ) from error
        check_shards(self.instructions(split), spec)
        return rows

    def instructions(self, split: str) -> Iterable[FileInstruction]:
        """The ArrayRecord files of a split."""
        return self.builder.info.splits[split].file_instructions


def use_array_record(info: tfds.core.DatasetInfo) -> bool:
    """Makes TFDS read ArrayRecord if a data set has it among several formats."""
    # Builders with code in TFDS ignore the alternative formats of dataset_info.json.
    formats = {info.file_format.value, *info.as_proto.alternative_file_formats}
    if "array_record" in formats and info.file_format.value != "array_record":
        info.set_file_format("array_record", override=True, override_if_initialized=True)
    return "array_record" in formats


def check_shards(instructions: Iterable[FileInstruction], spec: str) -> None:
    """Raises UserError for a local ArrayRecord file that is missing or has a wrong record count.

    TFDS trusts its metadata, so a truncated file would fail in the middle of a run.
    """
    from array_record.python import array_record_module

    for shard in instructions:
        file = str(shard.filename)
        if "://" in file:
            continue
        try:
            reader = array_record_module.ArrayRecordReader(file)
            held = reader.num_records()
            reader.close()
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"{spec}: {file} cannot be read ({reason}); prepare it again."
            ) from error
        if held != shard.examples_in_shard:
            raise UserError(
                f"{spec}: {file} should have {shard.examples_in_shard} examples and has {held}; "
                "prepare the data set again."
            )
