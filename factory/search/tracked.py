"""A sweep in MLflow: the driver writes a run for the sweep, and one below it for each trial."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from factory import tracking
from factory.datasets.store import Store
from factory.evaluation.gap import over_seeds
from factory.recipe import InputError
from factory.search.results import BEST, SWEEP
from factory.search.space import OBJECTIVES, Space

EXPERIMENT = "sweep"
UNKNOWN = "RESOURCE_DOES_NOT_EXIST"  # MLflow's code for a missing run


class Tracked:
    """The MLflow runs of a sweep.

    Attributes:
        run: the sweep's own run.
    """

    def __init__(
        self, uri: str, space: Space, store: Store, run_id: str, say: Callable[[str], None]
    ) -> None:
        """Prepare the sweep's run; entering the context begins it, or continues `run_id`."""
        self.uri, self.space, self.store, self.run_id = uri, space, store, run_id
        self.say = say
        self.stack = ExitStack()
        self.trials: dict[int, tuple[tracking.Run, ExitStack]] = {}

    def __enter__(self) -> "Tracked":
        """Begin the sweep's run."""
        described = self.space.described()
        self.run = self._run(self.stack, self.space.name, described, None, self.run_id)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all runs with the state of the sweep."""
        for _, stack in self.trials.values():
            stack.__exit__(kind, error, trace)
        self.stack.__exit__(kind, error, trace)

    def begin(self, begun: dict[str, Any]) -> str:
        """Begin a trial's run, or continue it, and return its id."""
        stack, number = ExitStack(), begun["number"]
        if number in self.trials:  # its node was lost
            return self.trials[number][0].id
        given = {name: begun[name] for name in ("point", "compose", "fr")}
        given["pools"] = {name: pool["url"] for name, pool in begun["pools"].items()}
        name, again = f"{self.space.name} {number}", begun.get("run_id", "")
        run = self._run(stack, name, given, self.run.id, again)
        self.trials[number] = run, stack
        return run.id

    def _run(
        self, stack: ExitStack, name: str, given: Mapping[str, Any], parent: str | None, again: str
    ) -> tracking.Run:
        """Begin a run, or continue it if the tracking store has it."""
        try:
            run = tracking.run(self.uri, EXPERIMENT, name, given, parent, again)
            return stack.enter_context(run)
        except InputError as error:
            # The run may be missing because the folder moved to another machine, or was deleted.
            if not again or getattr(error.__cause__, "error_code", "") != UNKNOWN:
                raise
        self.say(f"run {again} of {name} is not in the tracking store: a new one takes its place")
        return stack.enter_context(tracking.run(self.uri, EXPERIMENT, name, given, parent))

    def report(self, number: int, row: dict[str, Any]) -> None:
        """Record one measurement of a recognizer, unless the server does not answer."""
        values = {name: row[name] for name in ("accuracy", "loss")}
        with tracking.spared(f"point of trial {number}", self.say):
            self.trials[number][0].metrics(values, int(row["iteration"]))

    def end(self, result: dict[str, Any]) -> None:
        """Record a trial's result and end its run, unless the server does not answer."""
        number = result["number"]
        run, stack = self.trials.pop(number)
        with tracking.spared(f"result of trial {number}", self.say):
            self._record(run, result)
        with tracking.spared(f"end of trial {number}'s run", self.say):
            stack.close()

    def _record(self, run: tracking.Run, result: dict[str, Any]) -> None:
        once = [name for name in (*OBJECTIVES, "identities") if name in result]
        once.remove("accuracy")  # its curve is recorded already
        seconds = {f"seconds/{name}": value for name, value in result["seconds"].items()}
        run.metrics({name: result[name] for name in once} | seconds)
        if result["accuracies"]:
            spread = over_seeds(result["accuracies"])
            run.metrics({"final": spread.mean} | ({"final_sd": spread.sd} if spread.sd else {}))
            for name, values in result["benchmarks"].items():
                run.metrics({f"final/{name}": over_seeds(values).mean})
        run.tag("state", result["state"])
        for name, taken in result["taken"].items():
            run.dataset(name, taken["url"], taken["content_digest"])
        for name in ("trial.json", "result.json", "composition/composition.json"):
            with self.store.local(f"trials/{result['number']:04d}/{name}") as path:
                run.artifact(path)

    def abandon(self, number: int, state: str, why: str) -> None:
        """End the run of a trial without a result, if there is a run."""
        if number not in self.trials:
            return
        run, stack = self.trials.pop(number)
        failure = RuntimeError(why)
        with tracking.spared(f"end of trial {number}'s run", self.say):
            run.tag("state", state)
            run.tag("why", why)
            stack.__exit__(RuntimeError, failure, None)

    def finish(self, summary: dict[str, Any]) -> None:
        """Record the sweep's summary, with the recipes of its best trial."""
        figures = {"trials": summary["done"], "overhead": summary["overhead"]}
        self.run.metrics({name: value for name, value in figures.items() if value is not None})
        if summary["best"] is not None:
            self.run.tag("best", str(summary["best"]))
        for name in [SWEEP, "space.py", *self.store.list(BEST)]:
            with self.store.local(name) as path:
                self.run.artifact(path, BEST if name.startswith(f"{BEST}/") else "")
