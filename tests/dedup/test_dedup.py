"""Near-duplicates: the pieces by hand, planted ones, shards, the command, what training reads."""

import csv
import json
import re
import shutil

import cv2
import jax
import numpy as np
import PIL.Image
import pytest

from vit_jax import data, models
from vit_jax.cli import main
from vit_jax.dedup import recall, search
from vit_jax.errors import UserError
from vit_jax.models import saved


def photo(seed, size=(60, 80)):
    """An image (h, w, 3) with structure of all sizes, unlike any other seed's."""
    rng = np.random.default_rng(seed)
    image = np.zeros((*size, 3), np.float32)
    for cells in (4, 8, 16):
        noise = rng.normal(size=(cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 35 * image, 0, 255).astype(np.uint8)


def source(images, spec="images"):
    return recall.Images(images, spec)


# --- the pieces ----------------------------------------------------------------------------------


def test_the_hash_is_of_pixels_and_size():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    other = image.copy()
    other[1, 1, 2] += 1
    hashes = {search.pixel_hash(x) for x in (image, image.copy(), other, image.reshape(4, 1, 3))}
    assert len(hashes) == 3


def test_descriptors_by_hand():
    """Half black and half white: 8x8 cells of -1 and +1, divided by the root of 8 x 8 x 3."""
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, :, 16:] = 200
    (row,) = search.descriptors(image)
    wanted = np.where(np.arange(8)[None, :, None] < 4, -1, 1) / np.sqrt(192)
    np.testing.assert_allclose(row.reshape(8, 8, 3), np.broadcast_to(wanted, (8, 8, 3)), atol=1e-6)
    assert not search.descriptors(np.full((1, 32, 32, 3), 7, np.uint8)).any()


def test_views_by_hand():
    x, y = search.warp_of(5) @ [10, 20, 1]  # a box of 29 pixels from (3, 3)
    scale = 29 / 32
    np.testing.assert_allclose((x, y), (3 + scale * 10.5 - 0.5, 3 + scale * 20.5 - 0.5), rtol=1e-6)
    image = photo(0, (32, 32))
    np.testing.assert_array_equal(search.warped(image, search.warp_of(0)), image)
    np.testing.assert_array_equal(search.mirrored(image, 6), image[:, ::-1])
    views = search.all_views(image[None])
    np.testing.assert_allclose(views[6], search.descriptors(image[None, :, ::-1]), atol=1e-6)


def test_candidates_by_hand(monkeypatch):
    bank = np.zeros((2, 3, 2), np.float32)
    bank[0] = [[1, 0], [0, 1], [-1, 0]]
    bank[1] = [[0, -1], [0.6, 0.8], [0, -1]]
    queries = np.array([[0.8, 0.6], [0, -1]], np.float32)
    wanted = (
        [[1, 0], [0, 2]],  # of the second query both mirror exactly; the first row comes first
        [[1, 0], [1, 1]],
        [[0.96, 0.8], [1, 1]],
    )
    for chunk in (1, 2, 16):
        monkeypatch.setattr(search, "CHUNK", chunk)
        for found, right in zip(search.candidates(queries, bank, 2), wanted, strict=True):
            np.testing.assert_allclose(found, right, atol=1e-6)
    assert search.candidates(queries, bank, 9)[0].shape == (2, 3)


def test_alignment_finds_a_shift():
    wide = photo(1, (36, 36))
    a, b = wide[:32, :32], wide[3:35, 2:34]
    unaligned = search.agreement(
        *(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (a, b)), np.eye(2, 3)
    )
    assert unaligned < 0.5 < 0.95 < search.align(a, b, 0)
    assert search.align(a, a, 0) == pytest.approx(1)
    assert search.align(np.ascontiguousarray(a[:, ::-1]), a, 6) == pytest.approx(1)
    assert search.align(a, photo(2, (32, 32)), 0) < 0.5


def test_flat_images_and_extreme_alignments_score_zero():
    flat, image = np.full((32, 32, 3), 90, np.uint8), photo(1, (32, 32))
    assert search.align(flat, flat, 0) == pytest.approx(0, abs=1e-6)
    assert search.align(flat, image, 0) == pytest.approx(0, abs=1e-6)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    for wild in ([[0.5, 0, 0], [0, 0.5, 0]], [[1, 0.3, 0], [0, 1, 0]], [[1, 0, 20], [0, 1, 0]]):
        assert search.agreement(grey, grey, np.array(wild, np.float32)) == 0


