"""Render a person in a view as pixels.

The head is shaped, turned and projected. Its own 3D eyes, nose and mouth corners place it on the
ArcFace template. It is rasterized at up to twice the wanted size and shaded per pixel: painted
skin, hemispheric ambient light, two lamps with soft terminators, gloss, and cavities and cast
shadows found in the depth picture.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from factory.seeding import generator
from factory.studio.hair import Mesh, beard_displacement, glasses, hair_displacement, long_hair
from factory.studio.head import (
    EYE,
    FRAME,
    HAIR,
    LASH,
    MOUTH,
    TEETH,
    load_head,
    phenotype_coefficients,
    shape_vertices,
    vertex_normals,
)
from factory.studio.paint import paint, smooth, texture_position, to_linear
from factory.studio.people import Person, person
from factory.studio.raster import rasterize
from factory.studio.views import StudioView, shown_age, wears_glasses

# The five ArcFace points (left eye, right eye, nose, left and right mouth corner as seen in the
# picture) for a 112-pixel crop, as insightface publishes them (docs/papers.md 0.1).
TEMPLATE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366],
     [41.5493, 92.3655], [70.7299, 92.2041]], np.float32,
)  # fmt: skip
PIVOT = np.array([0.0, -3.0, -8.0], np.float32)
SMALLEST, LARGEST = 16, 512


@dataclass(frozen=True, eq=False)
class Body:
    """The geometry of one person that does not change with the view."""

    neutral: np.ndarray
    hair: np.ndarray
    beard: np.ndarray
    curtain: Mesh | None
    glasses: Mesh


@lru_cache(128)
def _body(split: str, index: int, plain: bool) -> Body:
    who, head = person(split, index, plain), load_head()
    coefficients = phenotype_coefficients(who.gender, who.age, who.weight, who.ancestry)
    neutral = shape_vertices(coefficients, _aged_local(who, who.age))
    normals = vertex_normals(neutral, head.faces[head.face_region == 0])
    hair = hair_displacement(who, normals)
    return Body(
        neutral=neutral,
        hair=hair,
        beard=beard_displacement(who, normals),
        curtain=long_hair(who, neutral + hair),
        glasses=glasses(who, neutral),
    )


def _aged_local(who: Person, age: float) -> np.ndarray:
    local = who.local.copy()
    local[load_head().local_names.index("head-age-incr")] = np.clip((age - 45.0) / 45.0, -0.3, 0.9)
    return local


def _expressive(who: Person, view: StudioView) -> np.ndarray:
    """Return the head's vertices [V, 3] with the view's age, expression, hair and beard."""
    head, body = load_head(), _body(*who.key)
    vertices = body.neutral + view.hair_volume * body.hair + view.beard_growth * body.beard
    age = shown_age(who, view)
    if age != who.age:
        change = phenotype_coefficients(who.gender, age, who.weight, who.ancestry)
        change = change - phenotype_coefficients(who.gender, who.age, who.weight, who.ancestry)
        flat = change @ head.components.reshape(len(change), -1)
        row = head.local_names.index("head-age-incr")
        for amount, sign in ((_aged_local(who, age)[row], 1), (_aged_local(who, who.age)[row], -1)):
            end = head.local[2 * row if amount >= 0 else 2 * row + 1].ravel()
            flat += sign * abs(amount) * end
        vertices += flat.reshape(-1, 3)
    weight = np.clip(view.expression + who.resting, 0, 1)
    used = np.flatnonzero(weight > 1e-3)
    moved = weight[used] @ head.expressions[used].reshape(len(used), -1)
    return vertices + moved.reshape(-1, 3)


def _rotation(view: StudioView) -> np.ndarray:
    yaw, pitch, roll = np.radians([view.yaw, view.pitch, view.roll])
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    nod = np.array(
        [[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]]
    )
    lean = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return (lean @ nod @ turn).astype(np.float32)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the least-squares rotation, scale and shift from source to target points.

    Args:
        source: float64 [n, 2], x and y in pixels.
        target: float64 [n, 2], x and y in pixels.

    Returns:
        float64 [2, 3], without reflection (Umeyama 1991).
    """
    s, t = source - source.mean(0), target - target.mean(0)
    norm = (s**2).sum()
    a = (s * t).sum() / norm
    b = (s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum() / norm
    linear = np.array([[a, -b], [b, a]])
    return np.column_stack([linear, target.mean(0) - linear @ source.mean(0)])


@dataclass(frozen=True, eq=False)
class Placed:
    """A head in front of the camera: camera coordinates in cm and picture coordinates."""

    camera: np.ndarray
    points: np.ndarray
    landmarks: np.ndarray
    pixels_per_cm: float
    tilt: float


def _place(
    vertices: np.ndarray, worn: np.ndarray, who: Person, view: StudioView, size: float
) -> Placed:
    """Turn, project and align head vertices and worn geometry for a picture of `size` pixels."""
    head = load_head()
    everything = np.concatenate([vertices, worn]) if len(worn) else vertices
    camera = (everything - PIVOT) @ _rotation(view).T
    away = view.distance - camera[:, 2]
    # y points down in the picture.
    flat = camera[:, :2] / away[:, None] * np.array([view.distance, -view.distance], np.float32)
    marks = np.stack([flat[rows].mean(0) for rows in head.landmark_rows])
    target = TEMPLATE_112 * (size / 112.0)
    fit = similarity(marks.astype(np.float64), target.astype(np.float64))
    tilt = np.radians(view.tilt)
    jitter = view.zoom * np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    middle = np.full(2, size / 2)
    linear = jitter @ fit[:, :2]
    offset = jitter @ (fit[:, 2] - middle) + middle + size * np.asarray(view.shift)
    points = (flat @ linear.T + offset).astype(np.float32)
    scale = float(np.hypot(linear[0, 0], linear[1, 0]))
    angle = float(np.arctan2(linear[1, 0], linear[0, 0]))
    mark_points = (marks @ linear.T + offset).astype(np.float32)
    return Placed(camera, points, mark_points, scale, angle)


def landmarks(person: Person, view: StudioView, size: int) -> np.ndarray:
    """Return where the five ArcFace points are in `render(person, view, size)`.

    Returns:
        float32 [5, 2], pixels (x right, y down): the eye on the left of the picture, the eye on
        its right, the nose tip, the left and the right corner of the mouth.
    """
    _check_size(size)
    none = np.zeros((0, 3), np.float32)
    return _place(_expressive(person, view), none, person, view, size).landmarks


def _check_size(size: int) -> None:
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"size is {size}; choose {SMALLEST} to {LARGEST} pixels")


