"""Axial-ViT (Appendix D.6): attention along the rows, then down the columns, of the token grid.

The paper leaves open what becomes of the class token, which has no place on the grid: there is
none, and the classifier averages the tokens.
"""

from __future__ import annotations

import dataclasses

from flax import nnx

from vit_jax.errors import UserError
from vit_jax.models.layers import Array, Keys, fold
from vit_jax.models.vit import EncoderBlock, VisionTransformer, ViTConfig


@dataclasses.dataclass(frozen=True)
class AxialConfig(ViTConfig):
    """A `ViTConfig` whose blocks are axial. Its classifier is "gap" or "map"."""

    classifier: str = "gap"

    def __post_init__(self):
        super().__post_init__()
        if self.classifier == "token":
            raise UserError(
                f"{self.variant} has no class token; set model.classifier to gap or map."
            )
        if self.position_embedding == "relative":
            raise UserError(f"{self.variant}: model.position_embedding must be none, 1d or 2d.")


class AxialBlock(nnx.Module):
    """Row attention and an MLP, then column attention and another MLP. (b, n, d) to (b, n, d)."""

    def __init__(self, config: ViTConfig, *, drop_path: float = 0.0, keys: Keys):
        self.row = EncoderBlock(config, drop_path=drop_path, keys=keys)
        self.column = EncoderBlock(config, drop_path=drop_path, keys=keys)
        self.grid = config.grid

    def __call__(
        self, z: Array, key: Array | None = None, *, return_weights: bool = False
    ) -> tuple[Array, None]:
        if return_weights:
            raise UserError(
                "Axial models attend along rows and columns, so there is no (n, n) attention to "
                "return; ask for other intermediates."
            )
        b, n, d = z.shape
        rows, columns = self.grid
        z, _ = self.row(z.reshape(b * rows, columns, d), fold(key, 0))
        z = z.reshape(b, rows, columns, d).swapaxes(1, 2).reshape(b * columns, rows, d)
        z, _ = self.column(z, fold(key, 1))
        return z.reshape(b, columns, rows, d).swapaxes(1, 2).reshape(b, n, d), None


class AxialTransformer(VisionTransformer):
    """A Vision Transformer of axial blocks; the same contract."""

    block = AxialBlock
