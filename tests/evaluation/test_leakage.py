"""Leakage against scikit-learn, brute force, and worlds whose leak is planted."""

import base64
import json

import numpy as np
import pytest
import simplejpeg
from faces import face, make_dataset
from sklearn.metrics import roc_auc_score

from factory.datasets.store import Store
from factory.evaluation import leakage as leaks
from factory.evaluation.dataset import Embedded, embed_dataset, samples
from factory.evaluation.leakage import leakage, matched_rows, membership
from factory.evaluation.quality import Radius
from factory.recipe import InputError
from factory.seeding import generator, seed64

RADIUS = Radius(0.5, 1e-4, 100_000)


def people(count: int, images: int, seed: int, spread: float = 0.5, dimension: int = 24):
    """Return so many people's images: a direction each, and images around it."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(count, dimension)), images, axis=0)
    unit = centres + spread * rng.normal(size=centres.shape)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    labels = np.repeat(np.arange(count), images)
    keys = tuple(f"{seed}_{n}" for n in range(len(labels)))
    return Embedded(unit.astype(np.float32), labels, keys)


def copies(of: Embedded, rows: np.ndarray, noise: float) -> Embedded:
    unit = of.unit[rows] + noise * np.random.default_rng(0).normal(size=(len(rows), 24))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return Embedded(unit.astype(np.float32), np.arange(len(rows)), tuple(f"c{r}" for r in rows))


def test_a_generator_that_knows_nobody_has_no_membership():
    found = leakage(people(60, 4, 1), people(80, 5, 2), people(70, 6, 3), RADIUS)
    one = found["membership"]
    assert one["low"] < 0.5 < one["high"] and one["low"] <= one["auc"] <= one["high"]
    assert (one["people_each"], one["images_each"]) == (70, 350)
    images = found["images"]
    assert images["training_matched"]["mean"] == pytest.approx(images["held_out"]["mean"], abs=0.03)
    assert "0.5 is none" in found["definitions"]["membership"]
    json.dumps(found, allow_nan=False)


def test_copied_training_faces_are_found_and_named():
    training = people(80, 5, 2)
    copied = copies(training, np.arange(0, 400, 5), noise=0.01)  # one image of every person
    found = leakage(copied, training, people(80, 5, 3), RADIUS)
    assert found["membership"]["low"] > 0.8
    assert found["images"]["training"]["above_r"] == 1.0
    assert found["images"]["training"]["p50"] > found["images"]["held_out"]["p50"] + 0.2
    assert len(found["closest"]) == leaks.CLOSEST
    for pair in found["closest"]:
        assert pair["training"] == f"2_{pair['synthetic'].removeprefix('c')}"
        assert pair["training_label"] == pair["synthetic_label"]
    cosines = [pair["cosine"] for pair in found["closest"]]
    assert cosines == sorted(cosines, reverse=True)


def test_nearest_faces_are_those_of_brute_force():
    made, training = people(12, 3, 1), people(9, 4, 2)
    found = leakage(made, training, None, RADIUS)
    nearest = (made.unit.astype(float) @ training.unit.T.astype(float)).max(axis=1)
    summary = found["images"]["training"]
    assert summary["mean"] == pytest.approx(nearest.mean(), abs=1e-6)
    assert summary["highest"] == pytest.approx(nearest.max(), abs=1e-6)
    assert summary["p95"] == pytest.approx(np.percentile(nearest, 95), abs=1e-6)
    assert summary["above_r"] == (nearest >= 0.5).mean()
    middles = np.stack([made.unit[made.labels == n].mean(axis=0) for n in range(12)])
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    nearest = (middles @ training.unit.T).max(axis=1)
    assert found["identities"]["count"] == 12
    assert found["identities"]["training"]["mean"] == pytest.approx(nearest.mean(), abs=1e-6)
    assert "membership" not in found and "held_out" not in found["images"]
    assert len({pair["synthetic_label"] for pair in found["closest"]}) == 12


def test_images_are_drawn_where_there_are_many():
    made, training = people(30, 4, 1), people(9, 4, 2)
    few = leakage(made, training, None, RADIUS, images=17)
    assert few["images"]["count"] == 17 and few["identities"]["count"] == 30
    assert few == leakage(made, training, None, RADIUS, images=17)
    assert few != leakage(made, training, None, RADIUS, images=17, seed=1)


def scored(count: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(40, size=count)
    return np.round(rng.normal(shift, 1, count), 1), labels  # rounding makes ties


@pytest.mark.parametrize("shift", [0.0, 0.7, -3.0])
def test_membership_is_scikit_learns_auc_and_its_bootstrap_that_of_people(shift):
    members, others = scored(300, 1, shift), scored(250, 2)
    found = membership(members, others, seed=6, replicates=30)
    truth = np.r_[np.ones(300), np.zeros(250)]
    expected = roc_auc_score(truth, np.r_[members[0], others[0]])
    assert found["auc"] == pytest.approx(expected, abs=1e-12)
    drawn = []
    for replicate in range(30):  # the same people, as whole lists of images
        draw, values = generator(seed64(6, "membership", replicate)), []
        for values_of, labels in (members, others):
            names = np.unique(labels)
            chosen = names[draw.integers(len(names), size=len(names))]
            values.append(np.concatenate([values_of[labels == name] for name in chosen]))
        truth = np.r_[np.ones(len(values[0])), np.zeros(len(values[1]))]
        drawn.append(roc_auc_score(truth, np.concatenate(values)))
    assert found["low"] == pytest.approx(np.percentile(drawn, 2.5), abs=1e-12)
    assert found["high"] == pytest.approx(np.percentile(drawn, 97.5), abs=1e-12)


def test_equal_scores_are_no_membership():
    same = np.full(30, 0.25), np.repeat(np.arange(10), 3)
    found = membership(same, same, seed=0)
    assert (found["auc"], found["low"], found["high"]) == (0.5, 0.5, 0.5)


def test_ten_images_that_agree_count_as_one():
    """The interval follows people, so that more images of the same people do not narrow it."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=30), rng.normal(size=30)
    once = membership((first, np.arange(30)), (second, np.arange(30)), seed=0)
    tenfold = [(np.repeat(one, 10), np.repeat(np.arange(30), 10)) for one in (first, second)]
    often = membership(*tenfold, seed=0)
    for key in ("auc", "low", "high"):
        assert often[key] == pytest.approx(once[key], abs=1e-12)


