"""Face detection in photographs: insightface's SCRFD detectors, from the user's file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory.recipe import InputError

SIZE = 640  # a photograph is scaled into a square of this side in pixels before detection
THRESHOLD = 0.5
OUTPUTS = (9, 15)  # outputs of an SCRFD graph: scores, boxes, points for three or five strides


@dataclass(frozen=True)
class Face:
    """One face in a photograph.

    Attributes:
        box: left, top, right, bottom in pixels.
        score: the detector's score, 0 to 1.
        points: float32 [5, 2], x and y in pixels: eyes, nose, mouth corners, each pair from the
            image's left to its right.
        faces: number of faces in the photograph.
    """

    box: tuple[float, ...]
    score: float
    points: np.ndarray
    faces: int


class Detector:
    """Finds the main face of a photograph."""

    def __init__(self, path: Path) -> None:
        """Load an SCRFD file.

        Raises:
            InputError: there is no such file, or it is not an ONNX model that returns five points.
        """
        if not path.is_file():
            raise InputError(
                f"--detector {path}: no such file; accepted is an SCRFD detector with five points "
                "as an .onnx file, as insightface's det_10g.onnx"
            )
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                str(path), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own exception classes are not public
            reason = str(error).splitlines()[0]
            raise InputError(f"--detector {path}: not an ONNX model: {reason}") from error
        if len(session.get_outputs()) not in OUTPUTS:
            raise InputError(
                f"--detector {path}: {len(session.get_outputs())} outputs; accepted is an SCRFD "
                f"detector with five points, which has {' or '.join(map(str, OUTPUTS))}"
            )
        from insightface.model_zoo import SCRFD

        self.model: Any = SCRFD(model_file=str(path), session=session)
        self.model.prepare(-1, input_size=(SIZE, SIZE), det_thresh=THRESHOLD)

    def find(self, image: np.ndarray) -> Face | None:
        """Return the largest face near the middle, or None; image is uint8 [H, W, 3] RGB.

        If there are several, the face with the highest area minus twice the squared distance from
        the middle, in pixels, is taken.
        """
        boxes, points = self.model.detect(np.ascontiguousarray(image[..., ::-1]))
        if not len(boxes):
            return None
        sides = boxes[:, 2:4] - boxes[:, :2]
        middles = (boxes[:, 2:4] + boxes[:, :2]) / 2 - np.array(image.shape[1::-1]) / 2
        best = int(np.argmax(sides.prod(1) - 2.0 * (middles**2).sum(1)))
        box = tuple(float(side) for side in boxes[best, :4])
        return Face(box, float(boxes[best, 4]), points[best].astype(np.float32), len(boxes))
