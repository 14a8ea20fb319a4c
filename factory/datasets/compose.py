"""Composing: a compose recipe becomes an index over the shards of its pools; no image is copied.

A composition is a pure function of its recipe and the pools' content: labels, order and draws
depend on names, keys and the seed, never on earlier compositions.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.datasets.centres import centre_cosines, pool_embeddings
from factory.datasets.claim import COMPOSITION, Claim
from factory.datasets.composition import (
    INDEX,
    SCHEMA,
    Composition,
    Removed,
    Taken,
    load_composition,
)
from factory.datasets.decode import decode
from factory.datasets.index import Copies, Index, index, ranks
from factory.datasets.licences import strictest
from factory.datasets.manifest import COMPOSED, DatasetManifest, load_manifest
from factory.datasets.people import People
from factory.datasets.provenance import Model, licence_of
from factory.datasets.store import Store
from factory.recipe import ComposeRecipe, InputError, PoolView, Weights, digest
from factory.seeding import seed64

VIEW = Claim(COMPOSITION, "the composition", own=(INDEX,))  # written last, as the commit

Say = Callable[[str], None]
Load = Callable[[Weights], Any]


class TooFewError(InputError):
    """The pools hold fewer images or identities than the recipe asks for; a retry cannot help."""


@dataclass(frozen=True)
class OpenPool:
    """A finished dataset that a composition draws from."""

    name: str
    view: PoolView
    store: Store
    manifest: DatasetManifest
    index: Index

    @property
    def shards(self) -> dict[str, str]:
        """Return the sha256 of each shard's tar, by name."""
        return {entry.name: entry.sha256 for entry in self.manifest.shards}

    @cached_property
    def image_size(self) -> int:
        """Return the height of the first image in pixels."""
        with Copies(self.store, self.shards).open(self.index.shards[self.index.shard[0]]) as file:
            file.read(int(self.index.offset[0]))
            return len(decode(file.read(int(self.index.size[0]))))


@dataclass(frozen=True)
class Chosen:
    """The images that a composition takes of one pool.

    Attributes:
        rows: int64 [n], rows of the pool's index, in key order.
        cosine: float32 [n], cosines to the centres; NaN without a band.
        share: the pool's share of the budget, in images with repeats; None without a budget.
        removed: how many images the band and `least_images` left out.
    """

    rows: np.ndarray
    cosine: np.ndarray
    share: int | None
    removed: Removed


def compose(
    recipe: ComposeRecipe,
    out: Store,
    say: Say = lambda line: None,
    load: Load | None = None,
) -> Composition:
    """Write a composition: its index, then `composition.json`, which commits it.

    This reads the pools' indexes. It reads images only if a `centre_band` needs embeddings that the
    cache lacks. Equal recipes over equal pools give equal bytes, so a second call changes nothing.

    Args:
        recipe: the compose recipe.
        out: the composition's folder; the caller holds `out.lock`.
        say: receives a line of progress now and then.
        load: loads a recognizer and checks its sha256, for pools with a `centre_band`.

    Raises:
        TooFewError: a pool holds fewer images or identities than the recipe asks for.
        InputError: a pool is not a finished dataset, or not the one that the recipe names, or `out`
            holds another composition.
    """
    _refuse_other(out, recipe)
    shares = budget(recipe)
    pools = [
        _opened(name, recipe.pools[name]) for name in sorted(recipe.pools) if shares[name] != 0
    ]
    _refuse_repeated(pools)
    recognizer, people = _Recognizer(recipe, load), People(pools)
    taken: dict[str, Chosen] = {}
    for pool in sorted(pools, key=lambda pool: bool(pool.view.identities_of)):
        base = pool.view.identities_of
        if base and base not in taken:
            raise TooFewError(
                f"recipe field pools.{pool.name}.identities_of: {base} has no share of "
                f"{recipe.images} images; raise images or its weight"
            )
        others: tuple[str, ...] = () if base else people.shared(pool.name, taken)
        free = people.of(pool.name, base, taken[base].rows) if base else None
        if others:
            free = people.besides(pool.name, {name: taken[name].rows for name in others})
        cosines = _cosines(pool, recognizer, say) if pool.view.centre_band else None
        try:
            taken[pool.name] = select(
                pool.name, pool.view, recipe.seed, pool.index, shares[pool.name], free, cosines
            )
        except TooFewError as error:
            if not others:
                raise
            raise TooFewError(
                f"{error}; people whom {', '.join(others)} has already are not counted, unless "
                "identities_of gives both one label"
            ) from None
        if others:
            said = f"pool {pool.name} draws the same people as {', '.join(others)}"
            say(f"{said}, so it gives others than these do")
    table = _table(pools, taken, people)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    made = _described(recipe, pools, taken, table, sink.getvalue(), recognizer)
    if out.exists(COMPOSITION) and load_composition(out).content_digest != made.content_digest:
        raise InputError(f"--out {out.url}: its pools have grown since; accepted is another folder")
    out.write(INDEX, sink.getvalue())
    out.write(COMPOSITION, json.dumps(made.model_dump(mode="json"), indent=1).encode())
    return made


