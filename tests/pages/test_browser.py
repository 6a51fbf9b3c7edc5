"""Every page in a real browser: no error, no overflow, enough contrast, and a keyboard will do.

Needs Playwright and a Chromium (.ci/launch installs both).
"""

import importlib.util
import json
import shutil

import numpy as np
import PIL.Image
import pytest

from vit_jax.data.source import ArraySource
from vit_jax.dedup.page import Page
from vit_jax.dedup.search import Pair
from vit_jax.doctor import data_page
from vit_jax.inspection import page as inspection_page
from vit_jax.pages import compare, evaluation, report, study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM or importlib.util.find_spec("playwright") is None,
        reason="needs chromium and playwright",
    ),
]
#: A part of WCAG AA that can be computed: of small text, and of lines and large text.
TEXT, LINES = 4.5, 3.0
LONG = "a_name_without_a_space_" * 5

#: What stands where in a page, and how it differs from what is behind it.
FAINT = """
() => {
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255)
    + 0.0722 * linear(b / 255);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const faint = [];
  for (const element of document.querySelectorAll('main *')) {
    const style = getComputedStyle(element);
    const said = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const line = element.matches('path:not(.grid):not(.raw)');
    if (!said && !line) continue;
    const found = ratio(parse(line ? style.stroke : style.color), behind(element));
    if (found < (line ? LINES : TEXT))
      faint.push([element.outerHTML.slice(0, 80), found]);
  }
  return faint;
}
""".replace("LINES", str(LINES)).replace("TEXT", str(TEXT))


VIEWER = inspection_page.Viewer(
    names=[f"{LONG}.jpg"] * 2,
    images=np.zeros((2, 16, 16, 3), np.uint8),
    attention=np.ones((2, 3, 4, 5, 5)),
    distance=np.ones((3, 4)),
    caption="What the class token attends to.",
)


def run(directory, rate):
    """The record of a run, in two directories at most."""
    directory.mkdir()
    config = {"name": f"run of {rate}", "model": {"variant": LONG}, "seed": 0}
    (directory / "config.json").write_text(json.dumps(config))
    rows = [
        {"step": i, "train/loss": 2.0 / i, "train/learning_rate": rate, "eval/accuracy": i / 50}
        for i in range(1, 41)
    ]
    rows[-1]["final"] = True
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{name: file} of each kind of page, of made-up results with long names in them."""
    root = tmp_path_factory.mktemp("pages")
    runs = [run(root / name, rate) for name, rate in (("one", 0.01), (LONG, 0.03))]
    (root / "report.html").write_text(report.render(runs[1]))
    (root / "comparison.html").write_text(compare.render([str(one) for one in runs]))
    found = root / "found"
    found.mkdir()
    classes = [
        {"class": f"{LONG}{i}", "examples": 10, "correct": 9, "accuracy": 0.9, "f1": 0.123456}
        for i in range(3)
    ]
    record = {"checkpoint": f"/{LONG}", "data": f"folder:/{LONG}", "accuracy": 0.5}
    (found / "evaluation.json").write_text(
        json.dumps({"classification": record | {"per_class": classes}})
    )
    picture = found / "evaluation_confusion.png"
    PIL.Image.fromarray(np.zeros((300, 900, 3), np.uint8)).save(picture)
    (root / "evaluation.html").write_text(evaluation.render(found))
    drawn = root / "figure.svg"
    drawn.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="900" height="300"></svg>')
    row = study.Row(LONG, {"eval/accuracy": ((0.5, 0.01), 3)}, [study.Trial(LONG, "one", "failed")])
    (root / "study.html").write_text(study.render(
        about=f"A study of {LONG}.\n\nAnd what it is.", source=f"{LONG}.py", figure=drawn,
        columns=["eval/accuracy"], rows=[row], paper={"paper": {LONG: 0.5}},
    ))  # fmt: skip
    inspection_page.write(
        root / "inspect.html", title=f"Inside {LONG}", facts=[("checkpoint", LONG)],
        pictures=[("Filters", "What they are.", picture)], notes=["A note."],
        viewer=VIEWER,
    )  # fmt: skip
    data = root / LONG
    source = ArraySource(
        np.zeros((6, 24, 32, 3), np.uint8), np.arange(6) % 2, ("a", "b"), spec="made"
    )
    pairs = [Pair(i, i, 0.9, "aligned") for i in range(3)]
    settings = {"train": LONG, "test": [LONG], "descriptor": "pixels", "floor": 0.5}
    names = [f"{LONG}{i}.jpg" for i in range(len(source))]
    page = Page(source, source, names, [(LONG, name) for name in names])
    (root / "dedup.html").write_text(page(settings, pairs, 0.8))
    for i in range(4):
        file = data / ("train" if i < 2 else "test") / f"{LONG}{i % 2}" / f"{LONG}.png"
        file.parent.mkdir(parents=True)
        PIL.Image.fromarray(np.full((24, 32, 3), 60 * i, np.uint8)).save(file)
    list(data_page.write(f"folder:{data}", None, root / "doctor.html"))
    return {file.stem: file for file in sorted(root.glob("*.html"))}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, file, width=1280, scheme="light"):
    """A page and what it complains about."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    return page, said


NAMES = ("comparison", "dedup", "doctor", "evaluation", "inspect", "report", "study")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_and_is_readable_in_light_and_dark(browser, pages, name):
    assert set(pages) == set(NAMES)
    grounds = []
    for scheme in ("light", "dark"):
        for width in (1280, 400):
            page, said = opened(browser, pages[name], width, scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            for summary in page.locator("summary").all():
                summary.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(FAINT) == [] and said == []
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for part in ("header .eyebrow", "h1", "footer"):
            assert page.locator(part).count() == 1, f"{part}: it looks like no sibling"
    assert grounds[0] != grounds[1]


def test_a_keyboard_reads_a_chart(browser, pages):
    page, _ = opened(browser, pages["report"])
    figure = page.locator("figure", has_text="Evaluation accuracy")
    output = figure.locator("output")
    figure.locator(".plot").focus()
    assert output.text_content() == "step 40: 80%"
    page.keyboard.press("ArrowLeft")
    assert output.text_content() == "step 39: 78%"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert output.text_content() == "step 1: 2%"


def test_a_keyboard_moves_the_viewer_of_attention(browser, pages):
    page, _ = opened(browser, pages["inspect"], 400)
    for press in ("Tab", "Tab", "ArrowRight"):
        page.keyboard.press(press)
    assert "layer 1, head 0" in page.locator("#said").text_content()
