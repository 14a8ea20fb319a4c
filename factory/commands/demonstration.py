"""Run the whole chain on the desk; every step is a job, run as a user would type it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.commands.chain import JUDGE, RECIPES, Chain
from factory.datasets.claim import Claim, read_claim
from factory.datasets.provenance import models
from factory.datasets.store import Store
from factory.evaluation.gap import gap
from factory.recipe import GenerateRecipe, Weights, held, parse
from factory.training.output import RECIPE

DEMO = Claim("demo.json", "the demo")
CONTROL = "synthetic_shuffled_labels"
ROWS = {
    "real": ("real", ()),
    "synthetic": ("synthetic", ()),
    CONTROL: ("synthetic", ("data.shuffle_labels=true",)),
}
SHORT_WORLD = ("identities.count=100",)
SHORT_FR = ("schedule.steps=150",)
SHORT_CONTROL = ("schedule.steps=75",)  # shuffled labels teach nothing
SMALLEST_DATA = ("identities.count=12", "identities.images_each=4", "shard.identities=3")
SMALLEST_FR = ("schedule.steps=10", "schedule.batch_size=16")
SMALLEST_WORLD = ("identities.count=16", "identities.images_each=4", "shard.identities=8")
SMALLEST_PAIRS = 20
# Networks trained for ten steps cannot tell people apart.
UNSCREENED = ("identities.max_cosine=1", "screens.identity_drift=null")
TEACHER = "package:weights/teacher/recognizer.safetensors"


@dataclass
class Demo(Chain):
    """One run of the chain in a folder.

    Attributes:
        smallest: run a chain that takes minutes and whose figures mean nothing.
        full: run the desk recipes unchanged, instead of half the people and fewer steps.
        judge: reference of the recognizer that measures.
        teacher: reference of the recognizer that conditions and screens.
        weights: overrides that name the weights; empty for the shipped ones.
    """

    smallest: bool
    full: bool = False
    judge: str = JUDGE
    teacher: str = TEACHER
    weights: tuple[str, ...] = ()

    def train_all(self) -> None:
        """Render the training worlds and train every network that is otherwise shipped."""
        run, generate, train = self.run, RECIPES / "generate", RECIPES / "train"
        world_sets = SMALLEST_WORLD if self.smallest else ()
        steps = SMALLEST_FR if self.smallest else ()
        for world in ("train", "judge"):
            out = run / "studio" / world
            recipe = generate / f"studio_{world}.yaml"
            self.step(f"studio {world}", "generate", recipe, "--out", out, sets=world_sets)
        for name in ("teacher", "judge"):
            world = "train" if name == "teacher" else "judge"
            sets = (f"data.train={run / 'studio' / world}", *steps)
            out = run / name
            self.step(
                name, "train_recognizer", RECIPES / f"fr/{name}.yaml", "--out", out, sets=sets
            )
        self.teacher, self.judge = (
            str(run / name / "recognizer.safetensors") for name in ("teacher", "judge")
        )
        data = f"data.train={run / 'studio/train'}"
        teacher = _located("teacher", self.teacher)

        def made(part: str, recipe: str) -> tuple[str, ...]:
            kind = "autoencoder" if recipe.startswith("autoencoder") else "denoiser"
            return _located(part, str(run / recipe / f"{kind}.safetensors"))

        sharp = (*teacher, *made("autoencoder", "autoencoder_stage2"))
        for recipe, known in (
            ("autoencoder", ()),
            ("autoencoder_stage2", (*teacher, *made("start", "autoencoder"))),
            ("idiff_face", (*teacher, *made("autoencoder", "autoencoder"))),
            ("idiff_face_stage2", (*sharp, *made("start", "idiff_face"))),
            ("idiff_face_few", (*sharp, *made("denoiser", "idiff_face_stage2"))),
        ):
            sets, out = (data, *known, *steps), run / recipe
            self.step(recipe, "train_diffusion", train / f"{recipe}.yaml", "--out", out, sets=sets)
        self.weights = (*sharp, *made("denoiser", "idiff_face_few"))
        self.benchmarks = run / "benchmarks"
        few = ("--pairs", str(SMALLEST_PAIRS)) if self.smallest else ()
        self.step("benchmarks", "make_benchmarks", "--out", self.benchmarks, *few)

    def make_datasets(self) -> None:
        """Generate the synthetic dataset, and as many images of the studio."""
        small = SMALLEST_DATA if self.smallest else () if self.full else SHORT_WORLD
        loose = UNSCREENED if self.smallest and self.weights else ()
        generate = RECIPES / "generate"
        for name, recipe, sets in (
            ("synthetic", "idiff_face", (*self.weights, *small, *loose)),
            ("real", "studio", small),
        ):
            out = self.run / name
            self.step(f"generate {name}", "generate", generate / f"{recipe}.yaml", "--out", out,
                      sets=sets)  # fmt: skip
            self.step(f"verify {name}", "verify", out)

    def measure_all(self) -> dict[str, Any]:
        """Measure both datasets under the judge; a full run also measures under the teacher."""
        seeing = {"judge": self.judge} | ({"teacher": self.teacher} if self.full else {})
        return {
            dataset: {
                name: self.measure(dataset, self.run / dataset, name, reference)
                for name, reference in seeing.items()
            }
            for dataset in ("synthetic", "real")
        }

    def train_recognizers(self) -> dict[str, dict[str, Any]]:
        """Train and evaluate a recognizer for every row and seed."""
        return {
            row: self.train(row, self.run / dataset, sets=(*self.steps(row), *extra))
            for row, (dataset, extra) in ROWS.items()
        }

    def steps(self, row: str) -> tuple[str, ...]:
        """Return the overrides that shorten a row's trainings."""
        if self.smallest:
            return SMALLEST_FR
        if self.full:
            return ()
        return SHORT_CONTROL if row == CONTROL else SHORT_FR

    def precisions(self) -> dict[str, str]:
        """Return the precision of the sampling and of the recognizers' training."""
        sampled = read_claim(Store(self.run / "synthetic"))["recipe"]["sampler"]["dtype"]
        first = self.run / "fr" / "real" / f"seed{self.seeds[0]}"
        trained = json.loads(Store(first).read(RECIPE))["engine"]["precision"]
        return {"sampling": sampled, "training": trained}

    def chain(self) -> Path:
        """Run everything that follows the weights, write results.json and return its path."""
        self.make_datasets()
        quality = self.measure_all()
        rows = self.train_recognizers()
        recipe = parse(held(read_claim(Store(self.run / "synthetic"))["recipe"]))
        assert isinstance(recipe, GenerateRecipe)
        judge = Weights(location=self.judge, licence=recipe.weights["teacher"].licence)
        results = {
            "title": "Desk demo: IDiff-Face on the studio world",
            "recipe": recipe.model_dump(mode="json"),
            "datasets": {name: str(self.run / name) for name in ("synthetic", "real")},
            "benchmarks": rows,
            "gap": gap(rows["real"]["average"], rows["synthetic"]["average"]).as_dict(),
            "quality": quality,
            "timings": {name: round(seconds, 1) for name, seconds in self.timings.items()},
            "provenance": [
                model.model_dump() for model in models({**recipe.weights, "judge": judge})
            ],
            "precision": self.precisions(),
            "smallest": self.smallest,
            "full": self.full,
        }
        Store(self.run).write("results.json", (json.dumps(results, indent=1) + "\n").encode())
        self.step("report", "report", self.run)
        return self.run / "results.json"


