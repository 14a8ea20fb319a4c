"""Measure what a generation costs: Ray's share of it, and how well it uses the machine.

Ray's share comes from the same stages on an actor pool and in plain processes. The use of the
machine compares the counted floating-point operations of an image with the rate at which as many
processes multiply matrices.
"""

import hashlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from factory import stops
from factory.cluster import hardware
from factory.cluster.workers import runtime_env
from factory.datasets.claim import write_claim
from factory.datasets.provenance import versions
from factory.datasets.store import Store
from factory.generation.bank import fill_bank
from factory.generation.commit import Committer
from factory.generation.make import Maker
from factory.generation.run import generate
from factory.generation.work import Assignment
from factory.plan import Shard, shards
from factory.recipe import (
    FaultError,
    GenerateRecipe,
    InputError,
    content_digest,
    stated_precision,
)
from factory.systems import create

MATRIX = 1024
SHARDS_EACH = 4  # of an actor at the least: the first and the last are not timed
MULTIPLY_SEC = 1.0
KINDS = {
    "convolution": ("aten::mkldnn_convolution", "aten::_convolution", "aten::convolution"),
    "matrix_product": ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::linear"),
    "norm": ("aten::native_group_norm", "aten::native_batch_norm", "aten::native_layer_norm"),
}

Turn = tuple[str, float, float, int]  # worker, started, finished (epoch seconds), images


@dataclass(frozen=True)
class Side:
    """One side of the comparison.

    Attributes:
        images_per_sec: images/s of all workers together, in steady state.
        startup_sec: seconds from the call until the last worker starts its first shard.
        tars: sha256 of each shard, by name.
    """

    images_per_sec: float
    startup_sec: float
    tars: dict[str, str]


def steady(turns: Iterable[Turn]) -> float:
    """Return images/s of all workers from each one's second shard to the first idle worker.

    Args:
        turns: one entry per shard.

    Raises:
        InputError: a worker has no shard in that window; each worker needs several shards.
    """
    by_worker: dict[str, list[Turn]] = defaultdict(list)
    for turn in sorted(turns, key=lambda turn: turn[1]):
        by_worker[turn[0]].append(turn)
    idle = min(turns[-1][2] for turns in by_worker.values())
    speed = 0.0
    for worker, taken in by_worker.items():
        inside = [turn for turn in taken[1:] if turn[2] <= idle]
        if not inside:
            raise InputError(
                f"worker {worker} has {len(taken)} shards; accepted are 3 or more: raise "
                "identities.count or lower shard.identities"
            )
        speed += sum(turn[3] for turn in inside) / (inside[-1][2] - inside[0][1])
    return speed


def compare(recipe: GenerateRecipe, repeats: int) -> dict[str, Any]:
    """Time generation on the connected Ray and in plain processes, in turn; print each round.

    Args:
        recipe: what to make; it states its precision.
        repeats: number of rounds of both sides.

    Returns:
        the median ratio of their speeds, the ratio of each round, the start-up times, and what
        `arithmetic` returns.

    Raises:
        InputError: there are too few shards to tell a speed.
        FaultError: the two sides wrote different bytes.
    """
    count, least = len(list(shards(recipe))), SHARDS_EACH * recipe.workers.max
    if count < least:
        raise InputError(
            f"recipe fields identities.count and shard.identities: they make {count} shards; the "
            f"benchmark accepts {least} or more, {SHARDS_EACH} for each of {recipe.workers.max} "
            "actors"
        )
    rounds = []
    with tempfile.TemporaryDirectory(prefix="factory-bench-") as folder:
        for repeat in range(repeats):
            ray = on_ray(recipe, Path(folder) / f"ray{repeat}")
            plain = in_processes(recipe, Path(folder) / f"plain{repeat}")
            if ray.tars != plain.tars:
                raise FaultError("the two sides wrote different bytes")
            rounds.append((ray.images_per_sec / plain.images_per_sec, ray, plain))
            print(
                f"round {repeat + 1}: Ray {ray.images_per_sec:.2f} images/s (start-up "
                f"{ray.startup_sec:.1f} s), plain {plain.images_per_sec:.2f} images/s (start-up "
                f"{plain.startup_sec:.1f} s), ratio {rounds[-1][0]:.3f}",
                flush=True,
            )
    ratios = sorted(ratio for ratio, *_ in rounds)
    speed = statistics.median(side.images_per_sec for _, side, _ in rounds)
    return {
        "recipe": recipe.name,
        "processor": hardware.cpu_name(),
        "precision": stated_precision(recipe),
        "workers": recipe.workers.max,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ray_startup_sec": round(statistics.median(r.startup_sec for _, r, _ in rounds), 1),
        "plain_startup_sec": round(statistics.median(p.startup_sec for *_, p in rounds), 1),
        "images_per_second": round(speed, 2),
        **arithmetic(recipe, speed),
    }