def render(person: Person, view: StudioView, size: int) -> np.ndarray:
    """Render a person, aligned on the ArcFace template. The same arguments give the same bytes.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        ValueError: `size` is not within 16 to 512.
    """
    _check_size(size)
    big = 2 * size if size <= 80 else (3 * size) // 2
    head, body = load_head(), _body(*person.key)
    vertices = _expressive(person, view)
    worn = [body.curtain] if body.curtain is not None else []
    if wears_glasses(person, view):
        worn.append(body.glasses)
    extra = np.concatenate([m.vertices for m in worn]) if worn else np.zeros((0, 3), np.float32)
    placed = _place(vertices, extra, person, view, big)
    faces, region, around = [head.faces], [head.face_region], [head.around]
    start = len(vertices)
    for mesh in worn:
        faces.append(mesh.faces + start)
        region.append(mesh.region)
        around.append(mesh.around)
        start += len(mesh.vertices)
    all_faces, all_regions = np.concatenate(faces), np.concatenate(region)
    depth = view.distance - placed.camera[:, 2]
    pixel, face, weights = rasterize(placed.points, depth, all_faces, all_regions >= LASH, big)
    normals = vertex_normals(placed.camera, all_faces)
    count = len(placed.camera)
    vertex = np.zeros((count, 11), np.float32)
    vertex[:, 0:3] = normals
    vertex[:, 3] = placed.camera[:, 2] * placed.pixels_per_cm
    vertex[:, 4:6] = texture_position(np.concatenate(around))
    vertex[: len(vertices), 6] = head.lips
    vertex[: len(vertices), 7] = head.ears
    vertex[: len(vertices), 8:10] = head.eye_uv
    vertex[: len(vertices), 10] = head.lids
    seen = np.einsum("pk,pkc->pc", weights, vertex[all_faces[face]])
    linear = _background(view, big)
    surface = _surface(person, view, seen, all_regions[face])
    lit = _light(person, view, placed, surface, seen, pixel, all_regions[face], big)
    linear.reshape(-1, 3)[pixel] = lit
    if person.glasses["tint"] > 0 and wears_glasses(person, view):
        _tint_lenses(linear, person, placed, big)
    if view.occluder > 0:
        _occlude(linear, view)
    return _develop(linear, view, size)


