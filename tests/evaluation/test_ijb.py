"""IJB 1:1 on a tiny release written here, against plain loops and scikit-learn's ROC."""

import numpy as np
import pytest
import simplejpeg
from faces import face
from sklearn.metrics import roc_curve
from sklearn.preprocessing import normalize

from factory.evaluation import ijb
from factory.recipe import InputError
from factory.recognition.alignment import aligned
from factory.studio.render import TEMPLATE_112

EVERY = [ijb.Switches(n, d, f) for n in (False, True) for d in (False, True) for f in (False, True)]
SIZE = 32


class Grid:
    """A recognizer without weights that a mirror image and a length change."""

    name, size = "grid", SIZE

    def embed(self, images):
        cells = (
            images.reshape(len(images), 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(len(images), -1)
        )
        return (cells - 120.0).astype(np.float32)


def release(folder, name="ijbc", people=6, seed=0):
    """Write people x 2 templates of a few media with some frames; return what was written."""
    rng = np.random.default_rng(seed)
    (folder / "loose_crop").mkdir(parents=True)
    (folder / "meta").mkdir()
    members, points, known = [], [], []
    medium = 100
    for template in range(2 * people):
        for _ in range(rng.integers(1, 4)):
            medium += 1
            for _ in range(rng.integers(1, 4)):
                number = len(members) + 1
                image = face(template // 2, number, size=48)
                jpeg = simplejpeg.encode_jpeg(image, 95)
                (folder / "loose_crop" / f"{number}.jpg").write_bytes(jpeg)
                marks = TEMPLATE_112 * 48 / 112 + rng.normal(0, 0.5, (5, 2))
                score = rng.uniform(0.5, 1.0)
                members.append(f"{number}.jpg {template + 10} {medium}")
                numbers = " ".join(f"{value:.4f}" for value in marks.ravel())
                points.append(f"{number}.jpg {numbers} {score:.6f}")
                known.append((template + 10, medium, jpeg, marks, score))
    pairs = [(a + 10, b + 10, int(a // 2 == b // 2))
             for a in range(2 * people) for b in range(a + 1, 2 * people)]  # fmt: skip
    pairs = [pairs[n] for n in rng.permutation(len(pairs))]
    order = rng.permutation(len(members))
    lines = {
        "face_tid_mid": [members[n] for n in order],
        "name_5pts_score": [points[n] for n in order],
        "template_pair_label": ["{} {} {}".format(*pair) for pair in pairs],
    }
    for kind, text in lines.items():
        (folder / "meta" / f"{name}_{kind}.txt").write_text("\n".join(text) + "\n")
    return known, pairs


def by_loops(known, pairs, switches):
    """The protocol's scores once more: one image, one medium, one template at a time."""
    found = {}
    for template in {row[0] for row in known}:
        media = {}
        for tid, medium, jpeg, marks, score in known:
            if tid != template:
                continue
            crop = aligned(
                simplejpeg.decode_jpeg(jpeg), np.round(marks, 4).astype(np.float32), SIZE
            )[None]
            value = Grid().embed(crop)[0].astype(float)
            if switches.flip:
                value = value + Grid().embed(np.ascontiguousarray(crop[:, :, ::-1]))[0]
            if not switches.norm:
                value = value / np.sqrt((value**2).sum())
            if switches.detector:
                value = value * np.float32(round(score, 6))
            media.setdefault(medium, []).append(value)
        total = sum(np.mean(values, axis=0) for values in media.values())
        found[template] = normalize(total[None])[0]
    return np.array([found[a] @ found[b] for a, b, _ in pairs])


def nearest(scores, same, fars):
    """The ROC of scikit-learn, read as the field reads it."""
    fpr, tpr, _ = roc_curve(same, scores)
    fpr, tpr = np.flipud(fpr), np.flipud(tpr)
    return [tpr[min(zip(abs(fpr - far), range(len(fpr)), strict=True))[1]] for far in fars]


@pytest.mark.parametrize("switches", EVERY, ids=str)
def test_scores_equal_plain_loops_for_every_switch(tmp_path, switches, monkeypatch):
    monkeypatch.setattr(ijb, "BATCH", 7)
    known, pairs = release(tmp_path)
    read = ijb.read_release(tmp_path)
    order, unit = ijb.templates_of(Grid(), read, [switches])[str(switches)]
    scores = ijb.pair_scores(unit, np.searchsorted(order, read.pairs))
    expected = by_loops(known, pairs, switches)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert read.same.tolist() == [bool(label) for *_, label in pairs]


def test_all_switches_in_one_pass_are_those_of_one_pass_each(tmp_path):
    release(tmp_path)
    read = ijb.read_release(tmp_path)
    together = ijb.templates_of(Grid(), read, EVERY)
    assert list(together) == [str(setting) for setting in EVERY]
    for setting in EVERY:
        alone = ijb.templates_of(Grid(), read, [setting])[str(setting)]
        np.testing.assert_array_equal(alone[1], together[str(setting)][1])
    assert len({unit.tobytes() for _, unit in together.values()}) == len(EVERY)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("levels", [3, 20, 10_000])  # few levels: many ties
def test_tar_is_the_nearest_point_of_scikit_learns_roc(seed, levels):
    rng = np.random.default_rng(seed)
    same = rng.random(400) < 0.3
    scores = np.round((rng.normal(0, 1, 400) + same) * levels) / levels
    fars = [1e-6, 1e-4, 1e-3, 0.0123, 0.1, 0.5, 1.0]
    assert ijb.tar_at(scores, same, fars) == pytest.approx(nearest(scores, same, fars), abs=1e-12)


def test_all_scores_equal_and_a_score_that_is_no_number():
    same = np.array([True, False, False])
    assert ijb.tar_at(np.zeros(3), same, [0.1, 0.9]) == [0.0, 1.0]
    with pytest.raises(InputError, match="not a number"):
        ijb.tar_at(np.array([0.1, np.nan, 0.2]), same, [0.1])


@pytest.mark.parametrize("name", ["ijbb", "ijbc"])
def test_outcome_prints_switches_and_what_is_unresolved(tmp_path, name):
    release(tmp_path, name)
    found = ijb.evaluate_ijb(Grid(), tmp_path, EVERY[-2:])
    assert found.content["protocol"] == f"{name.upper()} 1:1"
    assert set(found.content["results"]) == {"N1D1F0", "N1D1F1"}
    tars = found.content["results"]["N1D1F1"]["tar"]
    assert tars["1e-6"] is None  # 60 impostor pairs cannot tell
    assert found.content["impostor_pairs"] == 60
    assert tars["1e-1"] is None and list(tars) == ["1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1"]
    assert "unresolved" in found.tables[0].rows[0]
    assert found.tables[0].columns[3] == "FAR=1e-4"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "meta" / "ijbc_face_tid_mid.txt").unlink(), "0 lists"),
        (lambda f: (f / "meta" / "ijbc_name_5pts_score.txt").unlink(), "no list"),
        (lambda f: (f / "meta" / "ijbc_template_pair_label.txt").unlink(), "no list"),
        (lambda f: (f / "loose_crop" / "3.jpg").unlink(), r"no image .*3\.jpg"),
        (lambda f: (f / "loose_crop" / "3.jpg").write_bytes(b"\xff\xd8\xff"), "cannot be read"),
        (lambda f: edit(f, "face_tid_mid", lambda t: t.replace(" ", " x", 1)), "line 1.*2 numbers"),
        (lambda f: edit(f, "face_tid_mid", lambda t: t.replace(" ", " " + 30 * "9", 1)), "line 1"),
        (lambda f: edit(f, "face_tid_mid", lambda t: "\xff" + t), "accepted is a list in UTF-8"),
        (lambda f: edit(f, "template_pair_label", lambda t: "\xff" + t), "template label"),
        (lambda f: edit(f, "name_5pts_score", lambda t: t[t.index("\n") + 1 :]), "other images"),
        (lambda f: edit(f, "template_pair_label", lambda t: t + "10 999 0\n"), r"template \[999\]"),
        (lambda f: edit(f, "template_pair_label", lambda t: t + "10 11 2\n"), "0 and 1"),
        (lambda f: edit(f, "template_pair_label", lambda t: t + "10 11\n"), "template label"),
        (lambda f: edit(f, "template_pair_label", lambda t: "10 11 1\n"), "one kind"),
    ],
)  # fmt: skip
def test_a_release_that_is_not_whole_is_refused(tmp_path, spoil, message):
    release(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        ijb.evaluate_ijb(Grid(), tmp_path, EVERY[:1])


def edit(folder, kind, change):
    path = folder / "meta" / f"ijbc_{kind}.txt"
    path.write_text(change(path.read_text()), encoding="latin-1")


def test_switches_are_read_as_they_are_printed():
    assert [str(ijb.Switches.parse(str(setting))) for setting in EVERY] == [str(s) for s in EVERY]
    with pytest.raises(InputError, match="accepted is N1D1F1"):
        ijb.Switches.parse("N2D1F1")
