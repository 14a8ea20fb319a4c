"""Spaces: draws are functions of a trial's number, and recipes of a point are whole."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.datasets import provenance
from factory.recipe import InputError
from factory.search import Asha, Choice, Pool, Real, Space
from factory.search.space import Trial, load_space, pool_name

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "tune_spaces").glob("*.py"))
PLAIN = str(ROOT / "jobs/recipes/desk/generate/studio_plain.yaml")


def made(**changes):
    pool = Pool(PLAIN, "identities.count=20")

    def composition(point):
        return {"images": 40, "pools": {"studio": pool.view(images_each=point["each"])}}

    given = {
        "name": "small",
        "question": "?",
        "axes": {"each": Choice(2, 4, 8), "rate": Real(0.01, 1.0, log=True, steps=3)},
        "composition": composition,
        "fr": str(ROOT / "jobs/recipes/desk/fr/desk.yaml"),
    }
    return Space(**(given | changes))


def test_values_are_those_that_a_folder_keeps():
    assert Choice((1, (2, 3)), None).values == ([1, [2, 3]], None)
    for value in (np.int64(3), {1, 2}, float("nan")):
        with pytest.raises(InputError, match=r"Choice\(\): .*; accepted are JSON values"):
            Choice(1, value)


def test_a_point_follows_from_its_number_alone():
    one, other = made(), made()
    later = [other.draw(n) for n in (7, 3)]
    assert [one.draw(n) for n in range(8)][7:2:-4] == later
    drawn = [one.draw(n) for n in range(300)]
    assert {point["each"] for point in drawn} == {2, 4, 8}
    assert all(0.01 <= point["rate"] <= 1.0 for point in drawn)
    below = sum(point["rate"] < 0.1 for point in drawn)  # half, on a logarithmic scale
    assert 110 < below < 190
    assert made(seed=2).draw(0) != one.draw(0)


@given(st.floats(-6, 3), st.floats(0.1, 6), st.booleans(), st.integers(1, 8), st.floats(0, 1))
def test_numbers_stay_on_their_axis_and_keep_their_place(exponent, span, log, digits, u):
    low = 10**exponent
    high = low * 10**span
    axis = Real(low, high, log=log, digits=digits)
    number, exact = axis.at(u), low * (high / low) ** u if log else low + (high - low) * u
    assert low <= number <= high
    size = exact if log else high - low
    assert abs(number - exact) <= 0.5 * 10 ** (1 - digits) * size * (1 + 1e-9)


def test_shares_keep_two_decimals():
    share = Real(0.0, 1.0, digits=2)
    assert [share.at(u) for u in (0.0, 0.0349, 0.1251, 0.996)] == [0.0, 0.03, 0.13, 1.0]


def test_a_grid_has_every_combination_once():
    grid = made(search="grid")
    points = [tuple(grid.draw(n).values()) for n in range(9)]
    assert sorted(points) == sorted(itertools.product((2, 4, 8), (0.01, 0.1, 1.0)))
    grid.check_samples(9)
    with pytest.raises(InputError, match="--samples 10: accepted are 1 to 9"):
        grid.check_samples(10)


def test_a_trial_is_whole_and_survives_json():
    trial = made(sets=("fr.schedule.steps=3", "generate.seed=9", "compose.images=16")).trial(
        2, {"each": 4, "rate": 0.1}, "runs/pools/"
    )
    recipe, url = trial.pools["studio"]
    assert (recipe.seed, recipe.identities.count) == (9, 20)
    assert url == f"runs/pools/{pool_name(recipe)}"
    view = trial.compose.pools["studio"]
    assert (trial.compose.images, view.images_each, view.url) == (16, 4, url)
    assert trial.fr.schedule.steps == 3
    assert str(ROOT) not in json.dumps(trial.as_dict())  # another checkout goes on with it
    assert Trial.of(json.loads(json.dumps(trial.as_dict()))) == trial


def test_pools_are_named_by_what_changes_their_bytes():
    def name(*sets):
        return made(sets=sets).trial(0, {"each": 2, "rate": 1.0}, "p").pools["studio"][1]

    assert name() == name("generate.workers.max=7")
    different = ["generate.seed=8", "generate.identities.images_each=3", "generate.image.size=32"]
    assert len({name(), *(name(change) for change in different)}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("speed",)}, "objectives"),
        ({"search": "guess"}, "search 'guess'; accepted: random, grid, tpe"),
        ({"sets": ("seed=3",)}, "--set seed=3: accepted are fr.FIELD=, generate.FIELD="),
        ({"objectives": ("images",), "asha": Asha()}, "asha goes by accuracy"),
        ({"reports": 0}, "reports 0, pairs 100; accepted are 1 and more"),
        ({"pairs": 9}, "reports 4, pairs 9; accepted are 1 and more, and 10 pairs and more"),
        ({"seeds": ()}, r"seeds \(\); accepted are whole numbers, each once"),
        ({"seeds": (1, 2, 1)}, r"seeds \(1, 2, 1\); accepted"),
        ({"seeds": (1, 2), "asha": Asha(grace=9)}, "reports 8 times; accepted is grace of 1 to 8"),
        ({"sets": ("fr",)}, "--set fr: accepted are fr.FIELD="),
        ({"sets": ("fr.seed=2",)}, "--set fr.seed=2: a trial fills in fr.data, fr.seed"),
        ({"sets": ("fr.data.resize=true",)}, "--set fr.data.resize=true: a trial fills in"),
    ],
)
def test_mistakes_in_a_space_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        made(**changes)
    with pytest.raises(InputError, match="low < high"):
        Real(1.0, 0.5)
    for asha in ({"grace": 0}, {"factor": 1.0}):
        with pytest.raises(InputError, match="accepted are grace of 1 and more, factor above 1"):
            Asha(**asha)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def composition(point:", "wrong.py: SyntaxError: .*wrong.py, line 1"),
        ("x = 1\nx / 0", "wrong.py line 2: ZeroDivisionError: division by zero"),
        ("SPACE = Space(nmae='s')", "wrong.py line 1: TypeError: .*'nmae'"),
        ("SPACE = Space('s', '?', {'x': Choice()}, dict)", r"wrong.py: Choice\(\): accepted"),
    ],
)
def test_a_file_that_fails_is_named_with_its_line(tmp_path, text, message):
    file = tmp_path / "wrong.py"
    file.write_text(f"from factory.search import Choice, Space; {text}")
    with pytest.raises(InputError, match=message):
        load_space(str(file))


def test_a_function_that_fails_is_named_with_its_point():
    def fails(point):
        return {"pools": point["none"]}

    line = fails.__code__.co_firstlineno + 1
    for function, message in (
        (fails, rf"composition\({{'each': 2}}\): test_space.py line {line}: KeyError: 'none'"),
        (lambda point: {"images": 4}, "no pools; accepted are fields of a compose recipe"),
        (lambda: {}, "TypeError"),
    ):
        with pytest.raises(InputError, match=message):
            made(composition=function).trial(0, {"each": 2}, "pools")


def test_files_without_a_space_are_refused(tmp_path):
    with pytest.raises(InputError, match="accepted is a Python file with a SPACE"):
        load_space(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="no SPACE"):
        load_space(str(tmp_path / "empty.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_spaces_make_valid_recipes(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    # Weights that are trained elsewhere.
    monkeypatch.setattr(provenance, "checked_sha256", lambda name, part: "0" * 64)
    settled = {"generate": "float32", "fr": "float32"}
    shipped = replace(load_space(str(path)), precision=settled)
    assert shipped.name == path.stem and shipped.question.endswith("?")
    for number in range(min(len(shipped.grid), 12)):
        trial = shipped.trial(number, shipped.draw(number), "runs/pools")
        assert trial.pools and set(trial.pools) == set(trial.compose.pools)


def test_pools_lie_below_their_folder_whatever_its_query():
    trial = made().trial(0, made().draw(0), "s3://b/pools?endpoint_override=h:9000")
    for name, (recipe, url) in trial.pools.items():
        assert url == f"s3://b/pools/{pool_name(recipe)}?endpoint_override=h:9000"
        assert trial.compose.pools[name].url == url


def test_keys_in_a_space_are_refused_and_not_shown(tmp_path):
    keyed = "s3://a-key:a-secret@b/x"
    with pytest.raises(InputError, match=r"benchmarks: s3://b/x holds credentials") as caught:
        made(benchmarks=keyed)
    assert "a-secret" not in str(caught.value)
    file = tmp_path / "keyed.py"
    file.write_text(
        "from factory.recipe import KnownFaces\n"
        f"KnownFaces(location={keyed!r}, sha256={'0' * 64!r})\n"
    )
    with pytest.raises(InputError, match="s3://b/x holds credentials") as caught:
        load_space(str(file))
    assert "a-secret" not in str(caught.value)
