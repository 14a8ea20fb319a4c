"""Manifests: a shard's manifest commits it, and the merge of all is the dataset's manifest."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError, model_validator

from factory.cluster.ranges import InRanges, alone
from factory.datasets.claim import CLAIM, read_claim
from factory.datasets.licences import strictest
from factory.datasets.patience import in_order
from factory.datasets.provenance import DIGITAL_SOURCE_TYPE, Inherited, Model
from factory.datasets.store import Store
from factory.plan import Extent, Shard, Slice
from factory.recipe import FaultError, InputError, Part, Total

REASONS = (
    "no_face",
    "identity_drift",
    "identity_collision",
    "near_duplicate",
    "real_lookalike",
    "low_quality",
    "unreadable",
    "wrong_size",
)
MANIFEST = "manifest.json"
FOLDER = "shards"
COMPOSED = "composition"  # the system of a materialised composition
TAR, REJECTS, COMMIT = ".tar", ".rejects.parquet", ".json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def shard_file(name: str, suffix: str) -> str:
    """Return the name of a shard's file in its store; suffix is TAR, REJECTS or COMMIT."""
    return f"{FOLDER}/{name}{suffix}"


class ShardManifest(Part):
    """What one shard holds and how it was made; a shard is committed if its manifest exists."""

    name: str
    sha256: Sha256 = Field(description="Sha256 of the tar.")
    bytes: Total = Field(description="Size of the tar.")
    planned: Total = Field(description="Number of slots of the shard.")
    kept: Total = Field(description="Number of samples in the tar.")
    reasons: dict[str, Total] = Field(description="Rejected images of all attempts, by reason.")
    missing: tuple[str, ...] = Field(description="Keys of the slots that stayed empty, in order.")
    seconds: dict[str, float] = Field(description="Time spent, by stage.")
    content_digest: str
    system: str
    versions: dict[str, str] = Field(
        description="Of the libraries that compute pixels; with a GPU, its name and CUDA's version."
    )
    rejects_sha256: Sha256

    @model_validator(mode="after")
    def _adds_up(self) -> "ShardManifest":
        if self.kept + len(self.missing) != self.planned:
            raise ValueError(
                f"{self.kept} kept and {len(self.missing)} missing are not {self.planned} planned"
            )
        undeclared = sorted(set(self.reasons) - set(REASONS))
        if undeclared:
            raise ValueError(f"reason {undeclared[0]!r} is not declared: {', '.join(REASONS)}")
        return self


class ShardEntry(Part):
    """One shard in the dataset's manifest."""

    name: str
    sha256: Sha256
    bytes: Total
    kept: Total


class DatasetTotals(Part):
    """Sums over all shards."""

    planned: Total
    kept: Total
    bytes: Total
    reasons: dict[str, Total]
    seconds: dict[str, float]


class DatasetManifest(Part):
    """What a dataset holds: its recipe and the merge of its shards' manifests."""

    recipe: dict[str, Any]
    grown: tuple[Extent, ...]
    content_digest: str
    bank_digest: str
    shards: tuple[ShardEntry, ...]
    totals: DatasetTotals
    models: tuple[Model, ...]
    licence: str = Field(description="The strictest of the recipe's and its models'.")
    created_with: dict[str, str] = Field(description="Versions; several if machines differed.")
    digitalSourceType: str = DIGITAL_SOURCE_TYPE


def commit_shard(store: Store, tar: Path, rejects: Path, manifest: ShardManifest) -> None:
    """Copy a finished shard's files to their final names; the manifest comes last.

    A second call, even in another process at the same time, does no harm: the names are fixed and
    equal work gives equal bytes. A committed shard stays as it is. If a committed shard has lost
    its tar, the new tar is stored, provided that its sha256 is the one in the manifest.

    Raises:
        FaultError: the tar was lost, and the new one differs from what the manifest says.
    """
    home, commit = shard_file(manifest.name, TAR), shard_file(manifest.name, COMMIT)
    stated = store.exists(commit)
    if stated and store.exists(home):
        return
    if stated:
        _check_remade(store, manifest)
    store.put(tar, home)
    store.put(rejects, shard_file(manifest.name, REJECTS))
    if not stated:
        store.write(commit, manifest.model_dump_json(indent=1).encode())


