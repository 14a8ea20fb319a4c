"""What is timed is the real thing: faked shards are what verify and merge accept."""

from pathlib import Path

from benchmarks import shards
from factory.datasets.store import Store
from factory.datasets.tar import read_tar
from factory.datasets.verify import verify


def test_both_sides_do_the_same_work(tmp_path: Path) -> None:
    measured = shards.writing(tmp_path, images=20, image_bytes=900, repeats=1)
    assert measured["ratio"] > 0
    ours, theirs = (
        {key: parts["jpg"] for key, parts in read_tar(tmp_path / name)}
        for name in ("ours.tar", "theirs.tar")
    )
    assert ours == theirs and len(ours) == 20


def test_a_dataset_to_verify_is_whole(tmp_path: Path) -> None:
    measured = shards.verifying(tmp_path, images=100, image_bytes=900, repeats=1)
    assert measured["bytes"] == sum(p.stat().st_size for p in tmp_path.rglob("data/shards/*.tar"))


def test_counted_shards_are_real_but_for_their_tars(tmp_path: Path) -> None:
    recipe = shards.fake(tmp_path, 7)
    for part in (shards.planning, shards.resuming, shards.merging):
        assert part(tmp_path, recipe) == 7
    found = {(fault.kind, fault.name[-4:]) for fault in verify(Store(tmp_path))}
    assert found == {("truncated_tar", ".tar")}
