"""Selection of an identity bank: candidates are embedded, screened, kept apart and drawn.

The networks run on Ray Data, a block of candidates a row. The choice is one pass in key order over
unit embeddings (DCFace section 4.1 and supplement C.1; docs/papers.md 1.3), so that it does not
depend on which actor was first. The result is a dataset of one image for each identity, with the
embeddings beside it.
"""

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from factory.cluster import hardware
from factory.cluster.precision import settled
from factory.cluster.workers import each
from factory.datasets.claim import CLAIM, DATASET, claimed, kept, read_claim
from factory.datasets.decode import PNG_MAGIC
from factory.datasets.embeddings import write_embeddings
from factory.datasets.images import ImageBank, contents_digest
from factory.datasets.licences import strictest
from factory.datasets.manifest import (
    DatasetManifest,
    ShardManifest,
    commit_shard,
    load_manifest,
    merge,
)
from factory.datasets.provenance import (
    DIGITAL_SOURCE_TYPE,
    checked_sha256,
    models,
    pinned,
    sha256_file,
    versions,
)
from factory.datasets.rejects import write_rejects
from factory.datasets.scratch import scratch
from factory.datasets.store import Store, parted
from factory.datasets.tar import write_tar
from factory.generation.run import check_sources, fill
from factory.nodes import makers
from factory.plan import ListedShard, sample_key
from factory.recipe import BankRecipe, FaultError, InputError, NamedDataset, digest
from factory.recognition.attributes import load_predictor
from factory.recognition.faces import load_faces
from factory.recognition.images import fitted
from factory.recognition.neighbours import packed
from factory.recognition.recognizers import load_recognizer
from factory.seeding import generator, hex16, seed64
from factory.systems.contexts import unit

SYSTEM = "bank"
BLOCK = 256  # candidates of one task; fixed, because batch size changes last bits
CANDIDATES = "-candidates"


@dataclass(frozen=True)
class Seen:
    """What the networks measured of N candidates, in key order.

    Attributes:
        embeddings: raw embeddings, float32 [N, D].
        known: highest cosine to a known face, float64 [N]; -1 without known faces.
        attributes: values float32 [N], by name.
    """

    embeddings: np.ndarray
    known: np.ndarray
    attributes: dict[str, np.ndarray]


@dataclass(frozen=True)
class Selection:
    """The candidates that become identities, and how many were left after each step.

    Attributes:
        rows: int64 [k], rows of the candidates, in the order of identities.
        counts: how many candidates were left, by step, in order.
    """

    rows: np.ndarray
    counts: dict[str, int]


