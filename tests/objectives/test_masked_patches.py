"""Masked patch prediction: corruption and targets by hand, the loss against NumPy, equal runs."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import load_file
from tiny_runs import three_classes, train

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.models import layers
from vit_jax.numerics import PLAIN, bits
from vit_jax.objectives import masked_patches as mp
from vit_jax.runtime import sharding
from vit_jax.runtime.logbook import read_metrics
from vit_jax.training import optim, state
from vit_jax.training.step import make_train_step

#: Of 16 patches.
CONFIG = models.get_config(
    "debug", num_classes=2, image_size=32, patch_size=8, num_layers=1, hidden_size=32, num_heads=2,
    mlp_dim=64,
)  # fmt: skip
WIDE = models.get_config("debug", num_classes=2, image_size=(320, 320), patch_size=8)  # 1,600


def objective(config=CONFIG, **options):
    init, apply = models.as_functions(config, PLAIN)
    found = mp.masked_patches(apply, config, PLAIN, **options)
    params = dict(jax.jit(init)(jax.random.key(0))) | found.init(jax.random.key(1))
    return found, params, apply


def photos(count=4, size=32):
    """Squares of colour that differ from patch to patch, and a little within them."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, size // 8, size // 8, 3)).repeat(8, 1).repeat(8, 2)
    return np.clip(coarse + rng.integers(-6, 7, (count, size, size, 3)), 0, 255).astype(np.uint8)


def key_of(step=0, rows=range(4)):
    return bits.Key(jax.random.key(step), jnp.array(list(rows), jnp.uint32))


# --- corruption ---------------------------------------------------------------------------------


def corruption(config=WIDE, count=64, exactly=False, shares=(0.5, 0.8, 0.1)):
    keys = jax.random.split(jax.random.key(3), count)
    draw = jax.vmap(lambda key: tuple(mp.draw(key, config, *shares, exactly)))
    return mp.Corruption(*map(np.asarray, draw(keys)))


@pytest.mark.parametrize("share", [0.5, 0.15])
def test_shares_of_the_corruption(share):
    """50%; of these 80% masked, 10% another patch, 10% as they were (B.1.2)."""
    found = corruption(shares=(share, 0.8, 0.1))
    moved = found.source != np.arange(1600)
    of = found.corrupted.sum()
    assert abs(found.corrupted.mean() - share) < 4 * np.sqrt(share * (1 - share) / (64 * 1600))
    assert abs(found.masked.sum() / of - 0.8) < 4 * np.sqrt(0.16 / of)
    assert abs(moved.sum() / of - 0.1) < 4 * np.sqrt(0.09 / of)
    assert not (found.masked & moved).any() and not (found.masked & ~found.corrupted).any()
    assert not (moved & ~found.corrupted).any()
    assert len(np.unique(found.source[moved])) > 800  # from anywhere in the image
    assert found.corrupted.sum(axis=1).std() > 5  # by chance: not the same in every image


def test_exactly_half_of_the_patches_are_corrupted():
    counts = corruption(exactly=True).corrupted.sum(axis=1)
    assert (counts == 800).all()


def test_replacements_of_corrupted_embeddings():
    z = jnp.arange(2 * 3 * 2.0).reshape(2, 3, 2)
    given = mp.Corruption(
        jnp.array([[True, True, False], [True, False, True]]),
        jnp.array([[True, False, False], [False, False, False]]),
        jnp.array([[0, 2, 2], [1, 1, 2]]),
    )
    mask = jnp.array([-1.0, -2.0])
    found = np.asarray(mp.corrupt(z, mask, given))
    wanted = [[[-1, -2], [4, 5], [4, 5]], [[8, 9], [8, 9], [10, 11]]]
    np.testing.assert_array_equal(found, wanted)
    found = np.asarray(mp.corrupt(z, mask, given, "batch"))
    wanted = [[[-1, -2], [10, 11], [4, 5]], [[2, 3], [8, 9], [10, 11]]]
    np.testing.assert_array_equal(found, wanted)


