"""Spaces: the compositions that a search may try, its fixed fields and its objectives.

A space is a Python file with one module-level `SPACE`. Trials are numbered. A trial's point decides
everything else: the recipes of its pools, of its composition and of its recognizer.
"""

import importlib.util
import itertools
import json
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from factory.datasets.provenance import pinned, versions
from factory.datasets.store import below
from factory.evaluation.verification import FOLDS
from factory.recipe import (
    AUTO,
    ComposeRecipe,
    FRRecipe,
    GenerateRecipe,
    InputError,
    KnownFaces,
    apply,
    content_digest,
    held,
    keyless,
    load,
    parse,
    with_precision,
)
from factory.seeding import generator, seed64

Point = dict[str, Any]  # the value of each axis, JSON values

OBJECTIVES = {
    "accuracy": "max",  # mean over seeds of the benchmarks' average, in [0, 1]
    "images": "min",  # distinct images of the composition
    "leakage": "min",  # mean over images of the highest cosine to a known face
    "generation_seconds": "min",  # actors' work for these images, now or earlier
}
FILLED = ("data", "seed", "name", "benchmarks")  # fields of the fr recipe that a trial sets
DESK = "jobs/recipes/desk"
BENCHMARKS = "package:studio/bins"


@dataclass(frozen=True)
class Choice:
    """An axis of a few values; numbers and lists count as ordered.

    Args:
        values: one or more JSON values. Tuples become lists, as they are in a sweep's folder.

    Raises:
        InputError: there is none, or one is no JSON value.
    """

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        if not values:
            raise InputError("Choice(): accepted is one value or more")
        try:
            kept = tuple(json.loads(json.dumps(value, allow_nan=False)) for value in values)
        except (TypeError, ValueError) as error:
            raise InputError(f"Choice(): {error}; accepted are JSON values") from None
        object.__setattr__(self, "values", kept)

    def at(self, u: float) -> Any:
        """Return the value at a place in [0, 1)."""
        return self.values[int(u * len(self.values))]

    def grid(self) -> tuple[Any, ...]:
        """Return every value."""
        return self.values

    @property
    def ordered(self) -> bool:
        """Tell whether the values are ordered."""
        return all(isinstance(value, (int, float, list)) for value in self.values)


@dataclass(frozen=True)
class Real:
    """An axis of numbers.

    Args:
        low, high: the ends of the axis, both included.
        log: draw uniformly on a logarithmic scale.
        steps: number of values in a grid search.
        digits: digits that a number keeps. With `log` they are significant digits; else they are
            decimals for an axis of length 1, and a shorter axis keeps more decimals.
    """

    low: float
    high: float
    log: bool = False
    steps: int = 5
    digits: int = 4

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0) or self.steps < 2:
            raise InputError(f"{self}: accepted is low < high, above 0 with log, steps above 1")
        if self.digits < 1:
            raise InputError(f"{self}: digits; accepted are 1 and more")

    def at(self, u: float) -> float:
        """Return the number at a place in [0, 1]."""
        if self.log:
            return self.kept(self.low * (self.high / self.low) ** u)
        return self.kept(self.low + (self.high - self.low) * u)

    def kept(self, number: float) -> float:
        """Return a number rounded to the axis's digits and limited to its ends."""
        if self.log:
            rounded = float(f"{number:.{self.digits}g}")
        else:
            rounded = round(number, self.digits - math.floor(math.log10(self.high - self.low)))
        return min(max(rounded, self.low), self.high)

    def grid(self) -> tuple[float, ...]:
        """Return `steps` evenly spaced numbers."""
        return tuple(self.at(n / (self.steps - 1)) for n in range(self.steps))


Axis = Choice | Real


@dataclass(frozen=True)
class Pool:
    """A dataset that is generated when a trial needs it for the first time.

    Args:
        recipe: path of a generate recipe.
        sets: overrides of its fields, in the form of `--set`.
    """

    recipe: str
    sets: tuple[str, ...]

    def __init__(self, recipe: str, *sets: str) -> None:
        object.__setattr__(self, "recipe", recipe)
        object.__setattr__(self, "sets", sets)

    def view(self, **fields: Any) -> "View":
        """Return a view of this pool; `fields` are those of a compose recipe's pool but `url`."""
        return View(self, fields)


