"""The precision that a recipe states: auto has no digest, a fixed one keeps its own."""

from pathlib import Path

import pytest
from desk import FR, IDIFF, faces, recognizer

from factory.recipe import (
    AUTO,
    GenerateRecipe,
    InputError,
    bank_digest,
    content_digest,
    digest,
    kept_precision,
    load,
    stated_precision,
    with_precision,
)

ROOT = Path(__file__).parents[2]
FULL = "desk/generate/idiff_face_full.yaml"
WEIGHTS = (
    "weights.denoiser.sha256=a8b10d0c8a6bc5b8053bfee8d14754c31c225436a3cdd4196670a3c0efd9592a",
    "weights.teacher.sha256=fc26a3376dfd9f9702198baba02080a4cf566f3d50b680553b5184d5503fd742",
)


def test_every_desk_recipe_leaves_the_precision_to_the_machine() -> None:
    shipped = sorted((ROOT / "jobs/recipes/desk").rglob("*.yaml"))
    loaded = [load(path) for path in shipped]
    inner = [r.generate if r.kind == "bank" and r.generate else r for r in loaded]
    stated = [stated_precision(r) for r in inner if r.kind in ("generate", "train", "fr")]  # type: ignore[arg-type]
    assert len(stated) > 20 and set(stated) == {AUTO, ""}  # the studio computes in none


def test_recipes_that_state_a_precision_keep_their_digests() -> None:
    """The digests of the commit before `auto` was known, of the recipe as it was then."""
    then = ("identities.source=two_stage", "sampler.guidance_scale=1.75", "options={}", *WEIGHTS)
    low, full = (
        load(FULL, [*then, f"sampler.dtype={precision}"]) for precision in ("bfloat16", "float32")
    )
    assert isinstance(low, GenerateRecipe) and isinstance(full, GenerateRecipe)
    assert (content_digest(low, {}), bank_digest(low)) == ("8192e92b0d2da59e", "1d25712b5c0dc9c4")
    assert (content_digest(full, {}), bank_digest(full)) == ("6c04fe51cd7156a2", "839f537f1799d1b3")
    assert digest(recognizer("engine.precision=bfloat16")) == "bcb30f1301fd868d"


def test_auto_has_no_digest_before_it_is_settled() -> None:
    with pytest.raises(AssertionError, match="settled"):
        content_digest(faces(), {})
    made = with_precision(faces(), "float32")
    assert content_digest(made, {}) == content_digest(faces("sampler.dtype=float32"), {})
    assert with_precision(made, "bfloat16") is made


@pytest.mark.parametrize("word", ["float16", "bf16", "16", "true"])
@pytest.mark.parametrize(("path", "field"), [(IDIFF, "sampler.dtype"), (FR, "engine.precision")])
def test_another_word_is_one_error_that_names_those_accepted(
    path: Path, field: str, word: str
) -> None:
    with pytest.raises(InputError) as caught:
        load(path, [f"{field}={word}"])
    said = str(caught.value)
    assert said.startswith(f"recipe field {field}: ") and "'auto', 'float32' or 'bfloat16'" in said


@pytest.mark.parametrize("held", [{"sampler": {"dtype": "float8"}}, {"sampler": {"dtype": [1]}}])
def test_a_claim_with_another_word_is_one_error(held: object) -> None:
    with pytest.raises(InputError, match=r"sampler\.dtype"):
        kept_precision(faces(), held)
