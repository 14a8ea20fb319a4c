"""The output folder of a training: its claim, its licence and the registered weights."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from factory.datasets.claim import Claim
from factory.datasets.composition import is_composition, source_licence
from factory.datasets.licences import strictest
from factory.datasets.manifest import committed
from factory.datasets.provenance import licence_of, sha256_file
from factory.datasets.store import Store
from factory.diffusion.files import RANDOM_INIT
from factory.recipe import (
    AUTO,
    FRRecipe,
    InputError,
    TrainRecipe,
    digest,
    kept_precision,
    parse,
    stated_precision,
)
from factory.tracking import Run

RECIPE = "recipe.json"
RECORD = "training.json"
DONE = "done.json"  # written last, when the same command has nothing left to do
TRAINING = Claim(
    RECIPE,
    "the training",
    own=("ray/",),  # Ray Train's own files (`workers.SCRATCH`)
    free=("engine.", "checkpoint.", "precompute", "benchmarks"),
    bound=("engine.precision",),
)

Trained = TypeVar("Trained", TrainRecipe, FRRecipe)


def kept(store: Store, recipe: Trained) -> Trained:
    """Return the recipe with `auto` replaced by the precision in its output's claim."""
    return kept_precision(recipe, TRAINING.read(store))


def check_output(store: Store, recipe: TrainRecipe | FRRecipe) -> None:
    """Raise InputError, naming the fields, if the output is the training of another recipe."""
    found = TRAINING.read(store)
    if found is not None:
        if found.get("kind") != recipe.kind:
            of = f"{RECIPE} is of kind {found.get('kind')!r}"
            raise TRAINING.refused(store, f"{of}, as another command's output")
        began = parse(found).model_dump(mode="json")
        differing = TRAINING.differing(began, recipe.model_dump(mode="json"))
        if differing:
            raise TRAINING.another(store, differing)


def claim(store: Store, recipe: TrainRecipe | FRRecipe) -> None:
    """Check that the output is not another training's, and write this one's claim.

    Args:
        store: the output.
        recipe: a recipe with a fixed precision (`precision.settled`).

    Raises:
        InputError: the output is another recipe's training, or holds something else.
    """
    assert stated_precision(recipe) != AUTO, "what auto means is settled before a claim"
    check_output(store, recipe)
    TRAINING.write(store, recipe.model_dump(mode="json"))


def check_data(recipe: TrainRecipe | FRRecipe) -> None:
    """Raise InputError if there is no dataset where the recipe says; reads no image."""
    for store in map(Store, recipe.data.urls()):
        if not is_composition(store) and not committed(store):
            raise InputError(
                f"recipe field data.train: {store.url} holds no committed shards; it must be the "
                "folder or URL of a dataset or composition"
            )


def finished(store: Store) -> dict[str, Any] | None:
    """Return the record of a finished training; None if something is left to do."""
    return json.loads(store.read(RECORD)) if store.exists(DONE) else None


def finish(store: Store, version: str) -> None:
    """Note that the training is finished and its weights are registered as this version."""
    store.write(DONE, json.dumps({"version": version}).encode())


def weights_licences(recipe: TrainRecipe | FRRecipe) -> dict[str, str]:
    """Return the licence of each file of weights that a training uses, by name.

    Raises:
        InputError: a URL of weights cannot be read.
    """
    frozen = recipe.weights if isinstance(recipe, TrainRecipe) else {}
    return {
        name: part.licence
        if part.location == RANDOM_INIT
        else licence_of(part, f"recipe field weights.{name}.location")
        for name, part in frozen.items()
    }


def licence(recipe: TrainRecipe | FRRecipe) -> str:
    """Return the licence of trained weights: the strictest of recipe, weights and datasets.

    Raises:
        InputError: a dataset is missing, or a URL of weights cannot be read.
    """
    datasets = (source_licence(Store(url)) for url in recipe.data.urls())
    return strictest([recipe.licence, *weights_licences(recipe).values(), *datasets])


def register(
    tracked: Run, store: Store, recipe: TrainRecipe | FRRecipe, files: Sequence[str]
) -> str:
    """Keep finished weights with the run, and register them as the model's next version.

    The version's tags are the licence (see `licence`), the sha256 of each file, the recipe's
    digest, its data, and the weights that the training used.

    Args:
        tracked: the training's run.
        store: the output of the training.
        recipe: the recipe of the training.
        files: names in the output; the first one is the weights.

    Returns:
        The version of the registered model.
    """
    frozen = recipe.weights if isinstance(recipe, TrainRecipe) else {}
    licences = weights_licences(recipe)
    tags = {
        # Records of older versions have no licence.
        "licence": json.loads(store.read(RECORD)).get("licence") or licence(recipe),
        "recipe": digest(recipe),
        "data": ", ".join(recipe.data.urls()),
    }
    for name, part in frozen.items():
        tags[f"with.{name}"] = f"{part.location} ({licences[name]})"
    with tempfile.TemporaryDirectory() as folder:
        for name in files:
            store.fetch(name, Path(folder) / name)
            tags[f"sha256.{name}"] = sha256_file(Path(folder) / name)
        return tracked.model(recipe.name, Path(folder), tags)
