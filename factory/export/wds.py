"""WebDataset: tars of jpg, cls and json members, shuffled over all labels, with a wids index."""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from factory.datasets.scratch import scratch
from factory.datasets.tar import write_tar
from factory.export.about import About
from factory.export.output import Output
from factory.export.spool import Spooled

MOST_EACH, FEWEST_SHARDS = 10_000, 16


def shard_size(images: int) -> int:
    """Return the number of images in a file: a sixteenth of all, but at most 10,000."""
    return max(1, min(MOST_EACH, -(-images // FEWEST_SHARDS)))


def write_wds(items: Iterator[Spooled], about: About, out: Output) -> None:
    """Write `NAME-000000.tar`, ..., and `index.json` for wids.

    Keys are positions in the export; the sidecar states the image's identity and slot.
    """
    listed: list[dict[str, str | int]] = []
    with scratch() as folder:
        out.put_all(_tars(items, about, folder, listed))
    index = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": about.name,
        "shardlist": listed,
    }
    out.write("index.json", json.dumps(index, indent=1).encode() + b"\n")


def _tars(
    items: Iterator[Spooled], about: About, folder: Path, listed: list[dict[str, str | int]]
) -> Iterator[tuple[Path, str, str]]:
    """Write each tar into a local folder, list it for wids, and yield its path, name and sha256."""
    each = shard_size(about.images)
    for shard, first in enumerate(range(0, about.images, each)):
        name = f"{about.name}-{shard:06d}.tar"
        path = folder / name
        samples = (
            (
                f"{first + number:09d}",
                {about.extension: item.encoded, "cls": b"%d" % item.label, "json": item.sidecar},
            )
            for number, item in enumerate(islice(items, each))
        )
        sha256, size = write_tar(path, samples)
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        listed.append(
            {
                "url": name,
                "md5sum": md5.hexdigest(),
                "nsamples": min(each, about.images - first),
                "filesize": size,
            }
        )
        yield path, name, sha256
