"""The work of an actor on one shard: read, make and commit its images, then embed them."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory.datasets.embeddings import embeddings_file, write_embeddings
from factory.datasets.manifest import (
    COMMIT,
    TAR,
    ShardManifest,
    commit_shard,
    load_shard_manifest,
    shard_file,
)
from factory.datasets.provenance import check_versions, sha256_file
from factory.datasets.rejects import SOURCE, write_rejects
from factory.datasets.scratch import scratch
from factory.datasets.store import Store
from factory.datasets.tar import read_tar, write_tar
from factory.plan import ListedShard, sample_key
from factory.prepare.detector import Detector
from factory.prepare.images import Made, make_image
from factory.prepare.listing import Item
from factory.prepare.reader import ItemReader
from factory.prepare.recipe import SYSTEM, PrepareRecipe
from factory.recipe import FaultError, InputError, public
from factory.recognition.images import batches, decode, fitted
from factory.seeding import hex16

EMBEDDED_AT_ONCE = 128
FORMATS = ("jpg", "png")
CHANGES = ("reencoded", "turned", "resized_from")  # facts that tell of other pixels or bytes


@dataclass(frozen=True)
class Task:
    """One shard: its plan, its images, and the source's names of their identities."""

    shard: ListedShard
    entries: list[tuple[int, int, Item]]
    names: dict[int, str]


@dataclass(frozen=True)
class PrepareWork:
    """The constructor argument of the actors.

    Attributes:
        source: the store of the images.
        store: the dataset's folder.
        recipe: the recipe of the dataset.
        content_digest: the dataset's, for every sidecar and manifest.
        source_type: IPTC's term for the kind of images.
        versions: versions of the libraries that compute pixels, where the run was started.
        detector: path of the detector; "" for none.
        recognizer: reference of the recognizer whose embeddings are kept; "" for none.
    """

    source: Store
    store: Store
    recipe: PrepareRecipe
    content_digest: str
    source_type: str
    versions: dict[str, str]
    detector: str
    recognizer: str


class Preparer:
    """Makes shards one after another; loads detector and recognizer once."""

    def __init__(self, assignment: PrepareWork) -> None:
        """Load detector and recognizer; InputError if this node has other library versions."""
        self.versions = check_versions(assignment.versions)
        self.given = assignment
        self.reader = ItemReader(assignment.source, assignment.recipe.source_kind)
        self.made: Counter[str] = Counter()  # images of the shard that lost their bytes, by how
        self.detector = self.recognizer = None
        if assignment.detector:
            self.detector = Detector(Path(assignment.detector))
        if assignment.recognizer:
            from factory.recognition.recognizers import load_recognizer

            self.recognizer = load_recognizer(assignment.recognizer)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Finish one shard, a Task, and return its manifest.

        If a disk, store or source fails, the returned row holds the error.
        """
        (task,) = batch["task"]
        try:
            self.made.clear()
            manifest = self.finish(task).model_dump_json()
            return {
                "manifest": np.array([manifest]),
                "made": np.array([json.dumps(self.made)]),
            }
        except (OSError, InputError, FaultError) as error:
            return {"failed": np.array([f"shard {task.shard.name}: {public(str(error))}"])}

    def finish(self, task: Task) -> ShardManifest:
        """Commit a shard and embed it, unless that is done already, and return its manifest."""
        files = [shard_file(task.shard.name, suffix) for suffix in (TAR, COMMIT)]
        if not all(self.given.store.exists(file) for file in files):
            self.commit(task)
        manifest = load_shard_manifest(self.given.store, task.shard.name)
        if self.recognizer is not None:
            self.embed(manifest)
        return manifest

    def commit(self, task: Task) -> None:
        """Make the images of a shard and commit them together with the rejects."""
        rejects: list[dict[str, Any]] = []
        start = time.perf_counter()
        with scratch() as folder:
            tar, beside = folder / "shard.tar", folder / "rejects.parquet"
            sha256, size = write_tar(tar, self._samples(task, rejects))
            write_rejects(beside, rejects, SOURCE)
            manifest = ShardManifest(
                name=task.shard.name,
                sha256=sha256,
                bytes=size,
                planned=task.shard.planned,
                kept=task.shard.planned - len(rejects),
                reasons=dict(Counter(row["reason"] for row in rejects)),
                missing=tuple(row["key"] for row in rejects),
                seconds={"prepare": round(time.perf_counter() - start, 4)},
                content_digest=self.given.content_digest,
                system=SYSTEM,
                versions=self.versions,
                rejects_sha256=sha256_file(beside),
            )
            commit_shard(self.given.store, tar, beside, manifest)

    def _samples(
        self, task: Task, rejects: list[dict[str, Any]]
    ) -> Iterator[tuple[str, dict[str, bytes]]]:
        for identity, slot, entry in task.entries:
            key = sample_key(identity, slot)
            made = make_image(self.reader.read(entry), self.given.recipe, self.detector)
            if made.reason:
                rejects.append(
                    {
                        **{"key": key, "identity": identity, "slot": slot, "attempt": 0},
                        **{"reason": made.reason, "score": made.score, "cosine": None},
                        "source": _place(entry),
                    }
                )
                continue
            self.made.update(self._changes(made))
            yield (
                key,
                {
                    made.extension or self.given.recipe.image.format: made.data,
                    "cls": str(identity).encode(),
                    "json": self._sidecar(task, identity, slot, entry, made),
                },
            )

    def _changes(self, made: Made) -> list[str]:
        """Return what the user is to know of an image that was kept."""
        told = [name for name in CHANGES if name in made.facts]
        return [*told, f"{made.extension} beside jpg"] if made.extension else told

    def _sidecar(self, task: Task, identity: int, slot: int, entry: Item, made: Made) -> bytes:
        sidecar = {
            "identity": identity,
            "slot": slot,
            "attempt": 0,
            "seed": hex16(0),  # there was no random draw
            "cosine": None,
            "system": SYSTEM,
            "content_digest": self.given.content_digest,
            "digitalSourceType": self.given.source_type,
            "source": _place(entry),
            "source_identity": task.names[identity],
            **made.facts,
        }
        return json.dumps(sidecar, sort_keys=True).encode()

    def embed(self, manifest: ShardManifest) -> None:
        """Write the embeddings of a committed shard, unless they exist already."""
        recognizer, store = self.recognizer, self.given.store
        assert recognizer is not None
        if store.exists(embeddings_file(recognizer.sha256, manifest.name)):
            return
        keys: list[str] = []

        def images() -> Iterator[np.ndarray]:
            with store.local(shard_file(manifest.name, TAR)) as path:
                for key, members in read_tar(path):
                    keys.append(key)
                    encoded = next(members[kind] for kind in FORMATS if kind in members)
                    image = decode(encoded, key)
                    yield fitted(image, recognizer.size, key, self.given.recipe.resize)

        made = [recognizer.embed(batch) for batch in batches(images(), EMBEDDED_AT_ONCE)]
        found = np.concatenate(made) if made else np.zeros((0, recognizer.dimension), np.float32)
        identity = (recognizer.name, recognizer.sha256)
        write_embeddings(store, manifest.name, manifest.sha256, identity, keys, found)


def _place(entry: Item) -> str:
    """Return the origin of an image: its file, and its name inside if that differs."""
    return entry.file if entry.name == entry.file else f"{entry.file}/{entry.name}"
