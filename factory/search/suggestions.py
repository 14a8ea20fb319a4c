"""The next points of a sweep, drawn by position or by TPE, and the scheduler ASHA."""

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from factory.recipe import InputError
from factory.search.book import Book
from factory.search.space import OBJECTIVES, Space
from factory.search.trial import ACCURACY
from factory.seeding import seed64

LOST = 2  # number of nodes that a trial may lose; it continues from its folder
TPE_DRAWS = 50  # draws to find a new point that is not refused; then the last one is taken
TPE_RANDOM = 5  # first trials that are drawn by their number, before TPE has enough results


class Suggestions(Searcher):
    """Suggests trials by number; points follow from the number, or from the results so far."""

    def __init__(self, space: Space, book: Book, todo: list[int], pools: str) -> None:
        super().__init__(metric=ACCURACY, mode="max")
        self.space, self.book, self.todo, self.pools = space, book, todo, pools

    def suggest(self, trial_id: str) -> Any:
        """Write the next trial's description and return its number."""
        if not self.todo:
            return Searcher.FINISHED
        number = self.todo.pop(0)
        if self.book.begun(number) is None:
            random = self.space.search != "tpe" or number < TPE_RANDOM
            point = (
                self.space.draw(number)
                if random
                else tpe(self.space, self.book, number, self._makes_recipes)
            )
            self.book.begin(self.space.trial(number, point, self.pools))
        self.book.note(number, {"asked": time.time()})
        return {"number": number}

    def _makes_recipes(self, point: dict[str, Any]) -> bool:
        try:
            self.space.trial(0, point, self.pools)
        except InputError:
            return False
        return True

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the results are read from the folder."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing for Tune to pickle, as in `Following`."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, because suggestions follow from the sweep's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


def tpe(
    space: Space, book: Book, number: int, accepted: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Return the point that optuna's TPE draws for a trial, given the results so far.

    TPE gets the values of an axis by their place, so that values may be lists. With one objective,
    stopped trials count as pruned. With several, for which optuna has no pruning, they count with
    their last accuracy. A point is drawn again if it was refused, if `accepted` refuses it, or if
    a trial has it already: a trial's result follows from its point.
    """
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.trial import TrialState, create_trial

    from factory.search.space import Choice

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    axes: dict[str, BaseDistribution] = {}
    for name, axis in space.axes.items():
        if isinstance(axis, Choice):
            last = len(axis.values) - 1
            axes[name] = (
                IntDistribution(0, last)
                if axis.ordered
                else CategoricalDistribution(list(range(last + 1)))
            )
        else:
            axes[name] = FloatDistribution(axis.low, axis.high, log=axis.log)

    def places(point: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, axis in space.axes.items():
            value = point[name]
            found[name] = _place(axis.values, value) if isinstance(axis, Choice) else value
        return found

    sampler = optuna.samplers.TPESampler(
        seed=seed64(space.seed, "tpe", number) % 2**32, n_startup_trials=1, multivariate=True
    )
    goals: Any = [f"{OBJECTIVES[name]}imize" for name in space.objectives]
    study = optuna.create_study(directions=goals, sampler=sampler)
    refused, tried = [], book.points()
    for result in book.results().values():
        if result["state"] == "refused":
            refused.append(result["point"])
            continue
        stopped = result["state"] == "stopped" and len(goals) == 1
        curve = {row["iteration"]: row[ACCURACY] for row in result["curve"]}
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
                params=places(result["point"]),
                distributions=axes,
                values=None if stopped else [result[name] for name in space.objectives],
                intermediate_values=curve if len(goals) == 1 else None,
            )
        )
    point: dict[str, Any] = {}
    again: dict[str, Any] | None = None
    for _ in range(TPE_DRAWS):
        asked = study.ask(axes).params
        point = {
            name: axis.values[asked[name]] if isinstance(axis, Choice) else axis.kept(asked[name])
            for name, axis in space.axes.items()
        }
        if (kept := json.loads(json.dumps(point))) in refused or not accepted(point):
            continue
        if kept not in tried:
            return point
        again = point
    return again or point


def _place(values: tuple[Any, ...], value: Any) -> int:
    return [json.dumps(one) for one in values].index(json.dumps(value))


def scheduler(space: Space, book: Book) -> Any:
    """Return the scheduler that stops trials early; it knows the reports of a resumed sweep.

    The number of a trial's reports goes on over all its seeds, so that trials are compared after
    equal work.
    """
    if space.asha is None:
        return FIFOScheduler()
    made = ASHAScheduler(
        metric=ACCURACY,
        mode="max",
        max_t=space.reports * len(space.seeds) + 1,
        grace_period=space.asha.grace,
        reduction_factor=space.asha.factor,
        stop_last_trials=False,
    )
    controller: Any = None
    for number, result in book.results().items():
        earlier: Any = SimpleNamespace(trial_id=f"earlier-{number}")
        made.on_trial_add(controller, earlier)
        for row in result["curve"]:
            reported = {"training_iteration": row["iteration"], ACCURACY: row[ACCURACY]}
            made.on_trial_result(controller, earlier, reported)
    return made