def test_the_same_frame_is_no_duplicate():
    def framed(seed):
        image = np.full((64, 64, 3), 255, np.uint8)
        image[6:58, 6:58] = photo(seed, (52, 52)) // 3
        return search.thumbnail(image)

    assert search.align(framed(1), framed(2), 0) < search.FLOOR
    assert search.align(framed(1), framed(1), 0) == pytest.approx(1)


# --- whole data sets -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    """Twelve test images, and forty others with one of each kind among them."""
    rng = np.random.default_rng(0)
    tests = [photo(seed) for seed in range(12)]
    copies = [change(tests[i], rng) for i, change in enumerate(recall.KINDS.values())]
    trains = [photo(100 + seed) for seed in range(40)]
    return source(trains[:25] + copies + trains[25:]), source(tests, "tests")


def test_planted_duplicates_and_nothing_else_are_found(planted):
    pairs = search.find(*planted, floor=search.THRESHOLD)
    assert [(pair.train, pair.test) for pair in pairs] == [
        (25 + i, i) for i in range(len(recall.KINDS))
    ]
    assert [pair.stage for pair in pairs] == ["exact"] + ["aligned"] * (len(pairs) - 1)
    assert pairs[0].score == 1 and all(pair.score > 0.8 for pair in pairs)


def test_shards_are_the_whole(planted, monkeypatch):
    monkeypatch.setattr(search, "BLOCK", 7)
    whole = search.find(*planted, floor=-1)
    assert len(whole) >= 4 * len(planted[0])
    parts = [search.find(*planted, floor=-1, shard=i, shards=3) for i in range(3)]
    united = [pair for part in parts for pair in part]
    assert sorted(united, key=lambda pair: (pair.train, pair.test)) == whole
    sizes = [search.shard_size(len(planted[0]), i, 3) for i in range(3)]
    assert sum(sizes) == len(planted[0]) and max(sizes) - min(sizes) <= 7


def test_progress_counts_every_image(planted):
    seen = []
    search.find(*planted, on_images=seen.append)
    assert seen == sorted(seen) and seen[-1] == len(planted[0]) + len(planted[1])


