"""WebDataset: tars of jpg, cls and json members, shuffled over all labels, with a wids index."""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice

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
    each = shard_size(about.images)
    with scratch() as folder:
        path = folder / "shard.tar"
        for shard, first in enumerate(range(0, about.images, each)):
            name = f"{about.name}-{shard:06d}.tar"
            samples = (
                (
                    f"{first + number:09d}",
                    {
                        about.extension: item.encoded,
                        "cls": b"%d" % item.label,
                        "json": item.sidecar,
                    },
                )
                for number, item in enumerate(islice(items, each))
            )
            sha256, size = write_tar(path, samples)
            with path.open("rb") as file:
                md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
            out.put(path, name, sha256)
            listed.append(
                {
                    "url": name,
                    "md5sum": md5.hexdigest(),
                    "nsamples": min(each, about.images - first),
                    "filesize": size,
                }
            )
    index = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": about.name,
        "shardlist": listed,
    }
    out.write("index.json", json.dumps(index, indent=1).encode() + b"\n")