def budget(recipe: ComposeRecipe) -> dict[str, int | None]:
    """Return how many images of an epoch each pool provides; None means all.

    The recipe's `images` is divided in proportion to the weights and rounded down. The rest goes to
    the pools with the largest remainders, among equals to the first name. The shares sum to
    `images`.
    """
    names = sorted(recipe.pools)
    if recipe.images is None:
        return dict.fromkeys(names)
    weights = np.array([recipe.pools[name].weight for name in names])
    exact = recipe.images * weights / weights.sum()
    shares = np.floor(exact).astype(np.int64)
    left = recipe.images - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:left]] += 1
    return {name: int(share) for name, share in zip(names, shares, strict=True)}


def select(
    name: str,
    view: PoolView,
    seed: int,
    index: Index,
    share: int | None = None,
    among: np.ndarray | None = None,
    cosines: np.ndarray | None = None,
) -> Chosen:
    """Choose a pool's images.

    The band filters first, then `least_images`, `identities` and `images_each`. If `images_each` is
    given, the share is filled identity by identity; otherwise in rounds of one image of each
    identity.

    Args:
        name: the pool's name, for messages.
        view: the recipe's view of the pool.
        seed: the recipe's seed.
        index: the pool's index.
        share: the pool's share in images with repeats; at most `repeat - 1` of it stay unused.
        among: the only identities to accept; default: all.
        cosines: the cosine of each image to its centre, float64 [N], if there is a band.

    Raises:
        TooFewError: fewer identities or images qualify than the view asks for.
    """
    offered = np.arange(len(index))
    if among is not None:
        offered = offered[np.isin(index.labels, among)]
    rows, removed = _in_band(offered, view, cosines)
    _, person, counts = np.unique(index.labels[rows], return_inverse=True, return_counts=True)
    small = counts[person] < view.least_images
    removed = removed.model_copy(update={"in_small_identities": int(small.sum())})
    rows = rows[~small]
    people = np.unique(index.labels[rows])
    if view.identities is not None:
        if len(people) < view.identities:
            raise TooFewError(
                f"recipe field pools.{name}.identities: {view.identities}, but only {len(people)} "
                f"qualify{_criteria(view)}"
            )
        people = people[: view.identities]
        rows = rows[np.isin(index.labels[rows], people)]
    order = rows
    if view.draw == "random":
        keys = index.keys[rows].tolist()
        drawn = np.array([seed64(seed, f"draw/{key.decode()}") for key in keys], np.uint64)
        order = rows[np.argsort(drawn, kind="stable")]
    rank = ranks(index.labels[order])
    if view.images_each is not None:
        order, rank = order[rank < view.images_each], rank[rank < view.images_each]
    if share is not None:
        wanted = share // view.repeat
        if not wanted:
            raise TooFewError(
                f"recipe field pools.{name}.repeat: {view.repeat}, but the pool's share is only "
                f"{share} images; lower repeat, or raise images or the pool's weight"
            )
        if len(order) < wanted:
            raise TooFewError(
                f"recipe field images: pool {name} has a share of {share} of them, but "
                f"{len(order)} images of {len(people)} identities qualify{_criteria(view)}, each "
                f"{view.repeat} times; lower images or the pool's weight, or raise repeat"
            )
        whole_identities = view.images_each is not None
        by = (rank, index.labels[order]) if whole_identities else (index.labels[order], rank)
        order = order[np.lexsort(by)[:wanted]]
        met = len(np.unique(index.labels[order]))
        if view.identities is not None and met < view.identities:
            raise TooFewError(
                f"recipe field pools.{name}.identities: {view.identities}, but the pool's share of "
                f"{share} images is used up after {met} of them; ask for {met} or fewer, or raise "
                "images or the pool's weight"
            )
    rows = np.sort(order)
    if not len(rows):
        raise TooFewError(f"recipe field pools.{name}: no image qualifies{_criteria(view)}")
    cosine = np.full(len(rows), np.nan) if cosines is None else cosines[rows]
    return Chosen(rows, cosine.astype(np.float32), share, removed)


