"""Tracking: each run's recipe, numbers and files, kept in MLflow.

The default is a sqlite file in the current folder, so that tracking needs no server. MLflow is
imported only when a run starts, because its import is slow and planning and verifying need none.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from factory import stops
from factory.recipe import InputError, public

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # report to the tracking URI only

DEFAULT_URI = "sqlite:///mlflow.db"
CONNECT_SEC = 10.0  # MLflow itself would retry an unreachable server for minutes
PARAM_CHARACTERS = 6000  # MLflow's limit on the value of a parameter
BATCH_ENTRIES = 100  # MLflow's limit on parameters in one call
POINT_SEC = 60.0  # between two points of a paced curve

OUTPUT_TAG = "factory.output"  # of runs that write a folder, which one writer holds at a time
UNTRACKED = ("eta_seconds",)  # numbers of a line of progress that make no curve


def resolve(uri: str = "") -> str:
    """Return the tracking URI to use: as given, else MLFLOW_TRACKING_URI, else a sqlite file.

    A relative sqlite path becomes absolute, so that a worker in another folder finds the same file.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "") or DEFAULT_URI
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return "sqlite:///" + str(Path(uri.removeprefix("sqlite:///")).absolute())
    return uri


class Run:
    """One run in MLflow, open for writing.

    Attributes:
        uri: the tracking URI.
        id: MLflow's id of the run.
        experiment_id: MLflow's id of its experiment.
    """

    def __init__(self, client: Any, uri: str, run_id: str, experiment_id: str) -> None:
        """Wrap an existing run; the function `run` begins one."""
        self._client = client
        self.uri = uri
        self.id = run_id
        self.experiment_id = experiment_id

    @property
    def url(self) -> str:
        """Return the page of the run on a server, or the command that shows a sqlite file."""
        if self.uri.startswith(("http://", "https://")):
            page = f"/#/experiments/{self.experiment_id}/runs/{self.id}"
            return public(self.uri.rstrip("/") + page)
        return public(f"mlflow ui --backend-store-uri {self.uri}")

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; nested mappings become dotted names. Each name is logged once a run."""
        from mlflow.entities import Param

        entries = [Param(name, text) for name, text in flat(values).items()]
        for start in range(0, len(entries), BATCH_ENTRIES):
            self._client.log_batch(self.id, params=entries[start : start + BATCH_ENTRIES])

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers at `step` (default 0); nested mappings become dotted names."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        kept = {name: value for name, value in values.items() if name not in UNTRACKED}
        entries = [Metric(name, float(v), now, step or 0) for name, v in _leaves(kept)]
        self._client.log_batch(self.id, metrics=entries)

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """Keep a copy of a file, or of all files of a folder, under `folder`."""
        if Path(path).is_dir():
            self._client.log_artifacts(self.id, str(path), folder or None)
        else:
            self._client.log_artifact(self.id, str(path), folder or None)

    def dataset(self, name: str, url: str, digest: str) -> None:
        """Note a dataset that the run reads or makes: its name, where it lies and its digest."""
        from mlflow.entities import Dataset, DatasetInput

        source = json.dumps({"uri": public(url)})
        noted = Dataset(name=name, digest=digest[:36], source_type="uri", source=source)
        self._client.log_inputs(self.id, datasets=[DatasetInput(dataset=noted, tags=[])])

    def model(self, name: str, folder: Path, tags: Mapping[str, str]) -> str:
        """Keep files as the run's artifact `model` and register them as a model's next version.

        Args:
            name: of the registered model, made when missing.
            folder: its files.
            tags: what a later user must know of this version: licence, provenance.

        Returns:
            The version, counted from "1".
        """
        from mlflow.exceptions import MlflowException

        self.artifact(folder, "model")
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self._client.get_run(self.id).info.artifact_uri}/model"
        shown = {tag: public(value) for tag, value in tags.items()}
        made = self._client.create_model_version(name, source, run_id=self.id, tags=shown)
        return str(made.version)

    def tag(self, name: str, value: str) -> None:
        """Put a tag on the run."""
        self._client.set_tag(self.id, name, public(value))


@contextmanager
def run(
    uri: str,
    experiment: str,
    name: str,
    recipe: BaseModel | Mapping[str, Any],
    parent: str | None = None,
    again: str = "",
    output: str = "",
) -> Iterator[Run]:
    """Record one run; it ends as FINISHED, as FAILED after an exception, or as KILLED after a stop.

    The recipe is logged twice: flattened as parameters, and as the artifact `recipe.json` in
    canonical form. The first call makes the tables of a new sqlite file; jobs that start together
    wait for each other there.

    Args:
        uri: tracking URI; see `resolve`.
        experiment: name of the experiment, made when missing.
        name: name of the run.
        recipe: a recipe or another JSON-able mapping.
        parent: id of the run this one is part of.
        again: id of an earlier run to continue, whose recipe is logged already.
        output: folder or URL that the run writes, whose lock the caller holds. An earlier run that
            wrote it and still counts as running was killed, and ends as KILLED.

    Raises:
        InputError: the tracking server cannot be reached or used.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_SOURCE_NAME

    uri = resolve(uri)
    values = recipe.model_dump(mode="json") if isinstance(recipe, BaseModel) else dict(recipe)
    with _explained(uri):
        with _alone(uri):
            client = _client(uri)
            experiment_id = _experiment(client, uri, experiment)
        if again:
            client.update_run(again, status="RUNNING")
            tracked = Run(client, uri, again, experiment_id)
        else:
            tags = {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
            words = [sys.argv[0], *map(shlex.quote, sys.argv[1:])]
            tags[MLFLOW_SOURCE_NAME] = public(" ".join(words))
            if output:
                tags[OUTPUT_TAG] = _mark(output)
                _close(client, experiment_id, tags[OUTPUT_TAG])
            made = client.create_run(experiment_id, tags=tags, run_name=name)
            tracked = Run(client, uri, made.info.run_id, experiment_id)
            tracked.params(values)
            text = public(json.dumps(values, sort_keys=True, separators=(",", ":")))
            client.log_text(tracked.id, text, "recipe.json")
    with stops.ending(lambda: client.set_terminated(tracked.id, "KILLED")):
        try:
            yield tracked
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt) or stops.asked()
            client.set_terminated(tracked.id, "KILLED" if stopped else "FAILED")
            raise
        client.set_terminated(tracked.id, "FINISHED")


