"""Verification: it reads a dataset's folder once and names every fault."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from pydantic import TypeAdapter

from factory.cluster.ranges import InRanges, alone
from factory.datasets.claim import CLAIM, planned, read_claim
from factory.datasets.embeddings import FOLDER as EMBEDDINGS
from factory.datasets.embeddings import shard_of
from factory.datasets.manifest import (
    COMMIT,
    COMPOSED,
    FOLDER,
    MANIFEST,
    REJECTS,
    TAR,
    ShardManifest,
    load_shard_manifest,
    merged,
    shard_file,
    to_bytes,
)
from factory.datasets.patience import in_order
from factory.datasets.provenance import DIGITAL_SOURCE_TYPE
from factory.datasets.store import LOCK, PART, Store
from factory.datasets.tar import Member, TarError, grouped, members
from factory.plan import Shard, Slice, position_key, sample_key
from factory.recipe import InputError

BANK = "bank"
MEASURES = "measures/"  # results of the commands measure and evaluate
OURS = {CLAIM, MANIFEST, LOCK, "README.md", "LICENSE", "report.html"}
MAGIC = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}

POSITION = len(position_key(0))
SIDECAR = TypeAdapter(dict[str, Any])

MISSING_SHARD = "missing_shard"
ORPHAN_TAR = "orphan_tar"
ORPHAN_MANIFEST = "orphan_manifest"
ORPHAN_REJECTS = "orphan_rejects"
UNREADABLE_MANIFEST = "unreadable_manifest"
WRONG_MANIFEST = "wrong_manifest"
TRUNCATED_TAR = "truncated_tar"
CHANGED_TAR = "changed_tar"
CHANGED_REJECTS = "changed_rejects"
WRONG_COUNT = "wrong_count"
DUPLICATE_KEY = "duplicate_key"
FOREIGN_KEY = "foreign_key"
WRONG_MEMBERS = "wrong_members"
WRONG_LABEL = "wrong_label"
WRONG_SIDECAR = "wrong_sidecar"
WRONG_IMAGE = "wrong_image"
STALE_MERGE = "stale_merge"
MISSING_MERGE = "missing_merge"
PART_FILE = "part_file"
FOREIGN_FILE = "foreign_file"
CHANGED_BANK = "changed_bank"
UNREADABLE_CLAIM = "unreadable_claim"

KEPT_BY_REPAIR = {MISSING_SHARD, MISSING_MERGE, FOREIGN_FILE, CHANGED_BANK, UNREADABLE_CLAIM}


@dataclass(frozen=True)
class Fault:
    """A fault of a dataset.

    Attributes:
        kind: one of the kinds that this module declares.
        name: the faulty file.
        detail: what was found, and what is expected.
    """

    kind: str
    name: str
    detail: str

    def __str__(self) -> str:
        """Return the fault as one line."""
        return f"{self.name}: {self.kind}: {self.detail}"


@dataclass(frozen=True)
class Expected:
    """Values that every shard of a dataset must have; an empty `image` accepts all formats."""

    content_digest: str
    system: str
    image: str
    source_type: str

    @cached_property
    def extensions(self) -> list[set[str]]:
        """Return the sets of extensions that the members of a sample may have."""
        return [{"cls", "json", image} for image in ([self.image] if self.image else MAGIC)]


@dataclass(frozen=True)
class Checked:
    """The result of checking a shard; the manifest is None if it cannot be merged."""

    manifest: ShardManifest | None
    faults: list[Fault]


def verify(store: Store, spread: InRanges = alone) -> list[Fault]:
    """Return every fault of a dataset, in the order of the plan; an empty list if it is whole.

    Every byte of the folder is read.

    Args:
        store: the folder of a dataset.
        spread: where ranges of shards are checked.

    Raises:
        InputError: there is no dataset.
    """
    try:
        claim = read_claim(store)
        expected, shards = _claimed(claim)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError) and not store.exists(CLAIM):
            raise
        return [Fault(UNREADABLE_CLAIM, CLAIM, f"{type(error).__name__}: {error}")]
    sizes = store.sizes()
    faults: list[Fault] = []
    whole = True

    def mergeable() -> Iterator[ShardManifest]:
        nonlocal whole
        for checked in spread(partial(_checked, store, expected), _listed(shards, sizes)):
            faults.extend(checked.faults)
            if checked.manifest is None:
                whole = False
            else:
                yield checked.manifest

    merge = merged(claim, mergeable())
    faults.extend(_strangers(sorted(sizes), {shard.name for shard in shards}))
    faults.extend(_bank(store, set(sizes)))
    if whole and MANIFEST not in sizes:
        faults.append(Fault(MISSING_MERGE, MANIFEST, "every shard is there; run its command again"))
    elif whole and store.read(MANIFEST) != to_bytes(merge):
        faults.append(Fault(STALE_MERGE, MANIFEST, "not the merge of the shards' manifests"))
    return faults


def _listed(
    shards: Iterable[Shard | Slice], sizes: Mapping[str, int]
) -> Iterator[tuple[Shard | Slice, dict[str, int]]]:
    """Yield each shard with the sizes of those of its files that exist."""
    for shard in shards:
        files = (shard_file(shard.name, suffix) for suffix in (TAR, COMMIT, REJECTS))
        yield shard, {file: sizes[file] for file in files if file in sizes}


def _checked(
    store: Store,
    expected: Expected,
    listed: Sequence[tuple[Shard | Slice, dict[str, int]]],
) -> list[Checked]:
    def check(one: tuple[Shard | Slice, dict[str, int]]) -> Checked:
        return check_shard(store, *one, expected)

    return list(in_order(check, listed, store.workers))


def check_shard(
    store: Store, shard: Shard | Slice, sizes: Mapping[str, int], expected: Expected
) -> Checked:
    """Check one planned shard.

    Args:
        store: the folder of the dataset.
        shard: the planned shard.
        sizes: the size in bytes of each file that exists.
        expected: values that the shard must have.
    """
    tar, commit, rejects = (shard_file(shard.name, suffix) for suffix in (TAR, COMMIT, REJECTS))
    if commit not in sizes:
        if tar in sizes:
            return Checked(None, [Fault(ORPHAN_TAR, tar, "not committed: it has no manifest")])
        if rejects in sizes:
            return Checked(None, [Fault(ORPHAN_REJECTS, rejects, "not committed")])
        return Checked(None, [Fault(MISSING_SHARD, tar, f"{shard.samples} images are planned")])
    if tar not in sizes:
        return Checked(None, [Fault(ORPHAN_MANIFEST, commit, "its tar is missing")])
    try:
        manifest = load_shard_manifest(store, shard.name)
    except ValueError as error:
        return Checked(None, [Fault(UNREADABLE_MANIFEST, commit, str(error))])
    faults = [
        Fault(WRONG_MANIFEST, commit, f"{field} is {found!r}, {right!r} is expected")
        for field, found, right in (
            ("content_digest", manifest.content_digest, expected.content_digest),
            ("system", manifest.system, expected.system),
            ("planned", manifest.planned, shard.samples),
        )
        if found != right
    ]
    if manifest.content_digest != expected.content_digest:
        return Checked(None, faults)
    if rejects not in sizes:
        faults.append(Fault(CHANGED_REJECTS, rejects, "missing"))
    elif hashlib.sha256(store.read(rejects)).hexdigest() != manifest.rejects_sha256:
        faults.append(Fault(CHANGED_REJECTS, rejects, "sha256 is not the manifest's"))
    size = sizes[tar]
    if size < manifest.bytes:
        detail = f"{size} bytes, the manifest says {manifest.bytes}"
        faults.append(Fault(TRUNCATED_TAR, tar, detail))
    else:
        faults.extend(_tar(store, tar, shard, manifest, expected))
    return Checked(manifest, faults)


def repair(store: Store, faults: Iterable[Fault]) -> list[str]:
    """Remove faulty files, so that generate makes them again; return their names.

    Of a faulty shard the manifest goes first, then the tar and the rejects. The bank, the claim and
    foreign files stay.
    """
    removed: set[str] = set()

    def remove(name: str) -> None:
        if store.exists(name):
            store.delete(name)
            removed.add(name)

    for fault in faults:
        if fault.kind in KEPT_BY_REPAIR:
            continue
        if fault.kind == STALE_MERGE:
            remove(MANIFEST)
        elif fault.kind == PART_FILE:
            removed.update(store.sweep())
        else:
            for suffix in (COMMIT, TAR, REJECTS):
                remove(shard_file(_stem(fault.name), suffix))
            remove(MANIFEST)
    return sorted(removed)


def _claimed(claim: dict[str, Any]) -> tuple[Expected, tuple[Shard | Slice, ...]]:
    shards = tuple(planned(claim))
    for field in ("content_digest", "bank_digest"):
        if not isinstance(claim[field], str):
            raise ValueError(f"{field} is {claim[field]!r}")
    recipe = claim["recipe"]
    if recipe["kind"] == "compose":
        return Expected(claim["content_digest"], COMPOSED, "", ""), shards
    source_type = claim.get("digitalSourceType", DIGITAL_SOURCE_TYPE)
    image = recipe["image"].get("format", "jpg")
    if image not in MAGIC:
        raise ValueError(f"image.format is {image!r}, accepted: {', '.join(MAGIC)}")
    if recipe.get("keep") or recipe["kind"] == "bank":  # images keep the encoding they came in
        image = ""
    return Expected(claim["content_digest"], recipe["system"], image, source_type), shards


def _stem(path: str) -> str:
    name = path.removeprefix(f"{FOLDER}/")
    for suffix in (REJECTS, TAR, COMMIT):
        name = name.removesuffix(suffix)
    return name


def _strangers(names: list[str], planned: set[str]) -> Iterator[Fault]:
    for name in names:
        if PART in name:
            yield Fault(PART_FILE, name, "left by a writer that died, or is writing now")
        elif name.startswith(f"{FOLDER}/"):
            if not name.endswith((REJECTS, TAR, COMMIT)) or _stem(name) not in planned:
                yield Fault(FOREIGN_FILE, name, "no planned shard has this file")
        elif name.startswith(f"{EMBEDDINGS}/"):
            if shard_of(name) not in planned:
                yield Fault(FOREIGN_FILE, name, "no planned shard has these embeddings")
        elif name not in OURS and not name.startswith((f"{BANK}/", MEASURES)):
            yield Fault(FOREIGN_FILE, name, "no part of a dataset")


def _bank(store: Store, names: set[str]) -> Iterator[Fault]:
    for name in sorted(name for name in names if name.startswith(f"{BANK}/")):
        stem, _, extension = name.rpartition(".")
        block, commit = f"{stem}.parquet", f"{stem}.json"
        if extension == "parquet" and commit not in names:
            yield Fault(CHANGED_BANK, block, "not committed: it has no manifest")
        if extension != "json":
            continue
        try:
            stated = json.loads(store.read(commit))["sha256"]
        except (ValueError, KeyError, TypeError):
            yield Fault(CHANGED_BANK, commit, "not the manifest of a block")
            continue
        if block not in names:
            yield Fault(CHANGED_BANK, commit, "its block is missing")
        elif hashlib.sha256(store.read(block)).hexdigest() != stated:
            yield Fault(CHANGED_BANK, block, "sha256 is not the manifest's")


class _Findings:
    """Faults of one tar: the first of each kind in words, and a count of the others."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}
        self.count: dict[str, int] = {}

    def add(self, kind: str, detail: str) -> None:
        self.first.setdefault(kind, detail)
        self.count[kind] = self.count.get(kind, 0) + 1

    def faults(self, name: str) -> list[Fault]:
        return [
            Fault(
                kind, name, detail + (f" (and {n - 1} more)" if (n := self.count[kind]) > 1 else "")
            )
            for kind, detail in self.first.items()
        ]


