"""Figures by group against counting pairs by hand."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from factory.evaluation.fairness import by_group, read_groups
from factory.evaluation.verification import Distances, Verification, best_threshold, folds
from factory.recipe import InputError


def measured(pairs=400, seed=0):
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.5
    groups = rng.choice(["a", "b", "c", ""], pairs, p=[0.5, 0.3, 0.1, 0.1])
    harder = np.where(groups == "b", 0.35, 0.1)
    distances = np.clip(np.where(same, 0.9, 1.6) + rng.normal(0, 1, pairs) * harder, 0, 4)
    return Distances.of("toy", distances, same), groups.tolist()


def test_groups_are_judged_at_the_thresholds_of_all():
    found, groups = measured()
    fair = by_group(found, groups)
    rows = np.arange(len(groups))
    others = [np.setdiff1d(rows, test) for test in folds(len(groups))]
    thresholds = [best_threshold(found.distances[part], found.same[part]) for part in others]
    right = {name: [] for name in "abc"}
    wrong_impostors = {name: [] for name in "abc"}
    for test, threshold in zip(folds(len(groups)), thresholds, strict=True):
        for pair in test:
            if groups[pair]:
                accepted = found.distances[pair] < threshold
                right[groups[pair]].append(accepted == found.same[pair])
                if not found.same[pair]:
                    wrong_impostors[groups[pair]].append(accepted)
    assert list(fair.groups) == ["a", "b", "c"]
    for name, one in fair.groups.items():
        assert one.accuracy == pytest.approx(np.mean(right[name]))
        assert one.fmr == pytest.approx(np.mean(wrong_impostors[name]))
        assert one.pairs == one.genuine + one.impostors == len(right[name])
    accuracies = [np.mean(values) for values in right.values()]
    assert fair.spread == pytest.approx(np.std(accuracies))
    assert fair.worst == "b"
    assert fair.gap == pytest.approx(max(accuracies) - min(accuracies))
    assert fair.gap_resolved
    assert fair.ungrouped == groups.count("")
    json.dumps(fair.as_dict(), allow_nan=False)


def test_own_is_the_whole_protocol_on_the_group_alone():
    found, groups = measured()
    rows = np.flatnonzero(np.array(groups) == "b")
    alone = Verification.of(Distances.of("toy", found.distances[rows], found.same[rows]))
    assert by_group(found, groups).groups["b"].own == asdict(alone)


def test_one_group_of_all_is_the_benchmark():
    found, _ = measured()
    fair = by_group(found, ["all"] * 400)
    whole = Verification.of(found)
    assert fair.groups["all"].accuracy == pytest.approx(whole.accuracy)
    assert fair.groups["all"].own == asdict(whole)
    assert (fair.gap, fair.gap_resolved, fair.spread) == (0.0, False, 0.0)


def test_a_group_of_one_kind_has_no_rates_of_the_other():
    found, _ = measured()
    groups = np.where(found.same, "genuine", "impostor").tolist()
    fair = by_group(found, groups)
    one = fair.groups["genuine"]
    assert one.fmr is None and one.eer is None and one.own is None and one.far is None
    assert one.fnmr == pytest.approx(1 - one.accuracy)
    assert fair.groups["impostor"].tar is None


@pytest.mark.parametrize(("pairs", "wrong"), [(1, 1), (2, 0)])
def test_a_pair_or_two_resolve_no_gap(pairs, wrong):
    """All wrong or all right is no group without an error."""
    same = np.tile([True, False], 500)
    distances = np.where(same, 0.5, 1.5)
    groups = ["few"] * pairs + ["many"] * (1000 - pairs)
    distances[:wrong] = 2.0
    distances[20:980:48] = 2.0  # 2 of 100 of the others
    fair = by_group(Distances.of("toy", distances, same), groups)
    assert fair.gap == pytest.approx(0.98 if wrong else 0.02, abs=2e-3)
    assert not fair.gap_resolved
    share = (pairs - wrong + 2) / (pairs + 4)
    error = np.sqrt(share * (1 - share) / (pairs + 4))
    assert fair.groups["few"].accuracy_error == pytest.approx(error) and error > 0.1


@pytest.mark.parametrize(("wrong", "resolves"), [(1, False), (10, True)])
def test_groups_that_are_all_right_or_all_wrong_have_an_error(wrong, resolves):
    same = np.tile([True, False], 500)
    distances = np.where(same, 0.5, 1.5)
    distances[0 : 2 * wrong : 2] = 2.0
    fair = by_group(Distances.of("toy", distances, same), ["a"] * 100 + ["b"] * 900)
    assert fair.groups["b"].accuracy == 1.0 and fair.groups["b"].accuracy_error > 0
    assert (fair.gap, fair.gap_resolved) == (pytest.approx(wrong / 100), resolves)


def test_pairs_without_a_threshold_at_far_are_in_no_share_there():
    same = np.arange(100) < 93  # all impostors are in the last fold, so that it has no threshold
    found = Distances.of("toy", np.where(same, 0.5, 1.5), same)
    fair = by_group(found, ["a"] * 90 + ["b"] * 10)
    assert (fair.groups["a"].tar, fair.groups["b"].tar) == (1.0, None)
    json.dumps(fair.as_dict(), allow_nan=False)


def test_files_of_both_kinds_say_the_same(tmp_path):
    images = ["x", "x", "x", "y", "", "y"]
    (tmp_path / "g.json").write_text(json.dumps({"toy": {"images": images}}))
    rows = [f"toy,{n},{group}" for n, group in enumerate(images)]
    (tmp_path / "g.csv").write_text("\n".join(["benchmark,image,group", *reversed(rows)]))
    (tmp_path / "p.json").write_text(json.dumps({"toy": {"pairs": ["x", "x x y", ""]}}))
    (tmp_path / "p.csv").write_text("benchmark,pair,group\ntoy,0,x\ntoy,1,x x y\ntoy,2,\n")
    for name in ("g.json", "g.csv", "p.json", "p.csv"):
        assert read_groups(tmp_path / name) == {"toy": ["x", "x x y", ""]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("g.txt", "x"),
        ("g.json", "{"),
        ("g.json", "[]"),
        ("g.json", '{"toy": ["a"]}'),
        ("g.json", '{"toy": {"people": ["a"]}}'),
        ("g.json", '{"toy": {"pairs": [1]}}'),
        ("g.json", '{"toy": {"images": ["a"]}}'),
        ("g.csv", ""),
        ("g.csv", "benchmark,pair\ntoy,0\n"),
        ("g.csv", "benchmark,pair,group\ntoy,1,a\n"),
        ("g.csv", "benchmark,pair,group\ntoy,0,a\ntoy,0,b\n"),
        ("g.csv", "benchmark,pair,group\ntoy,x,a\n"),
        ("g.csv", f"benchmark,pair,group\ntoy,0,{'a' * 200_000}\n"),
        ("g.json", "[" * 100_000),
        ("g.json", "\xff" * 10_000),
        ("g.csv", "\xff" * 10_000),
    ],
)
def test_other_files_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"--groups .*accepted is a \.csv") as caught:
        read_groups(tmp_path / name)
    assert len(str(caught.value)) < 1000


def test_counts_must_agree():
    found, groups = measured()
    with pytest.raises(InputError, match="399 for 400 pairs"):
        by_group(found, groups[1:])
    with pytest.raises(InputError, match="accepted is one or more"):
        by_group(found, [""] * 400)
    with pytest.raises(InputError, match="no such file"):
        read_groups("none.csv")
