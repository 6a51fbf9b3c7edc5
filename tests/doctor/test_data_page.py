"""The page of a data set: what it finds in a small folder that has everything wrong with it."""

import re

import numpy as np
import PIL.Image
import pytest
from tiny_runs import contents

from vit_jax import data
from vit_jax.cli import main
from vit_jax.doctor import data_page, examine
from vit_jax.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """train and test of three classes, one spelled in two ways; a photo in both, a broken file."""
    root, rng = tmp_path_factory.mktemp("data") / "set", np.random.default_rng(0)
    for split, counts in (("train", (5, 3, 2)), ("test", (2, 1, 0))):
        for name, count in zip(("daisy", "sun flower", "sun_flower"), counts, strict=True):
            for i in range(count):
                file = root / split / name / f"{split}{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                small = rng.integers(0, 256, (12, 16, 3), np.uint8)
                size = (40 + 10 * i, 30)
                PIL.Image.fromarray(small).resize(size, PIL.Image.Resampling.BICUBIC).save(file)
    with PIL.Image.open(root / "train" / "daisy" / "train4.png") as image:
        copy = root / "test" / "daisy" / "again.jpg"
        image.convert("RGB").resize((64, 24)).save(copy, quality=90)  # another size and format
    (root / "train" / "daisy" / "zz.png").write_bytes(b"\x89PNG\r\n broken")
    return root


def test_what_is_on_the_page(root, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    assert main(["doctor", f"--data=folder:{root}", f"--out={page}"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"WRONG +images +train: 1 of 11 images cannot be read: .*zz.png", out)
    assert re.search(r"near-duplicates +1 images of test are in train as well; .vit-jax dedup", out)
    assert "'sun flower' and 'sun_flower' are the same except for case, blanks" in out
    html = page.read_text()
    assert "train: all 11 images, test: all 4 images" in html
    assert "smallest 40x30, median 50x30, largest 80x30" in html
    assert html.count("test/daisy/again.jpg") >= 2 and "train/daisy/zz.png" in html
    assert "<th scope=row>sun_flower</th><td>2</td><td>0</td>" in html
    assert "<th scope=row>daisy</th><td>6</td><td>3</td>" in html
    sheets = html.partition("What they look like")[2]
    assert len(re.findall("<img", sheets)) == 5 + 3 + 2  # readable, of train
    assert not re.search(r'(src|href)="(https?:)?//', html)
    before = page.read_bytes()
    assert main(["doctor", f"--data=folder:{root}", f"--out={page}"]) == 1
    assert "exists and would be overwritten" in capsys.readouterr().err
    assert page.read_bytes() == before


def test_one_split_and_what_cannot_be_opened(root, tmp_path):
    page = tmp_path / "page.html"
    found = list(data_page.write(f"folder:{root}[test]", None, page))
    assert all(finding.ok is not False for finding in found)
    assert "There is one split: nothing to compare." in page.read_text()
    other = tmp_path / "other.html"
    (finding,) = data_page.write(f"folder:{tmp_path}/none", None, other)
    assert finding.ok is False and "not written: " in finding.text and not other.exists()


def test_usage(root, tmp_path, capsys):
    before = contents(tmp_path)
    assert main(["doctor", f"--out={tmp_path}/p.html"]) == 2
    assert main(["doctor", f"--data=folder:{root}", f"--out={tmp_path}/p.txt"]) == 1
    assert "must end in .html" in capsys.readouterr().err and contents(tmp_path) == before
    (tmp_path / "link.html").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="would be overwritten"):
        data_page.check(tmp_path / "link.html")


def test_large_data_sets_are_sampled(monkeypatch):
    monkeypatch.setattr(examine, "BLOCK", 4)
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    source = data.ArraySource(images, np.arange(20) % 4)
    some, again, all_ = (examine.look(source, *of) for of in ((60, 7), (0, 20), (60, 20)))
    assert some.examined == 7 and again.examined == 4 and all_.examined == 20
    assert set(again.rows) <= set(some.rows)  # the same order
    assert some.counts.tolist() == [5, 5, 5, 5] and some.counted  # labels are known of all
    assert "7 of 20 images; sizes, broken files" in data_page.sampled({"train": some})
    assert "all 20 images." in data_page.sampled({"train": all_})


@pytest.mark.parametrize(
    "names, found",
    [
        (("cat", "Cat"), 1),
        (("sun flower", "sun-flower", "Sunflower"), 2),
        (("e\u0301clair", "\u00e9clair"), 1),  # Unicode's forms
        (("ﬁnch", "finch"), 1),  # a ligature
        ((" daisy", "daisy"), 1),
        (("daisy", "daisies", "daysy"), 1),
        (("rose", "roses"), 1),
        (("tulip", "tulpi"), 0),  # two letters
        (("cat", "bat", "cats"), 0),  # too short to tell
        (("1", "2", "12"), 0),
        (("class1", "class2", "class12"), 0),
        (("747-200", "747-300"), 0),
    ],
)
def test_names_that_look_alike(names, found):
    assert len(examine.alike(names)) == found, examine.alike(names)


def test_one_letter():
    for a, b in (("rose", "roses"), ("rose", "ross"), ("rose", "rse"), ("rose", "xrose")):
        assert examine.one_letter(a, b) and examine.one_letter(b, a)
    for a, b in (("rose", "rosexy"), ("rose", "sore"), ("rose", "r0se"), ("rose", "rose1")):
        assert not examine.one_letter(a, b) and not examine.one_letter(b, a)


def test_thousands_of_names_take_no_time():
    names = [f"{a}{b}{c} bird" for a in "abcdefghijklmnop" for b in "qrstuvwxyz" for c in "aeiouy"]
    assert len(examine.alike(names)) > 0
