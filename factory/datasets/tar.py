"""Tar files of samples: written with reproducible bytes, read and checked in one pass.

A sample is a key and its members: `0000012_0003` with `cls`, `jpg` and `json` is stored as three
files `KEY.EXTENSION` (docs/contracts.md 4). The format is POSIX.1-1988 ustar with regular files
only. Members are sorted by name and have mtime 0, uid and gid 0 and mode 0644, so that equal
content gives equal bytes.
"""

import hashlib
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple
from zlib import adler32

BLOCK = 512
WINDOW = 1 << 20  # bytes read at a time
LARGEST = 8**11 - 1  # eleven octal digits of the size field
KEY = re.compile(r"[A-Za-z0-9_-]+")
EXTENSION = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
MEMBER = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
END = bytes(2 * BLOCK)
ADLER_MODULUS = 65521
BLANK = b" " * 8  # the checksum field counts as spaces in its own sum
# type regular file, no link name, ustar's magic; no user, group, device and prefix
PLAIN = b"0" + bytes(100) + b"ustar\00000" + bytes(247)

Sample = tuple[str, dict[str, bytes]]


class TarError(ValueError):
    """A tar is truncated, damaged or has another form; the message names the byte offset."""

    def __init__(self, offset: int, detail: str) -> None:
        """Keep the offset in bytes beside the message."""
        super().__init__(f"{detail} at byte {offset}")
        self.offset = offset


class Member(NamedTuple):
    """One file inside a tar."""

    name: str
    offset: int
    data: bytes

    @property
    def key(self) -> str:
        """Return the part of the name before the first dot."""
        return self.name.partition(".")[0]

    @property
    def extension(self) -> str:
        """Return the part of the name after the first dot."""
        return self.name.partition(".")[2]


def write_tar(path: Path, samples: Iterable[Sample]) -> tuple[str, int]:
    """Write samples to a tar, one after another, and return its sha256 and size in bytes.

    Args:
        path: the file to write; it replaces an older one. After an error there is no file.
        samples: (key, {extension: bytes}); keys match [A-Za-z0-9_-]+ and strictly increase.

    Raises:
        ValueError: a key or extension is not accepted, keys do not increase, or a member is
            larger than 8 GiB.
    """
    sha, size, last = hashlib.sha256(), 0, ""
    path.unlink(missing_ok=True)  # a hard link elsewhere must not change with this file
    try:
        with path.open("wb") as file:
            for key, members in samples:
                if not KEY.fullmatch(key):
                    raise ValueError(f"sample key {key!r}; accepted is [A-Za-z0-9_-]+")
                if key <= last:
                    raise ValueError(f"sample key {key!r} after {last!r}; keys must increase")
                last = key
                block = b"".join(
                    _member(f"{key}.{extension}", extension, members[extension])
                    for extension in sorted(members)
                )
                sha.update(block)
                size += file.write(block)
            sha.update(END)
            size += file.write(END)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return sha.hexdigest(), size


def _member(name: str, extension: str, data: bytes) -> bytes:
    if not EXTENSION.fullmatch(extension):
        raise ValueError(f"extension {extension!r} of {name!r}; accepted is letters, digits, _, .")
    if len(name) > 100:
        raise ValueError(f"member name {name!r} has {len(name)} characters, accepted are 100")
    if len(data) > LARGEST:
        raise ValueError(f"member {name!r} has {len(data)} bytes, accepted are {LARGEST}")
    header = b"".join(
        (
            name.encode("ascii").ljust(100, b"\0"),
            b"0000644\0",  # mode
            b"0000000\0",  # uid
            b"0000000\0",  # gid
            b"%011o\0" % len(data),
            b"00000000000\0",  # mtime
            BLANK,
            PLAIN,
        )
    )
    header = header[:148] + b"%06o\0 " % sum(header) + header[156:]
    return header + data + bytes(-len(data) % BLOCK)


def members(file: IO[bytes], seen: Callable[[bytes], object] | None = None) -> Iterator[Member]:
    """Yield the members of an open tar; memory holds one window and one member.

    Args:
        file: a binary stream at the start of the tar.
        seen: is called with every piece of the stream when it is read, such as a hash's `update`.

    Raises:
        TarError: the tar is truncated, a header's checksum is wrong, a member is not a regular file
            with a name such as `key.ext`, or bytes other than zeros follow the end.
    """
    window, base, at = b"", 0, 0  # `at` counts inside the window, which starts at byte `base`

    def read(need: int) -> bool:
        nonlocal window, base, at
        pieces, have = [window[at:]], len(window) - at
        base, at = base + at, 0
        while have < need:
            piece = file.read(max(WINDOW, need - have))
            if not piece:
                break
            if seen is not None:
                seen(piece)
            pieces.append(piece)
            have += len(piece)
        window = b"".join(pieces)
        return have >= need

    while True:
        if at + BLOCK > len(window) and not read(BLOCK):
            raise TarError(base + len(window), "truncated")
        header = window[at : at + BLOCK]
        if not header[0]:
            break
        name, size = _parse(header, base + at)
        stop = BLOCK + size + -size % BLOCK
        if at + stop > len(window) and not read(stop):
            raise TarError(base + len(window), f"truncated inside {name}")
        start = at + BLOCK
        yield Member(name, base + start, window[start : start + size])
        at += stop
    if at + len(END) > len(window) and not read(len(END)):
        raise TarError(base + len(window), "truncated before the end mark")
    while True:
        rest = window[at:]
        if rest.count(0) != len(rest):
            raise TarError(base + at, "no member header and no end mark")
        at = len(window)
        if not read(1):
            return


def grouped(found: Iterable[Member]) -> Iterator[tuple[str, list[Member]]]:
    """Yield (key, members) for each run of members with the same key."""
    for key, run in itertools.groupby(found, key=lambda member: member.key):
        yield key, list(run)


def _parse(header: bytes, offset: int) -> tuple[str, int]:
    """Check a header's fields and return the name and size that it states."""
    try:
        size = int(header[124:136].rstrip(b"\0 "), 8)
        stated = int(header[148:156].rstrip(b"\0 "), 8)
    except ValueError:
        raise TarError(offset, "damaged member header") from None
    # The lower half of adler32 is 1 + the sum of the bytes; this is faster than Python's sum.
    found = (adler32(header[:148] + BLANK + header[156:]) & 0xFFFF) - 1
    if (found - stated) % ADLER_MODULUS:
        raise TarError(offset, "damaged member header (checksum)")
    if header[156:] != PLAIN and (header[156] not in b"0\0" or header[345:500].strip(b"\0")):
        raise TarError(offset, "a member that is not a plain file with a short name")
    name = header[:100].rstrip(b"\0")
    if not MEMBER.fullmatch(name):
        raise TarError(offset, f"member name {name!r}, accepted is KEY.EXTENSION")
    return name.decode("ascii"), size


def read_tar(source: bytes | Path) -> Iterator[Sample]:
    """Yield (key, {extension: bytes}) for each sample; raises TarError like `members`.

    Args:
        source: the bytes of a tar, or the path of one.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        for key, found in grouped(members(file)):
            sample: dict[str, bytes] = {}
            for member in found:
                if member.extension in sample:
                    raise TarError(member.offset - BLOCK, f"{member.name} stands twice")
                sample[member.extension] = member.data
            yield key, sample
