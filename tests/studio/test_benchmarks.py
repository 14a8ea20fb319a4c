"""Benchmarks: pairs, folds, disjoint people, matched impostors."""

import numpy as np
import pytest
import simplejpeg

from factory.evaluation.fairness import read_groups
from factory.evaluation.verification import read_bin
from factory.recipe import local_path
from factory.studio import benchmarks
from factory.studio.benchmarks import BENCHMARKS, joined, make_benchmark, make_fold


def shown(monkeypatch, name: str, **arguments):
    """Make a benchmark without rendering; return who is on each image, and the benchmark."""
    who = []

    def note(person, view, size):
        who.append(person)
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(benchmarks, "render", note)
    made = make_benchmark(name, size=16, seed=3, **arguments)
    assert len(made.images) == len(who) == 2 * len(made.same)
    return [(a, b) for a, b in zip(who[::2], who[1::2], strict=True)], made


def test_images_are_jpeg_without_chroma_subsampling():
    images, same, _ = made = make_benchmark("frontal_profile", 4, 64, seed=1, folds=2)
    assert len(images) == 8 and len(same) == 4
    for data in images:
        height, width, _, subsampling = simplejpeg.decode_jpeg_header(data)
        assert (height, width, subsampling) == (64, 64, "444")
    assert make_benchmark("frontal_profile", 4, 64, seed=1, folds=2) == made


def test_a_fold_made_alone_is_that_of_the_whole_and_of_the_shipped_file():
    pictures, same, named = make_benchmark("frontal", 12, 32, seed=5, folds=3)
    last = make_fold("frontal", 2, 12, 32, seed=5, folds=3)
    assert last == (pictures[16:], same[8:], named[8:])
    assert joined([last, last]).images == 2 * last.images

    shipped = read_bin(local_path("package:studio/bins/hard_light.bin"))
    fold = make_fold("hard_light", 9, 1000, 64, seed=1)
    assert fold.same == shipped.same[900:].tolist()
    difference = [
        np.abs(simplejpeg.decode_jpeg(ours).astype(int) - simplejpeg.decode_jpeg(theirs)).mean()
        for ours, theirs in zip(fold.images[:20], shipped.images[1800:1820], strict=True)
    ]
    assert max(difference) < 0.5
    groups = read_groups(local_path("package:studio/bins/groups.json"))
    assert set(groups) == set(BENCHMARKS) and fold.groups == groups["hard_light"][900:]


def test_folds_are_half_genuine_and_share_nobody(monkeypatch):
    seen: set[int] = set()
    for name in BENCHMARKS:
        pairs, (_, same, _) = shown(monkeypatch, name, pairs=200)
        assert all(who.split == "test" for pair in pairs for who in pair)
        assert [a.index == b.index for a, b in pairs] == same
        for fold in range(10):
            part = slice(20 * fold, 20 * fold + 20)
            assert sum(same[part]) == 10
            people = {who.index for pair in pairs[part] for who in pair}
            assert not people & seen
            seen |= people


def test_groups_are_those_of_the_people_shown(monkeypatch):
    pairs, (_, _, named) = shown(monkeypatch, "age_gap", pairs=200)
    for group, (who, other) in zip(named, pairs, strict=True):
        gender, _, age = group.partition(" ")
        assert (gender == "men") == (who.gender > 0.5) == (other.gender > 0.5)
        assert (age == "under 40") == (who.age < 40)
    assert len(set(named)) == 4


def test_impostors_are_matched(monkeypatch):
    pairs, (_, same, _) = shown(monkeypatch, "frontal", pairs=400)
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
