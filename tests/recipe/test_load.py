"""Recipes as they are read: fields, overrides, and one message for every mistake."""

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from raw import BANK, FR, GENERATE, LOOKALIKE, TRAIN, changed

from factory.recipe import (
    FRRecipe,
    GenerateRecipe,
    InputError,
    TrainRecipe,
    canonical,
    held,
    load,
    parse,
    shipped,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GENERATE))
    return path


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
        (
            FR,
            "engine.workers",
            2,
            "engine.workers is 2; several need engine.name: deepspeed",
        ),
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
        ("identities.count=[", "--set identities.count: '[' is not YAML"),
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
    for content, words in (
        ("a: [", "is not YAML"),
        ("- 1", "holds a list; it must"),
        ("", "holds nothing"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=words):
            load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not YAML"):
        load(path)


def test_a_lookalike_needs_eyes_to_be_seen() -> None:
    raw = changed(changed(GENERATE, "screens.real_lookalike", LOOKALIKE), "weights", {})
    with pytest.raises(InputError, match=r"screens\.real_lookalike needs weights\.teacher"):
        parse(raw)
    raw = changed(GENERATE, "screens.real_lookalike", {"max_cosine": 0.5})
    with pytest.raises(InputError, match=r"screens\.real_lookalike\.embeddings: missing"):
        parse(raw)


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(GENERATE).name = "other"


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


OLD_POOL: dict[str, Any] = {"size": 3, "num_cpus": 0.5, "num_gpus": 0.25, "threads": 2}
OLD_APART = {"fused": False, "screen_size": 2, "screen_num_cpus": 0.25, "screen_num_gpus": 0.125}


def old(pool: dict[str, Any], base: dict[str, Any] = GENERATE) -> dict[str, Any]:
    """Return a recipe as it was written before 0.2."""
    return {**{name: value for name, value in base.items() if name != "workers"}, "pool": pool}


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (old(OLD_POOL), "pool"),
        (old(OLD_POOL | OLD_APART), "pool"),
        (GENERATE | {"pool": None}, "pool"),
        (old({"size": 1}, BANK), "pool"),
        ({**BANK, "candidates": None, "generate": old({"size": 1})}, r"generate\.pool"),
    ],
)
def test_an_old_recipe_is_one_error_that_names_workers(raw: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=rf"^recipe field {field}: is named workers now: ") as told:
        parse(raw)
    said = str(told.value)
    assert "size is max" in said and "fused: false is committers: N" in said
    assert said.count("recipe field") == 1 and "\n" not in said


def test_an_old_override_is_the_same_error(path: Path) -> None:
    with pytest.raises(InputError, match=r"^recipe field pool: is named workers now"):
        load(path, ["pool.size=1"])
    path.write_text(yaml.safe_dump({**BANK, "candidates": None, "generate": GENERATE}))
    with pytest.raises(InputError, match=r"^recipe field generate\.pool: is named workers now"):
        load(path, ["generate.pool.size=1"])


def test_what_a_claim_of_before_says_is_read_in_todays_words() -> None:
    same = {"num_cpus": 0.5, "num_gpus": 0.25, "threads": 2}
    assert held(old(OLD_POOL)) == GENERATE | {"workers": {"max": 3, **same}}
    apart = held(old(OLD_POOL | OLD_APART))
    assert apart["workers"] == {"max": 3, **same, "committers": 2}
    assert held(old({"fused": False}))["workers"] == {"max": 1, "committers": 1}
    inner = held({**BANK, "candidates": None, "generate": old(OLD_POOL)})
    assert inner["generate"]["workers"]["max"] == 3
    for raw in (apart, inner, GENERATE, FR):
        assert held(raw) == raw
        parse(raw)
    before = old(OLD_POOL)
    held(before)
    assert before == old(OLD_POOL), "a claim is not changed by being read"


def test_fewest_workers_are_at_most_as_many_as_most() -> None:
    made = parse(GENERATE | {"workers": {"max": 2, "min": 1}})
    assert isinstance(made, GenerateRecipe) and made.workers.least == 1
    every = parse(GENERATE | {"workers": {"max": 2}})
    assert isinstance(every, GenerateRecipe) and every.workers.least == 2
    said = r"^recipe field workers: min is 3; it must be 1 to max \(2\)$"
    with pytest.raises(InputError, match=said):
        parse(GENERATE | {"workers": {"max": 2, "min": 3}})
    with pytest.raises(InputError, match=r"^recipe field workers\.min: 0; "):
        parse(GENERATE | {"workers": {"max": 2, "min": 0}})


def test_labels_are_shuffled_for_recognizers_alone() -> None:
    assert load(ROOT / "jobs/recipes/desk/fr/desk.yaml", ["data.shuffle_labels=true"])
    with pytest.raises(InputError, match=r"data.shuffle_labels is true; accepted with a recipe of"):
        load(ROOT / "jobs/recipes/desk/train/cemiface.yaml", ["data.shuffle_labels=true"])


def test_a_shipped_recipe_is_found_by_its_name_wherever_a_command_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "desk/generate/studio.yaml"
    file = ROOT / "jobs/recipes" / name
    for given in (name, Path(name), f"jobs/recipes/{name}", f"./{name}"):
        assert shipped(given).samefile(file)
    assert load(name) == load(file)
    (tmp_path / "desk/generate").mkdir(parents=True)
    (tmp_path / name).write_text(yaml.safe_dump(GENERATE))
    assert shipped(name) == Path(name) and load(name) == parse(GENERATE), "what is here comes first"
    for missing in ("desk/generate/none.yaml", "desk/generate", "none.yaml", tmp_path / "x.yaml"):
        assert shipped(missing) == Path(missing)
    with pytest.raises(InputError, match=r"^recipe: no file none\.yaml; accepted is .*the name of"):
        load("none.yaml")


def test_a_wheel_brings_the_recipes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There they are a package of data, beside no jobs folder."""
    module: Any = importlib.import_module("factory.recipe.load")
    inside = tmp_path / "factory/recipes"
    monkeypatch.setattr(module, "FOLDERS", (tmp_path / "jobs/recipes", inside))
    assert shipped("desk/fr/one.yaml") == Path("desk/fr/one.yaml")
    (inside / "desk/fr").mkdir(parents=True)
    (inside / "desk/fr/one.yaml").write_text("")
    for name in ("desk/fr/one.yaml", "jobs/recipes/desk/fr/one.yaml"):
        assert shipped(name) == inside / "desk/fr/one.yaml"
