"""Digests: what changes pixels counts, and nothing else."""

import importlib
from typing import Any

import pytest
from raw import GENERATE, LOOKALIKE, changed

from factory.recipe import GenerateRecipe, bank_digest, content_digest, parse

DIGEST: Any = importlib.import_module("factory.recipe.digest")  # the package's `digest` is a call


@pytest.mark.parametrize(
    ("field", "value", "content", "bank"),
    [
        ("seed", 2, True, True),
        ("weights.teacher.sha256", "b" * 64, True, True),
        ("identities.source", "gallery", True, True),
        ("image.quality", 80, True, False),
        ("screens.max_attempts", 9, True, False),
        ("shard.identities", 5, True, False),
        ("identities.count", 40, False, False),
        ("identities.images_each", 9, False, False),
        ("workers.max", 8, False, False),
        ("name", "other", False, False),
        ("cost.source", "another", False, False),
        ("weights.teacher.location", "elsewhere", False, False),
        ("weights.teacher.location", "adaface:elsewhere?licence=MIT", False, False),
        ("weights.teacher.location", "adaface:elsewhere?channels=bgr", True, True),
        ("screens.real_lookalike", LOOKALIKE, True, False),
    ],
)
def test_digests_change_with_pixels_only(field: str, value: Any, content: bool, bank: bool) -> None:
    before, after = parse(GENERATE), parse(changed(GENERATE, field, value))
    assert isinstance(before, GenerateRecipe)
    assert isinstance(after, GenerateRecipe)
    versions = {"numpy": "2.0"}
    assert (content_digest(before, versions) != content_digest(after, versions)) is content
    assert (bank_digest(before) != bank_digest(after)) is bank


@pytest.mark.parametrize(
    ("name", "weights", "counts"),
    [
        ("ddim", "denoiser", True),
        ("ddpm", "denoiser", True),
        ("unipc", "denoiser", False),
        ("ddim", "autoencoder", False),
    ],
)
def test_where_pixels_are_clipped_the_digest_says_so(
    monkeypatch: pytest.MonkeyPatch, name: str, weights: str, counts: bool
) -> None:
    raw = changed(GENERATE, "sampler", {"name": name, "steps": 4, "dtype": "float32"})
    recipe = parse(changed(raw, f"weights.{weights}", {"location": "x"}))
    assert isinstance(recipe, GenerateRecipe)
    now, pixels = content_digest(recipe, {}), DIGEST._pixels

    def before(given: GenerateRecipe) -> dict[str, Any]:
        return {key: value for key, value in pixels(given).items() if key != "clipped"}

    monkeypatch.setattr(DIGEST, "_pixels", before)
    assert (content_digest(recipe, {}) != now) is counts


def test_known_faces_count_by_what_they_are_not_by_where_they_lie() -> None:
    def digest(path: str, value: Any) -> str:
        recipe = parse(changed(changed(GENERATE, "screens.real_lookalike", LOOKALIKE), path, value))
        assert isinstance(recipe, GenerateRecipe)
        return content_digest(recipe, {})

    rule = "screens.real_lookalike"
    assert digest(f"{rule}.embeddings.location", "a") == digest(f"{rule}.embeddings.location", "b")
    assert len({digest(f"{rule}.embeddings.sha256", letter * 64) for letter in "abc"}) == 3
    assert len({digest(f"{rule}.max_cosine", cosine) for cosine in (0.3, 0.4)}) == 2
    # no screen of this kind: the digest of datasets made before it was known
    old = changed(GENERATE, "screens", {"identity_drift": None, "near_duplicate": None})
    with_none = changed(old, "screens.real_lookalike", None)
    assert content_digest(parse(old), {}) == content_digest(parse(with_none), {})  # type: ignore[arg-type]


def test_versions_are_part_of_the_content() -> None:
    recipe = parse(GENERATE)
    assert isinstance(recipe, GenerateRecipe)
    assert content_digest(recipe, {"numpy": "2.0"}) != content_digest(recipe, {"numpy": "2.1"})
