"""The book of a sweep: a trial stays what it was when it began, or the sweep says why it cannot."""

from pathlib import Path

import pytest
from faces import make_pool

from factory.datasets.store import Store
from factory.recipe import InputError
from factory.search import Choice, Real, Space
from factory.search.book import Book

FR = str(Path(__file__).parents[2] / "jobs/recipes/desk/fr/desk.yaml")


def space(axes, view, **changes):
    given = {"fr": FR, "search": "grid"} | changes
    return Space("s", "?", axes, lambda point: {"pools": {"a": view}}, **given)


def begun(folder, searched, trials=1):
    book = Book(Store(folder), searched)
    book.claim("", trials, {})
    for number in range(trials):
        book.begin(searched.trial(number, searched.draw(number), "pools"))
    return book


@pytest.mark.parametrize("search", ["grid", "random"])
def test_a_trial_keeps_the_point_of_its_number(tmp_path, search):
    view = {"url": make_pool(tmp_path / "there", 3, 2)}
    few = space({"x": Real(0, 1, steps=5), "y": Choice((1, 2))}, view, search=search)
    begun(tmp_path / "out", few, 5).check("elsewhere")
    Book(Store(tmp_path / "out"), few).check("pools")
    changed = {"x": Real(0, 1, steps=9, digits=1), "y": Choice([1, 2])}
    with pytest.raises(InputError, match=r"trial 0 has begun with point.x [\d.]+, which .*[\d.]+;"):
        Book(Store(tmp_path / "out"), space(changed, view, search=search)).check("pools")
    fewer = space({"x": Real(0, 1, steps=2), "y": Choice([1, 2])}, view)
    begun(tmp_path / "two", fewer, 2)
    Store(tmp_path / "out").delete("sweep.json")
    (tmp_path / "out/sweep.json").write_bytes((tmp_path / "two/sweep.json").read_bytes())
    if search == "grid":  # trials beyond the end of a grid that has become smaller
        with pytest.raises(InputError, match="has begun with point"):
            Book(Store(tmp_path / "out"), fewer).check("pools")


def test_a_dataset_that_a_trial_takes_as_it_is_must_stay_as_it_is(tmp_path):
    there, away = tmp_path / "v1/there", tmp_path / "v2/there"
    searched = space({"x": Choice(1)}, {"url": make_pool(there, 3, 2)})
    book = begun(tmp_path / "out", searched)
    book.check("pools")
    there.rename(tmp_path / "v1/gone")
    book.check("pools")  # a finished sweep may grow no more, but nothing in it is wrong
    make_pool(away, 3, 2)
    Book(book.store, space({"x": Choice(1)}, {"url": str(away)})).check("pools")  # moved
    make_pool(there, 4, 2)
    with pytest.raises(InputError, match=r"trial 0 has begun with datasets.a.images 6, .* 8; acc"):
        Book(book.store, searched).check("pools")
    other = {"url": make_pool(tmp_path / "v3/there", 3, 2, world=5)}
    with pytest.raises(InputError, match=r"datasets.a.content_digest '0+', which .* '0+5'; acc"):
        Book(book.store, space({"x": Choice(1)}, other)).check("pools")


def test_trials_of_a_sweep_are_verified_on_the_same_benchmarks(tmp_path):
    searched = space({"x": Choice(1)}, {"url": "there"}, benchmarks="bins")
    Book(Store(tmp_path), searched).claim("", 1, {"frontal.bin": "aa"})
    again = Book(Store(tmp_path), searched)
    again.claim("", 1, {})  # nothing left to do, so none was opened
    Book(Store(tmp_path), searched).claim("", 2, {"frontal.bin": "aa"})
    for changed, said in (
        ({"frontal.bin": "bb"}, "frontal.bin has sha256 bb, and trials of .* verified on aa"),
        ({"frontal.bin": "aa", "more.bin": "cc"}, "more.bin has sha256 cc, .* verified on None"),
    ):
        with pytest.raises(InputError, match=f"benchmarks bins: {said}"):
            Book(Store(tmp_path), searched).claim("", 2, changed)


def test_a_damaged_trial_is_named(tmp_path):
    searched = space({"x": Choice(1)}, {"url": make_pool(tmp_path / "there", 3, 2)})
    book = begun(tmp_path / "out", searched)
    for text, said in (("{", "trial.json: damaged"), ("[]", "trial.json: it states no number")):
        (tmp_path / "out/trials/0000/trial.json").write_text(text)
        for reads in (lambda: book.check("pools"), lambda: book.begun(0)):
            with pytest.raises(InputError, match=said):
                reads()
