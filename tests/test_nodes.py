"""What a recipe reserves, placed on the nodes of a cluster's groups."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some

from factory.nodes import Group, Reservation, cluster_groups, place
from factory.recipe import InputError

CLUSTER = Path(__file__).parents[1] / "cluster.yaml"


def actors(size: int, cpus: float, gpus: float = 0.0) -> Reservation:
    return Reservation("workers.max", "workers.", size, cpus, gpus)


def committers(size: int, cpus: float) -> Reservation:
    return Reservation("workers.committers", "workers.committer_", size, cpus)


def test_the_shipped_cluster_files_groups_are_read_with_the_head() -> None:
    groups = cluster_groups(yaml.safe_load(CLUSTER.read_text()), "cluster.yaml")
    assert groups == [
        Group("head", 1, 0, 0),
        Group("cpu", 8, 16, 0),
        Group("gpu_spot", 16, 16, 1),
    ]
    wanted = [actors(3, 4, 1), committers(40, 1)]
    assert place(wanted, groups) == {"head": 0, "cpu": 1, "gpu_spot": 3}


def test_thousands_of_nodes_are_filled_a_node_at_a_time() -> None:
    assert place([actors(64_000, 1)], [Group("a", 1000, 64, 0)]) == {"a": 1000}
    with pytest.raises(InputError, match=r"room for 9000 actors of 7 CPU"):
        place([actors(9_100, 7)], [Group("a", 1000, 64, 0)])


@pytest.mark.parametrize(
    ("pools", "groups", "words"),
    [
        ([actors(4, 3)], [Group("a", 3, 4, 0)], r"workers\.max: 4, .* room for 3 actors of 3 CPU,"),
        (
            [actors(1, 8, 1)],
            [Group("a", 1, 16, 0), Group("b", 1, 4, 1)],
            r"workers\.max: 1, .* room for 0 actors of 8 CPU and 1 GPU, each on one node",
        ),
        (
            [actors(2, 3), committers(2, 2)],
            [Group("a", 2, 5.5, 0), Group("none", 0, 99, 0)],
            None,
        ),
        ([actors(2, 3), committers(4, 2)], [Group("a", 2, 7, 0)], None),
        ([actors(2, 4, 0.5), committers(8, 1)], [Group("a", 2, 8, 1)], None),
        ([actors(2, 4, 0.5), committers(9, 1)], [Group("a", 2, 8, 1)], "17 CPU together"),
    ],
)
def test_an_actor_lies_on_one_node(
    pools: list[Reservation], groups: list[Group], words: str | None
) -> None:
    if words is None:
        assert sum(place(pools, groups).values()) >= 1
    else:
        with pytest.raises(InputError, match=words):
            place(pools, groups)


@given(
    some.integers(1, 12),
    some.sampled_from([0.5, 1.0, 2.0, 3.0]),
    some.lists(some.tuples(some.integers(1, 3), some.integers(1, 8)), min_size=1, max_size=3),
)
def test_one_pool_finds_room_exactly_where_whole_nodes_sum_up_to_it(
    size: int, cpus: float, nodes: list[tuple[int, int]]
) -> None:
    groups = [Group(str(n), count, has, 0) for n, (count, has) in enumerate(nodes)]
    room = sum(count * int(has / cpus) for count, has in nodes)
    if size <= room:
        used = place([actors(size, cpus)], groups)
        most = max(int(has / cpus) for _, has in nodes)
        assert -(-size // most) <= sum(used.values()) <= sum(count for count, _ in nodes)
    else:
        with pytest.raises(InputError):
            place([actors(size, cpus)], groups)


@pytest.mark.parametrize(
    "raw",
    [
        None,
        {"head_node_type": "head"},
        {"available_node_types": {"cpu": {"max_workers": 3}}},
        {"available_node_types": {"cpu": {"max_workers": "many", "resources": {"CPU": 1}}}},
        {"available_node_types": {"cpu": None}},
    ],
)
def test_a_file_without_groups_is_one_error(raw: object) -> None:
    with pytest.raises(InputError, match=r"^--cluster x: .*accepted is"):
        cluster_groups(raw, "--cluster x")
