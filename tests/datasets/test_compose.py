"""Compositions against what their pools hold, read by tarfile, and against brute force."""

import hashlib
import json
import subprocess
import sys
import tarfile
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from faces import make_pool
from hypothesis import given
from hypothesis import strategies as st

from factory.datasets.compose import TooFewError, budget, compose, select
from factory.datasets.composition import (
    COMPOSITION,
    INDEX,
    load_composition,
    read_rows,
    source_digest,
)
from factory.datasets.feed import Feed
from factory.datasets.index import Index
from factory.datasets.materialise import materialise
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.recipe import ComposeRecipe, InputError, PoolView, Weights, parse

SIZE = 32


def recipe(**changes: Any) -> ComposeRecipe:
    made = parse({"kind": "compose", "name": "view", "seed": 3, **changes})
    assert isinstance(made, ComposeRecipe)
    return made


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three datasets: twelve people with six images (two lost), nine with four, five with three."""
    home = tmp_path_factory.mktemp("pools")
    return {
        "a": make_pool(home / "a", 12, 6, world=1, per=5, lost=((2, 1), (2, 4))),
        "b": make_pool(home / "b", 9, 4, world=2, per=2),
        "c": make_pool(home / "c", 5, 3, world=3),
    }


def files(url: str) -> dict[str, bytes]:
    """Return every file of a dataset's tars by name, as tarfile reads them."""
    found = {}
    for path in sorted(Path(url).glob("shards/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


def rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / INDEX).to_pylist()


def taken(out: Path) -> Counter[tuple[str, int, int]]:
    """Count the images of each (pool, identity in the pool, label)."""
    return Counter((row["pool"], row["identity"], row["label"]) for row in rows(out))


def test_every_row_is_the_image_label_and_sidecar_that_tarfile_reads(pools, tmp_path) -> None:
    made = compose(
        recipe(
            pools={
                "real": {"url": pools["c"], "real": True},
                "ours": {"url": pools["a"], "images_each": 4},
                "b": {"url": pools["b"], "identities": 3},
            }
        ),
        Store(tmp_path),
    )
    urls = {"real": pools["c"], "ours": pools["a"], "b": pools["b"]}
    truth = {name: files(url) for name, url in urls.items()}
    found = rows(tmp_path)
    for row in found:
        held = truth[row["pool"]]
        tar = (Path(urls[row["pool"]]) / "shards" / f"{row['shard']}.tar").read_bytes()
        assert tar[row["offset"] :][: row["size"]] == held[f"{row['key']}.jpg"]
        assert tar[row["sidecar_offset"] :][: row["sidecar_size"]] == held[f"{row['key']}.json"]
        assert row["identity"] == int(held[f"{row['key']}.cls"])
        assert row["cosine"] is None and row["repeat"] == 1
    labels = {(row["pool"], row["identity"]): row["label"] for row in found}
    people = [("b", n) for n in range(3)] + [("ours", n) for n in range(12)]
    people += [("real", n) for n in range(5)]  # by pool's name, then identity
    assert labels == {who: label for label, who in enumerate(people)}
    assert (made.identities, made.images) == (20, 3 * 4 + 12 * 4 + 15)
    assert [name for name, pool in made.pools.items() if pool.real] == ["real"]
    assert Counter(row["pool"] for row in found) == {"b": 12, "ours": 48, "real": 15}
    first = [row["key"] for row in found if row["pool"] == "ours" and row["identity"] == 2]
    assert first == ["0000002_0000", "0000002_0002", "0000002_0003", "0000002_0005"]
    assert json.loads((tmp_path / COMPOSITION).read_text()) == made.model_dump(mode="json")


def test_equal_recipes_give_equal_bytes_and_the_pools_order_is_no_matter(pools, tmp_path) -> None:
    views = {name: {"url": url, "draw": "random", "images_each": 2} for name, url in pools.items()}
    one = compose(recipe(pools=views), Store(tmp_path / "one"))
    turned = dict(reversed(views.items()))
    two = compose(recipe(pools=turned), Store(tmp_path / "two"))
    again = compose(recipe(pools=views), Store(tmp_path / "one"))
    assert one == two == again
    assert (tmp_path / "one" / INDEX).read_bytes() == (tmp_path / "two" / INDEX).read_bytes()
    other = compose(recipe(pools=views, seed=4), Store(tmp_path / "three"))
    assert other.content_digest != one.content_digest


def test_a_random_draw_is_seeded_and_a_larger_one_holds_it(pools, tmp_path) -> None:
    def keys(each: int, seed: int = 3) -> set[str]:
        out = tmp_path / f"{each}-{seed}"
        view = {"url": pools["a"], "draw": "random", "images_each": each}
        compose(recipe(seed=seed, pools={"a": view}), Store(out))
        found = rows(out)
        assert set(Counter(row["identity"] for row in found).values()) == {each}
        return {row["key"] for row in found}

    assert keys(2) < keys(3) < keys(4)
    assert keys(2) != keys(2, seed=4)
    assert keys(2) != {f"{n:07d}_{slot:04d}" for n in range(12) for slot in range(2)}


@given(
    st.integers(1, 10_000),
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1e3), min_size=1),
)
def test_shares_follow_the_weights_and_sum_to_the_budget(images, weights) -> None:
    total = sum(weights.values())
    if total < 1e-6:
        return
    views = {name: {"url": "x", "weight": weight} for name, weight in weights.items()}
    shares = budget(recipe(images=images, pools=views))
    assert sum(share for share in shares.values() if share is not None) == images
    for name, share in shares.items():
        assert share is not None and abs(share - images * weights[name] / total) < 1
        assert share == 0 or weights[name] > 0


