"""The claim: a dataset folder says whose it is before its first shard is made."""

import json
from collections.abc import Iterator
from typing import Any

from factory.datasets.provenance import Inherited, Model
from factory.datasets.store import (
    Store,
)
from factory.plan import Extent, ListedShard, Shard, Slice, shards, slices
from factory.recipe import (
    ComposeRecipe,
    GenerateRecipe,
    InputError,
    bank_digest,
    content_digest,
    held,
    kept_precision,
    parse,
)

CLAIM = "recipe.json"
COMPOSITION = "composition.json"  # a view's, in the place of a claim
# Where the work is done and what it costs changes no byte: a resumed run may differ in it.
FREE = ("workers.", "cost.")
BOUND = ("workers.threads",)
COUNTS = ("identities.count", "identities.images_each")


def read_claim(store: Store) -> dict[str, Any]:
    """Return the claim of a dataset folder; InputError where there is no dataset."""
    if not store.exists(CLAIM):
        raise InputError(f"{store.url}: no dataset there ({CLAIM} is missing)")
    return json.loads(store.read(CLAIM))


def claimed(store: Store, kind: str) -> dict[str, Any] | None:
    """Return the claim of the folder given as --out; None where nothing is there yet.

    Args:
        store: the output folder.
        kind: of the recipe that is to be made there.

    Raises:
        InputError: the folder holds what a recipe of another kind made.
    """
    accepted = f"accepted is a folder without a dataset, or one of a recipe of kind {kind!r}"
    if store.exists(COMPOSITION):
        raise InputError(f"--out {store.url}: holds a composition ({COMPOSITION}); {accepted}")
    if not store.exists(CLAIM):
        if next(iter(store.list("shards")), None) is not None:
            raise InputError(f"--out {store.url}: holds shards but no {CLAIM}; not a dataset")
        return None
    try:
        held = read_claim(store)
    except ValueError as error:
        raise InputError(f"--out {store.url}: {CLAIM} is damaged ({error}); {accepted}") from error
    recipe = held.get("recipe", held) if isinstance(held, dict) else None
    found = recipe.get("kind") if isinstance(recipe, dict) else None
    if found != kind:
        raise InputError(
            f"--out {store.url}: {CLAIM} is of kind {found!r}, as of another job's output; "
            f"{accepted}"
        )
    return held


def planned(claim: dict[str, Any]) -> Iterator[Shard | Slice]:
    """Yield every shard a claim plans, in order.

    A generated dataset's plan follows from its recipe. A dataset made of images that were there
    before lists its shards in the claim's `shards`: (first identity, end, first slot, end, images).
    A materialised composition has positions: as many as the claim's `images`.

    Raises:
        InputError, KeyError, TypeError, ValueError: the claim is damaged.
    """
    if "shards" in claim:
        for numbers in claim["shards"]:
            yield ListedShard(*(int(number) for number in numbers))
        return
    recipe = parse(held(claim["recipe"]))
    if isinstance(recipe, ComposeRecipe):
        yield from slices(int(claim["images"]), recipe.shard_images)
        return
    if not isinstance(recipe, GenerateRecipe):
        raise ValueError(f"recipe of kind {recipe.kind}, accepted is generate or compose")
    yield from shards(recipe, tuple((int(count), int(images)) for count, images in claim["grown"]))


def _unnamed(field: str, stated: Any) -> bool:
    return field.startswith("weights.") and field.endswith(".sha256") and not stated


def kept(store: Store, recipe: GenerateRecipe) -> GenerateRecipe:
    """Return the recipe with the precision its folder is claimed with, where it says `auto`.

    Raises:
        InputError: the folder holds what a recipe of another kind made.
    """
    held = claimed(store, recipe.kind)
    return recipe if held is None else kept_precision(recipe, held["recipe"])


def check_claim(
    store: Store, recipe: GenerateRecipe, versions: dict[str, str], extend: bool
) -> tuple[Extent, ...]:
    """Compare a recipe with the folder's claim; writes nothing.

    Args:
        store: the output folder.
        recipe: what is to be made there, as `kept` returns it.
        versions: of the libraries that compute pixels here.
        extend: whether the dataset may grow.

    Returns:
        The extents the dataset had before it grew to what the recipe asks for.

    Raises:
        InputError: the folder is another recipe's, holds something else, or would have to grow.
    """
    held = claimed(store, recipe.kind)
    if held is None:
        if extend:
            raise InputError(f"--extend: {store.url} holds no dataset that could grow")
        return ()
    differing = [
        (field, old, new)
        for field, old, new in differences(held["recipe"], recipe.model_dump(mode="json"))
        if field in BOUND or not field.startswith(FREE)
    ]
    foreign = [item for item in differing if item[0] not in COUNTS]
    if foreign and all(_unnamed(field, old) for field, old, _ in foreign):
        raise InputError(
            f"--out {store.url}: does not say which weights it was begun with ({foreign[0][0]} is "
            f"empty there, {foreign[0][2]} here); accepted is an empty folder"
        )
    if foreign:
        raise InputError(
            f"--out {store.url}: holds another recipe's dataset: "
            + ", ".join(f"{field} is {old!r} there, {new!r} here" for field, old, new in foreign)
        )
    here = content_digest(recipe, versions)
    if held["content_digest"] != here:
        raise InputError(
            f"--out {store.url}: made with other library versions (content digest "
            f"{held['content_digest']} there, {here} here); accepted are those its shard "
            "manifests state"
        )
    grown = tuple((count, images) for count, images in held["grown"])
    if not differing:
        return grown
    was = (held["recipe"]["identities"]["count"], held["recipe"]["identities"]["images_each"])
    now = (recipe.identities.count, recipe.identities.images_each)
    if now[0] < was[0] or now[1] < was[1]:
        raise InputError(
            f"identities.count x images_each: {now[0]} x {now[1]}, the dataset in {store.url} has "
            f"{was[0]} x {was[1]}; a dataset only grows"
        )
    if not extend:
        raise InputError(
            f"identities.count x images_each: {now[0]} x {now[1]}, the dataset in {store.url} has "
            f"{was[0]} x {was[1]}; --extend grows it"
        )
    return (*grown, was)


def write_claim(
    store: Store,
    recipe: GenerateRecipe,
    digest: str,
    grown: tuple[Extent, ...],
    inherited: Inherited | None = None,
    models: tuple[Model, ...] | None = None,
) -> None:
    """State whose folder it is; called under the folder's lock.

    Args:
        store: the output folder.
        recipe: what is made there.
        digest: its content digest, with the versions of this environment.
        grown: the extents it had before.
        inherited: what the datasets that images are drawn from hand down.
        models: the recipe's, as their files lie there; default: as the recipe states them.
    """
    claim = {
        "recipe": recipe.model_dump(mode="json"),
        "grown": [list(extent) for extent in grown],
        "content_digest": digest,
        "bank_digest": bank_digest(recipe),
    }
    if inherited is not None:
        claim["inherited"] = inherited.model_dump(mode="json")
    if models is not None:
        claim["models"] = [model.model_dump(mode="json") for model in models]
    store.write(CLAIM, json.dumps(claim, indent=1, sort_keys=True).encode())


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, old, new) of every value in which two JSON objects differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            inner = f"{path}.{name}" if path else name
            yield from differences(old.get(name), new.get(name), inner)
    elif old != new:
        yield path, old, new
