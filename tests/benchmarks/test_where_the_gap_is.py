"""Where the gap arises: contexts by closed forms, and the whole table at its smallest."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from faces import make_dataset
from PIL import Image

from benchmarks.where_the_gap_is import (
    CONTEXTS,
    OWN_PEOPLE,
    ROWS,
    STUDIO,
    TRUTH,
    borrowed,
    centres,
    datasets,
    isotropic,
)
from factory.commands.chain import Chain
from factory.diffusion.files import save_weights
from factory.diffusion.schedule import Process
from factory.diffusion.unet import UNet, UNetConfig

ROOT = Path(__file__).parents[2]
TRAINING = ROOT / "benchmarks/truth.yaml"
PEOPLE, EACH, DIMENSION = 6, 4, 16


@pytest.fixture
def embedded() -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(3)
    labels = np.repeat(np.arange(PEOPLE), EACH)
    middles = draws.standard_normal((PEOPLE, DIMENSION))
    vectors = middles[labels] + 0.4 * draws.standard_normal((len(labels), DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def test_a_centre_is_its_persons_mean(embedded: tuple[np.ndarray, np.ndarray]) -> None:
    vectors, labels = embedded
    found = centres(vectors, labels)
    for person in range(PEOPLE):
        mean = vectors[labels == person].mean(axis=0)
        np.testing.assert_allclose(
            found[labels == person], np.tile(mean / np.linalg.norm(mean), (EACH, 1)), atol=1e-6
        )


def test_isotropic_contexts_are_as_far_from_the_centre_as_real_ones(
    embedded: tuple[np.ndarray, np.ndarray],
) -> None:
    vectors, labels = embedded
    middle, found = centres(vectors, labels), isotropic(vectors, labels)
    np.testing.assert_allclose((found * middle).sum(1), (vectors * middle).sum(1), atol=1e-5)
    assert np.abs((found * vectors).sum(1) - 1.0).min() > 1e-3


def test_borrowed_contexts_keep_their_person_and_take_anothers_difference(
    embedded: tuple[np.ndarray, np.ndarray],
) -> None:
    vectors, labels = embedded
    middle, found = centres(vectors, labels), borrowed(vectors, labels)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
    half = len(labels) // 2
    plain = middle[0] + vectors[half] - middle[half]
    assert labels[half] != labels[0]
    np.testing.assert_allclose(found[0], plain / np.linalg.norm(plain), atol=1e-6)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_the_table_is_made_and_resumed(tmp_path: Path) -> None:
    words = ["-m", "benchmarks.where_the_gap_is", "--out", str(tmp_path / "gap"), "--seeds", "1"]
    words += ["--people", "8", "--images-each", "8", "--json", str(tmp_path / "found.json")]
    words += ["--set", "sampler.steps=2", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    made = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    rows = json.loads((tmp_path / "found.json").read_text())
    assert list(rows) == [STUDIO, *(row for row in ROWS if row != TRUTH), OWN_PEOPLE]
    assert set(CONTEXTS) < set(ROWS)
    assert rows[STUDIO]["gap"] == 0.0
    again = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert json.loads((tmp_path / "found.json").read_text()) == rows


class Rendered(Chain):
    """A chain whose studio is a dataset of the tests' own, and that leaves the other jobs out."""

    def step(self, name: str, job: str, *arguments: str | Path, sets: Sequence[str] = ()) -> None:
        if name == STUDIO:
            make_dataset(self.run / STUDIO, 2, 2, size=64)


def test_the_truth_is_sampled_without_a_teacher(tmp_path: Path) -> None:
    model = UNetConfig.model_validate(yaml.safe_load(TRAINING.read_text())["model"])
    process = Process(prediction="v_prediction").model_dump()
    config = {"model": model.model_dump(mode="json"), "process": process}
    file = tmp_path / "denoiser.safetensors"
    save_weights(file, "denoiser", UNet(model), config, {"licence": "CC0-1.0"})
    chain, sets = Rendered(tmp_path, "", "", (1,), tmp_path), ("sampler.steps=1",)
    found = datasets(chain, "desk/generate/idiff_face_full.yaml", sets, [TRUTH], 2, 2, str(file))
    assert list(found) == [STUDIO, TRUTH]
    made = sorted((tmp_path / "images" / TRUTH).rglob("*.png"))
    assert [Image.open(one).size for one in made] == [(64, 64)] * 4
