"""What a cluster can hold: requests that can never be scheduled are refused before they wait."""

import pytest

from factory.cluster.capacity import cpus, gpus, require
from factory.nodes import GROWS_TO, Group, Reservation, grows_to, makers
from factory.recipe import InputError, Workers


def actors(size: int, num_cpus: float, num_gpus: float) -> Reservation:
    return Reservation("workers.max", "workers.", size, num_cpus, num_gpus)


def trainers(size: int, num_cpus: float, num_gpus: float) -> Reservation:
    return Reservation("engine.workers", "engine.", size, num_cpus, num_gpus)


@pytest.mark.ray
def test_the_preflight_names_what_the_cluster_lacks(ray_cluster) -> None:
    largest = r"recipe field workers\.num_gpus: 2, but the largest node .* has 1 GPU"
    with pytest.raises(InputError, match=largest):
        require([actors(1, 1.0, 2.0)])
    together = r"recipe field workers\.max 3 x 0\.5: 1\.5 GPU together, but the cluster has 1"
    with pytest.raises(InputError, match=together):
        require([actors(3, 0.5, 0.5)])
    require([actors(2, 0.25, 0.5)])
    assert (cpus(), gpus()) == (4, 1.0)


def test_what_a_cluster_says_of_its_growth_is_what_jobs_check(monkeypatch) -> None:
    assert grows_to("8x16, 2x4+1") == [Group("8x16", 8, 16, 0), Group("2x4+1", 2, 4, 1)]
    with pytest.raises(InputError, match=r"FACTORY_GROWS_TO '8x': accepted is COUNTxCPUS\+GPUS"):
        grows_to("8x")
    monkeypatch.setenv(GROWS_TO, "8x16,2x4+1")
    require([actors(8, 16, 0), trainers(2, 4, 1)])
    with pytest.raises(InputError, match="3 GPU together, but the cluster has 2"):
        require([trainers(3, 1, 1)])
    with pytest.raises(InputError, match="the largest node of the cluster has 16 CPU"):
        require([trainers(1, 17, 0)])
    assert (cpus(), gpus()) == (8 * 16 + 2 * 4, 2.0)


def test_errors_name_the_fields_of_every_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GROWS_TO, "1x4")
    committers = Reservation("workers.committers", "workers.committer_", 3, 0.5)
    said = r"^recipe field workers\.max 2 x 2, workers\.committers 3 x 0\.5: 5\.5 CPU together"
    with pytest.raises(InputError, match=said):
        require([actors(2, 2.0, 0.0), committers])
    committers = Reservation("workers.committers", "workers.committer_", 3, 5.0)
    with pytest.raises(InputError, match=r"^recipe field workers\.committer_num_cpus: 5, but"):
        require([actors(2, 2.0, 0.0), committers])
    with pytest.raises(InputError, match=r"^--actors 9 x 1: 9 CPU together"):
        require([Reservation("--actors", "--actors ", 9)])


def test_makers_reserve_the_most_they_may_become() -> None:
    workers = Workers(max=4, min=1, num_cpus=0.5, num_gpus=0.25)
    assert makers(workers) == Reservation("workers.max", "workers.", 4, 0.5, 0.25)
    assert makers(workers, 3).size == 3 and makers(workers, 9).size == 4
