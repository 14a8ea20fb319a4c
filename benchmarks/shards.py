"""Measure what shards cost at scale: writing, verifying, and datasets of up to 100,000 shards.

    python -m benchmarks.shards --shards 25000,100000 --json scale.json

Writing is compared with `webdataset.TarWriter` on the same samples, and verifying with `sha256sum`
on the same files, in turn. Plan, resume scan and merge are measured on shards with complete
manifests and empty tars, each in a separate process. Run it on an otherwise idle machine; on a busy
one, use the CPU seconds beside the wall time.
"""

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from factory.datasets.claim import write_claim
from factory.datasets.manifest import (
    COMMIT,
    REJECTS,
    TAR,
    ShardManifest,
    commit_shard,
    committed,
    merge,
    shard_file,
)
from factory.datasets.provenance import DIGITAL_SOURCE_TYPE, versions
from factory.datasets.store import Store
from factory.datasets.tar import Sample, write_tar
from factory.datasets.verify import verify
from factory.plan import Shard, sample_key, shards
from factory.recipe import GenerateRecipe, parse
from factory.seeding import hex16, seed64

DIGEST = "0123456789abcdef"
SYSTEM = "studio"


def recipe_of(identities: int, images_each: int, shard_identities: int) -> GenerateRecipe:
    """Return a recipe of a dataset that is only counted, or filled with bytes that show no face."""
    made = parse(
        {
            "kind": "generate",
            "name": "scale",
            "seed": 5,
            "system": SYSTEM,
            "licence": "CC0-1.0",
            "image": {"size": 64},
            "identities": {"count": identities, "images_each": images_each, "source": "synthetic"},
            "shard": {"identities": shard_identities},
            "workers": {"max": 1},
            "cost": {"seconds_per_image": [0.01, 0.02], "source": "none: nothing is rendered"},
        }
    )
    assert isinstance(made, GenerateRecipe)
    return made


def samples(shard: Shard, image_bytes: int) -> Iterable[Sample]:
    """Yield a shard's samples: real labels and sidecars, and images that only begin like JPEG."""
    for identity, slot in shard.slots:
        sidecar = {
            "identity": identity,
            "slot": slot,
            "attempt": 0,
            "seed": hex16(seed64(5, "noise", identity, slot)),
            "cosine": 0.5,
            "system": SYSTEM,
            "content_digest": DIGEST,
            "digitalSourceType": DIGITAL_SOURCE_TYPE,
        }
        key = sample_key(identity, slot)
        noise = hashlib.shake_128(key.encode()).digest(image_bytes - 3)
        yield (
            key,
            {
                "cls": b"%d" % identity,
                "jpg": b"\xff\xd8\xff" + noise,
                "json": json.dumps(sidecar, sort_keys=True).encode(),
            },
        )


def manifest_of(shard: Shard, sha256: str, size: int, rejects: bytes) -> ShardManifest:
    """Return the manifest of a shard whose slots are all filled."""
    return ShardManifest(
        name=shard.name,
        sha256=sha256,
        bytes=size,
        planned=shard.samples,
        kept=shard.samples,
        reasons={},
        missing=(),
        seconds={"identities": 0.01, "styles": 0.02, "render": 3.25, "encode": 0.125},
        content_digest=DIGEST,
        system=SYSTEM,
        versions=_versions(),
        rejects_sha256=hashlib.sha256(rejects).hexdigest(),
    )


