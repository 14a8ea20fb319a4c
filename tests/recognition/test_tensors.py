"""Checkpoints of others are read without running what is in them; what is none is named."""

import collections
import functools
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from factory.recipe import InputError
from factory.recognition.tensors import read_tensors

WHAT = "recipe field weights.denoiser.location"
ran: list[str] = []


def touched(word: str = "") -> str:
    ran.append(word)
    return word


class Foreign:
    """A class of the project a checkpoint comes from."""

    def __init__(self) -> None:
        self.settings = {"grid": 3}


class Hostile:
    """Its pickle calls a function when it is read."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


class Mapped(dict):
    pass


class Listed(list):
    pass


def state() -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 4, generator=draws)
    return {
        "net.weight": whole,
        "net.part": whole[2:4].t(),
        "net.half": whole.half(),
        "net.double": whole.double(),
        "net.bfloat": whole.bfloat16(),
        "net.count": torch.tensor(7),
        "net.flags": torch.tensor([True, False]),
        "net.empty": torch.zeros(0, 3),
        "net.parameter": torch.nn.Parameter(torch.ones(2)),
    }


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        whole = value.detach()
        whole = whole.float() if whole.is_floating_point() else whole
        assert found[name].dtype == whole.dtype and torch.equal(found[name], whole), name


def lightning() -> dict[str, Any]:
    return {
        "state_dict": collections.OrderedDict(state()),
        "hyper_parameters": Mapped(
            datamodule=functools.partial(touched, "datamodule"),
            net=Foreign(),
            paths=Listed([Path("a"), {1, 2}, frozenset((3,))]),
            nested=collections.defaultdict(Foreign, {"x": Foreign()}),
        ),
        "callbacks": {Foreign: {"best": np.float64(0.5), "score": torch.tensor(1.0)}},
        "epoch": np.int64(3),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_a_lightning_checkpoint_gives_its_state_dict(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(lightning(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    same(read_tensors(path, WHAT), state())
    assert not ran


@pytest.mark.parametrize("zipped", [True, False])
def test_a_plain_state_dict_is_read_by_content(zipped: bool, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    path = tmp_path / "backbone.anything"
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=zipped)
    same(read_tensors(path, WHAT), dict(module.state_dict()))


def test_safetensors_and_arrays_are_read(tmp_path: Path) -> None:
    wanted = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
    save_file({**wanted, "c": torch.ones(2).half()}, tmp_path / "named.bin")
    same(read_tensors(tmp_path / "named.bin", WHAT), {**wanted, "c": torch.ones(2)})
    arrays = {
        "first": np.arange(3, dtype=np.float64),
        "turned": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        "swapped": np.arange(3, dtype=">f4"),
        "words": np.array(["x"], object),
    }
    for protocol in (2, 4):
        torch.save(arrays, tmp_path / "contexts.npy", pickle_protocol=protocol)
        with pytest.raises(InputError, match="not of numbers"):
            read_tensors(tmp_path / "contexts.npy", WHAT)
        kept = {name: value for name, value in arrays.items() if name != "words"}
        torch.save(kept, tmp_path / "contexts.npy", pickle_protocol=protocol)
        found = read_tensors(tmp_path / "contexts.npy", WHAT)
        same(
            found,
            {n: torch.from_numpy(v.astype(v.dtype.newbyteorder("="))) for n, v in kept.items()},
        )


def test_containers_are_looked_into_in_their_order(tmp_path: Path) -> None:
    path, one, two = tmp_path / "c.pt", {"a": torch.ones(1)}, {"b": torch.ones(2)}
    torch.save({"epoch": 1, "state_dict_backbone": one, "state_dict_softmax_fc": two}, path)
    assert list(read_tensors(path, WHAT)) == ["a"]
    assert list(read_tensors(path, WHAT, ("state_dict_softmax_fc",))) == ["b"]
    torch.save({"state_dict": {}, "scale": torch.ones(1)}, path)
    assert list(read_tensors(path, WHAT)) == ["scale"]


@pytest.mark.parametrize(
    "hostile",
    [
        Hostile(os.system, "touch {marker}"),
        Hostile(eval, "open('{marker}', 'w')"),
        Hostile(touched, "called"),
        Hostile(getattr, touched, "__globals__"),
        Hostile(functools.partial(touched, "built")),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickles_are_inert(hostile: Hostile, zipped: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile.arguments = tuple(
        part.format(marker=marker) if isinstance(part, str) else part for part in hostile.arguments
    )
    path = tmp_path / "model.ckpt"
    held = {"hyper_parameters": hostile, hostile: hostile, "state_dict": {**state(), "x": hostile}}
    ran.clear()
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    ran.clear()
    same(read_tensors(path, WHAT), state())
    assert not marker.exists() and not ran


def torch_zip(path: Path, pickled: bytes, **files: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in files.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", data)


class Pickled:
    """Writes what torch.save does for a tensor, with numbers of the test's choosing."""

    def __init__(self, count: Any, offset: Any, shape: Any, strides: Any, key: str = "0") -> None:
        self.pid = ("storage", torch.FloatStorage, key, "cpu", count)
        self.numbers = (offset, shape, strides, False, collections.OrderedDict())

    def bytes(self) -> bytes:
        outer = self

        class Writer(pickle.Pickler):
            def persistent_id(self, obj: Any) -> Any:
                return outer.pid if obj is outer.pid else None

        sink = io.BytesIO()
        rebuild = torch._utils._rebuild_tensor_v2
        Writer(sink, 2).dump({"w": Hostile(rebuild, self.pid, *self.numbers)})
        return sink.getvalue()


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (Pickled(4, 0, (10**12,), (0,)), "larger than its storage"),
        (Pickled(4, 2, (4,), (1,)), "larger than its storage"),
        (Pickled(4, 0, (2, 2), (9, 1)), "larger than its storage"),
        (Pickled(10**12, 0, (4,), (1,)), "missing or too small"),
        (Pickled(4, 0, (-1,), (1,)), "no numbers"),
        (Pickled(4, 0, ("4",), (1,)), "no numbers"),
        (Pickled(4, 0, (4,), (1,), "../0"), "missing or too small"),
    ],
)
def test_tensors_outside_their_storage_are_refused(
    pickled: Pickled, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    torch_zip(path, Pickled(4, 0, (4,), (1,)).bytes(), _0=np.arange(4, dtype=np.float32).tobytes())
    assert read_tensors(path, WHAT)["w"].tolist() == [0.0, 1.0, 2.0, 3.0]
    torch_zip(path, pickled.bytes(), _0=np.arange(4, dtype=np.float32).tobytes())
    with pytest.raises(InputError, match=reason):
        read_tensors(path, WHAT)


def cut(path: Path) -> None:
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:-100])


