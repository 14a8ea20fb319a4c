"""The source of an export: the images of a dataset or a composition, one after another."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import IO, Any, NamedTuple

from factory.datasets.manifest import (
    MANIFEST,
    TAR,
    DatasetManifest,
    ShardEntry,
    load_manifest,
    shard_file,
)
from factory.datasets.patience import in_order
from factory.datasets.provenance import Model, sha256_file
from factory.datasets.scratch import scratch
from factory.datasets.store import Store
from factory.datasets.tar import TarError, members
from factory.recipe import FaultError, InputError

EXTENSIONS = ("jpg", "png")
PLANNED = re.compile(r"i\d+-(\d+)-")  # a planned shard's name states the end of its identities
ROWS = 1 << 16  # rows of a composition's index that are read together


class SourceItem(NamedTuple):
    """One image of the source."""

    label: int
    encoded: bytes
    sidecar: bytes


@dataclass(frozen=True)
class Source:
    """A dataset or a composition that can be read from start to end.

    Attributes:
        sha256: sha256 of its manifest.json or composition.json.
        recipe: its recipe.
        manifests: manifests of the datasets that hold its images.
        models: the models that touched an image.
        licence: the licence that the export inherits, the strictest of all parts.
        bytes: approximate size of its images in bytes, repeats counted.
        labels: labels are usually below this.
        read: yields its items with repeats, in an order that depends on the source alone.
    """

    sha256: str
    recipe: dict[str, Any]
    manifests: tuple[DatasetManifest, ...]
    models: tuple[Model, ...]
    licence: str
    bytes: int
    labels: int
    read: Callable[[], Iterator[SourceItem]]


def open_source(store: Store) -> Source:
    """Return the dataset or the composition of a store.

    Raises:
        InputError: there is neither, or a composition's pool or index has changed.
    """
    if not store.exists(MANIFEST):
        from factory.datasets.composition import is_composition

        if is_composition(store):
            return _open_composition(store)
    manifest = load_manifest(store)
    stops = [int(found[1]) for s in manifest.shards if (found := PLANNED.match(s.name))]
    return Source(
        sha256=hashlib.sha256(store.read(MANIFEST)).hexdigest(),
        recipe=manifest.recipe,
        manifests=(manifest,),
        models=manifest.models,
        licence=manifest.licence,
        bytes=manifest.totals.bytes,
        labels=max(stops, default=max(1, manifest.totals.kept)),
        read=lambda: (item for samples in _shards(store, manifest.shards) for _, item in samples),
    )


def _open_composition(store: Store) -> Source:
    from factory.datasets.claim import COMPOSITION
    from factory.datasets.composition import load_composition, pool_manifest

    composition = load_composition(store)
    used = _used(store, composition.index_sha256)
    manifests = {
        name: pool_manifest(name, taken, used.get(name, set()))
        for name, taken in composition.pools.items()
    }
    pools = {
        name: (Store(taken.url), {entry.name: entry for entry in manifests[name].shards})
        for name, taken in composition.pools.items()
    }

    def size(name: str) -> int:
        totals, taken = manifests[name].totals, composition.pools[name]
        return totals.bytes * taken.images_with_repeats // max(1, totals.kept)

    return Source(
        sha256=hashlib.sha256(store.read(COMPOSITION)).hexdigest(),
        recipe=composition.recipe,
        manifests=tuple(manifests[name] for name in sorted(manifests)),
        models=composition.models,
        licence=composition.licence,
        bytes=sum(size(name) for name in manifests),
        labels=composition.identities,
        read=lambda: _composed(store, composition.index_sha256, pools),
    )


def _index(store: Store, index_sha256: str, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows of a composition's index, `ROWS` at a time."""
    import pyarrow.parquet as pq

    from factory.datasets.composition import INDEX

    with store.local(INDEX) as path:
        if sha256_file(path) != index_sha256:
            raise InputError(f"{store.url}/{INDEX}: not the one composed; compose it again")
        for batch in pq.ParquetFile(path).iter_batches(ROWS, columns=columns):
            yield batch.to_pylist()


