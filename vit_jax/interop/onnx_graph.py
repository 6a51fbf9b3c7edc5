"""The graph of an ONNX file while it is being written: nodes, weights, and the layers that models
share. A tensor is its name; channels come second in images, as ONNX has them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import numpy as np

from vit_jax.errors import UserError, need
from vit_jax.models import Params

Array = np.ndarray
Tensor = str

#: The first with LayerNormalization; runs in ONNX Runtime 1.13 and later.
OLDEST_OPSET = 17
#: The first with GELU as an operation.
GELU_OPSET = 20
#: The first in which the axes of a mean are an input.
AXES_OPSET = 18


def import_onnx():
    """The package, or a UserError that says how to install it."""
    need("ONNX", "onnx")
    import onnx

    return onnx


class Graph:
    """Nodes in the order of computation.

    dtype: of all weights and products, "float32" or "float16".
    """

    def __init__(self, params: Params, *, dtype: str, opset: int):
        self.onnx = import_onnx()
        self.params, self.dtype, self.opset = params, np.dtype(dtype), opset
        self.nodes: list = []
        self.weights: dict[str, Array] = {}
        self.uses: dict[str, int] = {}
        self.path = ""

    @contextlib.contextmanager
    def at(self, name: str) -> Iterator[None]:
        """A context in which names get the prefix `name`."""
        before, self.path = self.path, self.path + name
        yield
        self.path = before

    def __call__(
        self, operation: str, *inputs: Tensor, name: str = "", **attributes: object
    ) -> Tensor:
        """Adds a node; returns its one output, named as the node."""
        output = self.unused(f"{self.path}{name or operation.lower()}")
        node = self.onnx.helper.make_node(operation, inputs, [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def unused(self, name: str) -> str:
        """`name`, with a number appended if necessary to be unique."""
        self.uses[name] = self.uses.get(name, 0) + 1
        return name if self.uses[name] == 1 else f"{name}_{self.uses[name]}"

    def param(self, name: str) -> Array:
        """The model's parameter at this place, float32."""
        return np.asarray(self.params[self.path + name], np.float32)

    def weight(self, value: Array, name: str, *, shared: bool = False) -> Tensor:
        """A constant of the file: floats in the graph's dtype, integers as int64.

        shared: used by several nodes, so it is named after its value, not its place.
        """
        value = np.asarray(value)
        with np.errstate(over="ignore"):  # reported below, with the weight's name
            value = value.astype(self.dtype if value.dtype.kind == "f" else np.int64)
        if not np.isfinite(value).all():
            raise UserError(
                f"The weight {self.path}{name} exceeds the range of {self.dtype}; export float32."
            )
        key = name if shared else self.path + name
        self.weights[key] = value
        return key

    def number(self, value: float) -> Tensor:
        return self.weight(np.asarray(value), f"constants/{value!r}", shared=True)

    def integers(self, *values: int) -> Tensor:
        name = "shapes/" + "_".join(map(str, values))
        return self.weight(np.asarray(values), name, shared=True)

    # --- what several layers need ---------------------------------------------------------------

    def reshape(self, x: Tensor, *shape: int, name: str = "") -> Tensor:
        """One side may be -1, for the batch."""
        return self("Reshape", x, self.integers(*shape), name=name)

    def transpose(self, x: Tensor, *order: int, name: str = "") -> Tensor:
        return self("Transpose", x, perm=order, name=name)

    def slice(self, x: Tensor, start: int, end: int, *, axis: int) -> Tensor:
        return self("Slice", x, *(self.integers(i) for i in (start, end, axis)))

    def gemm(self, x: Tensor, kernel: Array, bias: Array, name: str) -> Tensor:
        """Rows (r, i) times (i, ...) and a bias: (r, o)."""
        kernel = kernel.reshape(kernel.shape[0], -1)
        inputs = (
            x,
            self.weight(kernel, f"{name}/kernel"),
            self.weight(bias.ravel(), f"{name}/bias"),
        )
        return self("Gemm", *inputs, name=f"{name}/gemm")

    def dense(self, x: Tensor, name: str) -> Tensor:
        """The model's dense layer `name` on rows."""
        return self.gemm(x, self.param(f"{name}/kernel"), self.param(f"{name}/bias"), name)

    def norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        """LayerNorm on rows."""
        inputs = [self.weight(self.param(f"{name}/{p}"), f"{name}/{p}") for p in ("scale", "bias")]
        return self("LayerNormalization", x, *inputs, name=name, axis=-1, epsilon=epsilon)

    def mean(self, x: Tensor, *axes: int, name: str = "") -> Tensor:
        if self.opset >= AXES_OPSET:
            return self("ReduceMean", x, self.integers(*axes), name=name, keepdims=0)
        return self("ReduceMean", x, name=name, axes=axes, keepdims=0)

    def activation(self, x: Tensor, kind: str) -> Tensor:
        if kind == "relu":
            return self("Relu", x)
        if kind in ("gelu", "gelu_tanh") and self.opset >= GELU_OPSET:
            return self("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")
        if kind == "gelu":
            inner = self("Erf", self("Mul", x, self.number(math.sqrt(0.5))))
        elif kind == "gelu_tanh":
            cube = self("Pow", x, self.number(3.0))
            sum_ = self("Add", x, self("Mul", cube, self.number(0.044715)))
            inner = self("Tanh", self("Mul", sum_, self.number(math.sqrt(2 / math.pi))))
        else:
            scale = {"silu": 1.0, "quick_gelu": 1.702}[kind]
            return self("Mul", x, self("Sigmoid", self("Mul", x, self.number(scale))))
        return self("Mul", self("Mul", x, self("Add", inner, self.number(1.0))), self.number(0.5))

    def model(self, images: tuple, outputs: Mapping[str, tuple], name: str):
        """The ModelProto. images: (type, shape); outputs: {tensor: (its name, shape)}."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        results = []
        for tensor, (result, shape) in outputs.items():
            self.nodes.append(
                helper.make_node("Cast", [tensor], [result], name=result, to=types.FLOAT)
                if self.dtype != np.float32
                else helper.make_node("Identity", [tensor], [result], name=result)
            )
            results.append(helper.make_tensor_value_info(result, types.FLOAT, shape))
        given = helper.make_tensor_value_info("images", *images)
        weights = [self.onnx.numpy_helper.from_array(v, k) for k, v in self.weights.items()]
        graph = helper.make_graph(self.nodes, name, [given], results, weights)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),  # for older runtimes
        )
