"""Retries: requests to a store behind a URL that fail for the moment are repeated."""

import functools
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar

from factory.recipe import FaultError, public

LOCAL_WORKERS, REMOTE_WORKERS = 2, 8
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # longest pauses between repeated requests
SLOW_SECONDS = (30.0, 30.0, 30.0)  # further ones for a store that is alive and asks for less
FINAL = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "NO_SUCH_BUCKET")
SLOW = ("SLOW_DOWN", "SlowDown", "Slow Down", "THROTTLING", "HTTP status 503", "HTTP status 429")
EXPIRED = ("ExpiredToken", "EXPIRED_TOKEN", "TokenRefreshRequired", "InvalidToken")
SUMLESS = "MissingContentLength"  # of a store that knows no checksum behind the data
BARE = "(HTTP status 400) during HeadObject"  # an answer without a body cannot say why
BEGGED, FAILED = "asked to slow down", "failed for the moment"  # why a request is repeated
A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")

_repeats: Counter[str] = Counter()
_counting = threading.Lock()


def taken() -> Counter[str]:
    """Return how often requests of this process were repeated, by why, since the last call."""
    with _counting:
        found = Counter(_repeats)
        _repeats.clear()
    return found


def said(repeats: Counter[str]) -> str:
    """Return in words how often requests were repeated, and why."""
    reasons = ", ".join(f"{count} x it {why}" for why, count in sorted(repeats.items()))
    return f"{repeats.total()} requests were repeated ({reasons})"


def patient(method: Callable[Concatenate[Any, P], B]) -> Callable[Concatenate[Any, P], B]:
    """Make a store's method repeat itself if a remote store fails with a passing error.

    The object must have `url` and `root`; `root` is None if the store is remote. Its `why` asks the
    store again in a way that is answered with a reason. A store that asks to slow down is given
    longer, and pauses differ, so that many actors do not return together. Credentials that are no
    longer valid, and uploads in a form that the store does not know, raise FaultError at once.
    """

    @functools.wraps(method)
    def repeated(self: Any, *arguments: P.args, **named: P.kwargs) -> B:
        pauses = deque(PAUSES_SECONDS if self.root is None else ())
        slow = deque(SLOW_SECONDS)
        while True:
            try:
                return method(self, *arguments, **named)
            except OSError as error:
                text = str(error)
                final = isinstance(error, (FileNotFoundError, PermissionError))
                if self.root is not None or final or any(word in text for word in FINAL):
                    raise
                if BARE in text:
                    text = self.why() or text
                if any(word in text for word in EXPIRED):
                    raise expired(self.url) from error
                if SUMLESS in text:
                    raise FaultError(
                        f"store {self.url}: it refuses uploads with a checksum behind the data; "
                        "accepted are uploads from nodes with the environment variable "
                        "AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
                    ) from error
                why = BEGGED if any(word in text for word in SLOW) else FAILED
                if why == BEGGED and not pauses and slow:
                    pauses.append(slow.popleft())
                if not pauses:
                    raise
                with _counting:
                    _repeats[why] += 1
                wait = pauses.popleft() * random.uniform(0.5, 1.0)
                print(f"{self.url}: {public(text)}; again in {wait:.1f} s", flush=True)
                time.sleep(wait)

    return repeated


def expired(url: str) -> FaultError:
    """Return the error of a store whose credentials are no longer valid."""
    return FaultError(f"store {url}: its credentials have expired; new ones are needed")


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
