"""The frames of MXNet's RecordIO format, which `factory.prepare` reads and `factory.export` writes.

A record is the magic, a word whose upper three bits say whether it is whole or which piece of a
payload it is and whose lower 29 bits are the length, then the payload, padded to four bytes.
"""

import struct

MAGIC = 0xCED7230A
WORD = struct.Struct("<II")  # magic; piece and length
HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
LENGTH_BITS = 29
WHOLE, FIRST, MIDDLE, LAST = range(4)
LARGEST_LABEL = 2**24  # float32 holds integers exactly up to here
LONGEST = (1 << LENGTH_BITS) - 1


def framed(kind: int, data: bytes) -> bytes:
    """Return a piece of a payload with its word before it and its padding behind it."""
    return WORD.pack(MAGIC, kind << LENGTH_BITS | len(data)) + data + bytes(-len(data) % 4)


def kind_and_length(word: bytes) -> tuple[int, int] | None:
    """Read a piece's word; None where there is none."""
    magic, state = WORD.unpack(word) if len(word) == WORD.size else (0, 0)
    return (state >> LENGTH_BITS, state & LONGEST) if magic == MAGIC else None
