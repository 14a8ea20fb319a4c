"""Tensors in the files of others: torch checkpoints and safetensors, read without running code.

A torch checkpoint is a pickle, and a pickle may name any function to be called while it is read.
Here no name leads anywhere: those from which tensors, arrays and dictionaries are made lead to
classes of this module, all others to `Opaque`, which takes whatever it is given and does nothing.
So Lightning's checkpoints are read too, with the settings, optimizers and callbacks in them left
unread. `torch.load(weights_only=True)` refuses such files as a whole.
"""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from factory.recipe import InputError

ACCEPTED = "accepted is a checkpoint that torch.save or safetensors wrote"
CONTAINERS = ("state_dict", "state_dict_backbone", "model_state_dict", "model", "backbone")
STORAGES = {  # torch's names for storages of a type
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # begin what torch wrote before 1.6
LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
POINTER = b"version https://git-lfs.github.com/spec/"
ZIP = b"PK\x03\x04"
HEADER = 30  # bytes of a zip member's header before its name
SEEN = 65_536  # bytes of a file's beginning that are looked at


def read_tensors(
    path: str | Path,
    what: str,
    containers: Sequence[str] = CONTAINERS,
    accepted: str = ACCEPTED,
) -> dict[str, Tensor]:
    """Read the named tensors of a checkpoint, of whatever kind, without running code of it.

    Where the file's outermost dictionary holds one of `containers`, the tensors are those in it;
    otherwise they are its own. Values that are no tensors are left out. Numpy arrays count as
    tensors.

    Args:
        path: a file of torch.save, in its present or its former format, or of safetensors; what it
            holds decides, not its suffix.
        what: names the file's location in errors, such as "recipe field weights.denoiser.location".
        containers: names under which a dictionary of tensors is looked for, the first that is there
            counts.
        accepted: ends errors, such as "accepted is dcface:FILE".

    Returns:
        Tensors on the CPU by name, in their shapes. Floating-point ones are float32,
        whatever they are kept in; others keep their type. They may be views of the file: copy what
        outlives it, and change none in place.

    Raises:
        InputError: the file is something else, is cut off, or holds no tensors. It says what the
            file is and what is accepted.
    """
    path = Path(path)
    try:
        found = _contents(path, what, accepted)
        named = _tensors(found, containers)
        made = {name: _float32(value) for name, value in named.items()}
    except InputError:
        raise
    except Exception as error:  # a damaged pickle raises almost any exception
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{what}: {path} cannot be read: {reason}; {accepted}") from error
    if not made:
        raise InputError(f"{what}: {path} holds no weights ({_summary(found)}); {accepted}")
    return made


class Opaque:
    """What stands for everything foreign in a pickle: it takes all and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take any arguments and keep none."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Opaque":
        """Make one, whatever is given."""
        return super().__new__(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> "Opaque":
        """Return another."""
        return Opaque()

    def __setstate__(self, state: Any) -> None:
        """Take a state and keep none of it."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take an item and keep it not."""

    def append(self, item: Any) -> None:
        """Take an item and keep it not."""

    def extend(self, items: Any) -> None:
        """Take items and keep none."""

    def add(self, item: Any) -> None:
        """Take an item and keep it not."""

    def update(self, items: Any) -> None:
        """Take items and keep none."""


class _Ordered(dict):
    """An OrderedDict of the file; what else it carries, such as torch's metadata, is left out."""

    def __setstate__(self, state: Any) -> None:
        """Keep nothing of it."""


@dataclass
class _Storage:
    """A storage the file names: where its bytes lie is found when a tensor is made."""

    dtype: torch.dtype
    key: str
    count: int
    read: Callable[["_Storage"], Tensor]

    def __setstate__(self, state: Any) -> None:
        """Keep nothing of it."""


@dataclass
class _Stored:
    """A tensor the file names: a part of a storage."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any

    def __setstate__(self, state: Any) -> None:
        """Keep nothing of it."""

    def made(self) -> Tensor:
        """Return the tensor; ValueError where it lies outside its storage."""
        numbers = (self.offset, *self.shape, *self.strides)
        if not isinstance(self.storage, _Storage) or len(self.shape) != len(self.strides):
            raise ValueError("a tensor without a storage")
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("a tensor whose sizes are no numbers")
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        count = math.prod(self.shape)
        if count and (count > self.storage.count or self.offset + last >= self.storage.count):
            raise ValueError("a tensor that is larger than its storage")
        whole = self.storage.read(self.storage)
        return whole.as_strided(tuple(self.shape), tuple(self.strides), self.offset)


class _NumberType:
    """A numpy type as the file names it."""

    def __init__(self, name: Any = "", *args: Any) -> None:
        """Keep the name, such as f4."""
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        """Keep the order of bytes."""
        self.order = state[1]

    def dtype(self) -> np.dtype:
        """Return the type; ValueError where it is not one of numbers."""
        found = np.dtype(self.name if isinstance(self.name, str) else "O")
        if found.kind not in "biuf":
            raise ValueError("an array that is not of numbers")
        return found.newbyteorder(">") if self.order == ">" else found


class _HeldArray:
    """A numpy array the file holds, as its bytes."""

    def __init__(self, *args: Any) -> None:
        """Begin without bytes."""
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        """Keep version, shape, type, order of axes and bytes."""
        self.state = state

    def made(self) -> Tensor:
        """Return a tensor; ValueError where the array is not one of numbers."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise ValueError("an array without its bytes")
        _, shape, kind, columns, data = self.state
        if not isinstance(kind, _NumberType) or not isinstance(data, bytes):
            raise ValueError("an array that is not of numbers")
        flat = np.frombuffer(data, kind.dtype())
        made = flat.reshape(shape, order="F" if columns else "C")
        return torch.from_numpy(np.array(made, made.dtype.newbyteorder("=")))


def _stored(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Stored:
    return _Stored(storage, offset, shape, strides)


def _itself(value: Any, *rest: Any) -> Any:
    return value


def _typed(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Any:
    return _stored(*arguments) if rebuild is _stored else Opaque()


def _ordered(items: Any = ()) -> _Ordered:
    return _Ordered(items) if isinstance(items, list | tuple | dict) else _Ordered()


def _encoded(text: Any, encoding: Any = "") -> Any:
    """Return bytes that a pickle of protocol 2 writes as text."""
    return text.encode("latin1") if isinstance(text, str) and encoding == "latin1" else Opaque()


def _array(*args: Any) -> _HeldArray:
    return _HeldArray()


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _stored,
    ("torch._utils", "_rebuild_tensor"): _stored,
    ("torch._utils", "_rebuild_parameter"): _itself,
    ("torch._utils", "_rebuild_parameter_with_state"): _itself,
    ("torch._tensor", "_rebuild_from_type_v2"): _typed,
    ("_codecs", "encode"): _encoded,
    ("numpy", "dtype"): _NumberType,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class _Tensors(pickle.Unpickler):
    """Reads a pickle in which every name leads to something of this module."""

    def __init__(self, file: Any, read: Callable[[_Storage], Tensor]) -> None:
        super().__init__(file)
        self.read = read

    def find_class(self, module: str, name: str, /) -> Any:
        """Return what stands for a name; nothing of the named module is imported."""
        return _NAMES.get((module, name), Opaque)

    def persistent_load(self, pid: Any, /) -> Any:
        """Return a storage the file refers to; ValueError where it is none."""
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), _, int(count), *rest):
                if not rest or rest == [None]:
                    return _Storage(dtype, key, count, self.read)
        raise pickle.UnpicklingError("it refers to a storage of an unknown kind")


def _contents(path: Path, what: str, accepted: str) -> Any:
    """Return the outermost object of a file."""
    with path.open("rb") as file:
        start = file.read(SEEN)
        if start.startswith(ZIP):
            return _zipped(path, what, accepted)
        if start.startswith(LEGACY_START):
            file.seek(0)
            return _legacy(file, path)
    if _is_safetensors(start, path.stat().st_size):
        from safetensors.torch import load_file

        return load_file(path)
    raise InputError(f"{what}: {path} {_other(start)}; {accepted}")


def _zipped(path: Path, what: str, accepted: str) -> Any:
    """Read torch's present format: a zip of a pickle, and of storages that are not packed."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise InputError(
            f"{what}: {path} is cut off, a file of torch.save without its end; {accepted}"
        ) from None
    with archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1:
            raise InputError(f"{what}: {path} is a zip archive of something else; {accepted}")
        root = pickles[0].removesuffix("data.pkl")
        if any(name.startswith(f"{root}code/") for name in members):
            raise InputError(
                f"{what}: {path} is a TorchScript program, no tensors by name; {accepted}"
            )
        order = members.get(f"{root}byteorder")
        if order is not None and archive.read(order).strip() != b"little":
            raise InputError(
                f"{what}: {path} has its bytes in the order of big-endian machines; {accepted}"
            )
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise InputError(f"{what}: {path} is a packed zip archive; {accepted}")
        pickled = archive.read(members[pickles[0]])
    bytes_of = np.memmap(path, np.uint8, "c")

    def read(storage: _Storage) -> Tensor:
        member = members.get(f"{root}data/{storage.key}")
        needed = storage.count * storage.dtype.itemsize
        if member is None or member.file_size < needed:
            raise ValueError(f"the storage {storage.key} is missing or too small")
        header = bytes_of[member.header_offset : member.header_offset + HEADER].tobytes()
        if header[:4] != ZIP:
            raise ValueError(f"the storage {storage.key} is not where the file says")
        begin = member.header_offset + HEADER + sum(struct.unpack("<HH", header[26:30]))
        return _viewed(bytes_of[begin : begin + needed], storage)

    return _Tensors(io.BytesIO(pickled), read).load()


def _legacy(file: BinaryIO, path: Path) -> Any:
    """Read torch's former format: five pickles one after another, then the storages."""
    places: dict[str, int] = {}
    bytes_of = np.memmap(path, np.uint8, "c")

    def read(storage: _Storage) -> Tensor:
        begin = places[storage.key]
        end = begin + storage.count * storage.dtype.itemsize
        return _viewed(bytes_of[begin:end], storage)

    storages: dict[str, _Storage] = {}

    class Remembering(_Tensors):
        def persistent_load(self, pid: Any, /) -> Any:
            found = super().persistent_load(pid)
            return storages.setdefault(found.key, found)

    heads = [_Tensors(file, read).load() for _ in range(3)]
    if heads[:2] != [LEGACY_MAGIC, LEGACY_PROTOCOL] or not heads[2].get("little_endian"):
        raise ValueError("its header is not that of torch.save on a little-endian machine")
    found = Remembering(file, read).load()
    for key in _Tensors(file, read).load():
        (count,) = struct.unpack("<q", file.read(8))
        storage = storages[key]
        if count != storage.count:
            raise ValueError(f"the storage {key} has another size than the file says")
        places[key] = file.tell()
        if file.seek(count * storage.dtype.itemsize, io.SEEK_CUR) > len(bytes_of):
            raise ValueError("its end is missing")
    return found


def _viewed(data: np.ndarray, storage: _Storage) -> Tensor:
    """Return bytes as a flat tensor; a view where they lie as torch wants them."""
    size = storage.dtype.itemsize
    if len(data) != storage.count * size:
        raise ValueError("its end is missing")
    if not storage.count:
        return torch.empty(0, dtype=storage.dtype)
    data = np.array(data) if data.ctypes.data % size else np.asarray(data)
    return torch.from_numpy(data).view(storage.dtype)


def _tensors(found: Any, containers: Sequence[str]) -> dict[str, Tensor | _Stored | _HeldArray]:
    """Return the tensors of the state dict in a file, by name."""
    if not isinstance(found, dict):
        return {}
    for name in containers:
        inner = found.get(name)
        if isinstance(inner, dict) and (named := _named(inner)):
            return named
    return _named(found)


def _named(found: Mapping[Any, Any]) -> dict[str, Tensor | _Stored | _HeldArray]:
    return {
        name: value
        for name, value in found.items()
        if isinstance(name, str) and isinstance(value, Tensor | _Stored | _HeldArray)
    }


def _float32(value: Tensor | _Stored | _HeldArray) -> Tensor:
    made = value if isinstance(value, Tensor) else value.made()
    return made.float() if made.is_floating_point() else made


def _is_safetensors(start: bytes, size: int) -> bool:
    """Tell whether a file begins as safetensors: the length of a JSON text, then the text."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size


def _other(start: bytes) -> str:
    """Say what a file is that holds no tensors."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "is empty"
    if start.startswith(POINTER):
        return "is a Git-LFS pointer, not the file it stands for (git lfs pull fetches it)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, as a download leaves it that wanted a login or a confirmation"
    if start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
        return "is a packed archive"
    if start.startswith(b"\x80"):
        return "is a pickle, but not one of torch.save"
    return "holds nothing that torch.save or safetensors writes"


def _summary(found: Any) -> str:
    if not isinstance(found, dict):
        return type(found).__name__.lstrip("_").lower()
    names = [str(name)[:40] for name in found]
    if not names:
        return "an empty dictionary"
    return f"its names: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
