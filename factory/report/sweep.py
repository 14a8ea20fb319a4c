"""The report page of a sweep: its trials side by side, from the files in its folder."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from factory.datasets.store import Store
from factory.evaluation.gap import Spread, over_seeds
from factory.report.charts import FIRST, INK, LINE, MUTED, SECOND, STYLE, inline, open_sides, plain
from factory.report.page import template
from factory.report.words import duration, percent
from factory.search.results import chance, load

WORDS = {
    "images": "images",
    "generation_seconds": "seconds of generation",
    "leakage": "mean cosine to the nearest known face",
}

STATES = ("finished", "stopped", "refused", "failed", "not done")

Result = Mapping[str, Any]


def sweep_page(store: Store) -> str:
    """Return the page of a running or finished sweep as one self-contained HTML text."""
    sweep, results = load(store)
    space = sweep["space"]
    finished = [result for result in results if result["state"] == "finished"]
    ranked = sorted(finished, key=lambda result: -result["accuracy"])
    failed = sweep.get("failed", [])
    rest = [result for result in results if result["state"] != "finished"] + failed
    axes = {name: Axis(name, axis) for name, axis in space["axes"].items()}
    others = [name for name in space["objectives"] if name != "accuracy"]
    filters = {"percent": percent, "duration": duration, "shown": shown}
    return template("sweep.html", filters).render(
        title=f"Sweep {space['name']}",
        space=space,
        facts=_facts(sweep, ranked, results),
        rows=[*ranked, *rest],
        spreads={r["number"]: over_seeds(r["accuracies"]) for r in ranked},
        best=sweep.get("best"),
        front=sweep.get("front") or [],
        parallel=parallel(axes, ranked) if ranked else Markup(""),
        responses=[response(axis, ranked) for axis in axes.values()] if ranked else [],
        tradeoffs=[tradeoff(name, ranked, sweep.get("front") or []) for name in others if ranked],
        curves=curves(results) if any(result["curve"] for result in results) else Markup(""),
        seconds=_seconds(results),
        runs=sweep.get("runs", []),
        generation=sweep.get("generation"),
        startup=sweep.get("startup_seconds"),
        pretty=json.dumps(space, indent=2),
    )


class Axis:
    """An axis in charts: each value has a place on a line.

    Args:
        name: the axis's name.
        described: the axis's entry in `Space.described`.
    """

    def __init__(self, name: str, described: Mapping[str, Any]) -> None:
        self.name, self.values = name, described.get("values")
        self.log, self.ordered = bool(described.get("log")), bool(described.get("ordered"))
        self.numeric = self.values is None or all(
            isinstance(value, (int, float)) for value in self.values
        )

    def place(self, value: Any) -> float:
        """Return the place of a value: a number itself, another value by its order."""
        return float(value) if self.numeric else float((self.values or []).index(value))

    @property
    def ticks(self) -> dict[float, str]:
        """Return the labels of places; {} if the numbers themselves are the labels."""
        if self.values is None or (self.numeric and len(self.values) > 8):
            return {}
        return {self.place(value): plain(shown(value)) for value in self.values}


def shown(value: Any) -> str:
    """Return the text of an axis's value."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(shown(part) for part in value)
    return str(value)


def _facts(sweep: Mapping[str, Any], ranked: Sequence[Result], results: Sequence[Result]) -> Any:
    states = [result["state"] for result in [*results, *sweep.get("failed", [])]]
    asked = max(sweep.get("samples", 0), len(states))
    states += ["not done"] * (asked - len(states))
    found = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    facts = [("Trials", str(asked), found if set(states) != {"finished"} else "all finished")]
    if ranked:
        spread = over_seeds(ranked[0]["accuracies"])
        sd = "" if spread.sd is None else f" +- {100 * spread.sd:.2f}"
        facts.append(
            ("Highest", f"{100 * spread.mean:.2f}{sd}", f"% in trial {ranked[0]['number']}")
        )
        low = ranked[-1]["accuracy"]
        facts.append(("Lowest", f"{100 * low:.2f}", f"% in trial {ranked[-1]['number']}"))
        p = chance([result["accuracies"] for result in ranked])
        if p is not None:
            facts.append(("Chance", f"p = {p:.2g}", "of such differences if all trials were alike"))
    if sweep.get("overhead"):
        facts.append(("Overhead", f"{sweep['overhead']:.2f}", "wall time over the trials' own"))
    return facts


