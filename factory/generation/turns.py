"""The shards that actors committed, added up as they come, so that memory and time stay small."""

from collections import deque

KEPT = 10_000  # last turns that are kept whole

Turn = tuple[str, float, float, int]  # actor, started, finished (epoch seconds), images


class Turns:
    """Sums over the turns of a run.

    Attributes:
        actors: ids of the actors that had a turn.
        last: the last turns, at most `KEPT`.
    """

    def __init__(self) -> None:
        """Begin with no turn."""
        self.actors: set[str] = set()
        self.last: deque[Turn] = deque(maxlen=KEPT)
        self._count, self._busy = 0, 0.0
        self._first, self._until = float("inf"), float("-inf")

    def append(self, turn: Turn) -> None:
        """Add a turn; the order of turns does not matter."""
        actor, started, finished, _ = turn
        self.actors.add(actor)
        self.last.append(turn)
        self._count += 1
        self._busy += finished - started
        self._first, self._until = min(self._first, started), max(self._until, finished)

    def __len__(self) -> int:
        """Return how many turns there were."""
        return self._count

    @property
    def each(self) -> float:
        """Return the mean seconds of a turn; there must be one."""
        return self._busy / self._count

    @property
    def span(self) -> float:
        """Return the seconds from the first start to the last end; there must be a turn."""
        return self._until - self._first
