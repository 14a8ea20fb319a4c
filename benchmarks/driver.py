"""Measure how many shards an hour one driver carries, with makers that sleep instead of sampling.

    python -m benchmarks.driver --actors 1,8 --shards 1000,10000 --store ray,local,s3 --json d.json

Plan, bank, actor pools, tars, commits, merge and verify are those of `factory generate`; only the
images are no faces (`benchmarks/sleeping.py`). The store `ray` is Ray alone: the same rows through
the same pool, whose actors return a finished manifest at once and write nothing. `s3` is a server
on the loopback that counts its requests (`benchmarks/objects.py`), or your own with --s3.

Each cell of the table has a driver and a Ray of its own. With --json, a cell that the file holds is
not measured again, so the same command goes on where it was stopped. Within a cell, each turn of
the work is a line on standard error. Run it on an otherwise idle machine; on a busy one, CPU
seconds still say something and rates do not.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.driven import COLUMNS, drive
from benchmarks.objects import counted, serving
from factory import stops
from factory.recipe import FaultError

SYSTEM = "benchmarks.sleeping"
LOOK_SEC = 1.0  # between two looks at the processes of a cell
STORES = ("ray", "local", "s3")
DRIVER, ACTORS, RAY = "driver", "actors", "ray"  # whose CPU seconds are told apart
MILLI = 1000.0


def measured(count: int, actors: int, url: str, seconds: float) -> dict[str, Any]:
    """Generate and verify a dataset in a driver of its own, and return what it took.

    Args:
        count: number of shards.
        actors: number of makers.
        url: an empty folder or address; "" for Ray alone.
        seconds: how long a maker sleeps for an image.

    Raises:
        FaultError: the driver failed, or the dataset is not whole.
    """
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    with stops.shielded():
        driver = context.Process(target=drive, args=(its, count, actors, url, seconds))
        driver.start()
    its.close()
    watch, marks = Lookout(driver.pid or 0), dict[str, Mark]()
    while True:
        try:
            if not mine.poll(LOOK_SEC):
                watch.look()
                continue
            name, at, cpu, peak, own = mine.recv()
        except EOFError:
            break
        watch.look()
        marks[name] = Mark(at, cpu, peak, own, dict(watch.seconds), counted(url))
        print(json.dumps({name: marks[name]}), file=sys.stderr, flush=True)
        if name == "last":
            watch.weigh()
    driver.join()
    if driver.exitcode:
        raise FaultError(f"the driver of {count} shards ended with code {driver.exitcode}")
    return _figures(count, marks) | watch.weights


class Mark(NamedTuple):
    """What is known at a turn of the driver's work.

    Attributes:
        at: the moment, in seconds.
        cpu: the driver's CPU seconds until then.
        peak: its highest resident memory until then in MiB, with the pages of Ray's object store
            that it wrote.
        own: its memory then in MiB, without such pages.
        spent: CPU seconds of the actors and of Ray's own processes.
        served: what the store counts, empty if it counts nothing.
    """

    at: float
    cpu: float
    peak: float
    own: float
    spent: dict[str, float]
    served: dict[str, Any]


class Lookout:
    """Looks at a driver and the processes below it, from outside.

    Attributes:
        seconds: CPU seconds so far of the driver, its actors, and Ray's own processes.
        weights: RSS and PSS of an actor in MiB, and how many there were.
    """

    def __init__(self, driver: int) -> None:
        """Watch the process of this id."""
        self.driver = psutil.Process(driver)
        self.seconds: dict[str, float] = dict.fromkeys((DRIVER, ACTORS, RAY), 0.0)
        self.weights: dict[str, float] = {}
        self._last: dict[int, float] = {}

    def look(self) -> None:
        """Add up the CPU seconds of all processes, those that have ended included."""
        for process, kind in self._processes():
            try:
                spent = sum(process.cpu_times()[:2])
            except psutil.Error:  # it has just ended
                continue
            self.seconds[kind] += spent - self._last.get(process.pid, 0.0)
            self._last[process.pid] = spent

    def weigh(self) -> None:
        """Note what an actor weighs: RSS, and PSS, which divides shared pages by their users."""
        found = []
        for process, kind in self._processes():
            try:
                if kind == ACTORS:
                    memory = process.memory_full_info()
                    found.append((memory.rss, memory.pss))
            except psutil.Error:
                continue
        if found:
            rss, pss = (sum(column) / len(found) / 2**20 for column in zip(*found, strict=True))
            self.weights = {"actor_rss_mb": round(rss), "actor_pss_mb": round(pss)}

    def _processes(self) -> Iterable[tuple[psutil.Process, str]]:
        try:
            below = self.driver.children(recursive=True)
            yield self.driver, DRIVER
        except psutil.Error:
            return
        for process in below:
            try:
                name = " ".join(process.cmdline()[:1])
            except psutil.Error:
                continue
            yield process, ACTORS if name.startswith("ray::") else RAY


def _figures(count: int, marks: dict[str, Mark]) -> dict[str, Any]:
    """Return the figures of a cell; CPU and requests are those of a shard."""

    def lasted(first: str, last: str) -> float:
        return round(marks[last].at - marks[first].at, 2)

    def spent(first: str, last: str) -> dict[str, float]:
        own = marks[last].cpu - marks[first].cpu
        found = {kind: marks[last].spent[kind] - marks[first].spent[kind] for kind in (ACTORS, RAY)}
        found = {DRIVER: own, **found}
        if marks[last].served:
            found["server"] = marks[last].served["cpu_seconds"] - marks[first].served["cpu_seconds"]
        return {name: round(seconds * MILLI / count, 3) for name, seconds in found.items()}

    def asked(first: str, last: str) -> float:
        return (marks[last].served["requests"] - marks[first].served["requests"]) / count

    made = marks["last"].at - marks["first"].at
    shown = [(name, mark) for name, mark in marks.items() if name != "begin"]
    found: dict[str, Any] = {
        "start_sec": lasted("banked", "first"),
        "making_sec": round(made, 2),
        "shards_per_sec": round((count - 1) / made, 2),
        "cpu_ms": spent("first", "last"),
        "driver_mb": {name: round(mark.peak, 1) for name, mark in shown},
        "driver_own_mb": {name: round(mark.own, 1) for name, mark in shown},
    }
    if "merged" in marks:
        found["merge_sec"] = lasted("last", "merged")
        found["verify_sec"] = lasted("merged", "verified")
        found["merge_cpu_ms"], found["verify_cpu_ms"] = (
            spent("last", "merged"),
            spent("merged", "verified"),
        )
    if marks["last"].served:
        parts = {"making": ("banked", "last"), "merge": ("last", "merged")}
        requests = {name: asked(*part) for name, part in parts.items()}
        requests |= {"together": sum(requests.values()), "verify": asked("merged", "verified")}
        found["requests"] = {name: round(value, 3) for name, value in requests.items()}
    return found


def draw(cells: list[dict[str, Any]], file: str) -> None:
    """Draw rate, the driver's CPU and its memory over shards, a line for each store and pool."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from factory.report.charts import open_sides

    shown: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
        ("shards a second", lambda cell: cell["shards_per_sec"]),
        ("driver's CPU, ms a shard", lambda cell: cell["cpu_ms"][DRIVER]),
        ("driver's memory, MiB", lambda cell: max(cell["driver_mb"].values())),
    )
    with rc_context({"svg.hashsalt": "driver", "font.size": 8, "svg.fonttype": "none"}):
        figure = Figure(figsize=(8.4, 2.8), layout="constrained")
        plots = figure.subplots(1, len(shown))
        for axes, (title, value) in zip(plots, shown, strict=True):
            for store, actors in sorted({(cell["store"], cell["actors"]) for cell in cells}):
                own = [c for c in cells if (c["store"], c["actors"]) == (store, actors)]
                own.sort(key=lambda cell: cell["shards"])
                label = "Ray alone" if store == "ray" else store
                axes.plot(
                    [cell["shards"] for cell in own],
                    [value(cell) for cell in own],
                    marker="o",
                    markersize=3,
                    label=f"{label}, {actors} actors",
                )
            axes.set_xscale("log")
            axes.set_ylim(bottom=0)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("shards")
            open_sides(axes, ("right", "top"))
        handles, labels = plots[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)
        figure.savefig(file, metadata={"Date": None})


