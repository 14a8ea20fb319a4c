"""Fifty random kills of one generation, and flat memory over ten thousand shards: hours, not CI."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from factory.datasets.store import Store
from factory.datasets.verify import verify

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "jobs/recipes/desk/generate/studio_plain.yaml"
KILLS = int(os.environ.get("FACTORY_SOAK_KILLS", "50"))
SETS = ("identities.count=300", "identities.images_each=10", "shard.identities=1")

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def command(out: Path, *sets: str) -> list[str]:
    given = [part for one in sets for part in ("--set", one)]
    uri = f"sqlite:///{out.parent}/mlflow.db"
    return [
        sys.executable, "jobs/generate.py", str(PLAIN), "--out", str(out), *given,
        "--tracking-uri", uri,
    ]  # fmt: skip


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the driver's Ray: its raylet and the actors that run stages."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = []
    for one in below:
        try:
            line = " ".join(one.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if "MapWorker" in line or "/raylet " in line:
            found.append(one)
    return found


@pytest.mark.timeout(4 * 3600)
def test_random_kills(plain, make_alone, tars, parts, tmp_path: Path) -> None:
    """Driver, raylet or actor, at any moment; now and then a second driver by mistake."""
    sets = (*SETS, "image.size=64")
    recipe, draw = plain(*sets), random.Random(5)
    make_alone(recipe, Store(tmp_path / "whole"))
    out, kills, refused, driver, ours = tmp_path / "data", 0, 0, None, []
    while kills < KILLS:
        if driver is None or driver.poll() is not None:
            driver = subprocess.Popen(command(out, *sets), cwd=ROOT, start_new_session=True)
            ours.append(driver.pid)
        time.sleep(draw.uniform(0.5, 12.0))
        if (out / "manifest.json").exists():  # all done: some shards are lost, to be made again
            (out / "manifest.json").unlink()
            for path in draw.sample(sorted((out / "shards").glob("*.json")), 150):
                path.unlink()
            continue
        if kills % 10 == 9 and (out / "lock").exists() and driver.poll() is None:
            second = subprocess.run(command(out, *sets), cwd=ROOT, capture_output=True, timeout=300)
            refused += second.returncode == 2 and b"is being written by" in second.stderr
        victims = [psutil.Process(driver.pid)] if driver.poll() is None else []
        victims += family(driver)
        if not victims:
            continue
        victim = draw.choice(victims)
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
        kills += 1
        if victim.pid == driver.pid or "raylet" in victim.name():
            driver.wait(timeout=300)
            reap(driver.pid)
    assert driver is not None
    driver.wait(timeout=3600)
    last = subprocess.run(command(out, *sets), cwd=ROOT, capture_output=True, timeout=3600)
    assert last.returncode == 0, last.stderr
    assert refused or KILLS < 20
    assert tars(Store(out)) == tars(Store(tmp_path / "whole"))
    assert verify(Store(out)) == [] and parts(tmp_path) == []
    for pid in ours:
        reap(pid)


def reap(session: int) -> None:
    """End what is left of a killed driver's session: Ray's agents outlive it."""
    try:
        os.killpg(session, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.mark.timeout(2 * 3600)
def test_the_drivers_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    """Peak resident memory of the driver at 100 and at 10,000 shards of one image."""
    peaks = {}
    for count in (100, 10_000):
        sets = (f"identities.count={count}", "identities.images_each=1", "shard.identities=1")
        driver = subprocess.Popen(command(tmp_path / str(count), *sets, "image.size=16"), cwd=ROOT)
        _, status, usage = os.wait4(driver.pid, 0)
        assert status == 0
        peaks[count] = usage.ru_maxrss / 1024
    print(json.dumps({"driver_peak_mb": peaks}))
    assert peaks[10_000] < 1.1 * peaks[100]
