"""Images of 1, 4 and 6 channels: read, changed, trained on, predicted; and refused in one line."""

import io
import json

import numpy as np
import PIL.Image
import pytest
import tiny_runs

import vit_jax
from vit_jax import data, models
from vit_jax.cli import main
from vit_jax.data.decode import decode, image_size
from vit_jax.errors import UserError
from vit_jax.models import adapt

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 7, 3), np.uint8)


def png(pixels, mode=None, kind="PNG"):
    out = io.BytesIO()
    PIL.Image.fromarray(pixels, mode).save(out, kind)
    return out.getvalue()


def npy(pixels):
    out = io.BytesIO()
    np.save(out, pixels)
    return out.getvalue()


def test_grey_by_hand():
    grey = COLOUR[..., 0]
    for stored in (grey, grey[..., None], png(grey), npy(grey), np.repeat(grey[..., None], 3, -1)):
        np.testing.assert_array_equal(decode(stored, "x", channels=1), grey[..., None])
    found = decode(png(COLOUR), "x", channels=1)[..., 0]
    exact = 0.299 * COLOUR[..., 0] + 0.587 * COLOUR[..., 1] + 0.114 * COLOUR[..., 2]
    assert abs(found - exact).max() <= 0.5001
    wide = (grey.astype(np.uint16) * 257, png(grey.astype(np.uint16) * 257))[1]
    np.testing.assert_array_equal(decode(wide, "x", channels=1), grey[..., None])


def test_four_and_six_channels_are_as_they_are_stored():
    four = RNG.integers(0, 256, (9, 7, 4), np.uint8)
    for stored in (four, png(four), png(four, kind="TIFF"), npy(four)):
        np.testing.assert_array_equal(decode(stored, "x", channels=4), four)
    six = RNG.integers(0, 256, (9, 7, 6), np.uint8)
    for stored in (six, npy(six)):
        np.testing.assert_array_equal(decode(stored, "x", channels=6), six)
    assert image_size(npy(six), "x") == (9, 7)
    seen = data.picture(npy(six), "x")
    assert data.stored(npy(six), "x").shape == (9, 7, 6) and seen.shape == (9, 7, 3)
    assert abs(seen[..., 2] - six[..., 4:].mean(-1)).max() <= 0.5
    np.testing.assert_array_equal(data.picture(four, "x"), four[..., :3])
    np.testing.assert_array_equal(data.picture(png(COLOUR), "x"), COLOUR)
    np.testing.assert_array_equal(decode(npy(COLOUR), "x"), COLOUR)


@pytest.mark.parametrize(
    ("stored", "channels", "message"),
    [
        (COLOUR, 4, r"x has 3 channels .* takes 4\. Set config\.model\.channels=3"),
        (png(COLOUR), 6, r"x has 3 channels .* takes 6"),
        (npy(np.zeros((9, 7, 4), np.uint8)), 3, r"x has 4 channels .* takes 3"),
        (npy(np.zeros((6, 9, 7), np.uint8)), 6, r"has 7 channels .* It may be channels first"),
        (np.zeros((3, 9, 7), np.uint8), 3, r"shape \(3, 9, 7\), .* channels come last"),
        (npy(np.zeros((9, 7, 6))), 6, r"x is float64 \(9, 7, 6\), not uint8 \(h, w, 6\); scale"),
        (npy(np.array([{}])), 6, r"damaged \.npy file, or contains objects"),
        (npy(COLOUR)[:40], 3, r"damaged \.npy file"),
        (b"", 4, r"empty \(0 bytes\)|cannot be decoded"),
        (b"no image", 4, r"x cannot be decoded"),
    ],
)
def test_other_channels_are_refused_in_one_line(stored, channels, message):
    with pytest.raises(UserError, match=message) as found:
        decode(stored, "x", channels=channels)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_transforms_treat_channels_alike(channels):
    """Each channel of a repeated grey image is what RGB's is, whatever is done to it."""
    grey = RNG.integers(0, 256, (33, 41, 1), np.uint8)
    many, three = (np.repeat(grey, n, axis=2) for n in (channels, 3))
    for name, options in (
        ("inception_crop", {}), ("resize_crop", {"resize": 40}), ("pad_crop", {"pad": 3}),
        ("resize", {}), ("resize_center_crop", {"resize": 40}), ("square_center_crop", {}),
    ):  # fmt: skip
        train = name in data.transforms.TRAIN
        ours = data.make_transform(
            name=name, size=(32, 32), train=train, channels=channels, **options
        )
        theirs = data.make_transform(name=name, size=(32, 32), train=train, **options)
        for seed in range(4):
            rngs = (np.random.default_rng(seed), np.random.default_rng(seed))
            found, expected = ours.read(many, "x", rngs[0]), theirs.read(three, "x", rngs[1])
            assert found.shape == (32, 32, channels)
            np.testing.assert_array_equal(found, np.repeat(expected[..., :1], channels, axis=2))


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_an_inflated_model_answers_a_grey_image_as_before(channels):
    config = models.get_config("debug", num_classes=5, image_size=16)
    params = {k: RNG.normal(0, 0.1, v.shape).astype(np.float32)
              for k, v in models.abstract_params(config).items()}  # fmt: skip
    target = adapt.retarget(config, channels=channels)
    inflated, _ = adapt.adapt(config, params, target)
    kernel, before = (p["patch_embedding/kernel"] for p in (inflated, params))
    for c in range(channels):
        np.testing.assert_allclose(kernel[:, :, c], before.sum(axis=2) / channels, rtol=1e-6)
    grey = RNG.uniform(-1, 1, (2, 16, 16, 1)).astype(np.float32)
    answers = [
        models.as_functions(c)[1](p, np.repeat(grey, n, axis=3))
        for c, p, n in ((config, params, 3), (target, inflated, channels))
    ]
    np.testing.assert_allclose(*answers, atol=1e-5)
    assert dict(target.preprocessing)["channels"] == channels


