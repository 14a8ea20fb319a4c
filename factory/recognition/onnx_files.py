"""ONNX files as recognizers: onnxruntime embeds; for gradients the graph becomes torch.

`pixels=signed` feeds [-1, 1], `pixels=byte` [0, 255]; by default byte only where the graph begins
by subtracting and scaling itself, as insightface's older exports do. Graphs of float16, bfloat16
and float64 are computed in float32, which onnxruntime has for every operator; their weights are
those of the file.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from factory.datasets import catalog
from factory.datasets.provenance import sha256_file
from factory.recipe import InputError
from factory.recognition.recognizer import CHANNELS, Recognizer, file_and_options

PIXELS = ("signed", "byte")
AGREEMENT = 1e-4  # of the torch form of an ONNX graph, relative to its longest embedding
SIZED = (
    "python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name {name} --input_shape "
    "1,3,112,112 IN.onnx OUT.onnx states them"
)


class Adapted(nn.Module):
    """A network that expects other channels or pixels than RGB in [-1, 1], behind that interface.

    Args:
        network: the network itself.
        channels: rgb or bgr, what it expects.
        pixels: signed or byte, what it expects.
        single: whether it takes one image at a time.
    """

    def __init__(
        self, network: nn.Module, channels: str, pixels: str = "signed", single: bool = False
    ) -> None:
        super().__init__()
        self.network, self.channels, self.pixels, self.single = network, channels, pixels, single

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings [B, D] of RGB images [B, 3, S, S] in [-1, 1]."""
        if self.channels == "bgr":
            x = x.flip(1)
        if self.pixels == "byte":
            x = (x + 1.0) * 127.5
        return torch.cat([self.network(one) for one in x.split(1 if self.single else len(x))])


def load_onnx(reference: str, dtype: str, device: torch.device | str) -> Recognizer:
    """Load an ONNX file; InputError where it is none, or maps no images to embeddings."""
    path, options = file_and_options(reference, channels=CHANNELS, pixels=PIXELS)
    return onnx_recognizer(path, reference, options, device)


def onnx_recognizer(
    path: Path, reference: str, options: Mapping[str, str], device: torch.device | str
) -> Recognizer:
    """Return an ONNX file as a recognizer.

    Args:
        path: the file.
        reference: what the user asked for.
        options: channels, pixels and licence, where stated.
        device: where its torch form runs.

    Raises:
        InputError: it is no ONNX file, or maps no square images of a stated size to embeddings.
    """
    session, own_pixels = _opened(path, reference)
    given, made = session.get_inputs()[0], session.get_outputs()[0]
    size, fixed = _square(given, made, reference)
    channels = options.get("channels", "rgb")
    pixels = options.get("pixels") or own_pixels

    def embed(images: np.ndarray) -> np.ndarray:
        images = images[..., ::-1] if channels == "bgr" else images
        batch = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
        batch = batch if pixels == "byte" else batch / 127.5 - 1.0
        each = 1 if fixed else len(batch)
        pieces = [batch[n : n + each] for n in range(0, len(batch), each)]
        return np.concatenate(
            [np.asarray(session.run([made.name], {given.name: one})[0]) for one in pieces]
        )

    def module() -> nn.Module:
        from factory.recognition.onnx_graph import OnnxNetwork

        network = Adapted(OnnxNetwork(path), channels, pixels, single=fixed)
        _compare(network, embed, size, reference)
        return network.eval().requires_grad_(False).to(device)

    dimension = embed(np.zeros((1, size, size, 3), np.uint8)).shape[1]
    licence = catalog.licence_of(path, options.get("licence", ""))
    return Recognizer(
        path.stem, size, dimension, sha256_file(path), licence, reference, module, embed
    )


def _opened(path: Path, reference: str) -> tuple[Any, str]:
    """Return onnxruntime's session of a file, and the pixels that its graph expects."""
    import onnx
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        graph = onnx.load(path, load_external_data=False).graph
        held = str(path) if _is_float32(graph) else _in_float32(path)
        session = onnxruntime.InferenceSession(held, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exception classes are not public
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"recognizer {reference!r}: not an ONNX model: {reason}") from error
    # Where a graph begins by subtracting and scaling, it takes bytes.
    first = {node.op_type for node in graph.node[:8]}
    return session, "byte" if "Sub" in first and first & {"Mul", "Div"} else "signed"


def _square(given: Any, made: Any, reference: str) -> tuple[int, bool]:
    """Return the side of the images a graph takes, and whether it takes one at a time."""
    shape = given.shape
    if len(shape) != 4 or shape[1] != 3 or len(made.shape) != 2 or given.type != "tensor(float)":
        raise InputError(
            f"recognizer {reference!r}: maps {shape} of {given.type} to {made.shape}; accepted is "
            "[B, 3, S, S] to [B, D], of floating-point numbers"
        )
    sides = shape[2:]
    if not all(isinstance(side, int) for side in sides):
        raise InputError(
            f"recognizer {reference!r}: its graph leaves the size of its images open "
            f"({shape[2]} x {shape[3]}); accepted is one that states them: "
            f"{SIZED.format(name=given.name)}"
        )
    if sides[0] != sides[1]:
        raise InputError(
            f"recognizer {reference!r}: its graph takes images of {sides[0]} x {sides[1]} pixels "
            "(height x width); accepted are square ones, as 112 x 112"
        )
    fixed = isinstance(shape[0], int)
    if fixed and shape[0] != 1:
        raise InputError(
            f"recognizer {reference!r}: batch is fixed to {shape[0]}; accepted: 1, any"
        )
    return sides[0], fixed


def _others() -> set[int]:
    """Return the types of numbers that are computed in float32."""
    from onnx import TensorProto

    return {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def _is_float32(graph: Any) -> bool:
    """Tell whether a graph goes to onnxruntime as it is: it takes, gives and keeps float32."""
    from onnx import TensorProto

    sides = {side.type.tensor_type.elem_type for side in (*graph.input, *graph.output)}
    halves = _others() - {TensorProto.DOUBLE}
    return not (sides & _others() or {tensor.data_type for tensor in graph.initializer} & halves)


def _in_float32(path: Path) -> bytes:
    """Return a file's model with float32 wherever it has other floating-point numbers."""
    import onnx
    from onnx import TensorProto, numpy_helper

    model, others = onnx.load(path), _others()
    for graph in _graphs(model.graph):
        del graph.value_info[:]
        for side in (*graph.input, *graph.output):
            if side.type.tensor_type.elem_type in others:
                side.type.tensor_type.elem_type = TensorProto.FLOAT
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        tensors = [a.t for a in attributes if a.type == onnx.AttributeProto.TENSOR]
        for tensor in (*graph.initializer, *tensors):
            if tensor.data_type in others:
                values = numpy_helper.to_array(tensor).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i in others:
                    attribute.i = TensorProto.FLOAT
    return model.SerializeToString()


def _graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _compare(
    network: nn.Module, embed: Callable[[np.ndarray], np.ndarray], size: int, reference: str
) -> None:
    """Refuse a torch form that does not give what onnxruntime gives."""
    images = np.random.Generator(np.random.Philox(key=0)).integers(0, 256, (2, size, size, 3))
    truth = embed(images.astype(np.uint8))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.inference_mode():
        found = network(batch).numpy()
    apart = float(np.abs(found - truth).max() / np.linalg.norm(truth, axis=1).max())
    if not apart <= AGREEMENT:
        raise InputError(
            f"recognizer {reference!r}: its torch form differs from onnxruntime by {apart:.2g} of "
            "the embedding's length, so it cannot be differentiated; accepted for losses and "
            "guidance are torch recognizers"
        )
