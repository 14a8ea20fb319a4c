"""What the predictor's training refuses before it starts."""

import numpy as np
import pytest
from faces import make_pool

from factory.recipe import InputError
from factory.recognition.attributes import STUDIO, load_predictor
from factory.training import attributes
from factory.training.attributes import Truth, plan, train_attributes


@pytest.mark.parametrize(
    ("people", "each", "message"),
    [(15, 20, "too few identities; accepted are 16"), (16, 8, "120 images .* accepted are 128")],
)
def test_a_dataset_that_is_too_small_is_one_error(
    monkeypatch, tmp_path, people: int, each: int, message: str
) -> None:
    labels = np.repeat(np.arange(people), each)
    url = make_pool(tmp_path / "d", 2, 2)
    small = Truth(np.zeros((len(labels), 8, 8, 3), np.uint8), np.zeros((len(labels), 2)), labels)
    monkeypatch.setattr(attributes, "read_truth", lambda store, identities: small)
    with pytest.raises(InputError, match=message):
        plan(url, tmp_path / "out", 1, 1, "MIT")
    assert not (tmp_path / "out").exists()


def test_a_stricter_licence_of_the_dataset_is_inherited(monkeypatch, tmp_path) -> None:
    url, labels = make_pool(tmp_path / "d", 2, 2, licence="CC-BY-SA-4.0"), np.arange(160) % 16
    draws = np.random.default_rng(1)
    images = draws.integers(0, 255, (160, 16, 16, 3), np.uint8)
    truth = Truth(images, draws.normal(size=(160, len(STUDIO))).astype(np.float32), labels)
    monkeypatch.setattr(attributes, "read_truth", lambda store, identities: truth)
    for stated, expected in (("Apache-2.0", "CC-BY-SA-4.0"), ("proprietary", "proprietary")):
        out = tmp_path / stated
        made = train_attributes(plan(url, out, 1, 1, stated), lambda line: None)
        assert made["licence"] == expected
        assert load_predictor(str(out)).licence == expected
        assert plan(url, out, 1, 1, stated).claim.items() <= made.items(), "the same command"
        with pytest.raises(InputError, match=r"another recipe: seed is 1 there, 2 here; accepted"):
            plan(url, out, 1, 2, stated)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/me.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds me.jpg and no recipe.json; accepted is an empty"):
        plan(url, tmp_path / "mine", 1, 1, "MIT")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["me.jpg"]