def test_class_folders_of_arrays(tmp_path):
    """.npy files are the images of a folder that has no other; beside images they are not."""
    six = RNG.integers(0, 256, (2, 9, 7, 6), np.uint8)
    for name, pixels in zip("ab", six, strict=True):
        (tmp_path / name / "deep").mkdir(parents=True)
        np.save(tmp_path / name / "deep" / "1.npy", pixels)
    source = data.open_source(f"folder:{tmp_path}[train]")
    assert sorted(source.names()) == ["a/deep/1.npy", "b/deep/1.npy"]
    record = source[source.names().index("b/deep/1.npy")]
    np.testing.assert_array_equal(decode(record["image"], "x", channels=6), six[1])
    (tmp_path / "a" / "1.png").write_bytes(png(COLOUR))
    source = data.open_source(f"folder:{tmp_path}[train]")
    assert sorted(source.names()) == ["a/1.png", "b/deep/1.npy"] and ".npy" in str(source.notes)


def test_six_channels_from_a_table_to_predictions_and_an_export(tmp_path):
    """Three classes that are told by one channel each, in .npy files that a table names."""
    rows = {"train": ["path,label"], "test": ["path,label"]}
    for split, count in (("train", 24), ("test", 12)):
        for i in range(count):
            pixels = np.full((16, 16, 6), 40, np.uint8)
            pixels[..., 3 + i % 3] = 240
            np.save(tmp_path / f"{split}{i}.npy", pixels)
            rows[split].append(f"{split}{i}.npy,c{i % 3}")
        (tmp_path / f"{split}.csv").write_text("\n".join(rows[split]) + "\n")
    run = tmp_path / "run"
    words = [
        f"--config.data.dataset=folder:{tmp_path}", "--config.model.channels=6",
        "--config.model.image_size=16", "--config.total_steps=30",
        "--config.schedule.learning_rate=0.3", "--config.checkpoint_every_steps=30",
    ]  # fmt: skip
    assert tiny_runs.train(run, *words) == 0
    found = json.loads((run / "evaluation.json").read_text())["classification"]
    assert found["accuracy"] == 1.0
    model = vit_jax.load_model(run)
    assert model.config.channels == 6 and model.preprocessing["channels"] == 6
    rows = vit_jax.predict(model, [tmp_path / "test1.npy", np.load(tmp_path / "test2.npy")])
    assert [row[0]["class"] for row in rows] == ["c1", "c2"]
    with pytest.raises(UserError, match=r"has 3 channels .* takes 6"):
        vit_jax.predict(model, [COLOUR])
    out = tmp_path / "stablehlo"
    assert main(["export", f"--checkpoint={run}", f"--out={out}", "--format=stablehlo"]) == 0
    data_words = [f"--data=folder:{tmp_path}[test]"]
    assert main(["evaluate", f"--checkpoint={out}", *data_words]) == 0
    again = tmp_path / "again"
    words += [f"--config.init_from={run}", "--config.model.channels=4"]
    assert tiny_runs.train(again, *words) == 1  # the images have six
