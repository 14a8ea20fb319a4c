"""Others' files, written byte by byte as their formats are described: RecordIO and tars."""

import io
import struct
import tarfile
from pathlib import Path

MAGIC = struct.pack("<I", 0xCED7230A)


def record(payload: bytes) -> bytes:
    """Write a payload as dmlc's writer does: cut wherever the magic stands on four bytes."""
    cuts = [n for n in range(0, len(payload) - 3, 4) if payload[n : n + 4] == MAGIC]
    starts = [0, *(cut + 4 for cut in cuts)]
    pieces = [payload[a:b] for a, b in zip(starts, [*cuts, len(payload)], strict=True)]
    out = b""
    for number, piece in enumerate(pieces):
        kind = 0 if len(pieces) == 1 else 1 if number == 0 else 3 if piece is pieces[-1] else 2
        out += MAGIC + struct.pack("<I", kind << 29 | len(piece)) + piece + bytes(-len(piece) % 4)
    return out


def face(label: float, number: int, image: bytes, labels: tuple[float, ...] = ()) -> bytes:
    head = struct.pack("<IfQQ", len(labels), label, number, 0)
    return head + struct.pack(f"<{len(labels)}f", *labels) + image


def write_rec(path: Path, payloads: dict[int, bytes]) -> Path:
    rec, idx = b"", []
    for key, payload in payloads.items():
        idx.append(f"{key}\t{len(rec)}\n")
        rec += record(payload)
    path.write_bytes(rec)
    path.with_suffix(".idx").write_text("".join(idx))
    return path


def im2rec(path: Path, samples: list[tuple[int, bytes]]) -> Path:
    return write_rec(path, {n: face(label, n, image) for n, (label, image) in enumerate(samples)})


def insightface(path: Path, samples: list[tuple[int, bytes]]) -> Path:
    """Images 1 to N grouped by label, then the identities' records, then the head with key 0."""
    samples = sorted(samples, key=lambda sample: sample[0])
    stop = len(samples) + 1
    payloads = {n: face(label, n, image) for n, (label, image) in enumerate(samples, 1)}
    labels = sorted({label for label, _ in samples})
    for number, label in enumerate(labels):
        rows = [n for n, (other, _) in enumerate(samples, 1) if other == label]
        payloads[stop + number] = face(0, stop + number, b"", (rows[0], rows[-1] + 1))
    return write_rec(path, payloads | {0: face(0, 0, b"", (stop, stop + len(labels)))})


def write_tar(path: Path, files: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path
