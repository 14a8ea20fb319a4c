import numpy as np
import pytest
from faces import face, make_dataset

from factory.datasets.store import Store
from factory.evaluation.dataset import embed_dataset, samples
from factory.recipe import InputError


class Corners:
    """A recognizer without weights: the four quarters' mean colours."""

    name, size = "corners", 32

    def embed(self, images):
        quarters = images.reshape(len(images), 2, 16, 2, 16, 3).mean(axis=(2, 4))
        return quarters.reshape(len(images), 12).astype(np.float32) - 120.0


def test_samples_come_in_order_with_their_labels(tmp_path):
    store = Store(make_dataset(tmp_path / "d", identities=5, images_each=3, per=2))
    found = list(samples(store))
    assert [s.label for s in found] == [i for i in range(5) for _ in range(3)]
    assert [s.key for s in found] == sorted(s.key for s in found)
    part = list(samples(store, identities=3, images_each=2))
    assert [s.label for s in part] == [0, 0, 1, 1, 2, 2]


def test_shards_of_later_identities_are_not_opened(tmp_path):
    store = Store(make_dataset(tmp_path / "d", identities=4, images_each=2, per=2))
    late = next((tmp_path / "d" / "shards").glob("i0000002-*.tar"))
    late.write_bytes(b"not a tar")
    assert len(list(samples(store, identities=2))) == 4


def test_embeddings_are_those_of_the_images(tmp_path):
    store = Store(make_dataset(tmp_path / "d", identities=4, images_each=3))
    found = embed_dataset(store, Corners(), batch_size=5)
    assert found.labels.tolist() == [i for i in range(4) for _ in range(3)]
    np.testing.assert_allclose(np.linalg.norm(found.unit, axis=1), 1.0)
    direct = Corners().embed(np.stack([face(2, 1)]))[0]
    direct /= np.linalg.norm(direct)
    assert found.unit[7] @ direct > 0.99  # but for JPEG


def test_wrong_datasets_are_named(tmp_path):
    with pytest.raises(InputError, match="no finished shard"):
        list(samples(Store(tmp_path / "none")))
    store = Store(make_dataset(tmp_path / "d", identities=2, images_each=2, size=64))
    with pytest.raises(InputError, match=r"sample 0000000_0000: 64 x 64 pixels.*--resize"):
        embed_dataset(store, Corners())
    assert len(embed_dataset(store, Corners(), resize=True).labels) == 4


def test_a_recognizer_that_fails_on_an_image_is_named(tmp_path):
    class Broken(Corners):
        name, calls = "broken", 0

        def embed(self, images):
            found = super().embed(images)
            self.calls += 1
            if self.calls == 2:
                found[1, 3] = np.nan
            return found

    store = Store(make_dataset(tmp_path / "d", identities=4, images_each=3))
    with pytest.raises(InputError, match=r"sample 0000002_0000: recognizer broken gives numbers"):
        embed_dataset(store, Broken(), batch_size=5)
