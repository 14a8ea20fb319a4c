"""S3 through a server that fails one PUT in ten, dies and comes back; and keys that stay secret."""

import re
import threading
import time
from pathlib import Path

import pytest
import ready

from factory.datasets import patience
from factory.datasets.manifest import committed, merge
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.plan import shards
from factory.recipe import FaultError

PLAIN = "jobs/recipes/desk/generate/studio_plain.yaml"
KEYS = (b"a-key", b"a-secret")  # of the fixture `s3`


def test_a_failing_and_dying_server_changes_no_byte(
    front, plain, make_alone, tars, tmp_path: Path
) -> None:
    server, url = front
    make_alone(plain(), Store(tmp_path / "whole"))
    server.fail_every = 10
    store, down = Store(url % "faulty"), []

    def fell() -> None:
        while not any(name.endswith(".json") for name in calm.list("shards")):
            time.sleep(0.02)
        server.kill()
        down.append(len(list(calm.list("shards"))))
        time.sleep(1.5)
        server.start()

    calm = Store((url % "faulty").replace(f"127.0.0.1:{server.port}", server.behind))
    killer = threading.Thread(target=fell, daemon=True)
    killer.start()
    make_alone(plain(), store)
    killer.join()
    merge(store, shards(plain()))
    assert server.failed >= 3 and 0 < down[0] < 36, "both faults happened, the second midway"
    assert tars(store) == tars(Store(tmp_path / "whole"))
    assert verify(store) == []


def test_credentials_that_expire_midway_are_one_error_and_new_ones_go_on(
    front, plain, make_alone, tars, tmp_path: Path
) -> None:
    make_alone(plain(), Store(tmp_path / "whole"))
    server, url = front
    server.expires = 20  # some of the shards' PUTs
    with pytest.raises(FaultError, match="its credentials have expired; new ones are needed"):
        make_alone(plain(), Store(url % "expired"))
    assert server.expired == {"a-key"}
    renewed = Store((url % "expired").replace("a-key", "b-key"))
    assert 0 < len(committed(renewed)) < 12
    make_alone(plain(), renewed)
    merge(renewed, shards(plain()))
    assert tars(renewed) == tars(Store(tmp_path / "whole"))
    assert verify(renewed) == []


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_says_how_often_it_was_asked_to_slow_down_and_when_its_keys_are_old(
    front, ray_cluster: str, plain, make_alone, tars, tmp_path: Path
) -> None:
    """One job meets both: it waits, then its credentials expire, and new ones finish it."""
    make_alone(plain(), Store(tmp_path / "whole"))
    server, url = front
    server.slow, server.expires = 70, 20  # more than the client of S3 repeats of itself
    sets = ("identities.count=12", "identities.images_each=4", "shard.identities=1")
    sets = (*sets, "image.size=32", "workers.max=2", "workers.num_cpus=0.5")

    def job(out: str):
        return ready.run(
            *("jobs/generate.py", PLAIN, "--out", out, "--address", ray_cluster),
            *("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"),
            *(word for override in sets for word in ("--set", override)),
        )

    ran = job(url % "both")
    assert ran.returncode == 1 and "Traceback" not in ran.stderr, ran.stderr
    (error,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert "its credentials have expired; new ones are needed" in error
    server.slow, server.slowed = 70, 0
    store = (url % "both").replace("a-key", "b-key")
    ran = job(store)
    assert ran.returncode == 0, ran.stderr
    assert "resuming: " in ran.stdout and server.slowed == 70
    assert re.search(r"again in \d|requests were repeated \(\d+ x it asked to slow", ran.stdout)
    assert tars(Store(store)) == tars(Store(tmp_path / "whole"))
    assert verify(Store(store)) == []


@pytest.mark.slow
def test_a_server_that_stays_away_is_an_error_in_the_end(
    front, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patience, "PAUSES_SECONDS", (0.01, 0.02))
    server, url = front
    store = Store(url % "away")
    store.write("a", b"1")
    with pytest.raises(FileNotFoundError):
        store.read("b")
    assert capsys.readouterr().out == "", "what is not there is not asked for again"
    server.kill()
    with pytest.raises(OSError):
        store.read("a")
    said = capsys.readouterr().out
    assert said.count("again in") == 2
    assert not any(key.decode() in said for key in KEYS)
    server.start()
    assert store.read("a") == b"1"


@pytest.mark.ray
def test_keys_in_an_address_reach_no_log_no_object_and_no_mlflow(
    front, ray_cluster: str, tmp_path: Path
) -> None:
    from ray._private import worker

    _, url = front
    session = Path(worker._global_node.get_session_dir_path())
    ran = ready.run(
        *("jobs/generate.py", PLAIN, "--out", url % "secret"),
        *("--set", "identities.count=4", "--set", "identities.images_each=2"),
        *("--set", "shard.identities=2", "--set", "image.size=32", "--set", "workers.max=1"),
        *("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--address", ray_cluster),
    )
    assert ran.returncode == 0, ran.stderr
    assert "8 of 8 images" in ran.stdout
    store = Store(url % "secret")
    assert verify(store) == []
    seen = {"stdout": ran.stdout.encode(), "stderr": ran.stderr.encode()}
    seen |= {name: store.read(name) for name in store.list()}
    for folder in (tmp_path, session):
        files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        seen |= {str(path): path.read_bytes() for path in files}
    assert len(seen) > 10 and any("mlflow.db" in name for name in seen)
    assert any("/logs/" in name for name in seen), "Ray's own logs are among them"
    assert [name for name, data in seen.items() if any(key in data for key in KEYS)] == []
