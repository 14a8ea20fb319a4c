"""Make what is worn on the head: the volume of hair and beard, long hair, glasses.

Hair close to the head is a displacement of the scalp. Long hair is a separate curtain. Glasses are
two rings with a bridge and temples. Lengths are centimetres.
"""

from dataclasses import dataclass

import numpy as np

from factory.studio.head import AXIS_Z, FRAME, HAIR, load_head
from factory.studio.paint import beard_cover, scalp_cover, smooth
from factory.studio.people import Person

# style -> thickness in cm at the front top, at the crown, at the sides
THICKNESS = {
    "bald": (0.0, 0.0, 0.0), "buzz": (0.15, 0.15, 0.1), "short": (0.9, 0.9, 0.4),
    "crop": (0.6, 0.8, 0.3), "sidepart": (1.5, 1.3, 0.6), "quiff": (3.0, 1.4, 0.3),
    "fringe": (0.9, 1.5, 1.2), "receding": (0.4, 0.6, 0.5), "horseshoe": (0.0, 0.0, 0.8),
    "curly": (2.2, 2.4, 1.8), "afro": (4.2, 4.6, 3.8), "tied": (0.4, 0.6, 0.3),
    "bob": (1.2, 1.4, 1.2), "long": (1.0, 1.1, 0.9), "wavy": (1.6, 1.8, 1.6),
    "curtains": (1.4, 1.5, 1.1),
}  # fmt: skip
LONG = {"bob": -8.5, "long": -17.0, "wavy": -16.0, "curtains": -6.0}  # lowest height of the curtain


@dataclass(frozen=True, eq=False)
class Mesh:
    """Extra geometry: vertices [n, 3], triangles [m, 3], a region per triangle, paint positions."""

    vertices: np.ndarray
    faces: np.ndarray
    region: np.ndarray
    around: np.ndarray


def hair_displacement(who: Person, normals: np.ndarray) -> np.ndarray:
    """Return the offset of every head vertex under scalp hair in cm, float32 [V, 3]."""
    angle, height = load_head().around.T
    front, crown, side = THICKNESS[who.hair_style]
    cover = scalp_cover(who, angle, height, 1.6 + 0.7 * max(front, side))
    ear = load_head().ears > 0.05
    cover = np.where(ear, 0.0, cover)
    share_up = smooth((height - 3.0) / 5.0)
    share_front = smooth((75 - np.abs(angle)) / 50)
    up = share_front * front + (1 - share_front) * crown
    thick = (share_up * up + (1 - share_up) * side) * (0.55 + 0.45 * who.hair["volume"])
    if who.hair_style == "sidepart":
        thick = thick * (1 + 0.5 * np.sign(who.hair["part"]) * np.clip(angle / 50, -1, 1))
    direction = normals.copy()
    if who.hair_style in ("quiff", "afro", "curly"):
        direction[:, 1] += 0.5 * share_up
    return (direction * (cover * thick)[:, None]).astype(np.float32)


def beard_displacement(who: Person, normals: np.ndarray) -> np.ndarray:
    """Return the offset of every head vertex under a beard in cm, float32 [V, 3]."""
    head = load_head()
    angle, height = head.around.T
    thick = {"full": 1.5, "goatee": 0.7, "chin": 0.7, "short": 0.4, "moustache": 0.35}
    length = thick.get(who.beard_style, 0.0) * (0.3 + 0.7 * who.beard["length"])
    cover = beard_cover(who, angle, height, 1.4)
    cover = cover * np.where((head.lips > 0.1) | (head.ears > 0.05), 0.0, 1.0)
    low = smooth((-6.5 - height) / 3.0)
    direction = normals.copy()
    direction[:, 1] -= 0.6 * low
    direction[:, 2] += 0.2 * low
    return (direction * (cover * length * (0.45 + 0.55 * low))[:, None]).astype(np.float32)


def _grid_faces(rows: int, columns: int, start: int) -> np.ndarray:
    index = start + np.arange(rows * columns).reshape(rows, columns)
    a, b = index[:-1, :-1].ravel(), index[:-1, 1:].ravel()
    c, d = index[1:, :-1].ravel(), index[1:, 1:].ravel()
    return np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])