def cut_legacy(path: Path) -> None:
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-40])


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("readme.txt", "hello")


def packed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", pickle.dumps({}))


def script(path: Path) -> None:
    torch_zip(path, pickle.dumps({}, 2))
    with zipfile.ZipFile(path, "a") as made:
        made.writestr("archive/code/net.py", "")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1400000000\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>"
OTHERS = {
    "a Git-LFS pointer": lambda path: path.write_bytes(POINTER),
    "a web page": lambda path: path.write_bytes(PAGE),
    "empty": lambda path: path.write_bytes(b""),
    "a packed archive": lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(20)),
    "a pickle, but not one of torch.save": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "holds nothing": lambda path: path.write_bytes(bytes(range(256))),
    "is cut off": cut,
    "its end is missing": cut_legacy,
    "a zip archive of something else": archive,
    "a packed zip archive": packed,
    "a TorchScript program": script,
    "holds no weights .its names: epoch": lambda path: torch.save({"epoch": 3}, path),
    "holds no weights .list": lambda path: torch.save([torch.ones(2)], path),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_checkpoint_is_named_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    OTHERS[kind](path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=kind) as error:
        read_tensors(path, WHAT)
    message = str(error.value)
    assert (
        message.startswith(f"{WHAT}: {path} ") and "\n" not in message and "accepted is" in message
    )
    assert "\x1b" not in message and sorted(tmp_path.iterdir()) == before
