"""Compare datasets with real images: one judge measures each, one recipe trains on each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.commands.chain import WHOLE, Chain, trained_at, training_sets
from factory.datasets.claim import Claim
from factory.datasets.feed import counted
from factory.datasets.manifest import load_manifest
from factory.datasets.store import Store, parted
from factory.evaluation.dataset import samples
from factory.evaluation.features import FeatureNetwork, load_features
from factory.evaluation.gap import REAL, gap, over_seeds
from factory.evaluation.verification import bin_files, read_bin
from factory.export.sheet import ContactSheet
from factory.recipe import FRRecipe, InputError, keyless, load
from factory.recognition.images import NamedEmbedder, decode, fitted
from factory.training.output import check_output, kept

# Rows may be added; each training has a claim of its own, and measures are made again.
COMPARISON = Claim(
    "comparison.json", "the comparison", free=("recipe.engine.", "recipe.checkpoint.")
)
LAYER = "layer2"  # an early layer: in identity embeddings, other people cover almost nothing
ALIKE = 0.01  # share by which equal parts may differ, since some slots stay empty
SHOWN = ("uniqueness", "consistency", "eer", "spread")  # measures of a dataset
UNITS = {
    "images": "that a recognizer was trained on",
    "diversity": "diversity_unmatched of measure.py, beside the row `real`, in `features`",
    "accuracy": "mean over benchmarks, percent, mean over seeds",
    "accuracy_sd": "sample standard deviation over seeds, points",
    "gap": "real - syn, points, where real is the row `real`",
    "gap_error": "its standard error over seeds, points",
    "images_per_second": "kept images by the seconds their stages took: one actor, no start-up",
}


@dataclass(frozen=True)
class Share:
    """Which part of each dataset is compared: its first identities and images; None is all."""

    identities: int | None = None
    images_each: int | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """Return the part as flags of `measure.py`."""
        return tuple(f"--{key.replace('_', '-')}={value}" for key, value in self._stated.items())

    @property
    def sets(self) -> tuple[str, ...]:
        """Return the part as overrides of a recognizer's recipe."""
        return (*WHOLE, *(f"data.{key}={value}" for key, value in self._stated.items()))

    @property
    def _stated(self) -> dict[str, int]:
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Size:
    """The number of images and of people that a recognizer is trained on."""

    images: int
    people: int

    def __str__(self) -> str:
        """Return both numbers in words."""
        return f"{self.images:,} images of {self.people:,}"

    def like(self, other: "Size") -> bool:
        """Return whether two sizes are equal, apart from slots that stayed empty."""
        pairs = (self.images, other.images), (self.people, other.people)
        return all(abs(one - two) <= ALIKE * max(one, two) for one, two in pairs)


def named_datasets(real: str, urls: Sequence[str]) -> dict[str, str]:
    """Return the datasets by their rows' names: `real`, then the last part of each URL.

    Raises:
        InputError: a URL is no finished dataset, two have the same name, or one contains keys.
    """
    found = {REAL: real}
    for url in urls:
        name = Path(parted(url)[0]).name
        if name in found:
            raise InputError(
                f"datasets: two folders are called {name!r}, which would name two rows; rename one"
            )
        found[name] = url
    for name, url in found.items():
        load_manifest(Store(keyless(url, what=f"dataset {name}: ")))
    return found


def sizes(datasets: Mapping[str, str], part: Share, unequal: bool = False) -> dict[str, Size]:
    """Count the images and people of each dataset that a recognizer is trained on, from labels.

    Args:
        datasets: URLs by name.
        part: the part of each that is compared.
        unequal: accept counts that differ.

    Raises:
        InputError: the part has more people than a dataset, or the counts differ.
    """
    found = {
        name: Size(*counted([url], part.identities, part.images_each))
        for name, url in datasets.items()
    }
    for name, size in found.items():
        if part.identities is not None and size.people < part.identities:
            raise InputError(
                f"--identities {part.identities}: dataset {name} has only {size.people:,}"
            )
    largest = max(found.values(), key=lambda size: (size.images, size.people))
    if not unequal and not all(size.like(largest) for size in found.values()):
        listed = ", ".join(f"{name} {size} people" for name, size in found.items())
        asked = ""
        if part.identities and part.images_each:
            asked = f", asked for were {part.identities * part.images_each:,} images of each"
        raise InputError(
            f"datasets: {listed}{asked}; accepted are --identities N and --images-each M that all "
            "of them have, or --unequal, which compares them as they are"
        )
    return found


def check_trained(
    out: Path,
    datasets: Mapping[str, str],
    seeds: Sequence[int],
    recipe: str,
    sets: Sequence[str],
    part: Share,
    resize: bool,
) -> None:
    """Refuse trainings of before that the rows' trainings would refuse, before any is begun.

    Raises:
        InputError: a training is of another recipe, or its dataset has changed since.
    """
    for name, url in datasets.items():
        for seed in seeds:
            own = training_sets(url, seed, part.sets, sets, resize)
            asked, store = load(recipe, own, kind="fr"), Store(trained_at(out, name, seed))
            assert isinstance(asked, FRRecipe)
            check_output(store, kept(store, asked))


def feature_network(judge: str, features: str) -> FeatureNetwork:
    """Load the network for diversity, by default the judge's early layer.

    Args:
        judge: reference of the recognizer that measures.
        features: reference of the network; "" for the default.

    Raises:
        InputError: there is no such network, or the judge has no such layer.
    """
    if features:
        return load_features(features)
    try:
        return load_features(f"{judge}#{LAYER}")
    except InputError as error:
        raise InputError(
            f"--judge {judge}: has no {LAYER}, the default network for diversity; --features "
            f"chooses another ({error})"
        ) from None


