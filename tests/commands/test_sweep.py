"""A whole sweep by its job, on a Ray of its own with two CPUs; killed, resumed, looked at."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import simplejpeg
import yaml
from faces import face

from factory.commands.sweep import main
from factory.datasets.store import Store
from factory.evaluation.verification import write_bin
from factory.recipe import FaultError
from factory.training import checkpoint

ROOT = Path(__file__).parents[2]
SPACE = """
from factory.search import Choice, Pool, Space

STUDIO = Pool("jobs/recipes/desk/generate/studio_plain.yaml", "identities.count=12",
              "identities.images_each=4", "shard.identities=6")


def composition(point):
    people, each = point["people_by_images"]
    return {{"pools": {{"studio": STUDIO.view(identities=people, images_each=each)}}}}


SPACE = Space(
    name="tiny",
    question="Does it run?",
    axes={{"people_by_images": Choice([4, 4], [8, 2], [40, 4])}},
    composition=composition,
    sets=("fr.schedule.steps={steps}", "fr.schedule.batch_size=8"),
    benchmarks="{bins}",
    search="grid",
    reports={reports},
    pairs=10,
)
"""


@pytest.fixture
def space(tmp_path: Path):
    """Return a function that writes a space of three trials, the pool too small for one."""
    bins = tmp_path / "bins"
    bins.mkdir()
    images, same = [], []
    for n in range(20):
        for shown in (face(n, 0, 64), face(n if n % 2 else n + 40, 1, 64)):
            images.append(simplejpeg.encode_jpeg(shown))
        same.append(bool(n % 2))
    write_bin(bins / "blobs.bin", images, same)

    def write(steps: int, reports: int) -> str:
        path = tmp_path / "space.py"
        path.write_text(SPACE.format(steps=steps, reports=reports, bins=bins))
        return str(path)

    return write


def command(tmp_path: Path, *arguments: str) -> list[str]:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    return [sys.executable, *arguments, "--tracking-uri", uri]


def sweep(tmp_path: Path, space: str, out: str, *more: str) -> list[str]:
    pools = ("--pools", str(tmp_path / "pools"))
    return command(tmp_path, "jobs/sweep.py", space, "--out", str(tmp_path / out), *pools, *more)


def run(arguments: list[str], code: int = 0) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def results(out: Path) -> dict[int, dict]:
    found = (json.loads(path.read_text()) for path in sorted(out.glob("trials/*/result.json")))
    return {result["number"]: result for result in found}


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_runs_grows_and_leaves_recipes_that_run(tmp_path: Path, space) -> None:
    from mlflow import MlflowClient

    out, given = tmp_path / "sweep", space(8, 2)
    run(sweep(tmp_path, given, "sweep", "--samples", "1", "--seeds", "2"))
    first = (out / "trials/0000/result.json").read_bytes()
    said = run(sweep(tmp_path, given, "sweep", "--samples", "3", "--seeds", "2"))
    assert "resuming: 1 of 3 trials are done" in said and "refused: recipe field pools" in said
    assert (out / "trials/0000/result.json").read_bytes() == first
    found = results(out)
    states = sorted(result["state"] for result in found.values())
    assert states == ["finished", "finished", "refused"]
    finished = [result for result in found.values() if result["state"] == "finished"]
    assert sum(result["pools"]["studio"]["made"] for result in finished) <= 1
    for result in finished:
        people, each = result["point"]["people_by_images"]
        assert (result["identities"], result["images"]) == (people, people * each)
        assert len(result["accuracies"]) == len(result["benchmarks"]["blobs"]) == 2
        assert [row["step"] for row in result["curve"]] == [4, 8, 4, 8]
        assert result["accuracy"] == pytest.approx(sum(result["accuracies"]) / 2)
        assert {"pools", "compose", "startup", "train", "all"} <= set(result["seconds"])
    kept = json.loads((out / "sweep.json").read_text())
    best = max(finished, key=lambda result: result["accuracy"])
    assert found[kept["best"]]["accuracy"] == best["accuracy"]
    assert kept["overhead"] > 1 and not (out / "ray").exists()

    assert "saved by pools that were there" in said
    # What it leaves is what the jobs take, and composes the same images.
    again = tmp_path / "again"
    run(command(tmp_path, "jobs/compose.py", str(out / "best/compose.yaml"), "--out", str(again)))
    made = json.loads((again / "composition.json").read_text())
    assert made["content_digest"] == found[kept["best"]]["content_digest"]
    recipe = yaml.safe_load((out / "best/studio.yaml").read_text())
    assert recipe["kind"] == "generate" and recipe["identities"]["count"] == 12
    pool = next((tmp_path / "pools").iterdir())
    run(command(tmp_path, "jobs/generate.py", str(out / "best/studio.yaml"), "--out", str(pool)))

    run(command(tmp_path, "jobs/report.py", str(out)))
    page = (out / "report.html").read_text()
    assert "Does it run?" in page and "http" not in page.replace("http://www.w3.org", "")

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    parents = [one for one in runs if "mlflow.parentRunId" not in one.data.tags]
    assert [one.info.status for one in parents] == ["FINISHED"]
    children = [one for one in runs if one not in parents]
    assert {one.data.tags["mlflow.parentRunId"] for one in children} == {parents[0].info.run_id}
    assert sorted(one.info.status for one in children) == ["FAILED", "FINISHED", "FINISHED"]
    ended = next(one for one in children if one.info.run_id == best["run_id"])
    assert ended.data.metrics["final"] == pytest.approx(best["accuracy"])
    assert len(client.get_metric_history(best["run_id"], "accuracy")) == 4
    assert [entry.dataset.name for entry in ended.inputs.dataset_inputs] == ["studio"]
    names = {item.path for item in client.list_artifacts(best["run_id"])}
    assert {"recipe.json", "trial.json", "result.json", "composition.json"} <= names
    assert {item.path for item in client.list_artifacts(parents[0].info.run_id, "best")}


def newest_curve(store: Store) -> list[dict]:
    """Return the rows of a training's newest checkpoint, which may be replaced meanwhile."""
    while True:
        with suppress(FileNotFoundError, FaultError):
            held = checkpoint.load(store, checkpoint.latest(store) or 0)
            return held[checkpoint.STATE]["progress"]["curve"]


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path, space) -> None:
    given = space(40, 10)
    arguments = sweep(tmp_path, given, "killed", "--samples", "2")
    out = tmp_path / "killed"
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            arguments, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        while driver.poll() is None:  # a training is past its third checkpoint
            saved = out.glob("trials/*/fr/seed1/checkpoints/*/checkpoint.json")
            saved = sorted(saved, key=lambda path: path.parent.name)
            if saved and saved[-1].parent.name >= "step-000000012":
                break
            time.sleep(0.02)
        assert driver.poll() is None, (tmp_path / "log").read_text()
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    training = saved[-1].parents[2]
    done = newest_curve(Store(training))
    assert len(done) >= 12 and not (training / "training.json").exists()
    begun = len(list(out.glob("trials/*/trial.json")))
    said = run(sweep(tmp_path, given, "killed", "--samples", "2"))
    assert begun and len(results(out)) == 2, said
    # Seconds and images/s of the steps before the kill were measured once, by who was killed.
    assert json.loads((training / "training.json").read_text())["curve"][: len(done)] == done
    run(sweep(tmp_path, given, "whole", "--samples", "2"))
    for number, result in results(tmp_path / "whole").items():
        held = results(out)[number]
        assert held["state"] == result["state"]
        if result["state"] == "finished":
            models = [tmp_path / where / f"trials/{number:04d}/fr/seed1/model.pt"
                      for where in ("killed", "whole")]  # fmt: skip
            digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in models}
            assert len(digests) == 1 and held["accuracies"] == result["accuracies"]
    with suppress(ProcessLookupError):  # Ray's agents outlive a killed driver
        os.killpg(driver.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_outlives_its_actors(tmp_path: Path, space) -> None:
    """As when nodes are lost: the trial goes on from its folder, the pools' actor comes again."""
    arguments, out = sweep(tmp_path, space(40, 10), "sweep", "--samples", "2"), tmp_path / "sweep"
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=log)
        while driver.poll() is None and not list(
            out.glob("trials/*/fr/seed1/checkpoints/*/*.json")
        ):
            time.sleep(0.02)
        killed = [
            process
            for process in psutil.Process(driver.pid).children(recursive=True)
            if process.name().startswith(("ray::Pools", "ray::ImplicitFunc"))
        ]
        for process in killed:
            process.kill()
        assert driver.wait() == 0 and len(killed) == 2, (tmp_path / "log").read_text()
    assert "broke off and goes on from its folder" in (tmp_path / "log").read_text()
    found = results(out).values()
    assert [result["state"] for result in found] == ["finished"] * 2
    for result in found:
        assert [row["step"] for row in result["curve"]] == list(range(4, 41, 4))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    ("reserved", "sets"),
    [
        (1, ("fr.engine.num_cpus=1", "fr.engine.threads=1")),  # two trials at a time
        (2, ("fr.engine.name=deepspeed", "fr.engine.workers=2", "fr.engine.num_cpus=1")),
    ],
)
def test_two_cpus_are_enough_for_pools_and_trainings(
    tmp_path: Path, space, reserved: int, sets: tuple[str, ...]
) -> None:
    """Actors that make the pool, and workers that train, alone or in pairs: none waits forever."""
    flags = [flag for one in sets for flag in ("--set", one)]
    run(sweep(tmp_path, space(8, 2), "sweep", "--samples", "2", *flags))
    run_of = json.loads((tmp_path / "sweep/sweep.json").read_text())["runs"][0]
    assert run_of["concurrent"] == min((os.cpu_count() or 1) // reserved, 2)
    assert len(results(tmp_path / "sweep")) == 2


def test_the_command_line_names_the_benchmarks(tmp_path: Path, monkeypatch, space) -> None:
    given = {}

    def stop(space, *_):
        given["benchmarks"] = space.benchmarks
        raise SystemExit(0)

    monkeypatch.setattr("factory.cluster.connect.connect", lambda address: None)
    monkeypatch.setattr("factory.search.sweep.sweep", stop)
    words = ["sweep", space(8, 2), "--samples", "1", "--out", str(tmp_path / "out")]
    for more, wanted in (([], str(tmp_path / "bins")), (["--benchmarks", "own"], "own")):
        monkeypatch.setattr("sys.argv", [*words, *more])
        with pytest.raises(SystemExit):
            main()
        assert given["benchmarks"] == wanted