def test_sets_are_matched_in_people_and_images():
    training, held_out = people(50, 3, 1), people(20, 8, 2)
    first, second = matched_rows(training, held_out, seed=0)
    assert len(first) == len(second) == 60 and len(set(first)) == len(set(second)) == 60
    assert len(set(training.labels[first])) == 20
    again, _ = matched_rows(training, held_out, seed=0)
    other, _ = matched_rows(training, held_out, seed=1)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert [len(rows) for rows in matched_rows(training, held_out, seed=0, most=7)] == [7, 7]
    with pytest.raises(InputError, match="one person; accepted are two or more"):
        matched_rows(training, people(1, 8, 2), seed=0)
    with pytest.raises(InputError, match=r"held-out faces: dimension 8, accepted is .* 24"):
        leakage(training, training, people(3, 3, 1, dimension=8), RADIUS)


def test_nobody_drawn_drops_out_of_matched_sets():
    """Sets of very unequal shares of images: everybody counts, with as even a share as can be."""
    many, few = people(40, 5, 1), people(30, 1, 2)
    labels = np.r_[np.zeros(100, int), np.repeat(np.arange(1, 40), 2)[:22], np.arange(12, 90)]
    skewed = Embedded(many.unit, labels, many.keys)
    for most, expected in ((50_000, 30), (30, 30), (12, 12)):
        first, second = matched_rows(skewed, few, seed=3, most=most)
        assert len(first) == len(second) == len(set(first)) == len(set(second)) == expected
        for rows, of in ((first, skewed), (second, few)):
            assert len(set(of.labels[rows])) == expected
    whole, rest = matched_rows(skewed, people(60, 2, 4), seed=3, most=90)
    for rows, of in ((whole, skewed.labels), (rest, np.repeat(np.arange(60), 2))):
        drawn, shares = np.unique(of[rows], return_counts=True)
        assert len(drawn) == 60 and len(rows) == 90
        has = np.array([(of == name).sum() for name in drawn])
        assert (shares >= np.minimum(has, shares.max() - 1)).all()


class Corners:
    """A recognizer without weights: the four quarters' mean colours."""

    name, size = "corners", 32

    def embed(self, images):
        quarters = images.reshape(len(images), 2, 16, 2, 16, 3).mean(axis=(2, 4))
        return quarters.reshape(len(images), 12).astype(np.float32) - 120.0


def test_closest_pairs_are_shown_side_by_side(tmp_path):
    made = Store(make_dataset(tmp_path / "made", identities=4, images_each=2))
    real = make_dataset(tmp_path / "real", identities=6, images_each=2)  # the same faces and more
    unseen = make_dataset(tmp_path / "unseen", identities=5, images_each=2, world=1)
    embedded = embed_dataset(made, Corners())
    both = leaks.real_datasets(made, real, unseen)
    found = leaks.of_datasets(made, embedded, Corners(), RADIUS, both)
    assert found["datasets"] == [one.url for one in both]
    assert found["membership"]["auc"] > 0.5
    assert [pair["cosine"] for pair in found["closest"]] == pytest.approx([1.0] * 4)
    for pair in found["closest"]:
        assert pair["synthetic"] == pair["training"]
        encoded = base64.b64decode(pair["uri"].removeprefix("data:image/jpeg;base64,"))
        strip = simplejpeg.decode_jpeg(encoded).astype(int)
        assert strip.shape == (pair["height"], pair["width"], 3) == (32, 64, 3)
        own = face(pair["synthetic_label"], int(pair["synthetic"][-4:])).astype(int)
        for half in (strip[:, :32], strip[:, 32:]):
            assert np.abs(half - own).mean() < 12  # but for JPEG, twice
    nearest, member = leaks.tables(found)
    assert [row[:2] for row in nearest.rows][:2] == [
        ("4 identities", "training"), ("4 identities", "training_matched")
    ]  # fmt: skip
    assert member.rows[0][2:] == ("10", "5", "not told from none")  # so few people tell nothing
    assert leaks.metrics(found)["leakage/membership/auc"] == found["membership"]["auc"]
    with pytest.raises(InputError, match="one dataset stands twice; they must differ"):
        leaks.real_datasets(made, real, real)
    with pytest.raises(InputError, match="no finished shard"):
        leaks.real_datasets(made, str(tmp_path / "none"))
    with pytest.raises(InputError, match="goes with --against, which is missing"):
        leaks.real_datasets(made, "", unseen)
    assert len(list(samples(made))) == 8
