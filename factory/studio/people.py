"""Draw the people of the studio; an identity is a pure function of its position.

The most visible dimensions of an identity (`PACKED`) come from a Kronecker sequence, so that the
people of a set fill the space evenly instead of crowding in its middle: coordinate j of person i
is frac(shift_j + (i + 1) sqrt(p_j)). p_j is the j-th prime, and the shift is drawn per split.
Hence the sets are disjoint and each is unbounded. All other properties are Philox draws keyed by
the position. The left and the right side are drawn separately, so that faces are asymmetric.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from factory.recipe import SPLITS
from factory.seeding import generator, seed64
from factory.studio.head import load_head

WORLD_SEED = 20260  # the root seed of the studio; another value is another world
PRIMES = (
    2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97,
    101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151,
)  # fmt: skip
PACKED = (
    "gender", "age", "ancestry_a", "ancestry_b", "weight", "tone", "head_width", "head_shape",
    "jaw", "chin_height", "chin_out", "nose_width", "nose_length", "nose_bridge", "nose_tip",
    "nose_bulk", "eye_size", "eye_gap", "eye_slant", "eye_open", "mouth_width", "lips",
    "mouth_height", "cheekbones", "brow_height", "forehead", "hair_style", "hair_colour",
    "brow_weight", "brow_shape", "beard", "iris",
)  # fmt: skip

# Packed dimension -> (local change, value at the dimension's far end). `l-` means both sides.
SHAPES: dict[str, tuple[tuple[str, float], ...]] = {
    "head_width": (("head-scale-horiz-incr", 0.75), ("forehead-temple-incr", 0.3)),
    "jaw": (("chin-bones-incr", 1.0), ("chin-width-incr", 1.0)),
    "chin_height": (("chin-height-incr", 0.9), ("chin-jaw-drop-incr", 0.4)),
    "chin_out": (("chin-prominent-incr", 0.9), ("chin-prognathism-incr", 0.35)),
    "nose_width": (
        ("nose-scale-horiz-incr", 0.8), ("nose-width3-incr", 0.55), ("nose-flaring-incr", 0.4),
    ),
    "nose_length": (("nose-scale-vert-incr", 0.9), ("nose-trans-up", -0.25)),
    "nose_bridge": (
        ("nose-hump-incr", 0.9), ("nose-greek-incr", 0.4), ("nose-curve-convex", 0.5),
    ),
    "nose_tip": (("nose-point-up", 0.9), ("nose-base-up", 0.5), ("nose-septumangle-incr", 0.4)),
    "nose_bulk": (
        ("nose-volume-incr", 0.6), ("nose-point-width-incr", 0.8), ("nose-width2-incr", 0.5),
    ),
    "eye_size": (("l-eye-scale-incr", 0.9),),
    "eye_gap": (("l-eye-trans-out", 0.9),),
    "eye_slant": (("l-eye-corner2-up", 0.9), ("l-eye-corner1-up", -0.5)),
    "eye_open": (
        ("l-eye-height2-incr", 0.7), ("l-eye-height1-incr", 0.4), ("l-eye-height3-incr", 0.4),
    ),
    "mouth_width": (("mouth-scale-horiz-incr", 0.95),),
    "lips": (
        ("mouth-upperlip-volume-incr", 0.8), ("mouth-lowerlip-volume-incr", 0.8),
        ("mouth-upperlip-height-incr", 0.7), ("mouth-lowerlip-height-incr", 0.7),
    ),
    "mouth_height": (("mouth-trans-up", 0.8),),
    "cheekbones": (("l-cheek-bones-incr", 1.0), ("l-cheek-inner-incr", 0.5)),
    "brow_height": (("eyebrows-trans-up", 0.8), ("eyebrows-angle-up", 0.5)),
    "forehead": (("forehead-scale-vert-incr", 0.8), ("forehead-trans-forward", 0.4)),
}  # fmt: skip
HEAD_SHAPES = ("oval", "rectangular", "round", "square", "triangular", "invertedtriangular",
               "diamond")  # fmt: skip
MINOR_LIMIT = 0.55  # half-width of the uniform draw of every local change not named above
SIDE_LIMIT = 0.22  # half-width of the further difference between left and right

MALE_STYLES = (
    "bald", "buzz", "short", "crop", "sidepart", "quiff", "fringe", "receding", "horseshoe",
    "curly", "short", "afro", "long", "buzz", "curtains", "sidepart",
)  # fmt: skip
FEMALE_STYLES = (
    "tied", "bob", "long", "wavy", "fringe", "curtains", "long", "bob", "curly", "sidepart",
    "wavy", "afro", "tied", "crop", "long", "bob",
)  # fmt: skip
HAIR_COLOURS = np.array([
    [0.045, 0.035, 0.032], [0.10, 0.065, 0.045], [0.19, 0.115, 0.07], [0.30, 0.19, 0.11],
    [0.46, 0.32, 0.18], [0.66, 0.52, 0.32], [0.82, 0.72, 0.52], [0.50, 0.20, 0.08],
    [0.36, 0.11, 0.06], [0.62, 0.32, 0.14], [0.55, 0.53, 0.51], [0.82, 0.80, 0.77],
])  # fmt: skip
IRIS_COLOURS = np.array([
    [0.14, 0.08, 0.05], [0.26, 0.15, 0.08], [0.40, 0.26, 0.12], [0.42, 0.38, 0.18],
    [0.30, 0.42, 0.24], [0.36, 0.50, 0.52], [0.28, 0.46, 0.66], [0.50, 0.62, 0.72],
    [0.45, 0.48, 0.50],
])  # fmt: skip
SKIN_TONES = np.array([
    [0.96, 0.79, 0.70], [0.92, 0.71, 0.59], [0.86, 0.62, 0.48], [0.76, 0.52, 0.37],
    [0.63, 0.40, 0.27], [0.47, 0.29, 0.19], [0.33, 0.20, 0.14], [0.23, 0.14, 0.105],
])  # fmt: skip


@dataclass(frozen=True, eq=False)
class Person:
    """One identity: everything that stays with a person from picture to picture.

    Colours are sRGB in [0, 1], lengths are centimetres, ages are years, `local` is in [-1, 1].
    """

    split: str
    index: int
    plain: bool
    gender: float
    age: float
    weight: float
    ancestry: np.ndarray
    local: np.ndarray
    resting: np.ndarray
    skin: np.ndarray
    blotches: float
    freckles: float
    moles: np.ndarray
    scars: np.ndarray
    wrinkles: float
    dark_circles: float
    oiliness: float
    lip_colour: np.ndarray
    iris: np.ndarray
    teeth: float
    lashes: float
    brow: dict[str, float]
    hair_style: str
    hair_colour: np.ndarray
    hair: dict[str, float]
    beard_style: str
    beard: dict[str, float]
    glasses_habit: float
    glasses: dict[str, float]
    texture_seed: int

    @property
    def key(self) -> tuple[str, int, bool]:
        """The position of the person: split, index and plain make the person again."""
        return self.split, self.index, self.plain


@lru_cache(len(SPLITS))
def _shift(split: str) -> np.ndarray:
    rng = generator(seed64(WORLD_SEED, f"studio-shift-{split}"))
    return rng.random(len(PACKED))


def packed_position(split: str, index: int) -> dict[str, float]:
    """Return the evenly spread coordinates of a person, each in [0, 1)."""
    root = np.sqrt(np.array(PRIMES[: len(PACKED)], np.float64))
    value = np.mod(_shift(split) + (index + 1) * np.mod(root, 1.0), 1.0)
    return dict(zip(PACKED, value.tolist(), strict=True))


def _spread(u: float) -> float:
    """Map [0, 1) to (-1, 1) and push values away from the middle, since few people are average."""
    x = 2.0 * u - 1.0
    return float(np.sign(x) * abs(x) ** 0.75)


def _local_changes(at: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    names = load_head().local_names
    row = {name: i for i, name in enumerate(names)}
    value = np.zeros(len(names), np.float32)
    for name in names:
        if name.startswith("head-") and name.split("-")[1] in HEAD_SHAPES:
            continue
        if name.startswith("r-"):
            continue
        limit = 0.35 if name.startswith(("neck", "head-age")) else MINOR_LIMIT
        if name.startswith("head-age"):
            continue
        value[row[name]] = rng.uniform(-limit, limit)
    for dimension, changes in SHAPES.items():
        amount = _spread(at[dimension])
        for name, far in changes:
            value[row[name]] = 0.3 * value[row[name]] + amount * far
    for name in names:  # both sides share the draw above and differ by a second one
        if name.startswith("l-"):
            other = row["r-" + name[2:]]
            both = value[row[name]]
            value[row[name]] = both + rng.uniform(-SIDE_LIMIT, SIDE_LIMIT)
            value[other] = both + rng.uniform(-SIDE_LIMIT, SIDE_LIMIT)
    shape = at["head_shape"] * len(HEAD_SHAPES)
    first, share = int(shape), shape - int(shape)
    strength = rng.uniform(0.3, 0.75)
    value[row["head-" + HEAD_SHAPES[first]]] = strength * (1 - 0.5 * share)
    value[row["head-" + HEAD_SHAPES[(first + 1) % len(HEAD_SHAPES)]]] = strength * 0.5 * share
    return np.clip(value, -1.0, 1.0)


def _pick(table: np.ndarray, u: float, rng: np.random.Generator, jitter: float) -> np.ndarray:
    position = u * (len(table) - 1)
    low = int(position)
    colour = table[low] + (position - low) * (table[min(low + 1, len(table) - 1)] - table[low])
    return np.clip(colour * np.exp(rng.normal(0, jitter, 3)), 0.01, 1.0)


def _ancestry(a: float, b: float) -> np.ndarray:
    """Turn two uniform numbers into three shares; most people are near one corner."""
    corner = int(a * 3) % 3
    mix = 0.45 * b**2
    share = np.full(3, mix / 2)
    share[corner] = 1.0 - mix
    return share


@lru_cache(4096)
def person(split: str, index: int, plain: bool = False) -> Person:
    """Return the person at a position of the studio's population, always the same one.

    Args:
        split: one of `SPLITS`; people of different splits are never the same.
        index: 0 or more, without upper bound.
        plain: draw the poorer variant: no skin detail, three plain haircuts, no beard, no glasses.

    Raises:
        ValueError: `split` is not one of `SPLITS`, or `index` is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"index is {index}; it must be 0 or more")
    at = packed_position(split, index)
    rng = generator(seed64(WORLD_SEED, f"studio-person-{split}", index))
    male = at["gender"] < 0.5
    gender = 0.5 + (0.5 - 0.32 * rng.random()) * (1 if male else -1)
    age = 18.0 + 54.0 * at["age"]
    ancestry = _ancestry(at["ancestry_a"], at["ancestry_b"])
    local = _local_changes(at, rng)
    base_tone = ancestry @ np.array([0.74, 0.30, 0.20])
    tone = float(np.clip(base_tone + 0.5 * (at["tone"] - 0.5), 0.0, 1.0))
    skin = _pick(SKIN_TONES, tone, rng, 0.022)
    dark_haired = ancestry[0] + ancestry[1] > 0.6
    # Dark hair is the rule for two ancestries; dyed or grey hair stays possible for everybody.
    hair_u = at["hair_colour"] * (0.2 if dark_haired and at["hair_colour"] < 0.75 else 1.0)
    hair_colour = _pick(HAIR_COLOURS, hair_u, rng, 0.08)
    iris_u = at["iris"] * (0.3 if dark_haired and rng.random() < 0.8 else 1.0)
    styles = MALE_STYLES if male else FEMALE_STYLES
    hair_style = styles[int(at["hair_style"] * len(styles))]
    if hair_style == "afro" and ancestry[0] < 0.5:
        hair_style = "curly"
    beard_style = "none"
    if male:
        beards = ("none", "none", "stubble", "stubble", "moustache", "goatee", "chin", "short",
                  "full", "sideburns", "none", "short")  # fmt: skip
        beard_style = beards[int(at["beard"] * len(beards))]
    mole_count = int(rng.choice([0, 1, 2, 3, 5, 8], p=[0.25, 0.2, 0.2, 0.15, 0.12, 0.08]))
    moles = np.stack([
        rng.uniform(-58, 58, mole_count), rng.uniform(-10, 6, mole_count),
        rng.uniform(0.10, 0.28, mole_count), rng.uniform(0.35, 0.8, mole_count),
    ], 1)  # fmt: skip
    scar_count = int(rng.random() < 0.15)
    scars = np.stack([
        rng.uniform(-50, 50, scar_count), rng.uniform(-9, 6, scar_count),
        rng.uniform(0, np.pi, scar_count), rng.uniform(0.8, 2.2, scar_count),
    ], 1)  # fmt: skip
    resting = np.zeros(len(load_head().expression_names), np.float32)
    for name in ("mouthSmile", "mouthFrown", "browOuterUp", "browDown", "eyeSquint", "mouthPress"):
        strength = 0.16 * rng.random()
        for side in ("Left", "Right"):
            i = load_head().expression_names.index(name + side)
            resting[i] = strength * rng.uniform(0.6, 1.4)
    lip_tint = np.array([0.80, 0.42, 0.42]) if rng.random() < 0.75 else np.array([0.62, 0.2, 0.25])
    made_up = (not male) and rng.random() < 0.45
    lip_share = rng.uniform(0.45, 0.8) if made_up else rng.uniform(0.1, 0.4)
    lip_colour = (1 - lip_share) * skin * np.array([0.86, 0.64, 0.62]) + lip_share * lip_tint * (
        0.35 + 0.65 * skin.mean()
    )
    result = Person(
        split=split,
        index=index,
        plain=plain,
        gender=float(gender),
        age=float(age),
        weight=float(0.05 + 0.9 * at["weight"]),
        ancestry=ancestry,
        local=local,
        resting=resting,
        skin=skin,
        blotches=float(rng.uniform(0.02, 0.12)),
        freckles=float(rng.random() ** 2 if rng.random() < 0.35 and tone < 0.55 else 0.0),
        moles=moles,
        scars=scars,
        wrinkles=float(rng.uniform(0.5, 1.3)),
        dark_circles=float(rng.uniform(0.0, 0.4)),
        oiliness=float(rng.uniform(0.1, 1.0)),
        lip_colour=np.clip(lip_colour, 0.02, 1.0),
        iris=_pick(IRIS_COLOURS, iris_u, rng, 0.06),
        teeth=float(rng.uniform(0.62, 0.95)),
        lashes=float(rng.uniform(0.55, 1.0) if made_up else rng.uniform(0.1, 0.6)),
        brow={
            "weight": 0.2 + 0.8 * at["brow_weight"],
            "arch": _spread(at["brow_shape"]),
            "tilt": float(rng.uniform(-1, 1)),
            "height": float(rng.uniform(-0.35, 0.45)),
            "inner": float(rng.uniform(0.7, 1.9)),
            "outer": float(rng.uniform(4.4, 5.8)),
            "density": float(rng.uniform(0.45, 1.0)),
            "dark": float(rng.uniform(0.45, 1.05)),
            "side": float(rng.uniform(-0.2, 0.2)),
            "monobrow": float(rng.uniform(0.3, 0.8) if rng.random() < 0.07 else 0.0),
        },
        hair_style=hair_style,
        hair_colour=hair_colour,
        hair={
            "hairline": float(rng.uniform(-1.1, 1.2)),
            "peak": float(rng.uniform(-0.5, 0.9)),
            "recession": float(rng.uniform(0, 1) * (1.0 if male else 0.3)),
            "volume": float(rng.uniform(0.6, 1.5)),
            "length": float(rng.uniform(0.0, 1.0)),
            "part": float(rng.uniform(-1, 1)),
            "sideburn": float(rng.uniform(-3.5, 0.5) if male else rng.uniform(-1.0, 0.5)),
            "frame": float(rng.uniform(52, 84)),
            "grey_age": float(rng.uniform(42, 80)),
            "streaks": float(rng.uniform(0.15, 0.6)),
            "curl": float(rng.random()),
        },
        beard_style=beard_style,
        beard={
            "density": float(rng.uniform(0.55, 1.0)),
            "length": float(rng.uniform(0.15, 1.0)),
            "edge": float(rng.uniform(-1.2, 0.8)),
            "tint": float(rng.uniform(0.7, 1.2)),
        },
        glasses_habit=float(rng.choice([0.0, 0.1, 0.5, 0.9], p=[0.52, 0.2, 0.1, 0.18])),
        glasses={
            "width": float(rng.uniform(2.3, 3.2)),
            "height": float(rng.uniform(1.5, 2.6)),
            "square": float(rng.uniform(2.0, 6.0)),
            "rim": float(rng.choice([0.10, 0.18, 0.3, 0.42])),
            "drop": float(rng.uniform(-0.3, 0.6)),
            "red": float(rng.uniform(0.02, 0.5) ** 1.5),
            "green": float(rng.uniform(0.02, 0.4) ** 1.5),
            "blue": float(rng.uniform(0.02, 0.5) ** 1.5),
            "tint": float(rng.choice([0.0, 0.0, 0.0, 0.12, 0.3])),
        },
        texture_seed=seed64(WORLD_SEED, f"studio-texture-{split}", index),
    )
    return _plain(result) if plain else result


def _plain(rich: Person) -> Person:
    """Return the same face with plain skin and hair, as `studio_plain` shows it."""
    return replace(
        rich,
        blotches=0.0,
        freckles=0.0,
        moles=rich.moles[:0],
        scars=rich.scars[:0],
        wrinkles=0.0,
        dark_circles=0.0,
        oiliness=0.3,
        lip_colour=np.clip(rich.skin * np.array([0.86, 0.62, 0.6]), 0.02, 1.0),
        hair_style=("buzz", "short", "bob")[rich.index % 3],
        hair_colour=HAIR_COLOURS[rich.index % 4],
        beard_style="none",
        glasses_habit=0.0,
        resting=np.zeros_like(rich.resting),
        brow={**rich.brow, "monobrow": 0.0, "side": 0.0, "density": 0.8},
    )
