"""The zip that EDM and StyleGAN train from: stored PNG images and `dataset.json` with the labels.

It is written in one pass, so that it can be streamed to an object store: the size of each member is
known before, and the directory for the end is collected in a scratch file. Zip64 is used if 32 bits
are too few.
"""

import io
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO, cast

from PIL import Image

from factory.export.about import About
from factory.export.output import Hashed, Output
from factory.export.spool import Spooled
from factory.recipe import InputError
from factory.recognition.images import decode

LOCAL = struct.Struct("<4s5H3I2H")
ENTRY = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
PLAIN, ZIP64 = 20, 45  # versions needed to read
DATE = 1 << 5 | 1  # 1 January 1980, the first day of the format
FULL_16, FULL_32 = 0xFFFF, 0xFFFFFFFF  # these values mean "see the 64-bit field"
MOST_16, MOST_32 = FULL_16 - 1, FULL_32 - 1
LABELS = "dataset.json"


class StoredZip:
    """A zip of uncompressed members, written in order; equal members give equal bytes."""

    def __init__(self, out: Hashed) -> None:
        """Start a zip in an open, empty file."""
        self.out, self.count = out, 0
        self._directory = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `finish`

    def add(self, name: str, data: bytes) -> None:
        """Add a member."""
        self.add_file(name, io.BytesIO(data), len(data), zlib.crc32(data))

    def add_file(self, name: str, file: IO[bytes], size: int, crc: int) -> None:
        """Add a member of known size in bytes and CRC-32, read from a file.

        Raises:
            InputError: the member has 4 GiB or more.
        """
        if size > MOST_32:
            raise InputError(f"zip member {name}: {size} bytes, accepted are {MOST_32}")
        path, at = name.encode("ascii"), self.out.tell()
        self.out.write(
            LOCAL.pack(b"PK\3\4", PLAIN, 0, 0, 0, DATE, crc, size, size, len(path), 0) + path
        )
        shutil.copyfileobj(file, cast(IO[bytes], self.out))
        far = at > MOST_32
        extra = struct.pack("<2HQ", 1, 8, at) if far else b""
        self._directory.write(
            ENTRY.pack(
                *(b"PK\1\2", ZIP64 if far else PLAIN, ZIP64 if far else PLAIN, 0, 0, 0, DATE),
                *(crc, size, size, len(path), len(extra), 0, 0, 0, 0, FULL_32 if far else at),
            )
            + path
            + extra
        )
        self.count += 1

    def finish(self) -> None:
        """Write the directory."""
        start = self.out.tell()
        self._directory.seek(0)
        with self._directory as directory:
            shutil.copyfileobj(directory, cast(IO[bytes], self.out))
        end = self.out.tell()
        size, count = end - start, self.count
        if count > MOST_16 or start > MOST_32 or size > MOST_32:
            self.out.write(
                END64.pack(b"PK\6\6", 44, ZIP64, ZIP64, 0, 0, count, count, size, start)
                + LOCATOR.pack(b"PK\6\7", 0, end, 1)
            )
            count, size, start = FULL_16, FULL_32, FULL_32
        self.out.write(END.pack(b"PK\5\6", 0, 0, count, count, size, start, 0))


def write_edm(items: Iterator[Spooled], about: About, out: Output) -> None:
    """Write `NAME.zip` with `00000/img00000000.png`, ..., and the labels in `dataset.json`."""
    with out.open(f"{about.name}.zip") as file, tempfile.TemporaryFile() as labels:
        archive = StoredZip(file)
        crc = size = 0

        def note(text: str) -> None:
            nonlocal crc, size
            crc = zlib.crc32(text.encode(), crc)
            size += labels.write(text.encode())

        note('{"labels": [')
        for number, item in enumerate(items):
            name = f"{number // 1000:05d}/img{number:08d}.png"
            archive.add(name, as_png(item.encoded))
            note(f'{"," if number else ""}\n["{name}", {item.label}]')
        note("\n]}\n")
        labels.seek(0)
        archive.add_file(LABELS, labels, size, crc)
        archive.finish()


def as_png(encoded: bytes) -> bytes:
    """Return an image as an uncompressed RGB PNG, as the trainers' own tool writes it."""
    sink = io.BytesIO()
    Image.fromarray(decode(encoded, "image")).save(sink, "PNG", compress_level=0)
    return sink.getvalue()
