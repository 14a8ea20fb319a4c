"""Sums that come one turn at a time, against the same sums over all turns."""

from hypothesis import given
from hypothesis import strategies as st

from factory.generation.turns import KEPT, Turns

MOMENT = st.integers(0, 10_000)
TURN = st.tuples(st.sampled_from("abc"), MOMENT, MOMENT, st.integers(0, 9))


@given(st.lists(TURN, min_size=1))
def test_sums_are_those_of_all_turns(turns: list[tuple[str, int, int, int]]) -> None:
    seen = Turns()
    for actor, start, lasted, kept in turns:
        seen.append((actor, float(start), float(start + lasted), kept))
    assert len(seen) == len(seen.last) == len(turns)
    assert seen.actors == {actor for actor, *_ in turns}
    assert seen.each == sum(lasted for _, _, lasted, _ in turns) / len(turns)
    ends = [start + lasted for _, start, lasted, _ in turns]
    assert seen.span == max(ends) - min(start for _, start, *_ in turns)


def test_only_the_last_turns_are_held() -> None:
    seen = Turns()
    for number in range(KEPT + 5):
        seen.append(("a", float(number), number + 1.0, 1))
    assert (len(seen), len(seen.last), seen.last[0][1]) == (KEPT + 5, KEPT, 5.0)
