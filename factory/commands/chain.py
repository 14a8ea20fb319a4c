"""Run jobs one after another, each as a user would type it; demo and comparison share this."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory import stops
from factory.recipe import FaultError

RECIPES = Path("desk")
FR = RECIPES / "fr/desk.yaml"
JUDGE = "package:weights/judge/recognizer.safetensors"
BENCHMARKS = "package:studio/bins"
WHOLE = ("data.identities=null", "data.images_each=null")  # use all that a dataset holds


def trained_at(run: Path, row: str, seed: int) -> Path:
    """Return the folder of a row's recognizer of one seed."""
    return run / "fr" / row / f"seed{seed}"


def training_sets(
    dataset: str | Path, seed: int, part: Sequence[str], sets: Sequence[str], resize: bool
) -> tuple[str, ...]:
    """Return the overrides of a recipe that trains one recognizer of a row."""
    own = (f"data.train={dataset}", f"seed={seed}", *part, *sets)
    return (*own, "data.resize=true") if resize else own


@dataclass
class Chain:
    """Jobs that share a folder, a Ray cluster and an MLflow store.

    Attributes:
        run: the folder that holds everything.
        address: the Ray cluster that the jobs share.
        tracking_uri: where MLflow keeps the runs.
        seeds: the seeds of each row's recognizer trainings.
        benchmarks: folder of the verification benchmarks.
        part: which part of a dataset a recognizer is trained on, as overrides of its recipe.
        resize: whether images are resized to the size that a network takes, instead of refused.
        timings: seconds by step.
    """

    run: Path
    address: str
    tracking_uri: str
    seeds: Sequence[int]
    benchmarks: Path
    part: Sequence[str] = field(default=WHOLE, kw_only=True)
    resize: bool = field(default=False, kw_only=True)
    timings: dict[str, float] = field(default_factory=dict, kw_only=True)

    def step(self, name: str, job: str, *arguments: str | Path, sets: Sequence[str] = ()) -> None:
        """Print one job's command, run it and keep its time.

        Raises:
            FaultError: the job fails.
        """
        words = ["factory", job, *map(str, arguments)]
        for override in sets:
            words += ["--set", override]
        print(f"\n== {name}\n$ {shlex.join(words)}", flush=True)
        words += ["--address", self.address, "--tracking-uri", self.tracking_uri]
        start = time.time()
        with stops.shielded():
            child = subprocess.Popen([sys.executable, "-m", *words])
        try:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        except KeyboardInterrupt:
            stops.hand_on(child)
            raise
        code = child.wait()
        if code:
            raise FaultError(f"the step {name!r} ended with exit code {code}")
        self.timings[name] = time.time() - start

    def measure(
        self, name: str, dataset: str | Path, who: str, recognizer: str, *flags: str
    ) -> dict[str, Any]:
        """Measure a dataset under a recognizer and return the JSON of `measure.py`."""
        file = self.run / f"quality_{name}_{who}.json"
        flags = (*flags, "--resize") if self.resize else flags
        self.step(f"measure {name} under the {who}", "measure", dataset,
                  "--recognizer", recognizer, *flags, "--json", file)  # fmt: skip
        return json.loads(file.read_text())

    def train(
        self, row: str, dataset: str | Path, recipe: str | Path = FR, sets: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Train and evaluate a recognizer for every seed on a dataset, or on its stated part.

        Returns:
            the seeds; and accuracies in [0, 1], one per seed, by benchmark and on average.
        """
        found: dict[str, Any] = {"seeds": list(self.seeds), "average": []}
        for seed in self.seeds:
            out = trained_at(self.run, row, seed)
            own = training_sets(dataset, seed, self.part, sets, self.resize)
            self.step(
                f"train on {row}, seed {seed}", "train_recognizer", recipe, "--out", out, sets=own
            )
            file = out / "benchmarks.json"
            self.step(f"evaluate {row}, seed {seed}", "evaluate", "--recognizer", out,
                      "--benchmarks", self.benchmarks, "--json", file,
                      *(("--resize",) if self.resize else ()))  # fmt: skip
            result = json.loads(file.read_text())
            found["average"].append(result["average"])
            for name, benchmark in result["benchmarks"].items():
                found.setdefault(name, []).append(benchmark["accuracy"])
        return found
