"""Spaces: draws are functions of a trial's number, and recipes of a point are whole."""

import itertools
import json
from pathlib import Path

import pytest

from factory.recipe import InputError
from factory.search import Asha, Choice, Pool, Real, Space, space
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
    assert trial.fr.schedule.steps == 3 and Path(trial.fr.benchmarks, "frontal.bin").is_file()
    assert Trial.of(json.loads(json.dumps(trial.as_dict()))) == trial


def test_pools_are_named_by_what_changes_their_bytes():
    def name(*sets):
        return made(sets=sets).trial(0, {"each": 2, "rate": 1.0}, "p").pools["studio"][1]

    assert name() == name("generate.pool.size=7")
    different = ["generate.seed=8", "generate.identities.images_each=3", "generate.image.size=32"]
    assert len({name(), *(name(change) for change in different)}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("speed",)}, "objectives"),
        ({"search": "guess"}, "search 'guess'; accepted: random, grid, tpe"),
        ({"sets": ("seed=3",)}, "--set seed=3: accepted are fr.FIELD=, generate.FIELD="),
        ({"objectives": ("images",), "asha": Asha()}, "asha needs the objective accuracy"),
    ],
)
def test_mistakes_in_a_space_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        made(**changes)
    with pytest.raises(InputError, match="low < high"):
        Real(1.0, 0.5)


def test_files_without_a_space_are_refused(tmp_path):
    with pytest.raises(InputError, match="accepted is a Python file with a SPACE"):
        load_space(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="no SPACE"):
        load_space(str(tmp_path / "empty.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_spaces_make_valid_recipes(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(space, "checked_sha256", lambda name, part: "0" * 64)  # not trained here
    shipped = load_space(str(path))
    assert shipped.name == path.stem and shipped.question.endswith("?")
    for number in range(min(len(shipped.grid), 12)):
        trial = shipped.trial(number, shipped.draw(number), "runs/pools")
        assert trial.pools and set(trial.pools) == set(trial.compose.pools)
