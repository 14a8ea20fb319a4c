import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

sys.path.insert(0, str(Path(__file__).parents[1]))
from faces import face, make_dataset

from factory.recipe import InputError
from factory.shards.feed import Feed, decode

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


def test_remote_shards_are_copied_once(tmp_path, monkeypatch):
    import fsspec

    make_dataset(tmp_path / "local", 4, 2, SIZE)
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/local/shards/", "/feed-test/shards/", recursive=True)
    cache = tmp_path / "cache"
    feed = Feed(["memory://feed-test"], 4, seed=0, size=SIZE, cache=cache)
    near = Feed([str(tmp_path / "local")], 4, seed=0, size=SIZE)
    assert same(feed.batch(1), near.batch(1))
    [copy] = (cache / "shards").iterdir()
    moment = copy.stat().st_mtime_ns
    Feed(["memory://feed-test"], 4, seed=0, size=SIZE, cache=cache)
    assert copy.stat().st_mtime_ns == moment


def test_faults_are_named(dataset, tmp_path):
    with pytest.raises(InputError, match="no committed shards"):
        Feed([str(tmp_path)], 4, seed=0, size=SIZE)
    with pytest.raises(InputError, match=r"60 images; schedule.batch_size 61"):
        Feed([dataset], 61, seed=0, size=SIZE)
    with pytest.raises(InputError, match=r"data.identities: 11; .* has 10"):
        Feed([dataset], 4, seed=0, size=SIZE, identities=11)
    with pytest.raises(InputError, match="multiples of the 3 workers"):
        Feed([dataset], 4, seed=0, size=SIZE, world=3)
    feed = Feed([dataset], 4, seed=0, size=64)
    with pytest.raises(InputError, match=r"\.tar: image \d{7}_\d{4} is 32x32 .* accepts 64x64"):
        list(feed.batches(0, 1))


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