def _check_remade(store: Store, remade: ShardManifest) -> None:
    """Raise FaultError if the manifest in the store states other bytes than the new one."""
    try:
        held = load_shard_manifest(store, remade.name)
    except ValueError as error:
        why = f"is damaged ({error})"
    else:
        if (held.sha256, held.rejects_sha256) == (remade.sha256, remade.rejects_sha256):
            return
        why = f"says sha256 {held.sha256}, made again it has {remade.sha256}"
        if held.sha256 == remade.sha256:
            why = f"says rejects_sha256 {held.rejects_sha256}, made again {remade.rejects_sha256}"
    raise FaultError(
        f"{store.url}: the tar of shard {remade.name} is missing, and its manifest {why}; "
        "jobs/verify.py URL --repair removes the manifest, the same command then makes the shard"
    )


def committed(store: Store) -> set[str]:
    """Return the names of the shards that have both a tar and a manifest; lists the store once."""
    half: set[str] = set()
    whole: set[str] = set()
    for path in store.list(FOLDER):
        name = path.removeprefix(f"{FOLDER}/")
        stem = name.removesuffix(TAR if name.endswith(TAR) else COMMIT)
        if stem == name:
            continue
        if stem in half:  # a store has each file once, so the other one was the tar or the manifest
            half.remove(stem)
            whole.add(stem)
        else:
            half.add(stem)
    return whole


