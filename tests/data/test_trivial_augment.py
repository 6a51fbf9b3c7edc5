"""TrivialAugment: each change against pixels by hand, and what is drawn."""

import numpy as np
import pytest

from vit_jax import data
from vit_jax.data.trivial_augment import LEVELS, NAMES, changed, trivial_augment
from vit_jax.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def moved(down, across):
    """IMAGE with what was at (y + down, x + across) at (y, x), black from beyond."""
    found = np.zeros_like(IMAGE)
    for y in range(40):
        for x in range(40):
            if 0 <= y + down < 40 and 0 <= x + across < 40:
                found[y, x] = IMAGE[y + down, x + across]
    return found


GREY = (IMAGE @ np.array([299, 587, 114])) // 1000  # ITU-R 601, as Pillow rounds it within one


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        ("identity", 0.7, IMAGE),
        ("translate_x", 0.25, moved(0, 8)),
        ("translate_y", -0.5, moved(-16, 0)),
        ("solarize", 0.5, np.where(IMAGE < 128, IMAGE, 255 - IMAGE)),
        ("solarize", 0.0, IMAGE),
        ("posterize", 0.5, IMAGE & 0b11111000),
        ("posterize", 1.0, IMAGE & 0b11000000),
        ("brightness", -1.0, IMAGE * 0.01),
        ("brightness", 1.0, (IMAGE * 1.99).clip(0, 255)),
        ("colour", -1.0, 0.01 * IMAGE + 0.99 * GREY[..., None]),
        ("contrast", -1.0, 0.01 * IMAGE + 0.99 * GREY.mean()),
        ("sharpness", 0.0, IMAGE),
        ("shear_x", 0.0, IMAGE),
        ("rotate", 0.0, IMAGE),
        ("rotate", 90 / 135, np.rot90(IMAGE)),
    ],
)
def test_changes_by_hand(name, strength, expected):
    found = changed(IMAGE, name, strength)
    assert found.dtype == np.uint8
    difference = abs(found.astype(float) - expected).max()
    assert difference <= (2.0 if name in ("brightness", "colour", "contrast") else 0.0)


def test_shears_read_along_a_slanted_line():
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (40, 40, 3))
    found = changed(ramp, "shear_x", 0.5)[..., 0].astype(int)
    y, x = 30, 10
    assert abs(found[y, x] - (x + 0.495 * y)) <= 1 and found[y, 30] == 0  # black from beyond
    turned = changed(np.swapaxes(ramp, 0, 1), "shear_y", 0.5)[..., 0]
    np.testing.assert_array_equal(turned, found.T)


def test_autocontrast_and_equalize_use_the_whole_range():
    pale = 100 + IMAGE // 8
    for name in ("autocontrast", "equalize"):
        assert (changed(pale, name, 1.0).min(), changed(pale, name, 1.0).max()) == (0, 255)


def test_all_are_drawn_equally_often_at_all_strengths(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "vit_jax.data.trivial_augment.changed", lambda image, *drawn: seen.append(drawn) or image
    )
    rng = np.random.default_rng(0)
    for _ in range(14_000):
        trivial_augment(IMAGE, rng)
    counts = {name: sum(drawn[0] == name for drawn in seen) for name in NAMES}
    assert len(NAMES) == 14 and min(counts.values()) > 850 and max(counts.values()) < 1150
    strengths = {round(abs(s) * (LEVELS - 1), 6) for _, s in seen}
    assert strengths == set(range(31))
    signed = [s for name, s in seen if name == "rotate"]
    assert 0.4 < np.mean([s < 0 for s in signed if s]) < 0.6
    assert min(s for name, s in seen if name == "solarize") >= 0


def transform(**options):
    return data.make_transform(name="pad_crop", size=(40, 40), train=True, pad=0, **options)


def test_a_policy_comes_after_the_crop_and_follows_from_the_generator():
    plain, changed_ = transform(flip=False), transform(flip=False, policy="trivial")
    draws = [changed_(IMAGE, np.random.default_rng(seed)) for seed in range(20)]
    again = [changed_(IMAGE, np.random.default_rng(seed)) for seed in range(20)]
    np.testing.assert_array_equal(draws, again)
    assert sum((d != plain(IMAGE, np.random.default_rng(0))).any() for d in draws) > 10
    assert repr(changed_).endswith("policy=trivial)") and "policy" not in repr(plain)


def test_one_channel_stays_one():
    grey = IMAGE[..., :1]
    for name in NAMES:
        assert changed(grey, name, 0.5).shape == (40, 40, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(policy="trivail"), r"config\.augment\.policy='trivail' .* none, trivial.* 'trivial'"),
        (
            dict(policy="trivial", train=False),
            r"config\.eval_preprocess\.policy='trivial' does not",
        ),
    ],
)
def test_unknown_policies_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        data.make_transform(**dict(name="resize_flip" if options.get("train", True) else "resize",
                                   size=(8, 8), train=True) | options)  # fmt: skip