_versions = functools.cache(versions)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the wall seconds of a call and its CPU seconds, with those of child processes."""
    start, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    return time.perf_counter() - start, sum(after[:4]) - sum(before[:4])


def side_by_side(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int
) -> dict[str, Any]:
    """Time two calls in turn; `ratio` is their time over ours, so that 1 or more is as fast.

    CPU time is counted in ticks of some milliseconds; `cpu_ratio` is None if ours took no tick.
    """
    rounds = [(timed(ours), timed(theirs)) for _ in range(repeats)]
    wall = [them[0] / us[0] for us, them in rounds]
    ours_cpu, theirs_cpu = (sum(pair[side][1] for pair in rounds) for side in (0, 1))
    return {
        "ratio": round(statistics.median(wall), 3),
        "ratios": [round(ratio, 3) for ratio in wall],
        "cpu_ratio": round(theirs_cpu / ours_cpu, 3) if ours_cpu else None,
        "seconds": round(statistics.median(us[0] for us, _ in rounds), 3),
        "their_seconds": round(statistics.median(them[0] for _, them in rounds), 3),
    }


def writing(folder: Path, images: int, image_bytes: int, repeats: int) -> dict[str, Any]:
    """Time the writing of one shard with its hash, and of the same samples by webdataset.

    webdataset computes no hash.
    """
    from webdataset.writer import TarWriter

    held = list(samples(Shard(0, images, 0, 1), image_bytes))

    def theirs() -> None:
        with TarWriter(str(folder / "theirs.tar"), encoder=False, mtime=0) as writer:
            for key, parts in held:
                writer.write({"__key__": key, **parts})

    measured = side_by_side(lambda: write_tar(folder / "ours.tar", held), theirs, repeats)
    return {"images": images, "image_bytes": image_bytes, **measured}


def verifying(folder: Path, images: int, image_bytes: int, repeats: int) -> dict[str, Any]:
    """Time the verifying of a dataset of ten shards, and sha256sum over the same tars."""
    store, recipe = Store(folder / "data"), recipe_of(images // 10, 10, max(images // 100, 1))
    write_claim(store, recipe, DIGEST, ())
    tar, rejects = folder / "shard.tar", folder / "rejects"
    rejects.write_bytes(b"none")
    for shard in shards(recipe):
        sha256, size = write_tar(tar, samples(shard, image_bytes))
        commit_shard(store, tar, rejects, manifest_of(shard, sha256, size, b"none"))
    total = merge(store, shards(recipe)).totals.bytes
    tars = [str(path) for path in sorted((folder / "data/shards").glob("*.tar"))]

    def ours() -> None:
        if faults := verify(store):
            raise RuntimeError(f"the dataset written here is faulty: {faults[0]}")

    def theirs() -> None:
        subprocess.run(["sha256sum", *tars], check=True, stdout=subprocess.DEVNULL)

    measured = side_by_side(ours, theirs, repeats)
    return {"images": images, "image_bytes": image_bytes, "bytes": total, **measured}


def fake(folder: Path, count: int) -> GenerateRecipe:
    """Commit `count` shards of ten images with empty tars, and return their recipe."""
    store, recipe = Store(folder), recipe_of(count, 10, 1)
    write_claim(store, recipe, DIGEST, ())
    (folder / "shards").mkdir()
    for shard in shards(recipe):
        made = manifest_of(shard, hashlib.sha256(shard.name.encode()).hexdigest(), 51200, b"")
        for suffix, data in (
            (TAR, b""),
            (REJECTS, b""),
            (COMMIT, made.model_dump_json(indent=1).encode()),
        ):
            (folder / shard_file(shard.name, suffix)).write_bytes(data)
    return recipe


def planning(folder: Path, recipe: GenerateRecipe) -> int:
    """Return the number of shards in the plan."""
    return len(list(shards(recipe)))


def resuming(folder: Path, recipe: GenerateRecipe) -> int:
    """Return the number of committed shards, found as a resumed generation finds them."""
    done = committed(Store(folder))
    return sum(1 for shard in shards(recipe) if shard.name in done)


def merging(folder: Path, recipe: GenerateRecipe) -> int:
    """Merge the manifests, write the dataset's and return its number of shards."""
    return len(merge(Store(folder), shards(recipe)).shards)


def counting(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """Measure plan, resume scan and merge at each number of shards."""
    rows = []
    for count in sizes:
        at = folder / str(count)
        at.mkdir()
        recipe = fake(at, count)
        for part in (planning, resuming, merging):
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            worker = context.Process(target=_alone, args=(part, at, recipe, queue))
            worker.start()
            seconds, cpu, peak, found = queue.get(timeout=3600)
            worker.join()
            if found != count:
                raise RuntimeError(f"{part.__name__} found {found} of {count} shards")
            rows.append(
                {
                    "part": part.__name__,
                    "shards": count,
                    "seconds": round(seconds, 2),
                    "cpu_seconds": round(cpu, 2),
                    "peak_mb": round(peak, 1),
                }
            )
            print(rows[-1], flush=True)
    return rows


def _alone(part: Callable[..., int], folder: Path, recipe: GenerateRecipe, queue: Any) -> None:
    found: list[int] = []
    before = _resident_mb("VmRSS")
    seconds, cpu = timed(lambda: found.append(part(folder, recipe)))
    queue.put((seconds, cpu, _resident_mb("VmHWM") - before, found[0]))


def _resident_mb(field: str) -> float:
    """Return a field of this process's memory in MiB; getrusage's peak would count the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def main() -> None:
    """Measure the parts that `--what` names, print the results and write them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", default="writing,verifying,counting", help="parts to measure")
    parser.add_argument("--shards", default="25000,100000", help="numbers of shards for counting")
    parser.add_argument("--images", type=int, default=10_000, help="images written and verified")
    parser.add_argument("--image-bytes", type=int, default=3000, help="bytes of an encoded image")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of writing and verifying")
    parser.add_argument("--json", default="", help="also write the result to this file")
    asked = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="factory-scale-") as folder:
        for name in asked.what.split(","):
            at = Path(folder) / name
            at.mkdir()
            if name == "counting":
                result[name] = counting(at, [int(size) for size in asked.shards.split(",")])
            elif name in ("writing", "verifying"):
                part = writing if name == "writing" else verifying
                result[name] = part(at, asked.images, asked.image_bytes, asked.repeats)
                print(name, result[name], flush=True)
            else:
                parser.error(f"--what {name}: accepted are writing, verifying, counting")
    if asked.json:
        Path(asked.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
