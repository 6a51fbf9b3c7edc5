"""Each setting of transformers and timm is honoured, changes nothing, or is refused.

Judged by the real ones, on photographs. Their own classes say which settings there are.
"""

import dataclasses
import inspect
import json

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_sample_images

from vit_jax import models
from vit_jax.data import photos
from vit_jax.errors import UserError
from vit_jax.interop import huggingface, load, peers, pixels, timm as timm_format
from vit_jax.interop.settings import Nothing, Only, Read

pytestmark = pytest.mark.filterwarnings("ignore")  # the other packages' own
BOXES = (
    (0, 0, 640, 427),
    (30, 40, 300, 200),
    (200, 50, 171, 333),
    (400, 100, 40, 31),
    (0, 0, 32, 32),
)


@pytest.fixture(scope="module")
def crops():
    return [
        PIL.Image.fromarray(photo).crop((x, y, x + w, y + h))
        for photo in load_sample_images().images
        for x, y, w, h in BOXES
    ]


@pytest.fixture(scope="module")
def torch():
    found = pytest.importorskip("torch")
    peers.declare_torchvision()
    return found


@pytest.fixture(scope="module")
def transformers(torch):
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def timm(torch):
    return pytest.importorskip("timm")


def ours(directory, crops):
    config, params = load.read(directory)
    return peers.run_ours(config, params, photos.preprocess(config, crops))


def agree(found, wanted, tolerance=1e-5):
    assert (found.argmax(1) == wanted.argmax(1)).all()
    assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()
    assert np.ptp(wanted, axis=0).max() > 1e-3 * np.abs(wanted).max()  # photographs differ


# --- transformers -------------------------------------------------------------------------------


def hf_directory(transformers, torch, where, model=(), processor=()):
    settings = dict(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        image_size=32, patch_size=8, num_labels=7, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    config = transformers.ViTConfig(**settings | dict(model))
    made = transformers.ViTForImageClassification(config).eval()
    made.save_pretrained(where)
    size = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (where / "preprocessor_config.json").write_text(json.dumps(size | dict(processor)))
    return made


CROP = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
PROCESSORS = [
    {},
    {"do_normalize": False},
    {"do_rescale": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5},
    {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.1]},
    {"image_mean": 0.3, "image_std": 0.2},
    {"resample": 3},
    {"resample": 1},
    {**CROP, "size": {"shortest_edge": 36}},
    {**CROP, "size": {"height": 40, "width": 44}},
    {**CROP, "size": {"height": 28, "width": 30}},  # padded
    {**CROP, "size": 36, "default_to_square": False, "resample": 3},
    {"size": 32, "do_convert_rgb": True, "pad_size": {"height": 64, "width": 64}},
    {"image_processor_type": "ViTImageProcessorFast"},
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=str)
def test_a_processor_of_transformers_is_followed(transformers, torch, crops, tmp_path, processor):
    model = hf_directory(transformers, torch, tmp_path, processor=processor)
    for backend, tolerance in (("pil", 1e-5), ("torchvision", 0.03)):  # which rounds otherwise
        theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        with torch.no_grad():
            wanted = model(**theirs(crops, return_tensors="pt")).logits.numpy()
        if backend == "pil" and processor.get("size") == {"height": 28, "width": 30}:
            continue  # its padding is another than torchvision's
        agree(ours(tmp_path, crops), wanted, tolerance)


MODELS = [
    *({"hidden_act": name} for name in huggingface.ACTIVATIONS if name != "gelu_accurate"),
    {"qkv_bias": False},
    {"layer_norm_eps": 0.1},
    {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5},
]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_configuration_of_transformers_is_followed(transformers, torch, crops, tmp_path, model):
    made = hf_directory(transformers, torch, tmp_path, model)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    with torch.no_grad():
        wanted = made(**theirs(crops, return_tensors="pt")).logits.numpy()
    agree(ours(tmp_path, crops), wanted)


