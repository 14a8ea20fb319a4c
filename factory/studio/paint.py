"""Paint a person's skin, brows, hairline and beard on an unrolled head.

The painting is a picture of the head unrolled round its vertical axis: columns are the angle
(`ANGLE` degrees either side of the nose), rows are the height in centimetres (`TOP` to `BOTTOM`).
Both are measured on the mean head, so that paint follows the shape of each person's own head.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from factory.seeding import generator
from factory.studio.people import Person, person

ANGLE = 112.0
TOP, BOTTOM = 12.0, -13.0
COLUMNS, ROWS = 256, 208
CM_PER_DEGREE = 0.168  # on the front of the mean head


@dataclass(frozen=True, eq=False)
class Painting:
    """What is painted on one person: two float32 pictures [ROWS, COLUMNS, 4].

    `skin` holds linear RGB and the coverage of the brows. `hair` holds the coverage of scalp hair,
    the coverage of beard, the depth of wrinkles, and hair strands (about 1.0 plus or minus 0.3).
    """

    skin: np.ndarray
    hair: np.ndarray


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """Turn sRGB values in [0, 1] into linear light."""
    return np.power(np.asarray(srgb, np.float32), 2.2)


def smooth(x: np.ndarray) -> np.ndarray:
    """Return the smooth step, which is 0 below 0 and 1 above 1."""
    t = np.clip(x, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


@lru_cache(1)
def _grid() -> tuple[np.ndarray, np.ndarray]:
    angle = np.linspace(-ANGLE, ANGLE, COLUMNS, dtype=np.float32)
    height = np.linspace(TOP, BOTTOM, ROWS, dtype=np.float32)
    grid = np.meshgrid(angle, height)
    return grid[0], grid[1]


def texture_position(around: np.ndarray) -> np.ndarray:
    """Turn angle and height [..., 2] into (column, row) in a painting, float32."""
    column = (around[..., 0] + ANGLE) / (2 * ANGLE) * (COLUMNS - 1)
    row = (TOP - around[..., 1]) / (TOP - BOTTOM) * (ROWS - 1)
    return np.stack([column, row], -1).astype(np.float32)


def _noise(rng: np.random.Generator, columns: int, rows: int) -> np.ndarray:
    """Draw smooth noise over the painting, about -1 to 1, with the given number of cells."""
    cells = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return cv2.resize(cells, (COLUMNS, ROWS), interpolation=cv2.INTER_CUBIC)


def hairline(who: Person, angle: np.ndarray) -> np.ndarray:
    """Return the height in cm above which scalp hair grows, at each angle in degrees."""
    hair, style = who.hair, who.hair_style
    front = 6.9 + hair["hairline"]
    recession = hair["recession"] * np.clip((who.age - 20) / 40, 0.1, 1.0)
    peak = hair["peak"]
    if style == "fringe":
        front, peak, recession = 3.4 + 0.9 * hair["hairline"], 0.0, 0.0
    elif style == "receding":
        front, recession = front + 1.9, 1.0
    elif style == "horseshoe":
        front, recession = 30.0, 0.0
    elif style == "curtains":
        front, recession = front - 0.2, 0.0
    burn = hair["sideburn"]
    temple = front - 1.2 if style == "fringe" else 3.6 + 0.4 * hair["hairline"]
    corner = front + 2.2 * recession
    if style == "horseshoe":
        at = [0, 50, 60, 70, 74, 82, 86, 104, 112, 180]
        level = [30, 30, 5.5, 3.0, burn, burn, 1.2, 1.2, -5.5, -7]
    else:
        at = [0, 14, 30, 44, 57, 66, 72, 82, 86, 104, 112, 180]
        level = [front - peak, front, corner, corner - 1.4, temple, 1.8, burn, burn, 1.2, 1.2,
                 -5.5, -7]  # fmt: skip
    signed = np.interp(np.abs(angle), at, level)
    if style == "sidepart":
        signed = signed - 1.5 * smooth((hair["part"] * angle / 40) * 0.7) * (np.abs(angle) < 62)
    if style == "curtains":
        signed = signed - 2.6 * smooth((np.abs(angle) - 12) / 22) * (np.abs(angle) < 62)
    return signed.astype(np.float32)


def scalp_cover(who: Person, angle: np.ndarray, height: np.ndarray, softness: float) -> np.ndarray:
    """Return the share covered by scalp hair, 0 to 1, at angles in degrees and heights in cm."""
    if who.hair_style == "bald":
        return np.zeros(np.shape(angle), np.float32)
    return smooth((height - hairline(who, angle)) / softness + 0.5)


def beard_cover(who: Person, angle: np.ndarray, height: np.ndarray, softness: float) -> np.ndarray:
    """Return the share covered by beard, 0 to 1, at angles in degrees and heights in cm."""
    style, edge = who.beard_style, who.beard["edge"]
    if style == "none":
        return np.zeros(np.shape(angle), np.float32)
    across = np.abs(angle)
    x = across * CM_PER_DEGREE
    moustache = smooth((3.4 + 0.3 * edge - x) / softness) * smooth(
        (height + 6.7 + 0.35 * np.maximum(x - 1.5, 0)) / softness
    ) * smooth((-4.75 - 0.35 * np.maximum(x - 1.0, 0) - height) / softness)  # fmt: skip
    goatee = smooth((2.7 + 0.8 * edge - x) / softness) * smooth((-7.5 - height) / softness)
    chin = smooth((1.4 + 0.4 * edge - x) / softness) * smooth((-8.1 - height) / softness)
    cheek_line = np.interp(
        across,
        [0, 20, 28, 45, 62, 70, 84, 90],
        [-7.6, -7.2, -6.2 + edge, -4.9 + edge, -2.2 + 0.5 * edge, 1, 1, -6],
    )
    jaw = smooth((cheek_line - height) / softness) * smooth((88 - across) / 6)
    burns = smooth((across - 58) / 5) * smooth((88 - across) / 5) * smooth(
        (1 - height) / softness) * smooth((height + 5.2 - edge) / softness)  # fmt: skip
    cover = {
        "stubble": np.maximum(moustache * 0.9, jaw),
        "moustache": moustache,
        "goatee": np.maximum(moustache, goatee),
        "chin": chin,
        "short": np.maximum(moustache, jaw),
        "full": np.maximum(moustache, jaw),
        "sideburns": burns,
    }[style]
    return cover.astype(np.float32)


def brow_cover(who: Person, angle: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Return the share covered by the brows, 0 to 1, at angles in degrees and heights in cm."""
    brow = who.brow
    total = np.zeros_like(angle)
    for side in (-1.0, 1.0):
        x = side * angle * CM_PER_DEGREE
        inner, outer = brow["inner"], brow["outer"]
        t = (x - inner) / (outer - inner)
        half = (0.16 + 0.42 * brow["weight"]) * np.interp(
            t, [-0.1, 0.05, 0.35, 0.7, 1.05], [0.55, 0.95, 1.0, 0.75, 0.15]
        )
        arch = 0.45 + 0.55 * brow["arch"]
        middle = 1.95 + brow["height"] + side * brow["side"]
        middle = middle + arch * (1 - ((t - 0.62) / 0.62) ** 2) * 0.75 + 0.3 * brow["tilt"] * t
        middle = middle - 0.35
        along = smooth((t + 0.06) / 0.1) * smooth((1.06 - t) / 0.16)
        total = np.maximum(total, along * smooth((half - np.abs(height - middle)) / 0.22 + 0.35))
    if brow["monobrow"] > 0:
        bridge = smooth((2.0 - np.abs(angle) * CM_PER_DEGREE) / 0.8)
        bridge = bridge * smooth((0.4 - np.abs(height - 1.9 - brow["height"])) / 0.3)
        total = np.maximum(total, brow["monobrow"] * bridge)
    return total


