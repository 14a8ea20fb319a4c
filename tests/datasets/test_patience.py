"""Waiting well: results in order, a few items ahead; faults has what is asked for again."""

from collections.abc import Iterator

from factory.datasets.patience import in_order


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
