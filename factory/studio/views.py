"""Draw how a person is pictured: pose, light, expression, age, background, camera, hair, glasses.

A view is drawn from one 64-bit seed and does not depend on any person.
"""

from dataclasses import dataclass, replace

import numpy as np

from factory.seeding import generator, seed64
from factory.studio.head import load_head
from factory.studio.people import Person

KINDS = (
    "ordinary", "frontal", "profile", "young", "old", "hard_light", "soft_light",
    "strong_expression", "neutral",
)  # fmt: skip
YOUNGEST, OLDEST = 16.0, 85.0  # years; a view never shows anybody younger or older


@dataclass(frozen=True, eq=False)
class StudioView:
    """Everything that changes from picture to picture of one person.

    Angles are degrees. Positive yaw turns the nose to the right of the picture, positive pitch
    turns it up, and positive roll tilts the head counter-clockwise. Light azimuth is 0 for light
    from the camera and positive for light from the right; elevation is positive for light from
    above. Camera shift and blur are shares of the image edge.
    """

    yaw: float
    pitch: float
    roll: float
    light_azimuth: float
    light_elevation: float
    light: float
    ambient: float
    hardness: float
    warmth: float
    second_azimuth: float
    second_light: float
    exposure: float
    contrast: float
    expression: np.ndarray
    age_offset: float
    background: int
    distance: float
    zoom: float
    shift: tuple[float, float]
    tilt: float
    hair_volume: float
    beard_growth: float
    glasses_draw: float
    blur: float
    noise: float
    occluder: float
    seed: int


def _expression(rng: np.random.Generator, strong: bool) -> np.ndarray:
    """Draw one of a few everyday expressions, varied a little in every muscle, float32 [52]."""
    names = load_head().expression_names
    value = np.zeros(len(names), np.float32)
    row = {name: i for i, name in enumerate(names)}

    def both(stem: str, amount: float) -> None:
        value[row[stem + "Left"]] = amount * rng.uniform(0.8, 1.15)
        value[row[stem + "Right"]] = amount * rng.uniform(0.8, 1.15)

    low, high = (0.65, 1.0) if strong else (0.2, 0.8)
    amount = rng.uniform(low, high)
    moods = ("neutral", "smile", "laugh", "talk", "frown", "surprise", "squint", "pucker")
    shares = np.array([0.0, 0.16, 0.28, 0.1, 0.14, 0.14, 0.1, 0.08]) if strong else np.array(
        [0.34, 0.26, 0.12, 0.1, 0.06, 0.04, 0.05, 0.03])  # fmt: skip
    mood = moods[int(rng.choice(len(moods), p=shares / shares.sum()))]
    for stem in ("browDown", "browOuterUp", "eyeSquint", "mouthSmile", "mouthFrown", "cheekSquint"):
        both(stem, 0.08 * rng.random())
    if mood in ("smile", "laugh"):
        both("mouthSmile", amount)
        both("cheekSquint", 0.5 * amount)
        both("eyeSquint", 0.35 * amount)
        if mood == "laugh":
            value[row["jawOpen"]] = 0.35 * amount
            both("mouthUpperUp", 0.4 * amount)
    elif mood == "talk":
        value[row["jawOpen"]] = 0.4 * amount
        value[row["mouthFunnel"]] = 0.4 * rng.random()
    elif mood == "frown":
        both("browDown", amount)
        both("mouthFrown", 0.7 * amount)
        both("noseSneer", 0.3 * amount)
    elif mood == "surprise":
        both("browOuterUp", amount)
        value[row["browInnerUp"]] = amount
        both("eyeWide", 0.6 * amount)
        value[row["jawOpen"]] = 0.45 * amount
    elif mood == "squint":
        both("eyeSquint", amount)
        both("browDown", 0.5 * amount)
    elif mood == "pucker":
        value[row["mouthPucker"]] = 0.8 * amount
    value[row["mouthLeft"]] = max(0.0, rng.normal(0, 0.08))
    if rng.random() < 0.06:
        both("eyeBlink", rng.uniform(0.4, 0.95))
    side = rng.normal(0, 0.22)
    if side > 0:
        value[row["eyeLookOutLeft"]] = value[row["eyeLookInRight"]] = side
    else:
        value[row["eyeLookInLeft"]] = value[row["eyeLookOutRight"]] = -side
    both("eyeLookDown", max(0.0, rng.normal(0, 0.15)))
    return np.clip(value, 0, 1)