def _whole(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Measure every cell that is missing, print it and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--actors", type=_whole, default=[1, 8], help="numbers of makers")
    parser.add_argument("--shards", type=_whole, default=[1000, 10_000], help="multiples of 20")
    parser.add_argument("--store", default=",".join(STORES), help="of ray, local and s3")
    parser.add_argument("--seconds", type=float, default=0.0, help="sleep of an image (default 0)")
    parser.add_argument(
        "--s3", default="", help="your own server: an s3:// address, %%s in its path"
    )
    parser.add_argument("--folder", default=None, help="where datasets lie meanwhile")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    parser.add_argument("--chart", default="", help="draw the figures to this file (SVG)")
    given = parser.parse_args()
    if wrong := [count for count in given.shards if count < COLUMNS or count % COLUMNS]:
        parser.error(f"--shards {wrong[0]}: accepted are multiples of {COLUMNS}")
    if wrong := set(given.store.split(",")) - set(STORES):
        parser.error(f"--store {min(wrong)}: accepted are {', '.join(STORES)}")
    os.environ["FACTORY_SYSTEMS"] = SYSTEM
    cells: list[dict[str, Any]] = []
    if given.json and given.json.exists():
        cells = json.loads(given.json.read_text())["cells"]
    for store, actors, count in product(given.store.split(","), given.actors, given.shards):
        cell = {"store": store, "actors": actors, "shards": count, "sleep_sec": given.seconds}
        if any(cell.items() <= one.items() for one in cells):
            continue
        with ExitStack() as held:
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(dir=given.folder)))
            url = {"ray": "", "local": str(folder / "data")}.get(store)
            if url is None:
                url = (given.s3 or held.enter_context(serving())) % f"driver-{folder.name}"
            cells.append(cell | measured(count, actors, url, given.seconds))
            shutil.rmtree(folder / "data", ignore_errors=True)
        print(json.dumps(cells[-1]), flush=True)
        if given.json:
            content = {"processor": _processor(), "cpus": os.cpu_count(), "cells": cells}
            given.json.write_text(json.dumps(content, indent=1) + "\n")
    if given.chart:
        draw(cells, given.chart)


def _processor() -> str:
    from factory.cluster.hardware import cpu_name

    return cpu_name()


if __name__ == "__main__":
    main()
