"""The card: read by the Hub's own loader, and true to the manifest."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from factory.export.about import About
from factory.export.card import card, front_matter, size_category

Run = Callable[..., tuple[Path, About]]


@pytest.mark.parametrize("format", ["arcface_torch", "cvlface", "imagefolder", "hf", "wds", "edm"])
def test_front_matter_is_the_hubs(format: str, run: Run) -> None:
    folder, about = run(format)
    loaded = DatasetCard.load(folder / "README.md")
    data = loaded.data.to_dict()
    assert data["license"] == "cc-by-nc-4.0"
    assert "synthetic" in data["tags"] and "studio" in data["tags"]
    assert data["size_categories"] == ["n<1K"]
    assert data["pretty_name"] == "acme_v1"
    assert f"{about.images:,} synthetic face images of {about.classes:,} identities" in loaded.text


def test_the_strictest_licence_is_inherited_and_every_model_named(run: Run) -> None:
    folder, about = run("wds")
    text, licence = (folder / "README.md").read_text(), (folder / "LICENSE").read_text()
    assert about.source.licence == "CC-BY-NC-4.0"
    assert licence.startswith("acme_v1 may be used under: CC-BY-NC-4.0\n")
    for model, sha256, its in (("teacher", "ab", "MIT"), ("denoiser", "cd", "CC-BY-NC-4.0")):
        assert f"| {model} | {model}.st | {its} | `{sha256 * 32}` |" in text
        assert f"{its}  model {model}, sha256 {sha256 * 32}" in licence


def test_counts_screens_and_recipe_are_the_manifests(run: Run) -> None:
    folder, about = run("hf")
    text = (folder / "README.md").read_text()
    totals = about.source.manifests[0].totals
    assert f"| planned in the datasets it comes from | {totals.planned} |" in text
    assert f"| kept by the screens | {totals.kept} |" in text
    assert f"| images rejected: near_duplicate | {totals.reasons['near_duplicate']} |" in text
    assert "| screen near_duplicate | max_cosine 0.95 |" in text
    assert "| screen identity_drift | off |" in text
    assert about.source.sha256 in text and "name: patches" in text
    assert "can resemble a living person" in text


def test_other_licences_are_named_as_the_hub_wants(run: Run) -> None:
    _, about = run("wds")
    strange = about.source.__class__(**{**vars(about.source), "licence": "MIT-0"})
    changed = About(**{**vars(about), "source": strange})
    assert "license: other\nlicense_name: mit-0\nlicense_link: LICENSE\n" in front_matter(changed)


def test_measured_figures_are_listed_under_their_recognizer(run: Run) -> None:
    _, about = run("wds")
    assert "## Measured" not in card(about, [])
    judge = {"name": "judge", "sha256": "ef" * 32, "licence": "CC0-1.0"}
    text = card(about, [{"recognizer": judge, "eer": 0.0625, "r": None, "resolved": True}])
    assert "Under judge (licence CC0-1.0, sha256 `" in text
    assert "| eer | 0.0625 |" in text
    assert "| r |" not in text and "resolved" not in text


def test_photographs_are_not_called_synthetic(run: Run) -> None:
    _, about = run("wds")
    photographs = about.source.manifests[0].model_copy(
        update={"digitalSourceType": "digitalCapture"}
    )
    mixed = about.source.__class__(
        **{**vars(about.source), "manifests": (*about.source.manifests, photographs)}
    )
    text = card(About(**{**vars(about), "source": mixed}), [])
    assert "- synthetic" not in text
    assert "face images, not all synthetic, of" in text
    assert "digitalCapture" in text
    assert "Some images are photographs of people" in text
    assert "## Lookalikes" not in text


@pytest.mark.parametrize(
    ("images", "name"),
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (9999, "1K<n<10K"),
        (490_623, "100K<n<1M"),
        (10**12, "n>1T"),
    ],
)
def test_size_categories(images: int, name: str) -> None:
    assert size_category(images) == name