def on_ray(recipe: GenerateRecipe, folder: Path) -> Side:
    """Generate on the connected Ray cluster."""
    store, _ = _prepare(recipe, folder)
    start = time.time()
    made = generate(recipe, store, (), lambda line: None)
    return _side(list(made.progress.rows.last), start, folder)


def in_processes(recipe: GenerateRecipe, folder: Path) -> Side:
    """Run the same stages on the same shards in as many processes, without a scheduler."""
    _, assignment = _prepare(recipe, folder)
    planned, size = list(shards(recipe)), recipe.workers.max
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    os.environ.update(runtime_env(recipe.workers.threads)["env_vars"])
    start = time.time()
    workers = [
        context.Process(target=_work, args=(assignment, planned[n::size], str(n), queue))
        for n in range(size)
    ]
    with stops.shielded():
        for worker in workers:
            worker.start()
    turns = [queue.get(timeout=3600) for _ in planned]
    for worker in workers:
        worker.join()
    return _side(turns, start, folder)


def arithmetic(recipe: GenerateRecipe, images_per_sec: float) -> dict[str, Any]:
    """Return what share of the machine's matrix rate a generation reaches, and where its time goes.

    Args:
        recipe: what was generated on CPUs.
        images_per_sec: images/s of all actors together, just measured on this machine.

    Returns:
        what `parts` returns; the matrix rates of as many processes in GFLOP/s by precision; and
        the generation's share of each. Empty for a recipe without a sampler or with GPUs.
    """
    if recipe.sampler is None or recipe.workers.num_gpus:
        return {}
    with tempfile.TemporaryDirectory(prefix="factory-bench-") as folder:
        of_image = parts(recipe, Path(folder))
    rates = {
        precision: matrix_rate(recipe.workers.max, recipe.workers.threads, precision)
        for precision in ("float32", "bfloat16")
    }
    done = images_per_sec * of_image["gflop_per_image"]
    shares = {precision: done / rate for precision, rate in rates.items()}
    said = ", ".join(
        f"{100 * share:.0f} % of the {precision} matrix rate ({rates[precision]:.0f} GFLOP/s)"
        for precision, share in shares.items()
    )
    print(f"generation computes {done:.0f} GFLOP/s in {recipe.sampler.dtype}: {said}", flush=True)
    return {
        "parts": of_image,
        "matrix_gflops": {name: round(rate, 1) for name, rate in rates.items()},
        "share_of_matrix_rate": {name: round(share, 3) for name, share in shares.items()},
    }


def matrix_rate(processes: int, threads: int, precision: str) -> float:
    """Return the rate at which processes multiply matrices at once, in GFLOP/s of all together.

    Args:
        processes: number of processes at a time.
        threads: threads of each process.
        precision: float32 or bfloat16.
    """
    os.environ.update(runtime_env(threads)["env_vars"])
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        meet = [(threads, precision)] * processes
        return sum(pool.map(_multiply, meet, chunksize=1))


