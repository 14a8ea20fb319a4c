"""The benchmark of the driver at its smallest: what it makes is real, and what it says adds up."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import driven, driver
from benchmarks.objects import counted, serving
from factory import systems
from factory.datasets.manifest import load_manifest
from factory.datasets.store import Store
from factory.datasets.verify import verify

SHARDS = 20


class Told:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.said: list[tuple] = []

    def send(self, mark: tuple) -> None:
        self.said.append(mark)


def test_a_shard_on_s3_takes_four_requests_and_its_merge_two(
    made_dataset: Callable[..., Store],
) -> None:
    with serving() as place:
        url = place % "small"
        store = Store(url)
        store.exists("anything")  # the first request of a store may ask more
        before = counted(url)
        made_dataset(url)  # a claim, two shards and their merge, without any engine
        spent = {kind: counted(url)[kind] - before.get(kind, 0) for kind in ("HEAD", "PUT", "GET")}
        shards = {"HEAD": 2 + 2, "PUT": 2 * 3, "GET": 2}  # is it there, three files; and a read
        dataset = {"HEAD": 3, "PUT": 2, "GET": 1}  # of the claim and the merge
        assert spent == {kind: shards[kind] + dataset[kind] for kind in spent}
        assert "POST" not in counted(url), "no upload in parts"
        assert verify(store) == []


@pytest.mark.slow
@pytest.mark.ray
def test_what_the_driver_makes_is_real(
    ray_cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(systems.ELSEWHERE, driver.SYSTEM)
    told = Told()
    driven.generate_and_verify(
        driven.recipe_of(SHARDS, 1, 0.0), str(tmp_path), driven.Marks(told, SHARDS)
    )
    assert [mark for mark, *_ in told.said] == [
        *("begin", "banked", "first", "last", "merged", "verified"),
    ]
    store = Store(tmp_path)
    assert verify(store) == []
    assert load_manifest(store).totals.kept == 4 * SHARDS
    assert store.exists("bank/i0000000-0000002.json")


@pytest.mark.slow
def test_the_benchmark_measures_goes_on_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, chart = tmp_path / "driver.json", tmp_path / "driver.svg"
    words = ["driver", "--actors", "1", "--shards", "20,40", "--store", "ray,local,s3"]
    monkeypatch.setattr(sys, "argv", [*words, "--json", str(file), "--chart", str(chart)])
    driver.main()
    cells = json.loads(file.read_text())["cells"]
    assert [(cell["store"], cell["shards"]) for cell in cells] == [
        (store, count) for store in driver.STORES for count in (20, 40)
    ]
    for cell in cells:
        assert cell["shards_per_sec"] > 0 and cell["cpu_ms"]["driver"] > 0
        assert cell["actor_pss_mb"] > 0
        assert 0 < cell["driver_own_mb"]["last"] < cell["driver_mb"]["last"]
        if cell["store"] == "s3":
            assert cell["requests"]["making"] > 3
    assert "<svg" in chart.read_text()
    capsys.readouterr()
    driver.main()  # every cell is there
    assert capsys.readouterr().out == ""
    assert json.loads(file.read_text())["cells"] == cells


def test_a_wrong_number_of_shards_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["driver", "--shards", "1000,30"])
    with pytest.raises(SystemExit):
        driver.main()
    assert "--shards 30: accepted are multiples of 20" in capsys.readouterr().err
