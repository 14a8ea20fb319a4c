"""A study: the findings of finished sweeps, in files small enough for the documentation.

    python -m factory.report.study runs/study/similarity_bands runs/study/cpd_rate --out docs/study

For each sweep it writes a JSON file and a chart, and prints a table. A sentence below the table
says whether differences over seeds are resolved.
"""

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from factory.datasets.store import Store
from factory.evaluation.gap import over_seeds
from factory.recipe import InputError
from factory.report.sweep import Axis, shown
from factory.search.results import SWEEP, chance, is_sweep, load, trend

RESOLVED = 0.05
CHANCE = 5  # decimals that a study keeps of a chance
TITLE = 60  # characters that fit above a plot


def gathered(store: Store) -> dict[str, Any]:
    """Return the findings of a sweep: its space, and a row for each finished trial, best first.

    Raises:
        InputError: the folder holds no sweep, or no trial of it is finished.
    """
    if not is_sweep(store):
        raise InputError(f"{store.url}: no sweep there ({SWEEP} is missing)")
    sweep, results = load(store)
    finished = [result for result in results if result["state"] == "finished"]
    if not finished:
        raise InputError(f"{store.url}: no trial is finished")
    rows = [_row(result, sweep["space"]["objectives"]) for result in finished]
    p = chance([result["accuracies"] for result in finished])
    states = [result["state"] for result in results]
    along = None
    if len(axes := sweep["space"]["axes"]) == 1:
        ((name, described),) = axes.items()
        axis = Axis(name, described)
        if axis.ordered:
            places = [axis.place(row["point"][name]) for row in rows]
            along = trend(places, [row["accuracy"] for row in rows])
    return {
        **{key: sweep["space"][key] for key in ("name", "question", "fr", "sets", "search")},
        **{key: sweep["space"][key] for key in ("seeds", "objectives", "axes")},
        "pairs": finished[0].get("pairs"),  # of each benchmark, which all trials share
        "rows": sorted(rows, key=lambda row: -row["accuracy"]),
        "not_finished": {s: states.count(s) for s in sorted(set(states)) if s != "finished"},
        "chance": None if p is None else round(p, CHANCE),
        "resolved": None if p is None else p < RESOLVED,
        "trend": along and {"tau": round(along[0], 3), "chance": round(along[1], CHANCE)},
        **{key: sweep.get(key) for key in ("front", "overhead", "startup_seconds", "runs")},
    }


def _row(result: Mapping[str, Any], objectives: Sequence[str]) -> dict[str, Any]:
    found = over_seeds([100 * value for value in result["accuracies"]])
    benchmarks = {
        name: round(100 * float(np.mean(values)), 3)
        for name, values in result["benchmarks"].items()
    }
    others = {name: result[name] for name in objectives if name != "accuracy"}
    return {
        "trial": result["number"],
        "point": result["point"],
        "accuracy": round(found.mean, 3),
        "sd": None if found.sd is None else round(found.sd, 3),
        "accuracies": [round(100 * value, 3) for value in result["accuracies"]],
        "benchmarks": benchmarks,
        "images": result["images"],
        "identities": result["identities"],
        "composition": result["content_digest"],
        **others,
    }


def table(study: Mapping[str, Any]) -> str:
    """Return the rows as a Markdown table in the order of the axis, followed by `verdict`."""
    axes = {name: Axis(name, axis) for name, axis in study["axes"].items()}
    others = [name for name in study["objectives"] if name != "accuracy"]
    head = [*(name.replace("_", " ") for name in axes), "images", "accuracy, %", *others]
    lines = [head, ["---"] * len(head)]

    def place(row: Mapping[str, Any]) -> list[float]:
        return [axis.place(row["point"][name]) for name, axis in axes.items()]

    rows = study["rows"] if len(axes) > 1 else sorted(study["rows"], key=place)
    for row in rows:
        sd = "" if row["sd"] is None else f" +- {row['sd']:.2f}"
        point = [shown(row["point"][name]) for name in axes]
        more = [f"{row[name]:g}" for name in others]
        lines.append([*point, f"{row['images']:,}", f"{row['accuracy']:.2f}{sd}", *more])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{verdict(study)}"


