import hashlib
import json
from pathlib import Path

import pytest

from factory.datasets.claim import read_claim
from factory.datasets.manifest import (
    COMMIT,
    MANIFEST,
    REJECTS,
    TAR,
    DatasetTotals,
    ShardManifest,
    commit_shard,
    committed,
    load_manifest,
    load_shard_manifest,
    merge,
    shard_file,
)
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.plan import shards
from factory.recipe import FaultError, InputError, parse

FIRST, SECOND = "i0000000-0000003-s0000-0004", "i0000003-0000006-s0000-0004"


def planned(store: Store):
    recipe = parse(read_claim(store)["recipe"])
    return list(shards(recipe))  # type: ignore[arg-type]


class Watched(Store):
    """A store that notes the order in which names appear."""

    def __init__(self, url: Path) -> None:
        super().__init__(url)
        self.order: list[str] = []

    def put(self, local: Path, name: str) -> None:
        self.order.append(name)
        super().put(local, name)

    def write(self, name: str, data: bytes) -> None:
        self.order.append(name)
        super().write(name, data)


def test_the_manifest_is_written_last_and_never_again(made_dataset, tmp_path: Path) -> None:
    store = made_dataset()
    manifest = load_shard_manifest(store, FIRST)
    (tmp_path / "t").write_bytes(store.read(shard_file(FIRST, TAR)))
    (tmp_path / "r").write_bytes(store.read(shard_file(FIRST, REJECTS)))
    watched = Watched(tmp_path / "other")
    commit_shard(watched, tmp_path / "t", tmp_path / "r", manifest)
    assert watched.order == [shard_file(FIRST, suffix) for suffix in (TAR, REJECTS, COMMIT)]
    commit_shard(watched, tmp_path / "t", tmp_path / "r", manifest)
    assert len(watched.order) == 3
    assert load_shard_manifest(watched, FIRST) == manifest


def test_a_shard_whose_tar_was_lost_gets_it_back(made_dataset, tmp_path: Path) -> None:
    store = made_dataset()
    manifest, commit = load_shard_manifest(store, FIRST), store.read(shard_file(FIRST, COMMIT))
    (tmp_path / "t").write_bytes(store.read(shard_file(FIRST, TAR)))
    (tmp_path / "r").write_bytes(store.read(shard_file(FIRST, REJECTS)))
    for suffix in (TAR, REJECTS):
        store.delete(shard_file(FIRST, suffix))
    slower = manifest.model_copy(update={"seconds": {"render": 9.0}})  # as a resumed run is
    commit_shard(store, tmp_path / "t", tmp_path / "r", slower)
    assert verify(store) == []
    assert store.read(shard_file(FIRST, COMMIT)) == commit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "c" * 64}, "says sha256 cccc"),
        ({"rejects_sha256": "c" * 64}, "says rejects_sha256 cccc"),
        ({"kept": "many"}, r"is damaged \(shards/.*kept"),
    ],
)
def test_a_lost_tar_that_is_made_otherwise_is_a_fault(
    made_dataset, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    store = made_dataset()
    manifest, commit = load_shard_manifest(store, FIRST), shard_file(FIRST, COMMIT)
    store.write(commit, json.dumps(json.loads(store.read(commit)) | changes).encode())
    store.delete(shard_file(FIRST, TAR))
    with pytest.raises(FaultError, match=rf"shard {FIRST} is missing.*{words}.*verify.*--repair"):
        commit_shard(store, tmp_path / "none", tmp_path / "none", manifest)
    assert not store.exists(shard_file(FIRST, TAR))


def test_only_a_tar_with_a_manifest_is_committed(made_dataset) -> None:
    store = made_dataset()
    assert committed(store) == {FIRST, SECOND}
    store.delete(shard_file(FIRST, COMMIT))
    assert committed(store) == {SECOND}
    store.delete(shard_file(SECOND, TAR))
    assert committed(store) == set()


def test_the_merge_adds_up(made_dataset) -> None:
    store = made_dataset(
        weights={
            "unet": {"location": "u.safetensors", "sha256": "a" * 64, "licence": "CC-BY-NC-4.0"}
        }
    )
    merged = load_manifest(store)
    tars = [store.read(shard_file(name, TAR)) for name in (FIRST, SECOND)]
    assert [(s.name, s.bytes, s.kept) for s in merged.shards] == [
        (FIRST, len(tars[0]), 11),
        (SECOND, len(tars[1]), 12),
    ]
    assert [s.sha256 for s in merged.shards] == [hashlib.sha256(tar).hexdigest() for tar in tars]
    totals = merged.totals
    assert (totals.planned, totals.kept, totals.bytes) == (24, 23, sum(map(len, tars)))
    assert totals.reasons == {"near_duplicate": 3}
    assert totals.seconds == {"encode": 0.25, "render": 0.5}
    assert merged.licence == "CC-BY-NC-4.0"
    assert merged.models[0].sha256 == "a" * 64
    assert merged.created_with == {"numpy": "2.0"}


def test_merging_again_changes_nothing(made_dataset) -> None:
    store = made_dataset()
    before = store.read(MANIFEST)
    assert merge(store, planned(store)) == load_manifest(store)
    assert store.read(MANIFEST) == before


def test_a_merge_names_what_is_missing_or_damaged(made_dataset) -> None:
    store = made_dataset()
    store.delete(shard_file(SECOND, COMMIT))
    with pytest.raises(InputError, match=f"1 planned shards are missing: {SECOND}"):
        merge(store, planned(store))
    store.write(shard_file(SECOND, COMMIT), b"{}")
    with pytest.raises(InputError, match=rf"damaged: shards/{SECOND}.json: name: Field required"):
        merge(store, planned(store))


def test_shards_of_another_content_are_not_merged(made_dataset) -> None:
    store = made_dataset()
    raw = json.loads(store.read(shard_file(SECOND, COMMIT))) | {"content_digest": "f" * 16}
    store.write(shard_file(SECOND, COMMIT), json.dumps(raw).encode())
    with pytest.raises(
        InputError, match="belongs to another dataset: its content digest is ffffffffffffffff"
    ):
        merge(store, planned(store))


def test_a_folder_without_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished dataset"):
        load_manifest(Store(tmp_path))
    with pytest.raises(InputError, match="no dataset"):
        merge(Store(tmp_path), [])


def test_a_shard_manifest_adds_up_and_declares_its_reasons(made_dataset) -> None:
    raw = load_shard_manifest(made_dataset(), FIRST).model_dump()
    with pytest.raises(ValueError, match="12 kept and 1 missing are not 12 planned"):
        ShardManifest(**raw | {"kept": 12})
    with pytest.raises(ValueError, match="'bored' is not declared"):
        ShardManifest(**raw | {"reasons": {"bored": 1}})


def test_a_dataset_may_be_larger_than_a_gigabyte() -> None:
    large = {"planned": 1, "kept": 1, "bytes": 3 * 10**13, "reasons": {}, "seconds": {}}
    assert DatasetTotals.model_validate(large).bytes == 3 * 10**13
