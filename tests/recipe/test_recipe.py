import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

import factory.recipe
from factory.recipe import (
    FRRecipe,
    GenerateRecipe,
    InputError,
    TrainRecipe,
    bank_digest,
    canonical,
    content_digest,
    file_of,
    load,
    local_path,
    parse,
    with_options,
)

GENERATE: dict[str, Any] = {
    "kind": "generate",
    "name": "faces",
    "seed": 1,
    "system": "studio",
    "licence": "CC0-1.0",
    "image": {"size": 64},
    "identities": {"count": 20, "images_each": 8, "source": "train"},
    "shard": {"identities": 10},
    "workers": {"max": 2},
    "cost": {"seconds_per_image": [0.01, 0.02], "source": "a test"},
    "weights": {"teacher": {"location": "package:weights/t.safetensors", "sha256": "a" * 64}},
}
LOOKALIKE = {"max_cosine": 0.5, "embeddings": {"location": "real.npy", "sha256": "c" * 64}}
ENGINE = {"name": "torch"}
OPTIMIZER = {"name": "sgd", "lr": 0.1}
TRAIN: dict[str, Any] = {
    "kind": "train",
    "name": "unet",
    "seed": 1,
    "system": "idiff_face",
    "licence": "Apache-2.0",
    "image": {"size": 64},
    "data": {"train": "runs/faces"},
    "model": {},
    "optimizer": OPTIMIZER,
    "schedule": {"steps": 10, "batch_size": 4},
    "engine": ENGINE,
    "checkpoint": {"every_steps": 5},
}
BANK: dict[str, Any] = {
    "kind": "bank",
    "name": "bank",
    "seed": 1,
    "licence": "CC0-1.0",
    "candidates": {"url": "runs/faces", "digest": "0" * 16},
    "weights": {"recognizer": {"location": "r.safetensors"}},
    "max_cosine": 0.3,
    "known": {"location": "real.npy", "sha256": "c" * 64},
    "workers": {"max": 1},
}
COMPOSE: dict[str, Any] = {
    "kind": "compose",
    "name": "mix",
    "seed": 1,
    "pools": {"a": {"url": "runs/faces"}},
}
FR: dict[str, Any] = {
    **{name: TRAIN[name] for name in TRAIN if name not in ("system", "model")},
    "kind": "fr",
    "backbone": {"name": "r18"},
    "head": {"name": "cosface"},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GENERATE))
    return path


def changed(base: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(base)
    *parents, leaf = field.split(".")
    part = raw
    for name in parents:
        part = part.setdefault(name, {})
    part[leaf] = value
    return raw


def test_each_kind_is_read() -> None:
    kinds = (GENERATE, GenerateRecipe), (TRAIN, TrainRecipe), (FR, FRRecipe)
    for raw, kind in kinds:
        recipe = parse(raw)
        assert type(recipe) is kind
        assert parse(yaml.safe_load(canonical(recipe))) == recipe


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("imagesize", 64, ["recipe field imagesize: unknown", "accepted: ", "image, "]),
        ("identities.cuont", 3, ["recipe field identities.cuont: unknown", "count, images_each"]),
        ("identities.count", "many", ["recipe field identities.count: 'many'", "integer"]),
        ("identities.count", 0, ["recipe field identities.count: 0", "greater than or equal to 1"]),
        ("identities", 3, ["recipe field identities: 3"]),
        ("identities.max_cosine", 1.5, ["identities.max_cosine: 1.5", "less than or equal to 1"]),
        ("cost.seconds_per_image", [1.0], ["cost.seconds_per_image.1: missing"]),
        ("image.format", "gif", ["image.format: 'gif'", "'jpg' or 'png'"]),
        ("screens.max_attempts", 0, ["screens.max_attempts: 0"]),
        ("sampler", {"name": "euler", "steps": 2}, ["sampler.name: 'euler'", "'dpmsolver++'"]),
        ("weights.teacher.sha256", "abc", ["weights.teacher.sha256: 'abc'"]),
        ("workers.num_cpus", float("nan"), ["workers.num_cpus: nan", "finite"]),
        ("shard.slots", 9, ["shard.slots is 9", "1 to identities.images_each (8)"]),
        ("kind", "bake", ["recipe field kind: 'bake'; accepted: generate, train, fr"]),
    ],
)
def test_a_wrong_field_is_named_with_what_is_accepted(
    field: str, value: Any, words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        parse(changed(GENERATE, field, value))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["seed", "identities.count", "cost.source", "shard"])
