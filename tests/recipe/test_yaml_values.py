"""YAML of any kind is values or one error; nothing runs, nothing grows."""

import time

import pytest

from factory.recipe import InputError
from factory.recipe.yaml_values import yaml_values

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_dates_are_texts_and_numbers_are_numbers() -> None:
    found = yaml_values("{name: 2024-01-01, count: 20, share: 0.5, on: true, none: null}", "x")
    assert found == {"name": "2024-01-01", "count": 20, "share": 0.5, "on": True, "none": None}


def test_off_and_no_are_texts_as_in_yaml_1_2() -> None:
    found = yaml_values("{gradient: off, country: NO, on: yes, right: true, wrong: False}", "x")
    assert found == {"gradient": "off", "country": "NO", "on": "yes", "right": True, "wrong": False}


def test_an_alias_is_the_value_it_names() -> None:
    assert yaml_values("{a: &a [1, 2], b: *a}", "x") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{seed: 7, seed: 99}", "x: 'seed' stands twice; each field stands once"),
        ("a: {b: 1, b: 1}", "'b' stands twice"),
        (BOMB, "make more than 100000 values"),
        ("a: &a {b: *a}", "an alias stands inside what it names"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deep; accepted are 50 levels"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deep"),
        ("a: " + "9" * 5000, "x: a number of more than 4300 digits"),
        ("[", "x is not YAML"),
        ("!!python/object/apply:os.system ['exit 3']", "could not determine a constructor"),
        ("{a: \x00}", "x is not YAML"),
    ],
)
def test_what_is_no_recipe_is_one_error(text: str, words: str) -> None:
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        yaml_values(text, "x")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert time.process_time() - started < 30  # of its own time, not of the clock's
