"""A denoiser told the truth: the numbers of a person, and a training that reads them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.truth import TruthTraining, numbers, truths
from factory.studio.people import person
from factory.systems import training_class


def test_a_persons_numbers_are_finite_and_as_many_for_everybody() -> None:
    rows = np.stack([numbers(person("train", index)) for index in range(200)])
    assert np.isfinite(rows).all()
    assert rows.std(axis=0).max() > 0


def test_every_number_of_a_person_is_told() -> None:
    who = person("train", 3)
    other = dataclasses.replace(who, lip_colour=who.lip_colour + 0.25)
    assert (numbers(other) != numbers(who)).sum() == 3
    style = "bald" if who.hair_style != "bald" else "buzz"
    assert (numbers(dataclasses.replace(who, hair_style=style)) != numbers(who)).sum() == 2


def test_truths_are_unit_vectors_of_each_person() -> None:
    found = truths(np.array([4, 9, 4]))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
    assert np.array_equal(found[0], found[2])
    assert found[0] @ found[1] < 0.8


def test_it_is_found_as_a_system_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_SYSTEMS", "benchmarks.truth")
    assert training_class("truth").__name__ == TruthTraining.__name__


def test_its_recipe_states_the_size_of_the_truth() -> None:
    text = (Path(__file__).parents[2] / "benchmarks/truth.yaml").read_text()
    assert f"context_size: {len(numbers(person('train', 0)))}\n" in text