class _Recognizer:
    """The recognizer that measures a band; it is loaded only if embeddings are not cached."""

    def __init__(self, recipe: ComposeRecipe, load: Load | None) -> None:
        self.weights = recipe.recognizer if _banded(recipe) else None
        self._load = load
        self._loaded: Any = None

    def load(self) -> Any:
        assert self.weights is not None and self._load is not None, "a band is measured"
        if self._loaded is None:
            self._loaded = self._load(self.weights)
        return self._loaded

    @property
    def sha256(self) -> str:
        assert self.weights is not None
        return self.weights.sha256 or self.load().sha256

    def models(self) -> list[Model]:
        """Return the recognizer as a model that touched the composition, if there is a band."""
        if self.weights is None:
            return []
        what = "recipe field recognizer.location"
        licence = licence_of(self.weights, what)
        name, location = "centre_band recognizer", self.weights.location
        return [Model(name=name, location=location, sha256=self.sha256, licence=licence)]


def _banded(recipe: ComposeRecipe) -> bool:
    return any(view.centre_band and view.weight for view in recipe.pools.values())


def _refuse_other(out: Store, recipe: ComposeRecipe) -> None:
    found = VIEW.read(out)
    if found is not None:
        differing = VIEW.differing(load_composition(out).recipe, recipe.model_dump(mode="json"))
        if differing:
            raise VIEW.another(out, differing)


def _opened(name: str, view: PoolView) -> OpenPool:
    field = f"recipe field pools.{name}"
    store = Store(view.url)
    try:
        manifest = load_manifest(store)
    except InputError as error:
        raise InputError(f"{field}.url: {error}") from None
    if view.content_digest and view.content_digest != manifest.content_digest:
        raise InputError(
            f"{field}.content_digest: {view.content_digest}, but {store.url} has "
            f"{manifest.content_digest}; accepted is the dataset the recipe was written for"
        )
    found = index(store, {entry.name: entry.sha256 for entry in manifest.shards})
    if not len(found):
        raise InputError(f"{field}.url: {store.url} holds no image")
    return OpenPool(name, view, store, manifest, found)


def _refuse_repeated(pools: list[OpenPool]) -> None:
    """Refuse pools that would give a person two labels, or an epoch images of two sizes."""
    for number, pool in enumerate(pools):
        field = f"recipe field pools.{pool.name}"
        for other in pools[:number]:
            one, two = (p.view.identities_of or p.name for p in (pool, other))
            if pool.manifest.content_digest == other.manifest.content_digest and one != two:
                raise InputError(
                    f"{field}.url: it holds the same images as pool {other.name}, so that each "
                    f"person would get two labels; identities_of: {other.name} gives them one"
                )
        if pool.image_size != pools[0].image_size:
            raise InputError(
                f"{field}.url: its images have {pool.image_size} pixels, those of pool "
                f"{pools[0].name} have {pools[0].image_size}; all pools must have one size"
            )


def _cosines(pool: OpenPool, recognizer: _Recognizer, say: Say) -> np.ndarray:
    embedded = pool_embeddings(
        pool.store, pool.shards, pool.index, recognizer.sha256, recognizer.load, say
    )
    return centre_cosines(embedded, pool.index.labels)


def _in_band(
    rows: np.ndarray, view: PoolView, cosines: np.ndarray | None
) -> tuple[np.ndarray, Removed]:
    if view.centre_band is None:
        return rows, Removed()
    assert cosines is not None
    low, high = view.centre_band
    found = cosines[rows]
    below, above = found < low, (found >= high) & (high < 1.0)
    alone = np.isnan(found)
    removed = Removed(
        below_band=int(below.sum()), above_band=int(above.sum()), no_centre=int(alone.sum())
    )
    return rows[~(below | above | alone)], removed