def test_a_budget_is_spent_identity_by_identity_or_in_rounds(pools, tmp_path) -> None:
    whole = {"url": pools["a"], "images_each": 4, "weight": 3}
    spread = {"url": pools["b"], "weight": 1}
    compose(recipe(images=56, pools={"a": whole, "b": spread}), Store(tmp_path))
    each = Counter((row["pool"], row["identity"]) for row in rows(tmp_path))
    assert [each["a", n] for n in range(12)] == [4] * 10 + [2, 0]
    assert [each["b", n] for n in range(9)] == [2] * 5 + [1] * 4


def test_a_pool_of_weight_0_takes_no_part_and_need_not_exist(pools, tmp_path) -> None:
    views = {"a": {"url": pools["a"]}, "gone": {"url": "nowhere", "weight": 0}}
    made = compose(recipe(images=10, pools=views), Store(tmp_path))
    assert list(made.pools) == ["a"] and made.images == 10


def test_repeats_count_in_the_budget(pools, tmp_path) -> None:
    views = {
        "faces": {"url": pools["a"], "images_each": 2, "weight": 2},
        "inquiries": {"url": pools["b"], "images_each": 1, "repeat": 5, "weight": 4},
    }
    made = compose(recipe(images=36, pools=views), Store(tmp_path))
    assert (made.images, made.images_with_repeats) == (12 + 4, 12 + 20)
    assert made.pools["inquiries"].share == 24
    assert {row["repeat"] for row in rows(tmp_path) if row["pool"] == "inquiries"} == {5}


def test_identities_of_another_pool_share_its_labels(pools, tmp_path) -> None:
    views = {
        "all": {"url": pools["a"], "identities": 4, "images_each": 3},
        "again": {"url": pools["a"], "identities_of": "all", "images_each": 1, "repeat": 2},
    }
    made = compose(recipe(pools=views), Store(tmp_path))
    assert made.identities == 4
    assert taken(tmp_path) == {("again", n, n): 1 for n in range(4)} | {
        ("all", n, n): 3 for n in range(4)
    }


def test_no_person_gets_two_labels_where_pools_draw_the_same_people(tmp_path) -> None:
    # The second's bank dropped candidates 1 and 3, so that its labels are other people's numbers.
    kept = [0, 2, 4, 5, 6, 7]
    urls = {
        "a": make_pool(tmp_path / "a", 6, 2, world=1, source="gallery"),
        "b": make_pool(tmp_path / "b", 6, 2, world=2, source="gallery", candidates=kept),
        "c": make_pool(tmp_path / "c", 6, 2, world=3, source="train"),
    }
    said: list[str] = []
    views = {name: {"url": url, "images_each": 2} for name, url in urls.items()}
    views["a"] |= {"identities": 3}  # candidates 0, 1 and 2
    made = compose(recipe(pools=views), Store(tmp_path / "all"), said.append)
    of = {"a": range(6), "b": kept, "c": range(100, 106)}
    labels = {(pool, of[pool][n]): label for pool, n, label in taken(tmp_path / "all")}
    assert sorted(candidate for pool, candidate in labels if pool == "b") == [4, 5, 6, 7]
    assert len({candidate for _, candidate in labels}) == len(labels) == made.identities == 13
    assert said == ["pool b draws the same people as a, so it gives others than these do"]
    # In one label: each of the two pools' images of a person.
    views["b"] = {"url": urls["b"], "identities_of": "a"}
    compose(recipe(pools=views), Store(tmp_path / "one"))
    found = {(pool, of[pool][n]): label for pool, n, label in taken(tmp_path / "one")}
    assert {key: label for key, label in found.items() if key[0] != "c"} == {
        ("a", 0): 0, ("a", 1): 1, ("a", 2): 2, ("b", 0): 0, ("b", 2): 2,
    }  # fmt: skip
    views["b"] = {"url": urls["b"], "identities": 5}
    with pytest.raises(TooFewError, match="only 4 qualify; people whom a has already are not"):
        compose(recipe(pools=views), Store(tmp_path / "few"))


