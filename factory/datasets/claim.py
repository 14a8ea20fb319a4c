"""Claims: a file in an output folder says what the folder is for, before anything else is made."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from factory.datasets.provenance import Inherited, Model
from factory.datasets.store import LOCK, PART, Store
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
COMPOSITION = "composition.json"  # a composition has this file instead of a claim
COUNTS = ("identities.count", "identities.images_each")


@dataclass(frozen=True)
class Claim:
    """The claim of one kind of output folder.

    A folder is refused if it holds other files, or the output of another recipe, so that a command
    never adds to somebody else's files.

    Attributes:
        file: the claim's name in the folder.
        what: what the folder holds, for errors.
        flag: the argument that names the folder.
        own: prefixes of names that the folder may hold before it has a claim.
        free: prefixes of fields that may differ when a run is resumed, because they change no
            bytes.
        bound: fields that begin with such a prefix and must be equal all the same.
    """

    file: str
    what: str
    flag: str = "--out"
    own: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()

    def read(self, store: Store) -> dict[str, Any] | None:
        """Return the folder's claim; None if the folder is empty.

        Raises:
            InputError: the claim is damaged, or the folder holds something else.
        """
        if store.exists(self.file):
            try:
                held = json.loads(store.read(self.file))
            except ValueError as error:
                raise self.refused(store, f"{self.file} is damaged ({error})") from error
            if not isinstance(held, dict):
                raise self.refused(store, f"{self.file} is {type(held).__name__}, no claim")
            return held
        for name in store.list():
            if name != LOCK and PART not in name and not name.startswith(self.own):
                raise self.refused(store, f"holds {name} and no {self.file}")
        return None

    def check(self, store: Store, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """Compare the folder's claim with `wanted`, and return it; None if there is no claim.

        Raises:
            InputError: the folder holds something else, or the output of another recipe.
        """
        found = self.read(store)
        differing = [] if found is None else self.differing(found, wanted)
        if differing:
            raise self.another(store, differing)
        return found

    def differing(
        self, found: dict[str, Any], wanted: dict[str, Any]
    ) -> list[tuple[str, Any, Any]]:
        """Return (field, old, new) for each field that must be equal in two claims but is not."""
        return [
            (field, old, new)
            for field, old, new in differences(found, json.loads(json.dumps(wanted)))
            if field in self.bound or not field.startswith(self.free)
        ]

    def write(self, store: Store, claim: dict[str, Any]) -> None:
        """Write the claim into the folder."""
        store.write(self.file, json.dumps(claim, indent=1, sort_keys=True).encode())

    def another(self, store: Store, differing: list[tuple[str, Any, Any]]) -> InputError:
        """Return the error for a folder of another recipe; it names the fields that differ."""
        said = (f"{field} is {old!r} there, {new!r} here" for field, old, new in differing)
        return self.refused(store, f"holds {self.what} of another recipe: {', '.join(said)}")

    def refused(self, store: Store, why: str) -> InputError:
        """Return the error for a folder that must not be written to."""
        return InputError(
            f"{self.flag} {store.url}: {why}; accepted is an empty folder, or {self.what} of the "
            "same recipe"
        )


# A run may change the actors and the expected cost, because they change no bytes.
DATASET = Claim(CLAIM, "the dataset", free=("workers.", "cost."), bound=("workers.threads",))


def read_claim(store: Store) -> dict[str, Any]:
    """Return the claim of a dataset folder; InputError if there is none or it is damaged."""
    if not store.exists(CLAIM):
        raise InputError(f"{store.url}: no dataset there ({CLAIM} is missing)")
    try:
        found = json.loads(store.read(CLAIM))
    except ValueError as error:
        raise InputError(f"{store.url}/{CLAIM}: damaged ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("recipe"), dict):
        raise InputError(f"{store.url}/{CLAIM}: states no recipe of a dataset")
    return found


def claimed(store: Store, kind: str, claim: Claim = DATASET) -> dict[str, Any] | None:
    """Return the claim of an output folder for a dataset; None if the folder is empty.

    Args:
        store: the output folder.
        kind: the kind of the recipe to run.
        claim: the kind of claim to expect.

    Raises:
        InputError: the folder holds something else, or the output of another kind of recipe.
    """
    found = claim.read(store)
    if found is None:
        return None
    recipe = found.get("recipe", found)
    of = recipe.get("kind") if isinstance(recipe, dict) else None
    if of != kind:
        raise claim.refused(store, f"{CLAIM} is of kind {of!r}, as another command's output")
    if isinstance(found.get("recipe"), dict):
        found["recipe"] = held(found["recipe"])
    return found


def planned(claim: dict[str, Any]) -> Iterator[Shard | Slice]:
    """Yield every shard that a claim plans, in order.

    A generated dataset's plan follows from its recipe. A dataset of existing images lists its
    shards in the claim's `shards`: (first identity, end, first slot, end, images). A materialised
    composition has positions, as many as the claim's `images`.

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
    """Return the recipe with `auto` replaced by the precision in its folder's claim.

    Raises:
        InputError: the folder holds something else, or the output of another kind of recipe.
    """
    found = claimed(store, recipe.kind)
    return recipe if found is None else kept_precision(recipe, found["recipe"])