class Beholder:
    """Measures blocks of candidates; loads its networks once."""

    def __init__(self, given: tuple[dict[str, Any], dict[str, Any], int]) -> None:
        """Take the recipe, the candidates' dataset and their image size, all as plain values."""
        recipe = BankRecipe.model_validate(given[0])
        hardware.set_up(recipe.workers.threads, recipe.workers.num_gpus > 0)
        candidates = NamedDataset.model_validate(given[1])
        self.bank = ImageBank(candidates, given[2], "recipe field candidates", firsts=True)
        weights = recipe.weights
        device = "cuda" if recipe.workers.num_gpus else "cpu"
        sha256 = {name: checked_sha256(name, part) for name, part in weights.items()}
        self.recognizer = load_recognizer(weights["recognizer"].location, device=device)
        self.faces = self.predictor = None
        if recipe.known is not None:
            known, seen_by = recipe.known, sha256["recognizer"]
            self.faces = load_faces(known.location, known.sha256, seen_by, "recipe field known")
        if "attributes" in weights:
            self.predictor = load_predictor(weights["attributes"].location, device)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return embeddings, cosines to known faces and attributes of one block."""
        start = int(batch["start"][0])
        rows = range(start, min(start + BLOCK, len(self.bank)))
        images = self.bank.images(rows)
        size = self.recognizer.size
        seen = np.stack([fitted(image, size, str(start), True) for image in images])
        raw = self.recognizer.embed(seen)
        known = np.full(len(raw), -1.0)
        if self.faces is not None:
            known = self.faces.nearest(unit(raw)).cosines[:, 0]
        read = {} if self.predictor is None else self.predictor.predict(images)
        made = {"embeddings": raw, "known": known, **{f"is {k}": v for k, v in read.items()}}
        return {"start": batch["start"], **{name: value[None] for name, value in made.items()}}


def check(recipe: BankRecipe) -> None:
    """Raise InputError if the recipe names an attribute that its predictor does not read."""
    if "attributes" in recipe.weights:
        check_names(recipe, load_predictor(recipe.weights["attributes"].location).attributes)


def check_names(recipe: BankRecipe, known: Collection[str]) -> None:
    """Raise InputError if a rule or a group names an attribute that is not in `known`."""
    asked = [(f"rules.{n}.attribute", rule.attribute) for n, rule in enumerate(recipe.rules)]
    asked += [("groups", name) for name in recipe.groups]
    for field, name in asked:
        if name not in known:
            raise InputError(f"recipe field {field}: {name!r}; accepted: {', '.join(known)}")


def select(recipe: BankRecipe, seen: Seen) -> Selection:
    """Choose identities among candidates, in key order.

    Args:
        recipe: states rules, r, count and draw.
        seen: the measurements of the candidates.

    Raises:
        InputError: a rule or a group names an attribute that was not predicted.
        FaultError: fewer candidates are left than the recipe's count.
    """
    check_names(recipe, seen.attributes)
    rows = np.arange(len(seen.embeddings))
    counts = {"candidates": len(rows)}
    for rule in recipe.rules:
        value = seen.attributes[rule.attribute][rows]
        low = -np.inf if rule.low is None else rule.low
        high = np.inf if rule.high is None else rule.high
        rows = rows[(value >= low) & (value <= high)]
    counts["attributes"] = len(rows)
    rows = rows[seen.known[rows] < recipe.max_cosine]
    counts["known"] = len(rows)
    if len(rows):
        rows = rows[packed(unit(seen.embeddings[rows]), recipe.max_cosine)]
    counts["unique"] = len(rows)
    wanted = recipe.count or max(len(rows), 1)
    if len(rows) < wanted:
        left = ", ".join(f"{step} {count}" for step, count in counts.items())
        raise FaultError(f"{left}: fewer than count, {wanted}; more candidates are needed")
    rows = np.sort(_drawn(recipe, seen, rows, wanted))
    counts["drawn"] = len(rows)
    return Selection(rows, counts)


def _drawn(recipe: BankRecipe, seen: Seen, rows: np.ndarray, wanted: int) -> np.ndarray:
    if recipe.draw == "first":
        return rows[:wanted]
    rows = generator(seed64(recipe.seed, "bank")).permutation(rows)
    if recipe.draw == "random":
        return rows[:wanted]
    columns = [
        np.searchsorted(cuts, seen.attributes[name][rows]) for name, cuts in recipe.groups.items()
    ]
    _, group = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    group = group.reshape(-1)
    members = [rows[group == one] for one in range(group.max() + 1)]
    # Take one of each group in turn; when a group runs out, the other groups go on.
    turns = np.concatenate([np.arange(len(part)) for part in members])
    return np.concatenate(members)[np.argsort(turns, kind="stable")][:wanted]


def make_bank(
    recipe: BankRecipe,
    out: str,
    say: Callable[[str], None],
    check_lock: Callable[[], None] = lambda: None,
) -> tuple[DatasetManifest, dict[str, int]]:
    """Make the candidates if the recipe says so, choose among them and commit the bank.

    Args:
        recipe: a bank recipe.
        out: folder or URL of the bank; new candidates are made beside it, in OUT-candidates.
        say: receives one line of progress at a time.
        check_lock: is called before each write; it raises if another writer took the folder.

    Returns:
        The bank's manifest, and how many candidates were left after each step.

    Raises:
        InputError: the folder holds another bank, or weights or candidates differ from what the
            recipe says of them.
        FaultError: fewer candidates are left than the recipe's count.
    """
    recipe, store = pinned(recipe), Store(out)
    held = claimed(store, recipe.kind)
    candidates = recipe.candidates or _generated(recipe, out, say)
    size = _size(candidates)
    images = ImageBank(candidates, size, "recipe field candidates", firsts=True)
    chosen = decisive(recipe, candidates)
    if held is not None and held["content_digest"] != chosen:
        raise DATASET.another(store, [("content_digest", held["content_digest"], chosen)])
    given = recipe.model_dump(mode="json"), candidates.model_dump(mode="json"), size
    rows = [{"start": start} for start in range(0, len(images), BLOCK)]
    blocks: dict[int, dict[str, np.ndarray]] = {}
    for block in each(rows, Beholder, given, makers(recipe.workers)):
        blocks[int(block.pop("start"))] = block
        say(f"candidates: {min(len(blocks) * BLOCK, len(images))} of {len(images)} seen")
    seen = _joined([blocks[start] for start in sorted(blocks)])
    selection = select(recipe, seen)
    say(", ".join(f"{step} {count}" for step, count in selection.counts.items()))
    made = _committed(recipe, store, images, seen, selection, chosen, check_lock)
    return made, selection.counts


def decisive(recipe: BankRecipe, candidates: NamedDataset) -> str:
    """Return the digest of all that changes a bank's bytes."""
    fields = recipe.model_dump(
        mode="json", include={"seed", "max_cosine", "rules", "count", "draw", "groups"}
    )
    return digest(
        {
            **fields,
            "shard_images": recipe.shard_images,
            "candidates": candidates.digest,
            "weights": {n: checked_sha256(n, part) for n, part in sorted(recipe.weights.items())},
            "known": recipe.known.sha256 if recipe.known else None,
        }
    )


