"""make_bank.py from candidates to a bank that verifies and is named by its digest."""

import json
import os
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import ready
import torch
import yaml
from faces import face, make_pool

from factory.datasets.claim import read_claim
from factory.datasets.embeddings import read_embeddings
from factory.datasets.images import ImageBank, contents_digest
from factory.datasets.manifest import load_manifest
from factory.datasets.store import Store
from factory.generation.selection import make_bank
from factory.recipe import Backbone, BankRecipe, InputError, NamedDataset, load
from factory.recognition.attributes import SHIPPED
from factory.recognition.backbones import make_backbone
from factory.recognition.faces import save_faces
from factory.recognition.recognizers import load_recognizer, save_recognizer

SIZE = 32


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A bank recipe: thirty candidates, of whom the first is known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = make_pool(tmp_path / "candidates", 30, 2, size=SIZE)
    torch.manual_seed(2)
    backbone = Backbone(name="iresnet", widths=(8, 8, 8, 16), depths=(1, 1, 1, 1))
    state = make_backbone(backbone, SIZE).state_dict()
    path = tmp_path / "recognizer.safetensors"
    save_recognizer(path, state, backbone, SIZE, "small", "MIT")
    recognizer = load_recognizer(str(path))
    bank = ImageBank(named(url), SIZE, "candidates", firsts=True)
    first = recognizer.embed(bank.images([0]))
    known = save_faces(tmp_path / "known.safetensors", first, recognizer.sha256)
    return {
        "kind": "bank",
        "name": "small",
        "seed": 1,
        "licence": "CC0-1.0",
        "candidates": named(url).model_dump(),
        "weights": {"recognizer": {"location": str(path), "licence": "MIT"}},
        "max_cosine": 0.99999,
        "known": {"location": str(tmp_path / "known.safetensors"), "sha256": known},
        "count": 10,
        "shard_images": 4,
        "workers": {"max": 2},
    }


def named(url: str) -> NamedDataset:
    return NamedDataset(url=url, digest=contents_digest(Store(url)))


def run(job: str, *arguments: str) -> CompletedProcess[str]:
    return ready.run(f"jobs/{job}", *arguments, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_bank_is_a_dataset_of_the_chosen_images(given: dict[str, Any], tmp_path: Path):
    path, out = tmp_path / "bank.yaml", str(tmp_path / "bank")
    path.write_text(yaml.safe_dump(given))
    recipe = load(path, kind="bank")
    assert isinstance(recipe, BankRecipe)
    said: list[str] = []
    manifest, counts = make_bank(recipe, out, said.append)
    assert counts["candidates"] == 30 and counts["known"] < 30 and counts["drawn"] == 10
    assert manifest.totals.kept == 10 and len(manifest.shards) == 3
    assert read_claim(Store(out))["selection"] == counts
    assert manifest.licence == "MIT"
    bank = ImageBank(named(out), SIZE, "bank", firsts=True)
    assert bank.labels.tolist() == list(range(10))
    recognizer = load_recognizer(recipe.weights["recognizer"].location)
    for row in range(10):
        origin = int(bank.sidecar(row)["candidate"].split("_")[0])
        assert origin > 0  # the known one
        assert np.abs(bank.image(row).astype(int) - face(origin, 0, SIZE)).mean() < 8
    for entry in manifest.shards:
        keys, embeddings = read_embeddings(Store(out), entry.name, entry.sha256, recognizer.sha256)
        rows = [int(key.split("_")[0]) for key in keys]
        np.testing.assert_allclose(
            embeddings, recognizer.embed(bank.images(rows)), rtol=1e-3, atol=1e-3
        )
    before = contents_digest(Store(out))
    make_bank(recipe, out, said.append)  # the same command again changes nothing
    assert contents_digest(Store(out)) == before
    other = recipe.model_copy(update={"count": 9})
    with pytest.raises(InputError, match="holds the dataset of another recipe"):
        make_bank(other, out, said.append)
    wide = recipe.model_copy(
        update={"workers": recipe.workers.model_copy(update={"num_gpus": 2.0})}
    )
    with pytest.raises(
        InputError, match=r"recipe field workers\.num_gpus: 2, but the largest node"
    ):
        make_bank(wide, out, said.append)  # each who looks at candidates reserves what is asked
    verified = run("verify.py", out)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_misspelt_attribute_is_refused_before_any_candidate_is_made(
    given: dict[str, Any], tmp_path: Path
):
    weights = given["weights"] | {"attributes": {"location": SHIPPED, "licence": "MIT"}}
    rules = [{"attribute": "age", "low": 18}, {"attribute": "glases", "high": 0.5}]
    path, out = tmp_path / "bank.yaml", tmp_path / "bank"
    path.write_text(yaml.safe_dump(given | {"weights": weights, "rules": rules}))
    refused = run("make_bank.py", str(path), "--out", str(out))
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "recipe field rules.1.attribute: 'glases'; accepted: yaw, " in refused.stderr
    assert not out.exists()


@pytest.mark.ray
@pytest.mark.slow
def test_the_job_makes_candidates_and_prints_the_digest(given: dict[str, Any], tmp_path: Path):
    studio = {
        "kind": "generate",
        "name": "candidates",
        "seed": 1,
        "system": "studio",
        "licence": "CC0-1.0",
        "image": {"size": SIZE},
        "identities": {"count": 6, "images_each": 1, "source": "gallery"},
        "shard": {"identities": 3},
        "workers": {"max": 1},
        "cost": {"seconds_per_image": [0.01, 0.02], "source": "a test"},
    }
    raw = given | {"candidates": None, "generate": studio, "count": 4, "known": None}
    path, out = tmp_path / "bank.yaml", str(tmp_path / "bank")
    path.write_text(yaml.safe_dump(raw))
    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = run("make_bank.py", str(path), "--out", out, "--tracking-uri", tracking)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents_digest(Store(out)) in done.stdout.splitlines()[-1]
    assert load_manifest(Store(f"{out}-candidates")).totals.kept == 6
    claim = json.loads((tmp_path / "bank" / "recipe.json").read_text())
    assert claim["selection"]["drawn"] == 4
    wrong = run("make_bank.py", str(path), "--out", out, "--set", "max_cosine=3")
    assert wrong.returncode == 2 and "max_cosine" in wrong.stderr
