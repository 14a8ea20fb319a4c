"""What a recipe reserves, placed on the nodes of a cluster's groups."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some

from factory.nodes import (
    MOST_WORKERS,
    Group,
    Reservation,
    cluster_groups,
    most_workers,
    place,
)
from factory.recipe import InputError

CLUSTER = Path(__file__).parents[1] / "cluster.yaml"


def actors(size: int, cpus: float, gpus: float = 0.0) -> Reservation:
    return Reservation("workers.max", "workers.", size, cpus, gpus)


def committers(size: int, cpus: float) -> Reservation:
    return Reservation("workers.committers", "workers.committer_", size, cpus)


def test_the_shipped_cluster_files_groups_are_read_with_the_head() -> None:
    groups = cluster_groups(yaml.safe_load(CLUSTER.read_text()), "cluster.yaml")
    assert groups == [
        Group("head", 1, 0, 0, head=True),
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


def capped(workers: object, **fields: object) -> dict[str, object]:
    """Return a cluster file's values: eight nodes of 4 CPUs, eight of 8 with a GPU, a head of 2."""
    types = {
        "head": {"resources": {"CPU": 2}},
        "w": {"max_workers": 8, "resources": {"CPU": 4}},
        "g": {"max_workers": 8, "resources": {"CPU": 8, "GPU": 1}},
    }
    return {
        "max_workers": workers,
        "head_node_type": "head",
        "available_node_types": types,
    } | fields


@pytest.mark.parametrize(
    ("pools", "most", "answer"),
    [
        ([actors(2, 4)], 2, {"head": 0, "w": 2, "g": 0}),
        ([actors(3, 4)], 2, {"head": 0, "w": 0, "g": 2}),  # the smallest nodes would be three
        ([actors(2, 1, 1), committers(14, 1)], 2, {"head": 0, "w": 0, "g": 2}),
        ([actors(18, 1)], 2, {"head": 1, "w": 0, "g": 2}),  # the head is none of the two
        ([actors(16, 4)], 16, {"head": 0, "w": 8, "g": 4}),
        ([actors(5, 4)], 2, "20 CPU together, but the cluster has 18; its max_workers allows 2 "),
        ([actors(3, 1, 1)], 2, "3 GPU together, but the cluster has 2; its max_workers allows 2 "),
        ([actors(3, 5)], 2, "have room for 2 actors of 5 CPU, each on one node; its max_workers a"),
        ([actors(1, 4)], 0, "largest node of the cluster has 2 CPU; accepted is 0 to 2; its max_"),
        ([actors(1, 1, 1)], 0, "has 0 GPU; accepted is 0 to 0; its max_workers allows 0 workers"),
        ([actors(33, 4)], 24, r"132 CPU together, but the cluster has 98$"),
    ],
)
def test_max_workers_caps_the_workers_of_all_groups_together(
    pools: list[Reservation], most: int, answer: dict[str, int] | str
) -> None:
    raw = capped(most)
    groups = cluster_groups(raw, "x")
    assert most_workers(raw, "x") == most
    if isinstance(answer, dict):
        assert place(pools, groups, most) == answer
    else:
        with pytest.raises(InputError, match=answer):
            place(pools, groups, most)


@given(
    some.integers(1, 12),
    some.sampled_from([0.5, 1.0, 2.0, 3.0]),
    some.lists(some.tuples(some.integers(1, 3), some.integers(1, 8)), min_size=1, max_size=3),
    some.integers(0, 9),
)
def test_one_pool_finds_room_exactly_where_the_largest_nodes_allowed_sum_up_to_it(
    size: int, cpus: float, nodes: list[tuple[int, int]], most: int
) -> None:
    groups = [Group(str(n), count, has, 0) for n, (count, has) in enumerate(nodes)]
    each = sorted((int(has / cpus) for count, has in nodes for _ in range(count)), reverse=True)
    if size <= sum(each[:most]):
        assert sum(place([actors(size, cpus)], groups, most).values()) <= most
    else:
        with pytest.raises(InputError):
            place([actors(size, cpus)], groups, most)


def test_a_file_without_max_workers_has_rays_own_number() -> None:
    import ray.autoscaler

    folder = Path(ray.autoscaler.__file__).parent
    defaults = {
        path.parent.name: yaml.safe_load(path.read_text()).get("max_workers")
        for path in folder.glob("*/defaults.yaml")
    }
    assert {name: most for name, most in defaults.items() if most is not None} == MOST_WORKERS
    raw = capped(3, provider={"type": "aws"})
    assert most_workers(raw, "x") == 3
    del raw["max_workers"]
    assert most_workers(raw, "x") == 2
    assert most_workers(raw | {"provider": {"type": "kuberay"}}, "x") is None
    types = {"w": {"resources": {"CPU": 4}}}  # a group that states none has what all have
    assert cluster_groups(raw | {"available_node_types": types}, "x") == [Group("w", 2, 4, 0)]


@pytest.mark.parametrize("workers", ["many", -1, 1.5, None, True])
def test_max_workers_is_a_count(workers: object) -> None:
    with pytest.raises(InputError, match=r"^--cluster x: max_workers: .*; accepted is a count"):
        cluster_groups(capped(workers), "--cluster x")