ODD = [
    ("preprocessor_config.json", "do_resize", False),
    ("preprocessor_config.json", "do_pad", True),
    ("preprocessor_config.json", "do_center_crop", "yes"),
    ("preprocessor_config.json", "do_flip_channel_order", True),
    ("preprocessor_config.json", "do_thumbnail", True),
    ("preprocessor_config.json", "resample", 0),
    ("preprocessor_config.json", "resample", 4),
    ("preprocessor_config.json", "resample", "cubic"),
    ("preprocessor_config.json", "size", {"height": 40, "width": 40}),
    ("preprocessor_config.json", "size", {"shortest_edge": 32}),
    ("preprocessor_config.json", "size", {"shortest_edge": 32, "longest_edge": 40}),
    ("preprocessor_config.json", "size", {"max_height": 32, "max_width": 32}),
    ("preprocessor_config.json", "size", -3),
    ("preprocessor_config.json", "image_mean", [0.5, 0.5]),
    ("preprocessor_config.json", "image_mean", "grey"),
    ("preprocessor_config.json", "image_std", [0.5, 0, 0.5]),
    ("preprocessor_config.json", "rescale_factor", "x"),
    ("preprocessor_config.json", "data_format", "channels_last"),
    ("preprocessor_config.json", "image_processor_type", "CLIPImageProcessor"),
    ("config.json", "hidden_act", "gelu_10"),
    ("config.json", "hidden_act", "mish"),
    ("config.json", "head_dim", 7),
    ("config.json", "num_hidden_layers", 2**31),
    ("config.json", "num_attention_heads", "four"),
    ("config.json", "quantization_config", {"quant_method": "fp8"}),
    ("config.json", "is_decoder", True),
    ("config.json", "pruned_heads", {"0": [1]}),
    ("config.json", "qkv_bias", "no"),
    ("config.json", "layer_norm_eps", [1]),
    ("config.json", "model_type", "dinov2"),
    ("config.json", "num_attention_heads", 5),
    ("config.json", "hidden_act", ["gelu"]),
    ("config.json", "layer_norm_eps", -1.0),
    ("config.json", "hidden_dropout_prob", 7),
    ("preprocessor_config.json", "resample", [3]),
]


def test_the_other_file_of_a_processor_is_read(transformers, torch, crops, tmp_path):
    made = hf_directory(transformers, torch, tmp_path, MODELS[0])
    old = tmp_path / "preprocessor_config.json"
    facts = json.loads(old.read_text()) | {"do_normalize": False}
    old.unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": facts}))
    theirs = (
        transformers.ViTImageProcessorPil(**facts)
        if hasattr(transformers, "ViTImageProcessorPil")
        else transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    )
    with torch.no_grad():
        wanted = made(**theirs(crops, return_tensors="pt")).logits.numpy()
    agree(ours(tmp_path, crops), wanted)


@pytest.mark.parametrize("file, key, value", ODD)
def test_unsupported_settings_of_transformers_are_refused_by_name(
    transformers, torch, tmp_path, file, key, value
):
    hf_directory(transformers, torch, tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError) as caught:
        load.read(tmp_path)
    text = str(caught.value)
    assert file in text and "\n" not in text
    assert (key in text or str(value) in text) and len(text) < 400


def test_every_setting_of_transformers_is_in_a_table(transformers):
    """Those of its own classes; each read, of few values, or with a reason."""
    config = {field.name for field in dataclasses.fields(transformers.ViTConfig)}
    assert config <= set(huggingface.SETTINGS)
    processor = set(transformers.ViTImageProcessor.valid_kwargs.__annotations__)
    processor |= set(transformers.ViTImageProcessor().to_dict())
    assert processor <= set(pixels.PROCESSOR)
    for table in (huggingface.SETTINGS, pixels.PROCESSOR):
        check_table(table)


def check_table(table):
    for key, rule in table.items():
        assert isinstance(rule, (Read, Only, Nothing)), key
        assert not isinstance(rule, Nothing) or len(rule.why) > 5


# --- timm ---------------------------------------------------------------------------------------

B16 = "vit_base_patch16_224"


@pytest.mark.parametrize("more", [(), (("resize", (40, 40)),), (("interpolation", "bilinear"),)])
def test_the_default_of_pillow_is_bilinear_in_their_files_too(more):
    preprocessing, config = (("name", "pillow"), *more), models.get_config("debug")
    assert pixels.to_processor(preprocessing, config)[0]["resample"] == 2
    assert pixels.to_pretrained_cfg(preprocessing, config)[0]["interpolation"] == "bilinear"


def timm_directory(timm, torch, where, name=B16, arguments=(), facts=(), top=()):
    torch.manual_seed(0)
    arguments = dict(
        patch_size=8, embed_dim=48, depth=2, num_heads=3, img_size=32, num_classes=7, mlp_ratio=2
    ) | dict(arguments)
    arguments = {key: value for key, value in arguments.items() if value is not None}
    model = timm.create_model(name, **arguments)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.ndim > 1 or "norm" not in key:
                value.copy_(torch.randn_like(value) * 0.2)
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, where / "model.safetensors")
    size = arguments["img_size"]
    size = [size, size] if isinstance(size, int) else size
    values = {
        "architecture": name,
        "num_classes": 7,
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, *size], "num_classes": 7} | dict(facts),
        **dict(top),
    }
    (where / "config.json").write_text(json.dumps(values))


