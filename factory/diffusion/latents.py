"""What a denoiser learns from: latents and embeddings of a dataset, computed once and kept.

A training step then costs only the denoiser. Each image is kept twice, as it is and mirrored.
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factory.diffusion.autoencoder import VQ, Bottleneck, to_pixels
from factory.recipe import digest
from factory.shards.feed import Feed

BATCH = 64


@dataclass(frozen=True)
class LatentSet:
    """A dataset as its generator sees it; N images, mapped from disk.

    Attributes:
        latents: float16 [2, N, C, H, W]; the second half is of the mirrored images.
        embeddings: float16 [2, N, D], unit vectors.
        labels: int64 [N].
        peers: int64 [N], the images ordered by label.
        first: int64 [classes + 1], where each label's images begin in `peers`.
    """

    latents: np.ndarray
    embeddings: np.ndarray
    labels: np.ndarray
    peers: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)


def embed(teacher: nn.Module, size: int, pixels: Tensor) -> Tensor:
    """Return unit embeddings float32 [B, D] of images [B, 3, S, S], resized where need be.

    Args:
        teacher: network from [B, 3, size, size] in [-1, 1].
        size: height and width it takes.
        pixels: images in [-1, 1].
    """
    if pixels.shape[2] != size:
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return F.normalize(teacher(pixels).float(), dim=1)


def encoder_digest(autoencoder: Bottleneck | VQ) -> str:
    """Return 16 hex digits naming what decides latents: a decoder trained further changes none."""
    hashed = hashlib.sha256()
    for name, value in sorted(autoencoder.state_dict().items()):
        if "decoder." not in name and "post_quant" not in name:
            hashed.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()[:16]


def latent_set(
    feed: Feed,
    autoencoder: Bottleneck | VQ,
    teacher: nn.Module,
    teacher_size: int,
    sources: dict[str, str],
    cache: Path,
    low_precision: bool,
) -> LatentSet:
    """Return the latents and embeddings of a dataset, from the cache where it has them.

    Args:
        feed: the dataset, with a batch size of 1; its first epoch's order is the order kept.
        autoencoder: frozen.
        teacher: frozen.
        teacher_size: height and width of the teacher's images.
        sources: digests of the dataset, the encoder and the teacher; they name the cache.
        cache: folder of the cache.
        low_precision: compute in bfloat16.
    """
    name = digest({**sources, "images": len(feed), "low_precision": low_precision})
    folder = cache / f"latents-{name}"
    if not folder.is_dir():
        _compute(folder, feed, autoencoder, teacher, teacher_size, low_precision)
    arrays = {
        item: np.load(folder / f"{item}.npy", mmap_mode="r")
        for item in ("latents", "embeddings", "labels")
    }
    labels = np.array(arrays["labels"])
    peers = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[peers], np.arange(labels.max() + 2))
    return LatentSet(arrays["latents"], arrays["embeddings"], labels, peers, first)


@torch.inference_mode()
def _compute(
    folder: Path,
    feed: Feed,
    autoencoder: Bottleneck | VQ,
    teacher: nn.Module,
    teacher_size: int,
    low_precision: bool,
) -> None:
    """Fill a cache folder aside, then move it to its name; a second writer's move is harmless."""
    device = next(teacher.parameters()).device
    count = len(feed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".latents-", dir=folder.parent))
    latents = embeddings = None
    labels = np.empty(count, np.int64)
    images: list[np.ndarray] = []
    for number, batch in enumerate(feed.batches(0, count)):
        images.append(batch.images[0])
        labels[number] = batch.labels[0]
        if len(images) < BATCH and number < count - 1:
            continue
        rows = slice(number + 1 - len(images), number + 1)
        straight = to_pixels(torch.from_numpy(np.stack(images))).to(device)
        for side, pixels in enumerate((straight, straight.flip(3))):
            with torch.autocast(device.type, torch.bfloat16, enabled=low_precision):
                encoded = autoencoder.encode(pixels).half().cpu().numpy()
                embedded = embed(teacher, teacher_size, pixels).half().cpu().numpy()
            if latents is None or embeddings is None:
                latents = _array(aside / "latents.npy", (2, count, *encoded.shape[1:]))
                embeddings = _array(aside / "embeddings.npy", (2, count, embedded.shape[1]))
            latents[side, rows], embeddings[side, rows] = encoded, embedded
        images = []
    np.save(aside / "labels.npy", labels)
    for array in (latents, embeddings):
        assert isinstance(array, np.memmap)
        array.flush()
    try:
        os.rename(aside, folder)
    except OSError:
        if not folder.is_dir():  # another worker was faster: its content is the same
            raise


def _array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.format.open_memmap(path, "w+", np.float16, shape)