def _located(name: str, location: str) -> tuple[str, ...]:
    return (f"weights.{name}.location={location}", f"weights.{name}.sha256=''")


def show(results: dict[str, Any]) -> None:
    """Print the accuracy by benchmark and the gap from what `Demo.chain` wrote."""
    from rich.console import Console
    from rich.table import Table

    rows = results["benchmarks"]
    names = [name for name in rows["real"] if name != "seeds"]
    computed = results["precision"]
    table = Table(
        title="Accuracy-Flip in percent, mean over seeds; sampled in "
        f"{computed['sampling']}, trained in {computed['training']}"
    )
    for column in ("trained on", *names):
        table.add_column(column, justify="left" if column == "trained on" else "right")
    for row, values in rows.items():
        means = [100 * sum(values[name]) / len(values[name]) for name in names]
        table.add_row(row.replace("_", " "), *(f"{mean:.2f}" for mean in means))
    Console(width=110).print(table)
    found = results["gap"]
    if not results["full"]:
        print(
            "Half the people, and fewer steps of training, than --full has: the order of the rows "
            "holds, their figures are lower."
        )
    print(
        f"gap-to-real: abs = real - syn = {found['absolute']:.2f} points, "
        f"rel = (real - syn) / syn = {found['relative']:.2f} %"
    )
