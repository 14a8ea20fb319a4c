import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from faces import make_dataset, make_pool
from hypothesis import given
from hypothesis import strategies as st

from factory.datasets.index import Copies, contents, index, ranks
from factory.datasets.manifest import load_manifest
from factory.datasets.store import Store
from factory.evaluation.dataset import samples
from factory.recipe import InputError


@pytest.fixture
def store(cache: Path, tmp_path: Path) -> Store:
    return Store(make_dataset(tmp_path / "data", 7, 3, per=2, lost=((3, 1),)))


def test_it_says_where_tarfile_finds_each_sample(store: Store) -> None:
    found = index(store)
    assert len(found) == 20
    assert found.keys.tolist() == sorted(found.keys.tolist())
    for row, key in enumerate(k.decode() for k in found.keys.tolist()):
        assert store.root is not None
        path = store.root / "shards" / f"{found.shards[found.shard[row]]}.tar"
        data = path.read_bytes()
        with tarfile.open(path) as tar:
            image, sidecar = tar.extractfile(f"{key}.jpg"), tar.extractfile(f"{key}.json")
            label = tar.extractfile(f"{key}.cls")
            assert image is not None and sidecar is not None and label is not None
            at, size = found.offset[row], found.size[row]
            assert data[at : at + size] == image.read()
            at, size = found.sidecar_offset[row], found.sidecar_size[row]
            assert data[at : at + size] == sidecar.read()
            assert found.labels[row] == int(label.read())


def test_it_is_kept_and_read_again_without_the_shards(store: Store) -> None:
    first, held = index(store), contents(store)
    assert store.root is not None
    for path in store.root.glob("shards/*.tar"):
        path.unlink()
    again = index(store, held)
    assert again.shards == first.shards
    for name in ("shard", "keys", "labels", "offset", "size", "sidecar_offset", "sidecar_size"):
        one, two = getattr(first, name), getattr(again, name)
        assert one.dtype == two.dtype and np.array_equal(one, two)


def test_a_dataset_that_has_grown_is_indexed_again(
    store: Store, cache: Path, tmp_path: Path
) -> None:
    index(store)
    make_dataset(tmp_path / "data", 9, 3, per=2, lost=((3, 1),))
    assert len(index(store)) == 20 + 3 + 6 - 0
    assert len(list((cache / "indexes").iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(
    store: Store, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.parent.write_text("a file where a folder would be")
    assert len(index(store)) == 20
    assert "not kept" in capsys.readouterr().out


def test_a_truncated_shard_is_named(store: Store) -> None:
    assert store.root is not None
    path = next(store.root.glob("shards/i0000002*.tar"))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"shard i0000002-.*truncated.*verify"):
        index(store)


def test_a_folder_without_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no committed shards there"):
        index(Store(tmp_path))


def test_copies_of_a_remote_dataset_are_named_by_content(
    store: Store, cache: Path, tmp_path: Path
) -> None:
    import fsspec

    held = contents(store)
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/data/shards/", "/index-test/shards/", recursive=True)
    remote = Store("memory://index-test")
    assert contents(remote) == held
    read = index(remote)
    assert not (cache / "shards").exists()  # streamed
    shutil.rmtree(cache / "indexes")  # named by content, the same for both
    assert read.keys.tolist() == index(store).keys.tolist()
    paths = Copies(remote, held).fetch(list(held))
    assert [path.name for path in paths] == [f"{sha}.tar" for sha in held.values()]


@given(st.lists(st.integers(0, 5)))
def test_ranks_count_earlier_rows(labels: list[int]) -> None:
    right = [labels[:row].count(label) for row, label in enumerate(labels)]
    assert ranks(np.array(labels, np.int64)).tolist() == right


@pytest.mark.parametrize("suffix", [".tar", ".json"])
def test_a_finished_dataset_without_one_of_its_shards_is_not_read(
    cache: Path, tmp_path: Path, suffix: str
) -> None:
    url = make_pool(tmp_path / "d", 10, 3)
    store = Store(url)
    assert len(index(store)) == sum(1 for _ in samples(store)) == 30
    lost = load_manifest(store).shards[-1].name
    store.delete(f"shards/{lost}{suffix}")
    for read in (index, lambda store: next(samples(store))):
        with pytest.raises(InputError, match=f"manifest.json states {lost}, which is not there"):
            read(store)
