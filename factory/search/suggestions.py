"""What a sweep tries next: points drawn by position, by TPE after the first rounds, and ASHA."""

import json
import time
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from factory.search.book import Book
from factory.search.space import OBJECTIVES, Space
from factory.search.trial import ACCURACY
from factory.seeding import seed64

LOST = 2  # nodes a trial may lose: it goes on from its folder
TPE_DRAWS = 50  # of a point that was not refused; then the last one is tried all the same
TPE_RANDOM = 5  # trials drawn by their number before TPE has enough to go by


class Suggestions(Searcher):
    """Hands out trials by number; their points follow from the number, or from results so far."""

    def __init__(self, space: Space, book: Book, todo: list[int], pools: str) -> None:
        super().__init__(metric=ACCURACY, mode="max")
        self.space, self.book, self.todo, self.pools = space, book, todo, pools

    def suggest(self, trial_id: str) -> Any:
        """Return the number of the next trial, having written what it is."""
        if not self.todo:
            return Searcher.FINISHED
        number = self.todo.pop(0)
        if self.book.begun(number) is None:
            random = self.space.search != "tpe" or number < TPE_RANDOM
            point = self.space.draw(number) if random else tpe(self.space, self.book, number)
            self.book.begin(self.space.trial(number, point, self.pools))
        self.book.note(number, {"asked": time.time()})
        return {"number": number}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the results are read from the folder."""

    def __getstate__(self) -> dict[str, Any]:
        """Let Tune pickle nothing, as `Following`."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: what is suggested follows from the folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


def tpe(space: Space, book: Book, number: int) -> dict[str, Any]:
    """Return the point optuna's TPE draws for a trial, given the results there are.

    Values of an axis are told to it by their place, so that lists can be values. Stopped trials
    count as pruned where there is one objective, and where there are several, which optuna prunes
    not, by their last accuracy. A point that was refused is drawn again.
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
    refused = []
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
    for _ in range(TPE_DRAWS):
        asked = study.ask(axes).params
        point = {
            name: axis.values[asked[name]] if isinstance(axis, Choice) else axis.kept(asked[name])
            for name, axis in space.axes.items()
        }
        if json.loads(json.dumps(point)) not in refused:
            break
    return point


def _place(values: tuple[Any, ...], value: Any) -> int:
    return [json.dumps(one) for one in values].index(json.dumps(value))


def scheduler(space: Space, book: Book) -> Any:
    """Return what stops trials early; of a resumed sweep it knows what trials before it reported.

    A trial's reports of all its seeds count on, so that trials are compared after equal work.
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
