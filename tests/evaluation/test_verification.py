"""The ten-fold protocol against scikit-learn's parts, and `.bin` files of every kind."""

import pickle
import struct

import numpy as np
import pytest
import simplejpeg
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize

from factory.evaluation import verification
from factory.recipe import InputError


class Means:
    """A recognizer without weights: the mean colours of a 4 x 4 grid, centred."""

    name, size = "means", 32

    def embed(self, images):
        cells = images.reshape(len(images), 4, self.size // 4, 4, self.size // 4, 3)
        return (cells.mean(axis=(2, 4)).reshape(len(images), -1) - 127.5).astype(np.float32)


def faces(pairs, seed=0, size=32, noise=60):
    """Coloured 4 x 4 patterns: two views of one pattern, or of two."""
    rng = np.random.default_rng(seed)
    images, same = [], []
    for pair in range(pairs):
        patterns = rng.integers(0, 256, (2, 4, 4, 3))
        same.append(bool(pair % 2))
        for which in (0, 0 if same[-1] else 1):
            cells = patterns[which] + rng.normal(0, noise, (4, 4, 3))
            view = np.kron(np.clip(cells, 0, 255), np.ones((size // 4, size // 4, 1)))
            images.append(simplejpeg.encode_jpeg(np.ascontiguousarray(view, np.uint8), 95))
    return images, same


def independent(recognizer, images, same):
    """The protocol once more, in plain loops over scikit-learn's KFold and normalize."""
    decoded = np.stack([simplejpeg.decode_jpeg(image) for image in images])
    plain = recognizer.embed(decoded).astype(np.float64)
    flipped = recognizer.embed(np.ascontiguousarray(decoded[:, :, ::-1])).astype(np.float64)
    unit = normalize(plain + flipped)
    distances = np.sum(np.square(np.subtract(unit[0::2], unit[1::2])), 1)
    same = np.asarray(same)
    accuracies = []
    for train, test in KFold(n_splits=10, shuffle=False).split(np.arange(len(same))):
        best, best_accuracy = 0.0, -1.0
        for threshold in np.arange(0, 4, 0.01):
            accuracy = np.mean(np.less(distances[train], threshold) == same[train])
            if accuracy > best_accuracy:
                best, best_accuracy = threshold, accuracy
        accuracies.append(np.mean(np.less(distances[test], best) == same[test]))
    return np.mean(accuracies), np.std(accuracies)


@pytest.mark.parametrize("pairs", [40, 97])
def test_equals_the_independent_protocol_to_the_last_digit(pairs, monkeypatch):
    images, same = faces(pairs)
    monkeypatch.setattr(verification, "BATCH", 16)
    found = verification.verify(Means(), verification.Pairs("toy", tuple(images), np.array(same)))
    mean, std = independent(Means(), images, same)
    assert found.accuracy == mean
    assert found.accuracy_std == std
    assert 0.5 < found.accuracy < 1.0
    assert found.xnorm > 0


def test_an_image_of_several_pairs_is_embedded_once():
    """The field's files repeat images, and the result must not know whether they do."""
    images, _ = faces(20, seed=4)
    rng = np.random.default_rng(9)
    pairs = [(0, 1)] * 3 + [tuple(rng.choice(len(images), 2, replace=False)) for _ in range(37)]
    repeated = tuple(images[at] for pair in pairs for at in pair)
    same = np.arange(len(pairs)) % 2 == 0

    class Counts(Means):
        seen = 0

        def embed(self, images):
            self.seen += len(images)
            return super().embed(images)

    recognizer = Counts()
    found = verification.verify(recognizer, verification.Pairs("again", repeated, same))
    assert recognizer.seen == 2 * len(set(repeated)) < 2 * len(repeated)
    accuracy, spread = independent(Means(), repeated, same)
    assert (found.accuracy, found.accuracy_std) == (accuracy, spread)
    decoded = np.stack([simplejpeg.decode_jpeg(image) for image in repeated])
    views = np.concatenate([decoded, decoded[:, :, ::-1]])
    own = np.linalg.norm(Means().embed(np.ascontiguousarray(views)).astype(np.float64), axis=1)
    assert found.xnorm == pytest.approx(own.mean(), rel=1e-12)


def test_first_of_equally_good_thresholds_and_strictly_below():
    distances = np.tile([0.5, 0.9], 10)
    same = np.tile([True, False], 10)
    found = verification.Distances.of("toy", distances, same)
    assert verification.Verification.of(found).accuracy == 1.0
    assert (found.thresholds == np.arange(0, 4, 0.01)[51]).all()  # 0.50 does not accept 0.5


def test_folds_are_consecutive_and_the_first_are_larger():
    for count in (10, 97, 6000):
        expected = [test for _, test in KFold(10, shuffle=False).split(np.zeros(count))]
        for ours, theirs in zip(verification.folds(count), expected, strict=True):
            assert np.array_equal(ours, theirs)


def test_one_bad_fold_shows_in_the_spread():
    distances = np.tile([0.5, 1.5], 50)
    same = np.tile([True, False], 50)
    same[:10] = ~same[:10]  # the first fold is labelled the wrong way round
    measured = verification.Distances.of("toy", distances, same)
    right = (distances < measured.thresholds) == same
    assert right.tolist() == [False] * 10 + [True] * 90
    found = verification.Verification.of(measured)
    assert found.accuracy == pytest.approx(0.9)
    assert found.accuracy_std == pytest.approx(0.3)  # population, not sample


def evaluated(distances, same):
    return verification.Verification.of(verification.Distances.of("toy", distances, same))


def test_tar_at_far_interpolates_the_threshold(monkeypatch):
    impostor = np.linspace(1.0, 2.0, 1000, endpoint=False)
    genuine = np.linspace(0.5, 1.5, 1000, endpoint=False)
    distances = np.stack([genuine, impostor], axis=1).ravel()
    order = np.random.default_rng(0).permutation(1000)
    distances = distances.reshape(1000, 2)[order].ravel()
    same = np.tile([True, False], 1000)
    monkeypatch.setattr(verification, "FAR", 0.1)  # at threshold 1.1
    found = evaluated(distances, same)
    assert found.tar == pytest.approx(0.6, abs=0.01) and found.tar_resolved
    assert evaluated(np.full(40, 5.0), np.tile([True, False], 20)).tar == 0
    monkeypatch.undo()
    assert not evaluated(distances, same).tar_resolved


def test_tar_does_not_know_the_order_of_the_pairs():
    """A list of pairs has all genuine ones first, as somebody wrote it."""
    same = np.arange(20_000) < 10_000
    rng = np.random.default_rng(0)
    distances = np.clip(np.where(same, 0.6, 1.9) + rng.normal(0, 0.25, len(same)), 0, 4)
    order = rng.permutation(len(same))
    listed, drawn = evaluated(distances, same), evaluated(distances[order], same[order])
    assert 0.9 < drawn.tar < 1 and listed.tar == pytest.approx(drawn.tar, abs=2e-3)
    assert 0 < listed.tar_std < 0.01 and listed.tar_resolved


def test_a_fold_whose_other_folds_have_no_impostor_has_no_tar():
    same = np.arange(100) < 93  # all impostors are in the last fold
    distances = np.where(same, np.linspace(0.2, 0.6, 100), 1.5)
    found = verification.Distances.of("toy", distances, same)
    assert np.isnan(found.far_thresholds[90:]).all()
    assert not np.isnan(found.far_thresholds[:90]).any()
    assert (evaluated(distances, same).tar, evaluated(distances, same).tar_std) == (1.0, 0.0)


def test_bin_round_trip_and_equal_content_equal_bytes(tmp_path):
    images, same = faces(12)
    sha256 = verification.write_bin(tmp_path / "a.bin", images, same)
    copies = [bytes(bytearray(image)) for image in images]
    assert verification.write_bin(tmp_path / "b.bin", copies, np.array(same)) == sha256
    twice = [images[0], images[0], *images[2:]]
    apart = [images[0], bytes(bytearray(images[0])), *images[2:]]
    first = verification.write_bin(tmp_path / "c.bin", twice, same)
    assert verification.write_bin(tmp_path / "c.bin", apart, same) == first
    found = verification.read_bin(tmp_path / "a.bin")
    assert found.name == "a"
    assert list(found.images) == images
    assert found.same.tolist() == same
    with (tmp_path / "a.bin").open("rb") as file:  # as the field reads it
        bins, issame = pickle.load(file, encoding="bytes")
    assert (bins, issame) == (images, same)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["plain", "numpy_truths", "numpy_array", "numpy_images", "tuple"])
def test_files_other_writers_made(tmp_path, protocol, kind):
    images, same = faces(12)
    content = {
        "plain": (images, same),
        "numpy_truths": (images, [np.bool_(s) for s in same]),
        "numpy_array": (images, np.array(same)),
        "numpy_images": ([np.frombuffer(i, np.uint8) for i in images], same),
        "tuple": [tuple(images), tuple(int(s) for s in same)],
    }[kind]
    file = tmp_path / "x.bin"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    found = verification.read_bin(file)
    assert list(found.images) == images
    assert found.same.tolist() == same


def test_a_file_python_2_wrote(tmp_path):
    images, same = faces(10)
    data = b"\x80\x02]("  # protocol 2: a list of str objects, which Python 3 reads as bytes
    data += b"".join(b"T" + struct.pack("<i", len(image)) + image for image in images)
    data += b"e](" + b"".join(b"\x88" if s else b"\x89" for s in same) + b"e\x86."
    (tmp_path / "py2.bin").write_bytes(data)
    found = verification.read_bin(tmp_path / "py2.bin")
    assert list(found.images) == images
    assert found.same.tolist() == same


class Runs:
    """A pickle of this would call `which` on loading."""

    def __init__(self, which, *arguments):
        self.call = which, arguments

    def __reduce__(self):
        return self.call


def test_hostile_files_run_no_code(tmp_path):
    import os
    import subprocess

    marker = tmp_path / "ran"
    for evil in (
        Runs(os.system, f"touch {marker}"),
        Runs(eval, f"open({str(marker)!r}, 'w')"),
        Runs(subprocess.call, ["touch", str(marker)]),
        Runs(np.load, str(marker)),
        Runs(getattr, "text", "join"),
    ):
        for content in (evil, ([evil], [True]), ([b"x"] * 20, [evil] * 10)):
            file = tmp_path / "evil.bin"
            file.write_bytes(pickle.dumps(content))
            with pytest.raises(InputError, match="it asks for"):
                verification.read_bin(file)
    assert not marker.exists()


def test_a_file_cannot_change_the_names_it_may_use(tmp_path):
    for name in (b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\nscalar\n"):
        file = tmp_path / "state.bin"
        file.write_bytes(b"\x80\x02" + name + b"}X\x05\x00\x00\x00_madeK\x01sb.")
        with pytest.raises(InputError, match="not a verification file"):
            verification.read_bin(file)
    images, same = faces(10)
    good = tmp_path / "good.bin"
    good.write_bytes(pickle.dumps((images, np.array(same))))
    assert verification.read_bin(good).same.tolist() == same


def test_wrong_files_are_one_clear_error(tmp_path):
    images, same = faces(12)
    whole = pickle.dumps((images, same))
    for data in (
        b"",
        b"not a pickle",
        whole[: len(whole) // 2],
        pickle.dumps(images),
        pickle.dumps({"images": images}),
        pickle.dumps((images[:-1], same)),
        pickle.dumps((images, same[:-1])),
        pickle.dumps((images, ["yes"] * len(same))),
        pickle.dumps((images, [2] * len(same))),
        pickle.dumps(([1.5] * len(images), same)),
        pickle.dumps((images, np.arange(len(same), dtype=np.float64))),
        pickle.dumps((images, [True] * len(same))),
        pickle.dumps((images[:8], same[:4])),
    ):
        file = tmp_path / "bad.bin"
        file.write_bytes(data)
        with pytest.raises(InputError, match=r"bad\.bin: not a verification file.*accepted"):
            verification.read_bin(file)
    with pytest.raises(InputError, match="no file"):
        verification.read_bin(tmp_path / "none.bin")


def test_images_that_do_not_fit_are_named():
    images, same = faces(10)
    broken = verification.Pairs("toy", (*images[:3], images[3][:60], *images[4:]), np.array(same))
    with pytest.raises(InputError, match="toy image 3: cannot be read"):
        verification.verify(Means(), broken)
    large, same = faces(10, size=64)
    benchmark = verification.Pairs("toy", tuple(large), np.array(same))
    with pytest.raises(InputError, match=r"64 x 64 pixels, the recognizer takes 32 x 32.*--resize"):
        verification.verify(Means(), benchmark)
    small, _ = faces(10)
    resized = verification.verify(Means(), benchmark, resize=True)
    plain = verification.verify(Means(), verification.Pairs("toy", tuple(small), np.array(same)))
    assert resized.accuracy == pytest.approx(plain.accuracy, abs=0.11)


def test_embeddings_that_are_no_numbers_are_refused():
    class Broken(Means):
        def embed(self, images):
            found = super().embed(images)
            found[0, 0] = np.nan
            return found

    images, same = faces(10)
    benchmark = verification.Pairs("toy", tuple(images), np.array(same))
    with pytest.raises(InputError, match="not a number on benchmark toy"):
        verification.verify(Broken(), benchmark)


def test_all_distances_equal_judge_nobody():
    same = np.tile([True, False], 20)
    found = evaluated(np.full(40, 1.0), same)
    assert found.accuracy == 0.5
    assert (found.auc, found.eer) == (0.5, 0.5)


def test_evaluate_reads_a_folder(tmp_path):
    for name in ("b", "a"):
        verification.write_bin(tmp_path / f"{name}.bin", *faces(20))
    found = verification.evaluate(Means(), tmp_path)
    assert list(found) == ["a", "b"]
    assert verification.average(found.values()) == found["a"].accuracy
    with pytest.raises(InputError, match=r"no \.bin file"):
        verification.evaluate(Means(), tmp_path / "none")
