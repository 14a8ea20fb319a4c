"""The front against its definition, the overhead against arithmetic."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.datasets.store import Store
from factory.recipe import InputError
from factory.search.results import (
    SWEEP,
    best,
    chance,
    front,
    generation,
    load,
    overhead,
    startup,
    trend,
)

TRIALS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12
)
NAMES = ("accuracy", "images", "generation_seconds")


def results(rows):
    return [{"number": n, **dict(zip(NAMES, row, strict=True))} for n, row in enumerate(rows)]


@given(TRIALS)
def test_the_front_is_what_nobody_beats(rows):
    found = set(front(results(rows), NAMES))
    for n, (a, i, g) in enumerate(rows):
        beaten = any(x >= a and j <= i and h <= g and (x, j, h) != (a, i, g) for x, j, h in rows)
        assert (n in found) != beaten
    assert best(results(rows), NAMES) in found


def test_the_best_of_one_objective_is_the_highest():
    rows = results([(1, 5, 5), (3, 9, 9), (2, 0, 0), (3, 8, 9)])
    assert best(rows, ["accuracy"]) == 1 and set(front(rows, ["accuracy"])) == {1, 3}
    assert best(rows, ["images"]) == 2
    assert best([], ["accuracy"]) is None


def test_overhead_is_wall_time_over_the_trials_own():
    one = {"seconds": 110.0, "trial_seconds": 100.0, "concurrent": 1}
    two = {"seconds": 30.0, "trial_seconds": 50.0, "concurrent": 2}
    assert overhead([one]) == pytest.approx(1.1)
    assert overhead([one, two]) == pytest.approx((110 + 60) / 150, abs=1e-3)
    assert overhead([]) is None


def test_what_pools_that_were_there_saved():
    def trial(made, seconds, wait):
        pools = {"a": {"made": made, "actor_seconds": seconds}}
        return {"pools": pools, "wait": wait, "seconds": {"startup": 1.0}}

    trials = [trial(True, 10.0, 9.0), trial(False, 10.0, 1.0), trial(False, 2.5, 0.5)]
    assert generation(trials) == {"made_seconds": 10.0, "saved_seconds": 12.5}
    assert startup(trials) == 2.0 and startup([]) is None


def test_chance_is_that_of_the_variance_ratio():
    # Means 2, 3 and 6: F(2, 6) = 13 / 1, whose tail is (1 + 2 F / 6) ** -3 in closed form.
    assert chance([[1, 2, 3], [2, 3, 4], [5, 6, 7]]) == pytest.approx((1 + 26 / 6) ** -3)
    assert chance([[1, 2, 3]]) is None
    assert chance([[1], [2], [3]]) is None
    assert chance([[1, 1], [2, 2]]) is None


def test_a_trend_is_as_likely_as_its_order_among_all_orders():
    # Of the 5! orders of five points, two are wholly sorted.
    assert trend([0, 1, 2, 3, 4], [5.0, 6.0, 6.5, 7.0, 9.0]) == pytest.approx((1.0, 2 / 120))
    assert trend([4, 2, 1, 3, 0], [1.0, 3.0, 4.0, 2.0, 5.0]) == pytest.approx((-1.0, 2 / 120))
    # One pair of the ten turned round: 1 + 4 orders of 120 are as sorted or more, and as many fall.
    assert trend([0, 1, 2, 3, 4], [6.0, 5.0, 7.0, 8.0, 9.0]) == pytest.approx((0.8, 10 / 120))
    assert trend([0, 1, 2, 3], [1.0, 2.0, 3.0, 4.0]) is None
    assert trend([0, 1, 2, 3, 4], [1.0] * 5) is None


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (SWEEP, '{"space": {"na', "sweep.json: damaged"),
        (SWEEP, '{"name": "mine"}', "sweep.json: it states no space"),
        (SWEEP, "\\xff", "sweep.json: damaged"),
        ("trials/0000/result.json", "[1]", "0000/result.json: it states no number"),
    ],
)
def test_damaged_files_of_a_sweep_are_named(tmp_path, file, text, said):
    store = Store(tmp_path)
    store.write(SWEEP, json.dumps({"space": {}}).encode())
    store.write("trials/0000/result.json", b'{"number": 0}')
    assert load(store) == ({"space": {}}, [{"number": 0}])
    store.write(file, text.encode("latin-1").replace(b"\\xff", b"\xff"))
    with pytest.raises(InputError, match=said):
        load(store)