def check_claim(
    store: Store, recipe: GenerateRecipe, versions: dict[str, str], extend: bool
) -> tuple[Extent, ...]:
    """Compare a recipe with the folder's claim; writes nothing.

    Args:
        store: the output folder.
        recipe: the recipe to run, as `kept` returns it.
        versions: versions of the libraries that compute pixels on this machine.
        extend: whether the dataset may grow.

    Returns:
        The extents (identities, images each) that the dataset had before, oldest first.

    Raises:
        InputError: the folder is another recipe's, holds something else, would have to shrink, or
            would have to grow without `extend`.
    """
    found = claimed(store, recipe.kind)
    if found is None:
        if extend:
            raise InputError(f"--extend: {store.url} holds no dataset that could grow")
        return ()
    differing = DATASET.differing(found["recipe"], recipe.model_dump(mode="json"))
    foreign = [item for item in differing if item[0] not in COUNTS]
    if foreign and all(_unnamed(field, old) for field, old, _ in foreign):
        raise InputError(
            f"--out {store.url}: does not say which weights it was begun with ({foreign[0][0]} is "
            f"empty there, {foreign[0][2]} here); accepted is an empty folder"
        )
    if foreign:
        raise DATASET.another(store, foreign)
    here = content_digest(recipe, versions)
    if found["content_digest"] != here:
        raise InputError(
            f"--out {store.url}: its images were made with other versions of the libraries, so "
            f"that new ones would differ (content digest {found['content_digest']} there, {here} "
            "here); install the versions that its shard manifests state, or give another folder"
        )
    grown = tuple((count, images) for count, images in found["grown"])
    if not differing:
        return grown
    asked = found["recipe"]["identities"]
    was = (asked["count"], asked["images_each"])
    now = (recipe.identities.count, recipe.identities.images_each)
    shrinks = now[0] < was[0] or now[1] < was[1]
    if shrinks or not extend:
        raise InputError(
            f"identities.count x images_each: {now[0]} x {now[1]}, the dataset in {store.url} has "
            f"{was[0]} x {was[1]}; {'a dataset only grows' if shrinks else '--extend grows it'}"
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
    """Write a dataset's claim; the caller holds the folder's lock.

    Args:
        store: the output folder.
        recipe: the recipe of the dataset.
        digest: its content digest, with the versions of this environment.
        grown: the extents that the dataset had before.
        inherited: models and licences of the datasets that images are drawn from.
        models: the recipe's models, with sha256 and licence of their files; default: as the recipe
            states them.
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
    DATASET.write(store, claim)


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, old, new) for each value in which two JSON objects differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            inner = f"{path}.{name}" if path else name
            yield from differences(old.get(name), new.get(name), inner)
    elif old != new:
        yield path, old, new
