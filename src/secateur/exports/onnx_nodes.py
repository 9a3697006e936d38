"""The nodes and tensors of an ONNX graph in the making, in fp32 or int8.

In int8, matrices have one scale per output, activations one per token: a row's output does not depend on the rows
beside it, which the engine's own dynamic quantization with one scale for the whole batch would break. A table is stored
once, read by rows for the embedding and, for a tied head, transposed when the session is made. On x86 processors
without VNNI the engine adds pairs of products in 16 bits and may clip the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from secateur.exports.folder import INT8_LEVELS, require

DATA = "weights.bin"
_OPSET = 20
_IR_VERSION = 10
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
_SMALL = 1024  # bytes; shorter tensors stand in the graph itself
_ALIGNMENT = 64

# name -> operator, its attributes, its domain
ACTIVATIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "relu": ("Relu", {}, ""),
    "gelu": ("Gelu", {}, ""),
    "gelu_python": ("Gelu", {}, ""),
    "gelu_fast": ("Gelu", {"approximate": "tanh"}, ""),
    "gelu_new": ("Gelu", {"approximate": "tanh"}, ""),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}, ""),
    "quick_gelu": ("QuickGelu", {"alpha": 1.702}, CONTRIB),
    "silu": ("QuickGelu", {"alpha": 1.0}, CONTRIB),
    "swish": ("QuickGelu", {"alpha": 1.0}, CONTRIB),
}

Array = NDArray[Any]


def as_array(tensor: torch.Tensor) -> Array:
    """Copy a tensor of a model, fp32."""
    return tensor.detach().float().numpy()


class Weights:
    """The file of tensors that both graphs read, each tensor in it once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._known: dict[str, Any] = {}
        self.onnx = require("onnx", extra="onnx")

    def tensor(self, name: str, array: Array) -> Any:
        """Describe a tensor for a graph, writing it if it is large and new; equal names are equal tensors."""
        if name not in self._known:
            made = self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
            if len(made.raw_data) > _SMALL:
                self._stream.write(b"\0" * (-self._stream.tell() % _ALIGNMENT))
                place = {"location": DATA, "offset": self._stream.tell(), "length": len(made.raw_data)}
                self._stream.write(made.raw_data)
                made.ClearField("raw_data")
                made.data_location = self.onnx.TensorProto.EXTERNAL
                for key, value in place.items():
                    made.external_data.add(key=key, value=str(value))
            self._known[name] = made
        return self._known[name]


