"""The protocols as the job calls them."""

import json

import numpy as np
import pytest
import simplejpeg
from faces import face

from factory.evaluation.protocols import evaluate
from factory.evaluation.verification import write_bin
from factory.recipe import InputError


class Grid:
    name, size = "grid", 32

    def embed(self, images):
        cells = images.reshape(len(images), 8, 4, 8, 4, 3).mean(axis=(2, 4))
        return (cells.reshape(len(images), -1) - 120.0).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """Two benchmarks of forty pairs."""
    for world, name in enumerate(("toy", "lfw")):
        images, same = [], []
        for pair in range(40):
            other = pair if pair % 2 else pair + 100
            for identity, slot in ((pair, 0), (other, 1)):
                pixels = face(identity, slot, world=world)
                images.append(simplejpeg.encode_jpeg(pixels, 95, colorspace="RGB"))
            same.append(bool(pair % 2))
        write_bin(tmp_path / f"{name}.bin", images, same)
    return tmp_path


def test_groups_stand_beside_the_benchmarks_they_are_given_for(folder):
    groups = folder / "groups.json"
    groups.write_text(json.dumps({"toy": {"pairs": ["a", "a", "b", "b"] * 10}}))
    found = evaluate(Grid(), "verification", str(folder), lambda _: None, groups=str(groups))
    assert list(found.content["benchmarks"]) == ["lfw", "toy"]
    assert "fairness" not in found.content["benchmarks"]["lfw"]
    fair = found.content["benchmarks"]["toy"]["fairness"]
    assert list(fair["groups"]) == ["a", "b"]
    whole = found.content["benchmarks"]["toy"]["accuracy"]
    assert np.mean([g["accuracy"] for g in fair["groups"].values()]) == pytest.approx(whole)
    assert found.metrics["toy.group.a.accuracy"] == fair["groups"]["a"]["accuracy"]
    first, by_group = found.tables
    assert first.columns[-1] == "TAR@FAR=1e-3"
    assert first.rows[0][-1] == "unresolved"  # twenty impostor pairs
    assert len(by_group.rows) == 3 and by_group.rows[-1][0].startswith("spread ")
    json.dumps(found.content, allow_nan=False)


def test_what_does_not_belong_together_is_refused(folder):
    (folder / "g.json").write_text(json.dumps({"cfp_fp": {"pairs": ["a"]}}))

    def run(*arguments, **options):
        return evaluate(Grid(), *arguments, lambda _: None, **options)

    with pytest.raises(InputError, match="benchmark cfp_fp; accepted: lfw, toy"):
        run("verification", str(folder), groups=str(folder / "g.json"))
    with pytest.raises(InputError, match="--protocol megaface; accepted: verification, ijb"):
        run("megaface", str(folder))
    with pytest.raises(
        InputError, match="only --protocol verification reports groups, ijb does not"
    ):
        run("ijb", str(folder), groups="x")
    for protocol in ("verification", "tinyface"):
        with pytest.raises(InputError, match=f"only --protocol ijb has switches, {protocol} does"):
            run(protocol, str(folder), switches="N1D1F1")
    with pytest.raises(InputError, match="0 lists"):
        run("ijb", str(folder))
    with pytest.raises(InputError, match="Gallery_Match"):
        run("tinyface", str(folder))