def test_least_images_leaves_out_people_with_fewer(pools, tmp_path) -> None:
    view = {"url": pools["a"], "least_images": 6, "identities": 11}
    made = compose(recipe(pools={"a": view}), Store(tmp_path))
    assert {row["identity"] for row in rows(tmp_path)} == set(range(12)) - {2}
    assert made.pools["a"].removed.in_small_identities == 4


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small recognizer with fresh weights, as a recipe names it."""
    import torch

    from factory.recipe import Backbone
    from factory.recognition.backbones import make_backbone
    from factory.recognition.recognizers import save_recognizer

    torch.manual_seed(5)
    backbone = Backbone(name="iresnet", embedding_size=8, widths=(4, 4, 4, 4), depths=(1, 1, 1, 1))
    path = tmp_path_factory.mktemp("recognizer") / "recognizer.safetensors"
    module = make_backbone(backbone, SIZE)
    save_recognizer(path, module.state_dict(), backbone, SIZE, "small", "CC0-1.0")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"location": str(path), "sha256": sha256, "licence": "CC0-1.0"}


def load_recognizer(weights: Weights) -> Any:
    from factory.recognition import recognizers

    return recognizers.checked_recognizer(weights)


def cosines_by_hand(url: str, location: str) -> dict[str, float]:
    """Compute each image's cosine to its leave-one-out centre, image by image."""
    found, network = files(url), load_recognizer(Weights(location=location))
    vectors = {}
    for name in sorted(found):
        if name.endswith(".jpg"):
            vector = network.embed(simplejpeg.decode_jpeg(found[name])[None])[0].astype(np.float64)
            vectors[name[:-4]] = vector / np.linalg.norm(vector)
    cosines = {}
    for key, vector in vectors.items():
        others = [v for k, v in vectors.items() if k[:7] == key[:7] and k != key]
        centre = np.mean(others, axis=0)
        cosines[key] = float(vector @ centre / np.linalg.norm(centre))
    return cosines


def test_bands_agree_with_brute_force_and_share_out_the_pool(pools, recognizer, tmp_path) -> None:
    truth = cosines_by_hand(pools["a"], recognizer["location"])
    low, high = np.quantile(list(truth.values()), [0.3, 0.7]) + 1e-9
    seen: list[str] = []
    for name, band in (("low", (-1, low)), ("mid", (low, high)), ("high", (high, 1))):
        view = {"url": pools["a"], "centre_band": [float(edge) for edge in band]}
        made = compose(
            recipe(recognizer=recognizer, pools={"a": view}),
            Store(tmp_path / name),
            load=load_recognizer,
        )
        found = {row["key"]: row["cosine"] for row in rows(tmp_path / name)}
        right = {k for k, c in truth.items() if band[0] <= c < band[1] or (band[1] == 1 <= c)}
        assert set(found) == right
        assert all(abs(found[key] - truth[key]) < 1e-5 for key in found)
        removed = made.pools["a"].removed
        assert removed.below_band == sum(c < band[0] for c in truth.values())
        assert removed.above_band == (
            0 if name == "high" else sum(c >= band[1] for c in truth.values())
        )
        assert made.models[-1].sha256 == recognizer["sha256"]
        seen += found
    assert sorted(seen) == sorted(truth)


