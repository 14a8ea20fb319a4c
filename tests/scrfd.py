"""A file that insightface reads as an SCRFD detector: it sees one face wherever there is light."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, STRIDES, ANCHORS = 640, (8, 16, 32), 2
# in the 640 pixels the photograph is scaled into
POINTS = np.array([[200, 210], [300, 190], [260, 260], [215, 330], [305, 315]], np.float32)
BOX = (150.0, 120.0, 350.0, 380.0)


def write_detector(path: Path) -> Path:
    """Write a graph whose only face, of score 0.9, is there when any pixel is above 127.5."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["brightest"], keepdims=0),
        helper.make_node("Clip", ["brightest", "zero", "one"], ["light"]),
        helper.make_node("Ceil", ["light"], ["seen"]),
    ]
    constants = {"zero": np.array(0, np.float32), "one": np.array(1, np.float32)}
    outputs: dict[str, list[str]] = {"score": [], "box": [], "points": []}
    for stride in STRIDES:
        rows = (SIZE // stride) ** 2 * ANCHORS
        score = np.zeros((rows, 1), np.float32)
        box, points = np.zeros((rows, 4), np.float32), np.zeros((rows, 10), np.float32)
        if stride == 16:
            column, line = 15, 14
            row = (line * (SIZE // stride) + column) * ANCHORS
            at = np.array([column, line], np.float32) * stride
            score[row] = 0.9
            box[row] = np.abs(np.array([*(at - BOX[:2]), *(BOX[2:] - at)])) / stride
            points[row] = ((POINTS - at) / stride).ravel()
        for kind, value in (("score", score), ("box", box), ("points", points)):
            name = f"{kind}{stride}"
            constants[f"{name}_if"] = value
            nodes.append(helper.make_node("Mul", [f"{name}_if", "seen"], [name]))
            outputs[kind].append(name)
    made = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
            for kind, width in (("score", 1), ("box", 4), ("points", 10))
            for name in outputs[kind]
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
