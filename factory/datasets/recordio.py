"""The frames of MXNet's RecordIO format, which `factory.prepare` reads and `factory.export` writes.

A record is a magic number, a word, and the payload padded to four bytes. The upper three bits of
the word say whether the payload is whole or which piece of one it is; the lower 29 bits are its
length in bytes.
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
    """Return a piece of a payload with the magic number and word before it and padding after it."""
    return WORD.pack(MAGIC, kind << LENGTH_BITS | len(data)) + data + bytes(-len(data) % 4)


def kind_and_length(word: bytes) -> tuple[int, int] | None:
    """Return (kind, length) from the 8 bytes before a piece; None if they are not a frame's."""
    magic, state = WORD.unpack(word) if len(word) == WORD.size else (0, 0)
    return (state >> LENGTH_BITS, state & LONGEST) if magic == MAGIC else None