def test_kept_embeddings_are_enough_and_torch_stays_away(
    pools, recognizer, cache, tmp_path
) -> None:
    raw = {
        "kind": "compose",
        "name": "view",
        "seed": 3,
        "recognizer": recognizer,
        "pools": {"b": {"url": pools["b"], "centre_band": [-1, 1]}},
    }
    made = recipe(**{k: v for k, v in raw.items() if k not in ("kind", "name", "seed")})
    store = Store(tmp_path / "one")
    first = compose(made, store, load=load_recognizer)
    code = (
        "import json, sys\nfrom factory.datasets.compose import compose\n"
        "from factory.recipe import parse\nfrom factory.datasets.store import Store\n"
        "made = compose(parse(json.loads(sys.argv[1])), Store(sys.argv[2]))\n"
        "print(made.content_digest, [m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(raw), tmp_path / "two"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == f"{first.content_digest} []", done.stderr
    assert (tmp_path / "one" / INDEX).read_bytes() == (tmp_path / "two" / INDEX).read_bytes()


def test_a_person_of_one_image_has_no_centre(recognizer, tmp_path) -> None:
    lost = ((1, 0), (1, 1))
    url = make_pool(tmp_path / "pool", 3, 3, world=8, lost=lost)
    view = {"url": url, "centre_band": [-1, 1]}
    asked, out = recipe(recognizer=recognizer, pools={"a": view}), Store(tmp_path / "out")
    made = compose(asked, out, load=load_recognizer)
    assert made.pools["a"].removed.no_centre == 1
    assert {row["identity"] for row in rows(tmp_path / "out")} == {0, 2}


def faults(pools: dict[str, str], home: Path) -> dict[str, tuple[dict[str, Any], str]]:
    a, b = {"url": pools["a"]}, {"url": pools["b"]}
    large = make_pool(home / "large", 2, 2, world=9, size=64)
    return {
        "digest": (
            {"pools": {"a": {**a, "content_digest": "f" * 16}}},
            r"pools.a.content_digest: f{16}, but .* has 0{15}1",
        ),
        "nowhere": ({"pools": {"a": {"url": str(home / "no")}}}, r"pools.a.url: .*no finished"),
        "credentials": (
            {"pools": {"a": {"url": "s3://key:secret@bucket/x"}}},
            r"pools.a.url: s3://bucket/x holds credentials",
        ),
        "twice": ({"pools": {"a": a, "z": a}}, r"pools.z.url: .*identities_of: a gives them one"),
        "sizes": (
            {"pools": {"a": a, "large": {"url": large}}},
            r"pools.large.url: its images have 64 pixels, those of pool a have 32",
        ),
        "identities": (
            {"pools": {"b": {**b, "identities": 10}}},
            r"pools.b.identities: 10, but only 9 ",
        ),
        "least": ({"pools": {"b": {**b, "least_images": 5}}}, r"pools.b: no image qualifies"),
        "budget": (
            {"images": 40, "pools": {"b": b}},
            r"images: pool b has a share of 40 of them, but 36 images of 9 identities qualify",
        ),
        "budget cuts identities": (
            {"images": 10, "pools": {"b": {**b, "identities": 5, "images_each": 4}}},
            r"pools.b.identities: 5, but the pool's share of 10 images is used up after 3",
        ),
        "share of the other": (
            {"images": 4, "pools": {"a": {**a, "weight": 1e-3}, "b": {**b, "identities_of": "a"}}},
            r"pools.b.identities_of: a has no share of 4 images",
        ),
        "repeat": (
            {"images": 4, "pools": {"b": {**b, "repeat": 5}}},
            r"pools.b.repeat: 5, but the pool's share is only 4 images",
        ),
        "weight": ({"pools": {"b": {**b, "weight": 2}}}, r"images is missing; pools.b.weight"),
        "weights": ({"images": 4, "pools": {"b": {**b, "weight": 0}}}, r"every weight is 0"),
        "recognizer": (
            {"pools": {"b": {**b, "centre_band": [0, 1]}}},
            r"recognizer is missing; pools.b.centre_band",
        ),
        "band": (
            {"pools": {"b": {**b, "centre_band": [0.5, 0.5]}}},
            r"pools.b: centre_band is \[0.5, 0.5\], the first must be the smaller one",
        ),
        "stranger": ({"pools": {"b": {**b, "identities_of": "q"}}}, r"identities_of is 'q'"),
        "name": ({"pools": {"b/c": b}}, r"pools: the name 'b/c'"),
        "field": ({"pools": {"b": {**b, "ids": 3}}}, r"pools.b.ids: unknown; accepted: .*identi"),
        "none": ({"pools": {}}, r"pools"),
    }


def test_mistakes_are_named_and_nothing_is_written(pools, tmp_path) -> None:
    for name, (changes, words) in faults(pools, tmp_path / "pools").items():
        with pytest.raises(InputError, match=words):
            compose(recipe(**changes), Store(tmp_path / "out"))
        assert not (tmp_path / "out").exists(), name


def test_a_folder_keeps_its_composition(pools, tmp_path) -> None:
    url = make_pool(tmp_path / "pool", 4, 2, world=5)
    out = Store(tmp_path / "out")
    compose(recipe(pools={"a": {"url": url}}), out)
    with pytest.raises(InputError, match="composition of another recipe"):
        compose(recipe(seed=9, pools={"a": {"url": url}}), out)
    make_pool(tmp_path / "pool", 6, 2, world=5, per=2)
    with pytest.raises(InputError, match="pools have grown since"):
        compose(recipe(pools={"a": {"url": url}}), out)
    with pytest.raises(InputError, match=r"holds manifest\.json and no composition\.json"):
        compose(recipe(pools={"a": {"url": url}}), Store(url))


def test_a_damaged_index_is_refused(pools, tmp_path) -> None:
    out = Store(tmp_path)
    made = compose(recipe(pools={"c": {"url": pools["c"]}}), out)
    assert len(read_rows(out, load_composition(out))) == 15
    (tmp_path / INDEX).write_bytes(b"x")
    with pytest.raises(InputError, match="compose it again"):
        read_rows(out, made)
    assert compose(recipe(pools={"c": {"url": pools["c"]}}), out) == made
    assert len(read_rows(out, made)) == 15
    with pytest.raises(InputError, match="no composition there"):
        load_composition(Store(pools["c"]))


def test_remote_pools_are_composed_and_read_where_they_lie(
    s3, cache, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    home = (s3 % tmp_path.name).replace("a-key:a-secret@", "")
    local = make_pool(tmp_path / "near", 6, 3, world=6, per=2)
    far = home.replace("?", "/pool?")
    for path in sorted(Path(local).rglob("*")):
        if path.is_file():
            Store(far).put(path, path.relative_to(local).as_posix())
    view = {"identities": 3, "images_each": 2}
    out = Store(home.replace("?", "/view?"))
    made = compose(recipe(pools={"a": {"url": far, **view}}), out)
    near = compose(recipe(pools={"a": {"url": local, **view}}), Store(tmp_path / "view"))
    assert made.content_digest == near.content_digest
    assert made.index_sha256 == near.index_sha256
    feeds = [
        Feed([url], 3, 1, SIZE) for url in (home.replace("?", "/view?"), str(tmp_path / "view"))
    ]
    for one, two in zip(*(feed.batches(0, 4) for feed in feeds), strict=True):
        assert one.keys == two.keys and np.array_equal(one.images, two.images)
    copied = list((cache / "shards").iterdir())
    assert len(copied) == 2  # of three: no more than the composition needs
    to = Store(home.replace("?", "/made?"))
    assert materialise(out, to).totals.kept == 6
    assert verify(to) == []


def test_a_source_is_named_by_its_content(pools, tmp_path) -> None:
    made = compose(recipe(pools={"c": {"url": pools["c"]}}), Store(tmp_path))
    assert source_digest(Store(tmp_path)) == made.content_digest
    assert source_digest(Store(pools["c"])) == f"{3:016x}"
    with pytest.raises(InputError, match="no dataset there"):
        source_digest(Store(tmp_path / "nowhere"))


def naive(
    labels: list[int], identities: int | None, each: int | None, least: int, share: int | None
) -> list[int] | None:
    """Choose rows by plain loops; None where too few qualify."""
    people = [who for who in sorted(set(labels)) if labels.count(who) >= least]
    if identities is not None:
        if len(people) < identities:
            return None
        people = people[:identities]
    queues = [[row for row, label in enumerate(labels) if label == who][:each] for who in people]
    if share is None:
        return sorted(chain(*queues))
    if each is not None:
        order = list(chain(*queues))
    else:
        turns = max(map(len, queues), default=0)
        order = [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)]
    met = {labels[row] for row in order[:share]}
    if len(order) < share or (identities is not None and len(met) < identities):
        return None
    return sorted(order[:share])


@given(
    st.lists(st.sampled_from([3, 5, 8, 900]), min_size=1, max_size=25),
    st.none() | st.integers(1, 4),
    st.none() | st.integers(1, 4),
    st.integers(1, 3),
    st.none() | st.integers(1, 20),
)
def test_selecting_agrees_with_plain_loops(labels, identities, each, least, share) -> None:
    count = len(labels)
    zeros = np.zeros(count, np.int32)
    keys = np.array([f"{row:04d}" for row in range(count)], np.bytes_)
    held = Index(("s",), zeros, keys, np.array(labels), zeros, zeros, zeros, zeros)
    view = PoolView(url="x", identities=identities, images_each=each, least_images=least)
    right = naive(labels, identities, each, least, share)
    if right:
        assert select("x", view, 1, held, share).rows.tolist() == right
    else:
        with pytest.raises(InputError):
            select("x", view, 1, held, share)