def parallel(axes: Mapping[str, Axis], ranked: Sequence[Result]) -> Markup:
    """Draw each trial as a line through its values to its accuracy; the best quarter stands out."""
    name = "parallel coordinates: the values of each trial, and its accuracy"
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        many = len(axes) > 4
        figure = Figure(figsize=(9.6 if many else 6.4, 3.0), layout="constrained")
        plot = figure.add_subplot()
        columns = [_scaled([axis.place(r["point"][n]) for r in ranked], axis.log)
                   for n, axis in axes.items()]  # fmt: skip
        columns.append(_scaled([r["accuracy"] for r in ranked], False))
        top = max(len(ranked) // 4, 1)
        for place in reversed(range(len(ranked))):
            strong = place < top
            plot.plot(
                range(len(columns)), [column[place] for column in columns],
                color=FIRST if strong else MUTED, alpha=0.95 if strong else 0.35,
                linewidth=1.6 if strong else 0.9,
            )  # fmt: skip
        for x, (label, axis) in enumerate(axes.items()):
            values = [axis.place(result["point"][label]) for result in ranked]
            _ends(plot, x, [_tick(axis, min(values)), _tick(axis, max(values))])
        accuracies = [result["accuracy"] for result in ranked]
        _ends(plot, len(axes), [f"{100 * value:.1f}" for value in (min(accuracies), accuracies[0])])
        words = [*(label.replace("_", "\n" if many else " ") for label in axes), "accuracy, %"]
        plot.set_xticks(range(len(columns)), words)
        plot.set_ylim(-0.13, 1.13)
        plot.set_xlim(-0.3, len(columns) - 0.7)
        plot.set_yticks([])
        for x in range(len(columns)):
            plot.plot([x, x], [0, 1], color=LINE, linewidth=1.0, zorder=0)
        plot.tick_params(axis="x", length=0)
        open_sides(plot, ("left", "right", "top", "bottom"))
        return inline(figure, name)


def _ends(plot: Any, x: float, texts: Sequence[str]) -> None:
    for y, text, align in zip((-0.03, 1.03), texts, ("top", "bottom"), strict=True):
        plot.text(x, y, text, ha="center", va=align, color=MUTED, fontsize=7.5)


def _tick(axis: Axis, place: float) -> str:
    return axis.ticks.get(place, f"{place:g}")


def _scaled(values: Sequence[float], log: bool) -> np.ndarray:
    found = np.log(values) if log else np.asarray(values, dtype=float)
    span = found.max() - found.min()
    return (found - found.min()) / span if span else np.full(len(found), 0.5)


def response(axis: Axis, ranked: Sequence[Result]) -> Markup:
    """Draw accuracy over one axis: a dot for each training, and mean and spread at each value."""
    name = f"accuracy over {axis.name}"
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.4, 2.5), layout="constrained")
        plot = figure.add_subplot()
        found: dict[float, list[float]] = {}
        for result in ranked:
            place = axis.place(result["point"][axis.name])
            found.setdefault(place, []).extend(100 * value for value in result["accuracies"])
        places = sorted(found)
        for place in places:
            plot.plot([place] * len(found[place]), found[place], "o", color=FIRST, markersize=3.2,
                      alpha=0.5, markeredgewidth=0)  # fmt: skip
        means = [over_seeds(found[place]) for place in places]
        if max(len(found[place]) for place in places) > 1:
            plot.errorbar(places, [m.mean for m in means], [m.sd or 0.0 for m in means],
                          color=FIRST, linestyle="none", elinewidth=1.0, capsize=2.5)  # fmt: skip
        # A line makes no sense between names, and between random numbers it would show noise.
        if axis.values is not None and axis.ordered:
            plot.plot(places, [m.mean for m in means], color=FIRST, linewidth=1.4)
        if axis.log:
            plot.set_xscale("log")
            plot.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            plot.xaxis.set_major_formatter("{x:g}")
            plot.minorticks_off()
        if axis.ticks:
            slanted = max(map(len, axis.ticks.values())) * len(axis.ticks) > 40
            turned = {"rotation": 30, "ha": "right"} if slanted else {}
            plot.set_xticks(list(axis.ticks), list(axis.ticks.values()), fontsize=7.5, **turned)
        plot.set_xlabel(axis.name.replace("_", " "))
        plot.set_ylabel("accuracy, %", color=MUTED)
        plot.yaxis.grid(True, color=LINE, linewidth=0.5)
        plot.set_axisbelow(True)
        open_sides(plot, ("right", "top"))
        return inline(figure, name)


def tradeoff(name: str, ranked: Sequence[Result], front: Sequence[int]) -> Markup:
    """Draw accuracy over a second objective; the trials of the front are marked and numbered."""
    title = f"accuracy over {WORDS[name]}"
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(4.4, 2.9), layout="constrained")
        plot = figure.add_subplot()
        for result in ranked:
            best = result["number"] in front
            x, y = result[name], 100 * result["accuracy"]
            plot.plot(x, y, "o", color=FIRST if best else MUTED, alpha=0.95 if best else 0.4,
                      markersize=5 if best else 3.5, markeredgewidth=0)  # fmt: skip
            if best:
                plot.annotate(str(result["number"]), (x, y), xytext=(4, 3), fontsize=7.5,
                              textcoords="offset points", color=INK)  # fmt: skip
        plot.set_xlabel(WORDS[name])
        plot.set_ylabel("accuracy, %", color=MUTED)
        plot.grid(True, color=LINE, linewidth=0.5)
        plot.set_axisbelow(True)
        open_sides(plot, ("right", "top"))
        return inline(figure, title)


def curves(results: Sequence[Result]) -> Markup:
    """Draw the reports of trials while they trained; stopped ones have another colour."""
    name = "accuracy of each report"
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.4, 2.5), layout="constrained")
        plot = figure.add_subplot()
        for result in results:
            curve = result["curve"]
            plot.plot(
                [row["iteration"] for row in curve], [100 * row["accuracy"] for row in curve],
                color=SECOND if result["state"] == "stopped" else FIRST, linewidth=1.0, alpha=0.6,
            )  # fmt: skip
        plot.set_xlabel("report")
        plot.set_ylabel("accuracy, %", color=MUTED)
        plot.xaxis.set_major_locator(MaxNLocator(integer=True))
        open_sides(plot, ("right", "top"))
        return inline(figure, name)


def _seconds(results: Sequence[Result]) -> dict[str, Spread]:
    """Return mean and spread over trials of the wall time of each activity."""
    done = [result for result in results if result["state"] != "refused"]
    names = dict.fromkeys(name for result in done for name in result["seconds"])
    found = {name: [result["seconds"].get(name, 0.0) for result in done] for name in names}
    if done:
        found["wait"] = [result["wait"] for result in done]
    return {name: over_seeds(values) for name, values in found.items()}