@lru_cache(1)
def _face_window() -> tuple[slice, slice]:
    """Return the rows and columns of the painting that hold brows, eyes, nose and mouth."""
    angle, height = _grid()
    columns = np.flatnonzero(np.abs(angle[0]) < 46)
    rows = np.flatnonzero((height[:, 0] < 7.5) & (height[:, 0] > -9.5))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _wrinkles(who: Person, rng: np.random.Generator) -> np.ndarray:
    """Return the depth of the furrows that age brings out in the face window, about 0 to 1."""
    angle, height = (part[_face_window()] for part in _grid())
    x = angle * CM_PER_DEGREE
    depth = np.zeros_like(angle)
    width = smooth((5.2 - np.abs(x)) / 2.5)
    for k in range(3):  # forehead
        line = 3.7 + 1.0 * k + rng.uniform(-0.3, 0.3) + 0.25 * np.sin(x * 0.6 + rng.uniform(0, 6))
        depth += rng.uniform(0.2, 0.8) * width * np.exp(-(((height - line) / 0.2) ** 2))
    for side in (-1.0, 1.0):
        u = side * x
        fold_x = np.interp(-height, [3.2, 5.0, 7.2, 9.0], [1.6, 2.5, 3.4, 3.6])
        inside = smooth((-2.9 - height) / 0.8) * smooth((height + 8.6) / 1.5)
        depth += rng.uniform(0.5, 1.1) * inside * np.exp(-(((u - fold_x) / 0.3) ** 2))
        for k in range(3):  # crow's feet
            slope = 0.45 * (k - 1) + rng.uniform(-0.1, 0.1)
            line = 0.1 + slope * (u - 4.9)
            reach = smooth((u - 4.9) / 0.5) * smooth((7.0 - u) / 1.0)
            depth += rng.uniform(0.3, 0.8) * reach * np.exp(-(((height - line) / 0.16) ** 2))
        bag = -1.55 - 0.05 * (u - 3.3) ** 2
        below = smooth((2.0 - np.abs(u - 3.3)) / 0.8)
        depth += rng.uniform(0.3, 0.9) * below * np.exp(-(((height - bag) / 0.28) ** 2))
        frown = smooth((height - 0.9) / 0.6) * smooth((3.3 - height) / 0.8)
        depth += rng.uniform(0.0, 0.7) * frown * np.exp(-(((u - 0.6) / 0.16) ** 2))
    return np.clip(depth, 0, 1.2) * who.wrinkles