def test_the_measurement_counts_what_it_planted():
    train, test = (source([photo(s) for s in r]) for r in (range(50, 60), range(18)))
    lines = recall.measure(train, test, count=2)
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if line[0] == "|"}
    assert rows["mirrored"][0].strip() == "2"
    assert [cell.strip() for cell in rows["all"]] == ["18"] + ["100.0%"] * 7
    assert [cell.strip() for cell in rows["found: not planted"]] == ["10"] + ["0"] * 7


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A training set of 3 classes with a copy, a mirrored and a cropped test image in it."""
    root = tmp_path_factory.mktemp("dedup")
    for i, name in enumerate(("cat", "dog", "owl")):
        for split, count in (("train", 6), ("test", 2)):
            (root / split / name).mkdir(parents=True)
            for j in range(count):
                image = photo(1000 * i + 100 * (split == "train") + j)
                PIL.Image.fromarray(image).save(root / split / name / f"{j}.png")
    first = np.asarray(PIL.Image.open(root / "test/cat/0.png"))
    shutil.copy(root / "test/dog/1.png", root / "train/owl/copy.png")
    PIL.Image.fromarray(first[:, ::-1]).save(root / "train/cat/mirror.jpg", quality=60)
    PIL.Image.fromarray(first[4:, 6:]).save(root / "train/dog/crop.png")
    return root


IDS = {"train/owl/copy.png", "train/cat/mirror.jpg", "train/dog/crop.png"}


@pytest.fixture(scope="module")
def found(folders):
    assert main(["dedup", *search_flags(folders), f"--out={folders / 'out'}"]) == 0
    return folders / "out"


def search_flags(folders):
    return [f"--train=folder:{folders}[train]", f"--test=folder:{folders}[test],digits[test[:5]]"]


def test_ids_and_matches(found, folders):
    assert set((found / "ids.txt").read_text().split()) == IDS
    with open(found / "matches.csv") as file:
        rows = {row["train"]: row for row in csv.DictReader(file) if row["removed"] == "yes"}
    assert set(rows) == IDS
    copy, crop = rows["train/owl/copy.png"], rows["train/dog/crop.png"]
    assert (copy["test"], copy["stage"], copy["score"]) == ("test/dog/1.png", "exact", "1.0000")
    assert (crop["test"], crop["stage"]) == ("test/cat/0.png", "aligned")
    assert crop["test_set"] == f"folder:{folders}[test]" and 0.75 < float(crop["score"]) <= 1


def test_the_page_holds_the_pairs(found):
    page = (found / "index.html").read_text()
    assert page.count("<figure>") >= 3 and page.count("data:image/jpeg") == 2 * page.count(
        "<figure>"
    )
    for name in IDS:
        assert name in page
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page
    removed, kept, exact = (
        [float(score) for score in re.findall(r"<b>([\d.]+)</b>", section)]
        for section in page.split("<h2>")[2:]
    )
    assert removed == sorted(removed) and 0.75 < removed[0] < removed[-1]  # the doubtful first
    assert kept == sorted(kept, reverse=True) and exact == [1.0]


def test_training_leaves_them_out(found, folders, tmp_path, capsys):
    spec = f"folder:{folders}[train]"
    whole = data.open_source(spec).names()
    kept = data.open_source(spec, exclude=str(found / "ids.txt")).names()
    assert len(whole) == 21 and set(whole) - set(kept) == IDS and len(kept) == 18
    settings = ["--config.model.variant=debug", "--config.batch_size=8", "--config.total_steps=2"]
    settings += ["--config.schedule.warmup_steps=1", "--config.augment.resize=36"]
    settings += [f"--config.data.exclude={found / 'ids.txt'}", f"--workdir={tmp_path}"]
    assert (
        main(["train", f"--config=configs/finetune.py:debug,folder:{folders},32", *settings]) == 0
    )
    assert "18 examples" in capsys.readouterr().out


def test_nothing_found_is_no_error_in_training(folders, tmp_path):
    train, test = f"--train=folder:{folders}[train]", "--test=digits[test[:5]]"
    assert main(["dedup", train, test, f"--out={tmp_path}"]) == 0
    assert (tmp_path / "ids.txt").read_text() == ""
    source = data.open_source(f"folder:{folders}[train]", exclude=str(tmp_path / "ids.txt"))
    assert len(source) == 21


def test_shards_merge_to_the_same_files(found, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search, "BLOCK", 4)
    for i in (3, 1):
        assert main(["dedup", *search_flags(folders), f"--out={tmp_path}", f"--shard={i}/3"]) == 0
    assert not (tmp_path / "ids.txt").exists()
    assert main(["dedup", "--merge", f"--out={tmp_path}"]) == 1
    assert "lacks the shards 2/3" in capsys.readouterr().err
    assert main(["dedup", *search_flags(folders), f"--out={tmp_path}", "--shard=2/3"]) == 0
    assert main(["dedup", "--merge", f"--out={tmp_path}"]) == 0
    for name in ("ids.txt", "matches.csv", "index.html"):
        assert (tmp_path / name).read_bytes() == (found / name).read_bytes()


def test_another_threshold_needs_no_new_search(found, tmp_path, capsys):
    shutil.copy(found / "shard-1-of-1.json", tmp_path)
    assert main(["dedup", "--merge", f"--out={tmp_path}", "--threshold=1"]) == 0
    assert (tmp_path / "ids.txt").read_text() == "train/owl/copy.png\n"
    assert main(["dedup", "--merge", f"--out={tmp_path}"]) == 1
    assert "ids.txt exists and would be overwritten" in capsys.readouterr().err
    (tmp_path / "new").mkdir()
    shutil.copy(found / "shard-1-of-1.json", tmp_path / "new")
    assert main(["dedup", "--merge", f"--out={tmp_path / 'new'}", "--threshold=0.3"]) == 1
    assert "below 0.6" in capsys.readouterr().err


def test_images_of_five_channels_in_a_folder_that_is_not_utf8(tmp_path):
    """The hash is of all channels, the alignment of the picture."""
    root = tmp_path / "\udcff"
    image, other = (np.concatenate([photo(s), photo(s + 10)[..., :2]], axis=-1) for s in (1, 2))
    changed = image.copy()
    changed[..., 4] = 0
    files = {"test/a/0": image, "train/a/0": image, "train/a/1": other, "train/a/2": changed}
    for name, pixels in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / f"{name}.npy", pixels)
    data_flags = [f"--{split}=folder:{root}[{split}]" for split in ("train", "test")]
    assert main(["dedup", *data_flags, f"--out={tmp_path / 'out'}"]) == 0
    with open(tmp_path / "out" / "matches.csv", encoding="utf-8") as file:
        rows = {row["train"]: row for row in csv.DictReader(file) if row["removed"] == "yes"}
    assert rows["train/a/0.npy"]["stage"] == "exact" and len(rows) == 2
    assert rows["train/a/2.npy"]["stage"] == "aligned"
    assert rows["train/a/2.npy"]["test_set"] == f"folder:{tmp_path}/\\udcff[test]"


def test_features_of_a_model(folders, tmp_path):
    config = models.get_config("debug", num_classes=3)
    params = jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))
    saved.save(tmp_path / "m", config, params)
    options = [f"--checkpoint={tmp_path / 'm'}", "--threshold=0.9999", f"--out={tmp_path / 'out'}"]
    train, test = f"--train=folder:{folders}[train]", f"--test=folder:{folders}[test]"
    assert main(["dedup", train, test, *options, "--batch_size=8"]) == 0
    with open(tmp_path / "out" / "matches.csv") as file:
        rows = {(row["train"], row["test"]): row for row in csv.DictReader(file)}
    assert rows["train/owl/copy.png", "test/dog/1.png"]["stage"] == "exact"
    mirror = rows["train/cat/mirror.jpg", "test/cat/0.png"]
    assert mirror["stage"] == "features" and 0.9 < float(mirror["score"]) <= 1


@pytest.mark.parametrize(
    "arguments, code, part",
    [
        (["--train=digits"], 2, "--out=DIR is required"),
        (["--train=digits", "--out=x"], 2, "--train=SPEC and --test=SPEC are required"),
        (["--train=digits", "--test=digits[test]", "--out=x", "--shard=3/2"], 2, "--shard=3/2"),
        (["--train=digits", "--test=digits[test]", "--out=x", "--shard=0/2"], 2, "I from 1"),
        (["--train=digits", "--test=digits[test]", "--out=x", "--threshold=2"], 2, "threshold"),
        (["--train=digits", "--test=digits[test]", "--out=x", "--checkpoint=m"], 2, "--threshold"),
        (["--merge", "--out=x", "--train=digits"], 2, "leave it out"),
        (["--train=digits", "--test=digits[test]", "--out=x", "more"], 2, "'more'"),
        (["--merge", "--out=/no/where"], 1, "has no shards"),
        (["--train=digits", "--test=folder:/no/where", "--out=x"], 1, "no folder /no/where"),
        (
            ["--train=digits", "--test=digits", "--out=x"],
            1,
            "is both a test set and the training set",
        ),
        (["--train=digits", "--test=digits[test]", "--out=README.md"], 1, "README.md is a file"),
    ],
)
def test_bad_input_is_one_line(arguments, code, part, capsys, tmp_path):
    arguments = [f"--out={tmp_path / 'x'}" if word == "--out=x" else word for word in arguments]
    assert main(["dedup", *arguments]) == code
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and part in err
    assert not (tmp_path / "x").exists()


def test_a_result_is_not_overwritten(found, folders, capsys):
    before = (found / "shard-1-of-1.json").read_bytes()
    flags = [*search_flags(folders), f"--out={found}"]
    assert main(["dedup", *flags, "--threshold=0.5"]) == 1
    assert "would be overwritten; use another --out" in capsys.readouterr().err
    assert (found / "shard-1-of-1.json").read_bytes() == before
    assert main(["dedup", *flags]) == 0  # the same search
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("left", [["shard-1-of-1.json"], ["shard-1-of-1.json", "matches.csv"]])
def test_the_same_command_resumes_after_a_kill(found, folders, tmp_path, left, capsys):
    for name in left:
        shutil.copy(found / name, tmp_path / name)
    if "matches.csv" in left:
        (tmp_path / "matches.csv").write_text("half of")
        (tmp_path / "index.html").write_text("<html>half of")
    assert main(["dedup", *search_flags(folders), f"--out={tmp_path}"]) == 0
    assert "searched already" in capsys.readouterr().out
    for name in ("ids.txt", "matches.csv", "index.html"):
        assert (tmp_path / name).read_bytes() == (found / name).read_bytes()


def test_shards_of_different_searches_do_not_mix(found, tmp_path):
    from vit_jax.dedup import files

    record = json.loads((found / "shard-1-of-1.json").read_text())
    (tmp_path / "shard-1-of-2.json").write_text(json.dumps(record))
    (tmp_path / "shard-2-of-2.json").write_text(json.dumps({**record, "train": "digits"}))
    with pytest.raises(UserError, match=r"shard-2-of-2.json has train 'digits'"):
        files.write_results(tmp_path)
    (tmp_path / "shard-2-of-2.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        files.write_results(tmp_path)
    (tmp_path / "shard-2-of-2.json").write_text(json.dumps({**record, "test_fingerprint": "old"}))
    (tmp_path / "shard-1-of-2.json").write_text(json.dumps({**record, "test_fingerprint": "old"}))
    with pytest.raises(UserError, match="has changed since the search"):
        files.write_results(tmp_path)
