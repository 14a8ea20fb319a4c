"""Files of embeddings: read back by and from other libraries, hostile ones refused."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from factory.datasets.store import Store
from factory.recipe import InputError
from factory.recognition.faces import load_faces, save_faces

TEACHER = "7" * 64
FIELD = "recipe field screens.real_lookalike.embeddings"
RAW = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32) * 3
UNIT = RAW / np.linalg.norm(RAW, axis=1, keepdims=True)


def sha256(path: Path) -> str:
    content = path.read_bytes() if path.is_file() else b""
    if path.is_dir():
        lines = [f"{sha256(file)} {file.name}\n" for file in sorted(path.iterdir())]
        content = "".join(lines).encode()
    return hashlib.sha256(content).hexdigest()


def write_parquet(path: Path, rows: np.ndarray, teacher: str = TEACHER) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    table = pa.table({"key": [str(n) for n in range(len(rows))], "embedding": column})
    pq.write_table(table.replace_schema_metadata({"recognizer_sha256": teacher}), path)


def test_what_is_saved_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "faces.safetensors"
    assert save_faces(path, RAW, TEACHER) == sha256(path)
    with safe_open(path, "np") as file:
        np.testing.assert_array_equal(file.get_tensor("faces"), RAW)
        assert file.metadata()["recognizer_sha256"] == TEACHER


def test_every_form_gives_the_same_faces(tmp_path: Path) -> None:
    save_faces(tmp_path / "faces.safetensors", RAW, TEACHER)
    np.save(tmp_path / "faces.npy", RAW.astype(np.float64))
    write_parquet(tmp_path / "faces.parquet", RAW)
    folder = tmp_path / "sidecar"
    folder.mkdir()
    write_parquet(folder / "a.parquet", RAW[:4])
    write_parquet(folder / "b.parquet", RAW[4:])
    for name in ("faces.safetensors", "faces.npy", "faces.parquet", "sidecar"):
        found = load_faces(str(tmp_path / name), sha256(tmp_path / name), TEACHER, FIELD)
        np.testing.assert_allclose(found.unit, UNIT, atol=1e-6)


def test_faces_behind_a_url_are_those_on_disk(tmp_path: Path) -> None:
    save_faces(tmp_path / "faces.safetensors", RAW, TEACHER)
    folder = tmp_path / "sidecar"
    folder.mkdir()
    write_parquet(folder / "a.parquet", RAW[:4])
    write_parquet(folder / "b.parquet", RAW[4:])
    store = Store(f"memory://{tmp_path.name}")
    for name in ("faces.safetensors", "sidecar/a.parquet", "sidecar/b.parquet"):
        store.put(tmp_path / name, name)
    for name in ("faces.safetensors", "sidecar"):
        location, stated = f"{store.url}/{name}", sha256(tmp_path / name)
        found = load_faces(location, stated, TEACHER, FIELD)
        np.testing.assert_allclose(found.unit, UNIT, atol=1e-6)
        with pytest.raises(InputError, match=rf"sha256: 0+, but {location} has {stated}"):
            load_faces(location, "0" * 64, TEACHER, FIELD)
    with pytest.raises(InputError, match=rf"{FIELD}\.location: no file at {store.url}/none"):
        load_faces(f"{store.url}/none", "0" * 64, TEACHER, FIELD)


def test_a_folders_sha256_names_every_file_in_it(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", RAW[:4])
    write_parquet(tmp_path / "b.parquet", RAW[4:])
    a, b = sha256(tmp_path / "a.parquet"), sha256(tmp_path / "b.parquet")
    lines = f"{a} a.parquet\n{b} b.parquet\n"
    stated = hashlib.sha256(lines.encode()).hexdigest()
    np.testing.assert_allclose(load_faces(str(tmp_path), stated, TEACHER, FIELD).unit, UNIT, 1e-6)


def refused(path: Path, words: str, teacher: str = TEACHER, stated: str = "") -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_faces(str(path), stated or sha256(path), teacher, FIELD)
    assert FIELD in str(caught.value) and "\n" not in str(caught.value)


def test_other_files_than_the_recipe_means_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "faces.safetensors"
    refused(path, r"location: no file at .*accepted is \.safetensors")
    save_faces(path, RAW, TEACHER)
    refused(path, rf"sha256: {'0' * 64}, but .* has {sha256(path)}", stated="0" * 64)
    refused(path, f"made by the recognizer {TEACHER}, accepted is the teacher's 8888", "8" * 64)
    save_file({"faces": RAW}, path)
    refused(path, "made by the recognizer of no name")
    write_parquet(tmp_path / "faces.parquet", RAW, teacher="")
    refused(tmp_path / "faces.parquet", "made by the recognizer of no name")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.full((2, 4), np.nan, np.float32), "row 0 has length nan"),
        (np.array([[1.0, 0.0], [0.0, 0.0]], np.float32), "row 1 has length 0"),
        (np.zeros((0, 4), np.float32), r"float32 \[0, 4\]; accepted is float"),
        (np.ones(4, np.float32), r"float32 \[4\]"),
        (np.ones((2, 4), np.int64), r"int64 \[2, 4\]"),
    ],
)
def test_embeddings_of_no_use_are_refused(tmp_path: Path, rows: np.ndarray, words: str) -> None:
    np.save(tmp_path / "faces.npy", rows)
    refused(tmp_path / "faces.npy", words)


def test_files_that_are_not_embeddings_are_refused_and_run_nothing(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    np.save(tmp_path / "trap.npy", np.array([Trap()], object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "text.safetensors").write_text(json.dumps({"faces": [1, 2]}))
    save_file({"others": RAW}, tmp_path / "others.safetensors")
    (tmp_path / "text.parquet").write_text("PAR1")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "keys.parquet")
    pq.write_table(pa.table({"embedding": [1.0, 2.0]}), tmp_path / "numbers.parquet")
    for path in sorted(tmp_path.iterdir()):
        refused(path, "cannot be read")
    assert not (tmp_path / "ran").exists()
    folder = tmp_path / "mixed"
    folder.mkdir()
    write_parquet(folder / "a.parquet", RAW)
    write_parquet(folder / "b.parquet", RAW[:, :3])
    refused(folder, r"holds shapes \[6, 4\], \[6, 3\]")