@dataclass(frozen=True, eq=False)
class Surface:
    """What each covered pixel shows: linear albedo [P, 3], gloss [P] and hairiness [P]."""

    albedo: np.ndarray
    gloss: np.ndarray
    hairy: np.ndarray


def _sample(picture: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Sample a painting bilinearly at (column, row) positions [P, 2]; return [P, 4]."""
    count, width = len(position), 512  # cv2.remap takes no row longer than 32767
    padded = np.zeros((-(-count // width) * width, 2), np.float32)
    padded[:count] = position
    grid = padded.reshape(-1, width, 2)
    border = cv2.BORDER_REPLICATE
    taken = cv2.remap(picture, grid, None, cv2.INTER_LINEAR, borderMode=border)  # pyright: ignore
    return taken.reshape(-1, 4)[:count]


def _surface(who: Person, view: StudioView, seen: np.ndarray, region: np.ndarray) -> Surface:
    painting = paint(*who.key)
    front = _sample(painting.skin, seen[:, 4:6])
    back = _sample(painting.hair, seen[:, 4:6])
    age = shown_age(who, view)
    skin = front[:, :3]
    furrow = back[:, 2] * np.clip((age - 24.0) / 45.0, 0.03, 1.0)
    skin = skin * (1 - np.clip(0.55 * furrow, 0, 0.75))[:, None]
    ears = seen[:, 7:8]
    skin = skin * (1 - ears * np.array([0.02, 0.16, 0.14], np.float32))
    lips = smooth((seen[:, 6] - 0.25) / 0.5)[:, None]
    skin = skin + lips * (to_linear(who.lip_colour) - skin)
    lid = seen[:, 10:11] * np.float32(0.10 + 0.30 * who.lashes)
    skin = skin * (1 - lid)
    grey = float(np.clip((age - who.hair["grey_age"]) / 26.0, 0, 0.9)) if not who.plain else 0.0
    strand = back[:, 3:4]
    silver = np.array([0.55, 0.55, 0.56], np.float32)
    hair = to_linear(who.hair_colour) * (1 - grey) + grey * silver
    hair = hair * np.clip(strand, 0.3, 1.9) + np.float32(0.004)
    brow_colour = to_linear(who.hair_colour * who.brow["dark"]) * (1 - 0.6 * grey) + (
        0.6 * grey * silver
    )
    beard_colour = to_linear(who.hair_colour * who.beard["tint"]) * (1 - grey) + grey * silver
    scalp = back[:, 0:1]
    beard = back[:, 1:2] * (1 - lips) * np.float32(np.clip(view.beard_growth, 0, 1))
    beard = beard * (1 - ears)
    scalp = scalp * (1 - smooth(ears * 3 - 0.5))
    brow = 0.92 * front[:, 3:4] * (1 - lips)
    albedo = skin + brow * (brow_colour - skin)
    albedo = albedo + beard * (beard_colour * np.clip(strand, 0.6, 1.4) - albedo)
    albedo = albedo + scalp * (hair - albedo)
    hairy = np.clip(scalp + beard, 0, 1)[:, 0]
    gloss = np.where(lips[:, 0] > 0.5, 0.5, 0.22 * who.oiliness) * (1 - hairy) + 0.10 * hairy

    eye = np.flatnonzero(region == EYE)
    radius = np.sqrt((seen[eye, 8:10] ** 2).sum(1))
    white = np.array([0.80, 0.76, 0.73], np.float32) * np.float32(0.85)
    iris = to_linear(who.iris) * (0.75 + 0.7 * smooth(radius / 0.45))[:, None]
    ring = smooth((0.50 - radius) / 0.06)[:, None]
    limbus = 1 - 0.55 * np.exp(-(((radius - 0.46) / 0.06) ** 2))[:, None]
    ball = (white + ring * (iris - white)) * limbus
    ball = ball * (1 - smooth((0.21 - radius) / 0.06)[:, None] * 0.97)
    albedo[eye] = ball
    gloss[eye] = 1.6
    for part, colour, shine in (
        (MOUTH, np.array([0.16, 0.04, 0.04], np.float32), 0.2),
        (TEETH, to_linear(np.array([1.0, 0.97, 0.90]) * who.teeth), 0.5),
        (LASH, np.array([0.02, 0.015, 0.015], np.float32), 0.0),
        (FRAME, to_linear(np.array([who.glasses[c] for c in ("red", "green", "blue")])), 0.15),
    ):
        rows = region == part
        albedo[rows] = colour
        gloss[rows] = shine
        hairy[rows] = 0.0
    curtain = region == HAIR
    albedo[curtain] = hair[curtain]
    gloss[curtain], hairy[curtain] = 0.10, 1.0
    lash = region == LASH
    albedo[lash] = skin[lash] * (1 - who.lashes) * 0.6 + albedo[lash] * who.lashes
    return Surface(albedo.astype(np.float32), gloss.astype(np.float32), hairy.astype(np.float32))


def _direction(azimuth: float, elevation: float) -> np.ndarray:
    a, e = np.radians([azimuth, elevation])
    return np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)], np.float32)


def _light(
    who: Person, view: StudioView, placed: Placed, surface: Surface, seen: np.ndarray,
    pixel: np.ndarray, region: np.ndarray, big: int,
) -> np.ndarray:  # fmt: skip
    """Return the linear RGB light [P, 3] that leaves each covered pixel."""
    normal = seen[:, :3]
    normal = normal / (np.sqrt((normal**2).sum(1, keepdims=True)) + 1e-6)
    flip = (normal[:, 2] < 0) & (region >= LASH)
    normal[flip] *= -1
    height = np.full(big * big, -1e4, np.float32)
    height[pixel] = seen[:, 3]
    height = height.reshape(big, big)
    key = _direction(view.light_azimuth, view.light_elevation)
    shadow = _cast_shadow(height, key, placed.tilt, view, big).ravel()[pixel]
    cavity = _cavity(height, big).ravel()[pixel]
    warm = np.array([1 + 0.16 * view.warmth, 1.0, 1 - 0.2 * view.warmth], np.float32)
    cool = np.array([1 - 0.08 * view.warmth, 1.0, 1 + 0.10 * view.warmth], np.float32)
    wrap = np.array([0.32, 0.20, 0.14], np.float32) * (1.2 - 0.8 * np.float32(view.hardness))
    facing = normal @ key
    diffuse = np.clip((facing[:, None] + wrap) / (1 + wrap), 0, None) ** 1.15
    lit = (view.light * diffuse * (1 - shadow)[:, None]) * warm
    sky = 0.72 + 0.28 * normal[:, 1]
    lit += (view.ambient * sky * cavity)[:, None] * cool
    half = key + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half) + 1e-6
    sheen = np.clip(normal @ half, 0, 1)
    power = np.where(region == EYE, 60.0, np.where(surface.hairy > 0.5, 8.0, 14.0))
    gloss = surface.gloss * (sheen**power) * (1 - shadow) * view.light * (facing > -0.1)
    if view.second_light > 0:
        rim = normal @ _direction(view.second_azimuth, 20.0)
        lit += (view.second_light * np.clip(rim, 0, None))[:, None] * cool
    edge = (1 - np.clip(normal[:, 2], 0, 1)) ** 3
    lit *= (1 - 0.25 * edge)[:, None]
    return (surface.albedo * lit + gloss[:, None] * warm * 0.5).astype(np.float32)


def _cast_shadow(
    height: np.ndarray, key: np.ndarray, tilt: float, view: StudioView, big: int
) -> np.ndarray:
    """Return the share of the key light that is blocked at each pixel [big, big].

    The depth picture is marched towards the light.
    """
    flat = float(np.hypot(key[0], key[1]))
    if flat < 0.12 or key[2] < -0.5:
        return np.zeros_like(height)
    # The picture is turned by the alignment; the light is not.
    right, down = key[0] / flat, -key[1] / flat
    step_x = np.cos(tilt) * right - np.sin(tilt) * down
    step_y = np.sin(tilt) * right + np.cos(tilt) * down
    rise = key[2] / flat
    blocked = np.zeros_like(height)
    for share in (0.02, 0.035, 0.055, 0.08, 0.11, 0.15, 0.2, 0.27):
        reach = share * big
        move = np.array([[1, 0, -step_x * reach], [0, 1, -step_y * reach]], np.float32)
        there = cv2.warpAffine(height, move, (big, big), flags=cv2.INTER_NEAREST, borderValue=-1e4)
        above = there - height - rise * reach
        blocked = np.maximum(blocked, np.clip((above - 0.012 * big) / (0.02 * big), 0, 1))
    softness = (0.012 + 0.03 * (1 - view.hardness)) * big
    return cv2.GaussianBlur(blocked, (0, 0), softness) * (0.45 + 0.5 * view.hardness)


def _cavity(height: np.ndarray, big: int) -> np.ndarray:
    """Return how open each pixel is to the sky, 0.35 to 1, from its depth in its surroundings."""
    covered = (height > -9e3).astype(np.float32)
    sigma = 0.035 * big
    around = cv2.GaussianBlur(np.where(covered > 0, height, 0).astype(np.float32), (0, 0), sigma)
    share = cv2.GaussianBlur(covered, (0, 0), sigma)
    depth = around / np.maximum(share, 1e-3) - height
    return 1 - np.clip(depth / (0.06 * big), 0, 0.65)


def _background(view: StudioView, big: int) -> np.ndarray:
    """Make the linear RGB [big, big, 3] behind the head: even, shaded, or out of focus."""
    rng = generator(view.seed)
    base = to_linear(np.clip(rng.uniform(0.1, 0.9) + rng.normal(0, 0.08, 3), 0.02, 0.98))
    if view.background == 0:
        return np.broadcast_to(base, (big, big, 3)).astype(np.float32).copy()
    other = to_linear(np.clip(rng.uniform(0.1, 0.9) + rng.normal(0, 0.1, 3), 0.02, 0.98))
    cells = (0, 2, 4, 8)[view.background]
    mix = rng.random((cells, cells)).astype(np.float32)
    mix = cv2.resize(mix, (big, big), interpolation=cv2.INTER_CUBIC)[..., None].clip(0, 1)
    return (base + mix * (other - base)).astype(np.float32)


def _tint_lenses(linear: np.ndarray, who: Person, placed: Placed, big: int) -> None:
    scale = placed.pixels_per_cm
    mask = np.zeros((big, big), np.float32)
    for mark in placed.landmarks[:2]:
        axes = (int(who.glasses["width"] * scale * 0.95), int(who.glasses["height"] * scale * 0.95))
        centre = (int(mark[0]), int(mark[1] + who.glasses["drop"] * scale))
        cv2.ellipse(mask, centre, axes, np.degrees(placed.tilt), 0, 360, 1.0, -1)
    linear *= (1 - who.glasses["tint"] * mask)[..., None]


def _occlude(linear: np.ndarray, view: StudioView) -> None:
    """Cover a share of the picture, from one edge, with something out of focus."""
    rng = generator(view.seed + 1 & (2**64 - 1))
    big = len(linear)
    y, x = np.mgrid[0:big, 0:big] / big - 0.5
    turn = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(turn) + y * np.sin(turn) + 0.08 * np.sin(9 * (x - y) + turn)
    share = smooth((along - (0.56 - view.occluder)) / 0.05)[..., None]
    colour = to_linear(rng.uniform(0.1, 0.8, 3))
    linear += share.astype(np.float32) * (colour - linear)


def _develop(linear: np.ndarray, view: StudioView, size: int) -> np.ndarray:
    """Develop linear light to 8 bits: exposure, tone curve, final size, blur, sensor noise."""
    exposed = np.maximum(linear, 0) * np.float32(view.exposure)
    # A soft shoulder keeps highlights from clipping.
    exposed = exposed * (1 + exposed / 4.0) / (1 + exposed * 0.9)
    picture = np.power(exposed, np.float32(1 / 2.2))
    picture = (picture - 0.5) * np.float32(view.contrast) + 0.5
    picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    sigma = view.blur * size
    if sigma > 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    rng = generator(view.seed ^ 0x5EED)
    if view.noise > 0:
        picture = picture + rng.normal(0, view.noise, picture.shape).astype(np.float32)
    return np.clip(picture * 255.0 + 0.5, 0, 255).astype(np.uint8)
