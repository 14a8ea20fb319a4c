"""Benchmarks: pairs, folds, disjoint people, matched impostors."""

import numpy as np
import pytest
import simplejpeg

from factory.evaluation.fairness import read_groups
from factory.recipe import local_path
from factory.studio import benchmarks
from factory.studio.benchmarks import BENCHMARKS, groups, make_benchmark


def shown(monkeypatch, name: str, **arguments):
    """Make a benchmark without rendering; return who is on each image, and the labels."""
    who = []

    def note(person, view, size):
        who.append(person)
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(benchmarks, "render", note)
    images, same = make_benchmark(name, size=16, seed=3, **arguments)
    assert len(images) == len(who) == 2 * len(same)
    return [(a, b) for a, b in zip(who[::2], who[1::2], strict=True)], same


def test_images_are_jpeg_without_chroma_subsampling():
    images, same = make_benchmark("frontal_profile", 4, 64, seed=1, folds=2)
    assert len(images) == 8 and len(same) == 4
    for data in images:
        height, width, _, subsampling = simplejpeg.decode_jpeg_header(data)
        assert (height, width, subsampling) == (64, 64, "444")
    assert make_benchmark("frontal_profile", 4, 64, seed=1, folds=2) == (images, same)


def test_folds_are_half_genuine_and_share_nobody(monkeypatch):
    seen: set[int] = set()
    for name in BENCHMARKS:
        pairs, same = shown(monkeypatch, name, pairs=200)
        assert all(who.split == "test" for pair in pairs for who in pair)
        assert [a.index == b.index for a, b in pairs] == same
        for fold in range(10):
            part = slice(20 * fold, 20 * fold + 20)
            assert sum(same[part]) == 10
            people = {who.index for pair in pairs[part] for who in pair}
            assert not people & seen
            seen |= people


def test_groups_are_those_of_the_people_shown(monkeypatch):
    pairs, _ = shown(monkeypatch, "age_gap", pairs=200)
    named = groups("age_gap", 200, seed=3)
    for group, (who, other) in zip(named, pairs, strict=True):
        gender, _, age = group.partition(" ")
        assert (gender == "men") == (who.gender > 0.5) == (other.gender > 0.5)
        assert (age == "under 40") == (who.age < 40)
    assert len(set(named)) == 4
    shipped = read_groups(local_path("package:studio/bins/groups.json"))
    assert set(shipped) == set(BENCHMARKS)
    assert shipped["age_gap"] == groups("age_gap", 1000, seed=1)


def test_impostors_are_matched(monkeypatch):
    pairs, same = shown(monkeypatch, "frontal", pairs=400)
    impostors = [pair for pair, genuine in zip(pairs, same, strict=True) if not genuine]
    alike = [(a.gender > 0.5) == (b.gender > 0.5) for a, b in impostors]
    assert all(alike)
    skin_gap = np.mean([np.abs(a.skin - b.skin).mean() for a, b in impostors])
    rolled = [b for _, b in impostors[1:]] + [impostors[0][1]]
    by_chance = np.mean(
        [np.abs(a.skin - b.skin).mean() for (a, _), b in zip(impostors, rolled, strict=True)]
    )
    assert skin_gap < 0.35 * by_chance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sideways", "pairs": 20}, "benchmark is 'sideways'; choose one of frontal"),
        ({"name": "frontal", "pairs": 30}, "pairs is 30; it must be a multiple of 20"),
        ({"name": "frontal", "pairs": 20, "folds": 0}, "folds is 0"),
    ],
)
def test_a_wrong_order_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_benchmark(size=64, seed=1, **arguments)