TIMM = [
    (B16, {}, {}),
    (B16, {}, {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}),
    (B16, {}, {"interpolation": "bilinear", "crop_pct": 0.9}),
    (B16, {}, {"interpolation": "lanczos", "crop_mode": "squash"}),
    (B16, {}, {"crop_mode": "border"}),
    (B16, {}, {"crop_mode": "border", "crop_pct": 1.0, "test_crop_pct": 0.5}),
    *((B16, {"act_layer": name}, {}) for name in ("relu", "quick_gelu", "silu", "gelu_tanh")),
    (B16, {"qkv_bias": False}, {}),
    (B16, {"proj_bias": False}, {}),
    (B16, {"init_values": 0.1, "drop_rate": 0.5, "drop_path_rate": 0.5}, {}),
    (B16, {"no_embed_class": True}, {}),
    (B16, {"fc_norm": True}, {}),
    ("vit_base_patch16_gap_224", {}, {}),
    (B16, {"class_token": False, "global_pool": "avg", "fc_norm": False}, {}),
    (B16, {"embed_dim": 96, "num_heads": None}, {}),  # 12 of its architecture, 8 wide
    ("deit_tiny_patch16_224", {"num_heads": 6}, {}),
    ("vit_small_patch14_dinov2", {"num_heads": 6}, {}),
    (B16, {"img_size": [32, 48]}, {}),
    (B16, {"img_size": [48, 32]}, {"crop_mode": "squash"}),
]


@pytest.mark.parametrize("name, arguments, facts", TIMM)
def test_settings_of_timm_are_followed(timm, torch, crops, tmp_path, name, arguments, facts):
    timm_directory(timm, torch, tmp_path, name, arguments, facts)
    agree(ours(tmp_path, crops), by_timm(timm, torch, tmp_path, crops))


def by_timm(timm, torch, directory, crops):
    model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        return model(torch.stack([transform(crop) for crop in crops])).numpy()


