"""Waiting well: results in order, a few items ahead; faults has what is asked for again."""

from collections.abc import Iterator

import pytest

from factory.datasets import patience
from factory.datasets.patience import BEGGED, FAILED, in_order, patient, said, taken
from factory.recipe import FaultError

SLOW = "AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate."
BODILESS = "AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body."
OLD = "Unable to parse ExceptionName: ExpiredToken Message: The provided token has expired."

LENGTHLESS = (  # rclone 1.75's server, to pyarrow 25
    "When uploading object with key 'a' in bucket 'faces': AWS Error UNKNOWN (HTTP status 411) "
    "during PutObject operation: Unable to parse ExceptionName: MissingContentLength Message: "
    "MissingContentLength"
)


class Far:
    """A remote store whose requests meet errors, and then succeed."""

    url, root = "s3://bucket/far", None

    def __init__(self, *errors: Exception, reason: str = "") -> None:
        self.errors, self.reason = list(errors), reason

    def why(self) -> str:
        return self.reason

    @patient
    def ask(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the pauses that would be made; what other tests left to count is gone."""
    pauses: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    taken()
    return pauses


def test_a_store_that_asks_for_less_gets_longer_and_differing_pauses(paused: list[float]) -> None:
    assert Far(*[OSError(SLOW)] * 9).ask() == "answer"
    longest = [*patience.PAUSES_SECONDS, *patience.SLOW_SECONDS]
    assert all(most / 2 <= pause <= most for pause, most in zip(paused, longest, strict=True))
    others: list[float] = []
    paused.clear()
    for _ in range(8):
        Far(OSError(SLOW)).ask()
    others = paused
    assert len(set(others)) == 8, "actors do not come back together"


def test_how_often_is_counted_once_and_said_with_the_reason(paused: list[float]) -> None:
    Far(OSError(SLOW), OSError("connection lost"), OSError(SLOW)).ask()
    counted = taken()
    assert counted == {BEGGED: 2, FAILED: 1} and not taken()
    assert said(counted) == (
        "3 requests were repeated (2 x it asked to slow down, 1 x it failed for the moment)"
    )


def test_patience_ends(paused: list[float]) -> None:
    with pytest.raises(OSError, match="SLOW_DOWN"):
        Far(*[OSError(SLOW)] * 10).ask()
    assert len(paused) == 9
    paused.clear()
    with pytest.raises(OSError, match="lost"):
        Far(*[OSError("lost")] * 7).ask()
    assert len(paused) == 6


@pytest.mark.parametrize(
    "far", [Far(OSError(OLD)), Far(OSError(BODILESS), reason=OLD)], ids=["said", "asked for"]
)
def test_expired_credentials_are_one_error_at_once(far: Far, paused: list[float]) -> None:
    with pytest.raises(FaultError, match="store s3://bucket/far: its credentials have expired; "):
        far.ask()
    assert paused == []


def test_a_store_without_checksums_behind_the_data_is_one_error_at_once(
    paused: list[float],
) -> None:
    with pytest.raises(FaultError, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        Far(OSError(LENGTHLESS)).ask()
    assert paused == []


def test_what_no_repeat_mends_is_raised_at_once(paused: list[float]) -> None:
    for error in (FileNotFoundError("x"), PermissionError("x"), OSError("AWS Error ACCESS_DENIED")):
        with pytest.raises(type(error)):
            Far(error).ask()
    assert paused == []


def test_in_order_keeps_order_and_stays_lazy() -> None:
    taken = []

    def source() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = in_order(lambda item: item * item, source(), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(taken) <= 7
    assert list(results) == [item * item for item in range(3, 100)]
