"""Generation on real Ray: whatever Ray does, the same bytes."""

import hashlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pooled
import pytest
import ready
import tiny
import torch

from factory.cluster.workers import FAILED, REFUSED, Guarded, column
from factory.datasets.claim import check_claim, read_claim, write_claim
from factory.datasets.manifest import load_shard_manifest, merged
from factory.datasets.provenance import pinned, versions
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.generation import identities, run
from factory.generation.bank import BANK_BLOCK, BankActor
from factory.generation.run import (
    CommitterActor,
    MakerActor,
    fill,
    generate,
    pools,
)
from factory.generation.work import Assignment, ShardWork
from factory.nodes import Reservation, reservations
from factory.plan import Shard, shards
from factory.recipe import FaultError, GenerateRecipe, InputError, bank_digest, content_digest, load
from factory.systems import create

ROOT = Path(__file__).parents[2]
STUDIO = ROOT / "jobs/recipes/desk/generate/studio.yaml"
IDIFF = ROOT / "jobs/recipes/desk/generate/idiff_face.yaml"
FLOAT32 = "sampler.dtype=float32"
SMALL = ("identities.count=6", "identities.images_each=4", "shard.identities=2", "image.size=32")

pytestmark = pytest.mark.ray


def studio(*overrides: str) -> GenerateRecipe:
    recipe = load(STUDIO, [*SMALL, *overrides])
    assert isinstance(recipe, GenerateRecipe)
    return recipe


def make(recipe: GenerateRecipe, folder: Path, extend: bool = False) -> dict[str, str]:
    """Generate into a folder and return the sha256 of every tar."""
    store, digest = Store(str(folder)), content_digest(recipe, versions())
    grown = check_claim(store, recipe, versions(), extend)
    write_claim(store, recipe, digest, grown)
    generate(recipe, store, grown, lambda line: None)
    assert verify(store) == []
    return tars(folder)


def tars(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "shards").glob("*.tar"))
    }


def test_the_number_of_actors_and_committers_changes_no_byte(ray_cluster, tmp_path: Path) -> None:
    alone = make(studio("workers.max=1"), tmp_path / "alone")
    assert list(alone) == [f"{shard.name}.tar" for shard in shards(studio())]
    shared = ("workers.max=2", "workers.num_cpus=0.25", "workers.num_gpus=0.5")  # of a declared GPU
    assert make(studio(*shared), tmp_path / "shared") == alone
    apart = ("workers.committers=1", "workers.num_cpus=0.5", "workers.committer_num_cpus=0.25")
    assert make(studio(*apart), tmp_path / "apart") == alone


def begin(recipe: GenerateRecipe, folder: Path, count: int) -> dict[str, str]:
    """Make the bank and the first shards in this process, without Ray, and go no further."""
    store, made_with, system = Store(folder), versions(), create(recipe)
    digest = content_digest(recipe, made_with)
    write_claim(store, recipe, digest, ())
    threads = torch.get_num_threads()
    assignment = Assignment(recipe.model_dump(mode="json"), store, digest, made_with)
    if system.banked:
        system.load()
        contexts, wanted = system.draw_contexts(range(BANK_BLOCK)), recipe.identities
        bank = identities.empty_bank(contexts.shape[1])
        bank = identities.extend(bank, contexts, wanted.count, wanted.max_cosine)
        identities.save_block(store, bank, 0, bank_digest(recipe))
    pooled.through(pools(recipe, assignment), islice(shards(recipe), count))
    torch.set_num_threads(threads)
    return tars(folder)


ALONE = {"max": 1}
SHARED = {"max": 2, "num_cpus": 0.5}
APART = {"max": 1, "num_cpus": 0.5, "committers": 1, "committer_num_cpus": 0.25}


@pytest.mark.parametrize(
    ("precision", "attempts", "workers", "begun"),
    [
        ("float32", 1, APART, 0),
        ("bfloat16", 2, SHARED, 1),
        pytest.param("float32", 2, APART | {"max": 2, "min": 1}, 0, marks=pytest.mark.slow),
        pytest.param("bfloat16", 2, APART, 1, marks=pytest.mark.slow),
    ],
)
def test_a_diffusion_system_gives_the_same_bytes_however_it_is_spread(
    ray_cluster, tmp_path: Path, precision: str, attempts: int, workers: dict[str, Any], begun: int
) -> None:
    """In one process or in actors, from the start or where the process stopped."""
    files = tiny.save_idiff(tmp_path)

    def idiff(workers: dict[str, Any]) -> GenerateRecipe:
        return tiny.generating(
            *("idiff_face", files, "uniform"),
            identities={"count": 6, "images_each": 3, "source": "uniform"},
            sampler={"name": "dpmsolver++", "steps": 3, "batch_size": 4, "dtype": precision},
            screens={"identity_drift": {"tolerance": 0.5}, "max_attempts": attempts},
            workers=workers,
        )

    whole = begin(idiff(ALONE), tmp_path / "whole", 3)
    assert len(whole) == 3
    tried = [load_shard_manifest(Store(tmp_path / "whole"), name[:-4]) for name in whole]
    assert sum(sum(one.reasons.values()) for one in tried) > 3, "some are rejected"
    assert (attempts == 1) == all(one.kept + one.reasons["identity_drift"] == 6 for one in tried)
    if begun:
        assert begin(idiff(ALONE), tmp_path / "spread", begun).items() < whole.items()
    assert make(idiff(workers), tmp_path / "spread") == whole


