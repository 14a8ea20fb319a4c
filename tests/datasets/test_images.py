"""A dataset named by what it holds, and its images read at random."""

import json
from pathlib import Path

import numpy as np
import pytest
from faces import face, make_pool

from factory.datasets.claim import planned, read_claim, write_claim
from factory.datasets.images import ImageBank, contents_digest
from factory.datasets.manifest import inherited, merge
from factory.datasets.store import Store
from factory.recipe import GenerateRecipe, InputError, NamedDataset, content_digest, parse

SIZE = 32


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NamedDataset:
    """Five identities of three images each, named as a recipe names them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = make_pool(tmp_path / "faces", 5, 3, size=SIZE, per=2)
    return NamedDataset(url=url, digest=contents_digest(Store(url)))


def test_images_are_those_of_the_dataset_in_key_order(named: NamedDataset):
    bank = ImageBank(named, SIZE, "options.bank")
    assert len(bank) == 15
    assert bank.labels.tolist() == [n // 3 for n in range(15)]
    for row in (14, 0, 7):
        close = np.abs(bank.image(row).astype(int) - face(row // 3, row % 3, SIZE)).mean()
        assert close < 6  # JPEG
        assert bank.sidecar(row)["slot"] == row % 3
        assert bank.key(row) == f"{row // 3:07d}_{row % 3:04d}"


def test_firsts_are_one_image_of_each_identity(named: NamedDataset):
    bank = ImageBank(named, SIZE, "options.bank", firsts=True)
    assert bank.labels.tolist() == [0, 1, 2, 3, 4]
    assert [bank.sidecar(row)["slot"] for row in range(5)] == [0] * 5
    assert bank.images([3, 3, 1]).shape == (3, SIZE, SIZE, 3)


def test_another_content_is_refused_with_the_right_digest(named: NamedDataset):
    wrong = NamedDataset(url=named.url, digest="0" * 16)
    with pytest.raises(InputError, match=rf"options\.bank\.digest: 0+, but .* has {named.digest}"):
        ImageBank(wrong, SIZE, "options.bank")
    with pytest.raises(InputError, match="accepted are 16x16"):
        ImageBank(named, 16, "options.bank").image(0)


def test_the_digest_is_of_the_content_not_of_the_place(named: NamedDataset, tmp_path: Path):
    same = make_pool(tmp_path / "elsewhere", 5, 3, size=SIZE, per=2)
    other = make_pool(tmp_path / "others", 5, 3, world=1, size=SIZE, per=2)
    assert contents_digest(Store(same)) == named.digest
    assert contents_digest(Store(other)) != named.digest


def test_content_digest_follows_the_digest_and_not_the_url():
    def made(url: str, digest: str) -> str:
        raw = {
            "kind": "generate",
            "name": "n",
            "seed": 1,
            "system": "dcface",
            "licence": "CC0-1.0",
            "image": {"size": 64},
            "identities": {"count": 1, "images_each": 1, "source": "bank"},
            "shard": {"identities": 1},
            "workers": {"max": 1},
            "cost": {"seconds_per_image": [1, 2], "source": "a test"},
            "options": {"styles": {"dataset": {"url": url, "digest": digest}}},
        }
        recipe = parse(raw)
        assert isinstance(recipe, GenerateRecipe)
        return content_digest(recipe, {})

    assert made("here", "a" * 16) == made("there", "a" * 16) != made("here", "b" * 16)


def test_what_is_drawn_from_a_bank_names_its_models_and_takes_its_licence(tmp_path: Path):
    bank, made = (Store(make_pool(tmp_path / n, 2, 2, size=SIZE)) for n in ("bank", "made"))
    net = {"location": "net.safetensors", "sha256": "b" * 64, "licence": "CC-BY-NC-4.0"}
    held = read_claim(bank)
    held["recipe"]["weights"] = {"denoiser": net}
    bank.write("recipe.json", json.dumps(held).encode())
    merge(bank, planned(held))
    assert inherited(()) is None
    handed_down = inherited([bank])
    recipe = parse(read_claim(made)["recipe"])
    assert isinstance(recipe, GenerateRecipe)
    write_claim(made, recipe, read_claim(made)["content_digest"], (), handed_down)
    manifest = merge(made, planned(read_claim(made)))
    assert [(one.name, one.sha256) for one in manifest.models] == [("denoiser", "b" * 64)]
    assert recipe.licence == "CC0-1.0"
    assert manifest.licence == "CC-BY-NC-4.0"
