"""Mistakes a user makes with `generate`: one clear error, exit code 2, nothing written."""

from pathlib import Path
from subprocess import CompletedProcess

import pytest
import ready

ROOT = Path(__file__).parents[2]
STUDIO = "jobs/recipes/desk/generate/studio.yaml"
IDIFF = "jobs/recipes/desk/generate/idiff_face.yaml"


def generate(*arguments: str | Path) -> CompletedProcess[str]:
    return ready.run("jobs/generate.py", *arguments)


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        (STUDIO, "identities.cuont=3", "identities.cuont: unknown; accepted: count, images_each"),
        (STUDIO, "identities.count=many", "identities.count: 'many'; input should be a valid int"),
        (STUDIO, "image.size=4", "image.size: 4; input should be greater than or equal to 16"),
        (STUDIO, "system=stylegan", "system: 'stylegan'; accepted: "),
        (STUDIO, "options.plane=true", "options.plane: unknown; accepted: plain"),
        (STUDIO, "identities.source=mars", "identities.source: 'mars'; studio accepts: train"),
        (STUDIO, "kind=fr", "kind: 'fr'; this job accepts 'generate'"),
        (STUDIO, "seed", "--set 'seed': accepted is path=value"),
        (
            IDIFF,
            "weights.denoiser.location=gone.bin",
            "weights.denoiser.location: no file gone.bin",
        ),
        (IDIFF, f"weights.denoiser.sha256={'ab' * 32}", "weights.denoiser.sha256: abab"),
        ("missing.yaml", "seed=1", "no file missing.yaml"),
    ],
)
def test_a_wrong_recipe_is_one_error(tmp_path: Path, recipe, override, message) -> None:
    out = tmp_path / "out"
    ran = generate(recipe, "--out", out, "--set", override)
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.strip().splitlines()
    assert message in line and line.endswith("(exit code 2)")
    assert not out.exists()


def test_a_folder_with_another_recipes_dataset_is_left_alone(tmp_path: Path) -> None:
    from factory.datasets.claim import write_claim
    from factory.datasets.store import Store
    from factory.recipe import load

    write_claim(Store(str(tmp_path)), load(ROOT / STUDIO), "0123", ())  # type: ignore[arg-type]
    before = (tmp_path / "recipe.json").read_bytes()
    ran = generate(STUDIO, "--out", tmp_path, "--set", "seed=8", "--set", "image.size=32")
    assert ran.returncode == 2
    assert "image.size is 64 there, 32 here, seed is 7 there, 8 here" in ran.stderr
    ran = generate(STUDIO, "--out", tmp_path)
    assert ran.returncode == 2 and "other versions of the libraries" in ran.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.json"]
    assert (tmp_path / "recipe.json").read_bytes() == before


def test_weights_that_took_the_place_of_others_do_not_go_on_with_their_dataset(
    tmp_path: Path,
) -> None:
    """As a denoiser that was trained again, in a recipe that states no sha256."""
    from factory.datasets.claim import write_claim
    from factory.datasets.provenance import pinned, versions
    from factory.datasets.store import Store
    from factory.recipe import GenerateRecipe, content_digest, load

    weights, out = tmp_path / "denoiser.safetensors", tmp_path / "out"
    weights.write_bytes(b"before")
    sets = (f"weights.denoiser.location={weights}", "weights.denoiser.sha256=''")
    sets = (*sets, "sampler.dtype=float32")
    recipe = load(ROOT / IDIFF, sets)
    assert isinstance(recipe, GenerateRecipe)
    begun = pinned(recipe)
    write_claim(Store(out), begun, content_digest(begun, versions()), ())
    before = (out / "recipe.json").read_bytes()
    weights.write_bytes(b"after")
    flags = [part for override in sets for part in ("--set", override)]
    ran = generate(IDIFF, "--out", out, "--extend", *flags)
    assert ran.returncode == 2, ran.stderr
    assert f"weights.denoiser.sha256 is {begun.weights['denoiser'].sha256!r}" in ran.stderr
    assert [p.name for p in out.iterdir()] == ["recipe.json"]
    assert (out / "recipe.json").read_bytes() == before


def test_a_folder_with_foreign_shards_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/a.tar").write_bytes(b"mine")
    ran = generate(STUDIO, "--out", tmp_path)
    assert ran.returncode == 2 and "holds shards/a.tar and no recipe.json" in ran.stderr
    assert (tmp_path / "shards/a.tar").read_bytes() == b"mine"


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = generate(STUDIO, "--out", out, "--dry-run")
    assert ran.returncode == 0 and not out.exists()
    assert "200 x 8 images" in ran.stdout
