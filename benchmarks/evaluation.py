"""Measure the time and memory of the evaluation's searches over 512-float embeddings, at scale.

    python -m benchmarks.evaluation --sizes 20000,100000,300000 --threads 2 --json scale.json

Run it on an otherwise idle machine. Each figure is measured in a separate process.
"""

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory.evaluation.scores import genuine_scores, impostor_scores, rates
from factory.evaluation.tables import Table, show
from factory.recognition.neighbours import MEMORY_BYTES, SCANS, Faces, packed
from factory.seeding import generator, seed64

DIMENSION = 512
IMAGES_EACH = 20
QUERIES = 10_000  # queries of a timed search; its time is proportional to their number
TARGET = 1_000_000
BELOW = 0.3  # packing cosine; nearly all random centres are kept, which is the worst case

Work = Callable[[], Any]


@dataclass(frozen=True)
class Cost:
    """What a part costs at a size.

    Attributes:
        part: what was done.
        size: number of embeddings N.
        seconds: wall time.
        cpu_seconds: CPU seconds of all threads. On a busy machine, divide them by the threads for
            a better figure than wall time.
        extra_bytes: the highest resident memory minus the memory before the work, so without the
            embeddings; None if it was not measured.
        how: "measured", or what the figures were computed from.
    """

    part: str
    size: int
    seconds: float
    cpu_seconds: float
    extra_bytes: int | None
    how: str


def faces(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return unit embeddings, float32 [size, 512], with 20 for each person, and their labels."""
    draw = generator(seed64(seed, "scale"))
    labels = np.arange(size) // IMAGES_EACH
    unit = draw.standard_normal((size, DIMENSION), np.float32)
    for start in range(0, size, IMAGES_EACH):
        own = unit[start : start + IMAGES_EACH]
        own *= 0.8
        own += draw.standard_normal(DIMENSION, np.float32)
        own /= np.linalg.norm(own, axis=1, keepdims=True)
    return unit, labels


def _nearest(unit: np.ndarray, labels: np.ndarray) -> Work:
    queries = faces(min(QUERIES, len(unit)), seed=1)[0]
    return lambda: Faces(unit).nearest(queries)


def _packed(unit: np.ndarray, labels: np.ndarray) -> Work:
    """Make the rows random, so that packing keeps nearly all of them."""
    draw = generator(seed64(2, "scale"))
    for start in range(0, len(unit), 4096):
        part = unit[start : start + 4096]
        part[:] = draw.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return lambda: packed(unit, BELOW)


def _eer(unit: np.ndarray, labels: np.ndarray) -> Work:
    return lambda: rates(genuine_scores(unit, labels)[0], impostor_scores(unit, labels, seed=0)[0])


PARTS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], Work], str, float]] = {
    "nearest face of N among N": (_nearest, "N^2 D", 2.0),
    "uniqueness of N centres": (_packed, "N K D, K kept; here K is about N", 2.0),
    "EER, 2 M + 2 M pairs drawn": (_eer, "pairs (D + log pairs) + N log N", 0.0),
}


def measured(part: str, size: int, threads: int) -> Cost:
    """Measure one part at one size in a separate process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, cpu_seconds, extra = pool.apply(_run, (part, size, threads))
    if not part.startswith("nearest") or size <= QUERIES:
        return Cost(part, size, seconds, cpu_seconds, extra, "measured")
    factor, how = size / QUERIES, f"measured with {QUERIES} queries, times N / {QUERIES}"
    return Cost(part, size, seconds * factor, cpu_seconds * factor, extra, how)


def extrapolated(largest: Cost, size: int = TARGET) -> Cost:
    """Return the cost at another size, computed from the part's complexity."""
    factor = (size / largest.size) ** PARTS[largest.part][2]
    how = f"extrapolated from {largest.size}"
    seconds, cpu_seconds = largest.seconds * factor, largest.cpu_seconds * factor
    return Cost(largest.part, size, seconds, cpu_seconds, None, how)


def _run(part: str, size: int, threads: int) -> tuple[float, float, int]:
    import torch

    torch.set_num_threads(threads)
    work = PARTS[part][0](*faces(size))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * os.sysconf("SC_PAGE_SIZE")
    start, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return seconds, cpu_seconds, max(highest - before, 0)


def main() -> None:
    """Measure every part at every size, extrapolate, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="20000,100000,300000", help="numbers of embeddings")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--json", default="", help="also write the result to this file")
    given = parser.parse_args()
    sizes = sorted(int(size) for size in given.sizes.split(","))
    costs: list[Cost] = []
    for part in PARTS:
        own = []
        for size in sizes:
            own.append(measured(part, size, given.threads))
            print(json.dumps(asdict(own[-1])), flush=True)
        costs += [*own, extrapolated(own[-1])]
    bound = f"{MEMORY_BYTES / 1e9:g} GB"
    table = Table(
        f"D = {DIMENSION}, {given.threads} threads, scan {SCANS[0]}, memory bound {bound}",
        ("part", "grows as", "N", "seconds", "CPU seconds", "GB beside the data", "how"),
    )
    for cost in costs:
        extra = "-" if cost.extra_bytes is None else f"{cost.extra_bytes / 1e9:.2f}"
        grows = PARTS[cost.part][1]
        table.rows.append(
            (
                *(cost.part, grows, f"{cost.size:,}", f"{cost.seconds:.1f}"),
                *(f"{cost.cpu_seconds:.1f}", extra, cost.how),
            )
        )
    show([table])
    if given.json:
        facts = {"dimension": DIMENSION, "threads": given.threads, "scan": SCANS[0]}
        content = {**facts, "costs": [asdict(cost) for cost in costs]}
        Path(given.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