# --- targets ------------------------------------------------------------------------------------


def test_colours_by_hand():
    """3 bits a channel: bins of 32 values."""
    colour = jnp.array([[0, 0, 0], [31, 32, 255], [255, 255, 255], [31.9, 0, 224], [128, 64, 1]])
    assert mp.colour_classes(colour, 3).tolist() == [0, 8 + 7, 511, 7, 4 * 64 + 2 * 8]
    assert mp.colour_classes(colour, 1).tolist() == [0, 1, 7, 1, 4]


def test_targets_of_a_striped_image():
    """Columns of 8: red, green, black, white; the left half of each row of patches is darker."""
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, :, :8, 0], image[:, :, 8:16, 1], image[:, :, 24:] = 255, 255, 255
    image[:, 16:, 24:28] = 0  # of the white patches below, half is black
    _, of, *_ = mp.target_of("mean_colour", CONFIG, 3)
    red, green, black, white, grey = 7 * 64, 7 * 8, 0, 511, 3 * 73  # 127.5 is in the fourth bin
    wanted = [red, green, black, white] * 2 + [red, green, black, grey] * 2
    assert np.asarray(of(jnp.asarray(image)))[0, :, 0].tolist() == wanted
    outputs, of, *_ = mp.target_of("downsized", CONFIG, 3)
    found = np.asarray(of(jnp.asarray(image)))[0]
    assert outputs == 16 * 512 and found.shape == (16, 16)
    assert found[15].tolist() == [0, 0, 511, 511] * 4 and set(found[0]) == {red}
    outputs, of, *_ = mp.target_of("pixels", CONFIG, 3)
    found = np.asarray(of(jnp.asarray(image)))[0].reshape(16, 8, 8, 3)
    assert outputs == 192
    np.testing.assert_array_equal(found[15, :, :4], -1.0)
    np.testing.assert_array_equal(found[15, :, 4:], 1.0)


