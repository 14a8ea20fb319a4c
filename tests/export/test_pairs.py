import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from faces import make_pool
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.datasets.compose import compose
from factory.datasets.store import Store
from factory.datasets.tar import read_tar
from factory.evaluation.verification import read_bin
from factory.export.pairs import choose_pairs, read_identity_groups, write_pairs
from factory.recipe import InputError, parse


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(make_pool(tmp_path_factory.mktemp("pool") / "a", 60, 4, world=1, per=20))


@settings(max_examples=30)
@given(st.integers(0, 10), st.integers(1, 3), st.integers(2, 10), st.integers(2, 5))
def test_folds_share_nobody_and_half_of_each_is_genuine(seed, half, folds, images) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(5 * folds) * 7, images))
    pairs = 2 * half * folds
    chosen = choose_pairs(labels, pairs, folds, seed)
    assert len(chosen.rows) == len(chosen.same) == pairs
    people = labels[chosen.rows]
    assert np.array_equal(people[:, 0] == people[:, 1], chosen.same)
    assert (chosen.rows[:, 0] != chosen.rows[:, 1]).all()
    assert len({tuple(sorted(rows)) for rows in chosen.rows.tolist()}) == pairs
    seen: set[int] = set()
    for fold in np.split(np.arange(pairs), folds):
        assert chosen.same[fold].sum() == half
        assert not seen & set(people[fold].ravel().tolist())
        seen |= set(people[fold].ravel().tolist())
        genuine = people[fold][chosen.same[fold]][:, 0]
        assert len(set(genuine)) == half  # five people a fold: each once before any twice
    again = choose_pairs(labels, pairs, folds, seed)
    assert np.array_equal(again.rows, chosen.rows)


def test_genuine_pairs_are_taken_until_none_is_left() -> None:
    labels = np.repeat([1, 2, 3, 4], 3)  # two people a fold, three pairs each
    chosen = choose_pairs(labels, 24, 2)
    assert chosen.same.sum() == 12
    with pytest.raises(InputError, match="a fold of 2 identities has 6 genuine pairs, 7 are"):
        choose_pairs(labels, 28, 2)
    with pytest.raises(InputError, match="a fold of 1 identities has too few impostors"):
        choose_pairs(np.repeat([1, 2], 9), 4, 2)
    with pytest.raises(InputError, match="pairs: 30 in 10 folds; accepted is a multiple of 20"):
        choose_pairs(labels, 30)


def test_impostors_are_of_one_group_when_groups_are_given() -> None:
    labels = np.repeat(np.arange(40), 3)
    groups = {n: "even" if n % 2 == 0 else "odd" for n in range(40)}
    chosen = choose_pairs(labels, 40, 2, groups=groups)
    impostors = labels[chosen.rows[~chosen.same]]
    assert (impostors[:, 0] % 2 == impostors[:, 1] % 2).all()
    free = labels[choose_pairs(labels, 40, 2).rows]
    assert (free[:, 0] % 2 != free[:, 1] % 2).any()
    with pytest.raises(InputError, match="identity 3 has no group"):
        choose_pairs(labels, 40, 2, groups={0: "a", 1: "a", 2: "a"})
    with pytest.raises(InputError, match="too few impostors of one group"):
        choose_pairs(labels, 40, 2, groups={n: str(n) for n in range(40)})


def test_our_reader_and_plain_pickle_read_the_same_images(store: Store, tmp_path: Path) -> None:
    written = write_pairs(store, tmp_path / "val.bin", 40, seed=2, skip=10)
    ours = read_bin(tmp_path / "val.bin")
    images, same = pickle.loads((tmp_path / "val.bin").read_bytes())
    assert tuple(images) == ours.images and same == ours.same.tolist()
    assert (written.pairs, sum(same), len(images)) == (40, 20, 80)
    owner: dict[bytes, int] = {}
    assert store.root is not None
    for path in store.root.glob("shards/*.tar"):
        owner |= {parts["jpg"]: int(parts["cls"]) for _, parts in read_tar(path)}
    people = [owner[image] for image in images]
    assert min(people) >= 10 and len(set(people)) == written.identities
    assert [a == b for a, b in zip(people[::2], people[1::2], strict=True)] == same
    again = write_pairs(store, tmp_path / "again.bin", 40, seed=2, skip=10)
    assert again.sha256 == written.sha256
    assert write_pairs(store, tmp_path / "other.bin", 40, seed=3, skip=10).sha256 != again.sha256


def test_what_a_composition_holds_is_left_out(store: Store, tmp_path: Path) -> None:
    views = {"a": {"url": str(store.root), "identities": 25}}
    raw = {"kind": "compose", "name": "view", "seed": 1, "pools": views}
    compose(parse(raw), Store(tmp_path / "view"))  # type: ignore[arg-type]
    view = Store(tmp_path / "view")
    left_out = write_pairs(store, tmp_path / "one.bin", 40, without=view)
    assert left_out.sha256 == write_pairs(store, tmp_path / "two.bin", 40, skip=25).sha256
    inside = write_pairs(view, tmp_path / "in.bin", 20, folds=5)
    assert inside.identities <= 25
    other = Store(make_pool(tmp_path / "b", 30, 2, world=2))
    with pytest.raises(InputError, match="this composition holds no image of"):
        write_pairs(other, tmp_path / "x.bin", 20, without=view)


def test_people_whom_another_pool_of_a_composition_shows_are_left_out(tmp_path: Path) -> None:
    kept = tuple(n for n in range(40) if n % 5)  # the second's bank dropped every fifth candidate
    one = make_pool(tmp_path / "one", 40, 3, world=1, source="gallery")
    two = make_pool(tmp_path / "two", 32, 3, world=2, source="gallery", candidates=kept)
    pools = {"one": {"url": one, "identities": 10}, "train": {"url": make_pool(
        tmp_path / "train", 9, 3, world=3, source="train")}}  # fmt: skip
    raw = {"kind": "compose", "name": "view", "seed": 1, "pools": pools}
    compose(parse(raw), Store(tmp_path / "view"))  # type: ignore[arg-type]
    view = Store(tmp_path / "view")
    # Candidates 0 to 9 are the composition's, and eight of them are the second's first labels.
    left_out = write_pairs(Store(two), tmp_path / "a.bin", 40, without=view)
    assert left_out.sha256 == write_pairs(Store(two), tmp_path / "b.bin", 40, skip=8).sha256


def test_groups_are_read_from_json_and_csv(tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(json.dumps({"3": "a", "4": "b"}))
    (tmp_path / "g.csv").write_text("identity,group\n3,a\n4,b\n")
    right = {3: "a", 4: "b"}
    assert read_identity_groups(tmp_path / "g.json") == right
    assert read_identity_groups(tmp_path / "g.csv") == right
    (tmp_path / "bad.csv").write_text("who,group\n3,a\n")
    (tmp_path / "long.csv").write_text(f"identity,group\n3,{'a' * 200_000}\n")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    for name in ("bad.csv", "long.csv", "deep.json", "bytes.json", "none.json"):
        with pytest.raises(InputError, match=r"--groups .*; accepted is a \.json"):
            read_identity_groups(tmp_path / name)
