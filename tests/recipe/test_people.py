"""People: datasets that draw the same candidates are known as such, others are not."""

from pathlib import Path

import pytest

from factory.recipe import load, people_of
from factory.studio.people import person

DESK = Path(__file__).parents[2] / "jobs/recipes/desk/generate"


def drawn(name, *sets):
    return people_of(load(DESK / f"{name}.yaml", sets).model_dump(mode="json"))


@pytest.mark.parametrize("other", ["dcface", "cemiface", "id3", "studio_gallery"])
def test_the_gallery_is_one_whoever_draws_from_it(other):
    assert drawn("idiff_face") == drawn(other, "seed=99") == "studio gallery"
    assert person("gallery", 3) == person("gallery", 3) != person("train", 3)
    assert drawn("studio") == "studio train" and drawn("studio_plain") == "studio synthetic"


def test_seeds_and_networks_tell_drawn_people_apart():
    uniform = ("identities.source=uniform",)
    two = ("identities.source=two_stage",)
    assert drawn("idiff_face", *uniform) == drawn("idiff_face_full", *uniform)  # in one space
    assert drawn("idiff_face", *two) != drawn("idiff_face_full", *two)  # by two denoisers
    for source in (uniform, two):
        assert drawn("idiff_face", *source) == drawn("idiff_face", *source, "options={}")
        assert drawn("idiff_face", *source) != drawn("idiff_face", *source, "seed=8")


def test_banks_and_files_are_known_by_their_digests_and_other_data_is_its_own():
    bank = {"identities": {"source": "bank"}, "options": {"bank": {"url": "a", "digest": "d" * 16}}}
    assert people_of(bank) == f"bank {'d' * 16}"
    assert people_of({"kind": "prepare"}) == people_of({}) == ""
    assert people_of({"identities": {"source": "blobs"}, "weights": {}, "seed": 1}) == ""
