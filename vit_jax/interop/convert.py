"""Converts weights to another format, and verifies the result by running it in its own runtime."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_jax import __version__, data, files, models
from vit_jax.errors import UserError, nearest
from vit_jax.interop import card, hub, huggingface, load, npz, peers, pixels, timm
from vit_jax.interop.peers import Outputs, run_ours
from vit_jax.models import adapt, saved

Array = np.ndarray
__all__ = ["FORMATS", "Proof", "convert", "run_ours"]


class Proof(NamedTuple):
    """The difference of two runs on the same photographs.

    difference: maximum over logits; scale: the largest logit. A zero classifier is replaced by a
    random one. features: maximum over pre-logits or tokens, relative to the largest, None if
    neither is available; same_top1: fraction of `images` with equal top-1.
    """

    difference: float
    scale: float
    runtime: str
    same_top1: float = 0.0
    images: int = 0
    features: float | None = None
    random_head: bool = False
    notes: tuple[str, ...] = ()


class Format(NamedTuple):
    """How to write weights, and the runtime to verify them. suffix: of a file; "": a directory.

    notes: differences in the other side's preprocessing.
    """

    save: Callable[..., None]
    peer: str = ""
    suffix: str = ""
    notes: Callable[[models.ModelConfig], list[str]] = lambda config: []


def _no_place(config: models.ModelConfig, of: str, *names: str) -> list[str]:
    """A note on settings that a format cannot store."""
    held = [name for name in names if getattr(config, name)]
    return [f"{of} cannot store {' and '.join(held)}"] if held else []


FORMATS: dict[str, Format] = {
    "native": Format(saved.save),
    "npz": Format(
        *(npz.save, "", ".npz"),
        lambda config: _no_place(
            *(config, "an .npz", "labels", "preprocessing", "multilabel", "thresholds")
        ),
    ),
    "huggingface": Format(
        huggingface.save,
        "transformers",
        notes=lambda config: (
            pixels.to_processor(config.preprocessing, config)[1]
            + _no_place(config, "its config.json", "thresholds")
        ),
    ),
    "timm": Format(
        timm.save,
        "timm",
        notes=lambda config: (
            pixels.to_pretrained_cfg(config.preprocessing, config)[1]
            + _no_place(config, "timm", "multilabel", "thresholds")
        ),
    ),
}
PEERS = {"transformers": peers.run_transformers, "timm": peers.run_timm}


def convert(
    source: str,
    target: str | Path,
    to: str,
    *,
    tolerance: float = 1e-4,
    photos: str = "",
    licence: str = "",
    private: bool = False,
) -> Proof:
    """Writes the weights at `source` to `target` in the format `to`.

    The result is written beside `target`, run, compared, and only then moved there, or pushed to
    the Hugging Face hub if `target` is `hf:ORG/NAME`.

    Args:
      tolerance: maximum difference of logits, relative to the largest logit.
      photos: a data set for the comparison; "": scikit-learn's photographs.
      licence: for the model card, with --to=huggingface.
      private: create the hub repository as private.

    Raises:
      UserError: an unknown format, or one that cannot store this model, `target` exists, the hub
        refuses, or logits differ by more than the tolerance; then nothing is left at `target`.
    """
    check_request(target, to, licence, private)
    place = hub.find_place(str(target), private) if hub.is_hub(target) else None
    form, name = FORMATS[to], place.name if place else Path(target).name
    if not place:
        check_free(Path(target))
    probes = peers.opened(photos)
    config, params = load.read(source)
    config = models.replace(config, dtype="float32")
    folded: list[str] = []
    if to != "native":
        config, params, folded = adapt.fold_temperature(config, params)
    beside = Path(tempfile.gettempdir()) if place else Path(target).parent
    with files.staging(beside / Path(name).name) as scratch:  # a name on the hub is ORG/NAME
        made = scratch / Path(name).name
        form.save(made, config, params)
        if to == "huggingface":
            known_as = place.name if place else "this directory"
            text = card.model_card(
                huggingface.check_supported(config), card.origin_of(source), known_as, licence
            )
            files.write_text(made / "README.md", text)
        proof = prove(form, made, config, params, probes)
        check(proof, tolerance, str(source), f"--to={to}")
        notes = folded + [f"differs in use: {note}" for note in form.notes(config)]
        if place:
            url = hub.push(made, place, f"{config.variant} by vit_jax {__version__}")
            notes += [f"pushed: {url}"]
            notes += [] if licence else ["its card states no licence; set one with --license=NAME"]
        else:
            put(made, Path(target))
    return proof._replace(notes=tuple(notes))


def check_request(target: str | Path, to: str, licence: str, private: bool) -> None:
    """Raises UserError for an unknown format, and for options of another one."""
    if to not in FORMATS:
        raise UserError(
            f"There is no format {to!r}; there are {', '.join(FORMATS)}.{nearest(to, FORMATS)}"
        )
    if (licence or private or hub.is_hub(target)) and to != "huggingface":
        what = target if hub.is_hub(target) else "--license" if licence else "--private"
        raise UserError(f"{what} is for --to=huggingface, and this is --to={to}.")
    if private and not hub.is_hub(target):
        raise UserError(f"--private is for a push to hf:ORG/NAME, which {target} is not.")
    if licence and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UserError(f"--license={licence} is not a short name such as apache-2.0 or cc-by-4.0.")
    suffix = FORMATS[to].suffix
    if suffix and Path(target).suffix != suffix:
        raise UserError(f"{target} must end in {suffix} for --to={to}.")


def prove(
    form: Format,
    made: Path,
    config: models.ModelConfig,
    params: dict[str, Array],
    probes: data.Source | None,
) -> Proof:
    """Runs the result, and compares it with the source."""
    images = peers.photographs(config, probes)
    head = head_for_proof(config, params)
    wanted = peers.outputs(config, params | head, images)
    found, runtime = run(form, made, config, images, head)
    return compare(wanted, found, runtime, bool(head))


def head_for_proof(config: models.ModelConfig, params: models.Params) -> dict[str, Array]:
    """{} for a trained classifier; a random replacement for a zero one."""
    if not adapt.is_zero_head(params):
        return {}
    return peers.random_head(config, params["head/kernel"].shape[0])


def run(
    form: Format, made: Path, config: models.ModelConfig, images: Array, head: dict[str, Array]
) -> tuple[Outputs, str]:
    """The file, run by its own runtime, and the runtime's name; by vit_jax if there is none."""
    version = peers.available(form.peer) if form.peer else ""
    if version:
        return PEERS[form.peer](made, config, images, head), f"{form.peer} {version}"
    again, params = load.read_path(made)
    runtime = "vit_jax, read again"
    if form.peer:
        runtime += f"; NOT by {form.peer}, which is not installed (pip install 'vit_jax[peers]')"
    return peers.outputs(again, params | head, images), runtime