@contextmanager
def spared(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Let work go on that a tracking server does not answer; a line tells what it now lacks.

    Args:
        what: what is recorded inside.
        say: receives the line.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        say(f"MLflow: no {what} ({' '.join(public(str(error)).split())})")


@contextmanager
def paced(tracked: Run, step: str) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Lend a function that logs the numbers it is given: the first, one a minute, and the last.

    A server that does not answer is told of; the work goes on without that point.

    Args:
        tracked: the run.
        step: which of the numbers is the step.
    """
    shown_at, held = -float("inf"), {}

    def show() -> None:
        nonlocal shown_at
        shown_at = time.monotonic()
        with spared(f"point at {step} {held[step]:.0f}", partial(print, flush=True)):
            tracked.metrics(held, int(held[step]))
        held.clear()

    def note(numbers: Mapping[str, float]) -> None:
        held.update(numbers)
        if time.monotonic() - shown_at >= POINT_SEC:
            show()

    try:
        yield note
    finally:
        if held:
            show()


def _mark(output: str) -> str:
    """Return what names an output in a tag: MLflow's search takes no quote in a value."""
    place = output if "://" in output else str(Path(output).absolute())
    return hashlib.sha256(place.encode()).hexdigest()[:16]


def _close(client: Any, experiment_id: str, mark: str) -> None:
    """End the runs of writers that were killed before they could."""
    wanted = f"tags.`{OUTPUT_TAG}` = '{mark}' and attributes.status = 'RUNNING'"
    for left in client.search_runs([experiment_id], wanted):
        client.set_terminated(left.info.run_id, "KILLED")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested mappings to dotted names and texts that MLflow accepts as parameters."""
    return {
        name: public(value if isinstance(value, str) else json.dumps(value))[:PARAM_CHARACTERS]
        for name, value in _leaves(values, prefix)
    }


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield re.sub(r"[^\w\-. :/]", "_", f"{prefix}{name}"), value


def _client(uri: str) -> Any:
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=CONNECT_SEC):
            pass
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _experiment(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    if uri.startswith("sqlite:"):  # keep the files beside the database, not in the current folder
        folder = Path(uri.removeprefix("sqlite:///")).parent / "mlruns"
        return client.create_experiment(name, artifact_location=(folder / name).as_uri())
    return client.create_experiment(name)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Lock a sqlite file, so that only one job at a time makes its tables and experiments."""
    if not uri.startswith("sqlite:"):
        yield
        return
    with open(uri.removeprefix("sqlite:///") + ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"--tracking-uri {public(uri)}: cannot be used ({public(reason)}); accepted is a "
            "reachable MLflow server or a file such as sqlite:///mlflow.db"
        ) from error
