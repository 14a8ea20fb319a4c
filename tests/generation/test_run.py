"""Generation on real Ray: whatever Ray does, the same bytes."""

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.data
import ready
import tiny
import torch

from factory.cluster import engine
from factory.cluster.capacity import require
from factory.cluster.connect import connect
from factory.cluster.workers import FAILED, REFUSED, Crew, Guarded
from factory.datasets.claim import check_claim, read_claim, write_claim
from factory.datasets.manifest import load_shard_manifest, merged
from factory.datasets.provenance import pinned, versions
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.generation import identities
from factory.generation.bank import BANK_BLOCK, BankActor, fill_bank
from factory.generation.make import Line
from factory.generation.run import StageActor, generate, wiring
from factory.generation.work import Assignment, ShardWork
from factory.plan import shards
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


def test_actors_and_wiring_change_no_byte(ray_cluster, tmp_path: Path) -> None:
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
    lines = [Line(assignment, crew.stages) for crew in wiring(recipe)]
    if system.banked:
        system.load()
        contexts, wanted = system.draw_contexts(range(BANK_BLOCK)), recipe.identities
        bank = identities.empty_bank(contexts.shape[1])
        bank = identities.extend(bank, contexts, wanted.count, wanted.max_cosine)
        identities.save_block(store, bank, 0, bank_digest(recipe))
    for shard in islice(shards(recipe), count):
        work: Any = ShardWork(shard)
        for line in lines:
            work = line(work)
    torch.set_num_threads(threads)
    return tars(folder)


ALONE = {"size": 1}
SHARED = {"size": 2, "num_cpus": 0.5}
SPLIT = {"size": 1, "fused": False, "num_cpus": 0.5, "screen_num_cpus": 0.25}


@pytest.mark.parametrize(
    ("precision", "attempts", "pool", "begun"),
    [
        ("float32", 1, SPLIT, 0),
        ("bfloat16", 2, SHARED, 1),
        pytest.param("float32", 2, SPLIT | {"size": 2}, 0, marks=pytest.mark.slow),
        pytest.param("bfloat16", 2, SPLIT, 1, marks=pytest.mark.slow),
    ],
)
def test_a_diffusion_system_gives_the_same_bytes_however_it_is_spread(
    ray_cluster, tmp_path: Path, precision: str, attempts: int, pool: dict[str, Any], begun: int
) -> None:
    """In one process or in actors, from the start or where the process stopped."""
    files = tiny.save_idiff(tmp_path)

    def idiff(pool: dict[str, Any]) -> GenerateRecipe:
        return tiny.generating(
            *("idiff_face", files, "uniform"),
            identities={"count": 6, "images_each": 3, "source": "uniform"},
            sampler={"name": "dpmsolver++", "steps": 3, "batch_size": 4, "dtype": precision},
            screens={"identity_drift": {"tolerance": 0.5}, "max_attempts": attempts},
            pool=pool,
        )

    whole = begin(idiff(ALONE), tmp_path / "whole", 3)
    assert len(whole) == 3
    tried = [load_shard_manifest(Store(tmp_path / "whole"), name[:-4]) for name in whole]
    assert sum(sum(one.reasons.values()) for one in tried) > 3, "some are rejected"
    assert (attempts == 1) == all(one.kept + one.reasons["identity_drift"] == 6 for one in tried)
    if begun:
        assert begin(idiff(ALONE), tmp_path / "spread", begun).items() < whole.items()
    assert make(idiff(pool), tmp_path / "spread") == whole


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

    def run(*_: object) -> Iterator[dict[str, Any]]:
        for number in range(3):
            taken.append(number)
            made = {"kept": 1, "reasons": {}, "seconds": {}}
            yield {"manifest": made, "actor": "a", "started": 0.0, "finished": 1.0}

    def check() -> None:
        if len(taken) == 2:
            raise FaultError("another writer")

    monkeypatch.setattr(engine, "preflight", lambda recipe: None)
    monkeypatch.setattr(engine, "_run", run)
    said: list[str] = []
    with pytest.raises(FaultError, match="another writer"):
        generate(studio(), Store(tmp_path), (), said.append, check)
    assert taken == [0, 1] and len(said) == 1


@pytest.mark.parametrize("actor", [StageActor, BankActor])
def test_weights_missing_on_a_workers_node_are_a_mistake_of_the_users(
    tmp_path: Path, actor: type
) -> None:
    recipe = load(IDIFF, [FLOAT32, f"weights.denoiser.location={tmp_path}/gone.safetensors"])
    raw, store = recipe.model_dump(mode="json"), Store(tmp_path)
    given = (Assignment(raw, store, "", versions()), ("render",))
    guarded = Guarded(actor, *(given if actor is StageActor else (raw,)))
    for row in ("work", "block"):  # told at every row: it has to reach the driver
        (said,) = guarded({row: np.array([0])})[REFUSED]
        named = r"recipe field weights\.denoiser\.location: no file .*gone\.safetensors"
        assert re.match(rf"node {socket.gethostname()}: {named}", said)


