"""Costs against the paper's tables, against XLA's own count, and by hand."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax import models
from vit_jax.models import cost

# Multiply-accumulates of a forward pass with 1000 classes, in 1e9 (PAPER.md L, B).
GMACS = {
    ("B/32", 224): 4.41, ("B/32", 384): 13.04, ("B/16", 224): 17.56, ("B/16", 384): 55.48,
    ("L/32", 224): 15.38, ("L/32", 384): 45.28, ("L/16", 224): 61.56, ("L/16", 384): 191.07,
    ("H/14", 224): 167.30, ("L/16", 512): 361.99, ("H/14", 518): 1016.7,
}  # fmt: skip
PADDED_GMACS = {
    "R50x1": 4.09, "R50x2": 16.11, "R101x1": 7.80, "R152x1": 11.51, "R152x2": 45.81,
    "R200x3": 134.34, "R152x4": 182.77,
}  # fmt: skip
PLAIN_GMACS = {
    "R50x1": 3.95, "R50x2": 15.55, "R101x1": 7.48, "R152x1": 11.03, "R152x2": 43.87,
    "R200x3": 129.20, "R152x4": 175.03,
}  # fmt: skip


@pytest.mark.parametrize("variant, size", GMACS)
def test_gmacs_of_vits(variant, size):
    config = models.get_config(variant, image_size=size)
    assert cost.forward_macs(config) / 1e9 == pytest.approx(GMACS[variant, size], abs=0.06)


@pytest.mark.parametrize("variant", PADDED_GMACS)
def test_gmacs_of_resnets(variant):
    config = models.get_config(variant)
    padded = cost.forward_macs(config, padding=True) / 1e9
    assert padded == pytest.approx(PADDED_GMACS[variant], abs=0.012)
    assert cost.forward_macs(config) / 1e9 == pytest.approx(PLAIN_GMACS[variant], abs=0.012)


@pytest.mark.parametrize("row", cost.table_6(), ids=lambda r: f"{r['variant']}@{r['epochs']}")
def test_table_6(row):
    off = abs(row["exaflops"] / row["published_exaflops"] - 1)
    assert off < (0.035 if row["note"] else 0.015)
    assert bool(row["note"]) == ((row["variant"], row["epochs"]) in cost.DISAGREEMENTS)


def test_a_vit_by_hand():
    """4 patches of 2x2x3, d = 8, one layer, MLP 16, class token, 5 classes."""
    config = models.get_config(
        "debug", image_size=4, patch_size=2, hidden_size=8, num_layers=1, mlp_dim=16,
        num_heads=2, num_classes=5,
    )  # fmt: skip
    patches = 4 * (12 * 8)
    attention = 5 * 4 * 8 * 8 + 2 * 5 * 5 * 8
    mlp = 5 * 2 * 8 * 16
    assert cost.forward_macs(config) == patches + attention + mlp + 8 * 5
    assert cost.train_flops_per_image(config) == 6 * cost.forward_macs(config)


@pytest.mark.parametrize(
    "variant, settings",
    [
        ("debug", {}),
        ("debug", {"classifier": "gap", "representation_size": 64}),
        ("debug", {"classifier": "map"}),
        ("Axial-B/32", {"num_layers": 2, "image_size": 128, "num_classes": 10}),
        ("Axial-R50x1", {"depths": (1, 1), "image_size": 64, "num_classes": 10}),
        ("debug", {"stem_depths": (1, 1), "stem_width": 0.5, "patch_size": 1, "image_size": 64}),
    ],
)
def test_xla_counts_the_same(variant, settings):
    """XLA counts two per product and everything else besides, which is little."""
    config = models.get_config(variant, **settings)
    _, apply = models.as_functions(config)
    images = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
    analysis = jax.jit(apply).lower(models.abstract_params(config), images).cost_analysis()
    ours = 2 * cost.forward_macs(config)
    assert 0.97 * ours < analysis["flops"] < 1.35 * ours
