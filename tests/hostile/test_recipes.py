"""Recipes, addresses and folders as people hand them in, in one table, as in `test_inputs`."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from faces import make_pool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import files, jpg, people
from raw import BANK, COMPOSE, FR, GENERATE, TRAIN
from rows import Make, Row, answered

from factory.plan import describe
from factory.recipe import GenerateRecipe, InputError, load
from factory.systems import create

DESK = "desk/generate"
STUDIO, IDIFF, DCFACE = (f"{DESK}/{name}.yaml" for name in ("studio", "idiff_face", "dcface"))
FR_DESK, DIFFUSION = "desk/fr/desk.yaml", "desk/train/idiff_face.yaml"
LONG, DIGITS = "n" * 300, "9" * 5000
NET = "package:weights/teacher/recognizer.safetensors"
BOMB = "x: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def sets(*overrides: str) -> list[object]:
    return [word for override in overrides for word in ("--set", override)]


def plan(override: str, *words: str, recipe: str = STUDIO, code: int = 2) -> Row:
    """Return a row of plan with one field of a shipped recipe set."""
    name = override if len(override) < 90 else f"{override[:60]}... of {len(override)}"
    return Row(f"{name} ({recipe})", "plan", lambda d: [recipe, *sets(override)], code, words)


def field(command: str, recipe: str, override: str, *words: str) -> Row:
    """Return a row of a command that makes a folder, with one field of its recipe set."""
    return Row(
        override[:80], command, lambda d: [recipe, "--out", d / "out", *sets(override)], 2, words
    )


def text(name: str, content: str | bytes, *words: str, command: str = "plan") -> Row:
    """Return a row of a recipe file with this content."""

    def make(d: Path) -> list[object]:
        file = d / "recipe.yaml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [file, *(() if command == "plan" else ("--out", d / "out"))]

    return Row(name, command, make, 2, words)


def mapping(name: str, raw: object, *words: str, command: str = "compose") -> Row:
    return text(name, yaml.safe_dump(raw), *words, command=command)


def pools(name: str, pool: object, *words: str, **more: object) -> Row:
    return mapping(name, COMPOSE | {"pools": pool} | more, *words)


FIELDS = [
    *(plan(f"identities.count={value}", "identities.count") for value in (
        "true", "1.5", "0", "-1", "null", "few", "'7 of them'", "[1]", "{a: 1}", "1e10",
        "10000000000", ".nan", ".inf", "0x", DIGITS)),
    *(plan(f"identities.images_each={value}", "identities.images_each") for value in (
        "true", "0", "-3", "10000000000", "1.0e+9.5")),
    *(plan(f"seed={value}", "seed") for value in (
        "-1", "18446744073709551616", "true", "1.5", "x", "null", "[]", DIGITS)),
    *(plan(f"image.size={value}", "image.size") for value in (
        "0", "15", "-64", "1025", "1000000", "true", "64.5", "'64x64'")),
    *(plan(f"image.quality={value}", "image.quality") for value in ("0", "101", "true")),
    plan("image.format=gif", "'jpg' or 'png'"),
    *(plan(f"sampler.steps={value}", "sampler.steps", recipe=IDIFF) for value in (
        "0", "1000000000", "-1", "true", "1.5")),
    *(plan(f"sampler.batch_size={value}", "sampler.batch_size", recipe=IDIFF) for value in (
        "0", "1000000000", "true")),
    plan("sampler.eta=-1", "sampler.eta", recipe=IDIFF),
    plan("sampler.guidance_scale=.inf", "sampler.guidance_scale", recipe=IDIFF),
    plan("sampler=null", "sampler", recipe=IDIFF),
    *(plan(f"workers.num_gpus={value}", "workers.num_gpus") for value in (
        "1.5", "-1", ".nan", "true", "1000000")),
    *(plan(f"workers.num_cpus={value}", "workers.num_cpus") for value in ("-1", ".nan", "1e9")),
    *(plan(f"workers.max={value}", "workers.max") for value in ("0", "-2", "true", "10000000000")),
    plan("workers.min=99", "workers"),
    plan("cost.seconds_per_image=[2, 1]", "cost"),
    plan("cost.seconds_per_image=[-1, 1]", "cost.seconds_per_image"),
    plan("cost.seconds_per_image=[1]", "cost.seconds_per_image.1: missing"),
    plan("cost.seconds_per_image=[.nan, .nan]", "cost.seconds_per_image"),
    *(plan(f"licence={value}", "licence") for value in (
        "''", "' '", '"a\\nb"', "null", "3", f"'{LONG}'")),
    *(plan(f"name={value}", "recipe field name") for value in (
        "a/b", "..", ".hidden", '"a\\nb"', "''", LONG, "null", "true", "1", "[a]", "'-x'",
        '"\\0"', "s3://b/x")),
    plan("name=2024-01-01", "2024-01-01", code=0),
    plan("system=nonsense", "system"),
    plan("system=../studio", "system"),
    plan("system=null", "system"),
    plan("weights=null", "weights", recipe=IDIFF),
    plan("weights.denoiser=null", "weights.denoiser", recipe=IDIFF),
    plan("weights.denoiser=x", "weights.denoiser", recipe=IDIFF),
    plan("weights.denoiser.location=null", "weights.denoiser.location", recipe=IDIFF),
    plan("weights.denoiser.sha256=abc", "weights.denoiser.sha256", recipe=IDIFF),
    plan("shard.identities=0", "shard.identities"),
    plan("shard.slots=99", "shard.slots"),
    plan("identities.max_cosine=1.5", "identities.max_cosine"),
    plan("identities.source=nobody", "source"),
    plan("options.nonsense=1", "options"),
    plan("options=null", "options"),
    plan("screens.max_attempts=0", "screens.max_attempts", recipe=IDIFF),
    plan("imagesize=64", "imagesize: unknown"),
    plan("identities.cuont=3", "cuont: unknown"),
    plan("identities=3", "recipe field identities: 3"),
    plan("kind=bake", "kind"),
    plan("kind=fr", "kind"),
    plan("kind=[generate]", "kind"),
    plan("identities.count", "accepted is path=value"),
    plan("=3", "accepted is path=value"),
    plan("a.b.c=[", "not YAML"),
    plan("name.first=3", "not a group of fields"),
    plan("seed=" + "[" * 5000 + "]" * 5000, "nested too deep"),
]  # fmt: skip

TEXTS = [
    text("a key that stands twice", "kind: generate\nseed: 7\nseed: 99\n", "'seed' stands twice"),
    text("a key that stands twice below", "a: {b: 1, b: 1}", "'b' stands twice"),
    text("5,000 lists deep", "a: " + "[" * 5000 + "]" * 5000, "nested too deep"),
    text("an alias bomb", BOMB, "more than"),
    text("an alias that holds itself", "a: &a {b: *a}", "an alias stands inside what it names"),
    text("a list that holds itself", "a: &a [*a]", "an alias stands inside what it names"),
    text("an integer of 5,000 digits", f"seed: {DIGITS}", "more than 4300 digits"),
    text("a tag that runs a command", "!!python/object/apply:os.system ['touch ran']", "not YAML"),
    text("nothing", "", "holds nothing"),
    text("a list", "- 1", "holds a list"),
    text("a word", "hello", "holds a str"),
    text("half a list", "a: [", "not YAML"),
    text("a zero byte", b"a: \x00", "not YAML"),
    text("UTF-16", b"\xff\xfe\x00", "not YAML"),
    text("Latin-1", b"name: caf\xe9", "not YAML"),
    text("a number for a key", "kind: generate\n1: 2\n", "names are texts"),
    text("null for a key", "kind: generate\n~: 2\n", "names are texts"),
    text("JSON of a dataset", '{"shards": []}', "kind"),
    text("two documents", "a: 1\n---\nb: 2\n", "not YAML"),
    text("an image", jpg(1), "not YAML"),
    mapping("a date for a seed", GENERATE | {"seed": "2024-01-01"}, "seed", command="plan"),
    Row("no such file", "plan", lambda d: [d / "none.yaml"], 2, ("no file",)),
    Row("a folder for a recipe", "plan", lambda d: [d], 2, ("no file",)),
    Row("a recipe of another kind", "generate", lambda d: [FR_DESK, "--out", d / "out"], 2,
        ("this job accepts 'generate'",)),
]  # fmt: skip

OTHERS = [
    *(pools(f"a pool repeated {n}", {"a": {"url": "x", "repeat": n}}, "pools.a.repeat")
      for n in (10**9, 0, True, 1.5)),
    *(pools(f"a pool that weighs {n}", {"a": {"url": "x", "weight": n}}, "pools.a.weight", images=9)
      for n in (-1, float("nan"), float("inf"), True)),
    *(pools(f"a pool named {n!r}", {n: {"url": "x"}}, "pools")
      for n in ("a/b", "..", "a\nb", "", LONG, 3)),
    pools("no pools", {}, "pools"),
    pools("pools of null", None, "pools"),
    pools("a pool of null", {"a": None}, "pools.a"),
    pools("a pool nowhere", {"a": {"url": "nowhere"}}, "nowhere"),
    pools("pools of 1e10 images", {"a": {"url": "x"}}, "images", images=10**10),
    pools("shards of nothing", {"a": {"url": "x"}}, "shard_images", shard_images=0),
    pools("a band the wrong way", {"a": {"url": "x", "centre_band": [0.9, 0.1]}}, "centre_band"),
    pools("a band without a recognizer", {"a": {"url": "x", "centre_band": [0, 1]}}, "recognizer"),
    pools("keys in a pool's address", {"a": {"url": "s3://k:secret@b/x"}}, "holds credentials"),
    field("train_recognizer", FR_DESK, "schedule.steps=1000000000000", "schedule.steps"),
    field("train_recognizer", FR_DESK, "schedule.batch_size=0", "schedule.batch_size"),
    field("train_recognizer", FR_DESK, "schedule.batch_size=true", "schedule.batch_size"),
    field("train_recognizer", FR_DESK, "engine.num_gpus=1.5", "engine.num_gpus"),
    field("train_recognizer", FR_DESK, "engine.workers=0", "engine.workers"),
    field("train_recognizer", FR_DESK, "optimizer.lr=-1", "optimizer.lr"),
    field("train_recognizer", FR_DESK, "data.train=nowhere", "nowhere"),
    field("train_recognizer", FR_DESK, "backbone.name=r9000", "backbone.name"),
    field("train_recognizer", FR_DESK, "head.name=bald", "head.name"),
    field("train_recognizer", FR_DESK, "seed=-1", "seed"),
    field("train_diffusion", DIFFUSION, "schedule.batch_size=1000000000000", "schedule.batch_size"),
    field("train_diffusion", DIFFUSION, "system=nonsense", "system"),
    field("train_diffusion", DIFFUSION, "data.train=nowhere", "nowhere"),
    field("train_diffusion", DIFFUSION, "weights=null", "weights"),
    field("train_diffusion", DIFFUSION, "name=../x", "recipe field name"),
    field("make_bank", "desk/bank/dcface.yaml", "max_cosine=3", "max_cosine"),
    field("make_bank", "desk/bank/dcface.yaml", "count=10000000000", "count"),
    field("make_bank", "desk/bank/dcface.yaml", "weights=null", "weights"),
    field("generate", STUDIO, "identities.count=true", "identities.count"),
    field("generate", STUDIO, "workers.num_gpus=1.5", "workers.num_gpus"),
    field("generate", STUDIO, "system=nonsense", "system"),
    field("generate", IDIFF, "weights=null", "weights"),
    field("generate", IDIFF, "weights.denoiser.location=nowhere.safetensors", "nowhere"),
]  # fmt: skip


def mine(d: Path) -> Path:
    return files(d / "mine", {"me.jpg": jpg(1)})


def composed(d: Path) -> Path:
    (d / "view.yaml").write_text(
        yaml.safe_dump(COMPOSE | {"pools": {"a": {"url": make_pool(d / "data", 2, 2)}}})
    )
    return d / "view.yaml"


def learnt(d: Path, recipe: str, out: Path) -> list[object]:
    return [recipe, "--out", out, *sets(f"data.train={make_pool(d / 'data', 2, 2)}")]


AUTOENCODER, BANKS = "desk/train/autoencoder.yaml", "desk/bank/dcface.yaml"
# The bank's own denoiser is to be trained first; a shipped one stands in where none is sampled.
NOBODYS = (
    "--set",
    "generate.weights.denoiser.location=package:weights/dcface/few.safetensors",
)
SPACE = Path(__file__).parents[2] / "tune_spaces/similarity_bands.py"
ADDRESSED: dict[str, Make] = {
    "generate": lambda d: [STUDIO, "--out", d / "out"],
    "prepare": lambda d: [people(d / "s"), "--out", d / "out", "--licence", "own"],
    "train_recognizer": lambda d: learnt(d, FR_DESK, d / "out"),
    "train_diffusion": lambda d: learnt(d, AUTOENCODER, d / "out"),
    "make_bank": lambda d: [BANKS, *NOBODYS, "--out", d / "out"],
    "sweep": lambda d: [SPACE, "--samples", 1, "--out", d / "out"],
}
INTO: dict[str, Make] = {
    "generate": lambda d: [STUDIO, "--out", mine(d)],
    "train_recognizer": lambda d: learnt(d, FR_DESK, mine(d)),
    "train_diffusion": lambda d: learnt(d, AUTOENCODER, mine(d)),
    "train_attributes": lambda d: [make_pool(d / "data", 2, 2), "--out", mine(d)],
    "make_bank": lambda d: [BANKS, *NOBODYS, "--out", mine(d)],
    "export": lambda d: [make_pool(d / "data", 2, 2), "--format", "wds", "--to", mine(d)],
    "prepare": lambda d: [people(d / "s"), "--out", mine(d), "--licence", "own"],
    "compose": lambda d: [composed(d), "--out", mine(d)],
    "make_benchmarks": lambda d: ["--out", mine(d)],
    "demo": lambda d: ["--out", mine(d)],
    "compare": lambda d: [FR_DESK, "--real", d / "a", "--dataset", d / "b", "--out", mine(d)],
    "sweep": lambda d: [SPACE, "--samples", 1, "--out", mine(d)],
}
PLACES = [
    *(Row("an address of no cluster", name, lambda d, make=make: [*make(d), "--address",
          "nonsense://x"], 2, ("--address 'nonsense://x'", "HOST:PORT"))
      for name, make in ADDRESSED.items()),
    *(Row("into somebody's photographs", name, make, 2, ("holds me.jpg",))
      for name, make in INTO.items()),
    Row("shards into somebody's photographs", "compose",
        lambda d: [composed(d), "--out", d / "view", "--materialise", mine(d)], 2,
        ("holds me.jpg",)),
    Row("out of 300", "generate", lambda d: [STUDIO, "--out", d / LONG], 2, ("300",)),
    Row("out to an unknown scheme", "generate", lambda d: [STUDIO, "--out", "ftq://x/y"], 2,
        ("ftq",)),
    Row("out with keys", "sweep", lambda d: [SPACE, "--samples", 1, "--out",
        "s3://k:secret@b/x"], 2, ("holds credentials",)),
]  # fmt: skip
TABLE = [*FIELDS, *TEXTS, *OTHERS, *PLACES]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.command}: {row.name}")
def test_it_is_right_or_one_line(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answered(row, tmp_path, monkeypatch, capfd)


def test_the_table_names_no_row_twice() -> None:
    names = [(row.command, row.name) for row in TABLE]
    assert len(names) >= 200 and len(set(names)) == len(names)


def places(part: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the places of all fields of a recipe, and one more of each group."""
    found = [above] if above else []
    if isinstance(part, dict):
        for name in (*part, "more"):
            found += places(part.get(name), (*above, name))
    return found


