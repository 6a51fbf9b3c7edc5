"""What `vit-jax dedup` leaves behind: a record per shard, then the ids, the matches and a page."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from dataclasses import astuple
from html import escape
from pathlib import Path
from typing import Any

from vit_jax import data
from vit_jax.data.source import Union
from vit_jax.dedup.search import SIDE, Pair
from vit_jax.errors import UserError
from vit_jax.pages import document

IDS, MATCHES, PAGE = "ids.txt", "matches.csv", "index.html"
#: Pairs that a section of the page shows at most, and the width of a picture.
SHOWN, WIDTH = 200, 160

PAIRS_STYLE = """<style>
table { margin-bottom: 1.5rem }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1.25rem }
.pairs figure div { display: flex; gap: 2px }
.pairs img { width: 50%; aspect-ratio: 1; object-fit: contain }
.pairs .small { image-rendering: pixelated }
.pairs figcaption { font-size: .75rem; overflow-wrap: anywhere } figcaption b { color: var(--ink) }
</style>"""


def shard_file(out: Path, shard: int, shards: int) -> Path:
    """Where shard 0, 1, ... of several is recorded; people count from 1."""
    return out / f"shard-{shard + 1}-of-{shards}.json"


def check_free(*files: Path) -> None:
    """Raises UserError if one of the files exists."""
    for file in files:
        if file.exists():
            raise UserError(f"{file} exists and would be overwritten; name another --out.")


def open_tests(specs: Sequence[str], data_dir: str | None) -> tuple[Any, list[tuple[str, str]]]:
    """The test sets as one source, and (spec, record name) of each of its images."""
    sources = [data.open_source(spec, data_dir=data_dir) for spec in specs]
    names = [
        (spec, name)
        for spec, source in zip(specs, sources, strict=True)
        for name in data.record_names(source)
    ]
    return Union(sources, ",".join(specs)), names


def fingerprints(test: Union) -> set[str]:
    """Those of each of the test sets."""
    return {source.fingerprint for source in test.sources}


def write_shard(file: Path, settings: dict[str, Any], pairs: Sequence[Pair]) -> None:
    """Records the pairs that one shard found, all or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    record = {**settings, "pairs": [astuple(pair) for pair in pairs]}
    partial.write_text(json.dumps(record) + "\n", encoding="utf-8")
    os.replace(partial, file)


def read_shards(out: Path) -> tuple[dict[str, Any], list[Pair]]:
    """The settings and the pairs of all shards in a directory, in the order of one whole search.

    Raises:
      UserError: there are none, some are missing, damaged, or not of the same search.
    """
    files = {}
    for file in out.glob("shard-*.json"):
        if match := re.fullmatch(r"shard-(\d+)-of-(\d+)\.json", file.name):
            files[int(match[1]), int(match[2])] = file
    if not files:
        raise UserError(f"{out} holds no shards; search first, with --train, --test and --shard.")
    counts = {count for _, count in files}
    if len(counts) > 1:
        raise UserError(
            f"{out} holds shards of searches in {' and '.join(map(str, sorted(counts)))} parts; "
            "keep those of one."
        )
    (count,) = counts
    missing = [f"{i}/{count}" for i in range(1, count + 1) if (i, count) not in files]
    if missing:
        raise UserError(f"{out} lacks the shards {', '.join(missing)}; run them with --shard.")
    settings: dict[str, Any] = {}
    pairs = []
    for _, file in sorted(files.items()):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            pairs += [Pair(*pair) for pair in record.pop("pairs")]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged; remove it and run its shard again.") from error
        settings = settings or record
        for key in record:
            if record[key] != settings.get(key):
                raise UserError(
                    f"{file} has {key} {record[key]!r}, other shards {settings.get(key)!r}; "
                    "all must come from one search."
                )
    return settings, sorted(pairs, key=lambda pair: (pair.train, pair.test))


