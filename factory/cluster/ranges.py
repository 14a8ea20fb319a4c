"""Work over many small items, a range of items at a time: here, or as Ray tasks.

Results keep the order of the items. A task is scheduled where there is room, so that a driver
neither reads nor holds what it only has to add up.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

from factory.recipe import FaultError, InputError

A = TypeVar("A")
B = TypeVar("B")
RANGE = 500  # items that are worked on at once
REPORTED = (InputError, FaultError, OSError)  # errors that reach the caller as they are


class InRanges(Protocol):
    """A way to run a function over ranges of items: `alone`, or `over_tasks`."""

    def __call__(
        self, work: Callable[[Sequence[A]], list[B]], items: Iterable[A], *, length: int = 0
    ) -> Iterator[B]:
        """Yield what `work` returns for each range, a result for each item, in their order."""
        ...


def alone(
    work: Callable[[Sequence[A]], list[B]], items: Iterable[A], *, length: int = 0
) -> Iterator[B]:
    """Run a function over ranges of items in this process: an `InRanges`."""
    for part in _cut(items, length):
        yield from work(part)


def over_tasks(
    work: Callable[[Sequence[A]], list[B]],
    items: Iterable[A],
    most: int = 0,
    *,
    length: int = 0,
) -> Iterator[B]:
    """Yield what `work` returns for each range of items, in their order.

    Args:
        work: a function that can be pickled; it returns a result for each item.
        items: they are taken as tasks begin, and never all held.
        most: largest number of tasks at a time, of one CPU each; 0 takes the cluster's CPUs.
        length: number of items of a range; 0 takes `RANGE`.

    Raises:
        InputError, FaultError, OSError: as `work` raised it.
    """
    from factory.cluster.capacity import cpus

    waiting: deque[Any] = deque()
    most = most or cpus()
    for part in _cut(items, length):
        waiting.append(_begun(work, part))
        if len(waiting) > most:
            yield from _result(waiting.popleft())
    while waiting:
        yield from _result(waiting.popleft())


def away(work: Callable[..., B], *arguments: Any) -> B:
    """Return what a function returns as one Ray task; its errors are as those of `over_tasks`."""
    return _result(_begun(work, *arguments))


def _cut(items: Iterable[A], length: int) -> Iterator[list[A]]:
    left = iter(items)
    while part := list(islice(left, length or RANGE)):
        yield part


def _begun(work: Callable[..., Any], *arguments: Any) -> Any:
    import ray

    return ray.remote(num_cpus=1)(_answer).remote(work, *arguments)


def _result(task: Any) -> Any:
    import ray

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
