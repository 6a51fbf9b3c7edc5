"""A Japanese page says what its English page says: code, numbers, names, pictures and links."""

import io
import os
import re
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
JA = ROOT / "docs" / "ja"
ENGLISH = {
    page: ROOT / "README.md" if page.name == "README.md" else ROOT / "docs" / page.name
    for page in sorted(JA.glob("*.md"))
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")

pages = pytest.mark.parametrize("page", ENGLISH, ids=lambda page: page.stem)


def code(page):
    """(language, text) of each block; of Python its tokens, since comments are translated."""
    ignored = (tokenize.COMMENT, tokenize.NL)
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            tokens = tokenize.generate_tokens(io.StringIO(text).readline)
            yield language, [token.string for token in tokens if token.type not in ignored]
        else:
            yield language, text


def prose(page):
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def sections(page):
    """(level of the heading, text below it)."""
    parts = re.split(r"^(#+) .*$", prose(page), flags=re.MULTILINE)
    return list(zip(map(len, parts[1::2]), parts[2::2], strict=True))


def rows(text):
    return re.findall(r"^\|(.*)\|$", text, re.MULTILINE)


def numbers(text):
    """Written with digits; not those of links and names in backticks."""
    text = re.sub(r"`[^`]*`", "", LINK.sub("]", text))
    return Counter(re.findall(r"\d+(?:[.,]\d+)*(?:e-?\d+)?", text))


def names(text):
    """What stands in backticks."""
    return Counter(re.findall(r"`([^`]+)`", text))


def links(page):
    """Addresses, and files by their path in the repository; of a pair of pages the English one."""
    found = Counter()
    for target in LINK.findall(prose(page)):
        if "://" in target:
            found[target] += 1
        elif file := target.partition("#")[0]:
            file = Path(os.path.normpath(page.parent / file))
            assert file.exists(), f"{page.name}: {target}"
            found[str(ENGLISH.get(file, file))] += 1
    return found


def test_the_pages():
    assert {page.stem for page in ENGLISH} >= {
        "README", "quickstart", "own-images", "questions", "paper",
    }  # fmt: skip
    for page in ENGLISH:
        assert re.search("[ぁ-ん]", page.read_text(encoding="utf-8")), page.name


@pages
def test_the_code_is_the_same(page):
    assert list(code(page)) == list(code(ENGLISH[page]))


@pages
def test_each_section_has_the_same_names_numbers_and_rows(page):
    japanese, english = sections(page), sections(ENGLISH[page])
    assert [level for level, _ in japanese] == [level for level, _ in english]
    for (_, here), (_, there) in zip(japanese, english, strict=True):
        assert names(here) == names(there)
        # A number that English spells out may be written with digits.
        assert numbers(there) <= numbers(here), numbers(there) - numbers(here)
        assert len(rows(here)) == len(rows(there))
        for row, other in zip(rows(here), rows(there), strict=True):
            assert names(row) == names(other)
            assert numbers(other) <= numbers(row), other


@pages
def test_links_and_pictures_are_the_same(page):
    there, here = links(ENGLISH[page]), links(page)
    assert here[str(ENGLISH[page])] == 1  # to the English page
    there.pop(str(ENGLISH[page]), None)  # and back
    assert there <= here, there - here
    assert set(here) - set(there) <= set(map(str, ENGLISH.values()))


@pages
def test_an_anchor_is_a_heading(page):
    """As GitHub and the site write it: lower case, no punctuation, hyphens for blanks."""
    for target in LINK.findall(prose(page)):
        file, _, anchor = target.partition("#")
        file = Path(os.path.normpath(page.parent / file)) if file else page
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", prose(file), re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}
            assert anchor in known, f"{page.name}: {target}"
