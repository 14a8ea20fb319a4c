"""What a pool of actors makes ahead is, to the byte, what a training would make itself."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from faces import make_pool

from factory.diffusion.examples import CHUNK, NETWORKS, load_examples
from factory.diffusion.files import RANDOM_INIT
from factory.diffusion.trainable import Place
from factory.recipe import InputError, TrainRecipe, Weights, load
from factory.shards.store import Store
from factory.systems.dcface import DCFaceTraining
from factory.training.sidecar import Precomputer, precompute

RECIPES = Path(__file__).parents[2] / "jobs/recipes/desk/train"
PEOPLE, EACH = 260, 4  # two files of each kind, the second one not full


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> TrainRecipe:
    folder = tmp_path_factory.mktemp("data")
    data = make_pool(folder / "faces", PEOPLE, EACH, size=64)
    sets = [f"data.train={data}", f"precompute.sidecar={folder / 'sidecar'}"]
    recipe = load(RECIPES / "dcface.yaml", [*sets, "precompute.actors=2"])
    assert isinstance(recipe, TrainRecipe)
    return recipe


def lines(recipe: TrainRecipe) -> list[str]:
    said: list[str] = []
    precompute(recipe, said.append)
    return said


@pytest.mark.ray
def test_a_pool_makes_what_a_training_makes_and_goes_on_where_it_stopped(
    recipe: TrainRecipe, ray_cluster: None, tmp_path: Path
) -> None:
    assert recipe.precompute
    assert CHUNK < PEOPLE * EACH < 2 * CHUNK
    assert [line.split(": ")[1] for line in lines(recipe)] == [
        "1 of 2 files of each kind",
        "2 of 2 files of each kind",
    ]
    trained = DCFaceTraining(recipe, Place(0, 1, tmp_path))
    store, source = Store(recipe.precompute.sidecar), trained.source()
    made = sorted(store.list())
    assert len(made) == 2 * len(NETWORKS)
    torch.set_num_threads(1)  # as each actor has: more change last bits of bfloat16
    here = load_examples(source, tmp_path / "here")
    there = load_examples(source, tmp_path / "there", store)
    assert set(here.arrays) == {"images", *NETWORKS}
    for kind, array in here.arrays.items():
        assert array.dtype == there.arrays[kind].dtype, kind
        assert np.array_equal(array, there.arrays[kind]), kind
    assert (here.keys == there.keys).all() and (here.labels == there.labels).all()

    written = {name: (store.root / name).stat().st_mtime_ns for name in made} if store.root else {}
    assert lines(recipe) == []  # nothing is left to do, and no pool starts for it
    store.delete(made[1])
    with pytest.raises(InputError, match=f"precompute.sidecar: .* lacks {made[1]}"):
        load_examples(source, tmp_path / "lacking", store)
    actor = Precomputer(recipe.model_dump(mode="json"))
    for first in (0, CHUNK):
        assert "failed" not in actor({"first": np.array([first])})
    assert sorted(store.list()) == made
    again = {name: (store.root / name).stat().st_mtime_ns for name in made} if store.root else {}
    assert [name for name in made if again[name] != written[name]] == [made[1]]
    source.feed.close()


def test_nothing_is_made_ahead_where_nothing_can_be(recipe: TrainRecipe) -> None:
    assert lines(recipe.model_copy(update={"precompute": None})) == []
    random = recipe.weights | {"teacher": Weights(location=RANDOM_INIT, licence="CC0-1.0")}
    with pytest.raises(InputError, match=r"weights.teacher.location: .* accepted are files"):
        lines(recipe.model_copy(update={"weights": random}))
    with pytest.raises(InputError, match=r"precompute: an autoencoder .* accepted is none"):
        lines(recipe.model_copy(update={"system": "autoencoder"}))