def _tar(
    store: Store, name: str, shard: Shard | Slice, manifest: ShardManifest, expected: Expected
) -> list[Fault]:
    sha, findings, empty = hashlib.sha256(), _Findings(), set(manifest.missing)
    samples, last = 0, ""
    try:
        with store.open_input(name) as file:
            for key, sample in grouped(members(file, sha.update)):
                if key <= last:
                    findings.add(DUPLICATE_KEY, f"{key} after {last}")
                last, samples = key, samples + 1
                if key in empty:
                    findings.add(WRONG_COUNT, f"{key} is there, the manifest says it is missing")
                _sample(key, sample, shard, expected, findings)
    except TarError as error:
        findings.add(CHANGED_TAR, str(error))
        return findings.faults(name)
    if sha.hexdigest() != manifest.sha256:
        findings.add(
            CHANGED_TAR, f"sha256 is {sha.hexdigest()}, the manifest says {manifest.sha256}"
        )
    if samples != manifest.kept:
        findings.add(WRONG_COUNT, f"{samples} samples, the manifest says {manifest.kept}")
    return findings.faults(name)


def _sample(
    key: str,
    sample: list[Member],
    shard: Shard | Slice,
    expected: Expected,
    findings: _Findings,
) -> None:
    parts = {member.extension: member.data for member in sample}
    if len(sample) != 3 or parts.keys() not in expected.extensions:
        found = [member.extension for member in sample]
        kind = DUPLICATE_KEY if len(parts) < len(sample) else WRONG_MEMBERS
        due = " or ".join(", ".join(sorted(one)) for one in expected.extensions)
        findings.add(kind, f"{key} has {', '.join(found)}; {due} are due")
        return
    image = next(extension for extension in parts if extension in MAGIC)
    if not parts[image].startswith(MAGIC[image]):
        findings.add(WRONG_IMAGE, f"{key}.{image} is no {image} image")
    if isinstance(shard, Slice):
        _positioned(key, parts, shard, findings)
        return
    first, _, second = key.partition("_")
    identity, slot = (int(first), int(second)) if (first + second).isdecimal() else (-1, -1)
    if not (
        shard.identity_start <= identity < shard.identity_stop
        and shard.slot_start <= slot < shard.slot_stop
        and key == sample_key(identity, slot)
    ):
        findings.add(FOREIGN_KEY, f"{key} belongs to no slot of this shard")
        return
    if parts["cls"] != b"%d" % identity:
        findings.add(WRONG_LABEL, f"{key}.cls is {parts['cls'][:20]!r}, {identity} is expected")
    wrong = _sidecar(parts["json"], identity, slot, expected)
    if wrong:
        findings.add(WRONG_SIDECAR, f"{key}.json: {wrong}")