class Graph:
    """A graph in the making; methods add nodes and return the names of what they give."""

    def __init__(self, weights: Weights, config: Any, *, int8: bool) -> None:
        self.weights, self.config, self.int8 = weights, config, int8
        self.onnx = weights.onnx
        self._nodes: list[Any] = []
        self._tensors: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._count = 0

    def op(self, kind: str, inputs: Sequence[str], *, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node; one name, or a list where there are several outputs."""
        names = [f"t{self._count + index}" for index in range(outputs)]
        self._count += outputs
        self._nodes.append(self.onnx.helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, name: str, array: Array) -> str:
        """Use a tensor."""
        self._tensors[name] = self.weights.tensor(name, array)
        return name

    def scalar(self, value: float) -> str:
        """Use a number, fp32."""
        return self.constant(f"float_{value}", np.array(value, np.float32))

    def ints(self, *values: int) -> str:
        """Use a list of whole numbers."""
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def whole(self, value: int) -> str:
        """Use a whole number."""
        return self.constant(f"int_{value}", np.array(value, np.int64))

    def input(self, name: str, shape: Sequence[int | str], *, ids: bool = False) -> str:
        """Declare an input, fp32 or int64."""
        kind = self.onnx.TensorProto.INT64 if ids else self.onnx.TensorProto.FLOAT
        self._inputs.append(self.onnx.helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, value: str, shape: Sequence[int | str]) -> None:
        """Declare an output, fp32, and what it is."""
        node = next(node for node in self._nodes if value in node.output)
        for other in self._nodes:  # a copy would cost time in every step
            for index, used in enumerate(other.input):
                if used == value:
                    other.input[index] = name
        node.output[list(node.output).index(value)] = name
        self._outputs.append(self.onnx.helper.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, list(shape)))

    def size(self, value: str, axis: int) -> str:
        """The length of an axis, as a list of one."""
        return self.op("Shape", [value], start=axis, end=axis + 1)

    def number(self, value: str) -> str:
        """A list of one as a number."""
        return self.op("Squeeze", [value])

    def linear(self, value: str, name: str, matrix: Array, *, positive: bool = False, shared: bool = False) -> str:
        """Multiply by a matrix, given as (outputs, inputs).

        Args:
            value: fp32 (..., inputs).
            name: of the matrix.
            matrix: fp32 (outputs, inputs).
            positive: the values are never negative, so that all of uint8 is theirs.
            shared: the table, stored by rows and perhaps used as embedding too; values are (R, inputs).

        Returns:
            fp32 (..., outputs).
        """
        if not self.int8:
            if shared:
                return self.op("Gemm", [value, self.constant(name, matrix)], transB=1)
            return self.op("MatMul", [value, self.constant(name, matrix.T)])
        whole, scales = _quantize(matrix)
        stored = self.constant(name, whole if shared else whole.T)
        stored = self.op("Transpose", [stored]) if shared else stored
        levels, zero = (255, 0) if positive else (127, 128)
        # An all-zero token gives 0 / 0; whatever whole number that becomes, it is multiplied by 0 in the end.
        largest = self.op("ReduceMax", [value if positive else self.op("Abs", [value]), self.ints(-1)], keepdims=1)
        one = self.scalar(1 / levels)
        zero_point = self.constant(f"zero_{zero}", np.array(zero, np.uint8))
        rounded = self.op("QuantizeLinear", [self.op("Div", [value, largest]), one, zero_point])
        scale = self.constant(f"{name}.scale", scales)
        product = self.op("MatMulIntegerToFloat", [rounded, stored, one, scale, zero_point], domain=CONTRIB)
        return self.op("Mul", [product, largest])

    def embed(self, ids: str, name: str, table: Array) -> str:
        """Look ids up in the table, (V, D)."""
        if not self.int8:
            return self.op("Gather", [self.constant(name, table), ids])
        whole, scales = _quantize(table)
        rows = self.op("Gather", [self.constant(name, whole), ids])
        scale = self.op("Unsqueeze", [self.op("Gather", [self.constant(f"{name}.scale", scales), ids]), self.ints(-1)])
        return self.op("Mul", [self.op("Cast", [rows], to=self.onnx.TensorProto.FLOAT), scale])

    def norm(self, residual: str, added: str | None, name: str, weight: Array) -> tuple[str, str]:
        """Add a sublayer's output to the residual, and norm the sum: the normed sum, and the sum."""
        epsilon = self.config.layer_norm_epsilon
        weight_name = self.constant(name, weight)
        if added is None:
            return self.op(
                "SimplifiedLayerNormalization", [residual, weight_name], axis=-1, epsilon=epsilon, stash_type=1
            ), residual
        names = [f"t{self._count}", "", "", f"t{self._count + 1}"]
        self._count += 2
        self._nodes.append(
            self.onnx.helper.make_node(
                "SkipSimplifiedLayerNormalization",
                [added, residual, weight_name],
                names,
                domain=CONTRIB,
                epsilon=epsilon,
            )
        )
        return names[0], names[3]

    def feed_forward(self, value: str, name: str, dense: Any) -> str:
        """The feed-forward sublayer, gated or not."""
        kind, attributes, domain = ACTIVATIONS[self.config.dense_act_fn]
        gated = self.config.is_gated_act
        if gated:
            both = self.linear(value, f"{name}.wi", as_array(torch.cat([dense.wi_0.weight, dense.wi_1.weight])))
            gate, up = self.op("Split", [both], outputs=2, axis=-1, num_outputs=2)
            hidden = self.op("Mul", [self.op(kind, [gate], domain=domain, **attributes), up])
        else:
            hidden = self.linear(value, f"{name}.wi", as_array(dense.wi.weight))
            hidden = self.op(kind, [hidden], domain=domain, **attributes)
        positive = not gated and kind == "Relu"
        return self.linear(hidden, f"{name}.wo", as_array(dense.wo.weight), positive=positive)

    def heads(self, value: str, num_heads: int) -> str:
        """(B, S, H x K) to (B, H, S, K)."""
        split = self.op("Reshape", [value, self.ints(0, -1, num_heads, self.config.d_kv)])
        return self.op("Transpose", [split], perm=[0, 2, 1, 3])

    def save(self, path: Path) -> None:
        """Write the graph; its tensors stand beside it."""
        helper = self.onnx.helper
        graph = helper.make_graph(
            self._nodes, path.stem, self._inputs, self._outputs, initializer=list(self._tensors.values())
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)]
        path.write_bytes(
            helper.make_model(
                graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="secateur"
            ).SerializeToString()
        )


def _quantize(matrix: Array) -> tuple[Array, Array]:
    """Round a matrix to int8 with one scale per row: int8 of its shape, fp32 (rows,)."""
    scales = np.abs(matrix).max(1) / INT8_LEVELS
    scales[scales == 0] = 1
    return np.rint(matrix / scales[:, None]).astype(np.int8), scales.astype(np.float32)
