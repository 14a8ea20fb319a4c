"""Fixtures shared by all tests."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.objects import serving
from factory.datasets.claim import write_claim
from factory.datasets.manifest import ShardManifest, commit_shard, merge
from factory.datasets.provenance import DIGITAL_SOURCE_TYPE
from factory.datasets.store import Store, cache_home
from factory.datasets.tar import write_tar
from factory.plan import Shard, sample_key, shards
from factory.recipe import GenerateRecipe, parse
from factory.seeding import hex16, seed64


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep indexes and copies of shards out of the user's cache, in workers of Ray too."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a test a cache of its own, and return its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_home()


@pytest.fixture(scope="session", autouse=True)
def patient_ray() -> None:
    """Have every Ray wait for workers as long as a busy machine takes, and start none to spare."""
    os.environ |= {
        "RAY_worker_register_timeout_seconds": "600",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
        "RAY_prestart_worker_first_driver": "0",  # ours have an environment that those lack
    }


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give what needs the shared Ray to one process, and every other file whole to any.

    Alone, a process runs those tests last, because Ray's agents take a part of the machine all
    along. Of several processes one begins with them, and the others with Rays of their own: both
    wait much, and what only computes fills the time.
    """
    several = hasattr(config, "workerinput")
    starting = {item.path for item in items if item.get_closest_marker("ray")}

    def place(item: pytest.Item) -> tuple[bool, bool]:
        shared = "ray_cluster" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("ray" if shared else str(item.path)))
        return (not shared, item.path not in starting) if several else (shared, False)

    items.sort(key=place)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A real local Ray with four declared CPUs and one declared GPU; yields its address."""
    import ray

    from factory.cluster.connect import connect

    often = {"metrics_report_interval_ms": 3000}
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{Path(__file__).parent}:{before}"  # its actors find moody.py
    for tries_left in reversed(range(10)):
        try:
            ray.init(
                "local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False,
                _system_config=often,
            )  # fmt: skip
            break
        except Exception as error:  # Ray gives itself 30 s, which a busy machine may miss
            if "timed out during startup" not in str(error) or not tries_left:
                raise
            ray.shutdown()
    os.environ["PYTHONPATH"] = before
    connect("")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket on a loopback server; yields the address of a folder in it, `%s` its name."""
    with serving() as place:
        yield place


MISSING = (1, 2)  # the slot that stays empty in every dataset of `made_dataset`


def small_recipe(**changes: Any) -> GenerateRecipe:
    """Return a recipe of six identities with four images each, three identities a shard."""
    raw: dict[str, Any] = {
        "kind": "generate",
        "name": "small",
        "seed": 5,
        "system": "studio",
        "licence": "CC0-1.0",
        "image": {"size": 16},
        "identities": {"count": 6, "images_each": 4, "source": "train"},
        "shard": {"identities": 3},
        "workers": {"max": 1},
        "cost": {"seconds_per_image": [0.01, 0.02], "source": "a test"},
    }
    recipe = parse(raw | changes)
    assert isinstance(recipe, GenerateRecipe)
    return recipe


def small_samples(shard: Shard, digest: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the samples of a shard: real labels and sidecars, bytes that only begin as a JPEG."""
    for identity, slot in shard.slots:
        if (identity, slot) == MISSING:
            continue
        sidecar = {
            "identity": identity,
            "slot": slot,
            "attempt": 0,
            "seed": hex16(seed64(5, "noise", identity, slot)),
            "cosine": 0.5,
            "system": "studio",
            "content_digest": digest,
            "digitalSourceType": DIGITAL_SOURCE_TYPE,
        }
        key = sample_key(identity, slot)
        image = b"\xff\xd8\xff" + hashlib.sha256(key.encode()).digest() * (1 + slot * 20)
        yield key, {"cls": b"%d" % identity, "jpg": image, "json": json.dumps(sidecar).encode()}


def commit_small(store: Store, shard: Shard, digest: str, work: Path) -> ShardManifest:
    """Write and commit one shard of a small dataset."""
    tar, rejects = work / "shard.tar", work / "shard.rejects"
    sha256, size = write_tar(tar, small_samples(shard, digest))
    rejects.write_bytes(shard.name.encode())
    missing = (sample_key(*MISSING),) if MISSING in set(shard.slots) else ()
    manifest = ShardManifest(
        name=shard.name,
        sha256=sha256,
        bytes=size,
        planned=shard.samples,
        kept=shard.samples - len(missing),
        reasons={"near_duplicate": 3 * len(missing)},
        missing=missing,
        seconds={"render": 0.25, "encode": 0.125},
        content_digest=digest,
        system="studio",
        versions={"numpy": "2.0"},
        rejects_sha256=hashlib.sha256(rejects.read_bytes()).hexdigest(),
    )
    commit_shard(store, tar, rejects, manifest)
    return manifest


@pytest.fixture
def made_dataset(tmp_path: Path) -> Callable[..., Store]:
    """Return a function that makes a whole small dataset at an address, without any engine."""

    def make(url: str | Path = tmp_path / "data", **changes: Any) -> Store:
        store, recipe, digest = Store(url), small_recipe(**changes), "0123456789abcdef"
        write_claim(store, recipe, digest, ())
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        for shard in shards(recipe):
            commit_small(store, shard, digest, work)
        merge(store, shards(recipe))
        return store

    return make
