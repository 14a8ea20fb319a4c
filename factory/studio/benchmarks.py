"""Make five verification benchmarks from `test` people; each is hard in the way its name says.

Pairs of one fold never show a person of another fold or of another benchmark. Impostors are
matched: the other person is of the same gender and near in age, skin and hair, so that only the
face tells them apart.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg

from factory.seeding import generator, seed64
from factory.studio.people import Person, person
from factory.studio.render import render
from factory.studio.views import draw_view_kind

BENCHMARKS = ("frontal", "frontal_profile", "age_gap", "hard_light", "cross_expression")
# The kinds of view of the two pictures of a pair.
VIEW_KINDS: dict[str, tuple[str, str]] = {
    "frontal": ("frontal", "frontal"),
    "frontal_profile": ("frontal", "profile"),
    "age_gap": ("young", "old"),
    "hard_light": ("hard_light", "soft_light"),
    "cross_expression": ("neutral", "strong_expression"),
}
MOST_PAIRS = 20_000
CANDIDATES = 8  # people compared per impostor pair, to find a similar one
RANGE = CANDIDATES * MOST_PAIRS  # test people reserved for each benchmark


def _likeness_features(who: Person) -> np.ndarray:
    """Return what impostors are matched by: gender, age, skin, hair, scaled to similar weight."""
    bald = float(who.hair_style in ("bald", "buzz", "horseshoe", "receding"))
    return np.array([
        6.0 * float(who.gender > 0.5), who.age / 18.0, *(4.0 * who.skin), *(1.5 * who.hair_colour),
        0.7 * bald,
    ])  # fmt: skip


def _matched_partners(people: list[Person], count: int) -> list[int]:
    """Return the row of the most similar other person for each of the first `count` people."""
    features = np.stack([_likeness_features(who) for who in people])
    distance = ((features[:count, None] - features[None]) ** 2).sum(-1)
    distance[np.arange(count), np.arange(count)] = np.inf
    return distance.argmin(1).tolist()


class Benchmark(NamedTuple):
    """A benchmark, or a fold of one.

    Attributes:
        images: two JPEG files a pair; the two of a pair are adjacent.
        same: for each pair, whether it shows one person.
        groups: gender and age of the first person of each pair, in words: women or men, under 40
            or 40 and over. The other person of an impostor pair is of the same gender and near in
            age.
    """

    images: list[bytes]
    same: list[bool]
    groups: list[str]


def make_benchmark(
    name: str, pairs: int, size: int, seed: int, folds: int = 10, quality: int = 95
) -> Benchmark:
    """Make one verification benchmark.

    Args:
        name: one of `BENCHMARKS`.
        pairs: number of pairs; a multiple of 2 * folds, at most 20,000.
        size: edge of the images in pixels.
        seed: seed of the views; the people depend on `name` and `pairs` only.
        folds: number of equal consecutive folds.
        quality: JPEG quality, 1 to 100; chroma is not subsampled.

    Raises:
        ValueError: the name is unknown, or the folds cannot share the pairs evenly.
    """
    _check(name, pairs, folds)
    return joined(make_fold(name, n, pairs, size, seed, folds, quality) for n in range(folds))


def joined(folds: Iterable[Benchmark]) -> Benchmark:
    """Return the benchmark that these folds are, in their order."""
    whole = Benchmark([], [], [])
    for fold in folds:
        for values, more in zip(whole, fold, strict=True):
            values += more
    return whole


def make_fold(
    name: str, fold: int, pairs: int, size: int, seed: int, folds: int = 10, quality: int = 95
) -> Benchmark:
    """Make one fold of a benchmark, numbered from 0; the rest is as for `make_benchmark`."""
    _check(name, pairs, folds)
    made = Benchmark([], [], [])

    def picture(who: Person, kind: str, pair: int, side: int) -> bytes:
        view = draw_view_kind(seed64(seed, f"benchmark-{name}", pair, side), kind)
        pixels = np.ascontiguousarray(render(who, view, size))
        return simplejpeg.encode_jpeg(pixels, quality, "RGB", "444")

    people = _pairs(name, fold, pairs, seed, folds)
    for pair, (who, other) in enumerate(people, start=fold * (pairs // folds)):
        made.images.extend(
            picture(shown, kind, pair, side)
            for side, (shown, kind) in enumerate(zip((who, other), VIEW_KINDS[name], strict=True))
        )
        made.same.append(who is other)
        gender = "men" if who.gender > 0.5 else "women"
        made.groups.append(f"{gender} {'under 40' if who.age < 40 else '40 and over'}")
    return made


def _check(name: str, pairs: int, folds: int) -> None:
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark is {name!r}; choose one of {', '.join(BENCHMARKS)}")
    if folds < 1:
        raise ValueError(f"folds is {folds}; it must be 1 or more")
    if pairs < 1 or pairs % (2 * folds) or pairs > MOST_PAIRS:
        raise ValueError(
            f"pairs is {pairs}; it must be a multiple of {2 * folds} (twice the folds) "
            f"from {2 * folds} to {MOST_PAIRS}"
        )


def _pairs(
    name: str, fold: int, pairs: int, seed: int, folds: int
) -> Iterator[tuple[Person, Person]]:
    """Yield the two people of each pair of a fold; a genuine pair yields the same object twice."""
    half = pairs // folds // 2  # number of genuine pairs of one fold, and of their people
    start = BENCHMARKS.index(name) * RANGE + fold * CANDIDATES * half
    people = [person("test", start + i) for i in range(CANDIDATES * half)]
    partner = _matched_partners(people, half)
    order = generator(seed64(seed, f"benchmark-order-{name}", fold)).permutation(2 * half)
    for entry in order.tolist():
        who = people[entry % half]
        yield who, who if entry < half else people[partner[entry % half]]
