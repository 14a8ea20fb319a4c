"""The output folder of a training: its claim, its data, its licence and the registered weights."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from factory.datasets.claim import CLAIM, Claim, read_claim
from factory.datasets.composition import (
    is_composition,
    load_composition,
    source_digest,
    source_licence,
)
from factory.datasets.feed import counted
from factory.datasets.licences import strictest
from factory.datasets.manifest import MANIFEST, committed, load_manifest
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
    people_of,
    stated_precision,
)
from factory.tracking import Run

RECIPE = "recipe.json"
RECORD = "training.json"
DIGESTS = "content_digests"  # of a training's datasets, in their order
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
    """Compare the output with a recipe and, if its training has a record, with the data now.

    Raises:
        InputError: the output is the training of another recipe (the fields are named), or the
            datasets have changed since they were read.
    """
    found = TRAINING.read(store)
    if found is not None:
        if found.get("kind") != recipe.kind:
            of = f"{RECIPE} is of kind {found.get('kind')!r}"
            raise TRAINING.refused(store, f"{of}, as another command's output")
        began = parse(found).model_dump(mode="json")
        differing = TRAINING.differing(began, recipe.model_dump(mode="json"))
        if differing:
            raise TRAINING.another(store, differing)
        _check_read(store, recipe)


def _check_read(store: Store, recipe: TrainRecipe | FRRecipe) -> None:
    """Raise InputError if the datasets are not those that the output's record states.

    Shards are read only if a part of a dataset was trained on, or if there are other images now.
    """
    stated = json.loads(store.read(RECORD)) if store.exists(RECORD) else {}
    data, stores = recipe.data, [Store(url) for url in recipe.data.urls()]
    there = all(is_composition(one) or one.exists(CLAIM) for one in stores)
    if "images" not in stated or not there:  # not stated before 0.2; or the data is gone
        return
    digests = [source_digest(one) for one in stores]
    alike = stated.get(DIGESTS, digests) == digests
    whole = data.identities is None and data.images_each is None
    if whole and alike and stated["images"] == _images(stores):
        return
    found = counted(data.urls(), data.identities, data.images_each)
    check_data_read(store, stated, data_read(recipe, *found))


def _images(stores: Sequence[Store]) -> int | None:
    """Return how many images datasets and compositions state; None if one is not finished."""
    total = 0
    for store in stores:
        if is_composition(store):
            total += load_composition(store).images_with_repeats
        elif store.exists(MANIFEST):
            total += load_manifest(store).totals.kept
        else:
            return None
    return total


def data_read(recipe: TrainRecipe | FRRecipe, images: int, identities: int) -> dict[str, Any]:
    """Return what a training's checkpoints and record state of the data that it reads.

    Args:
        recipe: the recipe of the training.
        images: images of an epoch.
        identities: people among them.
    """
    digests = [source_digest(Store(url)) for url in recipe.data.urls()]
    return {DIGESTS: digests, "images": images, "identities": identities}


def check_data_read(store: Store, stated: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError if a training read other data than there is now.

    Args:
        store: the output of the training.
        stated: what a checkpoint or record of it states; what is missing there is not compared.
        now: what `data_read` returns now.
    """
    if any(stated.get(name, value) != value for name, value in now.items()):
        raise InputError(
            f"--out {store.url}: was trained on {_described(stated)}, and the dataset has changed "
            f"since: it gives {_described(now)} now; another --out, or deleting that folder, "
            "trains it again"
        )


def _described(data: Mapping[str, Any]) -> str:
    digests = f" (content digest {', '.join(data[DIGESTS])})" if DIGESTS in data else ""
    return f"{data['images']:,} images of {data['identities']:,} identities{digests}"


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
    """Refuse data that is not there, or that would give a person two labels; reads no image.

    Raises:
        InputError: there is no dataset where the recipe says, or two draw the same people.
    """
    urls = recipe.data.urls()
    met: dict[str, str] = {}
    for store in map(Store, urls):
        if not is_composition(store) and not committed(store):
            raise InputError(
                f"recipe field data.train: {store.url} holds no committed shards; it must be the "
                "folder or URL of a dataset or composition"
            )
        for people in _people(store) if len(urls) > 1 else ():
            if met.setdefault(people, store.url) != store.url:
                raise InputError(
                    f"recipe field data.train: {met[people]} and {store.url} draw the same people "
                    f"({people}), each of whom would get two labels; accepted is one composition "
                    "of all (factory compose)"
                )


def _people(store: Store) -> set[str]:
    """Return from whom a dataset, or the pools of a composition, draw their people."""
    if is_composition(store):
        pools = [Store(pool.url) for pool in load_composition(store).pools.values()]
        return set().union(*(_people(pool) for pool in pools))
    if store.exists(MANIFEST):
        recipe = load_manifest(store).recipe
    else:
        recipe = read_claim(store)["recipe"] if store.exists(CLAIM) else {}
    return {people} if (people := people_of(recipe)) else set()


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
