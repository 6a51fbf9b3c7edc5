"""`vit-jax inspect` on real files, its page in a real browser, and the walk through the layers."""

import re
import shutil
import subprocess

import jax
import numpy as np
import PIL.Image
import pytest

from vit_jax import inspection, models
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.inspection import report, walk
from vit_jax.models import saved

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def save_model(directory, variant="debug", **settings):
    config = models.get_config(variant, num_classes=3, **settings)
    params = jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))
    shape = params["head/kernel"].shape
    params["head/kernel"] = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    saved.save(directory, config, params)
    return config, params


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(5):
        small = rng.integers(0, 256, (5, 6, 3)).astype(np.uint8)
        PIL.Image.fromarray(small).resize((60, 50)).save(folder / f"photo_{i}.png")
    return folder


@pytest.fixture(scope="module")
def inside(photos, tmp_path_factory):
    root = tmp_path_factory.mktemp("inspect")
    save_model(root / "m")
    arguments = [f"--checkpoint={root / 'm'}", f"--images={photos}", f"--out={root / 'out'}"]
    assert main(["inspect", *arguments, f"--compare={root / 'm'}", "--occlusion"]) == 0
    return root / "out"


@pytest.mark.parametrize(
    "name",
    ["filters", "positions", "positions_1", "attention_distance", "rollout", "heads", "similar",
     "occlusion_0"],
)  # fmt: skip
def test_every_picture_has_its_numbers(inside, name):
    picture = np.asarray(PIL.Image.open(inside / f"{name}.png").convert("RGB"))
    assert picture.std() > 5  # not an empty sheet
    with np.load(inside / f"{name}.npz") as numbers:
        assert numbers.files and all(np.isfinite(numbers[key]).all() for key in numbers.files)


def test_layer_by_layer_attention_equals_the_models(inside, photos):
    """Layer by layer gives the attention that the model returns at once."""
    config, params = saved.load(inside.parent / "m")
    files = sorted(photos.iterdir())
    images = np.asarray(models.normalise(report.read_images(config, files)))
    _, apply = models.as_functions(config)
    _, out = jax.jit(lambda p, x: apply(p, x, return_intermediates=("attention",)))(params, images)
    wanted = np.asarray(out["attention"])
    found = np.stack(list(walk.attention_layers(config, params, images)))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    looked = walk.attention_stats(config, params, images)
    np.testing.assert_allclose(
        looked.distance,
        inspection.attention_distance(wanted, config.grid, config.image_size),
        rtol=1e-5,
    )
    for i in range(len(files)):
        np.testing.assert_allclose(
            looked.rollout[i],
            inspection.attention_rollout(wanted[:, i], config.grid),
            rtol=1e-4,
            atol=1e-7,
        )
    with np.load(inside / "attention_distance.npz") as numbers:
        np.testing.assert_allclose(numbers["distance"], looked.distance, rtol=1e-5)


def test_occlusion_finds_what_matters():
    """A model that only sees the first patch loses its class when that is covered."""
    config, params = models.get_config("debug", num_classes=2, num_layers=1, classifier="gap"), None
    params = jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))
    rng = np.random.default_rng(0)
    params["head/kernel"] = rng.normal(size=(64, 2)).astype(np.float32)
    image = np.zeros((32, 32, 3), np.float32)
    image[:8, :8] = rng.uniform(-1, 1, (8, 8, 3))
    drops, label = walk.occlusion(config, params, image, cells=4)
    assert drops.shape == (4, 4) and label in (0, 1)
    others = np.delete(drops.ravel(), 0)
    assert abs(drops[0, 0]) > 1e-4 and np.abs(others).max() < 1e-6  # grey over grey is nothing


@pytest.mark.parametrize(
    "variant, settings, said, pictures",
    [
        ("debug", {"classifier": "gap"}, "Rollout reads the row of the class token", {"heads"}),
        ("R50x1", {"depths": (1, 1), "image_size": 64}, "has no attention", {"filters"}),
        ("debug-axial", {}, "has no attention", {"positions"}),
        ("debug", {"position_embedding": "none"}, "adds no position embeddings", {"rollout"}),
        ("debug-hybrid", {}, "", {"rollout", "filters"}),
    ],
)
def test_figures_that_a_model_lacks_are_named(
    tmp_path, photos, capsys, variant, settings, said, pictures
):
    save_model(tmp_path / "m", variant, **settings)
    out = tmp_path / "out"
    code = main(["inspect", f"--checkpoint={tmp_path / 'm'}", f"--images={photos}", f"--out={out}"])
    assert code == 0 and said in capsys.readouterr().out
    assert pictures <= {path.stem for path in out.glob("*.png")}
    assert said[:30] in (out / "index.html").read_text()


def test_images_of_five_channels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 5)).astype(np.uint8)
    np.save(tmp_path / "0.npy", pixels)
    found = report.read_images(models.get_config("debug", channels=5), [tmp_path / "0.npy"])
    np.testing.assert_array_equal(found[0], pixels)
    assert report.pictures_of(found)[0].shape == (32, 32, 3)


def test_without_images(tmp_path, capsys):
    save_model(tmp_path / "m", channels=5)
    assert main(["inspect", f"--checkpoint={tmp_path / 'm'}", f"--out={tmp_path / 'out'}"]) == 0
    assert "need images" in capsys.readouterr().out
    assert not (tmp_path / "out" / "rollout.png").exists()


def test_bad_input(tmp_path, capsys):
    save_model(tmp_path / "m")
    checkpoint = f"--checkpoint={tmp_path / 'm'}"
    assert main(["inspect", checkpoint, f"--out={tmp_path / 'o'}", "--images=/no/where"]) == 1
    assert "There is no image '/no/where'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert main(["inspect", checkpoint, f"--out={tmp_path / 'o'}", "--compare=/no/where"]) == 1
    assert not (tmp_path / "o").exists()
    assert main(["inspect", checkpoint]) == 2
    (tmp_path / "index.html").write_text("mine")
    assert main(["inspect", checkpoint, f"--out={tmp_path}"]) == 1
    assert "index.html exists and would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "mine"
    with pytest.raises(UserError, match="no attention over all tokens"):
        list(walk.attention_layers(models.get_config("R50x1"), {}, np.zeros((1, 224, 224, 3))))


def browser(page, *options):
    return subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--virtual-time-budget=3000", *options, page.as_uri(),
        ],
        capture_output=True, timeout=120, check=True,
    ).stdout.decode()  # fmt: skip


@pytest.mark.skipif(not CHROMIUM, reason="needs Debian's chromium")
def test_the_page_in_a_browser(inside, tmp_path):
    """Its script runs under its own policy, and asks the network for nothing."""
    page = inside / "index.html"
    html = page.read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"(src|href)=\"?(https?:)?//", html)
    dom = browser(page, "--dump-dom")
    said = re.search(r'<p id="said"[^>]*>([^<]*)</p>', dom)[1]
    assert re.fullmatch(r"photo_0\.png, layer 0, head 0: mean distance \d+\.\d pixels", said)
    with np.load(inside / "attention_distance.npz") as numbers:
        assert f"{numbers['distance'][0, 0]:.1f} pixels" in said
    for label in ("image", "layer", "head"):  # native controls: Tab and the arrow keys work
        assert re.search(rf'<label>{label} <(select|input) id="{label}"', dom)
    shot = tmp_path / "phone.png"
    browser(page, f"--screenshot={shot}", "--window-size=390,1200")
    picture = np.asarray(PIL.Image.open(shot).convert("L"))
    assert picture.shape[1] == 390 and picture.std() > 10
