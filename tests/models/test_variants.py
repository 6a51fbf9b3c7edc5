"""Every variant, to the unit: parameter counts of the paper, and the names and shapes of all."""

import hashlib
import json
import math
from pathlib import Path

import pytest

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.models import variants

#: Made by `python tests/models/test_variants.py`; a changed name breaks every checkpoint there is.
PATHS = Path(__file__).parent.parent / "golden" / "paths.json"

# Parameters with a linear head of 1000 classes at 224 pixels (PAPER.md A and B).
FINE_TUNING = {
    "B/32": 88_224_232, "B/16": 86_567_656, "L/32": 306_535_400, "L/16": 304_326_632,
    "H/14": 632_045_800, "S/16": 22_050_664, "Ti/16": 5_717_416,
    "R+Ti/16": 6_337_704,
    "R50+B/32": 110_945_832, "R50+B/16": 98_659_112, "R50+L/32": 328_994_856,
    "R50+L/16": 316_483_624, "R26+B/32": 101_383_976,
    "R50x1": 25_549_352, "R50x2": 97_988_712, "R101x1": 44_541_480, "R152x1": 60_185_128,
    "R152x2": 236_335_208, "R200x3": 568_633_000, "R152x4": 936_533_224,
}  # fmt: skip
# The same with the pre-training head: ImageNet, ImageNet-21k, JFT.
PRE_TRAINING = {
    "B/32": (88_814_824, 104_843_091, 102_111_603),
    "B/16": (87_158_248, 103_186_515, 100_455_027),
    "L/32": (307_585_000, 328_949_075, 325_308_275),
    "L/16": (305_376_232, 326_740_307, 323_099_507),
    "H/14": (633_685_480, 660_385_363, 655_835_251),
}
HYBRID_JFT = {
    "R50+B/32": 124_833_203, "R50+B/16": 112_546_483,
    "R50+L/32": 347_767_731, "R50+L/16": 335_256_499,
}  # fmt: skip


def shapes(variant, **settings):
    params = models.abstract_params(models.get_config(variant, **settings))
    return {path: list(leaf.shape) for path, leaf in params.items()}


def count(variant, **settings):
    return sum(math.prod(shape) for shape in shapes(variant, **settings).values())


def test_a_changed_shape_is_named():
    assert all(variants.named(models.get_config(name)) == name for name in variants.VARIANTS)
    changed = dict(hidden_size=128, num_heads=4, patch_size=8)
    named = variants.named(models.get_config("Ti/16", num_classes=7, **changed))
    assert named == "custom (Ti/16, patch size 8x8, hidden size 128, heads 4)"


@pytest.mark.parametrize("variant", FINE_TUNING)
def test_parameters_with_the_fine_tuning_head(variant):
    assert count(variant, num_classes=1000) == FINE_TUNING[variant]


@pytest.mark.parametrize("variant", PRE_TRAINING)
def test_parameters_with_the_pre_training_head(variant):
    found = [
        count(variant, num_classes=k, representation_size="hidden") for k in (1000, 21_843, 18_291)
    ]
    assert tuple(found) == PRE_TRAINING[variant]


@pytest.mark.parametrize("variant", HYBRID_JFT)
def test_parameters_of_hybrids_on_jft(variant):
    found = count(variant, num_classes=18_291, representation_size="hidden")
    assert found == HYBRID_JFT[variant]


@pytest.mark.parametrize("variant, number", [("B/16", 86_566_120), ("B/32", 88_222_696)])
def test_parameters_with_gap(variant, number):
    assert count(variant, num_classes=1000, classifier="gap") == number


def test_b_32_is_half_of_b_32():
    half, whole = models.get_config("b/32"), models.get_config("B/32")
    assert (2 * half.hidden_size, 2 * half.mlp_dim) == (whole.hidden_size, whole.mlp_dim)
    assert half.num_layers == whole.num_layers


def fingerprint(variant) -> dict:
    found = shapes(variant)
    text = json.dumps(sorted(found.items()))
    return {
        "parameters": sum(map(math.prod, found.values())),
        "arrays": len(found),
        "first": sorted(found)[0],
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_names_and_shapes_never_change(variant):
    assert fingerprint(variant) == json.loads(PATHS.read_text())[variant]


@pytest.mark.parametrize(
    "variant, hint",
    [("B/61", "B/16"), ("b/16", "B/16"), ("R152-x4", "R152x4"), ("Axial-B/61", "Axial-B/16")],
)
def test_unknown_variants_name_the_nearest(variant, hint):
    with pytest.raises(UserError, match=f"Did you mean '{hint}'"):
        models.get_config(variant)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"image_size": 225}, "image height 225 is not divisible .* to 224 or 240"),
        ({"image_size": (224, 8)}, "image width 8 is not divisible by the patch size 16; .* 16"),
        ({"num_heads": 7}, "hidden size 768 does not divide into 7 heads; 4, 6, 8"),
        ({"classifier": "cls"}, "model.classifier='cls' does not exist"),
        ({"position_embedding": "3d"}, "choose one of none, 1d, 2d, relative"),
        ({"image_size": "224"}, "is a whole number, or .height, width., not '224'"),
        ({"image_size": (224, 224, 3)}, "is a whole number, or .height, width., not .224, 224, 3."),
        ({"num_classes": 3.0}, "model.num_classes=3.0 must be a whole number"),
        ({"num_classes": 3, "labels": ["a", "b"]}, "model.labels names 2 of 3 classes"),
        ({"num_classes": 1, "labels": "a"}, "model.labels names 'a' of 1 classes"),
        ({"hiden_size": 3}, "no setting model.hiden_size. Did you mean 'hidden_size'"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UserError, match=message) as error:
        models.get_config("B/16", **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("factor", [0.3, 0.001])
def test_the_width_of_a_resnet_divides_into_groups(factor):
    with pytest.raises(UserError, match=r"do not divide into 32 groups; .* a multiple of 0\.5"):
        models.get_config("R50x1", width_factor=factor)


if __name__ == "__main__":
    golden = {variant: fingerprint(variant) for variant in models.VARIANTS}
    PATHS.write_text(json.dumps(golden, indent=1) + "\n")
