"""The steady state, by hand."""

import pytest

from benchmarks.overhead import compare, steady
from factory.recipe import GenerateRecipe, InputError, load


def test_steady_state_runs_from_the_second_shard_to_the_first_idle_worker() -> None:
    turns = [
        ("a", 0.0, 5.0, 10),  # start-up inside: not counted
        ("a", 5.0, 7.0, 10),
        ("a", 8.0, 10.0, 10),  # one second between two shards counts against the factory
        ("b", 1.0, 4.0, 10),
        ("b", 4.0, 9.0, 10),
        ("b", 9.0, 14.0, 10),  # ends after worker a went idle: not counted
    ]
    assert steady(turns) == pytest.approx(20 / 5 + 10 / 5)
    assert steady(reversed(turns)) == pytest.approx(6)


def test_too_few_shards_are_refused() -> None:
    with pytest.raises(InputError, match="worker a has 1 shards; accepted are 3 or more: raise"):
        steady([("a", 0.0, 5.0, 10)])


def test_a_recipe_of_too_few_shards_is_refused_before_anything_is_made() -> None:
    recipe = load("desk/generate/studio.yaml", ["identities.count=70", "workers.max=2"])
    assert isinstance(recipe, GenerateRecipe)
    with pytest.raises(InputError, match="they make 7 shards; the benchmark accepts 8 or more, 4"):
        compare(recipe, 1)
