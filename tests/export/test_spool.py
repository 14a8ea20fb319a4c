"""The order of images, and what it depends on."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.export.spool import Spool, Spooled, grouped, shuffled


def spooled(
    folder: Path, labels: list[int], kind: str, bucket_bytes: int, seed: int = 0
) -> list[Spooled]:
    folder.mkdir(parents=True, exist_ok=True)
    order = shuffled(seed) if kind == "shuffled" else grouped(50)
    spool = Spool(folder, order, 40 * len(labels), bucket_bytes)
    for number, label in enumerate(labels):
        spool.add(label, b"image %d" % number, b"side %d" % number)
    found = list(spool.read())
    assert not list(folder.iterdir())
    return found


@pytest.mark.parametrize("kind", ["shuffled", "grouped"])
@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 60), max_size=60))
def test_nothing_is_lost_and_memory_changes_nothing(
    kind: str, labels: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    found = spooled(folder, labels, kind, 1 << 20)
    assert found == spooled(folder, labels, kind, 64)
    assert sorted((p.label, p.encoded, p.sidecar) for p in found) == sorted(
        (label, b"image %d" % n, b"side %d" % n) for n, label in enumerate(labels)
    )
    for label in set(labels):
        numbers = sorted(p.number for p in found if p.label == label)
        assert numbers == list(range(labels.count(label)))
    if kind == "grouped":
        assert [(p.label, p.number) for p in found] == sorted((p.label, p.number) for p in found)


def test_a_place_depends_on_label_number_and_seed_only(tmp_path: Path) -> None:
    labels = [n // 5 for n in range(200)]
    whole = [(p.label, p.number) for p in spooled(tmp_path, labels, "shuffled", 1000)]
    part = [(p.label, p.number) for p in spooled(tmp_path, labels[:100], "shuffled", 1000)]
    assert [place for place in whole if place[0] < 20] == part
    other = [(p.label, p.number) for p in spooled(tmp_path, labels, "shuffled", 1000, seed=1)]
    assert other != whole and sorted(other) == sorted(whole)
    # an even shuffle: the mean place of a label is near the middle, its first ones anywhere
    early = sum(1 for label, _ in whole[:100] if label < 20)
    assert 35 <= early <= 65
