"""Training examples of a denoiser: a dataset's latents, embeddings and more, computed once.

A training step then only runs the denoiser. Each kind of example is one array on disk, named by a
digest of its inputs, so that systems share equal arrays. Arrays that networks compute have two
halves: for the images, and for their mirror images.
"""

import fcntl
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factory.datasets.composition import is_composition
from factory.datasets.feed import Feed
from factory.datasets.manifest import TAR, committed, shard_file
from factory.datasets.store import Store
from factory.datasets.tar import members
from factory.diffusion.autoencoder import KL, VQ, Bottleneck, to_pixels
from factory.recipe import InputError, digest
from factory.recognition.backbones import IResNet

BATCH = 64
NETWORKS = ("latents", "embeddings", "norms", "maps")  # kinds that frozen networks make
KINDS = ("images", *NETWORKS, "truth")
CHUNK = 16 * BATCH  # images in one file of a folder of chunks
MAP_LAYER = "layer4.0"  # DCFace's spatial identity features: the first unit of stage 4


@dataclass(frozen=True)
class Frozen:
    """The networks that see each image once, before the training.

    Attributes:
        autoencoder: encodes images to latents; None if the denoiser works on pixels.
        teacher: network from [B, 3, size, size] in [-1, 1] to embeddings [B, D].
        teacher_size: height and width of the teacher's images.
    """

    autoencoder: Bottleneck | VQ | KL | None
    teacher: nn.Module
    teacher_size: int


@dataclass(frozen=True)
class ExampleSource:
    """The inputs from which examples are computed.

    Attributes:
        feed: the dataset, with a batch size of 1; the arrays have its first epoch's order.
        urls: the datasets of the feed.
        kinds: the wanted `KINDS`.
        frozen: the networks.
        digests: digests of `data`, `teacher` and, if there is one, `autoencoder`.
        low_precision: compute in bfloat16.
        attributes: columns of `truth`.
    """

    feed: Feed
    urls: tuple[str, ...]
    kinds: tuple[str, ...]
    frozen: Frozen
    digests: dict[str, str]
    low_precision: bool
    attributes: tuple[str, ...] = ()

    def named(self) -> dict[str, str]:
        """Return the name of each wanted array, labels and keys included: its kind and a digest."""
        about = {"data": self.digests["data"], "images": len(self.feed)}
        seen = {**about, "low_precision": self.low_precision}
        teacher = self.digests["teacher"]
        of = {
            **{kind: about for kind in ("labels", "keys", "images")},
            "latents": {**seen, "autoencoder": self.digests.get("autoencoder")},
            **{kind: {**seen, "teacher": teacher} for kind in ("embeddings", "norms")},
            "maps": {**seen, "teacher": teacher, "layer": MAP_LAYER},
            "truth": {**about, "attributes": list(self.attributes)},
        }
        return {kind: f"{kind}-{digest(of[kind])}" for kind in ("labels", "keys", *self.kinds)}


