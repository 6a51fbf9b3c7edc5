"""The other side's own code: what transformers and timm answer with the weights that we wrote."""

from __future__ import annotations

import sys

import numpy as np

Array = np.ndarray


def declare_torchvision() -> None:
    """Imports torchvision, which timm and transformers import, whether or not its operators load.

    PyPI's is built for CUDA: with a CPU torch its operators do not load, and those that it only
    registers must be declared first. Nothing of it is used here.
    """
    import torch

    try:
        import torchvision
    except ImportError:
        return
    except RuntimeError as error:  # operator torchvision::nms does not exist
        if "torchvision::" not in str(error) or hasattr(declare_torchvision, "kept"):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        declare_torchvision.kept = library  # type: ignore[attr-defined]  # it lives with the process
        import torchvision  # noqa: F401
