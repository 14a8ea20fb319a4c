"""Reading a recipe: YAML, `--set` overrides, and one message for every mistake."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from factory.recipe.addresses import public
from factory.recipe.bank import BankRecipe
from factory.recipe.compose import ComposeRecipe
from factory.recipe.errors import InputError
from factory.recipe.fr import FRRecipe
from factory.recipe.generate import LATER, GenerateRecipe, Sampler
from factory.recipe.parts import P
from factory.recipe.train import TrainRecipe
from factory.recipe.yaml_values import yaml_values

Recipe = GenerateRecipe | TrainRecipe | FRRecipe | ComposeRecipe | BankRecipe
KINDS: dict[
    str,
    type[GenerateRecipe]
    | type[TrainRecipe]
    | type[FRRecipe]
    | type[ComposeRecipe]
    | type[BankRecipe],
] = {
    "generate": GenerateRecipe,
    "train": TrainRecipe,
    "fr": FRRecipe,
    "compose": ComposeRecipe,
    "bank": BankRecipe,
}
RECIPES = "jobs/recipes"
EXAMPLE = "desk/generate/studio.yaml"
PATTERNS = {  # what a field's pattern accepts, in words
    r"^([0-9a-f]{64})?$": "a sha256, 64 hex digits, or nothing",
    r"^[0-9a-f]{64}$": "a sha256, 64 hex digits",
    r"^([0-9a-f]{16})?$": "a content digest, 16 hex digits, or nothing",
    r"^[A-Za-z0-9_-]+$": "letters, digits, - and _",
}
LONGEST = 200  # of a value that an error shows
PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE.parent / RECIPES, PACKAGE / "recipes")  # of a checkout, and of a wheel
RENAMED = (
    "is named workers now: size is max, fused: false is committers: N with committer_num_cpus, and "
    "screen_size, screen_num_cpus and screen_num_gpus are gone"
)


def shipped(path: str | Path) -> Path:
    """Return the file of a recipe: the path itself, or a recipe that comes with the factory.

    Shipped recipes are named from jobs/recipes down, as desk/generate/studio.yaml, with or without
    jobs/recipes before it. This works in any folder. A file that exists at the path comes first.
    """
    path = Path(path)
    if _is_file(path):
        return path
    name = path.relative_to(RECIPES) if path.is_relative_to(RECIPES) else path
    found = (folder / name for folder in FOLDERS)
    return next((file for file in found if _is_file(file)), path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name longer than names may be, or with a zero byte
        return False


def load(path: str | Path, overrides: tuple[str, ...] | list[str] = (), kind: str = "") -> Recipe:
    """Read a recipe file and apply `path=value` overrides.

    Args:
        path: a YAML file, or the name of a shipped one (`shipped`).
        overrides: strings such as `identities.count=20`; the value is read as YAML.
        kind: when given, the only kind accepted.

    Raises:
        InputError: the file is missing or not YAML, or a field is unknown, missing or wrong.
    """
    path = shipped(path)
    if not _is_file(path):
        raise InputError(
            f"recipe: no file {path}; accepted is the path of a YAML recipe, or the name of one "
            f"that comes with the factory, as {EXAMPLE}"
        )
    try:
        text = path.read_text()
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"recipe: {path} is not YAML: {error}") from error
    raw = yaml_values(text, f"recipe: {path}")
    if not isinstance(raw, dict):
        held = "nothing" if raw is None else f"a {type(raw).__name__}"
        raise InputError(f"recipe: {path} holds {held}; it must hold fields, as kind: generate")
    for override in overrides:
        apply(raw, override)
    if kind and raw.get("kind") != kind:
        raise InputError(f"recipe field kind: {_value(raw.get('kind'))}; this job accepts {kind!r}")
    return parse(raw)


def parse(raw: dict[str, Any]) -> Recipe:
    """Validate a mapping as a recipe of the kind that it names; raises InputError."""
    if not isinstance(raw.get("kind"), str) or raw["kind"] not in KINDS:
        given = _value(raw.get("kind"))
        raise InputError(f"recipe field kind: {given}; accepted: {', '.join(KINDS)}")
    if not all(isinstance(name, str) for name in raw):
        wrong = next(name for name in raw if not isinstance(name, str))
        raise InputError(
            f"recipe: {_value(wrong)} stands where a field's name must be; names are texts"
        )
    for field, part in (("", raw), ("generate.", raw.get("generate"))):
        if isinstance(part, dict) and "pool" in part:
            raise InputError(f"recipe field {field}pool: {RENAMED}")
    return checked(KINDS[raw["kind"]], raw, "recipe field ")


def held(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe that an output keeps, with its fields as this version names them.

    Before 0.2, `workers` was `pool` and had a size, and some of the sampler's fields were not yet.
    """
    raw = dict(raw)
    if raw.get("kind") == "generate" and isinstance(raw.get("sampler"), dict):
        fields = Sampler.model_fields
        raw["sampler"] = {name: fields[name].default for name in LATER} | raw["sampler"]
    if isinstance(raw.get("generate"), dict):
        raw["generate"] = held(raw["generate"])
    old = raw.pop("pool", None)
    if not isinstance(old, dict):
        return raw
    apart = {"committers": old.get("screen_size", 1)} if not old.get("fused", True) else {}
    same = {name: old[name] for name in ("num_cpus", "num_gpus", "threads") if name in old}
    return {**raw, "workers": {"max": old.get("size", 1), **same, **apart}}


