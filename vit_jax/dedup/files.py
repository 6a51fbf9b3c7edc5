"""The output of `vit-jax dedup`: a record per shard, then the ids and the matches."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from vit_jax import data
from vit_jax.data.source import Union
from vit_jax.dedup.page import Page
from vit_jax.dedup.search import Pair, Settings
from vit_jax.errors import UserError
from vit_jax.evaluation.per_image import write_csv
from vit_jax.files import replacing, write_text

IDS, MATCHES, PAGE = "ids.txt", "matches.csv", "index.html"


def shard_file(out: Path, shard: int, shards: int) -> Path:
    """The file of a shard, counted from 0; the name counts from 1."""
    return out / f"shard-{shard + 1}-of-{shards}.json"


def is_done(out: Path) -> bool:
    """Whether a directory is complete; ids.txt is written last."""
    return (out / IDS).exists()


def is_searched(file: Path, settings: Settings) -> bool:
    """Whether a shard was searched already, with the same settings.

    Raises:
      UserError: it was with other settings, and would be overwritten.
    """
    if not file.exists():
        return False
    there, _ = read_shard(file)
    for key, value in settings.items():
        if there.get(key) != value:
            raise UserError(
                f"{file} is from a search with {key} {there.get(key)!r} instead of {value!r} and "
                "would be overwritten; use another --out."
            )
    return True


def open_tests(specs: Sequence[str], data_dir: str | None) -> tuple[Union, list[tuple[str, str]]]:
    """The test sets as one source, and (spec, record name) of each of its images."""
    sources = [data.open_source(spec, data_dir=data_dir) for spec in specs]
    names = [
        (spec, name) for spec, source in zip(specs, sources, strict=True) for name in source.names()
    ]
    return Union(sources, ",".join(specs)), names


def fingerprints(test: Union) -> set[str]:
    """The same for each of the test sets."""
    return {source.fingerprint for source in test.sources}


def write_shard(file: Path, settings: Settings, pairs: Sequence[Pair]) -> None:
    """Writes the pairs of one shard, atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {**settings, "pairs": [astuple(pair) for pair in pairs]}
    write_text(file, json.dumps(record) + "\n")


def read_shard(file: Path) -> tuple[Settings, list[Pair]]:
    """The settings and the pairs of one shard.

    Raises:
      UserError: it is damaged.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return record, [Pair(*pair) for pair in record.pop("pairs")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged; remove it and run its shard again.") from error


def read_shards(out: Path) -> tuple[Settings, list[Pair]]:
    """The settings and the pairs of all shards in a directory, in the order of one whole search.

    Raises:
      UserError: there are none, or some are missing, damaged, or from another search.
    """
    files = {}
    for file in out.glob("shard-*.json"):
        if match := re.fullmatch(r"shard-(\d+)-of-(\d+)\.json", file.name):
            files[int(match[1]), int(match[2])] = file
    if not files:
        raise UserError(f"{out} has no shards; search first, with --train, --test and --shard.")
    counts = {count for _, count in files}
    if len(counts) > 1:
        raise UserError(
            f"{out} has shards of searches in {' and '.join(map(str, sorted(counts)))} parts; "
            "keep those of one search."
        )
    (count,) = counts
    missing = [f"{i}/{count}" for i in range(1, count + 1) if (i, count) not in files]
    if missing:
        more = ", ..." if len(missing) > 5 else ""
        raise UserError(
            f"{out} lacks the shards {', '.join(missing[:5])}{more}; run them with --shard."
        )
    first, *others = (file for _, file in sorted(files.items()))
    settings, pairs = read_shard(first)
    for file in others:
        record, found = read_shard(file)
        pairs += found
        for key, value in record.items():
            if value != settings.get(key):
                raise UserError(
                    f"{file} has {key} {value!r}, other shards {settings.get(key)!r}; "
                    "all must come from one search."
                )
    return settings, sorted(pairs, key=lambda pair: (pair.train, pair.test))


def write_results(out: Path, *, threshold: float | None = None) -> tuple[int, int]:
    """Writes matches.csv, index.html and then ids.txt from the shards in a directory.

    Without ids.txt the other files are left from an interrupted attempt, and are replaced.

    Args:
      threshold: minimum score of a duplicate; by default that of the search.

    Returns:
      The number of training images to remove, and the total.

    Raises:
      UserError: a result exists, the shards do not match, or the data changed.
    """
    if is_done(out):
        raise UserError(f"{out / IDS} exists and would be overwritten; use another --out.")
    settings, pairs = read_shards(out)
    threshold = settings["threshold"] if threshold is None else threshold
    if threshold < settings["floor"]:
        raise UserError(
            f"--threshold={threshold:g} is below {settings['floor']:g}, the lowest recorded score; "
            "search again with this threshold."
        )
    train = data.open_source(settings["train"], data_dir=settings["data_dir"])
    test, test_names = open_tests(settings["test"], settings["data_dir"])
    searched = ((train, settings["train_fingerprint"]), (test, settings["test_fingerprint"]))
    for source, before in searched:
        if source.fingerprint != before:
            raise UserError(f"{source.spec} has changed since the search; search again.")
    train_names = train.names()
    removed = sorted({pair.train for pair in pairs if pair.score >= threshold})
    columns = {
        "train": [train_names[pair.train] for pair in pairs],
        "test": [test_names[pair.test][1] for pair in pairs],
        "test_set": [test_names[pair.test][0] for pair in pairs],
        "score": [f"{pair.score:.4f}" for pair in pairs],
        "stage": [pair.stage for pair in pairs],
        "removed": ["yes" if pair.score >= threshold else "no" for pair in pairs],
    }
    with replacing(out / MATCHES) as partial:
        write_csv(partial, columns)
    show = Page(train, test, train_names, test_names)
    write_text(out / PAGE, show(settings, pairs, threshold))
    write_text(out / IDS, "".join(f"{train_names[row]}\n" for row in removed))
    return len(removed), len(train)
