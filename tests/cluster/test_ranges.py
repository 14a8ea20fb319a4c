"""Ranges of items as Ray tasks: the order of the items, and errors as they were raised."""

from collections.abc import Iterator, Sequence

import pytest

from factory.cluster import ranges
from factory.cluster.ranges import away, over_tasks
from factory.datasets.patience import alone
from factory.recipe import InputError

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
