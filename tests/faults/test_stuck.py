"""Shards at which a process hangs or ends: made again, and in the end left out and told of."""

import os
import re
from pathlib import Path

import pytest
import ready
import yaml
from moody import moody

from factory.cluster.watch import STUCK
from factory.datasets.claim import write_claim
from factory.datasets.manifest import committed
from factory.datasets.provenance import versions
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.generation.run import generate
from factory.plan import shards
from factory.recipe import FaultError, content_digest
from factory.systems import ELSEWHERE

TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.ray


def test_a_shard_is_made_again_three_times_and_then_left_out_until_it_can_be_made(
    ray_cluster: str,
    make_alone,
    tars,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One shard ends its process each time, another hangs once in a call that holds the GIL."""
    monkeypatch.setenv(ELSEWHERE, "moody")
    monkeypatch.setenv(STUCK, "4")
    moods = tmp_path / "moods"
    recipe = moody(moods, 6, max=2, num_cpus=0.5)
    make_alone(recipe, Store(tmp_path / "whole"))
    names = [shard.name for shard in shards(recipe)]
    (moods / f"{names[2]}.exit").write_text("99")
    (moods / f"{names[4]}.hang").write_text("1")
    store = Store(tmp_path / "moody")
    write_claim(store, recipe, content_digest(recipe, versions()), ())
    with pytest.raises(FaultError) as raised:
        generate(recipe, store, (), lambda line: None)
    left = f"shard {names[2]} is left out: 4 processes ended at it (Make)"
    assert str(raised.value) == (
        f"output {store.url}: 1 of 6 shards failed, all others are committed: {left}; the same "
        "command tries them again"
    )
    said = capsys.readouterr().out
    assert all(f"shard {names[2]} is made again ({n} of 3)" in said for n in (1, 2, 3))
    assert said.count(left) == 1
    stuck = rf"stuck: shard {names[4]} after .*, others took .* was ended and is replaced"
    assert re.search(stuck, said), said
    assert committed(store) == set(names) - {names[2]}
    assert (moods / f"{names[2]}.tries").stat().st_size == 4

    (moods / f"{names[2]}.exit").unlink()
    monkeypatch.setenv(STUCK, "300")
    generate(recipe, store, (), lambda line: None)
    assert tars(store) == tars(Store(tmp_path / "whole"))
    assert verify(store) == []


@pytest.mark.slow
@pytest.mark.parametrize("mood", ["exit", "hang"])
def test_a_job_without_end_of_tries_ends_with_exit_code_1(tmp_path: Path, mood: str) -> None:
    """On a Ray of its own; the same command finishes the dataset when the shard can be made."""
    moods, out = tmp_path / "moods", tmp_path / "out"
    recipe = moody(moods, 3, max=1, committers=1)
    (tmp_path / "moody.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    bad = [shard.name for shard in shards(recipe)][1]
    (moods / f"{bad}.{mood}").write_text("99")
    env = {ELSEWHERE: "moody", STUCK: "5", "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}

    def job():
        return ready.run(
            *("jobs/generate.py", tmp_path / "moody.yaml", "--out", out),
            *("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"),
            env={**os.environ, "RAY_ADDRESS": "", **env},
        )

    ran = job()
    assert ran.returncode == 1, ran.stdout + ran.stderr
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"shard {bad} is left out" in errors[0]
    assert errors[0].endswith("(exit code 1)") and "Traceback" not in ran.stderr
    assert len(committed(Store(out))) == 2 and not (out / "lock").exists()
    (moods / f"{bad}.{mood}").unlink()
    ran = job()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert verify(Store(out)) == []