PLACES_OF = [(raw, place) for raw in (GENERATE, TRAIN, FR, BANK, COMPOSE) for place in places(raw)]
TEXTS_OF_ANY_KIND = st.text(max_size=8) | st.sampled_from(
    ["..", "a/b", "a\nb", "\0", "1e10", "nan", "null", "2024-01-01", "s3://k:secret@b/x", LONG]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 10**10, 2**64, 2**70])
    | st.floats()
    | TEXTS_OF_ANY_KIND,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS_OF_ANY_KIND, inner, max_size=3)
    ),
    max_leaves=10,
)


def test_a_name_that_is_an_address_is_refused_without_its_keys() -> None:
    with pytest.raises(InputError, match="recipe field name: 's3://b/x'; accepted are") as caught:
        load("desk/generate/studio.yaml", ["name=s3://k:secret@b/x"])
    assert "secret" not in str(caught.value)


@settings(
    max_examples=int(os.environ.get("HOSTILE_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.sampled_from(PLACES_OF), VALUES)
def test_any_value_anywhere_is_a_recipe_or_one_error(
    tmp_path: Path, where: tuple[dict[str, Any], tuple[str, ...]], value: object
) -> None:
    """What is a recipe can be planned at once, however large its counts are."""
    raw = copy.deepcopy(where[0])
    part, (*parents, leaf) = raw, where[1]
    for name in parents:
        part = part[name]
    part[leaf] = value
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(raw, allow_unicode=True))
    try:
        recipe = load(file)
        if isinstance(recipe, GenerateRecipe):
            create(recipe)
            assert all(isinstance(text, str) for text in describe(recipe).values())
    except InputError as error:
        said = str(error)
        assert said.isprintable() and len(said) < 2000 and "secret" not in said
