"""Real jobs on real Ray, stopped as users and schedulers do: one line, and nothing is left."""

import re
import signal
from pathlib import Path

import pytest
import ready
from lasting import states
from stopping import check, stop

STUDIO = "jobs/recipes/desk/generate/studio.yaml"
SMALL = ("identities.count=900", "identities.images_each=4", "shard.identities=3", "image.size=32",
         "workers.max=1")  # fmt: skip
NOISE = re.compile(r"core_worker|\(raylet|warning|Traceback|Aborted|\*\*\*", re.IGNORECASE)

pytestmark = pytest.mark.ray


def sets(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def tracked(folder: Path) -> list[str]:
    return ["--tracking-uri", f"sqlite:///{folder}/mlflow.db"]


def test_a_generation_is_stopped_and_goes_on_and_is_stopped_again(
    ray_cluster: str, tmp_path: Path
) -> None:
    """First on a Ray of its own, then on another that stays."""
    out = tmp_path / "out"
    command = ["jobs/generate.py", STUDIO, "--out", out, *tracked(tmp_path), *sets(*SMALL)]
    for number, where in ((signal.SIGTERM, []), (signal.SIGINT, ["--address", ray_cluster])):
        words, group = [*command, *where], number == signal.SIGINT
        found = stop(
            words, tmp_path, number, lambda said: re.search(r"shards [1-9]", said), group=group
        )
        kept = check(found, number, r"\d+ of 300 shards are committed")
        more = len(list((out / "shards").glob("*.json"))) - int(kept.split()[0])
        # The worker of another Ray is not held while the job counts: it may end its shard.
        assert 0 <= more <= (1 if where else 0)
        assert not (out / "lock").exists()
    assert "resuming: " in found.out
    assert states(tmp_path) == ["KILLED", "KILLED"]


@pytest.mark.slow  # a stop, above, shows nothing else either
def test_a_small_run_shows_nothing_that_looks_like_an_error(tmp_path: Path) -> None:
    ran = ready.run(
        *("jobs/generate.py", STUDIO, "--out", tmp_path / "out"),
        *(*tracked(tmp_path), *sets(*SMALL, "identities.count=6")),
    )
    assert ran.returncode == 0, ran.stderr
    assert not NOISE.search(ran.stderr), ran.stderr
