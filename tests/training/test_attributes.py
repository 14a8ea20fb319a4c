"""What the predictor's training refuses before it starts."""

import numpy as np
import pytest

from factory.recipe import InputError
from factory.training import attributes
from factory.training.attributes import Truth, train_attributes


@pytest.mark.parametrize(
    ("people", "each", "message"),
    [(15, 20, "too few identities; accepted are 16"), (16, 8, "120 images .* accepted are 128")],
)
def test_a_dataset_that_is_too_small_is_one_error(
    monkeypatch, tmp_path, people: int, each: int, message: str
) -> None:
    labels = np.repeat(np.arange(people), each)
    small = Truth(np.zeros((len(labels), 8, 8, 3), np.uint8), np.zeros((len(labels), 2)), labels)
    monkeypatch.setattr(attributes, "read_truth", lambda store, identities: small)
    with pytest.raises(InputError, match=message):
        train_attributes(str(tmp_path), tmp_path / "out", 1, 1, "MIT", print)
    assert not (tmp_path / "out").exists()