@pytest.mark.parametrize("target", ["mean_colour", "downsized", "pixels"])
def test_the_loss_is_numpys(target):
    """Of the model's own outputs: the mean over the corrupted patches of each image."""
    found, params, apply = objective(target=target)
    images, key = photos(), key_of()
    value = np.asarray(found.loss(params, {"image": jnp.asarray(images)}, key))

    keys = layers.example_keys(key, 4)
    given = [mp.draw(k, CONFIG, 0.5, 0.8, 0.1, False) for k in keys]
    z = np.asarray(apply(params, models.normalise(jnp.asarray(images)), method="patches")).copy()
    changed = z.copy()
    for i, drawn in enumerate(given):
        for n in range(16):
            changed[i, n] = z[i, int(drawn.source[n])]
            if drawn.masked[n]:
                changed[i, n] = params["objective/mask"]
    y = np.asarray(apply(params, jnp.asarray(changed), method="encode"))[:, 1:]
    y = y @ np.asarray(params["objective/dense_0/kernel"]) + params["objective/dense_0/bias"]
    pixels = images.astype(np.float64).reshape(4, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    pixels = pixels.reshape(4, 16, 8, 8, 3)
    for i, drawn in enumerate(given):
        losses = []
        for n in np.flatnonzero(np.asarray(drawn.corrupted)):
            if target == "pixels":
                losses.append(np.mean((y[i, n] - (pixels[i, n].ravel() / 127.5 - 1)) ** 2))
                continue
            side = 1 if target == "mean_colour" else 4
            parts = pixels[i, n].reshape(side, 8 // side, side, 8 // side, 3).mean((1, 3))
            classes = (parts.reshape(-1, 3) // 32).astype(int) @ [64, 8, 1]
            logits = np.asarray(y[i, n], np.float64).reshape(side * side, 512)
            right = logits[np.arange(side * side), classes]
            losses.append(np.mean(np.log(np.exp(logits).sum(1)) - right))
        assert value[i] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("target, largest", [
    ("mean_colour", 17), ("downsized", 17), ("pixels", 1),
])  # fmt: skip
def test_pictures_of_right_answers_are_the_images(target, largest):
    """An answer that is right is half a bin from the colour at most."""
    images = jnp.asarray(np.round(photos() / 8) * 8).astype(jnp.uint8)
    images = images.reshape(4, 4, 8, 4, 8, 3)[:, :, :1, :, :1].repeat(8, 2).repeat(8, 4)
    images = images.reshape(4, 32, 32, 3)  # of one colour in each patch
    wanted = mp.target_of(target, CONFIG, 3)
    answers = wanted.of(images)
    if target != "pixels":
        answers = jax.nn.one_hot(answers, 512).reshape(4, 16, -1)
    given = mp.Corruption(*(jnp.asarray(x) for x in corruption(CONFIG, 4)))
    rows = mp.pictures(images, given, wanted.picture(answers), CONFIG.grid, "image")
    far = np.abs(np.asarray(rows["predicted"], int) - np.asarray(images, int))
    assert far.max() <= largest
    seen = np.asarray(rows["corrupted"]).reshape(4, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    grey = (seen.reshape(4, 16, -1) == 128).all(axis=-1)
    np.testing.assert_array_equal(grey, np.asarray(given.masked))


# --- training -----------------------------------------------------------------------------------


def run(steps=1, devices=1, count=8, rate=0.01, mesh=None, optimizer=None, **options):
    found, params, _ = objective()
    grid = sharding.make_mesh(devices=jax.devices()[:devices], **(mesh or {}))
    optimizer = optimizer or optim.sgd(accumulator_dtype="float32")
    make, _ = state.initialise(
        dict, sharding.params_to_devices(params, grid), optimizer, grid, polyak=False
    )
    step = make_train_step(found, optimizer, lambda _: jnp.float32(rate), seed=0, **options)
    step, now = jax.jit(step, donate_argnums=0), make()
    batch = sharding.to_devices({"image": photos(count)}, grid)
    for _ in range(steps):
        now, metrics = step(now, batch)
    return jax.device_get(now.params), float(metrics["train/loss"])


def test_one_batch_is_learned_by_heart():
    _, first = run(rate=0.01, optimizer=optim.adam())
    _, last = run(steps=150, rate=0.01, optimizer=optim.adam())
    assert first > 6.0 and last < 0.35 * first


def test_devices_and_accumulation_change_nothing():
    wanted, loss = run(steps=2, rate=0.1)
    for options in ({"devices": 8, "mesh": {"fsdp": 2, "tensor": 2}}, {"accumulation_steps": 4}):
        found, other = run(steps=2, rate=0.1, **options)
        assert other == pytest.approx(loss, rel=1e-5)
        for path in wanted:
            np.testing.assert_allclose(
                found[path], wanted[path], rtol=1e-4, atol=2e-6, err_msg=path
            )
    assert np.abs(wanted["objective/mask"] - run(rate=0.0)[0]["objective/mask"]).max() > 1e-4


def test_an_evaluation_depends_on_the_image_and_not_on_its_batch():
    found, params, _ = objective()
    images = photos(6)
    whole = found.measure(params, {"image": images, "index": jnp.arange(6)})
    part = found.measure(params, {"image": images[4:], "index": jnp.array([4, 5])})
    for name, value in part.items():
        np.testing.assert_allclose(value, whole[name][4:], rtol=1e-4)
    assert set(whole) == {"loss", "right"} and np.asarray(whole["loss"]).std() > 1e-3


@pytest.mark.parametrize("options, message", [
    ({"target": "colour"}, "target='colour' must be mean_colour, downsized or pixels"),
    ({"corrupted": 0.0}, r"corrupted=0.0 must lie in \(0, 1\]"),
    ({"masked": 0.95}, "masked=0.95 and config.objective.replaced=0.1 are fractions"),
    ({"bits": 9}, "bits=9 must be 1 to 8"),
    ({"replaced_from": "data"}, "replaced_from='data' must be image or batch"),
])  # fmt: skip
def test_invalid_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        objective(**options)


def test_models_without_patches():
    with pytest.raises(UserError, match="R50x1 has none; choose a ViT or a hybrid"):
        objective(models.get_config("R50x1", depths=(1, 1, 1, 1), width_factor=0.5, image_size=64))
    config = models.override(CONFIG, patch_size=14, image_size=28)
    with pytest.raises(UserError, match=r"divide 14 x 14 of .*; choose mean_colour or pixels"):
        objective(config, target="downsized")


def test_hybrids_have_patches_too():
    config = models.get_config(
        "R26+S/32", stem_depths=(1, 1, 1), num_layers=1, hidden_size=32, num_heads=2, mlp_dim=32,
        num_classes=2, image_size=64,
    )  # fmt: skip
    found, params, _ = objective(config)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return found.loss(params, {"image": photos(2, 64)}, key_of(rows=range(2))).mean()

    value, gradients = loss(params)
    assert value > 5 and float(jnp.abs(gradients["objective/mask"]).max()) > 0


# --- the command line ---------------------------------------------------------------------------

MASKED = ["--config.objective.name=masked_patches", "--config.loss.label_smoothing=0"]


def test_a_run_is_killed_resumed_and_fine_tuned_from(tmp_path, capsys):
    folder = three_classes(tmp_path / "photos")
    settings = [
        f"--config=configs/masked_patch.py:debug,folder:{folder},6", "--config.batch_size=8",
        "--config.model.image_size=16", "--config.model.patch_size=4",
        "--config.model.hidden_size=32", "--config.model.num_layers=1",
        "--config.eval_preprocess.resize=18", "--config.checkpoint_every_steps=2",
        "--config.log_every_steps=1", "--config.eval_every_steps=None",
    ]  # fmt: skip
    from vit_jax.cli import main

    assert main(["train", *settings, f"--workdir={tmp_path / 'whole'}"]) == 0
    said = capsys.readouterr().out
    assert "without the objective's own parameters: objective/dense_0" in said
    assert "weight_decay=0.1, masked_patches" in said
    cut = ["train", *settings, f"--workdir={tmp_path / 'cut'}"]
    assert main([*cut, "--config.data.prefetch=oops"]) == 1  # nothing is there yet
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vit_jax.training.run.finish", lambda *_: (_ for _ in ()).throw(KeyError))
        assert main(cut) == 1
    assert not (tmp_path / "cut" / "model").exists()
    assert main(cut) == 0
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not [path for path in load_file(weights[0]) if path.startswith("objective")]
    with PIL.Image.open(tmp_path / "whole" / "objective.png") as strip:
        assert strip.info["rows"] == "original, corrupted, predicted"
        assert strip.size == (8 * 68, 3 * 68)
    assert "Rows: original, corrupted, predicted" in (tmp_path / "whole/report.html").read_text()
    records = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert {"eval/loss", "eval/right"} <= set(records[-1]) and "eval/accuracy" not in records[-1]
    assert "eval/index" not in records[-1]
    capsys.readouterr()
    tuned = [f"--config.init_from={tmp_path / 'whole'}", f"--config.data.dataset=folder:{folder}",
             "--config.model.variant=checkpoint", "--config.model.hidden_size=None",
             "--config.model.num_heads=None", "--config.model.mlp_dim=None",
             "--config.model.num_layers=None", "--config.model.patch_size=None",
             "--config.model.image_size=None"]  # fmt: skip
    assert train(tmp_path / "tuned", *tuned) == 0
    assert "eval/accuracy" in read_metrics(tmp_path / "tuned" / "metrics.jsonl")[-1]