def _criteria(view: PoolView) -> str:
    """Return the conditions on a pool's images, for messages."""
    said = []
    if view.centre_band is not None:
        said.append(f"centre_band {list(view.centre_band)}")
    if view.least_images > 1:
        said.append(f"least_images {view.least_images}")
    if view.images_each is not None:
        said.append(f"images_each {view.images_each}")
    return f" ({', '.join(said)})" if said else ""


def _table(pools: list[OpenPool], taken: dict[str, Chosen], people: "People") -> pa.Table:
    """Return the index: pools by name, images by key, labels by pool and then identity."""
    first: dict[str, int] = {}
    met: dict[str, np.ndarray] = {}
    count = 0
    for pool in pools:
        if not pool.view.identities_of:
            met[pool.name] = np.unique(pool.index.labels[taken[pool.name].rows])
            first[pool.name] = count
            count += len(met[pool.name])
    parts = []
    for pool in pools:
        rows, found = taken[pool.name].rows, pool.index
        base = pool.view.identities_of or pool.name
        identity = found.labels[rows]
        shard = pa.DictionaryArray.from_arrays(
            pa.array(found.shard[rows], pa.int32()), pa.array(found.shards, pa.string())
        )
        name = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(len(rows), np.int32)), pa.array([pool.name])
        )
        columns = {
            "label": first[base] + np.searchsorted(met[base], people.labels(pool.name, base)[rows]),
            "pool": name,
            "shard": shard,
            "key": pa.array([key.decode() for key in found.keys[rows].tolist()]),
            "identity": identity,
            "offset": found.offset[rows],
            "size": found.size[rows],
            "sidecar_offset": found.sidecar_offset[rows],
            "sidecar_size": found.sidecar_size[rows],
            "repeat": np.full(len(rows), pool.view.repeat, np.int32),
            "cosine": pa.array(taken[pool.name].cosine, from_pandas=True),  # NaN becomes null
        }
        parts.append(pa.table(columns, schema=SCHEMA))
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks()


def _described(
    recipe: ComposeRecipe,
    pools: list[OpenPool],
    taken: dict[str, Chosen],
    table: pa.Table,
    written: bytes,
    recognizer: _Recognizer,
) -> Composition:
    sha = hashlib.sha256()
    for name in ("label", "key", "repeat"):
        sha.update("\n".join(map(str, table[name].to_pylist())).encode() + b"\0")
    digests = {pool.name: pool.manifest.content_digest for pool in pools}
    models = [
        model.model_copy(update={"name": f"{pool.name}: {model.name}"})
        for pool in pools
        for model in pool.manifest.models
    ]
    models += recognizer.models()
    described = {pool.name: _taken(pool, taken[pool.name]) for pool in pools}
    return Composition(
        recipe=recipe.model_dump(mode="json"),
        content_digest=digest({"pools": digests, "seed": recipe.seed, "rows": sha.hexdigest()}),
        index_sha256=hashlib.sha256(written).hexdigest(),
        identities=int(np.max(table["label"].to_numpy())) + 1,
        images=len(table),
        images_with_repeats=sum(one.images_with_repeats for one in described.values()),
        image_size=pools[0].image_size,
        pools=described,
        models=tuple(models),
        licence=strictest([pool.manifest.licence for pool in pools] + [m.licence for m in models]),
        digital_source_type=" AND ".join(sorted({p.manifest.digitalSourceType for p in pools})),
    )


def _taken(pool: OpenPool, selection: Chosen) -> Taken:
    labels = pool.index.labels
    cosine = selection.cosine
    return Taken(
        url=pool.view.url,
        content_digest=pool.manifest.content_digest,
        system=str(pool.manifest.recipe.get("system", COMPOSED)),
        licence=pool.manifest.licence,
        digital_source_type=pool.manifest.digitalSourceType,
        real=pool.view.real,
        offered_identities=len(np.unique(labels)),
        offered_images=len(labels),
        removed=selection.removed,
        share=selection.share,
        identities=len(np.unique(labels[selection.rows])),
        images=len(selection.rows),
        repeat=pool.view.repeat,
        images_with_repeats=len(selection.rows) * pool.view.repeat,
        mean_cosine=None if np.isnan(cosine).any() else round(float(cosine.mean()), 6),
    )
