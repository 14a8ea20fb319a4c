"""Jobs that last: each with what keeps it busy, and a sign that it is in the middle of its work."""

import json
import os
import re
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import yaml
from conftest import commit_small, small_recipe
from faces import face, make_pool
from made import jpg
from stopping import MARK

from factory.datasets.claim import write_claim
from factory.datasets.images import contents_digest
from factory.datasets.manifest import merge
from factory.datasets.store import Store
from factory.evaluation.verification import write_bin
from factory.plan import shards
from factory.recognition.attributes import STUDIO

NET = "package:weights/teacher/recognizer.safetensors"
FACES = "jobs/recipes/desk/generate/studio.yaml"
WAY = "jobs/recipes/desk"
SPACE = """
from factory.search import Choice, Pool, Space

STUDIO = Pool("jobs/recipes/desk/generate/studio_plain.yaml", "identities.count=12",
              "identities.images_each=4", "shard.identities=6")


def composition(point):
    return {{"pools": {{"studio": STUDIO.view(identities=point["people"], images_each=2)}}}}


SPACE = Space(
    name="lasting", question="Does it stop?", axes={{"people": Choice(4, 6, 8, 10)}},
    composition=composition, sets=("fr.schedule.steps=300", "fr.schedule.batch_size=8"),
    benchmarks="{bins}", search="grid", reports=2, pairs=10,
)
"""

Words = list[object]
Sign = Callable[[str], object]


@dataclass(frozen=True)
class Lasting:
    """A job that lasts.

    Attributes:
        job: its name.
        words: makes its input below a folder, and returns its arguments.
        sign: tells from the folder and from what it has said that it is in the middle of its work.
        kept: a pattern of what a stop says is kept; "" where nothing is said.
        resumes: what stands in the output of the same command after a stop, where work is kept.
        runs: how many runs of MLflow two stops end.
        ends: whether the work is so short that a test may see its end.
        whole: names in the folder that are there only when the job has ended well.
        what: tells apart two rows of one job.
    """

    job: str
    words: Callable[[Path], Words]
    sign: Callable[[Path], Sign]
    kept: str = ""
    resumes: str = ""
    runs: int = 0
    ends: bool = True
    whole: tuple[str, ...] = ()
    what: str = ""


def sets(*overrides: str) -> Words:
    return [word for override in overrides for word in ("--set", override)]


def says(pattern: str) -> Callable[[Path], Sign]:
    return lambda folder: lambda said: re.search(pattern, said)


def reads(*names: str) -> Callable[[Path], Sign]:
    """Return the sign that a process of the job has a file below one of these folders open."""
    return lambda folder: lambda said: any(opened(str(folder), folder / name) for name in names)


def makes(pattern: str, least: int = 1) -> Callable[[Path], Sign]:
    """Return the sign that so many files of these names are there which were not before the job."""

    def sign(folder: Path) -> Sign:
        before = set(folder.glob(pattern))
        return lambda said: len(set(folder.glob(pattern)) - before) >= least

    return sign


def writes(pattern: str) -> Callable[[Path], Sign]:
    """Return the sign that the job has written to a file or folder of these names, old or new."""

    def sign(folder: Path) -> Sign:
        start = time.time()
        return lambda said: any(_changed(path, start) for path in folder.glob(pattern))

    return sign


def _changed(path: Path, start: float) -> bool:
    try:
        return path.stat().st_mtime > start
    except FileNotFoundError:  # it has been removed or renamed since
        return False