def verdict(study: Mapping[str, Any]) -> str:
    """Return sentences on whether points differ, and whether accuracy rises along a single axis."""
    rows = study["rows"]
    span = rows[0]["accuracy"] - rows[-1]["accuracy"]
    word = "resolved" if study["resolved"] else "not resolved"
    said = "Differences are not resolved: that takes two points, each with two seeds or more."
    if study["chance"] is not None:
        said = (
            f"Best and worst point lie {span:.2f} points apart over {len(study['seeds'])} seeds; "
            f"that any differ is {word} (one-way analysis of variance, {_p(study['chance'])})."
        )
    if study["trend"] is None:
        return said
    tau, p = study["trend"]["tau"], study["trend"]["chance"]
    word = "resolved" if p < RESOLVED else "not resolved"
    return (
        f"{said} That accuracy {'rises' if tau > 0 else 'falls'} along the axis is {word} "
        f"(Kendall's tau {tau:.2f}, {_p(p)}, a point counted once)."
    )


def _p(chance: float) -> str:
    """Return a chance, which a study keeps to `CHANCE` decimals, as text."""
    return f"p = {chance:.2g}" if chance else f"p < {10.0**-CHANCE:.0e}"


def draw(study: Mapping[str, Any], path: Path) -> None:
    """Write a chart (SVG) of accuracy over each axis: dots for trainings, means and deviations."""
    import matplotlib
    from matplotlib.figure import Figure

    axes = {name: Axis(name, axis) for name, axis in study["axes"].items()}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": study["name"]}):
        columns = min(len(axes), 3)
        lines = -(-len(axes) // columns)
        figure = Figure(figsize=(5.2 * columns, 3.2 * lines), layout="constrained")
        plots = np.atleast_1d(figure.subplots(lines, columns, sharey=True)).ravel()
        for plot, (name, axis) in zip(plots, axes.items(), strict=False):
            found: dict[float, list[float]] = {}
            for row in study["rows"]:
                found.setdefault(axis.place(row["point"][name]), []).extend(row["accuracies"])
            for place, values in found.items():
                plot.plot([place] * len(values), values, "o", color="#0b7a75", alpha=0.4, ms=3.5)
            places, line = sorted(found), "-" if axis.values and axis.ordered else "none"
            means = [over_seeds(found[place]) for place in places]
            plot.errorbar(
                places, [m.mean for m in means], [m.sd or 0.0 for m in means],
                color="#0b7a75", capsize=3, linestyle=line,
            )  # fmt: skip
            if axis.ticks:
                plot.set_xticks(list(axis.ticks), list(axis.ticks.values()), fontsize=8)
                if max(map(len, axis.ticks.values())) > 8:
                    for label in plot.get_xticklabels():
                        label.set(rotation=25, ha="right", rotation_mode="anchor")
            plot.set_xlabel(name.replace("_", " "))
        for plot in plots[len(axes) :]:
            plot.set_visible(False)
        plots[0].set_ylabel("accuracy, %")
        figure.suptitle(textwrap.fill(study["question"], TITLE * columns), fontsize=10)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Write the files of all given sweeps, and print their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="+", help="folders of sweeps")
    parser.add_argument("--out", type=Path, required=True, help="folder of JSON files and charts")
    given = parser.parse_args()
    try:
        studies = [gathered(Store(url)) for url in given.sweeps]
    except InputError as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    for study in studies:
        name = study["name"]
        (given.out / f"{name}.json").write_text(json.dumps(study, indent=1) + "\n")
        draw(study, given.out / f"{name}.svg")
        print(f"\n### {study['question']}\n\n{table(study)}")


if __name__ == "__main__":
    main()
