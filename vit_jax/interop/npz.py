"""Official `.npz` checkpoints of ViT, hybrids and BiT."""

from __future__ import annotations

import json
import lzma
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vit_jax import data, files, models
from vit_jax.errors import UserError
from vit_jax.interop.layout import Layout, check_sizes, from_foreign, reshaped, stacked, to_foreign
from vit_jax.models import saved
from vit_jax.models.resnet import ResNetConfig
from vit_jax.models.vit_config import ViTConfig, stem_stride

# Official names of one encoder block. Attention is separate: q, k and v are fused in our tree.
BLOCK_NAMES = {
    "attention_norm": "LayerNorm_0",
    "mlp_norm": "LayerNorm_2",
    "mlp/dense1": "MlpBlock_3/Dense_0",
    "mlp/dense2": "MlpBlock_3/Dense_1",
}
ATTENTION = "MultiHeadDotProductAttention_1"
#: Names of the same parts when the original code runs with a recent Flax.
TODAY = {
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
}
NORM, DENSE = ("scale", "bias"), ("kernel", "bias")


def vit_layout(config: ViTConfig) -> Layout:
    """The official layout of a ViT, and of a hybrid with its stem."""
    names = {
        "patch_embedding": ("embedding", DENSE),
        "encoder_norm": ("Transformer/encoder_norm", NORM),
        "head": ("head", DENSE),
    }
    if config.representation_size is not None:
        names["pre_logits"] = ("pre_logits", DENSE)
    for i in range(config.num_layers):
        for ours, theirs in BLOCK_NAMES.items():
            leaves = NORM if "norm" in ours else DENSE
            names[f"blocks/{i}/{ours}"] = (f"Transformer/encoderblock_{i}/{theirs}", leaves)
    entries = {
        f"{ours}/{leaf}": reshaped(f"{theirs}/{leaf}")
        for ours, (theirs, leaves) in names.items()
        for leaf in leaves
    }
    if config.classifier == "token":
        entries["class_token"] = reshaped("cls")
    if config.position_embedding == "1d":
        embedding = reshaped("Transformer/posembed_input/pos_embedding")
        entries["position_embedding/0/embedding"] = embedding
    heads, width = config.num_heads, config.hidden_size
    for i in range(config.num_layers):
        ours, theirs = f"blocks/{i}/attention", f"Transformer/encoderblock_{i}/{ATTENTION}"
        parts = [f"{theirs}/{part}" for part in ("query", "key", "value")]
        for leaf, axis in (("kernel", 1), ("bias", 0)):
            joined = tuple(f"{part}/{leaf}" for part in parts)
            entries[f"{ours}/qkv/{leaf}"] = stacked(joined, reshaped, axis)
        entries[f"{ours}/out/kernel"] = reshaped(
            f"{theirs}/out/kernel", lambda shape: (heads, width // heads, width)
        )
        entries[f"{ours}/out/bias"] = reshaped(f"{theirs}/out/bias")
    return entries | (stem_layout(config) if config.stem_depths is not None else {})


def stem_layout(config: ViTConfig) -> Layout:
    """The official layout of a hybrid's stem; its norms are (1, 1, 1, c) there."""
    entries = {"stem/conv_root/kernel": reshaped("conv_root/kernel")}

    def add_norm(ours: str, theirs: str) -> None:
        for leaf in NORM:
            entries[f"{ours}/{leaf}"] = reshaped(f"{theirs}/{leaf}", lambda s: (1, 1, 1, *s))

    add_norm("stem/norm_root", "gn_root")
    for stage, depth in enumerate(config.stem_depths or ()):
        for unit in range(depth):
            ours, theirs = f"stem/stages/{stage}/{unit}", f"block{stage + 1}/unit{unit + 1}"
            # The first unit of a stage changes the width, so it projects.
            for part in ("1", "2", "3", *(("_proj",) if unit == 0 else ())):
                entries[f"{ours}/conv{part}/kernel"] = reshaped(f"{theirs}/conv{part}/kernel")
                add_norm(f"{ours}/norm{part}", f"{theirs}/gn{part}")
    return entries


def resnet_layout(config: ResNetConfig) -> Layout:
    """The official layout of a BiT ResNet."""
    conv, norm = "standardized_conv2d/kernel", "group_norm"
    leaves = {"scale": "gamma", "bias": "beta"}
    entries = {
        "conv_root/kernel": reshaped(f"resnet/root_block/{conv}"),
        "head/kernel": reshaped("resnet/head/conv2d/kernel", lambda shape: (1, 1, *shape)),
        "head/bias": reshaped("resnet/head/conv2d/bias"),
    }
    for a, b in leaves.items():
        entries[f"norm/{a}"] = reshaped(f"resnet/{norm}/{b}")
    for stage, depth in enumerate(config.depths):
        for unit in range(depth):
            ours, theirs = f"stages/{stage}/{unit}", f"resnet/block{stage + 1}/unit{unit + 1:02d}"
            for number, letter in enumerate("abc", start=1):
                entries[f"{ours}/conv{number}/kernel"] = reshaped(f"{theirs}/{letter}/{conv}")
                for a, b in leaves.items():
                    entries[f"{ours}/norm{number}/{a}"] = reshaped(f"{theirs}/{letter}/{norm}/{b}")
            if unit == 0:
                entries[f"{ours}/conv_proj/kernel"] = reshaped(f"{theirs}/a/proj/{conv}")
    return entries


def layout(config: models.ModelConfig) -> Layout:
    """The official layout of a model.

    Raises:
      UserError: there is none for this kind of model.
    """
    if isinstance(config, ResNetConfig) and not config.axial_heads:
        return resnet_layout(config)
    if (
        type(config) is ViTConfig
        and config.classifier != "map"
        and config.position_embedding in ("none", "1d")
        and config.position_embedding_at == "stem"
    ):
        return vit_layout(config)
    raise UserError(
        f"The official .npz format cannot represent this {config.variant} (axial, MAP head, or "
        "another kind of position embedding); save it with --to=native."
    )


def find_resnet(weights: Mapping[str, np.ndarray]) -> ResNetConfig:
    """The BiT configuration of official arrays."""
    pattern = re.compile(r"resnet/block(\d+)/unit(\d+)/")
    units = [(int(m[1]), int(m[2])) for name in weights if (m := pattern.match(name))]
    depths = tuple(
        max(u for b, u in units if b == block) for block in sorted({b for b, _ in units})
    )
    root = weights["resnet/root_block/standardized_conv2d/kernel"]
    width = root.shape[3] / 64
    config = ResNetConfig(
        variant="custom",
        depths=depths,
        width_factor=width,
        channels=root.shape[2],
        num_classes=weights["resnet/head/conv2d/bias"].shape[0],
    )
    return models.replace(config, variant=models.find_variant(config))


def from_official(
    weights: Mapping[str, np.ndarray], config: models.ModelConfig, where: str = "npz"
) -> dict[str, np.ndarray]:
    """Official arrays as our parameters. Old files may flatten some axes.

    Raises:
      UserError: names or sizes are not those of `config`; lists them.
    """
    return from_foreign(layout(config), weights, config, where)


def save(path: str | Path, config: models.ModelConfig, params: Mapping[str, np.ndarray]) -> None:
    """Writes an official `.npz`, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = to_foreign(layout(config), params)
    sums = {saved.CHECKSUMS: [saved.checksum(array) for array in arrays.values()]}
    with files.replacing(path) as partial:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        with zipfile.ZipFile(partial, "a") as archive:
            archive.comment = json.dumps(sums).encode()


def find_config(weights: Mapping[str, np.ndarray], where: str) -> models.ModelConfig:
    """The configuration of official arrays, from their names and shapes.

    Raises:
      UserError: the arrays match no ViT, hybrid or BiT in the table of variants.
    """
    if "resnet/root_block/standardized_conv2d/kernel" in weights:
        return find_resnet(weights)
    if "embedding/kernel" not in weights or "head/kernel" not in weights:
        some = ", ".join(sorted(weights)[:4])
        raise UserError(f"{where} is not an official ViT or BiT checkpoint: it has {some}, ...")
    pattern = re.compile(r"Transformer/encoderblock_(\d+)/")
    blocks = {int(match[1]) for name in weights if (match := pattern.match(name))}
    ph, pw, channels, hidden = weights["embedding/kernel"].shape
    stem = None
    if "conv_root/kernel" in weights:
        units = re.compile(r"block(\d+)/unit(\d+)/conv1/kernel")
        found = [match for name in weights if (match := units.match(name))]
        stages = sorted({int(match[1]) for match in found})
        stem = tuple(max(int(m[2]) for m in found if int(m[1]) == stage) for stage in stages)
        channels = weights["conv_root/kernel"].shape[2]
    heads = weights[f"Transformer/encoderblock_0/{ATTENTION}/query/kernel"].shape[1]
    classifier = "token" if "cls" in weights else "gap"
    changes = {
        "patch_size": (ph, pw),
        "hidden_size": hidden,
        "num_layers": len(blocks),
        "mlp_dim": weights["Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"].shape[1],
        "num_heads": heads,
        "channels": channels,
        "num_classes": weights["head/kernel"].shape[1],
        "classifier": classifier,
        "stem_depths": stem,
        "representation_size": (
            weights["pre_logits/kernel"].shape[1] if "pre_logits/kernel" in weights else None
        ),
    }
    if stem is not None:
        changes["stem_width"] = weights["conv_root/kernel"].shape[3] / 64
    tokens = weights["Transformer/posembed_input/pos_embedding"].shape[1]
    side = math.isqrt(tokens - (classifier == "token"))
    if side * side != tokens - (classifier == "token"):
        raise UserError(
            f"{where}: position embeddings of {tokens} tokens are not square, so the image size "
            "is unknown; only square official checkpoints are supported."
        )
    stride = 1 if stem is None else stem_stride(stem)
    size = (side * ph * stride, side * pw * stride)
    config = ViTConfig(variant="custom", image_size=size, **changes)
    return models.replace(config, variant=models.find_variant(config))


def as_released(weights: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """The arrays under the released files' names, for any version of Flax.

    Raises:
      UserError: two arrays would have one name.
    """
    today = any("/MlpBlock_0/" in name for name in weights)

    def released(name: str) -> str:
        if name.startswith("resnet/"):  # the first of its kind, numbered or not
            return re.sub(r"\b(standardized_conv2d|group_norm|conv2d)_\d+/", r"\1/", name)
        return "/".join(TODAY.get(part, part) if today else part for part in name.split("/"))

    renamed: dict[str, np.ndarray] = {}
    for name, array in weights.items():
        if released(name) in renamed:
            raise UserError(f"{where} holds {name} under two names.")
        renamed[released(name)] = array
    return renamed


def read_arrays(path: Path, check: Check = lambda weights: None) -> dict[str, np.ndarray]:
    """All arrays of an `.npz`; pickled ones are never unpickled.

    Every header is read first. Checksums in the archive's comment are compared.

    Args:
      check: called with placeholder arrays of the same shapes before any data are read.

    Raises:
      UserError: not a zip file, damaged, an array of Python objects, or inconsistent sizes.
    """
    try:
        files.check_regular(path)
        with open(path, "rb") as opened, zipfile.ZipFile(opened) as archive:
            check(headers(archive))
            comment = archive.comment
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
    except FAULTS as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).split("\n")[0][:200]
        raise UserError(f"{path} is not a readable .npz ({reason}); download it again.") from error
    if comment.startswith(b'{"' + saved.CHECKSUMS.encode()):
        saved.check_sums(arrays, sums_of(comment, arrays), str(path))
    return arrays


Check = Callable[[dict[str, np.ndarray]], None]
#: Exceptions of zipfile, zlib and NumPy for damaged or unsupported archives.
FAULTS = (
    ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError, zlib.error, lzma.LZMAError,
    NotImplementedError, RuntimeError, TypeError, SyntaxError, IndexError, struct.error,
    MemoryError,
)  # fmt: skip


def sums_of(comment: bytes, arrays: Mapping[str, np.ndarray]) -> object:
    """{name: checksum} from an archive's comment, which lists them in the order of members."""
    try:
        return dict(zip(arrays, json.loads(comment)[saved.CHECKSUMS], strict=True))
    except (ValueError, TypeError, KeyError):
        return None


def headers(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """Placeholder arrays, without memory, of the shapes in an archive's headers.

    Raises:
      ValueError: a header's size differs from its entry, or a name occurs twice.
    """
    found: dict[str, np.ndarray] = {}
    for entry in archive.infolist():
        with archive.open(entry) as member:
            version = np.lib.format.read_magic(member)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(member)
            held = entry.file_size - member.tell()
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} contains Python objects")
        if math.prod(shape) * dtype.itemsize != held:
            raise ValueError(f"{entry.filename} should be {dtype} {shape} but has {held:,} bytes")
        name = entry.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"{name} occurs twice")
        found[name] = np.broadcast_to(np.zeros((), dtype), shape)
    return found


def load(path: Path, *, variant: str | None = None) -> tuple[models.ModelConfig, dict]:
    """Reads an official checkpoint; the model is inferred from names and shapes.

    Data are read only after these match a model.
    """
    where, known = str(path), []

    def check(weights: dict[str, np.ndarray]) -> None:
        try:
            config = find_config(as_released(weights, where), where)
        except (LookupError, ArithmeticError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{where} is not an official ViT or BiT checkpoint: an array is missing or has "
                f"another shape ({type(error).__name__}: {error})."
            ) from error
        check_sizes(layout(config), as_released(weights, where), config, where)
        known.append(config)

    weights = as_released(read_arrays(path, check), where)
    config = models.replace(known[0], preprocessing=data.FOREIGN_EVALUATION)
    if variant is not None and variant != config.variant:
        raise UserError(f"{path} holds a {config.variant}, not a {variant}.")
    return config, from_official(weights, config, where)
