"""Stage 5: encode the kept images, write the shard aside and commit it."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image as PILImage

from factory.plan import sample_key
from factory.provenance import DIGITAL_SOURCE_TYPE, sha256_file
from factory.recipe import GenerateRecipe, Image
from factory.seeding import hex16
from factory.shards.manifest import ShardManifest, commit_shard
from factory.shards.store import Store, scratch
from factory.shards.tar import write_tar
from factory.stages.work import KEEP, Sample, ShardWork


def encode_image(image: np.ndarray, how: Image) -> bytes:
    """Encode uint8 [S, S, 3] RGB as JPEG without chroma subsampling, or as PNG."""
    if how.format == "jpg":
        return simplejpeg.encode_jpeg(
            np.ascontiguousarray(image), how.quality, colorspace="RGB", colorsubsampling="444"
        )
    sink = io.BytesIO()
    PILImage.fromarray(image).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


class Commit:
    """Write the shard's tar and rejects on local disk, then move them home, the manifest last."""

    def __init__(
        self, recipe: GenerateRecipe, store: Store, content_digest: str, versions: dict[str, str]
    ) -> None:
        """Keep what every sidecar and manifest states."""
        self.recipe, self.store = recipe, store
        self.content_digest, self.versions = content_digest, versions

    def __call__(self, work: ShardWork) -> ShardWork:
        """Commit the shard and drop its images from memory."""
        with scratch() as folder:
            tar, rejects = folder / "shard.tar", folder / "rejects.parquet"
            with work.timed("encode"):
                kept = work.kept()
                sha256, size = write_tar(tar, (self._member(kept[slot]) for slot in sorted(kept)))
                write_rejects(rejects, [s for s in work.samples if s.verdict != KEEP])
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
            commit_shard(self.store, tar, rejects, manifest)
        work.samples, work.embeddings = [], {}
        self.manifest = manifest
        return work

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


REJECTS = pa.schema(
    [
        ("key", pa.string()),
        ("identity", pa.int64()),
        ("slot", pa.int32()),
        ("attempt", pa.int32()),
        ("reason", pa.string()),
        ("score", pa.float32()),
        ("cosine", pa.float32()),
    ]
)


def write_rejects(path: Path, samples: list[Sample]) -> None:
    """Write the rejected samples of a shard as parquet: key, position, reason and scores."""
    rows = [
        {
            "key": sample_key(s.position.identity, s.position.slot),
            "identity": s.position.identity,
            "slot": s.position.slot,
            "attempt": s.position.attempt,
            "reason": s.verdict,
            "score": s.score,
            "cosine": s.cosine,
        }
        for s in samples
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=REJECTS), path)