@lru_cache(32)  # 1.7 MB each; all pictures of a person are usually made together
def paint(split: str, index: int, plain: bool = False) -> Painting:
    """Paint a person (under 10 ms, then cached), with furrows at full depth."""
    who = person(split, index, plain)
    rng = generator(who.texture_seed)
    angle, height = _grid()
    x = angle * CM_PER_DEGREE
    window = _face_window()
    face_x, face_height = x[window], height[window]
    tone = 0.6 * _noise(rng, 7, 6) + 0.4 * _noise(rng, 17, 15)
    fine = _noise(rng, 90, 80)
    shade = 1 + who.blotches * tone + 0.25 * who.blotches * fine
    skin = shade[..., None] * to_linear(who.skin)
    face = skin[window]
    red = np.exp(-((face_x / 1.6) ** 2) - ((face_height + 3.6) / 1.2) ** 2)
    eyes = np.zeros_like(face_x)
    for side in (-1, 1):
        red += np.exp(-(((face_x - side * 4.6) / 2.0) ** 2) - ((face_height + 3.6) / 1.9) ** 2)
        eyes += np.exp(-(((face_x - side * 3.4) / 1.7) ** 2) - ((face_height + 0.5) / 1.1) ** 2)
    red_share = rng.uniform(0.0, 0.16) if not who.plain else 0.04
    _darken(face, red_share * red, (0.0, 1.0, 1.0))
    _darken(face, who.dark_circles * eyes, (0.6, 1.0, 0.8))
    if who.freckles > 0:
        spots = smooth((_noise(rng, 120, 100)[window] - 0.62 + 0.3 * who.freckles) * 4)
        where = np.exp(-((face_x / 5.5) ** 2) - ((face_height + 2.2) / 3.0) ** 2)
        _darken(face, (0.25 + 0.45 * who.freckles) * spots * where, (0.6, 1.0, 1.1))
    for at_angle, at_height, radius, dark in who.moles:
        distance = ((angle - at_angle) * CM_PER_DEGREE) ** 2 + (height - at_height) ** 2
        _darken(skin, dark * np.exp(-((distance / radius**2) ** 2)), (0.8, 1.0, 1.0))
    for at_angle, at_height, turn, length in who.scars:
        dx, dy = (angle - at_angle) * CM_PER_DEGREE, height - at_height
        along, off = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        line = smooth((length / 2 - np.abs(along)) / 0.2) * np.exp(-((off / 0.12) ** 2))
        skin += (line * 0.35)[..., None] * (np.array([0.9, 0.62, 0.58], np.float32) - skin)
    strands = 1 + who.hair["streaks"] * (0.5 * _noise(rng, 130, 9) + 0.3 * _noise(rng, 60, 20))
    if who.hair_style in ("curly", "afro", "wavy"):
        strands = 1 + 0.7 * who.hair["streaks"] * (_noise(rng, 60, 50) + 0.5 * _noise(rng, 110, 90))
    if who.plain:
        strands = np.ones_like(angle)
    ragged = 0.35 * _noise(rng, 70, 12)
    scalp = scalp_cover(who, angle, height + (0 if who.plain else 1) * ragged, 0.7)
    if who.hair_style == "buzz":
        scalp *= 0.8
    elif who.hair_style in ("receding", "horseshoe"):
        scalp *= 0.9 + 0.1 * fine
    beard = beard_cover(who, angle, height + ragged, 0.9) * who.beard["density"]
    if who.beard_style == "stubble":
        beard *= 0.45 + 0.15 * fine
    elif who.beard_style in ("short", "moustache", "goatee", "chin", "sideburns"):
        beard *= 0.85 + 0.15 * fine
    brow = brow_cover(who, angle[window], height[window]) * who.brow["density"]
    brow = brow * (1 if who.plain else 1 + 0.25 * _noise(rng, 120, 60)[window])
    front = np.zeros((ROWS, COLUMNS, 4), np.float32)
    front[..., :3] = skin
    front[..., 3][window] = np.clip(brow, 0, 1)
    back = np.zeros((ROWS, COLUMNS, 4), np.float32)
    back[..., 0] = np.clip(scalp, 0, 1)
    back[..., 1] = np.clip(beard, 0, 1)
    back[..., 2][window] = _wrinkles(who, rng)
    back[..., 3] = strands
    return Painting(skin=front, hair=back)


def _darken(skin: np.ndarray, share: np.ndarray, by_channel: tuple[float, float, float]) -> None:
    """Take a share of the light away in place; each channel loses a different part of it."""
    for channel, part in enumerate(by_channel):
        if part:
            skin[..., channel] *= 1 - part * share
