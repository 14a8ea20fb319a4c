"""MXNet's RecordIO files, read without MXNet: `X.rec` and its `X.idx`, in both dialects.

A record is a magic number, a word, and the payload padded to four bytes. The upper three bits of
the word are 0 for a whole payload; they are 1, 2 or 3 for the first, middle or last piece of a
payload that held the magic number. The lower 29 bits are the length. The payload of a face is a
header of 24 bytes (flag, label, two ids), `flag` further labels as float32, and the encoded image.

*im2rec*: every record is an image. *insightface*: record 0 has no image. Its first label is N + 1:
records 1 to N are images, and the records of identities follow them.
"""

import struct
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from factory.datasets.recordio import (
    FIRST,
    HEADER,
    LAST,
    MAGIC,
    MIDDLE,
    WHOLE,
    WORD,
    kind_and_length,
)
from factory.datasets.store import Store
from factory.recipe import InputError


class Record(NamedTuple):
    """One record: its labels, and the encoded image, which may be empty."""

    labels: tuple[float, ...]
    image: bytes


def read_payload(file: IO[bytes], offset: int, what: str, limit: int | None = None) -> bytes:
    """Return the payload of the record at an offset in bytes, or its first `limit` bytes.

    Raises:
        InputError: there is no record at this offset, or the file ends inside it.
    """
    file.seek(offset)
    pieces: list[bytes] = []
    while True:
        word = file.read(WORD.size)
        found = kind_and_length(word)
        if found is None:
            raise InputError(f"{what}: no record at byte {offset}; accepted is an X.idx of X.rec")
        kind, length = found
        if kind not in ((FIRST, WHOLE) if not pieces else (MIDDLE, LAST)):
            raise InputError(f"{what}: pieces of the record at byte {offset} are out of order")
        wanted = length if limit is None else min(length, limit)
        data = file.read(wanted)
        if len(data) < wanted:
            raise InputError(f"{what}: ends inside the record at byte {offset}")
        pieces.append(data)
        if kind in (WHOLE, LAST) or limit is not None:
            return struct.pack("<I", MAGIC).join(pieces)
        file.seek(-length % 4, 1)


def parse(payload: bytes, what: str) -> Record:
    """Return labels and image of a record's payload; InputError if it is too short."""
    if len(payload) < HEADER.size:
        raise InputError(f"{what}: a record of {len(payload)} bytes is no image record")
    flag, label, _, _ = HEADER.unpack_from(payload)
    labels = (label,)
    if flag:
        if len(payload) < HEADER.size + 4 * flag:
            raise InputError(f"{what}: a record of {len(payload)} bytes has no {flag} labels")
        labels = struct.unpack_from(f"<{flag}f", payload, HEADER.size)
    return Record(labels, payload[HEADER.size + 4 * flag :])


def read_index(store: Store, name: str) -> dict[int, int]:
    """Return the offset in bytes of each key of an `.idx` file, in the order of the keys.

    Raises:
        InputError: the file is missing or a line is not KEY, tab, OFFSET.
    """
    if not store.exists(name):
        rec = PurePosixPath(name).with_suffix(".rec")
        raise InputError(
            f"SOURCE {store.url}/{rec}: {name} is missing; accepted is X.rec with X.idx beside it"
        )
    try:
        lines = [line.split() for line in store.read(name).decode().splitlines() if line.strip()]
        index = dict(sorted((int(float(key)), int(offset)) for key, offset in lines))
        if wrong := next((offset for offset in index.values() if not 0 <= offset < 1 << 62), 0):
            raise ValueError(f"offset {str(wrong)[:20]}")
        return index
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"SOURCE {store.url}/{name}: {error}; accepted are lines KEY, tab, OFFSET"
        ) from None


def image_records(store: Store, rec: str) -> Iterator[tuple[int, int, float]]:
    """Yield (key, offset, label) for every image of a RecordIO file of either dialect, by key.

    Only the head of each record is read. If a record has several labels, the first one counts.

    Raises:
        InputError: the index or records are damaged, or there is no image.
    """
    what = f"SOURCE {store.url}/{rec}"
    index = read_index(store, str(PurePosixPath(rec).with_suffix(".idx")))
    if not index:
        raise InputError(f"{what}: its .idx names no record")
    with store.open_random(rec) as file:
        keys = list(index)
        first = parse(read_payload(file, index[keys[0]], what), what)
        if not first.image and len(first.labels) == 2:
            stop = int(first.labels[0]) if 0 <= first.labels[0] <= len(index) + 1 else 0
            if stop < 1:
                raise InputError(
                    f"{what}: record 0 says that images end at {first.labels[0]}, the .idx names "
                    f"{len(index)} records; accepted is a whole .rec with its .idx"
                )
            missing = [key for key in range(1, stop) if key not in index]
            if missing:
                raise InputError(f"{what}: image record {missing[0]} is not in the .idx")
            keys = list(range(1, stop))
        for key in keys:
            head = read_payload(file, index[key], what, limit=HEADER.size + 4)
            flag, label, _, _ = HEADER.unpack_from(head.ljust(HEADER.size, b"\0"))
            if flag and len(head) < HEADER.size + 4:
                raise InputError(f"{what}: record {key} of {len(head)} bytes has no {flag} labels")
            if flag:
                (label,) = struct.unpack_from("<f", head, HEADER.size)
            yield key, index[key], label
