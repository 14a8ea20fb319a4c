"""Retries: requests to a store behind a URL that fail for the moment are repeated."""

import functools
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from factory.recipe import public

LOCAL_WORKERS, REMOTE_WORKERS = 2, 8
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # longest pauses between repeated requests
FINAL = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "NO_SUCH_BUCKET")
A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")
RANGE = 500  # items that are handed to a function at once


class InRanges(Protocol):
    """A way to run a function over ranges of items: in this process, or as tasks elsewhere."""

    def __call__(self, work: Callable[[Sequence[A]], list[B]], items: Iterable[A]) -> Iterator[B]:
        """Yield what `work` returns for each range, a result for each item, in their order."""
        ...


def ranges(items: Iterable[A]) -> Iterator[list[A]]:
    """Yield the items as lists of `RANGE`; the last one may be shorter."""
    left = iter(items)
    while part := list(islice(left, RANGE)):
        yield part


def alone(work: Callable[[Sequence[A]], list[B]], items: Iterable[A]) -> Iterator[B]:
    """Run a function over ranges of items in this process: an `InRanges`."""
    for part in ranges(items):
        yield from work(part)


def patient(method: Callable[Concatenate[Any, P], B]) -> Callable[Concatenate[Any, P], B]:
    """Make a store's method repeat itself if a remote store fails with a passing error.

    The object must have `url` and `root`; `root` is None if the store is remote.
    """

    @functools.wraps(method)
    def repeated(self: Any, *arguments: P.args, **named: P.kwargs) -> B:
        for pause in PAUSES_SECONDS if self.root is None else ():
            try:
                return method(self, *arguments, **named)
            except OSError as error:
                final = isinstance(error, (FileNotFoundError, PermissionError))
                if final or any(word in str(error) for word in FINAL):
                    raise
                wait = pause * random.uniform(0.5, 1.0)
                print(f"{self.url}: {public(str(error))}; again in {wait:.1f} s", flush=True)
                time.sleep(wait)
        return method(self, *arguments, **named)

    return repeated


def in_order(function: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[B]:
    """Yield `function(item)` for each item in order; threads compute a few items in advance."""
    pending: deque[Future[B]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