def merged_sha256(store: Store, names: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of each shard that a dataset's manifest states, by name.

    A dataset that is still being made has no such manifest, and one that grows has further shards.

    Args:
        store: the dataset.
        names: the committed shards.

    Raises:
        InputError: the manifest is malformed, or states a shard that is not among `names`.
    """
    if not store.exists(MANIFEST):
        return {}
    stated = {entry.name: entry.sha256 for entry in load_manifest(store).shards}
    lost = sorted(stated.keys() - set(names))
    if lost:
        raise InputError(
            f"dataset {store.url}: {MANIFEST} states {lost[0]}, which is not there ({len(lost)} "
            "such); the command that made the dataset makes it again"
        )
    return stated


def load_shard_manifest(store: Store, name: str) -> ShardManifest:
    """Read the manifest of a shard.

    Raises:
        FileNotFoundError: the shard is not committed.
        ValueError: the file is not a manifest of this shard.
    """
    path = shard_file(name, COMMIT)
    try:
        manifest = ShardManifest.model_validate_json(store.read(path))
    except ValidationError as error:
        raise ValueError(f"{path}: {first_fault(error)}") from None
    if manifest.name != name:
        raise ValueError(f"{path}: it is the manifest of {manifest.name}")
    return manifest


def load_manifest(store: Store) -> DatasetManifest:
    """Read the manifest of a dataset; InputError if it is missing or malformed."""
    if not store.exists(MANIFEST):
        raise InputError(f"{store.url}: no finished dataset there ({MANIFEST} is missing)")
    if store.exists(CLAIM):
        read_claim(store)  # a damaged claim is a damaged dataset, whoever reads it
    try:
        return DatasetManifest.model_validate_json(store.read(MANIFEST))
    except ValidationError as error:
        raise InputError(f"{store.url}/{MANIFEST}: {first_fault(error)}") from None


def first_fault(error: ValidationError) -> str:
    """Return the first faulty field of a file, and what is wrong with it."""
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc'])) or '(whole)'}: {fault['msg']}"


def merge(
    store: Store, shards: Iterable[Shard | Slice], spread: InRanges = alone
) -> DatasetManifest:
    """Merge the manifests of all planned shards into the dataset's manifest, and write it.

    Args:
        store: the dataset's folder, with its claim (`datasets.claim`).
        shards: every planned shard, in the order of the plan.
        spread: where ranges of manifests are read.

    Raises:
        InputError: there is no claim, a planned shard is missing, a manifest is unreadable, or a
            shard has another content digest than the claim.
    """
    made = merged(read_claim(store), _loaded(store, shards, spread))
    content = to_bytes(made)
    if not store.exists(MANIFEST) or store.read(MANIFEST) != content:
        store.write(MANIFEST, content)
    return made


def inherited(stores: Iterable[Store]) -> Inherited | None:
    """Return the models and licences of finished datasets; None if there are no datasets.

    Raises:
        InputError: a dataset is not finished.
    """
    found = [load_manifest(store) for store in stores]
    if not found:
        return None
    models = dict.fromkeys(model for one in found for model in one.models)
    return Inherited(models=tuple(models), licences=tuple(one.licence for one in found))


def merged(claim: dict[str, Any], manifests: Iterable[ShardManifest]) -> DatasetManifest:
    """Return the dataset's manifest, a pure function of its claim and its shards' manifests."""
    entries: list[ShardEntry] = []
    reasons: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    planned = kept = size = 0
    versions: dict[str, set[str]] = {}
    for one in manifests:
        if one.content_digest != claim["content_digest"]:
            raise InputError(
                f"shard {one.name} belongs to another dataset: its content digest is "
                f"{one.content_digest}, that of this dataset {claim['content_digest']}"
            )
        entries.append(ShardEntry(name=one.name, sha256=one.sha256, bytes=one.bytes, kept=one.kept))
        reasons.update(one.reasons)
        seconds.update(one.seconds)
        planned, kept, size = planned + one.planned, kept + one.kept, size + one.bytes
        for library, version in one.versions.items():
            versions.setdefault(library, set()).add(version)
    recipe = claim["recipe"]
    if "models" in claim:  # as their files were; a composition's include those of its pools
        models = tuple(Model(**part) for part in claim["models"])
    else:
        models = tuple(
            Model(name=name, **part) for name, part in sorted(recipe.get("weights", {}).items())
        )
    licence = claim["licence"] if "licence" in claim else recipe["licence"]
    taken = Inherited.model_validate(claim.get("inherited", {}))
    models = tuple(dict.fromkeys((*models, *taken.models)))
    return DatasetManifest(
        recipe=recipe,
        grown=tuple((count, images) for count, images in claim["grown"]),
        content_digest=claim["content_digest"],
        bank_digest=claim["bank_digest"],
        shards=tuple(entries),
        totals=DatasetTotals(
            planned=planned,
            kept=kept,
            bytes=size,
            reasons=dict(sorted(reasons.items())),
            seconds={stage: round(seconds[stage], 3) for stage in sorted(seconds)},
        ),
        models=models,
        licence=strictest([licence, *taken.licences, *(model.licence for model in models)]),
        created_with={library: ", ".join(sorted(found)) for library, found in versions.items()},
        digitalSourceType=claim.get("digitalSourceType", DIGITAL_SOURCE_TYPE),
    )


def to_bytes(manifest: DatasetManifest) -> bytes:
    """Return the bytes of a manifest's file; equal manifests give equal bytes."""
    return json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True).encode()


class Unread(NamedTuple):
    """A manifest that cannot be merged, and why; "" if it is missing."""

    name: str
    why: str


def _read(store: Store, names: Sequence[str]) -> list[ShardManifest | Unread]:
    """Return the manifests of shards, in their order; several are read at once."""

    def load(name: str) -> ShardManifest | Unread:
        try:
            return load_shard_manifest(store, name)
        except FileNotFoundError:
            return Unread(name, "")
        except ValueError as error:
            return Unread(name, str(error))

    return list(in_order(load, names, store.workers))


def _loaded(
    store: Store, shards: Iterable[Shard | Slice], spread: InRanges
) -> Iterator[ShardManifest]:
    unread: list[Unread] = []
    for found in spread(partial(_read, store), (shard.name for shard in shards)):
        if isinstance(found, Unread):
            unread.append(found)
        else:
            yield found
    missing = sorted(one.name for one in unread if not one.why)
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InputError(f"{store.url}: {len(missing)} planned shards are missing: {names}")
    if unread:
        first = min(one.why for one in unread)
        raise InputError(f"{store.url}: {len(unread)} manifests are damaged: {first}")