def checked(model: type[P], raw: dict[str, Any], what: str) -> P:
    """Validate `raw` as `model`.

    Args:
        model: the part to make.
        raw: its fields.
        what: words before each field's name, such as "recipe field ".

    Raises:
        InputError: fields are faulty; the message names each of them.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = [_explain(model, fault, what) for fault in error.errors()]
        raise InputError("; ".join(faults)) from None


def _explain(model: type[BaseModel], fault: Any, what: str) -> str:
    loc, named = fault["loc"], fault["loc"][-1:] == ("[key]",)
    field = _shown(".".join(map(str, loc[:-2] if named else loc)))
    if fault["type"] == "extra_forbidden":
        names = _accepted(model, fault["loc"][:-1]) or ["no field"]
        return f"{what}{field}: unknown; accepted: {', '.join(names)}"
    if fault["type"] == "missing":
        return f"{what}{field}: missing"
    if fault["type"] == "value_error":
        place = f"{what}{field}" if field else what.rstrip(". ").removesuffix(" field")
        return f"{place}: {public(str(fault['ctx']['error']))}"
    if fault["type"] in ("model_type", "dict_type"):
        fault = fault | {"msg": "accepted is a group of fields"}
    if fault["type"] == "string_pattern_mismatch":
        pattern = fault["ctx"]["pattern"]
        fault = fault | {"msg": f"accepted is {PATTERNS.get(pattern, pattern)}"}
    given = f"{'the name ' if named else ''}{_value(fault['input'])}"
    return f"{what}{field}: {given}; {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _value(value: Any) -> str:
    """Return a value as an error shows it: in one short line, without credentials."""
    return _short("null" if value is None else public(repr(value)))


def _shown(field: str) -> str:
    """Return a field's name as an error shows it: some names are the user's own words."""
    return _short(public(field if field.isprintable() else repr(field)))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _accepted(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Return the field names of the part at `loc` inside `model`."""
    for name in loc:
        if name not in model.model_fields:
            break
        annotation = model.model_fields[name].annotation
        parts = [annotation, *getattr(annotation, "__args__", ())]
        inner = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return sorted(model.model_fields)


def apply(raw: dict[str, Any], override: str) -> None:
    """Set one field of a mapping from `path=value`; the value is read as YAML.

    Raises:
        InputError: the text has another form, or the path goes through a value.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"--set {override!r}: accepted is path=value, as identities.count=20")
    value = yaml_values(text, f"--set {path}: {text[:100]!r}")
    *parents, leaf = path.split(".")
    for name in parents:
        raw = raw.setdefault(name, {})
        if not isinstance(raw, dict):
            raise InputError(f"--set {path}: {name} is not a group of fields")
    raw[leaf] = value