@pytest.mark.parametrize(
    ("error", "column", "words"),
    [
        (InputError("recipe field x: 3"), REFUSED, "recipe field x: 3"),
        (OSError(28, "No space left"), FAILED, r"\[Errno 28\] No space left"),
        (FaultError("its tar is missing"), FAILED, "its tar is missing"),
        (torch.OutOfMemoryError("CUDA:\n 3 GB"), FAILED, r".*sampler\.batch_size.*\(CUDA: 3 GB\)"),
    ],
)
def test_what_a_shard_ends_in_is_one_row_with_its_name(
    tmp_path: Path, error: Exception, column: str, words: str
) -> None:
    def fail(work: ShardWork) -> None:
        raise error

    raw = studio().model_dump(mode="json")
    guarded = Guarded(StageActor, Assignment(raw, Store(tmp_path), "", versions()), ("render",))
    guarded.actor.line = fail
    shard = next(shards(studio()))
    work = np.empty(1, object)
    work[0] = ShardWork(shard)
    row = guarded({"work": work})
    (said,) = row[column]
    assert re.fullmatch(rf"shard {shard.name}: {words}", said)
    assert guarded(row) is row  # as a later pool passes it on


def test_rows_of_errors_reach_the_user_as_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def pooled(rows: list[dict[str, Any]]) -> SimpleNamespace:
        return SimpleNamespace(iter_rows=lambda: rows)

    monkeypatch.setattr(ray.data, "from_items", lambda rows, **how: rows)
    with pytest.raises(InputError, match=r"^node a: recipe field x$"):
        list(engine._windows([{REFUSED: "node a: recipe field x"}], 1, pooled, "output u: "))
    with pytest.raises(FaultError, match=r"^output u: full; the same command goes on from here$"):
        list(engine._windows([{FAILED: "full"}], 1, pooled, "output u: "))


def test_a_bug_in_a_worker_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Guarded(StageActor, None)


def test_a_bank_is_committed_as_it_grows_and_is_the_same_however_it_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "COMMIT_BLOCKS", 2)
    recipe = load(IDIFF, [FLOAT32, "identities.count=300", "identities.max_cosine=0.6"])
    assert isinstance(recipe, GenerateRecipe)
    left = [10**6]

    def drawn(rows: Iterable[dict[str, Any]], *_: Any) -> Iterator[dict[str, Any]]:
        blocks = np.array([row["block"] for row in rows])
        late = np.random.default_rng(3).uniform(0, 3, len(blocks))
        for block in blocks[np.argsort(blocks + late)]:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            indices = range(block * BANK_BLOCK, (block + 1) * BANK_BLOCK)
            yield {"block": block, "contexts": identities.uniform(9, indices, 16)}

    monkeypatch.setattr(engine, "_windows", drawn)
    whole = fill_bank(recipe, Store(tmp_path / "whole"), lambda line: None)
    bank, rows = np.zeros((0, 16), np.float32), []
    candidates = identities.uniform(9, range(whole.drawn), 16)
    for row, candidate in enumerate(candidates):  # one after another, as they are numbered
        if not len(bank) or (bank @ candidate).max() <= 0.6:
            bank, rows = np.concatenate([bank, candidate[None]]), [*rows, row]
    assert len(rows) == 300 and rows[-1] == whole.drawn - 1
    assert whole.candidates.tolist() == rows and (whole.contexts == bank).all()
    assert whole.reasons == {"identity_collision": whole.drawn - 300}

    store, saved = Store(tmp_path / "killed"), [0]
    while True:
        left[0] = 4 * len(saved)
        try:
            again = fill_bank(recipe, store, lambda line: None)
            break
        except KeyboardInterrupt:
            saved.append(len(sorted(store.list("bank"))))
    assert saved == sorted(saved) and len(set(saved)) > 2  # what a kill left is kept
    files = {name: store.read(name) for name in store.list("bank")}
    assert files == {name: Store(tmp_path / "whole").read(name) for name in files}
    assert sorted(files) == sorted(Store(tmp_path / "whole").list("bank"))
    assert (again.contexts == whole.contexts).all() and again.drawn == whole.drawn


