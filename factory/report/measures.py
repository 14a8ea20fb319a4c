"""The JSON files of the commands measure and evaluate, sorted into the parts of a page."""

import json
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from factory.datasets.store import Store
from factory.evaluation.scores import BINS, RESOLVED
from factory.recipe import InputError
from factory.report.charts import compared, det
from factory.report.few import curve_lacking, lacking, pairs_of, unresolved
from factory.report.words import named

FOLDER = "measures"
ACCEPTED = "the JSON of measure.py or evaluate.py"
AVERAGE = "average"

Evaluations = dict[str, Mapping[str, Any]]  # what evaluate.py wrote of one training, by file


def read_measures(store: Store, files: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the content of the dataset's folder `measures/` and of further files, by path.

    Raises:
        InputError: a file is missing or is not a JSON object.
    """
    found: dict[str, dict[str, Any]] = {}
    inside = sorted(name for name in store.list(FOLDER) if name.endswith(".json"))
    texts = {name: store.read(name) for name in inside}
    for file in files:
        if not Path(file).is_file():
            raise InputError(f"--measures {file}: no such file; accepted is {ACCEPTED}")
        texts[file] = Path(file).read_bytes()
    for name, text in texts.items():
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}: not JSON ({error}); accepted is {ACCEPTED}") from None
        if not isinstance(content, dict):
            raise InputError(f"{name}: accepted is {ACCEPTED}")
        found[name] = content
    return found


def sorted_measures(dataset: str, measures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parts of a page's results from the measures of one dataset.

    Recognizers with the same name count as trainings with several seeds, told apart by the sha256
    of their weights. One recognizer's files are joined: a benchmark that several of them state
    counts once, and the average is over all of its benchmarks. A file without a sha256 counts as a
    training of its own.

    Args:
        dataset: the dataset's name on the page.
        measures: content by file, as `read_measures` returns it.

    Raises:
        InputError: a file is neither from measure nor from evaluate, one recognizer has two
            accuracies on a benchmark, or the trainings of one name differ in their benchmarks.
    """
    quality: dict[str, Any] = {}
    trainings: dict[str, dict[str, Evaluations]] = {}
    fairness: dict[str, Any] = {}
    protocols: list[dict[str, Any]] = []
    for file, content in measures.items():
        named_so = content.get("recognizer")
        facts = named_so if isinstance(named_so, Mapping) else {}
        who = str(facts.get("name", file))
        if "histograms" in content:
            _check_quality(file, content)
            quality[_unlike(quality, who, file)] = content
        elif "benchmarks" in content:
            _check_benchmarks(file, content)
            same = trainings.setdefault(who, {}).setdefault(str(facts.get("sha256") or file), {})
            for benchmark, result in content["benchmarks"].items():
                before = (one["benchmarks"].get(benchmark, {}) for one in same.values())
                groups = result.get("fairness")
                if "fairness" in result and groups not in (one.get("fairness") for one in before):
                    fairness[_unlike(fairness, f"{who}, {benchmark}", file)] = groups
            same[file] = content
        elif "protocol" in content:
            protocols.append({**content, "recognizer": who})
        else:
            raise InputError(f"{file}: accepted is {ACCEPTED}")
    return {
        "quality": {dataset: quality} if quality else {},
        "benchmarks": {who: _over_trainings(who, found) for who, found in trainings.items()},
        "fairness": fairness,
        "protocols": protocols,
    }


def _over_trainings(who: str, trainings: Mapping[str, Evaluations]) -> dict[str, list[float]]:
    """Return the accuracies of one row by benchmark and on average, one for each training."""
    joined = {", ".join(files): _joined(who, files) for files in trainings.values()}
    (first, expected), *others = joined.items()
    for files, found in others:
        if found.keys() != expected.keys():
            sets = (", ".join(sorted({*one} - {AVERAGE})) for one in (expected, found))
            raise InputError(
                f"{first} and {files}: two trainings of recognizer {who} on unlike benchmarks, "
                f"{' and '.join(f'({one})' for one in sets)}; accepted are the same ones of each"
            )
    return {name: [found[name] for found in joined.values()] for name in expected}


def _joined(who: str, files: Evaluations) -> dict[str, float]:
    """Return one training's accuracy on each benchmark of its files, and their mean."""
    stated: dict[str, tuple[str, float]] = {}
    for file, content in files.items():
        for name, result in content["benchmarks"].items():
            other, accuracy = stated.setdefault(name, (file, result["accuracy"]))
            if accuracy != result["accuracy"]:
                raise InputError(
                    f"{other} and {file}: recognizer {who} has accuracy {accuracy:g} and "
                    f"{result['accuracy']:g} on benchmark {name}; accepted is one file of each "
                    "benchmark"
                )
    found = {name: accuracy for name, (_, accuracy) in stated.items()}
    first = next(iter(files.values()))
    whole = found.keys() == first["benchmarks"].keys()
    return {AVERAGE: first[AVERAGE] if whole else sum(found.values()) / len(found), **found}


def _check_quality(file: str, content: Mapping[str, Any]) -> None:
    """Refuse a measure of quality that lacks a figure the page shows."""
    for name in ("eer", "genuine_mean", "impostor_mean", "spread"):
        _check_number(file, name, content.get(name))
    both = content["histograms"]
    for kind in ("genuine", "impostor"):
        counts = both.get(kind) if isinstance(both, Mapping) else None
        if not isinstance(counts, list) or not all(isinstance(one, int) for one in counts):
            raise InputError(
                f"{file}: histograms.{kind} is no list of counts; accepted is {ACCEPTED}"
            )


def _check_benchmarks(file: str, content: Mapping[str, Any]) -> None:
    """Refuse an evaluation that lacks an accuracy."""
    _check_number(file, "average", content.get("average"))
    if not isinstance(content["benchmarks"], Mapping):
        raise InputError(f"{file}: benchmarks is no JSON object; accepted is {ACCEPTED}")
    for name, result in content["benchmarks"].items():
        accuracy = result.get("accuracy") if isinstance(result, Mapping) else None
        _check_number(file, f"benchmarks.{name}.accuracy", accuracy)


def _check_number(file: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{file}: {name} is no number; accepted is {ACCEPTED}")


def _unlike(taken: Container[str], name: str, file: str) -> str:
    """Return a name that is not taken: with the file's name added, and then a number, if needed."""
    stem, number = Path(file).stem, 1
    tried = name
    while tried in taken:
        tried = f"{name} ({stem})" if number == 1 else f"{name} ({stem}, {number})"
        number += 1
    return tried


def sections(quality: Mapping[str, Any], part: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return one part of the measures (leakage, variety, coverage) by dataset and recognizer."""
    return {
        (dataset, recognizer): found[part]
        for dataset, judged in quality.items()
        for recognizer, found in judged.items()
        if part in found
    }


def error_curves(quality: Mapping[str, Any]) -> Markup:
    """Draw the DET curves that are resolved, and say of the others why they are not."""
    curves, others = {}, Markup("")
    for dataset, judged in quality.items():
        for recognizer, found in judged.items():
            if "curve" not in found:
                continue
            label = f"{named(dataset)}, {recognizer}"
            genuine, impostor = pairs_of(found)
            if why := curve_lacking(found["curve"], genuine, impostor):
                others += unresolved(f"{label}. {why}")
            else:
                curves[label] = {**found["curve"], "floor": [RESOLVED / genuine]}
    if not curves:
        return others
    note = f"A line is dotted where fewer than {RESOLVED} genuine pairs bear it."
    return det(curves, "FNMR over FMR") + Markup(f'<p class="note tight">{note}</p>') + others


def nearest_charts(leakage: Mapping[str, Any], name: str) -> dict[str, Markup]:
    """Draw histograms of the cosines to the nearest training face and nearest held-out face."""
    charts = {}
    for asked in ("identities", "images"):
        one = leakage[asked]
        first = one.get("training_matched", one["training"])["histogram"]
        second = one["held_out"]["histogram"] if "held_out" in one else None
        assert len(first) == BINS
        if why := lacking({asked: sum(first)}):
            charts[asked] = unresolved(why)
            continue
        words = f"nearest real face of {asked} of {name}"
        charts[asked] = compared(first, second, -1.0, 1.0, words, "cosine", height=1.7)
    return charts


def coverage_charts(coverage: Mapping[str, Any], dataset: str) -> dict[str, Markup] | Markup:
    """Draw each attribute's histogram and the reference, or say that images are too few."""
    if why := lacking({"images": int(coverage["images"])}):
        return unresolved(why)
    return {
        name: compared(
            one["histogram"], one["reference"], one["low"], one["high"], f"{name} of {dataset}"
        )
        for name, one in coverage["attributes"].items()
    }