def opened(mark: str, below: Path) -> bool:
    """Tell whether a process with this mark in its environment reads a file of a folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() not in (process / "environ").read_bytes().split(b"\0"):
                continue
            if any(os.readlink(fd).startswith(f"{below}/") for fd in (process / "fd").iterdir()):
                return True
        except OSError:  # it has ended, or is another user's
            continue
    return False


def pool(folder: Path, people: int, each: int, size: int = 32, name: str = "data") -> Path:
    return Path(make_pool(folder / name, people, each, size=size))


def many(folder: Path, size: int = 32) -> Path:
    """Make a dataset of so many images that to read it takes seconds."""
    return pool(folder, 800, 8, size)


def whole(folder: Path) -> Path:
    """Make a dataset in which verify finds no fault."""
    store, digest = Store(folder / "data"), "0123456789abcdef"
    recipe = small_recipe(identities={"count": 6000, "images_each": 6, "source": "train"})
    write_claim(store, recipe, digest, ())
    for shard in shards(recipe):
        commit_small(store, shard, digest, folder)
    merge(store, shards(recipe))
    return folder / "data"


def truthful(folder: Path) -> Path:
    draws = np.random.default_rng(1)
    return Path(
        make_pool(
            folder / "data", 32, 8, size=64,
            truth=lambda *_: {name: float(draws.normal()) for name in STUDIO},
        )
    )  # fmt: skip


def bins(folder: Path, pairs: int, files: int = 1, size: int = 64) -> Path:
    """Write benchmarks of blobs."""
    to = folder / "bins"
    to.mkdir(parents=True, exist_ok=True)
    images, same = [], []
    for n in range(pairs):
        for shown in (face(n, 0, size), face(n if n % 2 else n + pairs, 1, size)):
            images.append(simplejpeg.encode_jpeg(shown))
        same.append(bool(n % 2))
    for number in range(files):
        write_bin(to / f"blobs{number}.bin", images, same)
    return to


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def bank(folder: Path) -> Path:
    url = str(pool(folder, 6000, 1, name="candidates"))
    return written(folder / "bank.yaml", {
        "kind": "bank", "name": "b", "seed": 1, "licence": "CC0-1.0",
        "candidates": {"url": url, "digest": contents_digest(Store(url))},
        "weights": {"recognizer": {"location": NET}}, "max_cosine": 1.0, "workers": {"max": 1},
    })  # fmt: skip


def view(folder: Path, **more: object) -> Path:
    url = str(pool(folder, 400, 8, 64) if more else many(folder))
    recipe = {"kind": "compose", "name": "view", "seed": 1, "pools": {"a": {"url": url, **more}}}
    return written(
        folder / "view.yaml", recipe | ({"recognizer": {"location": NET}} if more else {})
    )


def album(folder: Path) -> Path:
    """Write a folder of people whose images are all decoded and encoded again."""
    shown = [jpg(n) for n in range(8)]
    for n in range(150):
        (folder / f"album/p{n:03d}").mkdir(parents=True)
        for k in range(8):
            (folder / f"album/p{n:03d}/{k}.jpg").write_bytes(shown[k])
    return folder / "album"


def run_of_many(folder: Path) -> Path:
    """Write a run that names a dataset so often that its report takes seconds."""
    url = str(pool(folder, 300, 8, size=64))
    (folder / "run").mkdir()
    named = {f"d{n}": url for n in range(300)}
    (folder / "run/results.json").write_text(json.dumps({"title": "Many", "datasets": named}))
    return folder / "run"


def training(folder: Path, recipe: str, *more: str) -> Words:
    data = pool(folder, 16, 4)
    return [f"{WAY}/{recipe}.yaml", "--out", folder / "out", *sets(
        f"data.train={data}", "data.resize=true", "image.size=32", "checkpoint.every_steps=1",
        "engine.precision=float32", "schedule.batch_size=16", "schedule.steps=100000", *more,
    )]  # fmt: skip


CHECKPOINT = r"step \d+ is the newest checkpoint"
SAVES = makes("out/checkpoints/*/checkpoint.json")
SHARDS = r"[1-9]\d* of \d+ shards are committed"
SMALL = ("identities.count=120", "identities.images_each=4", "shard.identities=1", "image.size=32",
         "workers.max=1")  # fmt: skip
JOBS = [
    Lasting(
        "generate", lambda d: [FACES, "--out", d / "out", *sets(*SMALL)], says(r"shards [1-9]"),
        kept=SHARDS, resumes=r"resuming: [1-9]", runs=2, whole=("out/manifest.json",),
    ),
    Lasting("verify", lambda d: [whole(d)], reads("data/shards")),
    Lasting(
        "export", lambda d: [many(d), "--format", "imagefolder", "--to", d / "out"],
        writes("out/*"), whole=("out/SHA256SUMS",),
    ),
    Lasting(
        "make_pairs", lambda d: [many(d), "--to", d / "x.bin", "--pairs", 6000],
        reads("data/shards"), whole=("x.bin",),
    ),
    Lasting(
        "measure",
        lambda d: [pool(d, 400, 8), "--recognizer", NET, "--resize", "--r", 0.5, "--json",
                   d / "x.json"],
        reads("data/shards"), whole=("x.json",),
    ),
    Lasting(
        "evaluate",
        lambda d: ["--recognizer", NET, "--benchmarks", bins(d, 100, 6), "--json", d / "x.json"],
        says("blobs0"), whole=("x.json",),
    ),
    Lasting("report", lambda d: [run_of_many(d)], reads("data/shards"), whole=("run/report.html",)),
    Lasting(
        "compose",
        lambda d: [view(d), "--out", d / "out", "--materialise", d / "made",
                   *sets("shard_images=40")],
        makes("made/shards/*.json", 3), kept=SHARDS, whole=("made/manifest.json",),
    ),
    Lasting(
        "compose", lambda d: [view(d, centre_band=[-1, 1]), "--out", d / "out"],
        reads("data/shards"), whole=("out/composition.json",), what=" by a band",
    ),
    Lasting(
        "make_bank", lambda d: [bank(d), "--out", d / "out"], says(r"candidates: [1-9]"), runs=2,
        whole=("out/manifest.json",),
    ),
    Lasting(
        "make_benchmarks", lambda d: ["--out", d / "out", "--pairs", 60], says(r"\.bin: "),
        whole=("out/benchmarks.json",),
    ),
    Lasting(
        "prepare",
        lambda d: [album(d), "--out", d / "out", "--licence", "own", "--resize", "--size", 48,
                   "--shard-images", 8, "--actors", 1],
        says(r"shards [1-9]"), kept=r"[1-9]\d* of \d+ shards are committed",
        resumes="resuming: [1-9]", runs=2, whole=("out/manifest.json",),
    ),
    Lasting(
        "train_recognizer",
        lambda d: training(d, "fr/desk", "data.identities=null", "data.images_each=null"),
        SAVES, kept=CHECKPOINT, runs=2, ends=False,
    ),
    Lasting(
        "train_diffusion", lambda d: training(d, "train/autoencoder", "model.size=32"),
        SAVES, kept=CHECKPOINT, runs=2, ends=False,
    ),
    Lasting(
        "train_attributes", lambda d: [truthful(d), "--out", d / "out", "--epochs", 40],
        says("epoch 2 "), runs=2, whole=("out/attributes.safetensors",),
    ),
    Lasting(
        "sweep",
        lambda d: [written(d / "space.py", SPACE.format(bins=bins(d, 20))), "--out", d / "out",
                   "--pools", d / "pools", "--samples", 4, "--concurrent", 1],
        makes("out/ray/run-*/_call_*"), kept=r"\d of 4 trials are done", runs=1,
        whole=("out/best",), ends=False,
    ),
    Lasting(
        "demo", lambda d: ["--smallest", "--out", d / "out"],
        says("identity bank|shards [1-9]|resuming"),
        kept=r"(\d of 4 shards are committed|finished steps are kept)?", runs=4,
        whole=("out/report.html",), ends=False,
    ),
    Lasting(
        "compare",
        lambda d: [f"{WAY}/fr/desk.yaml", "--real", pool(d, 12, 5, 64, "real"),
                   "--dataset", pool(d, 12, 5, 64, "made"), "--out", d / "out", "--r", 0.5,
                   *sets("schedule.steps=100000", "schedule.batch_size=8")],
        says("step "),
        kept=rf"{CHECKPOINT}|there is no checkpoint yet|finished trainings are kept", runs=4,
        ends=False,
    ),
]  # fmt: skip


def command(lasting: Lasting, folder: Path) -> Words:
    tracked = ["--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
    return [f"jobs/{lasting.job}.py", *lasting.words(folder), *tracked]


def states(folder: Path) -> list[str]:
    """Return how MLflow says the runs have ended, the oldest first."""
    if not (folder / "mlflow.db").exists():
        return []
    with sqlite3.connect(folder / "mlflow.db") as found:
        return [row[0] for row in found.execute("select status from runs order by start_time")]


def unfinished(folder: Path) -> list[str]:
    """Return the names of files that are being written, and of locks."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if ".part" in path.name or path.name == "lock"
    )