def test_a_bank_of_a_folder_that_another_took_over_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, store = load(IDIFF, [FLOAT32, "identities.count=5"]), Store(tmp_path)
    assert isinstance(recipe, GenerateRecipe)
    row = {"block": 0, "contexts": identities.uniform(9, range(BANK_BLOCK), 512)}
    monkeypatch.setattr(engine, "_windows", lambda *_: iter([row]))

    def check_lock() -> None:
        raise FaultError("another writer")

    with pytest.raises(FaultError, match="another writer"):
        fill_bank(recipe, store, lambda line: None, check_lock)
    assert list(store.list()) == []


def test_the_preflight_names_what_the_cluster_lacks(ray_cluster) -> None:
    with pytest.raises(InputError, match=r"pool\.num_gpus: 2, but the largest node .* has 1 GPU"):
        require([("pool.", 1, 1.0, 2.0)])
    with pytest.raises(InputError, match=r"pool\.size 3 x 0\.5: 1\.5 GPU together"):
        require([("pool.", 3, 0.5, 0.5)])
    require([("pool.", 2, 0.25, 0.5)])


def test_a_machine_too_busy_for_ray_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def late(**given: object) -> None:  # what Ray raises after 30 s
        tried.append(given)
        time.sleep(0.3)
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setenv(engine.START_SETTING, "1")
    with pytest.raises(FaultError, match="Ray did not start within 1 s"):
        connect("")
    assert len(tried) > 1
    monkeypatch.setenv(engine.START_SETTING, "soon")
    with pytest.raises(InputError, match="'soon': accepted is a whole number of seconds"):
        connect("")


def test_without_an_address_only_rays_own_word_joins_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray itself would join whatever `ray start` left in its temporary folder, dead or alive."""
    asked: list[object] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **given: asked.append(given["address"]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    connect("")
    connect("10.0.0.1:6379")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    connect("")
    assert asked == ["local", "10.0.0.1:6379", None]


def test_ray_starts_below_a_tmpdir_too_long_for_a_socket(tmp_path: Path) -> None:
    """As on Slurm; what a worker says proves that it has started there."""
    long = tmp_path / ("x" * 110)
    long.mkdir()
    code = (
        "import ray\nfrom factory.engine import connect\nconnect('')\n"
        "print(ray.get(ray.remote(lambda: 'up').remote()))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**os.environ, "TMPDIR": str(long), "RAY_ADDRESS": "", "RAY_TMPDIR": ""},
    )  # fmt: skip
    assert ran.returncode == 0 and ran.stdout == "up\n", ran.stderr
    assert not ran.stderr


def test_a_tmpdir_too_long_for_a_socket_is_one_error_where_no_folder_has_a_short_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / f"factory-{os.getuid()}"
    foreign.symlink_to(tmp_path)  # another user's snare
    monkeypatch.setattr(engine, "SHORT", (str(tmp_path),))
    monkeypatch.setattr(engine.os, "makedirs", lambda *_, **__: None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 40)
    with pytest.raises(InputError, match=r"TMPDIR /tmp/x+: too long .* paths of \d+ bytes"):
        engine._below()
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert engine._below() is None


def test_wiring_runs_the_same_stages_in_the_same_order() -> None:
    screens = "screens={identity_drift: {tolerance: 0.5}, max_attempts: 2}"
    fused = wiring(studio(screens))
    split = wiring(studio(screens, "workers.committers=1", "workers.max=4"))
    assert [c.size for c in fused] == [2] and [c.size for c in split] == [4, 1, 1, 1]
    flat = [stage for crew in split for stage in crew.stages]
    assert list(fused[0].stages) == flat
    assert flat == [
        "identities", "styles:0", "render", "screen", "styles:1", "render", "screen", "commit"
    ]  # fmt: skip
    assert isinstance(fused[0], Crew)


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
    monkeypatch.setattr(engine, "generate", lambda *given: None)
    with Store(tmp_path / "out").lock("test") as lock:
        engine.fill(pinned(recipe), lock, None, print)
    made = merged(read_claim(Store(tmp_path / "out")), ())
    assert made.licence == "non-commercial-research"
    (found,) = (model for model in made.models if model.name == "teacher")
    assert found.licence == made.licence and found.sha256 == hashlib.sha256(b"weights").hexdigest()
    shipped = load(IDIFF, [FLOAT32])
    assert isinstance(shipped, GenerateRecipe)
    with Store(tmp_path / "shipped").lock("test") as lock:
        engine.fill(shipped, lock, None, print)
    made, stated = merged(read_claim(Store(tmp_path / "shipped")), ()), shipped.model_dump()
    assert made.licence == stated["licence"]
    models = {model.name: model.model_dump(exclude={"name"}) for model in made.models}
    assert models == stated["weights"]
