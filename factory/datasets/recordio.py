"""Numbers of MXNet's RecordIO format, which `factory.prepare` reads and `factory.export` writes.

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