def write_results(out: Path, *, threshold: float | None = None) -> tuple[int, int]:
    """Writes ids.txt, matches.csv and index.html from the shards in a directory.

    Args:
      threshold: the least score of a duplicate; by default that of the search.

    Returns:
      How many training images are to be removed, and of how many.

    Raises:
      UserError: a result exists, the shards do not fit, or the data is no longer the same.
    """
    check_free(*(out / name for name in (IDS, MATCHES, PAGE)))
    settings, pairs = read_shards(out)
    threshold = settings["threshold"] if threshold is None else threshold
    if threshold < settings["floor"]:
        raise UserError(
            f"--threshold={threshold:g} is below {settings['floor']:g}, the least score that was "
            "recorded; search again with this threshold."
        )
    train = data.open_source(settings["train"], data_dir=settings["data_dir"])
    test, test_names = open_tests(settings["test"], settings["data_dir"])
    for name, source in (("train", train), ("test", test)):
        if source.fingerprint != settings[f"{name}_fingerprint"]:
            raise UserError(f"{source.spec} is no longer what was searched; search again.")
    train_names = data.record_names(train)
    removed = sorted({pair.train for pair in pairs if pair.score >= threshold})
    with open(out / MATCHES, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("train", "test", "test_set", "score", "stage", "removed"))
        for pair in pairs:
            spec, name = test_names[pair.test]
            verdict = "yes" if pair.score >= threshold else "no"
            score = f"{pair.score:.4f}"
            writer.writerow((train_names[pair.train], name, spec, score, pair.stage, verdict))
    show = Page(train, test, train_names, test_names)
    (out / PAGE).write_text(show(settings, pairs, threshold), encoding="utf-8")
    (out / IDS).write_text("".join(f"{train_names[row]}\n" for row in removed), encoding="utf-8")
    return len(removed), len(train)


class Page:
    """The page on which a person chooses a threshold."""

    def __init__(self, train: Any, test: Any, train_names: Sequence[str], test_names: Sequence):
        self.train, self.test = train, test
        self.train_names, self.test_names = train_names, test_names

    def __call__(self, settings: dict[str, Any], pairs: Sequence[Pair], threshold: float) -> str:
        removed = [pair for pair in pairs if pair.score >= threshold and pair.stage != "exact"]
        kept = [pair for pair in pairs if pair.score < threshold]
        exact = [pair for pair in pairs if pair.stage == "exact"]
        return document.document(
            "Training images that repeat test images",
            [
                PAIRS_STYLE,
                "<h1>Training images that repeat test images</h1>",
                "<p>Left the training image, right the test image.</p>",
                self.facts(settings, pairs, threshold),
                counts(pairs, settings["floor"], threshold),
                self.section("Removed, the least similar first", sorted(removed, key=by_score)),
                self.section(
                    "Kept: just below the threshold",
                    sorted(kept, key=by_score, reverse=True),
                ),
                self.section("Removed: the same pixels", exact),
            ],
        )

    def facts(self, settings: dict[str, Any], pairs: Sequence[Pair], threshold: float) -> str:
        rows = [
            ("training images", f"{len(self.train):,}, {settings['train']}"),
            ("test images", f"{len(self.test):,}, {', '.join(settings['test'])}"),
            ("score", settings["descriptor"]),
            ("threshold", f"{threshold:g}"),
            ("training images removed", f"{count_images(pairs, threshold):,}"),
        ]
        cells = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in rows)
        return f"<table>{cells}</table>"

    def section(self, heading: str, pairs: Sequence[Pair]) -> str:
        """Pairs side by side, as many as the page may hold."""
        shown = pairs[:SHOWN]
        of = f" ({len(shown)} of {len(pairs):,} pairs)" if len(shown) < len(pairs) else ""
        figures = "".join(map(self.figure, shown)) or "<p>None.</p>"
        return f'<h2>{escape(heading)}{of}</h2><div class="pairs">{figures}</div>'

    def figure(self, pair: Pair) -> str:
        spec, name = self.test_names[pair.test]
        names = self.train_names[pair.train], name
        images = self.image(self.train, pair.train), self.image(self.test, pair.test)
        pictures = "".join(
            f'<img class="{"small" if max(image.shape[:2]) <= 2 * SIDE else ""}" '
            f'src="{document.data_url(image, WIDTH)}" alt="{escape(text)}">'
            for image, text in zip(images, names, strict=True)
        )
        return (
            f"<figure><div>{pictures}</div><figcaption><b>{pair.score:.3f}</b> "
            f"{escape(names[0])}<br>{escape(spec)}: {escape(name)}</figcaption></figure>"
        )

    def image(self, source: Any, row: int):
        record = source[row]
        return data.decode(record["image"], record["name"])


def by_score(pair: Pair) -> tuple[float, int, int]:
    return pair.score, -pair.train, -pair.test


def count_images(pairs: Sequence[Pair], threshold: float) -> int:
    """How many training images have a match with this score or more."""
    return len({pair.train for pair in pairs if pair.score >= threshold})


def counts(pairs: Sequence[Pair], floor: float, threshold: float) -> str:
    """A table of what other thresholds would remove."""
    steps = sorted({threshold, *(i / 20 for i in range(20) if i / 20 >= floor)})
    rows = "".join(
        f"<tr><td>{step:g}{' (chosen)' if step == threshold else ''}</td>"
        f"<td>{count_images(pairs, step):,}</td></tr>"
        for step in steps
    )
    return f"<table><tr><th>threshold</th><th>images removed</th></tr>{rows}</table>"
