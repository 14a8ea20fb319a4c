"""Work over many small items as Ray tasks, a range of items each; results keep their order.

A task is scheduled where there is room, so that a driver neither reads nor holds what it only has
to add up.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import ray

from factory.cluster.capacity import cpus
from factory.recipe import FaultError, InputError

A = TypeVar("A")
B = TypeVar("B")
RANGE = 500  # items of a task
REPORTED = (InputError, FaultError, OSError)  # errors that reach the caller as they are


def over_tasks(
    work: Callable[[Sequence[A]], list[B]], items: Iterable[A], most: int = 0
) -> Iterator[B]:
    """Yield what `work` returns for each range of items, in their order.

    Args:
        work: a function that can be pickled; it returns a result for each item.
        items: they are taken as tasks begin, and never all held.
        most: largest number of tasks at a time, of one CPU each; 0 takes the cluster's CPUs.

    Raises:
        InputError, FaultError, OSError: as `work` raised it.
    """
    waiting: deque[Any] = deque()
    most, left = most or cpus(), iter(items)
    while part := list(islice(left, RANGE)):
        waiting.append(_begun(work, part))
        if len(waiting) > most:
            yield from _result(waiting.popleft())
    while waiting:
        yield from _result(waiting.popleft())


def away(work: Callable[..., B], *arguments: Any) -> B:
    """Return what a function returns as one Ray task; its errors are as those of `over_tasks`."""
    return _result(_begun(work, *arguments))


def _begun(work: Callable[..., Any], *arguments: Any) -> Any:
    return ray.remote(num_cpus=1)(_answer).remote(work, *arguments)


def _result(task: Any) -> Any:
    made, error = ray.get(task)
    if error is not None:
        raise error
    return made


def _answer(work: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    """Return a result or an error; as an exception it would come with Ray's traceback."""
    try:
        return work(*arguments), None
    except REPORTED as error:
        return None, error