@dataclass(frozen=True)
class Examples:
    """The arrays of a dataset of N images, mapped from disk.

    Attributes:
        labels: int64 [N].
        keys: names of the samples, ASCII bytes [N].
        peers: int64 [N], the images ordered by label.
        first: int64 [classes + 1], the place in `peers` where each label's images begin.
        images: uint8 [N, S, S, 3] RGB.
        latents: float16 [2, N, C, H, W]; the second half is of the mirrored images.
        embeddings: float16 [2, N, D], unit vectors.
        norms: float16 [2, N], the lengths of the raw embeddings.
        maps: float16 [2, N, C, h, w], the teacher's features after the first unit of stage 4.
        truth: float32 [N, A], the attributes named in `attributes`, of the unmirrored image.
        attributes: names of truth's columns.
    """

    labels: np.ndarray
    keys: np.ndarray
    peers: np.ndarray
    first: np.ndarray
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def __getattr__(self, name: str) -> np.ndarray:
        """Return an array by its kind."""
        if name in KINDS and name in self.arrays:
            return self.arrays[name]
        raise AttributeError(name)

    def another(self, rows: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Return a row of each image's own person, int64 [B]; it may be the image itself.

        Args:
            rows: rows of the examples, int64 [B].
            shares: uniform draws in [0, 1), float64 [B].
        """
        label = self.labels[rows]
        span = self.first[label + 1] - self.first[label]
        return self.peers[self.first[label] + (shares * span).astype(np.int64)]

    def clean(self, flip: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the denoiser's targets, float32 [B, C, H, W]: latents if there are any, or pixels.

        Args:
            flip: int64 [B], 1 for the mirrored image, else 0.
            rows: rows of the examples, int64 [B].
        """
        if "latents" in self.arrays:
            return self.latents[flip, rows].astype(np.float32)
        return self.pixels(flip, rows)

    def pixels(self, flip: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return images as float32 [B, 3, S, S] in [-1, 1]."""
        taken = self.images[rows]
        taken[flip == 1] = taken[flip == 1][:, :, ::-1]
        return np.ascontiguousarray(taken.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1.0


def embed(teacher: nn.Module, size: int, pixels: Tensor) -> Tensor:
    """Return unit embeddings float32 [B, D] of images [B, 3, S, S], resized if needed.

    Args:
        teacher: network from [B, 3, size, size] in [-1, 1].
        size: height and width of the teacher's images.
        pixels: images in [-1, 1].
    """
    return F.normalize(teacher(resized(pixels, size)).float(), dim=1)


def resized(pixels: Tensor, size: int) -> Tensor:
    """Return images resized to [B, 3, size, size], bilinearly with antialiasing."""
    if pixels.shape[2] == size:
        return pixels
    if pixels.requires_grad and pixels.is_cuda:
        return _multiplied(pixels, size)
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


def _multiplied(pixels: Tensor, size: int) -> Tensor:
    """Resize by two matrix products, whose gradient is deterministic on a GPU."""
    matrix = _resizing(pixels.shape[2], size).to(pixels.device)
    with torch.autocast(pixels.device.type, enabled=False):
        return matrix @ pixels.float() @ matrix.T


@functools.cache
def _resizing(size: int, wanted: int) -> Tensor:
    """Return the matrix that resizes columns, float32 [wanted, size]."""
    columns = torch.eye(size)[None, None]
    return F.interpolate(columns, (wanted, size), mode="bilinear", antialias=True)[0, 0]


def features(
    teacher: nn.Module, size: int, pixels: Tensor, layer: str = MAP_LAYER
) -> tuple[Tensor, Tensor]:
    """Return raw embeddings [B, D] and spatial features [B, C, h, w] of images in one pass.

    Args:
        teacher: an IResNet; InputError where it is another network.
        size: height and width of its images.
        pixels: images [B, 3, S, S] in [-1, 1], resized where S is another size.
        layer: the layer whose output the spatial features are.

    Returns:
        Both float32.
    """
    if not isinstance(teacher, IResNet):
        raise InputError(
            f"recipe field weights.teacher: {type(teacher).__name__} has no spatial features; "
            "accepted is an IResNet"
        )
    held: list[Tensor] = []

    def hold(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        held.append(made)

    hook = teacher.get_submodule(layer).register_forward_hook(hold)
    try:
        raw = teacher(resized(pixels, size))
    finally:
        hook.remove()
    return raw.float(), held[0].float()


def encoder_digest(autoencoder: Bottleneck | VQ | KL) -> str:
    """Return 16 hex digits of the encoder's weights; further training of the decoder changes none.

    Only these weights decide latents.
    """
    hashed = hashlib.sha256()
    for name, value in sorted(autoencoder.state_dict().items()):
        if "decoder." not in name and "post_quant" not in name:
            hashed.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()[:16]


def _silent(line: str) -> None:
    """Say nothing."""


def load_examples(
    source: ExampleSource,
    cache: Path,
    sidecar: Store | None = None,
    say: Callable[[str], None] = _silent,
) -> Examples:
    """Return a dataset's arrays, from the cache if it has them.

    What is computed here is kept after every 1,024 images, so that the next call goes on after an
    interruption. Processes of one machine that share a cache take turns.

    Args:
        source: the inputs of the arrays.
        cache: folder of the cache.
        sidecar: folder in which actors left the networks' arrays; None computes them here.
        say: receives how many images are computed.

    Raises:
        InputError: a sample lacks an attribute, attributes are wanted from a composition, or the
            sidecar folder lacks images.
    """
    named = source.named()
    paths = {kind: cache / f"{name}.npy" for kind, name in named.items()}
    if not all(path.is_file() for path in paths.values()):
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "lock").open("w") as lock:
            _take(lock, cache, say)
            _complete(source, paths, sidecar, say)
    arrays = {kind: np.load(paths[kind], mmap_mode="r") for kind in source.kinds}
    labels = np.load(paths["labels"])
    peers = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[peers], np.arange(labels.max() + 2))
    return Examples(labels, np.load(paths["keys"]), peers, first, arrays, source.attributes)


def _take(lock: IO[str], cache: Path, say: Callable[[str], None]) -> None:
    """Lock a cache, after other processes if need be; say so where a disk has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"another process fills {cache}; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        say(f"{cache} cannot be locked ({error.strerror}); processes that share it repeat work")


def _complete(
    source: ExampleSource, paths: dict[str, Path], sidecar: Store | None, say: Callable[[str], None]
) -> None:
    """Make the files that a cache lacks, the networks' arrays from their chunks."""
    missing = [kind for kind, path in paths.items() if not path.is_file()]
    networks = [kind for kind in missing if kind in NETWORKS]
    cache, named = paths["labels"].parent, source.named()
    chunks = sidecar or Store(cache / "chunks")
    with tempfile.TemporaryDirectory(prefix=".examples-", dir=cache) as aside:
        made = {kind: Path(aside) / f"{kind}.npy" for kind in missing}
        if networks and not sidecar:
            for first in range(0, len(source.feed), CHUNK):
                fill(source, chunks, first, say, networks)
        for kind in networks:
            _gather(chunks, named[kind], len(source.feed), made[kind])
        here = {kind: path for kind, path in made.items() if kind not in networks}
        if here:
            compute(source, here, range(len(source.feed)), say if not networks else _silent)
        for kind, path in made.items():
            os.replace(path, paths[kind])
    if not sidecar:
        for kind in networks:
            chunks.clear(named[kind])


def lacking(
    source: ExampleSource, store: Store, first: int, kinds: Sequence[str] = NETWORKS
) -> dict[str, str]:
    """Return the files that a folder of chunks lacks for the images from `first` on, by kind."""
    named = source.named()
    files = {kind: chunk_file(named[kind], first) for kind in kinds if kind in named}
    return {kind: file for kind, file in files.items() if not store.exists(file)}


def fill(
    source: ExampleSource,
    store: Store,
    first: int,
    say: Callable[[str], None] = _silent,
    kinds: Sequence[str] = NETWORKS,
) -> None:
    """Compute what a folder of chunks lacks for the `CHUNK` images from `first` on.

    Args:
        source: the inputs of the arrays.
        store: the folder; a file is moved into it whole.
        first: the first image, a multiple of `CHUNK`.
        say: receives how many images are computed.
        kinds: the wanted kinds; of `NETWORKS`, those that the source has.
    """
    missing = lacking(source, store, first, kinds)
    if not missing:
        return
    with tempfile.TemporaryDirectory() as scratch:
        made = {kind: Path(scratch) / f"{kind}.npy" for kind in missing}
        compute(source, made, range(first, min(first + CHUNK, len(source.feed))), say)
        for kind, path in made.items():
            store.put(path, missing[kind])


def chunk_file(name: str, first: int) -> str:
    """Return the file with an array's `CHUNK` images from `first` on."""
    return f"{name}/{first:09d}.npy"


def _gather(sidecar: Store, name: str, count: int, path: Path) -> None:
    """Join the chunks of an array into one file."""
    array: np.memmap | None = None
    for first in range(0, count, CHUNK):
        file = chunk_file(name, first)
        if not sidecar.exists(file):
            raise InputError(f"recipe field precompute.sidecar: {sidecar.url} lacks {file}")
        with sidecar.local(file) as held:
            part = np.load(held, mmap_mode="r")
            if array is None:
                shape = (part.shape[0], count, *part.shape[2:])
                array = np.lib.format.open_memmap(path, "w+", part.dtype, shape)
            array[:, first : first + CHUNK] = part
    assert array is not None
    array.flush()


@torch.inference_mode()
def compute(
    source: ExampleSource,
    made: dict[str, Path],
    rows: range,
    say: Callable[[str], None] = _silent,
) -> None:
    """Write arrays of some images in one pass over them.

    Args:
        source: the inputs of the arrays.
        made: the .npy file of each wanted kind.
        rows: the images, in the order of the arrays. The second half of latents, embeddings, norms
            and maps is of the mirrored images.
        say: receives how many images are computed, from time to time.
    """
    feed, frozen, attributes = source.feed, source.frozen, source.attributes
    device = next(frozen.teacher.parameters()).device
    known = _truth(source.urls, attributes) if "truth" in made else {}
    arrays: dict[str, np.ndarray] = {}
    names: list[str] = []

    def keep(kind: str, part: slice, values: np.ndarray, side: int | None = None) -> None:
        if kind not in made:
            return
        if kind not in arrays:
            sides = () if side is None else (2,)
            shape = (*sides, len(rows), *values.shape[1:])
            arrays[kind] = np.lib.format.open_memmap(made[kind], "w+", values.dtype, shape)
        arrays[kind][part if side is None else (side, part)] = values

    for start, images, labels, keys in _batches(feed, rows):
        say(f"examples {start}/{len(feed)}")
        part = slice(start - rows.start, start - rows.start + len(images))
        keep("labels", part, labels)
        keep("images", part, images)
        names += keys
        if "truth" in made:
            keep("truth", part, np.array([_row(known, key, attributes) for key in keys]))
        straight = to_pixels(torch.from_numpy(images)).to(device)
        for side, pixels in enumerate((straight, straight.flip(3))):
            with torch.autocast(device.type, torch.bfloat16, enabled=source.low_precision):
                if "latents" in made:
                    assert frozen.autoencoder is not None
                    latents = frozen.autoencoder.encode(pixels)
                    keep("latents", part, latents.half().cpu().numpy(), side)
                if "maps" in made:
                    raw, maps = features(frozen.teacher, frozen.teacher_size, pixels)
                    keep("maps", part, maps.half().cpu().numpy(), side)
                elif "embeddings" in made or "norms" in made:
                    raw = frozen.teacher(resized(pixels, frozen.teacher_size)).float()
                else:
                    continue
            norms = raw.norm(dim=1)
            keep("norms", part, norms.half().cpu().numpy(), side)
            keep("embeddings", part, (raw / norms[:, None]).half().cpu().numpy(), side)
    if "keys" in made:
        np.save(made["keys"], np.char.encode(names, "ascii"))
    for array in arrays.values():
        assert isinstance(array, np.memmap)
        array.flush()


def _batches(feed: Feed, rows: range) -> Iterator[tuple[int, np.ndarray, np.ndarray, list[str]]]:
    """Yield (first row, images, labels, keys) of rows of the feed's first epoch."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    keys: list[str] = []
    for number, batch in enumerate(feed.batches(rows.start, rows.stop), start=rows.start + 1):
        images.append(batch.images[0])
        labels.append(int(batch.labels[0]))
        keys.append(batch.keys[0])
        if len(images) == BATCH or number == rows.stop:
            yield number - len(images), np.stack(images), np.array(labels), keys
            images, labels, keys = [], [], []


def _truth(urls: Sequence[str], attributes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the truth of every sidecar of the datasets, by key."""
    known: dict[str, dict[str, Any]] = {}
    for url in urls:
        store = Store(url)
        if is_composition(store):
            raise InputError(
                f"recipe field data.train: {store.url} is a composition; attributes accept a "
                "dataset, one that materialise made of it too"
            )
        for name in sorted(committed(store)):
            with store.open_input(shard_file(name, TAR)) as file:
                for member in members(file):
                    if member.extension == "json":
                        if member.key in known:
                            raise InputError(
                                f"recipe field data.train: {url} repeats the key {member.key} of "
                                "another dataset; attributes accept one dataset"
                            )
                        truth = json.loads(member.data).get("truth", {})
                        known[member.key] = {n: truth[n] for n in attributes if n in truth}
    return known


def _row(known: dict[str, dict[str, Any]], key: str, attributes: Sequence[str]) -> np.ndarray:
    lacking = [name for name in attributes if name not in known.get(key, {})]
    if lacking:
        raise InputError(
            f"recipe field options.attributes: sample {key} has no {lacking[0]} in its sidecar"
        )
    return np.array([known[key][name] for name in attributes], np.float32)
