"""Rates of layers and frozen blocks, against numbers by hand."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from small_run import prepared

from vit_jax import config as configuration
from vit_jax.errors import UserError
from vit_jax.runtime import sharding
from vit_jax.runtime.logbook import read_metrics
from vit_jax.training import by_layer, optim
from vit_jax.training.setup import computed_as, jit_train_step, set_up


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("patch_embedding/kernel", 0), ("class_token", 0), ("position_embedding/embedding", 0),
        ("stem/conv_root/kernel", 0), ("blocks/0/mlp/in/kernel", 1),
        ("blocks/11/attention/out/bias", 12), ("encoder_norm/scale", 13), ("head/kernel", 13),
        ("pre_logits/kernel", 13), ("pooling/probe", 13), ("objective/mask/embedding", 13),
    ],
)  # fmt: skip
def test_the_layer_of_a_parameter(path, layer):
    assert by_layer.layer_of(path, 12) == layer


def rates(**settings):
    config = configuration.default()
    for key, value in settings.items():
        config[key] = value
    return by_layer.rate_of(config, prepared().program.model)  # of two blocks


def test_rates_by_hand():
    rate = rates(layer_decay=0.5)
    paths = ("class_token", "blocks/0/mlp/in/bias", "blocks/1/mlp/in/bias", "head/bias")
    assert [rate(path) for path in paths] == [0.125, 0.25, 0.5, 1.0]
    rate = rates(layer_decay=0.5, freeze_blocks=1)
    assert [rate(path) for path in paths] == [0.0, 0.0, 0.5, 1.0]
    assert rates() is None


def test_the_rate_scales_the_weight_decay_too():
    """Adam's first direction is the sign of the gradient; decay adds 0.5 of the parameter."""
    optimizer = by_layer.with_rates(optim.adam(weight_decay=0.5), rates(layer_decay=0.5))
    params = {"blocks/1/norm/scale": jnp.float32(3), "head/bias": jnp.float32(3)}
    direction, _ = optimizer.update(
        jax.tree.map(lambda p: jnp.float32(-0.1), params), optimizer.init(params), params
    )
    np.testing.assert_allclose(direction["head/bias"], -1 + 1.5, rtol=1e-4)
    np.testing.assert_allclose(direction["blocks/1/norm/scale"], 0.5 * (-1 + 1.5), rtol=1e-4)


def one_step(setup):
    now = setup.program.initialise()
    kernel = now.params["head/kernel"]  # which is zero, and all gradients with it
    noise = 0.1 * np.random.default_rng(1).standard_normal(kernel.shape, np.float32)
    now.params["head/kernel"] = jax.device_put(noise, kernel.sharding)
    before = jax.device_get(now.params)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (64, 16, 16, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, 64).astype(np.int32),
    }
    now, metrics = jit_train_step(setup)(now, sharding.to_devices(batch, setup.program.mesh))
    after = jax.device_get(now.params)
    return {path: after[path] - before[path] for path in after}, metrics


def test_a_step_moves_layers_by_their_rates():
    common = {"optimizer__momentum": "0.0", "schedule__warmup_steps": "0"}
    whole, metrics = one_step(prepared(**common))
    decayed, _ = one_step(prepared(**common, layer_decay="0.5"))
    for path, moved in whole.items():
        assert abs(moved).max() > 0 or path.endswith("qkv/bias"), path
        rate = 0.5 ** (3 - by_layer.layer_of(path, 2))
        np.testing.assert_allclose(decayed[path], rate * moved, rtol=1e-3, atol=1e-7, err_msg=path)
    setup = prepared(**common)
    setup.config.update(init_from="anything", freeze_blocks=1)
    frozen, fewer = one_step(computed_as(setup))
    for path, moved in frozen.items():
        expected = 0 if by_layer.layer_of(path, 2) <= 1 else whole[path]
        np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-7, err_msg=path)
    assert fewer["train/gradient_norm"] < metrics["train/gradient_norm"]  # of what learns alone


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            dict(freeze_blocks="1"),
            r"config\.freeze_blocks=1 would freeze random weights;.*init_from",
        ),
        (
            dict(layer_decay="0.9", model__variant="R50x1"),
            r"config\.layer_decay=0.9 is for .* R50x1",
        ),
        (dict(layer_decay="0"), r"config\.layer_decay=0.0 must be a number in \(0, 1\]"),
        (dict(freeze_blocks="-1"), r"config\.freeze_blocks=-1 must be a whole number"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    config = configuration.default()
    config.update(total_steps=2, batch_size=8)
    config.model.update(variant="debug", image_size=16)
    for key, text in settings.items():
        configuration.override(config, key.replace("__", "."), text)
    with pytest.raises(UserError, match=message):
        set_up(config)


def test_more_blocks_than_there_are():
    with pytest.raises(UserError, match=r"freeze_blocks=3 exceeds the 2 blocks of .* 2 trains"):
        rates(freeze_blocks=3)


STRONG = (
    "--config.mixup_alpha=0.4", "--config.cutmix_alpha=1.0", "--config.layer_decay=0.7",
    "--config.model.stochastic_depth_rate=0.2", "--config.augment.policy=trivial",
    "--config.eval_training_images=40", "--config.log_every_steps=1",
)  # fmt: skip


def test_all_of_it_resumes_bit_for_bit_and_measures_training_images(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = (*STRONG, "--config.eval_every_steps=3")
    assert tiny_runs.train(whole, *more) == 0
    records = read_metrics(whole / "metrics.jsonl")
    last = records[-1]
    assert last["train_eval/num_examples"] == 40 and 0 <= last["train_eval/accuracy"] <= 1
    assert last["train_eval/loss"] != last["train/loss"]
    page = (whole / "report.html").read_text()
    assert "training images: accuracy" in page and "Plain loss of both" in page
    shutil.copytree(whole, cut)  # as if it had been killed after step 4
    shutil.rmtree(max((cut / "checkpoints").glob("*6")))
    shutil.rmtree(cut / "model")
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["step"] <= 4)
    )
    assert tiny_runs.train(cut, *more) == 0
    again = read_metrics(cut / "metrics.jsonl")
    assert [r.get("train/loss") for r in again] == [r.get("train/loss") for r in records]
    weights = [(place / "model" / "model.safetensors").read_bytes() for place in (whole, cut)]
    assert weights[0] == weights[1]
