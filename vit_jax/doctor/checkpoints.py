"""Whether a checkpoint can be read, and gives finite answers."""

from __future__ import annotations

from collections.abc import Iterator

from vit_jax.doctor.machine import Finding
from vit_jax.errors import UserError


def checkpoint(where: str) -> Iterator[Finding]:
    """Whether a checkpoint can be read and gives finite answers."""
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