def check_free(target: Path) -> None:
    """Raises UserError if `target` is not a path, or is there; an empty directory may be."""
    if re.match(r"(hf|gs|s3|https?):", str(target)):  # Path has collapsed a double slash
        raise UserError(
            f"{target} is not a path on disk; only convert --to=huggingface writes elsewhere, to "
            "hf:ORG/NAME."
        )
    is_folder = os.path.isdir(target) and not os.path.islink(target) and bool(target.name)
    files.check_above(target)
    if os.path.lexists(target) and not (is_folder and not os.listdir(target)):
        raise UserError(f"{target} exists and would be overwritten; choose another place.")


def put(made: Path, target: Path) -> None:
    """Moves what was made to its place, where an empty directory may be."""
    if target.is_dir():
        target.rmdir()
    os.rename(made, target)


def compare(wanted: Outputs, found: Outputs, runtime: str, random_head: bool = False) -> Proof:
    """The difference of two runs on the same photographs.

    Raises:
      UserError: their shapes differ, or all photographs have the same logits, which proves nothing.
    """
    shares = []
    for name, a, b in zip(Outputs._fields, wanted, found, strict=True):
        if a is None or b is None:
            continue
        if a.shape != b.shape:
            raise UserError(f"{runtime} returns {name} of {b.shape} instead of {a.shape}.")
        if name == "logits" and len(a) > 1 and not np.ptp(a, axis=0).max() > 1e-6 * np.abs(a).max():
            raise UserError(
                "All photographs get the same logits, so the comparison would prove nothing: are "
                "these weights trained, or at least random? Nothing was written."
            )
        difference = np.abs(a - b).max()
        shares.append(float(difference / max(np.abs(a).max(), 1e-30)))
    difference = float(np.abs(wanted.logits - found.logits).max())
    same = wanted.logits.argmax(-1) == found.logits.argmax(-1)
    return Proof(
        difference if np.isfinite(difference) else np.inf,
        float(np.abs(wanted.logits).max()),
        runtime,
        float(same.mean()),
        len(same),
        max(np.nan_to_num(shares[1:], nan=np.inf), default=None),
        random_head,
    )


def check(proof: Proof, tolerance: float, source: str, what: str) -> None:
    """Raises UserError if the comparison fails."""
    if proof.difference > tolerance * proof.scale:
        raise UserError(
            f"{what} of {source} refused: logits differ by {proof.difference:.2g} (largest "
            f"{proof.scale:.3g}) when run by {proof.runtime}, more than --tolerance={tolerance:g} "
            f"of the largest; top-1 is equal on {proof.same_top1:.0%} of {proof.images} "
            "photographs. Nothing was written."
        )
    if (
        proof.features is not None and proof.features > 10 * tolerance
    ):  # before the classifier, which averages over them
        raise UserError(
            f"{what} of {source} refused: pre-logits or tokens differ by {proof.features:.2g} of "
            f"the largest when run by {proof.runtime}, more than 10 times "
            f"--tolerance={tolerance:g}. Nothing was written."
        )