def test_extending_adds_shards_and_touches_none(ray_cluster, tmp_path: Path) -> None:
    before = make(studio("workers.max=1"), tmp_path)
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "shards").iterdir()}
    larger = studio("identities.count=8", "identities.images_each=5", "shard.slots=4")
    with pytest.raises(InputError, match=r"shard\.slots"):
        make(larger, tmp_path, extend=True)
    larger = studio("identities.count=8", "identities.images_each=5", "workers.max=1")
    with pytest.raises(InputError, match="--extend grows it"):
        make(larger, tmp_path)
    after = make(larger, tmp_path, extend=True)
    assert after.items() > before.items() and len(after) == 8
    for name, stamp in stamps.items():
        assert (tmp_path / "shards" / name).stat().st_mtime_ns == stamp


def test_a_driver_whose_folder_another_took_over_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was suspended while its successor found the lock stale."""
    taken: list[int] = []

    def made(*_: object) -> Iterator[dict[str, Any]]:
        for number in range(3):
            taken.append(number)
            manifest = {"kept": 1, "reasons": {}, "seconds": {}}
            row = {"manifest": manifest, "actor": "a", "started": 0.0, "finished": 1.0}
            yield row | {"commit_sec": 0.1, "repeats": {}}

    def check() -> None:
        if len(taken) == 2:
            raise FaultError("another writer")

    monkeypatch.setattr(run, "preflight", lambda recipe: None)
    monkeypatch.setattr(run, "_run", made)
    said: list[str] = []
    with pytest.raises(FaultError, match="another writer"):
        generate(studio(), Store(tmp_path), (), said.append, check)
    assert taken == [0, 1] and len(said) == 1


@pytest.mark.parametrize("actor", [MakerActor, BankActor])
def test_weights_missing_on_a_workers_node_are_a_mistake_of_the_users(
    tmp_path: Path, actor: type
) -> None:
    recipe = load(IDIFF, [FLOAT32, f"weights.denoiser.location={tmp_path}/gone.safetensors"])
    raw, store = recipe.model_dump(mode="json"), Store(tmp_path)
    given = (Assignment(raw, store, "", versions()), True)
    guarded = Guarded(actor, *(given if actor is MakerActor else (raw,)))
    for row in ("shard", "block"):  # told at every row: it has to reach the driver
        (said,) = guarded({row: np.array([0])})[REFUSED]
        named = r"recipe field weights\.denoiser\.location: no file .*gone\.safetensors"
        assert re.match(rf"node {socket.gethostname()}: {named}", said)


@pytest.mark.parametrize("at", ["make", "commit", "commit apart"])
@pytest.mark.parametrize(
    ("error", "named", "words"),
    [
        (InputError("recipe field x: 3"), REFUSED, "recipe field x: 3"),
        (OSError(28, "No space left"), FAILED, r"\[Errno 28\] No space left"),
        (FaultError("its tar is missing"), FAILED, "its tar is missing"),
        (torch.OutOfMemoryError("CUDA:\n 3 GB"), FAILED, r".*sampler\.batch_size.*\(CUDA: 3 GB\)"),
    ],
)
def test_what_a_shard_ends_in_is_one_row_with_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    error: Exception,
    named: str,
    words: str,
) -> None:
    def fails(given: Shard | ShardWork) -> None:
        raise error

    raw, shard = studio().model_dump(mode="json"), next(shards(studio()))
    assignment, work = Assignment(raw, Store(tmp_path), "", versions()), ShardWork(shard)
    row: dict[str, Any] = {"shard": column(shard)}
    if at == "commit apart":
        guarded = Guarded(CommitterActor, assignment)
        guarded.actor.commit = fails
        row = {"work": column(work), "actor": np.array(["a"]), "started": np.array([0.0])}
    else:
        guarded = Guarded(MakerActor, assignment, True)
        guarded.actor.make = fails if at == "make" else lambda shard: work
        guarded.actor.commit.commit = fails
        monkeypatch.setattr("ray.get_runtime_context", lambda: pooled.HERE)
    row = guarded(row)
    (said,) = row[named]
    assert re.fullmatch(rf"shard {shard.name}: {words}", said)
    assert guarded(row) is row  # as a later pool passes it on


def test_makers_commit_unless_committers_stand_apart(tmp_path: Path) -> None:
    together, apart = (
        studio("workers.max=4", "workers.min=2"),
        studio(
            *(
                "workers.max=4",
                "workers.num_cpus=0.5",
                "workers.num_gpus=0.25",
                "workers.threads=3",
            ),
            *("workers.committers=3", "workers.committer_num_cpus=0.75"),
        ),
    )
    assignment = Assignment({}, Store(tmp_path), "", {})
    (alone,) = pools(together, assignment)
    assert (alone.actor, alone.arguments) == (MakerActor, (assignment, True))
    assert alone.reserved == Reservation("workers.max", "workers.", 4, 1.0, 0.0)
    assert (alone.least, alone.threads) == (2, 1)
    first, last = pools(apart, assignment)
    assert (first.actor, first.arguments) == (MakerActor, (assignment, False))
    assert (first.least, first.threads) == (4, 3)
    assert (last.actor, last.arguments) == (CommitterActor, (assignment,))
    assert (last.least, last.threads) == (3, 1)
    assert (
        [first.reserved, last.reserved]
        == reservations(apart)
        == [
            Reservation("workers.max", "workers.", 4, 0.5, 0.25),
            Reservation("workers.committers", "workers.committer_", 3, 0.75, 0.0),
        ]
    )


def test_a_killed_run_is_completed_by_the_same_command(ray_cluster: str, tmp_path: Path) -> None:
    """Agents of its own Ray outlive the killed driver, while another Ray does the rest."""
    sets = ("identities.count=40", "identities.images_each=8")
    overrides = [part for override in (*SMALL, *sets) for part in ("--set", override)]

    def command(out: Path) -> list[str]:
        uri = f"sqlite:///{tmp_path}/mlflow.db"
        return [
            sys.executable, "jobs/generate.py", str(STUDIO), "--out", str(out), *overrides,
            "--tracking-uri", uri,
        ]  # fmt: skip

    killed = subprocess.Popen(command(tmp_path / "killed"), cwd=ROOT, start_new_session=True)
    while len(tars(tmp_path / "killed")) < 2 and killed.poll() is None:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    done = len(list((tmp_path / "killed/shards").glob("*.json")))
    assert 0 < done < 20, f"killed midway: {done} of 20 shards"
    again = ready.run(*command(tmp_path / "killed")[1:], "--address", ray_cluster)
    assert again.returncode == 0 and "resuming: " in again.stdout, again.stderr
    assert re.search(r"shards \d+/20  .* images/s  kept .*  nodes \d  actors \d", again.stdout)
    with sqlite3.connect(tmp_path / "mlflow.db") as found:
        points = found.execute("select key, step, value from metrics where step > 0").fetchall()
    assert {"images_per_second", "kept_share", "nodes", "actors"} < {key for key, *_ in points}
    assert {step for key, step, value in points if key == "shards" and value == step} >= {20}
    assert tars(tmp_path / "killed") == begin(studio(*sets), tmp_path / "whole", 20)
    assert verify(Store(str(tmp_path / "killed"))) == []
    os.killpg(killed.pid, signal.SIGKILL)  # Ray's agents outlive a killed driver


def test_more_gpus_than_there_are_is_one_error_before_the_start(
    ray_cluster: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = ready.run(
        *("jobs/generate.py", STUDIO, "--out", out, "--address", ray_cluster),
        *("--set", "workers.num_gpus=2", "--set", "workers.max=1"),
    )
    assert ran.returncode == 2, ran.stderr
    assert "workers.num_gpus: 2, but the largest node of the cluster has 1 GPU" in ran.stderr
    assert not out.exists()


@pytest.mark.slow
def test_a_gpu_where_there_is_none_is_one_error_before_the_start(tmp_path: Path) -> None:
    """On a Ray that the job starts itself."""
    out = tmp_path / "out"
    ran = ready.run(
        *("jobs/generate.py", STUDIO, "--out", out),
        *("--set", "workers.num_gpus=1", "--set", "workers.max=1"),
        env={**os.environ, "RAY_ADDRESS": "", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert ran.returncode == 2, ran.stderr
    assert "workers.num_gpus: 1, but the largest node of the cluster has 0 GPU" in ran.stderr
    assert not out.exists()


def test_a_dataset_has_the_licence_and_sha256_of_weights_as_they_lie_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    teacher = tmp_path / "w600k_r50.onnx"
    teacher.write_bytes(b"weights")
    other = (f"weights.teacher.location=onnx:{teacher}", "weights.teacher.sha256=''")
    recipe = load(IDIFF, [FLOAT32, *other])
    assert isinstance(recipe, GenerateRecipe)
    assert recipe.weights["teacher"].licence == "Apache-2.0"  # of the file it stands in place of
    monkeypatch.setattr(run, "generate", lambda *given: None)
    with Store(tmp_path / "out").lock("test") as lock:
        fill(pinned(recipe), lock, None, print)
    made = merged(read_claim(Store(tmp_path / "out")), ())
    assert made.licence == "non-commercial-research"
    (found,) = (model for model in made.models if model.name == "teacher")
    assert found.licence == made.licence and found.sha256 == hashlib.sha256(b"weights").hexdigest()
    shipped = load(IDIFF, [FLOAT32])
    assert isinstance(shipped, GenerateRecipe)
    with Store(tmp_path / "shipped").lock("test") as lock:
        fill(shipped, lock, None, print)
    made, stated = merged(read_claim(Store(tmp_path / "shipped")), ()), shipped.model_dump()
    assert made.licence == stated["licence"]
    models = {model.name: model.model_dump(exclude={"name"}) for model in made.models}
    assert models == stated["weights"]
