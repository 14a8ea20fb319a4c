"""An ONNX graph as a torch network, so that other projects' recognizers can give gradients.

It knows only the operators of recognizers: convolutions, normalisations, activations, poolings,
linear layers, attention, and the arithmetic of shapes around them. Operators follow the ONNX
specification (opset 7 and later). An unknown operator is refused when the graph is read, an
unsupported attribute when the graph runs. `onnx2torch` is not used, because it needs a torchvision
built for the same torch.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from factory.recipe import InputError

Values = list[Tensor | None]
Attributes = dict[str, Any]


class OnnxNetwork(nn.Module):
    """The graph of an ONNX file: it maps one float input to the first output.

    Constants are buffers; they move with `.to(device)` and have no gradient.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            InputError: the graph has an operator that has no torch form here.
        """
        super().__init__()
        graph = onnx.load(path).graph
        constants = {constant.name for constant in graph.initializer}  # old files list them twice
        self.input = next(given.name for given in graph.input if given.name not in constants)
        self.output = graph.output[0].name
        self.buffer_of: dict[str, str] = {}
        for number, constant in enumerate(graph.initializer):
            self._keep(constant.name, numpy_helper.to_array(constant), f"constant_{number}")
        self.steps: list[tuple[str, Attributes, Sequence[str], Sequence[str]]] = []
        unknown = set()
        for number, node in enumerate(graph.node):
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                (value,) = attributes.values()
                value = numpy_helper.to_array(value) if "value" in attributes else np.array(value)
                self._keep(node.output[0], value, f"value_{number}")
            elif node.op_type in OPERATORS and not node.domain:
                self.steps.append((node.op_type, attributes, node.input, node.output))
            else:
                unknown.add(node.op_type)
        if unknown:
            raise InputError(
                f"recognizer {path}: its graph cannot be differentiated, since "
                f"{', '.join(sorted(unknown))} has no torch form here; accepted: "
                f"{', '.join(sorted(OPERATORS))}"
            )
        self.last_use = {name: n for n, step in enumerate(self.steps) for name in step[2]}
        self.last_use[self.output] = len(self.steps)

    def _keep(self, name: str, value: np.ndarray, buffer: str) -> None:
        tensor = torch.from_numpy(value.copy())
        self.register_buffer(buffer, tensor.float() if value.dtype.kind == "f" else tensor)
        self.buffer_of[name] = buffer

    def forward(self, x: Tensor) -> Tensor:
        """Return the graph's first output for its first input."""
        values: dict[str, Tensor] = {self.input: x}
        for number, (operator, attributes, inputs, outputs) in enumerate(self.steps):
            given: Values = [self._value(name, values) for name in inputs]
            made = OPERATORS[operator](given, attributes)
            values.update(zip(outputs, made if isinstance(made, tuple) else (made,), strict=False))
            for name in inputs:
                if self.last_use[name] == number and name in values:
                    del values[name]
        return values[self.output]

    def _value(self, name: str, values: dict[str, Tensor]) -> Tensor | None:
        if not name:
            return None  # an omitted optional input
        return values[name] if name in values else getattr(self, self.buffer_of[name])


def _refuse(what: str) -> InputError:
    return InputError(f"recognizer: its ONNX graph has {what}, which has no torch form here")


def _integers(value: Tensor) -> list[int]:
    return [int(number) for number in value.flatten().tolist()]


def _listed(x: Values, attributes: Attributes, name: str, place: int) -> list[int] | None:
    """Return integers that older opsets store in an attribute and later ones in an input."""
    if len(x) > place and x[place] is not None:
        return _integers(_first(x[place]))
    return list(attributes[name]) if name in attributes else None


def _first(*x: Tensor | None) -> Tensor:
    assert x[0] is not None
    return x[0]


def _padded(
    x: Tensor, attributes: Attributes, spatial: int, fill: float = 0.0
) -> tuple[Tensor, list[int]]:
    """Return the input and its symmetric padding; asymmetric padding is applied here."""
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise _refuse(f"auto_pad {attributes['auto_pad'].decode()}")
    pads = list(attributes.get("pads", [0] * 2 * spatial))
    begin, end = pads[:spatial], pads[spatial:]
    if begin == end:
        return x, begin
    sides = [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]
    return functional.pad(x, sides, value=fill), [0] * spatial


