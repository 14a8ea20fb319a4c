import argparse
import importlib.util
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from factory.datasets.manifest import TAR, shard_file
from factory.datasets.store import LOCK, Store
from factory.datasets.verify import Fault, verify

ROOT = Path(__file__).parents[2]
RECIPE = "jobs/recipes/desk/generate/studio.yaml"
FIRST = "i0000000-0000003-s0000-0004"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_plan_says_what_will_be_made() -> None:
    done = run(
        "jobs/plan.py",
        RECIPE,
        *("--set", "identities.count=30", "--set", "identities.images_each=4"),
        *("--set", "shard.identities=10", "--set", "workers.max=2"),
        *("--set", "cost={seconds_per_image: [60, 90], source: somebody, bytes_per_image: 1000}"),
    )
    assert done.returncode == 0, done.stderr
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert rows["shards"] == "3: i0000000-0000010-s0000-0004 to i0000020-0000030-s0000-0004"
    assert rows["identities"] == "30 x 4 images"
    assert rows["images"] == "120"
    assert rows["bytes"] == "427 kB"  # 120 x (1000 + 5 blocks of 512)
    assert rows["actor-hours"] == "2.0 h to 3.0 h"
    assert rows["source"] == "somebody"


def seconds(*arguments: str) -> float:
    """Return the processor's time of a Python, which is not that of its neighbours."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def torch_seconds() -> float:
    """How long torch alone takes to import here."""
    return seconds("-c", "import torch")


@pytest.mark.parametrize("job", [["jobs/plan.py", RECIPE], ["jobs/verify.py", "nowhere"]])
def test_they_start_at_once_and_load_neither_torch_nor_ray(
    job: list[str], torch_seconds: float
) -> None:
    assert seconds(*job) < 0.5 * torch_seconds  # about a sixth
    done = run("-X", "importtime", *job)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "factory.recipe" in loaded
    assert not {"torch", "ray", "diffusers", "mlflow", "pyarrow"} & loaded


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.yaml",), "no file nowhere.yaml"),
        ((RECIPE, "--set", "identities.count=x"), "identities.count: 'x'"),
        ((RECIPE, "--set", "kind=fr"), "this job accepts 'generate'"),
    ],
)
def test_wrong_recipes_are_exit_code_2(arguments: tuple[str, ...], words: str) -> None:
    done = run("jobs/plan.py", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_verify_names_a_flipped_byte_and_repairs(made_dataset: Callable[..., Store]) -> None:
    store = made_dataset()
    assert store.root is not None
    done = run("jobs/verify.py", store.root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "whole: 23 of 24 planned images" in done.stdout

    name = shard_file(FIRST, TAR)
    data = bytearray((store.root / name).read_bytes())
    data[700] ^= 1
    (store.root / name).write_bytes(data)
    done = run("jobs/verify.py", store.root)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{name}: changed_tar: sha256 is ")
    assert "exit code 1" in done.stderr.splitlines()[-1]
    assert store.exists(name)

    done = run("jobs/verify.py", store.root, "--repair")
    assert done.returncode == 1
    assert f"removed {name}" in done.stdout
    assert not store.exists(name)
    assert not store.exists("lock")


def test_repair_looks_only_once_nobody_else_writes(
    made_dataset: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard without a manifest may be one that generate commits right now."""
    spec = importlib.util.spec_from_file_location("verify_job", ROOT / "jobs/verify.py")
    assert spec is not None and spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    store, held = made_dataset(), []

    def looked(store: Store) -> list[Fault]:
        held.append(store.exists(LOCK))
        return verify(store)

    monkeypatch.setattr(job, "verify", looked)
    for repair in (False, True):
        assert job.job(argparse.Namespace(url=str(store.root), repair=repair)) == 0
    assert held == [False, True] and not store.exists(LOCK)


def test_verify_without_a_dataset_is_exit_code_2(tmp_path: Path) -> None:
    done = run("jobs/verify.py", tmp_path, "--repair")
    assert done.returncode == 2
    assert "no dataset there" in done.stderr
    assert list(tmp_path.iterdir()) == []
