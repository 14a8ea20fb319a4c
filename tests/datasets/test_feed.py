import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

sys.path.insert(0, str(Path(__file__).parents[1]))
from faces import face, make_dataset, make_pool

from factory.datasets import index
from factory.datasets.compose import compose
from factory.datasets.feed import Feed, decode
from factory.datasets.store import Store
from factory.recipe import InputError, parse

SIZE = 32


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "a", 10, 6, SIZE, per=4)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "b", 5, 6, SIZE, world=1)


def read_epoch(feed, epoch=0):
    steps = range(epoch * feed.steps_per_epoch, (epoch + 1) * feed.steps_per_epoch)
    return [feed.batch(step) for step in steps]


def same(one, two):
    return (
        one.step == two.step
        and one.keys == two.keys
        and np.array_equal(one.images, two.images)
        and np.array_equal(one.labels, two.labels)
    )


def test_agrees_with_tarfile(dataset):
    truth = {}
    for path in sorted(Path(dataset).glob("shards/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                truth[member.name] = file.read()
    seen = {}
    for batch in read_epoch(Feed([dataset], 12, seed=3, size=SIZE)):
        for key, label, image in zip(batch.keys, batch.labels, batch.images, strict=True):
            seen[key] = label
            assert int(truth[f"{key}.cls"]) == label
            assert np.array_equal(image, simplejpeg.decode_jpeg(truth[f"{key}.jpg"]))
    assert len(seen) == 60


def test_colours_are_rgb(dataset):
    feed = Feed([dataset], 12, seed=3, size=SIZE)
    batch = feed.batch(0)
    identity, slot = (int(part) for part in batch.keys[0].split("_"))
    drawn = face(identity, slot, SIZE).astype(float)
    assert (
        np.abs(drawn - batch.images[0]).mean() < np.abs(drawn[..., ::-1] - batch.images[0]).mean()
    )


def test_an_epoch_holds_each_image_once_and_the_next_is_in_another_order(dataset):
    feed = Feed([dataset], 12, seed=3, size=SIZE)
    first = [key for batch in read_epoch(feed) for key in batch.keys]
    second = [key for batch in read_epoch(feed, 1) for key in batch.keys]
    assert len(set(first)) == len(first) == 60
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != [k for b in read_epoch(Feed([dataset], 12, seed=4, size=SIZE)) for k in b.keys]


def test_resuming_goes_on_in_the_same_order(dataset):
    whole = list(Feed([dataset], 7, seed=3, size=SIZE).batches(0, 20))
    rest = list(Feed([dataset], 7, seed=3, size=SIZE).batches(11, 20))
    assert [batch.step for batch in whole] == list(range(20))
    assert all(same(one, two) for one, two in zip(whole[11:], rest, strict=True))


def test_workers_share_the_same_global_batch(dataset):
    whole = Feed([dataset], 12, seed=3, size=SIZE).batch(4)
    parts = [Feed([dataset], 12, seed=3, size=SIZE, rank=r, world=3).batch(4) for r in range(3)]
    assert whole.keys == sum((part.keys for part in parts), ())
    assert [part.start for part in parts] == [0, 4, 8]
    assert np.array_equal(whole.images, np.concatenate([part.images for part in parts]))


def test_labels_are_contiguous_over_datasets(dataset, other):
    feed = Feed([dataset, other], 15, seed=3, size=SIZE)
    assert feed.classes == 15
    assert sorted(set(feed.labels.tolist())) == list(range(15))
    assert len(feed) == 90
    labels = {}
    for batch in read_epoch(feed):
        for image, label in zip(batch.images, batch.labels, strict=True):
            labels.setdefault(int(label), []).append(image.astype(float))
    apart = np.abs(np.mean(labels[1], 0) - np.mean(labels[11], 0)).mean()
    assert apart > 5  # identity 1 of each dataset: different people


def test_first_identities_and_images(dataset, other):
    feed = Feed([dataset, other], 4, seed=3, size=SIZE, identities=12, images_each=2)
    assert feed.classes == 12
    assert np.bincount(feed.labels).tolist() == [2] * 12
    keys = {key for batch in read_epoch(feed) for key in batch.keys}
    assert {key.split("_")[1] for key in keys} == {"0000", "0001"}


def test_shuffled_labels_keep_their_counts_and_lose_their_meaning(dataset):
    plain = Feed([dataset], 10, seed=3, size=SIZE)
    dealt = Feed([dataset], 10, seed=3, size=SIZE, shuffle_labels=True)
    assert np.bincount(plain.labels).tolist() == np.bincount(dealt.labels).tolist()
    assert (plain.labels == dealt.labels).mean() < 0.4
    again = Feed([dataset], 10, seed=3, size=SIZE, shuffle_labels=True)
    assert np.array_equal(dealt.labels, again.labels)


def test_uncommitted_shards_do_not_exist(tmp_path):
    url = make_dataset(tmp_path, 8, 2, SIZE, per=4)
    next(tmp_path.glob("shards/*.json")).unlink()
    assert Feed([url], 2, seed=0, size=SIZE).classes == 4


def test_remote_shards_are_copied_once(tmp_path, cache):
    import fsspec

    make_dataset(tmp_path / "local", 4, 2, SIZE)
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/local/shards/", "/feed-test/shards/", recursive=True)
    feed = Feed(["memory://feed-test"], 4, seed=0, size=SIZE)
    near = Feed([str(tmp_path / "local")], 4, seed=0, size=SIZE)
    assert same(feed.batch(1), near.batch(1))
    [copy] = (cache / "shards").iterdir()
    moment = copy.stat().st_mtime_ns
    Feed(["memory://feed-test"], 4, seed=0, size=SIZE)
    assert copy.stat().st_mtime_ns == moment


def test_faults_are_named(dataset, tmp_path):
    with pytest.raises(InputError, match="no committed shards"):
        Feed([str(tmp_path)], 4, seed=0, size=SIZE)
    with pytest.raises(InputError, match=r"60 images; schedule.batch_size 61"):
        Feed([dataset], 61, seed=0, size=SIZE)
    with pytest.raises(InputError, match=r"data.identities: 11, but .* has only 10"):
        Feed([dataset], 4, seed=0, size=SIZE, identities=11)
    with pytest.raises(InputError, match="multiple of the 3 workers"):
        Feed([dataset], 4, seed=0, size=SIZE, world=3)
    feed = Feed([dataset], 4, seed=0, size=64)
    with pytest.raises(InputError, match=r"\.tar: image \d{7}_\d{4} is 32x32 .* accepts 64x64"):
        list(feed.batches(0, 1))


def test_images_of_another_size_are_resized_when_asked(dataset):
    batch = Feed([dataset], 4, seed=0, size=16, resize=True).batch(0)
    whole = Feed([dataset], 4, seed=0, size=SIZE).batch(0)
    assert batch.keys == whole.keys and batch.images.shape == (4, 16, 16, 3)
    pooled = whole.images.reshape(4, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(batch.images - pooled).mean() < np.abs(batch.images - pooled.mean()).mean() / 4


def test_an_unreadable_image_is_named(tmp_path):
    url = make_dataset(tmp_path, 4, 2, SIZE)
    indexed = Feed([url], 8, seed=0, size=SIZE)
    path = next(tmp_path.glob("shards/*.tar"))
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\xd8")
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"image 0000000_0000 cannot be read"):
        list(indexed.batches(0, 1))


def test_a_changed_shard_is_refused_before_it_is_indexed(tmp_path):
    url = make_dataset(tmp_path, 4, 2, SIZE, world=7)
    path = next(tmp_path.glob("shards/*.tar"))
    path.write_bytes(path.read_bytes().replace(b"0000001_0001", b"0000001_0002"))
    with pytest.raises(InputError, match=r"shard i0000000-.* jobs/verify.py"):
        Feed([url], 8, seed=0, size=SIZE)


def test_a_reader_that_stops_early_leaves_no_thread(dataset):
    import threading

    for _ in Feed([dataset], 4, seed=0, size=SIZE).batches(0, 10_000):
        break
    assert not [thread for thread in threading.enumerate() if thread.name == "feed"]


def test_decode_reads_png():
    import io

    from PIL import Image

    image = face(1, 2, SIZE)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    assert np.array_equal(decode(file.getvalue()), image)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("pool") / "a", 10, 6, world=1, per=4)


def composed(out, **views):
    raw = {"kind": "compose", "name": "view", "seed": 1, "pools": views}
    compose(parse(raw), Store(out))
    return str(out)


def test_a_composition_is_read_as_the_dataset_that_holds_the_same_images(pool, tmp_path):
    url = composed(tmp_path, a={"url": pool, "identities": 7, "images_each": 4})
    plain = Feed([pool], 6, seed=3, size=SIZE, identities=7, images_each=4, world=2, rank=1)
    view = Feed([url], 6, seed=3, size=SIZE, world=2, rank=1)
    assert (len(view), view.classes) == (len(plain), plain.classes) == (28, 7)
    whole = list(plain.batches(0, 9))
    assert all(same(*pair) for pair in zip(whole, view.batches(0, 9), strict=True))
    resumed = Feed([url], 6, seed=3, size=SIZE, world=2, rank=1).batches(5, 9)
    assert all(same(*pair) for pair in zip(whole[5:], resumed, strict=True))


def test_a_composition_repeats_images_and_counts_labels_over_pools(pool, tmp_path):
    other = make_pool(tmp_path / "b", 3, 2, world=2)
    url = composed(
        tmp_path / "view",
        a={"url": pool, "identities": 4, "images_each": 2},
        b={"url": other, "repeat": 3},
    )
    feed = Feed([url], 1, seed=0, size=SIZE)
    assert np.bincount(feed.labels).tolist() == [2, 2, 2, 2, 6, 6, 6]
    seen = [(b.keys[0], int(b.labels[0])) for b in read_epoch(feed)]
    assert {label for key, label in seen if key == "0000001_0001"} == {1, 5}
    assert seen.count(("0000001_0001", 5)) == 3 and seen.count(("0000001_0001", 1)) == 1
    few = Feed([url, pool], 1, seed=0, size=SIZE, identities=8, images_each=1)
    assert np.bincount(few.labels).tolist() == [1, 1, 1, 1, 3, 3, 3, 1]


def test_a_composition_whose_pool_was_made_anew_is_refused(tmp_path):
    pool = make_pool(tmp_path / "a", 3, 2, world=3)
    url = composed(tmp_path / "view", a={"url": pool})
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            path.unlink()
    make_pool(tmp_path / "a", 3, 2, world=4)
    with pytest.raises(InputError, match=r"pool a of .* is 0{15}4 now, 0{15}3 then"):
        Feed([url], 2, seed=0, size=SIZE)


def test_more_shards_than_files_may_be_open(tmp_path, monkeypatch):
    import os

    pool = make_pool(tmp_path, 10, 6, world=1, per=2)

    def held():
        names = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        links = [os.readlink(name) for name in names if os.path.exists(name)]
        return sum(link.startswith(pool) for link in links)

    monkeypatch.setattr(index, "OPEN_FILES", 2)
    feed = Feed([pool], 10, seed=3, size=SIZE)
    keys = [key for batch in read_epoch(feed) for key in batch.keys]
    assert len(set(keys)) == 60 and held() == 2
    feed.close()
    assert held() == 0


@pytest.mark.slow
def test_speed_of_the_feed(tmp_path):
    """Images a CPU second decoded at 64 px; the small recognizer trains on 260 to 390 a second."""
    import time

    url = make_dataset(tmp_path, 200, 20, 64, per=50)
    feed = Feed([url], 64, seed=0, size=64)
    feed.batch(0)
    start = time.process_time()
    for step in range(1, 41):
        feed.batch(step)
    speed = 40 * 64 / (time.process_time() - start)
    print(f"feed: {speed:.0f} images a CPU second")
    assert speed > 5 * 390