def _generated(recipe: BankRecipe, out: str, say: Callable[[str], None]) -> NamedDataset:
    """Make the candidates, unless they are there already, and return their dataset."""
    assert recipe.generate is not None
    place, query = parted(out)
    store, handed_down = Store(place + CANDIDATES + query), check_sources(recipe.generate)
    generate = settled(kept(store, pinned(recipe.generate)), print)
    with store.lock("make_bank") as lock:
        fill(generate, lock, handed_down, say, extend=store.exists(CLAIM))
    return NamedDataset(url=store.url, digest=contents_digest(store))


def _size(candidates: NamedDataset) -> int:
    return read_claim(Store(candidates.url))["recipe"]["image"]["size"]


def _joined(blocks: Sequence[dict[str, np.ndarray]]) -> Seen:
    joined = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    attributes = {k.removeprefix("is "): v for k, v in joined.items() if k.startswith("is ")}
    return Seen(joined["embeddings"].astype(np.float32), joined["known"], attributes)


def _committed(
    recipe: BankRecipe,
    store: Store,
    images: ImageBank,
    seen: Seen,
    selection: Selection,
    chosen: str,
    check_lock: Callable[[], None],
) -> DatasetManifest:
    """Write the bank's shards with their embeddings, then merge the manifests."""
    count, most = len(selection.rows), recipe.shard_images
    shards = [
        ListedShard(start, min(start + most, count), 0, 1, min(most, count - start))
        for start in range(0, count, most)
    ]
    source, origin = read_claim(Store(images.url)), load_manifest(Store(images.url))
    claim = {
        "recipe": recipe.model_dump(mode="json")
        | {"system": SYSTEM, "image": source["recipe"]["image"]},
        "grown": [],
        "content_digest": chosen,
        "bank_digest": "",
        "models": [model.model_dump() for model in (*origin.models, *models(recipe.weights))],
        "licence": strictest([recipe.licence, origin.licence]),
        "digitalSourceType": source.get("digitalSourceType", DIGITAL_SOURCE_TYPE),
        "shards": [[s.identity_start, s.identity_stop, 0, 1, s.planned] for s in shards],
        "selection": selection.counts,
    }
    check_lock()
    DATASET.write(store, claim)
    recognizer = load_recognizer(recipe.weights["recognizer"].location)
    for shard in shards:
        rows = selection.rows[shard.identity_start : shard.identity_stop]
        keys = [sample_key(shard.identity_start + n, 0) for n in range(len(rows))]

        def samples(
            rows: np.ndarray = rows, keys: list[str] = keys, first: int = shard.identity_start
        ) -> Iterator[tuple[str, dict[str, bytes]]]:
            for number, (row, key) in enumerate(zip(rows, keys, strict=True), start=first):
                facts = images.sidecar(int(row)) | {
                    "identity": number,
                    "slot": 0,
                    "attempt": 0,
                    "seed": hex16(0),  # no random draw belongs to this image alone
                    "cosine": None,
                    "system": SYSTEM,
                    "content_digest": chosen,
                    "digitalSourceType": claim["digitalSourceType"],
                    "candidate": images.key(int(row)),
                }
                sidecar = json.dumps(facts, sort_keys=True).encode()
                label = str(number).encode()
                encoded = images.encoded(int(row))
                suffix = "png" if encoded.startswith(PNG_MAGIC) else "jpg"
                yield key, {suffix: encoded, "cls": label, "json": sidecar}

        began = time.perf_counter()
        with scratch() as folder:
            tar, rejects = folder / "shard.tar", folder / "rejects.parquet"
            sha256, size = write_tar(tar, samples())
            write_rejects(rejects, [])
            manifest = ShardManifest(
                name=shard.name,
                sha256=sha256,
                bytes=size,
                planned=shard.planned,
                kept=shard.planned,
                reasons={},
                missing=(),
                seconds={"encode": round(time.perf_counter() - began, 4)},
                content_digest=chosen,
                system=SYSTEM,
                versions=versions(),
                rejects_sha256=sha256_file(rejects),
            )
            check_lock()
            commit_shard(store, tar, rejects, manifest)
        identity = recognizer.name, recognizer.sha256
        write_embeddings(store, shard.name, sha256, identity, keys, seen.embeddings[rows])
    return merge(store, shards)
