"""Files of known faces: embeddings of real people that a generation must not resemble."""

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from factory.datasets.located import find_file, folder_files
from factory.datasets.provenance import sha256_file
from factory.recipe import InputError, public
from factory.recognition.neighbours import Faces

FORMAT = "face-data-factory/faces"
COLUMN = "embedding"
ACCEPTED = (
    ".safetensors as `measure --embeddings` writes it, .parquet with a column `embedding`, a "
    "folder of such .parquet files (each with recognizer_sha256 in its metadata), or .npy"
)


def save_faces(path: str | Path, embeddings: np.ndarray, recognizer_sha256: str) -> str:
    """Write embeddings together with their recognizer, and return the file's sha256.

    Args:
        path: the .safetensors file to write.
        embeddings: float32 [N, D].
        recognizer_sha256: the sha256 of the recognizer's weights.
    """
    from safetensors.numpy import save

    metadata = {"format": FORMAT, "recognizer_sha256": recognizer_sha256}
    content = save({"faces": np.ascontiguousarray(embeddings, np.float32)}, metadata)
    Path(path).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _found(location: str, field: str) -> tuple[list[Path], bool]:
    """Return the file, or the folder's files sorted by name, and whether it is a folder."""
    file = find_file(location, f"{field}.location")
    if file is not None:
        return [file], False
    parts = folder_files(location, ".parquet", f"{field}.location")
    if not parts:
        raise InputError(f"{field}.location: no file at {public(location)}; accepted is {ACCEPTED}")
    return parts, True


def _sha256(parts: list[Path], folder: bool) -> str:
    if not folder:
        return sha256_file(parts[0])
    lines = [f"{sha256_file(part)} {part.name}\n" for part in parts]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_faces(location: str, sha256: str, recognizer_sha256: str, field: str) -> Faces:
    """Read embeddings and normalise them to length 1.

    Args:
        location: a path, package:PATH or URL, of one of the forms in `ACCEPTED`.
        sha256: of the file; for a folder that of a text with a line `SHA256 NAME` for each
            .parquet file, sorted by name.
        recognizer_sha256: the recognizer that the embeddings must belong to. A .safetensors or
            .parquet file must state it in its metadata as `recognizer_sha256`; .npy cannot.
        field: the recipe field that names the embeddings, for errors.

    Raises:
        InputError: there is no such file, it has another sha256, its recognizer is another one or
            not stated, or embeddings are not finite or have length zero.
    """
    parts, folder = _found(location, field)
    found = _sha256(parts, folder)
    if found != sha256:
        raise InputError(f"{field}.sha256: {sha256}, but {public(location)} has {found}")
    read = [_read(part, recognizer_sha256, field) for part in parts]
    try:
        embeddings = np.concatenate(read) if len(read) > 1 else read[0]
    except ValueError:
        shapes = ", ".join(str(list(part.shape)) for part in read[:3])
        raise InputError(f"{field}.location: {location} holds shapes {shapes}") from None
    if embeddings.ndim != 2 or not embeddings.size or embeddings.dtype.kind != "f":
        raise InputError(
            f"{field}.location: {location} holds {embeddings.dtype} {list(embeddings.shape)}; "
            "accepted is float [N, D], N of 1 or more"
        )
    lengths = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings, dtype=np.float64))
    good = np.isfinite(lengths) & (lengths > 0)
    if not good.all():
        row = int(np.argmin(good))
        raise InputError(
            f"{field}.location: {location} row {row} has length {lengths[row]:g}; accepted are "
            "finite rows that are not zero"
        )
    return Faces((embeddings / lengths[:, None]).astype(np.float32))


def _read(path: Path, recognizer_sha256: str, field: str) -> np.ndarray:
    try:
        if path.suffix == ".npy":  # cannot state its recognizer
            return np.load(path, allow_pickle=False)
        embeddings, made_by = _parquet(path) if path.suffix == ".parquet" else _safetensors(path)
    except (ValueError, EOFError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{field}.location: {path} cannot be read ({reason}); accepted is {ACCEPTED}"
        ) from None
    if made_by != recognizer_sha256:
        raise InputError(
            f"{field}.location: {path} was made by the recognizer {made_by or 'of no name'}, "
            f"accepted is the teacher's {recognizer_sha256}"
        )
    return embeddings


def _safetensors(path: Path) -> tuple[np.ndarray, str]:
    with safe_open(path, "np") as file:
        return file.get_tensor("faces"), (file.metadata() or {}).get("recognizer_sha256", "")


def _parquet(path: Path) -> tuple[np.ndarray, str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=[COLUMN])
    rows = table[COLUMN].combine_chunks()
    if not pa.types.is_fixed_size_list(rows.type):
        raise ValueError(f"column {COLUMN} is {rows.type}, accepted is a list of fixed size")
    made_by = (table.schema.metadata or {}).get(b"recognizer_sha256", b"").decode()
    return np.asarray(rows.flatten()).reshape(len(rows), rows.type.list_size), made_by
