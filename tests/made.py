"""Files as people hand them in, made here: images of every mode, folders, archives, records."""

import io
import json
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64


def picture(seed: int, size: int = SIZE) -> np.ndarray:
    """Return a smooth random picture, uint8 [size, size, 3]."""
    small = np.random.default_rng(seed).integers(30, 226, (6, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray | Image.Image, form: str = "JPEG", **options: object) -> bytes:
    sink = io.BytesIO()
    shown = image if isinstance(image, Image.Image) else Image.fromarray(image)
    shown.save(sink, form, **options)  # type: ignore[arg-type]
    return sink.getvalue()


def jpg(seed: int, size: int = SIZE) -> bytes:
    return encoded(picture(seed, size), "JPEG", quality=90)


def png(seed: int, size: int = SIZE) -> bytes:
    return encoded(picture(seed, size), "PNG")


def claiming(width: int, height: int) -> bytes:
    """Return a small JPEG whose header claims another size."""
    data = bytearray(encoded(picture(1, 16), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">2H", height, width)
    return bytes(data)


def files(folder: Path, content: dict[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def people(folder: Path, count: int = 2, each: int = 2) -> Path:
    """Write a folder an identity."""
    names = [(n, k) for n in range(count) for k in range(each)]
    return files(folder, {f"p{n}/{k}.jpg": jpg(10 * n + k) for n, k in names})


def named(folder: Path, name: bytes, data: bytes) -> Path:
    """Write a file whose name is given in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(os.fsencode(folder) + b"/" + name, "wb") as file:
        file.write(data)
    return folder


def tar(path: Path, content: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as made:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return path


def archive(path: Path, content: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as made:
        for name, data in content.items():
            made.writestr(name, data)
    return path


def in_json(label: object) -> bytes:
    return json.dumps({"label": label, "who": {"id": label}}).encode()


def samples(member: str, label, count: int = 4) -> dict[str, bytes]:
    """Return the members of a WebDataset tar whose labels stand in `KEY.member`."""
    made: dict[str, bytes] = {}
    for number in range(count):
        made[f"{number:03d}.jpg"] = jpg(number)
        made[f"{number:03d}.{member}"] = label(number // 2)
    return made
