"""The committer: it encodes the kept images of a shard, writes its files and commits it."""

import json
from collections import Counter
from typing import Any

from factory.datasets.encode import encode_image
from factory.datasets.manifest import ShardManifest, commit_shard
from factory.datasets.provenance import DIGITAL_SOURCE_TYPE, check_versions, sha256_file
from factory.datasets.rejects import write_rejects
from factory.datasets.scratch import scratch
from factory.datasets.tar import write_tar
from factory.generation.work import KEEP, Assignment, Sample, ShardWork
from factory.plan import sample_key
from factory.recipe import GenerateRecipe, parse
from factory.seeding import hex16


class Committer:
    """Writes a shard's tar and rejects on local disk, then moves them; the manifest comes last."""

    def __init__(self, assignment: Assignment) -> None:
        """Keep the recipe, digest and versions for sidecars and manifests.

        Raises:
            InputError: libraries on this node differ from the assignment's.
        """
        recipe = parse(assignment.recipe)
        assert isinstance(recipe, GenerateRecipe)
        self.recipe, self.store = recipe, assignment.store
        self.content_digest = assignment.content_digest
        self.versions = check_versions(assignment.versions)

    def __call__(self, work: ShardWork) -> ShardManifest:
        """Commit the shard and return its manifest."""
        with scratch() as folder:
            tar, rejects = folder / "shard.tar", folder / "rejects.parquet"
            with work.timed("encode"):
                kept = work.kept()
                sha256, size = write_tar(tar, (self._member(kept[slot]) for slot in sorted(kept)))
                write_rejects(rejects, [_reject(s) for s in work.samples if s.verdict != KEEP])
            manifest = ShardManifest(
                name=work.shard.name,
                sha256=sha256,
                bytes=size,
                planned=work.shard.samples,
                kept=len(kept),
                reasons=dict(Counter(s.verdict for s in work.samples if s.verdict != KEEP)),
                missing=tuple(sample_key(*slot) for slot in work.missing()),
                seconds={stage: round(s, 4) for stage, s in work.seconds.items()},
                content_digest=self.content_digest,
                system=self.recipe.system,
                versions=self.versions | work.gpu,
                rejects_sha256=sha256_file(rejects),
            )
            with work.timed("commit"):
                commit_shard(self.store, tar, rejects, manifest)
        return manifest

    def _member(self, sample: Sample) -> tuple[str, dict[str, bytes]]:
        position = sample.position
        sidecar = {
            "identity": position.identity,
            "slot": position.slot,
            "attempt": position.attempt,
            "seed": hex16(position.seed(self.recipe.seed)),
            "cosine": None if sample.cosine is None else round(sample.cosine, 6),
            "system": self.recipe.system,
            "content_digest": self.content_digest,
            "digitalSourceType": DIGITAL_SOURCE_TYPE,
        }
        if sample.truth:
            sidecar["truth"] = sample.truth
        return sample_key(position.identity, position.slot), {
            self.recipe.image.format: encode_image(sample.image, self.recipe.image),
            "cls": str(position.identity).encode(),
            "json": json.dumps(sidecar, sort_keys=True).encode(),
        }


def _reject(sample: Sample) -> dict[str, Any]:
    """Return the row of a rejected image: key, position, reason, score and cosine."""
    position = sample.position
    return {
        "key": sample_key(position.identity, position.slot),
        "identity": position.identity,
        "slot": position.slot,
        "attempt": position.attempt,
        "reason": sample.verdict,
        "score": sample.score,
        "cosine": sample.cosine,
    }
