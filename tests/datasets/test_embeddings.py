import numpy as np
import pyarrow.parquet as pq
import pytest

from factory.datasets.embeddings import embeddings_file, read_embeddings, shard_of, write_embeddings
from factory.datasets.store import Store
from factory.recipe import InputError

TAR, WHO = "a" * 64, ("small", "b" * 64)


def test_what_is_written_is_read(tmp_path) -> None:
    store, rows = Store(tmp_path), np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    write_embeddings(store, "i0", TAR, WHO, ["x", "y", "z"], rows)
    keys, found = read_embeddings(store, "i0", TAR, WHO[1])
    assert keys == ("x", "y", "z") and found.dtype == np.float32
    assert np.array_equal(found, rows)
    table = pq.read_table(tmp_path / "embeddings" / WHO[1] / "i0.parquet")  # another reader
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), rows)
    assert table.schema.metadata[b"recognizer"] == b"small"


def test_a_shard_without_images_has_no_embeddings(tmp_path) -> None:
    store = Store(tmp_path)
    write_embeddings(store, "i0", TAR, WHO, [], np.zeros((0, 5), np.float32))
    keys, found = read_embeddings(store, "i0", TAR, WHO[1])
    assert keys == () and found.shape == (0, 5)


def test_embeddings_of_another_tar_are_refused(tmp_path) -> None:
    store = Store(tmp_path)
    write_embeddings(store, "i0", TAR, WHO, ["x"], np.ones((1, 2), np.float32))
    with pytest.raises(InputError, match="computed from a tar of sha256 aaaa"):
        read_embeddings(store, "i0", "c" * 64, WHO[1])
    with pytest.raises(FileNotFoundError):
        read_embeddings(store, "i1", TAR, WHO[1])
    assert shard_of(embeddings_file(WHO[1], "i0")) == "i0"