def _conv(x: Values, attributes: Attributes) -> Tensor:
    weight = _first(x[1])
    spatial = weight.ndim - 2
    padded, padding = _padded(_first(x[0]), attributes, spatial)
    convolve = {1: functional.conv1d, 2: functional.conv2d}[spatial]
    return convolve(
        padded,
        weight,
        x[2] if len(x) > 2 else None,
        attributes.get("strides", [1] * spatial),
        padding,
        attributes.get("dilations", [1] * spatial),
        attributes.get("group", 1),
    )


def _batch_norm(x: Values, attributes: Attributes) -> Tensor:
    data, scale, bias, mean, variance = x
    epsilon = attributes.get("epsilon", 1e-5)
    return functional.batch_norm(_first(data), mean, variance, scale, bias, False, 0.0, epsilon)


def _gemm(x: Values, attributes: Attributes) -> Tensor:
    a, b = _first(x[0]), _first(x[1])
    a = a.T if attributes.get("transA") else a
    b = b.T if attributes.get("transB") else b
    made = attributes.get("alpha", 1.0) * (a @ b)
    if len(x) > 2 and x[2] is not None:
        made = made + attributes.get("beta", 1.0) * x[2]
    return made


def _flatten(x: Values, attributes: Attributes) -> Tensor:
    data, axis = _first(x[0]), attributes.get("axis", 1)
    return data.reshape(math.prod(data.shape[:axis]), -1)


def _reshape(x: Values, attributes: Attributes) -> Tensor:
    data = _first(x[0])
    shape = _listed(x, attributes, "shape", 1) or []
    if not attributes.get("allowzero"):
        shape = [data.shape[n] if side == 0 else side for n, side in enumerate(shape)]
    return data.reshape(shape)


def _pool(kind: str) -> Callable[[Values, Attributes], Tensor]:
    def pool(x: Values, attributes: Attributes) -> Tensor:
        kernel = attributes["kernel_shape"]
        fill = float("-inf") if kind == "max" else 0.0
        data, padding = _padded(_first(x[0]), attributes, len(kernel), fill)
        strides, ceil = attributes.get("strides", [1] * len(kernel)), attributes.get("ceil_mode", 0)
        if kind == "max":
            dilations = attributes.get("dilations", [1] * len(kernel))
            return functional.max_pool2d(data, kernel, strides, padding, dilations, bool(ceil))
        counted = bool(attributes.get("count_include_pad", 0))
        if not counted and data is not x[0]:
            raise _refuse("an AveragePool padded differently by side")
        return functional.avg_pool2d(data, kernel, strides, padding, bool(ceil), counted)

    return pool


def _reduce(function: Callable[..., Tensor]) -> Callable[[Values, Attributes], Tensor]:
    def reduce(x: Values, attributes: Attributes) -> Tensor:
        data, axes = _first(x[0]), _listed(x, attributes, "axes", 1)
        if axes is None:
            axes = list(range(data.ndim))
        return function(data, dim=axes, keepdim=bool(attributes.get("keepdims", 1)))

    return reduce


def _clip(x: Values, attributes: Attributes) -> Tensor:
    low = x[1] if len(x) > 1 else attributes.get("min")
    high = x[2] if len(x) > 2 else attributes.get("max")
    return torch.clamp(_first(x[0]), low, high)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _unsqueeze(x: Values, attributes: Attributes) -> Tensor:
    data, axes = _first(x[0]), _listed(x, attributes, "axes", 1) or []
    rank = data.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


def _squeeze(x: Values, attributes: Attributes) -> Tensor:
    axes = _listed(x, attributes, "axes", 1)
    data = _first(x[0])
    return data.squeeze() if axes is None else data.squeeze(tuple(axes))