def _positioned(key: str, parts: dict[str, bytes], shard: Slice, findings: _Findings) -> None:
    """Check a sample whose key is its position; only the sidecar states its label."""
    if not (key.isdecimal() and shard.start <= int(key) < shard.stop and len(key) == POSITION):
        findings.add(FOREIGN_KEY, f"{key} is no position of this shard")
        return
    try:
        label = SIDECAR.validate_json(parts["json"])["label"]
    except (ValueError, KeyError):
        findings.add(WRONG_SIDECAR, f"{key}.json: not a JSON object with a label")
        return
    if parts["cls"] != str(label).encode():
        findings.add(WRONG_LABEL, f"{key}.cls is {parts['cls'][:20]!r}, {label} is expected")


def _sidecar(data: bytes, identity: int, slot: int, expected: Expected) -> str:
    """Return what is wrong with a sidecar; "" if it is right."""
    try:
        found = SIDECAR.validate_json(data)
        attempt, seed, cosine = found["attempt"], found["seed"], found["cosine"]
        for field, right in (
            ("identity", identity),
            ("slot", slot),
            ("system", expected.system),
            ("content_digest", expected.content_digest),
            ("digitalSourceType", expected.source_type),
        ):
            value = found[field]
            if value != right or type(value) is not type(right):
                return f"{field} is {value!r}, {right!r} is expected"
    except KeyError as error:
        return f"{error.args[0]} is missing"
    except (ValueError, TypeError):
        return "not a JSON object"
    if type(attempt) is not int or attempt < 0:
        return f"attempt is {attempt!r}, 0 or more is expected"
    if type(seed) is not str or len(seed) != 16 or seed.strip("0123456789abcdef"):
        return f"seed is {seed!r}, 16 hex digits are expected"
    if cosine is not None and not (type(cosine) in (float, int) and -1.001 <= cosine <= 1.001):
        return f"cosine is {cosine!r}, -1 to 1 or null is expected"
    return ""