def long_hair(who: Person, vertices: np.ndarray) -> Mesh | None:
    """Make the curtain of long hair round the sides and back of a neutral head.

    Args:
        vertices: the neutral head [V, 3], which already has the hair displacement.

    Returns:
        None for a person whose hair is not long.
    """
    if who.hair_style not in LONG:
        return None
    head = load_head()
    skull = (np.abs(head.around[:, 1] - 4.0) < 2.0) & (head.ears < 0.05)
    half_width = float(np.abs(vertices[skull, 0]).max())
    back = float(AXIS_Z - vertices[skull, 2].min())
    frame = who.hair["frame"] - (16 if who.hair_style == "curtains" else 0)
    bottom = LONG[who.hair_style] + (5.0 if who.hair_style != "long" else 7.0) * (
        0.5 - who.hair["length"]
    )
    rows, columns = 14, 44
    turn = np.linspace(frame, 360 - frame, columns)
    down = np.linspace(0, 1, rows)
    height = 6.6 + (bottom - 6.6) * down
    volume = 0.35 + 0.75 * who.hair["volume"]
    flare = volume * np.interp(down, [0, 0.2, 0.5, 1.0], [-0.6, 0.5, 0.9, 0.7])
    if who.hair_style == "wavy":
        flare = flare + 0.55 * np.sin(down * 17 + 6 * who.hair["curl"]) * down + 0.5 * down
    if who.hair_style == "bob":
        flare = flare + 0.7 * np.sin(np.pi * down) - 0.5 * down
    radians = np.radians(turn)[None]
    wobble = 0.25 * np.sin(5 * radians + 9 * who.hair["curl"]) + 0.15 * np.sin(13 * radians)
    reach = flare[:, None] + wobble * down[:, None]
    x = (half_width + reach) * np.sin(radians)
    front = np.where(np.cos(radians) > 0, 10.2, back)
    z = AXIS_Z + (front + reach * 0.6) * np.cos(radians)
    top = np.clip(1 - down / 0.22, 0, 1)[:, None] ** 1.5
    x = x * (1 - 0.16 * top)
    y = np.broadcast_to(height[:, None], x.shape)
    points = np.stack([x, y, z], -1).reshape(-1, 3).astype(np.float32)
    signed = np.where(turn > 180, turn - 360, turn)
    around = np.stack([
        np.clip(np.broadcast_to(signed[None] * 0.6, x.shape), -110, 110),
        np.broadcast_to(np.interp(down, [0, 1], [11.5, 7.5])[:, None], x.shape),
    ], -1).reshape(-1, 2)  # fmt: skip
    faces = _grid_faces(rows, columns, 0)
    return Mesh(points, faces, np.full(len(faces), HAIR), around.astype(np.float32))


def glasses(who: Person, vertices: np.ndarray) -> Mesh:
    """Make the person's glasses on a neutral head [V, 3]."""
    head, look = load_head(), who.glasses
    right, left = (vertices[rows].mean(0) for rows in head.landmark_rows[:2])
    bridge = (np.abs(head.mean[:, 0]) < 1.0) & (np.abs(head.mean[:, 1] + 0.2) < 1.4)
    ball_z = float(vertices[head.landmark_rows[0], 2].max())
    lens_z = max(float(vertices[bridge, 2].max()) + 0.35, ball_z + 1.5)
    points: list[np.ndarray] = []
    faces: list[np.ndarray] = []
    count = 0
    steps = 28
    turn = np.linspace(0, 2 * np.pi, steps)
    power = 2.0 / look["square"]
    ring_x = np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** power
    ring_y = np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** power
    centres = []
    for eye, side in ((right, -1.0), (left, 1.0)):
        centre_x = side * max(abs(eye[0]), look["width"] + 0.55)
        centres.append(centre_x)
        inner_w, inner_h = look["width"], look["height"]
        rings = []
        for extra in (0.0, look["rim"]):
            bend = 0.05 * (centre_x + ring_x * inner_w) ** 2
            rings.append(np.stack([
                centre_x + ring_x * (inner_w + extra),
                eye[1] - look["drop"] + ring_y * (inner_h + extra),
                lens_z - 0.12 * bend,
            ], 1))  # fmt: skip
        points.append(np.concatenate(rings))
        faces.append(_grid_faces(2, steps, count))
        count += 2 * steps
    level = (right[1] + left[1]) / 2 - look["drop"] + 0.35 * look["height"]
    thick = max(look["rim"], 0.16)
    gap = centres[1] - look["width"]
    bars = [((-gap, level, lens_z), (gap, level, lens_z))]
    ear_z = float(vertices[head.ears > 0.5, 2].max())
    ear_x = float(np.abs(vertices[head.ears > 0.5, 0]).min()) + 0.4
    for side in (-1.0, 1.0):
        outer = side * (centres[1] + look["width"])
        bars.append(((outer, level, lens_z - 0.3), (side * max(ear_x, 7.0), level, ear_z)))
    for start, end in bars:
        a, b = np.array(start), np.array(end)
        lift = np.array([0.0, thick / 2, 0.0])
        points.append(np.stack([a + lift, b + lift, a - lift, b - lift]))
        faces.append(_grid_faces(2, 2, count))
        count += 4
    all_faces = np.concatenate(faces)
    vertices_out = np.concatenate(points).astype(np.float32)
    around = np.zeros((len(vertices_out), 2), np.float32)
    return Mesh(vertices_out, all_faces, np.full(len(all_faces), FRAME), around)