def _multiply(given: tuple[int, str]) -> float:
    threads, precision = given
    torch.set_num_threads(threads)
    matrix = torch.randn(MATRIX, MATRIX).to(getattr(torch, precision))
    product = matrix @ matrix  # the library prepares itself once, before the clock starts
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < MULTIPLY_SEC:
        torch.mm(matrix, matrix, out=product)
        done += 1
    return 2 * MATRIX**3 * done / (time.perf_counter() - start) / 1e9


def parts(recipe: GenerateRecipe, folder: Path) -> dict[str, Any]:
    """Make one shard in this process and return where its time goes.

    Args:
        recipe: a recipe of a diffusion system. Its first shard is made three times: to warm up,
            to time it and to count its operations.
        folder: a scratch folder.

    Returns:
        gflop_per_image: operations of the networks.
        seconds_per_image: seconds of the timed shard.
        convolution, matrix_product (attention and linear layers), norm, other: shares of the time
            in torch's operations.
        decoder, teacher, encode: shares of the shard's seconds.
    """
    _, assignment = _prepare(recipe, folder)
    make, commit, shard = Maker(assignment), Committer(assignment), next(iter(shards(recipe)))
    decoded = _watched_decoder(make)
    commit(make(shard))
    decoded.clear()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        seconds = commit(make(shard)).seconds
    with FlopCounterMode(display=False) as counted:
        make(shard)
    whole = sum(seconds.values())
    by_kind = _by_kind(seen)
    return {
        "gflop_per_image": round(counted.get_total_flops() / shard.samples / 1e9, 3),
        "seconds_per_image": round(whole / shard.samples, 4),
        **{kind: round(value / sum(by_kind.values()), 3) for kind, value in by_kind.items()},
        "decoder": round(sum(decoded) / whole, 3),
        "teacher": round(seconds.get("screen", 0.0) / whole, 3),
        "encode": round(seconds.get("encode", 0.0) / whole, 3),
    }


def _watched_decoder(make: Maker) -> list[float]:
    """Make a maker's autoencoder note the seconds of each decoding; a pixel system notes none."""
    found: list[float] = []
    autoencoder = getattr(make.system, "autoencoder", None)
    if autoencoder is not None:
        decode = autoencoder.decode

        def watched(*given: Any) -> Any:
            start = time.perf_counter()
            made = decode(*given)
            found.append(time.perf_counter() - start)
            return made

        autoencoder.decode = watched
    return found


def _by_kind(seen: profile) -> dict[str, float]:
    """Return the time of torch's operations by kind, in microseconds."""
    found = dict.fromkeys((*KINDS, "other"), 0.0)
    for event in seen.key_averages():
        kind = next((k for k, names in KINDS.items() if event.key in names), "other")
        found[kind] += event.self_cpu_time_total
    return found


def _prepare(recipe: GenerateRecipe, folder: Path) -> tuple[Store, Assignment]:
    made_with = versions()
    store, digest = Store(folder), content_digest(recipe, made_with)
    write_claim(store, recipe, digest, ())
    if create(recipe).banked:
        fill_bank(recipe, store, lambda line: None)
    return store, Assignment(recipe.model_dump(mode="json"), store, digest, made_with)


def _work(assignment: Assignment, planned: list[Shard], name: str, queue: Any) -> None:
    make, commit = Maker(assignment), Committer(assignment)
    for shard in planned:
        started = time.time()
        kept = commit(make(shard)).kept
        queue.put((name, started, time.time(), kept))


def _side(turns: list[Turn], start: float, folder: Path) -> Side:
    first: dict[str, float] = {}
    for worker, started, *_ in sorted(turns, key=lambda turn: turn[1]):
        first.setdefault(worker, started)
    tars = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "shards").glob("*.tar"))
    }
    return Side(steady(turns), max(first.values()) - start, tars)