def _used(store: Store, index_sha256: str) -> dict[str, set[str]]:
    """Return the names of the shards that hold a composition's images, by pool."""
    used: dict[str, set[str]] = {}
    for rows in _index(store, index_sha256, ["pool", "shard"]):
        for row in rows:
            used.setdefault(row["pool"], set()).add(row["shard"])
    return used


def _composed(
    store: Store, index_sha256: str, pools: dict[str, tuple[Store, dict[str, ShardEntry]]]
) -> Iterator[SourceItem]:
    """Yield the images of a composition, reading its index piece by piece.

    The index is ordered by pool and key, so that a shard's rows are together, or nearly so.
    """
    for rows in _index(store, index_sha256, ["pool", "shard", "key", "label", "repeat"]):
        wanted: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
        for row in rows:
            shard = wanted.setdefault((row["pool"], row["shard"]), {})
            shard[row["key"]] = row["label"], row["repeat"]
        read = {  # the index is ordered, so that each pool's shards come in the order of `wanted`
            pool: _shards(home, [entries[name] for other, name in wanted if other == pool])
            for pool, (home, entries) in pools.items()
        }
        for (pool, name), keys in wanted.items():
            home = pools[pool][0]
            for key, item in next(read[pool]):
                label, repeat = keys.pop(key, (0, 0))
                for _ in range(repeat):
                    yield item._replace(label=label)
            if keys:
                raise FaultError(
                    f"{home.url}/{shard_file(name, TAR)}: has no sample {min(keys)} any more, "
                    "which the composition takes; compose it again"
                )


def _shards(
    store: Store, entries: Iterable[ShardEntry]
) -> Iterator[Iterator[tuple[str, SourceItem]]]:
    """Yield the samples of each shard; shards behind a URL are fetched ahead, several at once."""
    if store.root is not None:
        for entry in entries:
            yield _shard(store, entry, partial(store.open_input, shard_file(entry.name, TAR)))
        return
    with scratch() as folder:

        def fetched(entry: ShardEntry) -> ShardEntry:
            with suppress(FileNotFoundError):  # as it is missing in `folder`, too
                store.fetch(shard_file(entry.name, TAR), folder / entry.name)
            return entry

        for entry in in_order(fetched, entries, store.workers):
            path = folder / entry.name
            yield _shard(store, entry, partial(path.open, "rb"))
            path.unlink(missing_ok=True)


def _shard(
    store: Store, entry: ShardEntry, opened: Callable[[], IO[bytes]]
) -> Iterator[tuple[str, SourceItem]]:
    """Yield keys and samples of a shard; FaultError at its end if it is not the committed one."""
    sha, where, kept = hashlib.sha256(), f"{store.url}/{shard_file(entry.name, TAR)}", 0
    try:
        with opened() as file:
            for key, group in groupby(members(file, sha.update), attrgetter("key")):
                parts = {member.extension: member.data for member in group}
                kept += 1
                yield key, _item(f"{where} sample {key}", parts)
    except (FileNotFoundError, TarError) as error:
        what = "missing" if isinstance(error, FileNotFoundError) else error
        raise FaultError(f"{where}: {what}; jobs/verify.py names every fault") from None
    if sha.hexdigest() != entry.sha256 or kept != entry.kept:
        raise FaultError(f"{where}: not what its manifest says; jobs/verify.py names every fault")


def _item(where: str, parts: dict[str, bytes]) -> SourceItem:
    encoded = next((parts[kind] for kind in EXTENSIONS if kind in parts), None)
    if encoded is None or not parts.get("cls", b"").isdigit():
        raise InputError(
            f"{where}: has {', '.join(sorted(parts))}; accepted is a label (.cls) and a jpg or png"
        )
    return SourceItem(int(parts["cls"]), encoded, parts.get("json", b"{}"))
