"""The configuration of a Vision Transformer: a row of Table 1, and the options of the ablations."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

from vit_jax.errors import UserError
from vit_jax.numerics import ACTIVATIONS, remat

CLASSIFIERS = ("token", "gap", "map")
POSITION_EMBEDDINGS = ("none", "1d", "2d", "relative")
POSITION_EMBEDDING_PLACES = ("stem", "every", "shared")
#: Fields that must be 1 or more.
POSITIVE = (
    "hidden_size", "num_layers", "mlp_dim", "num_heads", "channels", "num_classes",
    "representation_size",
)  # fmt: skip
DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("auto", "xla", "cudnn", "fused")
#: The name of a transform and its options; their types are in the transform's signature (data).
Preprocessing = tuple[tuple[str, Any], ...]


def stem_stride(depths: tuple[int, ...]) -> int:
    """Pixels per feature of a hybrid's stem: 4, doubled at every stage after the first."""
    return 4 * 2 ** max(len(depths) - 1, 0)


def check_dtype(dtype: str) -> None:
    """Raises UserError for a type that no layer computes in."""
    if dtype not in DTYPES:
        raise UserError(f"model.dtype={dtype!r} must be {' or '.join(DTYPES)}.")


def check_predictions(
    labels: tuple[str, ...],
    multilabel: bool,
    thresholds: tuple[float, ...],
    temperature: float | None,
    num_classes: int,
) -> None:
    """Raises UserError for invalid labels or thresholds, or an invalid temperature.

    Labels name all classes or none. Thresholds are probabilities, for multi-label models; a
    temperature is for single-label models.
    """
    if not isinstance(labels, tuple) or len(labels) not in (0, num_classes):
        count = len(labels) if isinstance(labels, tuple) else repr(labels)
        raise UserError(
            f"model.labels names {count} of {num_classes} classes; it must name each, or none."
        )
    if temperature is not None:
        is_number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
        if not is_number or not 0 < temperature < float("inf"):
            raise UserError(f"model.temperature={temperature!r} must be a number above 0.")
        if multilabel:
            raise UserError("model.temperature is for models with one label per image.")
    if multilabel not in (True, False):
        raise UserError(f"model.multilabel={multilabel!r} must be true or false.")
    if not isinstance(thresholds, tuple) or len(thresholds) not in (0, 1, num_classes):
        raise UserError(
            f"model.thresholds must be one number, or one for each of the {num_classes} classes."
        )
    if thresholds and not multilabel:
        raise UserError("model.thresholds are for models with several labels per image.")
    for threshold in thresholds:
        if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
            raise UserError(f"model.thresholds: {threshold!r} is not a probability.")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The shape of one Vision Transformer: a row of Table 1 plus the options of the ablations.

    `stem_depths`: None, or the stages of a ResNet stem (hybrids, section 3.1); patches are then cut
    from its feature map. The epsilons are those of the released models; weights of other families
    may have others, and another `activation`: "gelu_tanh" (as here) or "gelu" (exact).
    `representation_size` is the width of the hidden layer of the pre-training head (None: the
    linear fine-tuning head).

    Stored with the weights: `labels`, the class names; `preprocessing`, the evaluation transform
    with its options, if known; `multilabel`, whether an image may have several classes, each with
    a sigmoid probability; and `thresholds` on it, one or one per class, () if none was chosen. With
    one label per image, probabilities are softmax(logits / `temperature`), if one was fitted;
    logits are as trained.

    `attention` is "xla", "cudnn" (its kernel, on GPUs), "fused" (ours, on TPUs) or "auto", a kernel
    where one is supported.
    """

    variant: str
    patch_size: tuple[int, int]
    hidden_size: int
    num_layers: int
    mlp_dim: int
    num_heads: int
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    num_classes: int = 1000
    representation_size: int | None = None
    classifier: str = "token"
    position_embedding: str = "1d"
    position_embedding_at: str = "stem"
    stem_depths: tuple[int, ...] | None = None
    stem_width: float = 1.0
    stem_group_norm_epsilon: float = 1e-6
    stem_standardisation: str = "std"
    stem_standardisation_epsilon: float = 1e-5
    head_bias: float = 0.0
    activation: str = "gelu_tanh"
    layer_norm_epsilon: float = 1e-6
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    remat: bool | str = False  # see numerics/remat.py
    scan: bool = False
    attention: str = "auto"
    dtype: str = "float32"
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing = ()
    multilabel: bool = False
    thresholds: tuple[float, ...] = ()
    temperature: float | None = None

    def __post_init__(self):
        remat.name_of(self.remat)
        check_dtype(self.dtype)
        check_predictions(
            *(self.labels, self.multilabel, self.thresholds, self.temperature, self.num_classes)
        )
        sizes = {key: getattr(self, key) for key in POSITIVE}
        sizes |= {"patch_size": min(self.patch_size)}
        for key, size in sizes.items():
            if size is not None and (not isinstance(size, numbers.Integral) or size < 1):
                raise UserError(
                    f"model.{key}={getattr(self, key)!r} must be a whole number, 1 or more."
                )
        for key, options in (
            ("classifier", CLASSIFIERS),
            ("activation", tuple(ACTIVATIONS)),
            ("attention", ATTENTIONS),
            ("position_embedding", POSITION_EMBEDDINGS),
            ("position_embedding_at", POSITION_EMBEDDING_PLACES),
        ):
            if getattr(self, key) not in options:
                raise UserError(
                    f"model.{key}={getattr(self, key)!r} does not exist; "
                    f"choose one of {', '.join(options)}."
                )
        if not 0 <= self.dropout_rate < 1:  # also true for NaN
            raise UserError(f"model.dropout_rate={self.dropout_rate} must lie in [0, 1).")
        if not 0 <= self.stochastic_depth_rate <= 1:  # the rate of the last layer
            raise UserError(
                f"model.stochastic_depth_rate={self.stochastic_depth_rate} must lie in [0, 1]."
            )
        if not 0 < self.layer_norm_epsilon < 1:
            raise UserError(f"model.layer_norm_epsilon={self.layer_norm_epsilon} is not in (0, 1).")
        if self.hidden_size % self.num_heads:
            likely = range(1, min(self.hidden_size, 4096) + 1)
            fits = [h for h in likely if self.hidden_size % h == 0]
            close = sorted(fits, key=lambda h: abs(h - self.num_heads))[:3]
            raise UserError(
                f"{self.variant}: hidden size {self.hidden_size} does not divide into "
                f"{self.num_heads} heads; {', '.join(map(str, sorted(close)))} heads would."
            )
        stride = self.stride
        for axis, size, step in zip(("height", "width"), self.image_size, stride, strict=True):
            if size <= 0 or size % step:
                below, above = size // step * step, (size // step + 1) * step
                fit = f"{below} or {above}" if below > 0 else f"{above}"
                raise UserError(
                    f"{self.variant}: image {axis} {size} is not divisible by the patch size "
                    f"{step}; set model.image_size to {fit}."
                )

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels per token, (vertical, horizontal): the number after the slash in the name."""
        stem = 1 if self.stem_depths is None else stem_stride(self.stem_depths)
        return self.patch_size[0] * stem, self.patch_size[1] * stem

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens per (column, row) of the image, without the class token."""
        return self.image_size[0] // self.stride[0], self.image_size[1] // self.stride[1]

    @property
    def num_tokens(self) -> int:
        """Sequence length: N patches, plus one with a class token."""
        return self.grid[0] * self.grid[1] + (self.classifier == "token")
