"""Ranges of items as Ray tasks: the order of the items, and errors as they were raised."""

from collections.abc import Callable, Iterator, Sequence

import pytest

from factory.cluster import ranges
from factory.cluster.ranges import alone, away, over_tasks
from factory.datasets.manifest import (
    COMMIT,
    MANIFEST,
    REJECTS,
    TAR,
    committed,
    load_manifest,
    shard_file,
)
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.generation.run import finish
from factory.recipe import FaultError, InputError

pytestmark = pytest.mark.ray


def squares(numbers: Sequence[int]) -> list[int]:
    if 13 in numbers:
        raise InputError("recipe field number: 13")
    return [number * number for number in numbers]


def test_results_come_in_the_order_of_the_items_which_are_not_all_held(
    ray_cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RANGE", 3)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20, 42):
            taken.append(number)
            yield number

    found = over_tasks(squares, items(), most=2)
    assert next(found) == 400
    assert len(taken) == 9, "two tasks beside the one whose results are read"
    assert [400, *found] == list(alone(squares, range(20, 42)))
    assert list(over_tasks(squares, [])) == []


def test_an_error_in_a_task_is_that_error(ray_cluster) -> None:
    with pytest.raises(InputError, match=r"^recipe field number: 13$"):
        list(over_tasks(squares, range(20)))
    with pytest.raises(InputError, match=r"^recipe field number: 13$"):
        away(squares, [13])
    assert away(squares, [3]) == [9]


def test_a_dataset_is_merged_and_verified_by_tasks_as_in_one_process(
    ray_cluster, made_dataset: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RANGE", 4)
    store = made_dataset(shard={"identities": 1, "slots": 2})
    whole, names = store.read(MANIFEST), sorted(committed(store))
    assert len(names) == 12
    store.delete(MANIFEST)
    made = away(finish, store, over_tasks)
    assert store.read(MANIFEST) == whole
    assert made == finish(store, alone) == (load_manifest(store).totals, 12)
    assert verify(store, spread=over_tasks) == []
    store.write(shard_file(names[1], TAR), store.read(shard_file(names[2], TAR)))
    store.delete(shard_file(names[5], REJECTS))
    store.write(shard_file(names[9], COMMIT), b"{}")
    faults = verify(store, spread=over_tasks)
    assert [fault.kind for fault in faults][-2:] == ["changed_rejects", "unreadable_manifest"]
    assert faults == verify(store)
    store.delete(shard_file(names[11], COMMIT))
    with pytest.raises(FaultError, match=f"1 planned shards are missing, the first {names[11]}"):
        away(finish, store, over_tasks)
