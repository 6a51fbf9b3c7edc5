"""Writes weights in another format, and proves it by running the result with its own runtime."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax import models
from vit_jax.errors import UserError, nearest
from vit_jax.interop import huggingface, load, npz, timm
from vit_jax.models import saved

Array = np.ndarray
PROBES = 2  # images that the two sides are compared on


class Proof(NamedTuple):
    """difference: the largest over all logits; scale: the largest logit; runtime: who ran it."""

    difference: float
    scale: float
    runtime: str


def probe_images(config: models.ModelConfig) -> Array:
    """Random images (2, h, w, c) in [-1, 1], the same every time."""
    rng = np.random.default_rng(0)
    shape = (PROBES, *config.image_size, config.channels)
    return rng.uniform(-1, 1, shape).astype(np.float32)


def run_ours(config: models.ModelConfig, params: Mapping[str, Any], images: Array) -> Array:
    """Logits (b, num_classes) in float32; of a model with a hidden layer and a zero head, that
    layer's outputs after the tanh, which say more."""
    config = models.replace(config, dtype="float32")
    _, apply = models.as_functions(config)
    with jax.default_matmul_precision("highest"):
        logits, out = jax.jit(lambda p, x: apply(p, x, return_intermediates=True))(params, images)
    if getattr(config, "representation_size", None) is not None and not np.any(logits):
        return np.tanh(np.asarray(out["pre_logits"]))
    return np.asarray(logits)


def run_native(directory: Path, config: models.ModelConfig, images: Array) -> tuple[Array, str]:
    """What is in the file, read again and run by this package."""
    return run_ours(*load.read_path(directory), images), "vit_jax, read again"


def run_transformers(
    directory: Path, config: models.ModelConfig, images: Array
) -> tuple[Array, str]:
    """Logits by transformers; of a `ViTModel`, its pooler's outputs."""
    try:
        import torch
        import transformers
    except ImportError:
        return _no_peer("transformers", directory, config, images)
    pooled = getattr(config, "representation_size", None) is not None
    kind = transformers.ViTModel if pooled else transformers.ViTForImageClassification
    model = kind.from_pretrained(directory).eval()
    with torch.no_grad():
        result = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    found = result.pooler_output if pooled else result.logits
    return found.numpy(), f"transformers {transformers.__version__}"


def run_timm(directory: Path, config: models.ModelConfig, images: Array) -> tuple[Array, str]:
    """Logits by timm."""
    try:
        import timm as peer
        import torch
    except ImportError:
        return _no_peer("timm", directory, config, images)
    model = peer.create_model(f"local-dir:{directory}", pretrained=True).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return found.numpy(), f"timm {peer.__version__}"


def _no_peer(
    name: str, directory: Path, config: models.ModelConfig, images: Array
) -> tuple[Array, str]:
    found, _ = run_native(directory, config, images)
    return found, (
        f"vit_jax, read again; NOT by {name}, which is not installed (pip install 'vit_jax[peers]')"
    )


class Format(NamedTuple):
    """A way to write weights, and who runs them. suffix: of a file; "" for a directory."""

    save: Callable[..., None]
    run: Callable[[Path, models.ModelConfig, Array], tuple[Array, str]]
    suffix: str = ""


FORMATS: dict[str, Format] = {
    "native": Format(saved.save, run_native),
    "npz": Format(npz.save, run_native, ".npz"),
    "huggingface": Format(huggingface.save, run_transformers),
    "timm": Format(timm.save, run_timm),
}


def convert(source: str, target: str | Path, to: str, *, tolerance: float = 1e-4) -> Proof:
    """Writes the weights at `source` to `target` in the format `to`.

    The result is made beside `target`, run, compared, and only then moved there.

    Args:
      tolerance: the largest difference of a logit, as a share of the largest logit.

    Raises:
      UserError: an unknown format, no place in it for this model, `target` exists, or the answers
        differ by more than the tolerance; then nothing is left at `target`.
    """
    if to not in FORMATS:
        raise UserError(
            f"There is no format {to!r}; there are {', '.join(FORMATS)}.{nearest(to, FORMATS)}"
        )
    form, target = FORMATS[to], Path(target)
    if form.suffix and target.suffix != form.suffix:
        raise UserError(f"{target} must end in {form.suffix} for --to={to}.")
    check_free(target)
    config, params = load.read(source)
    config = models.replace(config, dtype="float32")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as scratch:
        made = Path(scratch) / target.name
        form.save(made, config, params)
        images = probe_images(config)
        wanted = run_ours(config, params, images)
        found, runtime = form.run(made, config, images)
        proof = compare(wanted, found, runtime)
        check(proof, tolerance, str(source), f"--to={to}")
        shutil.move(made, target)
    return proof


def check_free(target: Path) -> None:
    """Raises UserError if something is at `target` that would be overwritten."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"{target} exists and would be overwritten; name another place.")
    if target.is_dir():
        target.rmdir()


def compare(wanted: Array, found: Array, runtime: str) -> Proof:
    """The largest difference between two sets of logits (b, k)."""
    if wanted.shape != found.shape:
        raise UserError(f"{runtime} gives outputs of {found.shape} instead of {wanted.shape}.")
    difference = float(np.abs(wanted - found).max())
    return Proof(
        difference if np.isfinite(difference) else np.inf, float(np.abs(wanted).max()), runtime
    )


def check(proof: Proof, tolerance: float, source: str, what: str) -> None:
    """Raises UserError if a proof fails."""
    if proof.difference > tolerance * max(proof.scale, 1e-6):
        raise UserError(
            f"{what} of {source} refused: logits differ by {proof.difference:.2g} (largest "
            f"{proof.scale:.3g}) when run by {proof.runtime}, and --tolerance={tolerance:g} of the "
            "largest is allowed. Nothing was written."
        )
