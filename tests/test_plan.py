import re
from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from factory.plan import Shard, describe, sample_key, shards, totals
from factory.recipe import GenerateRecipe, parse

Extent = tuple[int, int]
EXTENTS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=4).map(
    lambda steps: [
        (max(n for n, _ in steps[: i + 1]), max(m for _, m in steps[: i + 1]))
        for i in range(len(steps))
    ]
)


def recipe(extent: Extent, identities: int, slots: int | None) -> GenerateRecipe:
    made = parse(
        {
            "kind": "generate",
            "name": "planned",
            "seed": 1,
            "system": "studio",
            "licence": "CC0-1.0",
            "image": {"size": 64},
            "identities": {"count": extent[0], "images_each": extent[1], "source": "train"},
            "shard": {"identities": identities, "slots": slots},
            "workers": {"max": 2},
            "cost": {"seconds_per_image": [0.5, 1.5], "source": "a guess", "bytes_per_image": 1000},
        }
    )
    assert isinstance(made, GenerateRecipe)
    return made


@settings(deadline=None)
@given(EXTENTS, st.integers(1, 7), st.one_of(st.none(), st.integers(1, 12)))
def test_growing_only_adds_shards_and_covers_each_slot_once(
    extents: list[Extent], identities: int, slots: int | None
) -> None:
    slots = None if slots is None else min(slots, extents[0][1])
    before: list[Shard] = []
    for step, extent in enumerate(extents):
        now = list(shards(recipe(extent, identities, slots), tuple(extents[:step])))
        assert now[: len(before)] == before
        covered = Counter(position for shard in now for position in shard.slots)
        assert set(covered.values()) == {1}
        assert set(covered) == {(i, s) for i in range(extent[0]) for s in range(extent[1])}
        assert len({shard.name for shard in now}) == len(now)
        before = now


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 9), st.integers(1, 20))
def test_totals_are_what_the_shards_add_up_to(
    count: int, images: int, identities: int, slots: int
) -> None:
    made = recipe((count, images), identities, min(slots, images))
    planned, summed = list(shards(made)), totals(made)
    assert summed.shards == len(planned)
    assert summed.images == sum(shard.samples for shard in planned) == count * images
    assert summed.actor_hours == (count * images * 0.5 / 3600, count * images * 1.5 / 3600)
    assert summed.source == "a guess"


def test_the_planned_bytes_are_those_of_a_tar(tmp_path) -> None:
    from factory.datasets.tar import write_tar

    made = recipe((20, 5), 20, None)
    side = b"x" * 250
    _, size = write_tar(
        tmp_path / "a.tar",
        (
            (sample_key(i, s), {"jpg": b"x" * 1000, "cls": b"1", "json": side})
            for i in range(20)
            for s in range(5)
        ),
    )
    assert abs(totals(made).bytes - size) < 0.02 * size


def test_names_and_keys() -> None:
    shard = Shard(10, 20, 0, 8)
    assert shard.name == "i0000010-0000020-s0000-0008"
    assert shard.samples == 80 == len(list(shard.slots))
    keys = [sample_key(*position) for position in shard.slots]
    assert keys[0] == "0000010_0000"
    assert all(one < other for one, other in pairwise(keys))
    assert all(re.fullmatch("[A-Za-z0-9_-]+", key) for key in keys)


@given(
    extent=st.tuples(st.integers(1, 30), st.integers(1, 12)),
    identities=st.integers(1, 9),
    slots=st.integers(1, 12),
)
def test_the_last_shard_is_that_of_the_list(extent: Extent, identities: int, slots: int) -> None:
    made = recipe(extent, identities, min(slots, extent[1]))
    first, *_, last = (*shards(made), *list(shards(made))[-1:])
    assert describe(made)["shards"].endswith(f": {first.name} to {last.name}")


def test_ten_million_people_are_planned_by_arithmetic() -> None:
    made = recipe((10_000_000, 10_000), 1, None)
    assert describe(made)["shards"] == (
        "10,000,000: i0000000-0000001-s0000-10000 to i9999999-10000000-s0000-10000"
    )


def test_a_plan_says_what_it_reserves_and_what_gpus_it_costs() -> None:
    base = recipe((100, 10), 10, None)
    assert describe(base)["reserves"] == "2 makers x 1 CPU" and "GPU-hours" not in describe(base)
    workers = {"min": 2, "max": 8, "num_cpus": 2, "num_gpus": 0.5, "committers": 3}
    wide = parse(base.model_dump(mode="json") | {"workers": workers})
    assert isinstance(wide, GenerateRecipe)
    told = describe(wide)
    assert told["reserves"] == "2 to 8 makers x 2 CPU + 0.5 GPU, 3 committers x 1 CPU"
    low, high = totals(wide).actor_hours
    assert told["GPU-hours"] == f"{low * 30:.1f} min to {high * 30:.1f} min"
