"""The sidecar folder of a training: the frozen networks' results for all images, made by actors.

A training whose recipe has `precompute` reads it instead of running those networks on every node. A
file holds one kind of result for 1,024 images and is moved into place whole. The same command
therefore goes on after an interruption, and trainings with equal networks and data share files.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.cluster import hardware
from factory.datasets.store import Store
from factory.diffusion.examples import CHUNK, ExampleSource, fill, lacking
from factory.diffusion.files import RANDOM_INIT
from factory.diffusion.trainable import Place
from factory.recipe import InputError, TrainRecipe, parse, public
from factory.systems import training_class

if TYPE_CHECKING:
    from factory.nodes import Reservation


def precompute(recipe: TrainRecipe, say: Callable[[str], None]) -> None:
    """Make the sidecar's missing files on the connected Ray cluster; do nothing without one.

    The driver reads no shard. What is missing is found out by a Ray task, which indexes the data.

    Args:
        recipe: the recipe of the training.
        say: receives one line of progress at a time.

    Raises:
        InputError: the training cannot have a `precompute`, or the cluster is too small.
        FaultError: a disk or store failed.
    """
    wanted = recipe.precompute
    if wanted is None:
        return
    if recipe.system == "autoencoder":
        raise InputError(
            "recipe field precompute: an autoencoder is trained on the images themselves; "
            "accepted is none"
        )
    from factory.cluster.workers import each
    from factory.nodes import Reservation

    random = [name for name, part in recipe.weights.items() if part.location == RANDOM_INIT]
    if random:
        raise InputError(
            f"recipe field weights.{random[0]}.location: {RANDOM_INIT!r}, which differs from actor "
            "to actor; with precompute accepted are files"
        )
    given, where = recipe.model_dump(mode="json"), ("precompute.actors", "precompute.")
    rows = [{"first": first} for first in _surveyed(given, Reservation(*where, 1, wanted.num_cpus))]
    size = min(wanted.actors, len(rows))
    reserved = Reservation(*where, size, wanted.num_cpus, wanted.num_gpus)
    for number, _ in enumerate(each(rows, Precomputer, given, reserved), 1):
        say(f"{wanted.sidecar}: {number} of {len(rows)} files of each kind")


def _surveyed(given: dict[str, Any], reserved: "Reservation") -> list[int]:
    """Return `survey` of a recipe, from a Ray task that reserves as much."""
    import ray
    from ray.exceptions import RayTaskError

    from factory.cluster.capacity import require
    from factory.cluster.waiting import wait_for
    from factory.cluster.workers import runtime_env

    require([reserved])
    wait_for(reserved)
    task = ray.remote(survey).options(num_cpus=reserved.num_cpus, runtime_env=runtime_env(1))
    try:
        return ray.get(task.remote(given))
    except RayTaskError as error:
        raise error.cause from None


def survey(dumped: dict[str, Any]) -> list[int]:
    """Return where the images of each missing file of a training's sidecar begin.

    Raises:
        InputError: there is a mistake in the recipe, its weights or its data.
    """
    recipe = parse(dumped)
    assert isinstance(recipe, TrainRecipe) and recipe.precompute
    source, store = source_of(recipe, 0.0), Store(recipe.precompute.sidecar)
    firsts = range(0, len(source.feed), CHUNK)
    found = [first for first in firsts if lacking(source, store, first)]
    source.feed.close()
    return found


def source_of(recipe: TrainRecipe, num_gpus: float) -> ExampleSource:
    """Load the inputs of a training's examples, on a GPU if `num_gpus` is above 0."""
    engine = recipe.engine.model_copy(update={"num_gpus": num_gpus})
    placed = recipe.model_copy(update={"engine": engine})
    return training_class(recipe.system)(placed, Place(0, 1, Path(tempfile.gettempdir()))).source()


class Precomputer:
    """Runs the frozen networks of a training, as an actor."""

    def __init__(self, dumped: dict[str, Any]) -> None:
        """Load the networks and open the data, once."""
        recipe = parse(dumped)
        assert isinstance(recipe, TrainRecipe) and recipe.precompute
        wanted = recipe.precompute
        hardware.set_up(max(int(wanted.num_cpus), 1), wanted.num_gpus > 0)
        self.source = source_of(recipe, wanted.num_gpus)
        self.store = Store(wanted.sidecar)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Make the missing files for the images from `first` on.

        If a disk or store fails, the returned row holds the error.
        """
        first = int(batch["first"][0])
        try:
            fill(self.source, self.store, first)
        except (OSError, InputError) as error:
            return {"failed": np.array([f"images from {first} on: {public(str(error))}"])}
        return batch