def test_a_directory_without_facts_has_timms_defaults(timm, torch, crops, tmp_path):
    """ImageNet's mean and std, bicubic, a crop of 87.5%; also where all stands in one table."""
    timm_directory(timm, torch, tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    path.write_text(
        json.dumps(values | {"pretrained_cfg": {"input_size": [3, 32, 32], "num_classes": 7}})
    )
    agree(ours(tmp_path, crops), by_timm(timm, torch, tmp_path, crops))


MADE = [  # (architecture, model_args, a word of the refusal)
    (B16, {"global_pool": "avg"}, "global_pool"),
    (B16, {"class_token": False, "global_pool": "avg"}, "fc_norm"),
    (B16, {"class_token": False, "global_pool": "map"}, "global_pool"),
    (B16, {"global_pool": "max", "fc_norm": False}, "global_pool"),
    (B16, {"reg_tokens": 2}, "reg_tokens"),
    (B16, {"pre_norm": True}, "pre_norm"),
    (B16, {"qk_norm": True}, "qk_norm"),
    (B16, {"scale_mlp_norm": True}, "scale_mlp_norm"),
    (B16, {"final_norm": False}, "final_norm"),
    (B16, {"pos_embed": "none"}, "pos_embed"),
    (B16, {"act_layer": "mish"}, "act_layer"),
    ("vit_base_patch16_rpn_224", {}, "architecture"),
    ("vit_base_patch16_clip_quickgelu_224", {}, "architecture"),
    ("vit_giant_patch14_dinov2", {}, "SwiGLU"),
]


@pytest.mark.parametrize("name, arguments, word", MADE)
@pytest.mark.parametrize("bare", [False, True])
def test_models_of_timm_that_have_no_place_here(timm, torch, tmp_path, name, arguments, word, bare):
    """By name, with its config.json; of bare weights, where the arrays show it."""
    timm_directory(timm, torch, tmp_path, name, arguments)
    arrays = load_file(tmp_path / "model.safetensors")
    seen = ("class_token", "reg_tokens", "pre_norm", "qk_norm", "scale_mlp_norm", "pos_embed")
    if bare and not (set(seen) & set(arguments) or "giant" in name):
        return  # nothing of it is in the arrays
    with pytest.raises(UserError) as caught:
        load.read(tmp_path / "model.safetensors" if bare else tmp_path)
    text = str(caught.value)
    assert "\n" not in text and "square" not in text
    if not bare:
        assert word in text or (word == "SwiGLU" and "architecture" in text)
    elif "class_token" in arguments:
        assert "class token" in text or "global_pool" in text
    else:
        assert word in text or "unexpected" in text or "not a" in text
    assert arrays


ODD_TIMM = [
    ("pretrained_cfg", "interpolation", "random"),
    ("pretrained_cfg", "crop_mode", "middle"),
    ("pretrained_cfg", "crop_pct", "all"),
    ("pretrained_cfg", "crop_pct", -1),
    ("pretrained_cfg", "mean", [0.5, 0.5]),
    ("pretrained_cfg", "std", [0, 0, 0]),
    ("pretrained_cfg", "label_offset", 1),
    ("pretrained_cfg", "input_size", [3, 64, 64]),
    ("pretrained_cfg", "input_size", "large"),
    ("pretrained_cfg", "gamma", 2.2),
    ("pretrained_cfg", "num_classes", 9),
    ("model_args", "norm_layer", "rmsnorm"),
    ("model_args", "mlp_layer", "swiglu"),
    ("model_args", "attn_layer", "diff"),
    ("model_args", "depth", 3),
    ("model_args", "embed_dim", 64),
    ("model_args", "patch_size", 16),
    ("model_args", "img_size", 64),
    ("model_args", "in_chans", 1),
    ("model_args", "mlp_ratio", 3),
    ("model_args", "class_token", False),
    ("model_args", "num_heads", 5),
    ("model_args", "rope", True),
    (None, "global_pool", "avg"),
    (None, "num_classes", 9),
    (None, "architecture", "eva02_base_patch14_224"),
]


@pytest.mark.parametrize("section, key, value", ODD_TIMM)
def test_unsupported_settings_of_timm_are_refused_by_name(
    timm, torch, tmp_path, section, key, value
):
    timm_directory(timm, torch, tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    (values[section] if section else values)[key] = value
    path.write_text(json.dumps(values))
    with pytest.raises(UserError) as caught:
        load.read(tmp_path)
    assert "\n" not in str(caught.value)
    assert key in str(caught.value) or "5 heads" in str(caught.value)


def test_every_setting_of_timm_is_in_a_table(timm):
    """Those of its own classes."""
    from timm.models import resnetv2, vision_transformer
    from timm.models._pretrained import PretrainedCfg

    facts = {field.name for field in dataclasses.fields(PretrainedCfg)}
    assert facts <= set(pixels.PRETRAINED)
    for kind, table in (
        (vision_transformer.VisionTransformer, timm_format.ARGUMENTS),
        (resnetv2.ResNetV2, timm_format.BIT_ARGUMENTS),
    ):
        wanted = set(inspect.signature(kind.__init__).parameters) - {"self"}
        assert wanted <= set(table)
        check_table(table)
    check_table(pixels.PRETRAINED)


def test_a_standardised_first_convolution_takes_its_own_scale_alone(timm, torch, tmp_path):
    """A BiT with ImageNet's mean cannot be followed exactly, so it is not followed at all."""
    model = timm.create_model("resnetv2_50x1_bit", num_classes=3)
    arrays = {key: np.ascontiguousarray(v.numpy()) for key, v in model.state_dict().items()}
    save_file(arrays, tmp_path / "model.safetensors")
    values = {
        "architecture": "resnetv2_50x1_bit",
        "num_classes": 3,
        "pretrained_cfg": {"num_classes": 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"mean and std .* are not supported"):
        load.read(tmp_path)
    values["pretrained_cfg"] |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load.read(tmp_path)[0].variant == "R50x1"


def test_timms_grey_images_need_their_mean(timm, torch, tmp_path):
    """ImageNet's, timm's default, is of three channels; of another number there is none."""
    grey = {"in_chans": 1}
    timm_directory(timm, torch, tmp_path, arguments=grey, facts={"input_size": [1, 32, 32]})
    with pytest.raises(UserError, match=r"mean=None .*there is none for 1 channels"):
        load.read(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["pretrained_cfg"] |= {"mean": [0.5], "std": [0.5]}
    path.write_text(json.dumps(values))
    assert load.read(tmp_path)[0].channels == 1