def _slice(x: Values, attributes: Attributes) -> Tensor:
    data = _first(x[0])
    starts = _listed(x, attributes, "starts", 1) or []
    ends = _listed(x, attributes, "ends", 2) or []
    axes = _listed(x, attributes, "axes", 3) or list(range(len(starts)))
    steps = _listed(x, attributes, "steps", 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            raise _refuse("a Slice with a negative step")
        index = [slice(None)] * data.ndim
        index[axis] = slice(start, end, step)
        data = data[tuple(index)]
    return data


def _split(x: Values, attributes: Attributes) -> tuple[Tensor, ...]:
    data, axis = _first(x[0]), attributes.get("axis", 0)
    sizes = _listed(x, attributes, "split", 1)
    if sizes is not None:
        return data.split(sizes, axis)
    if "num_outputs" not in attributes:
        raise _refuse("a Split without sizes")
    return data.split(-(-data.shape[axis] // attributes["num_outputs"]), axis)


def _gather(x: Values, attributes: Attributes) -> Tensor:
    data, axis, index = _first(x[0]), attributes.get("axis", 0), _first(x[1])
    axis %= data.ndim
    index = torch.where(index < 0, index + data.shape[axis], index)
    made = data.index_select(axis, index.flatten().to(data.device))
    return made.reshape((*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]))


def _cast(x: Values, attributes: Attributes) -> Tensor:
    kind = helper.tensor_dtype_to_np_dtype(attributes["to"]).kind
    dtypes = {"f": torch.float32, "i": torch.int64, "b": torch.bool}
    if kind not in dtypes:
        raise _refuse(f"a Cast to type {attributes['to']}")
    return _first(x[0]).to(dtypes[kind])


def _layer_norm(x: Values, attributes: Attributes) -> Tensor:
    data, scale = _first(x[0]), _first(x[1])
    axis, epsilon = attributes.get("axis", -1), attributes.get("epsilon", 1e-5)
    bias = x[2] if len(x) > 2 else None
    return functional.layer_norm(data, data.shape[axis:], scale, bias, epsilon)


def _lp_norm(x: Values, attributes: Attributes) -> Tensor:
    return functional.normalize(
        _first(x[0]), p=attributes.get("p", 2), dim=attributes.get("axis", -1)
    )


def _divide(x: Values, attributes: Attributes) -> Tensor:
    a, b = _first(x[0]), _first(x[1])
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _gelu(x: Values, attributes: Attributes) -> Tensor:
    kind = attributes.get("approximate", b"none").decode()
    return functional.gelu(_first(x[0]), approximate=kind)


def _concat(x: Values, attributes: Attributes) -> Tensor:
    return torch.cat([_first(part) for part in x], attributes["axis"])


def _expand(x: Values, attributes: Attributes) -> Tensor:
    data, shape = _first(x[0]), _integers(_first(x[1]))
    return data.expand(torch.broadcast_shapes(data.shape, shape))


def _one(function: Callable[..., Tensor]) -> Callable[[Values, Attributes], Tensor]:
    return lambda x, attributes: function(x[0])


def _two(function: Callable[..., Tensor]) -> Callable[[Values, Attributes], Tensor]:
    return lambda x, attributes: function(x[0], x[1])


OPERATORS: dict[str, Callable[[Values, Attributes], Tensor | tuple[Tensor, ...]]] = {
    "Add": _two(torch.add),
    "AveragePool": _pool("average"),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _divide,
    "Dropout": _one(lambda x: x),
    "Erf": _one(torch.erf),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _one(lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)),
    "HardSigmoid": lambda x, a: torch.clamp(
        a.get("alpha", 0.2) * _first(x[0]) + a.get("beta", 0.5), 0.0, 1.0
    ),
    "HardSwish": _one(functional.hardswish),
    "Identity": _one(lambda x: x),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, a: functional.leaky_relu(_first(x[0]), a.get("alpha", 0.01)),
    "LpNormalization": _lp_norm,
    "MatMul": _two(torch.matmul),
    "MaxPool": _pool("max"),
    "Mul": _two(torch.mul),
    "PRelu": _two(lambda x, slope: torch.where(x < 0, slope * x, x)),
    "Pow": _two(torch.pow),
    "ReduceL2": _reduce(torch.linalg.vector_norm),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _one(torch.relu),
    "Reshape": _reshape,
    "Shape": _one(lambda x: torch.tensor(x.shape, device=x.device)),  # where the constants are
    "Sigmoid": _one(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda x, a: torch.softmax(_first(x[0]), a.get("axis", -1)),
    "Split": _split,
    "Sqrt": _one(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _two(torch.sub),
    "Tanh": _one(torch.tanh),
    "Transpose": lambda x, a: _first(x[0]).permute(
        a.get("perm", list(reversed(range(_first(x[0]).ndim))))
    ),
    "Unsqueeze": _unsqueeze,
}
