"""The driver's side of a sweep: it shows, counts, tracks and stores the reports of trials."""

import functools
import json
import time
from collections.abc import Callable
from typing import Any

from ray import tune

from factory.cluster import counters
from factory.search.book import Book
from factory.search.tracked import Tracked
from factory.search.trial import ACCURACY, ENDED

Say = Callable[[str], None]


def _kept(told: Callable[..., None]) -> Callable[..., None]:
    """Keep what a callback raises, of which Tune makes a text."""

    @functools.wraps(told)
    def telling(self: "Following", *given: Any, **info: Any) -> None:
        try:
            told(self, *given, **info)
        except Exception as error:
            self.error = error
            raise

    return telling


class Following(tune.Callback):
    """Records the reports of trials in the driver.

    Attributes:
        curves: what each trial has reported, by number.
        failed: why trials failed, by number.
        error: what ended the sweep while a report was recorded.
    """

    def __init__(self, book: Book, tracked: Tracked, say: Say, samples: int) -> None:
        self.book, self.tracked, self.say, self.samples = book, tracked, say, samples
        self.curves: dict[int, list[dict[str, Any]]] = {}
        self.failed: dict[int, str] = {}
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing for Tune to pickle, because nobody reads its copy."""
        return {}

    @_kept
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Begin a trial's run in MLflow, or continue it."""
        number = trial.config["number"]
        self.curves[number] = []
        self.book.note(number, {"run_id": self.tracked.begin(self._begun(number))})

    @_kept
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record one measurement of a recognizer."""
        if ENDED in result:
            return
        number = trial.config["number"]
        row = {name: result[name] for name in ("seed", "step", "loss", ACCURACY)}
        row["iteration"] = result["training_iteration"]
        self.curves[number].append(row)
        self.tracked.report(number, row)
        ended = len(result["facts"]["accuracies"]) if result["last"] else 1
        self.say(
            f"trial {number + 1}/{self.samples} {trial_name(self._begun(number)['point'])}: seed "
            f"{row['seed']}, step {row['step']}, accuracy {100 * row[ACCURACY]:.2f} %"
            + (f", the mean of {ended} seeds" if ended > 1 else "")
        )

    @_kept
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write a trial's result: finished, stopped by the scheduler, refused or failed."""
        number, last = trial.config["number"], trial.last_result
        if ENDED in last:
            self._lost(number, last[ENDED], last["why"])
            return
        begun, facts = self._begun(number), last["facts"]
        result = {
            "number": number,
            "point": begun["point"],
            "state": "finished" if last["complete"] else "stopped",
            ACCURACY: last[ACCURACY],
            "curve": self.curves[number],
            "wait": round(facts["started"] - begun["asked"], 2),
            "run_id": begun["run_id"],
            **{name: value for name, value in facts.items() if name != "started"},
        }
        self.book.end(result)
        self.tracked.end(result)
        counters.trial(self.book.space.name, result["state"])

    @_kept
    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial is continued after a loss; its actor reports everything again."""
        number = trial.config["number"]
        self.say(f"trial {number + 1}/{self.samples} broke off and goes on from its folder")
        self.book.note(number, {"asked": time.time()})

    @_kept
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial failed with an unexpected error, which is the program's fault."""
        self._lost(trial.config["number"], "failed", "an error whose traceback stands above")

    def _lost(self, number: int, state: str, why: str) -> None:
        self.say(f"trial {number + 1}/{self.samples} {state}: {why}")
        self.tracked.abandon(number, state, why)
        counters.trial(self.book.space.name, state)
        begun = self._begun(number)
        if state == "failed":
            self.failed[number] = why
        else:
            named = {name: begun[name] for name in ("number", "point", "run_id")}
            self.book.end({**named, "state": state, "why": why, "curve": []})

    def _begun(self, number: int) -> dict[str, Any]:
        begun = self.book.begun(number)
        assert begun is not None
        return begun


def trial_name(point: dict[str, Any]) -> str:
    """Return a point as text."""
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in point.items())