@dataclass(frozen=True)
class View:
    """A pool, and the fields of a composition's view of it."""

    pool: Pool
    fields: dict[str, Any]


@dataclass(frozen=True)
class Asha:
    """Successive halving: at each rung a share of the trials is stopped.

    Attributes:
        grace: number of reports before a trial may be stopped.
        factor: one trial of so many continues.
    """

    grace: int = 1
    factor: float = 2.0

    def __post_init__(self) -> None:
        if self.grace < 1 or self.factor <= 1:
            raise InputError(f"{self}: accepted are grace of 1 and more, factor above 1")


@dataclass(frozen=True)
class Trial:
    """One composition to try, with all recipes.

    Attributes:
        number: its number in the search, from 0.
        point: the value of each axis.
        pools: generate recipe and address of each pool that may have to be made, by name.
        compose: the composition, which names its pools by address.
        fr: the recognizer's recipe; the trial sets `data` and `seed`.
    """

    number: int
    point: Point
    pools: dict[str, tuple[GenerateRecipe, str]]
    compose: ComposeRecipe
    fr: FRRecipe

    def as_dict(self) -> dict[str, Any]:
        """Return the trial as a JSON-able mapping."""
        return {
            "number": self.number,
            "point": self.point,
            "pools": {
                name: {"recipe": recipe.model_dump(mode="json"), "url": url}
                for name, (recipe, url) in self.pools.items()
            },
            "compose": self.compose.model_dump(mode="json"),
            "fr": self.fr.model_dump(mode="json"),
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Trial":
        """Return the trial that `as_dict` described."""
        pools = {
            name: (_generate(held(p["recipe"])), p["url"]) for name, p in values["pools"].items()
        }
        composed, recognizer = parse(values["compose"]), parse(values["fr"])
        assert isinstance(composed, ComposeRecipe) and isinstance(recognizer, FRRecipe)
        return cls(values["number"], values["point"], pools, composed, recognizer)


@dataclass(frozen=True)
class Space:
    """The description of a search.

    Args:
        name: the name of the sweep.
        question: one sentence that the results answer.
        axes: the axes that vary.
        composition: maps a point to the fields of a compose recipe. Its `pools` hold results of
            `Pool.view`, or plain mappings with the url of an existing dataset.
        fr: path of the recognizer's recipe.
        sets: overrides: `fr.FIELD=...`, `generate.FIELD=...` of every pool, `compose.FIELD=...`.
        benchmarks: folder of .bin files.
        objectives: names of `OBJECTIVES`; with several, the best trials form a Pareto front.
        search: how points are chosen. random: each is drawn by its number. grid: every combination,
            in an order drawn by the seed. tpe: drawn from the results of earlier points (optuna).
        seed: seed of the draws.
        seeds: seeds of the recognizers; one is trained on each composition for each seed.
        reports: how often a training reports its accuracy; the last report is at its end.
        pairs: number of pairs of each benchmark in the reports before the last one.
        known: for the objective leakage, faces of real people, embedded by the recognizer that the
            compositions name.
        asha: stops trials that look poor; None lets all finish.
        source: the text of the space's file.
        precision: the precision that `auto` stands for in recipes of kind `generate` and `fr`; the
            sweep sets it.
    """

    name: str
    question: str
    axes: dict[str, Axis]
    composition: Callable[[Point], dict[str, Any]]
    fr: str = f"{DESK}/fr/desk.yaml"
    sets: tuple[str, ...] = ()
    benchmarks: str = BENCHMARKS
    objectives: tuple[str, ...] = ("accuracy",)
    search: Literal["random", "grid", "tpe"] = "random"
    seed: int = 1
    seeds: tuple[int, ...] = (1,)
    reports: int = 4
    pairs: int = 100
    known: KnownFaces | None = None
    asha: Asha | None = None
    source: str = field(default="", compare=False)
    precision: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [name for name in self.objectives if name not in OBJECTIVES]
        if unknown or not self.objectives:
            raise InputError(
                f"space {self.name}: objectives {self.objectives}; accepted: "
                f"{', '.join(OBJECTIVES)}"
            )
        if self.search not in ("random", "grid", "tpe"):
            raise InputError(
                f"space {self.name}: search {self.search!r}; accepted: random, grid, tpe"
            )
        if ("leakage" in self.objectives) != (self.known is not None):
            raise InputError(
                f"space {self.name}: known is needed with the objective leakage, and with no other"
            )
        if self.asha and "accuracy" not in self.objectives:
            raise InputError(
                f"space {self.name}: asha goes by accuracy, which must be an objective"
            )
        if self.reports < 1 or self.pairs < FOLDS:
            raise InputError(
                f"space {self.name}: reports {self.reports}, pairs {self.pairs}; accepted are 1 "
                f"and more, and {FOLDS} pairs and more, one a fold"
            )
        whole = [seed for seed in self.seeds if isinstance(seed, int) and seed >= 0]
        if not self.seeds or len(set(whole)) < len(self.seeds):
            raise InputError(
                f"space {self.name}: seeds {self.seeds}; accepted are whole numbers, each once"
            )
        most = self.reports * len(self.seeds)
        if self.asha and self.asha.grace > most:
            raise InputError(
                f"space {self.name}: {self.asha}, but a trial reports {most} times; accepted is "
                f"grace of 1 to {most}"
            )
        keyless(self.benchmarks, what=f"space {self.name}: benchmarks: ")
        for override in self.sets:
            _check_set(override)

    @cached_property
    def grid(self) -> list[Point]:
        """Return every combination of the axes' grids, in an order drawn by the seed."""
        every = itertools.product(*(axis.grid() for axis in self.axes.values()))
        points = [dict(zip(self.axes, values, strict=True)) for values in every]
        order = generator(seed64(self.seed, "grid")).permutation(len(points))
        return [points[n] for n in order]

    def check_samples(self, samples: int) -> None:
        """Raise InputError if there are fewer points than `samples`."""
        most = len(self.grid) if self.search == "grid" else math.inf
        if not 1 <= samples <= most:
            raise InputError(f"--samples {samples}: accepted are 1 to {most} in space {self.name}")

    def draw(self, number: int) -> Point:
        """Return the point of a trial that no results decide, a function of its number.

        In a grid search the number is below that of the grid's points.
        """
        if self.search == "grid":
            return self.grid[number]
        return {
            name: axis.at(generator(seed64(self.seed, f"axis/{name}", number)).random())
            for name, axis in self.axes.items()
        }

    def trial(self, number: int, point: Point, pools: str) -> Trial:
        """Return a trial with all its recipes.

        Args:
            number: the trial's number.
            point: the value of each axis.
            pools: folder or URL above all pools.

        Raises:
            InputError: a recipe is missing or faulty, weights without a sha256 are missing, or the
                space's function fails.
        """
        raw = self._fields(point)
        views, made = {}, {}
        for name, view in raw["pools"].items():
            if isinstance(view, View):
                if view.fields.get("weight", 1.0) == 0:
                    continue  # an unused pool does not have to exist
                recipe = self._pool(view.pool)
                recipe = with_precision(recipe, self.precision.get("generate", AUTO))
                url = below(pools, pool_name(recipe))
                made[name], view = (recipe, url), {**view.fields, "url": url}
            views[name] = view
        given = {"kind": "compose", "name": f"{self.name}-{number:04d}", "seed": self.seed}
        fields = {**given, **raw, "pools": views}
        for override in self._sets("compose"):
            apply(fields, override)
        compose = parse(fields)
        fr = with_precision(self.recognizer(), self.precision.get("fr", AUTO))
        assert isinstance(compose, ComposeRecipe)
        if self.known is not None and compose.recognizer is None:
            raise InputError(f"space {self.name}: recognizer of its compositions is missing")
        named = {"name": f"{self.name}-{number:04d}", "benchmarks": self.benchmarks}
        fr = fr.model_copy(update=named)
        return Trial(number, point, made, compose, fr)

    def recognizer(self) -> FRRecipe:
        """Return the recognizer's recipe from its file and the overrides."""
        recipe = load(self.fr, self._sets("fr"), kind="fr")
        assert isinstance(recipe, FRRecipe)
        return recipe

    def generated(self, point: Point) -> list[GenerateRecipe]:
        """Return the recipes of a point's pools from their files and the overrides."""
        views = self._fields(point)["pools"].values()
        return [self._pool(view.pool) for view in views if isinstance(view, View)]

    def _fields(self, point: Point) -> dict[str, Any]:
        """Return the result of the space's function for a point."""
        what = f"space {self.name}: composition({point})"
        try:
            raw = self.composition(dict(point))
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{what}: {_explained(error)}") from error
        if not isinstance(raw, dict) or not isinstance(raw.get("pools"), dict):
            raise InputError(
                f"{what}: no pools; accepted are fields of a compose recipe, its pools by name"
            )
        return raw

    def _pool(self, pool: Pool) -> GenerateRecipe:
        recipe = load(pool.recipe, [*pool.sets, *self._sets("generate")], kind="generate")
        assert isinstance(recipe, GenerateRecipe)
        return pinned(recipe)  # the sha256 of weights is part of a pool's name

    def _sets(self, prefix: str) -> list[str]:
        return [s.partition(".")[2] for s in self.sets if s.startswith(f"{prefix}.")]

    def described(self) -> dict[str, Any]:
        """Return the space as a JSON-able mapping, without its functions."""
        axes = {name: _axis(axis) for name, axis in self.axes.items()}
        names = ("name", "question", "fr", "sets", "benchmarks", "objectives", "search", "seed",
                 "seeds", "reports", "pairs")  # fmt: skip
        asha = None if self.asha is None else {"grace": self.asha.grace, "factor": self.asha.factor}
        known = None if self.known is None else self.known.model_dump(mode="json")
        return {**{n: getattr(self, n) for n in names}, "axes": axes, "known": known, "asha": asha}


def load_space(path: str, overrides: Sequence[str] = ()) -> Space:
    """Run a space's file and return its SPACE with additional overrides.

    Raises:
        InputError: there is no such file, it fails, or it has no SPACE.
    """
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise InputError(f"space: no file {path}; accepted is a Python file with a SPACE")
    spec = importlib.util.spec_from_file_location(f"tune_space_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:
        raise InputError(f"space {path}: {_explained(error)}") from error
    space = getattr(module, "SPACE", None)
    if not isinstance(space, Space):
        raise InputError(f"space {path}: no SPACE of factory.search.Space in it")
    return replace(space, sets=(*space.sets, *overrides), source=file.read_text())


def _check_set(override: str) -> None:
    """Raise InputError for an override that would have no effect."""
    kind, _, name = override.partition("=")[0].partition(".")
    if kind not in ("fr", "generate", "compose") or not name:
        raise InputError(
            f"--set {override}: accepted are fr.FIELD=, generate.FIELD= and compose.FIELD="
        )
    if kind == "fr" and name.partition(".")[0] in FILLED:
        raise InputError(
            f"--set {override}: a trial fills in fr.{', fr.'.join(FILLED)}; accepted are other "
            "fields, --seeds and --benchmarks"
        )


def _explained(error: Exception) -> str:
    """Return the text of an error in a user's file, with its line."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    place = f"{Path(own[0].filename).name} line {own[0].lineno}: " if own else ""
    return f"{place}{type(error).__name__}: {error}"


def pool_name(recipe: GenerateRecipe) -> str:
    """Return the name of a pool's folder; equal names mean equal bytes."""
    counts = recipe.identities
    digest = content_digest(recipe, versions(recipe.weights))
    return f"{recipe.name}-{digest}-{counts.count}x{counts.images_each}"


def _generate(raw: dict[str, Any]) -> GenerateRecipe:
    recipe = parse(raw)
    assert isinstance(recipe, GenerateRecipe)
    return recipe


def _axis(axis: Axis) -> dict[str, Any]:
    if isinstance(axis, Choice):
        return {"values": list(axis.values), "ordered": axis.ordered}
    return {"low": axis.low, "high": axis.high, "log": axis.log, "ordered": True}