def test_a_missing_field_is_named(field: str) -> None:
    raw = copy.deepcopy(GENERATE)
    *parents, leaf = field.split(".")
    part = raw
    for name in parents:
        part = part[name]
    del part[leaf]
    with pytest.raises(InputError, match=f"^recipe field {field}: missing$"):
        parse(raw)


def test_all_mistakes_are_told_at_once() -> None:
    raw = changed(changed(GENERATE, "seed", "x"), "workers.max", -1)
    with pytest.raises(InputError, match=r"seed: 'x'.*; recipe field workers.max: -1"):
        parse(raw)


@pytest.mark.parametrize(
    ("base", "field", "value", "words"),
    [
        (TRAIN, "schedule.epochs", 3, "exactly one of schedule.steps (10) and schedule.epochs (3)"),
        (TRAIN, "schedule.steps", None, "exactly one of schedule.steps (None)"),
        (FR, "engine.workers", 2, "engine.workers is 2, engine.name torch accepts 1"),
    ],
)
def test_fields_that_contradict_each_other(
    base: dict[str, Any], field: str, value: Any, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        parse(changed(base, field, value))
    assert words in str(caught.value)


def test_overrides(path: Path) -> None:
    overrides = ["identities.count=7", "name=other", "options.band=[0.1, 0.2]", "sampler=null"]
    recipe = load(path, overrides)
    assert isinstance(recipe, GenerateRecipe)
    assert (recipe.identities.count, recipe.name) == (7, "other")
    assert recipe.options == {"band": [0.1, 0.2]}
    assert recipe.sampler is None
    screened = load(path, ["screens.near_duplicate.max_cosine=0.9"])
    assert isinstance(screened, GenerateRecipe)
    assert screened.screens.near_duplicate is not None
    assert screened.screens.near_duplicate.max_cosine == 0.9


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("identities.count", "accepted is path=value"),
        ("=3", "accepted is path=value"),
        ("identities.count=[", "not a YAML value"),
        ("name.first=3", "name is not a group of fields"),
        ("identities.cnt=3", "recipe field identities.cnt: unknown"),
        ("identities.count=few", "recipe field identities.count: 'few'"),
    ],
)
def test_wrong_overrides(path: Path, override: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load(path, [override])
    assert words in str(caught.value)


def test_files_that_are_no_recipe(tmp_path: Path, path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="this job accepts 'fr'"):
        load(path, kind="fr")
    for content, words in (("a: [", "is not YAML"), ("- 1", "holds list"), ("", "holds NoneType")):
        path.write_text(content)
        with pytest.raises(InputError, match=words):
            load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not YAML"):
        load(path)


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
    now, pixels = content_digest(recipe, {}), factory.recipe._pixels

    def before(given: GenerateRecipe) -> dict[str, Any]:
        return {key: value for key, value in pixels(given).items() if key != "clipped"}

    monkeypatch.setattr(factory.recipe, "_pixels", before)
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


def test_a_lookalike_needs_eyes_to_be_seen() -> None:
    raw = changed(changed(GENERATE, "screens.real_lookalike", LOOKALIKE), "weights", {})
    with pytest.raises(InputError, match=r"screens\.real_lookalike needs weights\.teacher"):
        parse(raw)
    raw = changed(GENERATE, "screens.real_lookalike", {"max_cosine": 0.5})
    with pytest.raises(InputError, match=r"screens\.real_lookalike\.embeddings: missing"):
        parse(raw)


def test_versions_are_part_of_the_content() -> None:
    recipe = parse(GENERATE)
    assert isinstance(recipe, GenerateRecipe)
    assert content_digest(recipe, {"numpy": "2.0"}) != content_digest(recipe, {"numpy": "2.1"})


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(GENERATE).name = "other"


def test_locations() -> None:
    import factory

    inside = local_path("package:recipe.py")
    assert inside.samefile(Path(factory.__file__).parent / "recipe.py")
    for location in ("a/b", "adaface:a/b?channels=bgr", "diffusers:a/b"):
        assert local_path(location) == Path("a/b")
    assert local_path("file:///a/b") == Path("/a/b")
    assert local_path("onnx:package:recipe.py") == inside


def test_options_are_ours_and_the_rest_of_a_query_is_the_urls() -> None:
    assert with_options("a?channels=bgr&licence=my+own") == (
        "a",
        {"channels": "bgr", "licence": "my own"},
    )
    assert with_options("a?colour=bgr") == ("a", {"colour": "bgr"})  # to be refused
    url = "s3://b/a?endpoint_override=h:1&scheme=http"
    assert with_options(f"{url}&channels=bgr") == (url, {"channels": "bgr"})
    assert with_options("s3://b/a?channels=bgr") == ("s3://b/a", {"channels": "bgr"})
    assert file_of(f"adaface:{url}&channels=bgr") == url == file_of(url)


def test_null_drops_one_of_the_weights(path: Path) -> None:
    two = ["weights.judge={location: b.safetensors}", "weights.teacher=null"]
    recipe = load(path, two)
    assert isinstance(recipe, GenerateRecipe) and set(recipe.weights) == {"judge"}
    dropped = parse(changed(TRAIN, "weights", {"start": None}))
    assert isinstance(dropped, TrainRecipe) and dropped.weights == {}
    with pytest.raises(InputError, match=r"weights.recognizer is missing"):
        parse(BANK | {"weights": {"recognizer": None}})
    with pytest.raises(InputError, match="recipe field weights: 3"):
        load(path, ["weights=3"])


KEYED = (
    "s3://a-key:a-secret@bucket/x?region=r",
    "s3://bucket/x?access_key=a-key&secret_key=a-secret&region=r",
)


@pytest.mark.parametrize("url", KEYED)
@pytest.mark.parametrize(
    ("base", "field", "place"),
    [
        (GENERATE, "weights.teacher.location", "{}"),
        (GENERATE, "weights.teacher.location", "adaface:{}&channels=bgr"),
        (GENERATE, "screens.real_lookalike.embeddings.location", "{}"),
        (TRAIN, "data.train", "{}"),
        (TRAIN, "data.train", ("runs/a", "{}")),
        (TRAIN, "precompute.sidecar", "{}"),
        (TRAIN, "weights.start.location", "{}"),
        (FR, "data.train", "{}"),
        (FR, "benchmarks", "{}"),
        (BANK, "candidates.url", "{}"),
        (BANK, "known.location", "{}"),
        (COMPOSE, "pools.a.url", "{}"),
        (COMPOSE, "recognizer.location", "onnx:{}"),
    ],
)
def test_keys_in_an_address_are_refused_and_not_shown(
    base: dict[str, Any], field: str, place: str | tuple[str, ...], url: str
) -> None:
    screened = changed(base, "screens.real_lookalike", LOOKALIKE) if base is GENERATE else base

    def at(address: str) -> dict[str, Any]:
        kept = place.format(address) if isinstance(place, str) else [place[0], address]
        return changed(screened, field, kept)

    with pytest.raises(InputError) as caught:
        parse(at(url))
    said = str(caught.value)
    assert said.startswith(f"recipe field {field}: ") and said.count("; ") == 1, said
    assert "holds credentials" in said and "credentials in the environment" in said
    assert "a-key" not in said and "a-secret" not in said
    with pytest.raises(InputError) as caught:  # nor where a field is no address at all
        parse(changed(base, field.partition(".")[0], [url]))
    assert "a-secret" not in str(caught.value)
    for kept in ("s3://bucket/x?region=r&endpoint_override=h:9000", "gs://anonymous@bucket/x"):
        parse(at(kept))