def check_sizes(
    datasets: Mapping[str, str],
    recipe: FRRecipe,
    judge: NamedEmbedder,
    benchmarks: str | Path,
    features: FeatureNetwork | None = None,
) -> None:
    """Refuse images that a network would refuse, before hours are spent on them.

    Args:
        datasets: URLs by name.
        recipe: the recipe of the recognizers.
        judge: the recognizer that measures.
        benchmarks: folder of the verification benchmarks.
        features: the network for diversity.

    Raises:
        InputError: images of a dataset or of a benchmark have another size.
    """
    for name, url in datasets.items():
        image = decode(next(samples(Store(url))).encoded, name)
        fitted(image, judge.size, f"{name}, under the judge {judge.name}", resize=False)
        if features is not None:
            fitted(image, features.size, f"{name}, in features {features.name}", resize=False)
        fitted(image, recipe.image.size, f"{name}, in recipe {recipe.name}", resize=False)
    for name, file in bin_files(benchmarks).items():
        image = decode(read_bin(file).images[0], name)
        fitted(image, recipe.image.size, f"benchmark {name}, in recipe {recipe.name}", resize=False)


@dataclass
class Comparison(Chain):
    """A comparison, which makes one row for each dataset.

    Attributes:
        recipe: the file of the recognizers' recipe, the same for all rows.
        sets: the recipe's overrides.
        judge: reference of the recognizer that measures.
        features: the network whose features give diversity, as `measure.py --features` names it.
        measured: more flags of `measure.py`, for every row.
    """

    recipe: str
    sets: Sequence[str]
    judge: str
    features: str
    measured: Sequence[str] = ()

    def compare(
        self, datasets: Mapping[str, str], trained: FRRecipe, counted: Mapping[str, Size]
    ) -> dict[str, Any]:
        """Measure and train on every dataset; return the rows and what else `report.py` shows.

        Args:
            datasets: URLs by name, `real` first.
            trained: the recipe of the recognizers, for the record.
            counted: the images and people of each dataset that they are trained on.
        """
        quality, benchmarks, rows = {}, {}, {}
        for name, url in datasets.items():
            beside = ("--real", datasets[REAL], "--features", self.features)
            flags = (*self.measured, *(() if name == REAL else beside))
            judged = self.measure(name, url, "judge", self.judge, *flags)
            quality[name] = {"judge": judged}
            benchmarks[name] = self.train(name, url, self.recipe, self.sets)
            images = counted[name].images
            rows[name] = _row(url, images, judged, benchmarks[name], benchmarks[REAL])
        # The claim of each training states what `auto` became; it is the same for all rows.
        first = Store(self.run / "fr" / REAL / f"seed{self.seeds[0]}")
        trained = kept(first, trained)
        return {
            "title": "Datasets compared",
            "datasets": dict(datasets),
            "recipe": trained.model_dump(mode="json", exclude={"data", "seed"}),
            "part": list(self.part),
            "resize": self.resize,
            "features": self.features,
            "rows": rows,
            "images": {name: size.images for name, size in counted.items()},
            "units": UNITS,
            "benchmarks": benchmarks,
            "quality": quality,
            "timings": {name: round(seconds, 1) for name, seconds in self.timings.items()},
        }


def _row(
    url: str,
    images: int,
    judged: Mapping[str, Any],
    trained: Mapping[str, Any],
    real: Mapping[str, Any],
) -> dict[str, Any]:
    manifest = load_manifest(Store(url))
    seconds = sum(manifest.totals.seconds.values())
    accuracy = over_seeds([100 * value for value in trained["average"]])
    behind = gap(real["average"], trained["average"])
    return {
        "content_digest": manifest.content_digest,
        "images": images,
        **{name: judged[name] for name in SHOWN},
        "diversity": judged.get("variety", {}).get("diversity_unmatched"),
        "accuracy": accuracy.mean,
        "accuracy_sd": accuracy.sd,
        "gap": behind.absolute,
        "gap_error": behind.absolute_error,
        "images_per_second": manifest.totals.kept / seconds if seconds else None,
    }


def write_sheets(datasets: Mapping[str, str], store: Store) -> None:
    """Write sheets/NAME.jpg for each dataset: first images of first identities, one row each.

    Nothing is selected.
    """
    for name, url in datasets.items():
        made = ContactSheet()
        for sample in samples(Store(url)):
            made.see(sample.label, sample.encoded)
        store.write(f"sheets/{name}.jpg", made.jpeg())


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table; a dash marks a figure that does not exist."""
    head = ["dataset", "images", "uniqueness", "consistency", "diversity", "EER %", "spread"]
    head += ["accuracy", "gap, points", "images/s"]
    lines = [head, ["---"] * len(head)]
    for name, row in rows.items():
        itself = name == REAL
        lines.append([
            name,
            f"{row['images']:,}",
            *(_figure(row[column], 3) for column in ("uniqueness", "consistency", "diversity")),
            _figure(None if row["eer"] is None else 100 * row["eer"], 2),
            _figure(row["spread"], 3),
            _with_error(row["accuracy"], row["accuracy_sd"]),
            "-" if itself else _with_error(row["gap"], row["gap_error"]),
            _figure(row["images_per_second"], 1),
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _with_error(value: float, error: float | None) -> str:
    return _figure(value, 2) + ("" if error is None else f" +- {error:.2f}")
