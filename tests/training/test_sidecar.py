"""What a pool of actors makes ahead is, to the byte, what a training would make itself."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import tiny
import torch
from faces import make_pool

from factory.datasets.feed import Feed
from factory.datasets.store import Store
from factory.diffusion.examples import BATCH, CHUNK, NETWORKS, load_examples
from factory.diffusion.files import RANDOM_INIT
from factory.diffusion.trainable import Place
from factory.recipe import InputError, TrainRecipe, Weights
from factory.systems.dcface import DCFaceTraining
from factory.training.sidecar import Precomputer, precompute

PEOPLE, EACH = 260, 4  # two files of each kind, the second one not full
FIRSTS = (0, CHUNK)
HOLD = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    input()
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainRecipe]:
    """Return the recipe of a training for each precision."""
    folder = tmp_path_factory.mktemp("data")
    data = make_pool(folder / "faces", PEOPLE, EACH, size=tiny.SIZE)
    files = tiny.save_frozen(folder)
    return {
        precision: tiny.training(
            *("dcface", files, data, tiny.DCFACE),
            engine={"name": "torch", "precision": precision},
            precompute={"sidecar": str(folder / precision), "actors": 2},
        )
        for precision in ("float32", "bfloat16")
    }


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread, as each actor does: more change last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lines(recipe: TrainRecipe) -> list[str]:
    """Return what is said, by a driver that could not open a dataset."""

    def read(*given: Any, **named: Any) -> NoReturn:
        raise AssertionError("the driver reads a dataset")

    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Feed, "__init__", read)
        precompute(recipe, said.append)
    return said


def check_same(recipe: TrainRecipe, folder: Path) -> None:
    """Assert that a sidecar holds, to the byte, what a training would make itself."""
    assert recipe.precompute
    store = Store(recipe.precompute.sidecar)
    source = DCFaceTraining(recipe, Place(0, 1, folder)).source()
    said: list[str] = []
    here = load_examples(source, folder / "here", say=said.append)
    assert said[0] == f"examples 0/{PEOPLE * EACH}" and len(set(said)) == len(said) > CHUNK // BATCH
    there = load_examples(source, folder / "there", store)
    assert set(here.arrays) == {"images", *NETWORKS}
    for kind, array in here.arrays.items():
        assert array.dtype == there.arrays[kind].dtype, kind
        assert np.array_equal(array, there.arrays[kind]), kind
    assert (here.keys == there.keys).all() and (here.labels == there.labels).all()
    source.feed.close()


@pytest.mark.ray
def test_a_pool_makes_what_a_training_makes_and_goes_on_where_it_stopped(
    asked: dict[str, TrainRecipe], ray_cluster: None, tmp_path: Path, one_thread: None
) -> None:
    recipe = asked["bfloat16"]
    assert recipe.precompute
    assert CHUNK < PEOPLE * EACH < 2 * CHUNK
    assert [line.split(": ")[1] for line in lines(recipe)] == [
        "1 of 2 files of each kind",
        "2 of 2 files of each kind",
    ]
    store = Store(recipe.precompute.sidecar)
    made = sorted(store.list())
    assert len(made) == 2 * len(NETWORKS)
    check_same(recipe, tmp_path)

    written = {name: (store.root / name).stat().st_mtime_ns for name in made} if store.root else {}
    assert lines(recipe) == []  # nothing is left to do
    store.delete(made[1])
    source = DCFaceTraining(recipe, Place(0, 1, tmp_path)).source()
    with pytest.raises(InputError, match=f"precompute.sidecar: .* lacks {made[1]}"):
        load_examples(source, tmp_path / "lacking", store)
    source.feed.close()
    actor = Precomputer(recipe.model_dump(mode="json"))
    for first in FIRSTS:
        assert "failed" not in actor({"first": np.array([first])})
    assert sorted(store.list()) == made
    again = {name: (store.root / name).stat().st_mtime_ns for name in made} if store.root else {}
    assert [name for name in made if again[name] != written[name]] == [made[1]]


def test_it_does_in_float32_too(
    asked: dict[str, TrainRecipe], tmp_path: Path, one_thread: None
) -> None:
    actor = Precomputer(asked["float32"].model_dump(mode="json"))
    for first in FIRSTS[::-1]:
        assert "failed" not in actor({"first": np.array([first])})
    check_same(asked["float32"], tmp_path)


def test_a_training_goes_on_with_its_own_examples_where_it_stopped(
    asked: dict[str, TrainRecipe], tmp_path: Path
) -> None:
    source = DCFaceTraining(asked["float32"], Place(0, 1, tmp_path)).source()
    second = f"examples {CHUNK}/{PEOPLE * EACH}"

    def stop(line: str) -> None:
        if line == second:
            raise KeyboardInterrupt

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        load_examples(source, stopped, say=stop)
    said: list[str] = []
    found = load_examples(source, stopped, say=said.append)
    assert said == [second]  # the first chunk's images are not computed again
    wanted = load_examples(source, whole)
    for kind, array in wanted.arrays.items():
        assert np.array_equal(array, found.arrays[kind]), kind
    assert not list(Store(stopped / "chunks").list())
    source.feed.close()


def test_processes_that_share_a_cache_take_turns(
    asked: dict[str, TrainRecipe], tmp_path: Path
) -> None:
    source, cache = DCFaceTraining(asked["float32"], Place(0, 1, tmp_path)).source(), tmp_path / "c"
    cache.mkdir()
    words = [sys.executable, "-c", HOLD, str(cache / "lock")]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin and holder.stdout and holder.stdout.readline() == "held\n"
    said: list[str] = []

    def say(line: str) -> None:
        if not said:
            holder.communicate("\n")  # it ends, and its lock with it
        said.append(line)

    load_examples(source, cache, say=say)
    assert said[0] == f"another process fills {cache}; waiting for it"
    assert said[1] == f"examples 0/{PEOPLE * EACH}"
    source.feed.close()


def test_nothing_is_made_ahead_where_nothing_can_be(asked: dict[str, TrainRecipe]) -> None:
    recipe = asked["float32"]
    assert lines(recipe.model_copy(update={"precompute": None})) == []
    random = recipe.weights | {"teacher": Weights(location=RANDOM_INIT, licence="CC0-1.0")}
    with pytest.raises(InputError, match=r"weights.teacher.location: .* accepted are files"):
        lines(recipe.model_copy(update={"weights": random}))
    with pytest.raises(InputError, match=r"precompute: an autoencoder .* accepted is none"):
        lines(recipe.model_copy(update={"system": "autoencoder"}))


def test_what_rows_are_and_what_they_hold_names_examples(tmp_path: Path) -> None:
    files = tiny.save_frozen(tmp_path)
    one = make_pool(tmp_path / "one", 3, 2, size=tiny.SIZE)
    two = make_pool(tmp_path / "two", 3, 2, world=1, size=tiny.SIZE)

    def named(train: Any, size: int = tiny.SIZE, **data: Any) -> str:
        recipe = tiny.training("dcface", files, train, tiny.DCFACE)
        made = recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})
        training = DCFaceTraining(made, Place(0, 1, tmp_path / "cache"))
        training.recipe = made.model_copy(
            update={"image": made.image.model_copy(update={"size": size})}
        )
        source = training.source()
        source.feed.close()
        return source.digests["data"]

    assert named(one) == named((one,)) != named((one, two)) != named((two, one))
    assert named(one, resize=True) != named(one, resize=True, size=tiny.SIZE // 2)
