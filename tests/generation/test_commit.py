"""What a committer writes of a shard: the tar, the rejects, the manifest."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toy import SHARD, Teacher, made, recipe, written

from factory.datasets.manifest import load_shard_manifest
from factory.datasets.store import Store
from factory.datasets.tar import read_tar
from factory.generation.commit import Committer
from factory.generation.work import Assignment
from factory.recipe import InputError

DRIFT = {"identity_drift": {"tolerance": 0.5}}


def test_kept_images_are_in_the_tar_and_others_in_the_rejects(tmp_path: Path) -> None:
    made_of, store = recipe(attempts=3, **DRIFT), Store(tmp_path)
    manifest = written(made_of, made(made_of, Teacher(bad=1), tmp_path), tmp_path)
    assert manifest == load_shard_manifest(store, SHARD.name)
    assert manifest.planned == manifest.kept == 6 and manifest.missing == ()
    assert manifest.reasons == {"identity_drift": 2}
    assert list(manifest.seconds) == ["identities", "styles", "render", "screen", "encode"]
    members = dict(read_tar(store.read(f"shards/{manifest.name}.tar")))
    assert list(members) == [f"{i:07d}_{slot:04d}" for i in (2, 3) for slot in range(3)]
    sidecar = json.loads(members["0000002_0001"]["json"])
    assert sidecar["attempt"] == 1 and sidecar["cosine"] > 0.9 and sidecar["identity"] == 2
    assert sidecar["truth"] == {"n": 1} and sidecar["content_digest"] == "digest"
    assert members["0000003_0002"]["cls"] == b"3"
    rejects = pq.read_table(tmp_path / f"shards/{manifest.name}.rejects.parquet").to_pylist()
    assert [(r["key"], r["attempt"], r["reason"]) for r in rejects] == [
        ("0000002_0001", 0, "identity_drift"),
        ("0000003_0001", 0, "identity_drift"),
    ]
    assert [r["score"] for r in rejects] == pytest.approx([1.0, 1.0])


def test_what_stays_missing_is_said_in_the_manifest(tmp_path: Path) -> None:
    made_of = recipe(attempts=2, **DRIFT)
    manifest = written(made_of, made(made_of, Teacher(bad=9), tmp_path), tmp_path)
    assert manifest.kept == 4 and manifest.missing == ("0000002_0001", "0000003_0001")
    assert manifest.reasons == {"identity_drift": 4}


@pytest.mark.parametrize("attempts", [1, 2])
def test_equal_work_has_equal_bytes(tmp_path: Path, attempts: int) -> None:
    made_of = recipe(attempts, **DRIFT)
    folders = [tmp_path / str(n) for n in range(2)]
    found = [written(made_of, made(made_of, Teacher(1), folder), folder) for folder in folders]
    assert found[0].sha256 == found[1].sha256
    assert found[0].rejects_sha256 == found[1].rejects_sha256


def test_a_committer_with_other_libraries_writes_nothing(tmp_path: Path) -> None:
    """Its manifests would state the versions of the driver."""
    assignment = Assignment(recipe().model_dump(mode="json"), Store(tmp_path), "", {"torch": "1.0"})
    with pytest.raises(InputError, match=r"torch: .* on node .*, but 1\.0"):
        Committer(assignment)
