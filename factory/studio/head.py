"""Turn shape parameters into vertices with the baked parametric head.

Lengths are centimetres. x points to the person's left, y up and z out of the face; the origin is
between the eyes.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

HEAD_FILE = Path(__file__).with_name("head.npz")
SKIN, EYE, MOUTH, TEETH, LASH, HAIR, FRAME = range(7)
AXIS_Z = -8.0  # z of the vertical axis; angles round the head are measured about it
ANCHOR_AGES = (12.0, 25.0, 90.0)  # years of the three baked ages


@dataclass(frozen=True, eq=False)
class ParametricHead:
    """The arrays of `head.npz` in float32, and what is derived once from the mean head."""

    mean: np.ndarray
    components: np.ndarray
    corners: np.ndarray
    local: np.ndarray
    local_names: tuple[str, ...]
    expressions: np.ndarray
    expression_names: tuple[str, ...]
    faces: np.ndarray
    face_region: np.ndarray
    lips: np.ndarray
    lids: np.ndarray
    ears: np.ndarray
    eye_uv: np.ndarray
    around: np.ndarray  # [V, 2]: angle round the vertical axis in degrees, height in cm
    landmark_rows: tuple[np.ndarray, ...]  # vertices averaged to each of the five landmarks


@lru_cache(1)
def load_head() -> ParametricHead:
    """Read the baked head (about 40 ms, once per process)."""
    with np.load(HEAD_FILE) as stored:
        data = {name: stored[name] for name in stored.files}
    mean = data["mean"].astype(np.float32)
    region = data["region"]
    faces = data["faces"].astype(np.int64)
    face_region = region[faces].max(1).astype(np.int64)
    low_lash = (face_region == LASH) & (mean[faces][..., 1].mean(1) < -0.2)
    faces, face_region = faces[~low_lash], face_region[~low_lash]
    angle = np.degrees(np.arctan2(mean[:, 0], mean[:, 2] - AXIS_Z))
    lips = data["lips"].astype(np.float32)
    eye = region == EYE
    lip_rows = np.flatnonzero((lips > 0.5) & (region == SKIN))
    nose_tip = np.flatnonzero((np.abs(mean[:, 0]) < 0.6) & (mean[:, 2] > mean[:, 2].max() - 0.15))
    by_x = lip_rows[np.argsort(mean[lip_rows, 0])]
    # In image order: the person's right eye is on the viewer's left and comes first.
    landmark_rows = (
        np.flatnonzero(eye & (mean[:, 0] < 0)),
        np.flatnonzero(eye & (mean[:, 0] > 0)),
        nose_tip,
        by_x[:3],
        by_x[-3:],
    )
    return ParametricHead(
        mean=mean,
        components=data["components"].astype(np.float32),
        corners=data["corners"],
        local=data["local"].astype(np.float32),
        local_names=tuple(str(name) for name in data["local_names"]),
        expressions=data["expressions"].astype(np.float32),
        expression_names=tuple(str(name) for name in data["expression_names"]),
        faces=faces,
        face_region=face_region,
        lips=lips,
        lids=data["lids"].astype(np.float32),
        ears=data["ears"].astype(np.float32),
        eye_uv=data["eye_uv"].astype(np.float32),
        around=np.stack([angle, mean[:, 1]], 1).astype(np.float32),
        landmark_rows=landmark_rows,
    )


def phenotype_coefficients(
    gender: float, age: float, weight: float, ancestry: np.ndarray
) -> np.ndarray:
    """Return the coefficients of the phenotype components, float32 [K].

    Args:
        gender: 0 (female) to 1 (male).
        age: years, clipped to 12..90.
        weight: 0 to 1.
        ancestry: [3], shares of african, asian and caucasian, which sum to one.
    """
    years = float(np.clip(age, ANCHOR_AGES[0], ANCHOR_AGES[-1]))
    by_age = np.array([np.interp(years, ANCHOR_AGES, row) for row in np.eye(3)])
    by_weight = np.array([np.interp(weight, (0.0, 0.5, 1.0), row) for row in np.eye(3)])
    by_gender = np.array([1.0 - gender, gender])
    corners = load_head().corners
    mixed = np.einsum("g,a,w,r,gawrk->k", by_gender, by_age, by_weight, ancestry, corners)
    return mixed.astype(np.float32)


def shape_vertices(coefficients: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Return the vertices of the neutral head in cm, float32 [V, 3].

    Args:
        coefficients: [K], from `phenotype_coefficients`.
        local: [L], signed local changes in [-1, 1], in the order of `ParametricHead.local_names`.
    """
    head = load_head()
    one_sided = np.stack([np.maximum(local, 0), np.maximum(-local, 0)], 1).ravel()
    used = np.flatnonzero(one_sided)
    rows = head.local[used].reshape(len(used), head.mean.size)
    change = one_sided[used].astype(np.float32) @ rows
    change += coefficients @ head.components.reshape(len(coefficients), -1)
    return head.mean + change.reshape(-1, 3)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return unit normals [V, 3]: the area-weighted mean of the faces round each vertex."""
    corners = vertices[faces]
    u, v = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    normal = np.empty_like(vertices)
    flat = faces.ravel()
    for axis in range(3):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        component = u[:, i] * v[:, j] - u[:, j] * v[:, i]
        normal[:, axis] = np.bincount(flat, np.repeat(component, 3), len(vertices))
    return normal / (np.sqrt((normal**2).sum(1, keepdims=True)) + 1e-12)
