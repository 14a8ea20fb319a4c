"""Writing a trained recognizer as an ONNX file, for onnxruntime and other users."""

import warnings
from pathlib import Path

import torch

from factory.recognition.recognizer import Recognizer

OPSET = 17


def save_onnx(recognizer: Recognizer, path: Path) -> None:
    """Write the network: `images` float32 [B, 3, S, S] in [-1, 1] RGB to `embeddings` [B, D], raw.

    Args:
        recognizer: the recognizer with the network.
        path: the file to write; it accepts batches of any size.
    """
    module = recognizer.module.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    device = next(module.parameters()).device
    images = torch.zeros(2, 3, recognizer.size, recognizer.size, device=device)
    with warnings.catch_warnings():
        # The newer exporter, without TorchScript, would need onnxscript and bring no gain here.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module.eval(),
            (images,),
            str(path),
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_axes={"images": {0: "batch"}, "embeddings": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
