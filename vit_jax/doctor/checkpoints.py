"""Checks that a checkpoint can be read, and gives finite logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vit_jax.doctor.machine import Finding
from vit_jax.errors import UserError


def integrity(where: str) -> Iterator[Finding]:
    """Verifies every value of every checkpoint of a run, and its exported model."""
    from vit_jax.interop import unfinished
    from vit_jax.models import saved

    path = Path(where).expanduser()
    for step in unfinished.steps_of(path):
        name = f"checkpoint {int(step.name)}"
        try:
            count = unfinished.verify(step)
        except UserError as error:
            yield Finding(name, str(error), False)
        else:
            yield Finding(name, f"{count} arrays, all verified", True)
    for directory in (path, path / "model"):
        file = directory / "model.safetensors"
        if not file.is_file():
            continue
        try:
            arrays, sums = saved.read_safetensors(file), saved.read_header(file)[1]
        except UserError as error:
            yield Finding("model", str(error), False)
        else:
            known = "all verified" if sums else "of an earlier version, no checksums"
            yield Finding("model", f"{file}: {len(arrays)} arrays, {known}", True if sums else None)


def exported(where: str) -> Iterator[Finding]:
    """Verifies an export of `vit-jax export`, and that its logits are finite."""
    import numpy as np

    from vit_jax.interop import export

    try:
        model = export.open_exported(where)
        sums = export.has_checksum(Path(where).expanduser())
        logits = model.run(np.zeros((1, *model.image_size, model.channels), np.float32)).logits
    except UserError as error:
        yield Finding("export", str(error), False)
        return
    known = "every byte verified" if sums else "of an earlier version, no checksum"
    yield Finding("export", f"{where}: {model.variant}, {known}", True if sums else None)
    text = f"{logits.shape[1]} logits between {logits.min():.3g} and {logits.max():.3g}"
    yield Finding("forward pass", text, bool(np.all(np.isfinite(logits))))


def checkpoint(where: str) -> Iterator[Finding]:
    """Checks that a checkpoint can be read and gives finite logits; of a run, all checkpoints."""
    from vit_jax import files

    files.VERIFY.set(True)
    from vit_jax.interop import export

    if export.is_exported(where):
        yield from exported(where)
        return
    yield from integrity(where)
    import jax
    import numpy as np

    from vit_jax import models
    from vit_jax.interop import load

    try:
        config, params = load.read(where)
    except UserError as error:
        yield Finding("checkpoint", str(error), False)
        return
    bad = [path for path, value in params.items() if not np.all(np.isfinite(np.asarray(value)))]
    count = sum(int(np.asarray(value).size) for value in params.values())
    size = "x".join(map(str, config.image_size))
    yield Finding(
        "checkpoint",
        f"{config.variant}, {count:,} parameters, {size} pixels, {config.num_classes} classes"
        + (f"; not finite: {bad[0]}" if bad else ""),
        not bad,
    )
    _, apply = models.as_functions(config)
    images = np.zeros((1, *config.image_size, config.channels), np.float32)
    logits = np.asarray(jax.jit(apply)(dict(params), images))
    text = f"{logits.shape[1]} logits between {logits.min():.3g} and {logits.max():.3g}"
    yield Finding("forward pass", text, bool(np.all(np.isfinite(logits))))