def draw_view(seed: int, plain: bool = False) -> StudioView:
    """Draw a view like those of pictures in the wild, as a pure function of the seed.

    Args:
        seed: 64 bits.
        plain: draw from the narrow range of the poorer variant: near frontal, soft light, a mild
            expression, no ageing, an even background.
    """
    rng = generator(seed64(seed, "studio-view"))
    hard = float(rng.random())
    wide = 38.0 if rng.random() < 0.2 else 17.0
    view = StudioView(
        yaw=float(np.clip(rng.normal(0, wide), -85, 85)),
        pitch=float(np.clip(rng.normal(0, 9), -28, 28)),
        roll=float(rng.normal(0, 7)),
        light_azimuth=float(rng.normal(0, 50)),
        light_elevation=float(np.clip(rng.normal(32, 22), -25, 80)),
        light=float(rng.uniform(0.6, 1.15)),
        ambient=float(0.16 + 0.5 * (1 - hard) * rng.uniform(0.5, 1.0)),
        hardness=hard,
        warmth=float(rng.normal(0, 0.5)),
        second_azimuth=float(rng.uniform(-160, 160)),
        second_light=float(rng.uniform(0, 0.45) if rng.random() < 0.5 else 0.0),
        exposure=float(1.45 * np.exp(rng.normal(0, 0.22))),
        contrast=float(rng.uniform(0.85, 1.15)),
        expression=_expression(rng, strong=False),
        age_offset=float(rng.normal(0, 6)),
        background=int(rng.integers(0, 4)),
        distance=float(np.exp(rng.uniform(np.log(45), np.log(220)))),
        zoom=float(np.exp(rng.normal(0, 0.02))),
        shift=(float(rng.normal(0, 0.010)), float(rng.normal(0, 0.010))),
        tilt=float(rng.normal(0, 1.5)),
        hair_volume=float(rng.uniform(0.7, 1.35)),
        beard_growth=float(rng.uniform(0.5, 1.15)),
        glasses_draw=float(rng.random()),
        blur=float(min(rng.exponential(0.0025), 0.012)),
        noise=float(min(rng.exponential(0.006), 0.025)),
        occluder=float(rng.uniform(0.08, 0.28) if rng.random() < 0.04 else 0.0),
        seed=seed64(seed, "studio-pixels"),
    )
    if not plain:
        return view
    return replace(
        view,
        yaw=float(np.clip(view.yaw, -60, 60) * 0.35),
        pitch=view.pitch * 0.4,
        roll=view.roll * 0.4,
        light_azimuth=view.light_azimuth * 0.35,
        light_elevation=32.0 + (view.light_elevation - 32.0) * 0.3,
        light=0.85,
        ambient=0.5,
        hardness=0.1,
        warmth=0.0,
        second_light=0.0,
        exposure=1.45,
        contrast=1.0,
        expression=view.expression * np.float32(0.5),
        age_offset=0.0,
        background=0,
        hair_volume=1.0,
        beard_growth=1.0,
        glasses_draw=1.0,
        blur=0.0,
        noise=0.002,
        occluder=0.0,
    )


def draw_view_kind(seed: int, kind: str) -> StudioView:
    """Draw a view of one kind, for the benchmarks.

    A kind differs from `ordinary` in what its name says: `frontal` (yaw within 12 degrees),
    `profile` (yaw 55 to 80 degrees either way), `young` and `old` (12 to 20 years before or after
    the person's base age), `hard_light` (one strong lamp from the side or below), `soft_light`,
    `strong_expression`, `neutral`.

    Raises:
        ValueError: `kind` is not one of `KINDS`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
    view = draw_view(seed)
    if kind == "ordinary":
        return view
    rng = generator(seed64(seed, f"studio-kind-{kind}"))
    calm = {"yaw": float(np.clip(view.yaw, -34, 34) * 0.35), "pitch": view.pitch * 0.7}
    if kind == "profile":
        side = 1.0 if rng.random() < 0.5 else -1.0
        return replace(view, yaw=side * float(rng.uniform(55, 80)), pitch=view.pitch * 0.7)
    if kind == "young":
        return replace(view, **calm, age_offset=-float(rng.uniform(12, 20)))
    if kind == "old":
        return replace(view, **calm, age_offset=float(rng.uniform(12, 20)))
    if kind == "hard_light":
        side = 1.0 if rng.random() < 0.5 else -1.0
        return replace(
            view, **calm, light_azimuth=side * float(rng.uniform(45, 100)),
            light_elevation=float(rng.uniform(-25, 60)), ambient=float(rng.uniform(0.06, 0.14)),
            hardness=1.0, light=float(rng.uniform(1.0, 1.4)), second_light=0.0,
        )  # fmt: skip
    if kind == "soft_light":
        return replace(
            view, **calm, light_azimuth=view.light_azimuth * 0.3, light_elevation=30.0,
            ambient=0.6, hardness=0.1, light=0.7,
        )  # fmt: skip
    if kind == "strong_expression":
        return replace(view, **calm, expression=_expression(rng, strong=True))
    if kind == "neutral":
        return replace(view, **calm, expression=view.expression * np.float32(0.1))
    return replace(view, **calm)


def shown_age(person: Person, view: StudioView) -> float:
    """Return the age in years at which the view shows the person, `YOUNGEST` to `OLDEST`."""
    return float(np.clip(person.age + view.age_offset, YOUNGEST, OLDEST))


def wears_glasses(person: Person, view: StudioView) -> bool:
    """Return whether the person wears glasses in this view."""
    return view.glasses_draw < person.glasses_habit


def attributes(person: Person, view: StudioView) -> dict[str, float]:
    """Return what is true of the picture, for sidecars: JSON floats (degrees, years, shares)."""
    names = load_head().expression_names
    at = {name: float(value) for name, value in zip(names, view.expression, strict=True)}
    return {
        "yaw": view.yaw,
        "pitch": view.pitch,
        "roll": view.roll,
        "age": shown_age(person, view),
        "base_age": person.age,
        "gender": person.gender,
        "weight": person.weight,
        "skin_luminance": float(person.skin @ np.array([0.2126, 0.7152, 0.0722])),
        "light_azimuth": view.light_azimuth,
        "light_elevation": view.light_elevation,
        "light": view.light,
        "ambient": view.ambient,
        "hardness": view.hardness,
        "exposure": view.exposure,
        "smile": (at["mouthSmileLeft"] + at["mouthSmileRight"]) / 2,
        "mouth_open": at["jawOpen"],
        "expression_strength": float(np.linalg.norm(view.expression)),
        "glasses": float(wears_glasses(person, view)),
        "blur": view.blur,
        "noise": view.noise,
        "occluder": view.occluder,
    }
