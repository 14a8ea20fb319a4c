"""What a sweep decides without Ray: what to try next, whom to stop, what its folder means."""

import json
from types import SimpleNamespace

import pytest

from factory.recipe import InputError
from factory.search import Asha, Choice, Real, Space
from factory.search.results import SWEEP
from factory.search.sweep import Book, scheduler, tpe
from factory.shards.store import Store


def space(**changes):
    axes = {"x": Real(0.0, 1.0), "kind": Choice("good", "bad"), "band": Choice([0, 1], [1, 2])}
    given = {"name": "s", "question": "?", "axes": axes, "composition": dict, "search": "tpe"}
    return Space(**(given | changes))


def end(book, number, point, accuracy, state="finished", curve=()):
    rows = [{"iteration": n + 1, "accuracy": value} for n, value in enumerate(curve)]
    result = {"number": number, "point": point, "state": state, "accuracy": accuracy}
    book.end(result | {"curve": rows, "images": 1, "generation_seconds": number})


def goodness(point):
    return 0.9 - (point["x"] - 0.2) ** 2 - 0.2 * (point["kind"] == "bad")


@pytest.mark.parametrize("objectives", [("accuracy",), ("accuracy", "generation_seconds")])
def test_tpe_goes_where_results_were_good(tmp_path, objectives):
    searched = space(objectives=objectives)
    book = Book(Store(tmp_path), searched)
    book.claim("")
    for number in range(16):
        point = json.loads(json.dumps(searched.draw(number)))
        end(book, number, point, goodness(point))
    end(book, 16, searched.draw(16), 0.1, state="stopped", curve=[0.1])
    end(book, 17, searched.draw(17), 0.0, state="refused")
    points = [tpe(searched, book, number) for number in range(18, 34)]
    assert points[0] == tpe(searched, Book(Store(tmp_path), searched), 18)
    assert all(0 <= point["x"] <= 1 and point["band"] in ([0, 1], [1, 2]) for point in points)
    if len(objectives) == 1:
        before = [goodness(searched.draw(number)) for number in range(16)]
        assert sum(map(goodness, points)) / 16 > sum(before) / 16 + 0.05


def test_halving_of_a_resumed_sweep_knows_earlier_reports(tmp_path):
    halved = space(asha=Asha(grace=1, factor=2), reports=4)
    book = Book(Store(tmp_path), halved)
    for number, accuracy in enumerate((0.5, 0.6, 0.7, 0.8)):
        end(book, number, {}, accuracy, curve=[accuracy] * 4)

    def says(accuracy, report):
        made = scheduler(halved, book)
        trial = SimpleNamespace(trial_id="now")
        made.on_trial_add(None, trial)
        return made.on_trial_result(
            None, trial, {"training_iteration": report, "accuracy": accuracy}
        )

    # The median of what was reported at rungs 1, 2 and 4 is 0.65.
    assert [says(0.6, report) for report in (1, 2, 4)] == ["STOP"] * 3
    assert [says(0.66, report) for report in (1, 2, 4)] == ["CONTINUE"] * 3
    assert type(scheduler(space(), book)).__name__ == "FIFOScheduler"


def test_a_folder_keeps_its_search(tmp_path):
    store = Store(tmp_path)
    Book(store, space()).claim("run-1")
    again = Book(store, space())
    assert again.run_id == "run-1" and again.results() == {}
    with pytest.raises(InputError, match=r"holds another search, whose seeds is \[1\], not \[1, 2"):
        Book(store, space(seeds=(1, 2)))
    again.note(3, {"asked": 5.0})
    assert again.begun(3) == {"asked": 5.0} and again.begun(4) is None
    store.delete(SWEEP)
    with pytest.raises(InputError, match="holds something else"):
        Book(store, space())
