"""The page of pairs to judge the threshold of `vit-jax dedup` by."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vit_jax import data
from vit_jax.data import Source
from vit_jax.dedup.search import SIDE, Pair, Settings
from vit_jax.pages.document import data_url, document, facts_table, footer, header

#: Maximum number of pairs in a section of the page, and the width of a picture.
SHOWN, WIDTH = 200, 160


class Page:
    """The page to choose a threshold by."""

    def __init__(
        self, train: Source, test: Source, train_names: Sequence[str], test_names: Sequence
    ):
        self.train, self.test = train, test
        self.train_names, self.test_names = train_names, test_names

    def __call__(self, settings: Settings, pairs: Sequence[Pair], threshold: float) -> str:
        removed = [pair for pair in pairs if pair.score >= threshold and pair.stage != "exact"]
        kept = [pair for pair in pairs if pair.score < threshold]
        exact = [pair for pair in pairs if pair.stage == "exact"]
        return document(
            "Training images that repeat test images",
            [
                header(
                    "Duplicates",
                    "Training images that repeat test images",
                    "Left the training image, right the test image.",
                ),
                self.facts(settings, pairs, threshold),
                counts(pairs, settings["floor"], threshold),
                self.section("Removed, the least similar first", sorted(removed, key=by_score)),
                self.section(
                    "Kept: just below the threshold",
                    sorted(kept, key=by_score, reverse=True),
                ),
                self.section("Removed: the same pixels", exact),
                footer("matches.csv"),
            ],
        )

    def facts(self, settings: Settings, pairs: Sequence[Pair], threshold: float) -> str:
        rows = [
            ("training images", f"{len(self.train):,}, {settings['train']}"),
            ("test images", f"{len(self.test):,}, {', '.join(settings['test'])}"),
            ("score", settings["descriptor"]),
            ("threshold", f"{threshold:g}"),
            ("training images removed", f"{count_images(pairs, threshold):,}"),
        ]
        return facts_table(rows)

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
            f'src="{data_url(image, WIDTH)}" alt="{escape(text)}">'
            for image, text in zip(images, names, strict=True)
        )
        return (
            f"<figure><div>{pictures}</div><figcaption><b>{pair.score:.3f}</b> "
            f"{escape(names[0])}<br>{escape(spec)}: {escape(name)}</figcaption></figure>"
        )

    def image(self, source: Source, row: int):
        record = source[row]
        return data.picture(record["image"], record["name"])


def by_score(pair: Pair) -> tuple[float, int, int]:
    return pair.score, -pair.train, -pair.test


def count_images(pairs: Sequence[Pair], threshold: float) -> int:
    """The number of training images with a match of at least this score."""
    return len({pair.train for pair in pairs if pair.score >= threshold})


def counts(pairs: Sequence[Pair], floor: float, threshold: float) -> str:
    """A table of what other thresholds would remove."""
    steps = sorted({threshold, *(i / 20 for i in range(20) if i / 20 >= floor)})
    rows = "".join(
        f"<tr><th scope=row>{step:g}{' (chosen)' if step == threshold else ''}</th>"
        f"<td>{count_images(pairs, step):,}</td></tr>"
        for step in steps
    )
    head = "<tr><th scope=col>threshold</th><th scope=col>images removed</th></tr>"
    table = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return f"<section><h2>Other thresholds</h2>{table}</section>"
