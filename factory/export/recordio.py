"""RecordIO: the `train.rec` and `train.idx` that arcface_torch, CVLface and DALI read.

A record is the magic number, a word (3 bits for the part of a payload, 29 bits for the length), the
payload, and zeros up to a multiple of four. Readers look for the magic number at multiples of four,
so a payload that holds it there is split, and readers put it back between the parts. An image's
payload starts with its header: flag, label, id, id2, and `flag` more labels.
"""

import struct
from collections.abc import Iterator

from factory.datasets.recordio import (
    FIRST,
    HEADER,
    LARGEST_LABEL,
    LAST,
    LONGEST,
    MAGIC,
    MIDDLE,
    WHOLE,
    framed,
)
from factory.export.output import Hashed
from factory.export.spool import Spooled
from factory.recipe import InputError

DIALECTS = ("im2rec", "insightface")
SPLIT = struct.pack("<I", MAGIC)


def frame(payload: bytes) -> bytes:
    """Return the bytes of the record or records that hold a payload."""
    parts: list[bytes] = []
    start = at = 0
    while (at := payload.find(SPLIT, at)) >= 0:
        if at % 4:
            at += 1
            continue
        parts.append(payload[start:at])
        start = at = at + 4
    parts.append(payload[start:])
    kinds = [FIRST, *[MIDDLE] * (len(parts) - 2), LAST] if len(parts) > 1 else [WHOLE]
    return b"".join(_part(kind, part) for kind, part in zip(kinds, parts, strict=True))


def _part(kind: int, data: bytes) -> bytes:
    if len(data) > LONGEST:
        raise InputError(f"a record of {len(data)} bytes; RecordIO accepts {LONGEST}")
    return framed(kind, data)


def image_record(label: int, key: int, encoded: bytes) -> bytes:
    """Return the payload of one image."""
    return HEADER.pack(0, label, key, 0) + encoded


def labels_record(labels: tuple[int, int], key: int, id2: int) -> bytes:
    """Return the payload of a record with two numbers and no image."""
    return HEADER.pack(2, 0.0, key, id2) + struct.pack("<2f", *labels)


def check_counts(images: int, classes: int, dialect: str) -> None:
    """Refuse numbers that 32-bit floats, RecordIO's labels, cannot hold exactly.

    Raises:
        InputError: there are more than 2**24 identities; or more than 2**24 records in the
            insightface dialect, whose header counts records.
    """
    if classes > LARGEST_LABEL:
        raise InputError(f"{classes} identities; RecordIO counts {LARGEST_LABEL} at most")
    if dialect == "insightface" and images + 1 + classes > LARGEST_LABEL:
        raise InputError(
            f"--dialect insightface: {images} images and {classes} identities; it counts "
            f"{LARGEST_LABEL} records at most; accepted is --dialect im2rec"
        )


def write_records(
    items: Iterator[Spooled], rec: Hashed, idx: Hashed, images: int, dialect: str
) -> Iterator[tuple[int, Spooled]]:
    """Write images one after another, and yield each with its key after it is written.

    Args:
        items: the images; for the insightface dialect grouped by label.
        rec: `train.rec`.
        idx: `train.idx`: a line for each record with its key and offset in bytes.
        images: the number of images.
        dialect: im2rec has only images, with keys from 0. insightface has images with keys from 1,
            then a record for each identity with its first key and last key + 1, then key 0 with the
            number of the first identity's record and of the one after the last.
    """
    offset = 0

    def add(key: int, payload: bytes) -> None:
        nonlocal offset
        idx.write(b"%d\t%d\n" % (key, offset))
        offset += rec.write(frame(payload))

    if dialect == "im2rec":
        for key, item in enumerate(items):
            add(key, image_record(item.label, key, item.encoded))
            yield key, item
        return
    starts: list[int] = []
    for key, item in enumerate(items, 1):
        if item.label == len(starts):
            starts.append(key)
        add(key, image_record(item.label, key, item.encoded))
        yield key, item
    stops = [*starts[1:], images + 1]
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        key = images + 1 + number
        add(key, labels_record((start, stop), key, 0))
    add(0, labels_record((images + 1, images + 1 + len(starts)), 0, 1))
