"""The page of a data set: images of every class, counts, sizes, and possible problems."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from itertools import combinations
from pathlib import Path

import numpy as np

from vit_jax import files
from vit_jax.data.source import Source, Subset
from vit_jax.data.specs import open_splits
from vit_jax.dedup.page import SHOWN, Page
from vit_jax.doctor.examine import SECONDS, Seen, alike, decoded, look, names_of, near_duplicates
from vit_jax.doctor.machine import Finding
from vit_jax.errors import UserError
from vit_jax.pages.document import data_url, document, facts_table, footer, header

ORDER = ("train", "validation", "test")
#: Number of classes and of images per class that are shown, their width; rows of a table.
CLASSES, EACH, WIDTH, ROWS = 100, 8, 96, 1000


def check(file: Path) -> None:
    """Raises UserError if the page cannot be written."""
    if file.suffix not in (".html", ".htm"):
        raise UserError(f"{file} must end in .html.")
    files.check_new(file)


def write(
    spec: str, data_dir: str | None, file: Path, seconds: float = SECONDS
) -> Iterator[Finding]:
    """Examines the splits of `spec` for about `seconds`, and writes their page.

    Yields:
      Findings: broken images are errors, the rest is to be judged by the user.

    Raises:
      UserError: the page cannot be written.
    """
    check(file)
    try:
        _, splits, split = open_splits(spec, data_dir)
        names = [split] if split else sorted(splits.names(), key=place_of)
        sources = {name: splits(name) for name in names}
    except UserError as error:
        yield Finding("page", f"not written: {error}", False)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    seen = {name: look(source, seconds / len(names)) for name, source in sources.items()}
    pairs = {
        (one, other): near_duplicates(seen[one], seen[other])
        for one, other in combinations(names, 2)
    }
    spellings = alike(names_of([one.source for one in seen.values()]))
    files.write_text(file, render(spec, seen, pairs, spellings))
    for name, here in seen.items():
        text = f"{name}: {len(here.broken):,} of {here.examined:,} images cannot be read"
        first = f": {here.broken[0]}" if here.broken else ""
        yield Finding("images", text + first, not here.broken)
    for (one, other), those in pairs.items():
        text = f"{len({pair.test for pair in those}):,} images of {other} are in {one} as well"
        yield Finding("near-duplicates", text + ("; `vit-jax dedup` lists them" if those else ""))
    for a, b, why in spellings[:5]:
        yield Finding("labels", f"{a!r} and {b!r} are the same {why}")
    yield Finding("page", str(file))


def place_of(split: str) -> int:
    """The sort key of a split: training first."""
    return ORDER.index(split) if split in ORDER else len(ORDER)


def render(spec: str, seen: dict[str, Seen], pairs: dict, spellings: list) -> str:
    """The whole page as text."""
    parts = [
        header("Data", spec, escape(sampled(seen))),
        facts_table(facts(seen)),
        spelled(spellings),
        broken(seen),
    ]
    for (one, other), those in pairs.items():
        parts.append(duplicates(one, other, seen[one], seen[other], those))
    if len(seen) == 1:
        parts.append(
            "<h2>Near-duplicates between splits</h2><p>There is one split: nothing to compare.</p>"
        )
    parts += [counts(seen), sheets(seen), footer("the images")]
    return document(f"{spec}: data", parts)


def sampled(seen: dict[str, Seen]) -> str:
    """The images that were examined: all, or how many."""
    told = [
        f"{name}: {'all ' if one.examined == len(one.source) else f'{one.examined:,} of '}"
        f"{len(one.source):,} images"
        for name, one in seen.items()
    ]
    some = any(one.examined < len(one.source) for one in seen.values())
    more = "; sizes, broken files and near-duplicates refer to this random sample" if some else ""
    return f"Examined: {', '.join(told)}{more}."


def facts(seen: dict[str, Seen]) -> Iterable[tuple[str, str]]:
    """Per split: number of images and classes, and sizes."""
    for name, one in seen.items():
        classes = int((one.counts > 0).sum())
        yield name, f"{len(one.source):,} images, {classes:,} classes with images"
        if not len(one.sizes):
            continue
        order = np.argsort(one.sizes.prod(axis=1), kind="stable")
        texts = ("x".join(map(str, one.sizes[order[i]])) for i in (0, len(order) // 2, -1))
        yield f"{name}, width x height", "smallest {}, median {}, largest {}".format(*texts)
        ratio = one.sizes.max(axis=1) / one.sizes.min(axis=1)
        unusual = f"{int((one.sizes.min(axis=1) < 32).sum()):,} have a side below 32 pixels, "
        yield f"{name}, unusual", unusual + f"{int((ratio > 3).sum()):,} are longer than 3:1"


def spelled(spellings: list[tuple[str, str, str]]) -> str:
    heading = "<h2>Labels that look alike</h2>"
    if not spellings:
        return f"{heading}<p>None.</p>"
    rows = "".join(
        f"<tr><td>{escape(a)}</td><td>{escape(b)}</td><td>the same {escape(why)}</td></tr>"
        for a, b, why in spellings[:ROWS]
    )
    return f"{heading}<div class=scroll><table class=wide><tbody>{rows}</tbody></table></div>"


def broken(seen: dict[str, Seen]) -> str:
    rows = [(name, problem) for name, one in seen.items() for problem in one.broken]
    heading = f"<h2>Images that cannot be read{f' ({len(rows):,})' if rows else ''}</h2>"
    items = "".join(f"<li>{escape(name)}: {escape(problem)}</li>" for name, problem in rows[:SHOWN])
    more = f"<p>And {len(rows) - SHOWN:,} more.</p>" if len(rows) > SHOWN else ""
    return heading + (f"<ul>{items}</ul>{more}" if rows else "<p>None.</p>")


def duplicates(one: str, other: str, first: Seen, second: Seen, pairs: list) -> str:
    """Pairs side by side, as on the page of `vit-jax dedup`."""
    train, test = (Subset(seen.source, seen.rows, seen.source.spec) for seen in (first, second))
    left, right = ([source.name(i) for i in range(len(source))] for source in (train, test))
    page = Page(train, test, left, [(other, name) for name in right])
    return page.section(f"In {one} (left) and in {other} (right)", pairs)


def counts(seen: dict[str, Seen]) -> str:
    """Number of images per class and split, the rarest first."""
    numbers = {name: dict(zip(one.source.class_names, one.counts.tolist(), strict=True))
               for name, one in seen.items()}  # fmt: skip
    classes = names_of([one.source for one in seen.values()])
    total = {name: sum(of.get(name, 0) for of in numbers.values()) for name in classes}
    heads = "".join(
        f"<th scope=col>{escape(name)}{'' if one.counted else ' (in the sample)'}</th>"
        for name, one in seen.items()
    )
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th>"
        + "".join(f"<td>{of.get(name, 0):,}</td>" for of in numbers.values())
        + "</tr>"
        for name in sorted(classes, key=lambda name: total[name])[:ROWS]
    )
    more = f"<p>The {ROWS:,} rarest of {len(classes):,}.</p>" if len(classes) > ROWS else ""
    return (
        f"<h2>Images of each class</h2>{more}<div class=scroll><table class=wide><thead><tr>"
        f"<th scope=col>class</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def sheets(seen: dict[str, Seen]) -> str:
    """A few images per class, from the first split that has it."""
    parts, classes = [], names_of([one.source for one in seen.values()])
    for name in classes[:CLASSES]:
        images = "".join(figures(seen, name)) or "<p>None in the sample.</p>"
        parts.append(f"<h3>{escape(name)}</h3><div class=sheet>{images}</div>")
    more = f"The first {CLASSES} of {len(classes):,} classes. " if len(classes) > CLASSES else ""
    note = f"<p>{more}Up to {EACH} images of each, drawn at random.</p>"
    return f"<section><h2>What they look like</h2>{note}{''.join(parts)}</section>"


def figures(seen: dict[str, Seen], name: str) -> Iterator[str]:
    """Images of a class as HTML."""
    for one in seen.values():
        if name not in one.source.class_names or one.source.labels is None:
            continue
        rows = rows_of(one.source, one.rows, one.source.class_names.index(name))
        for row in rows[:EACH]:
            record = one.source[int(row)]
            text = escape(record["name"])
            url = data_url(decoded(record), WIDTH)
            yield f'<img src="{url}" alt="{text}" title="{text}">'
        if len(rows):
            return


def rows_of(source: Source, rows: np.ndarray, label: int) -> np.ndarray:
    """The records with a class, in a fixed random order."""
    labels = source.labels
    assert labels is not None
    has = labels[rows, label] == 1 if labels.ndim == 2 else labels[rows] == label
    return np.random.default_rng(label).permutation(rows[has])
