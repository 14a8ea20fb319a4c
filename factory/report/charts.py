"""Charts as inline SVG in the page's colours, for light and dark mode.

Matplotlib draws in placeholder colours, which are replaced by CSS variables of the page. Texts stay
texts in the page's font.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, LINE = "#010203", "#010204", "#010205"
FIRST, SECOND = "#010206", "#010207"
SERIES = (*(f"#0102{n:02x}" for n in range(0x10, 0x18)),)
VARIABLES = {
    **{INK: "ink", MUTED: "muted", LINE: "line", FIRST: "genuine", SECOND: "impostor"},
    **{colour: f"series-{n}" for n, colour in enumerate(SERIES)},
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
}


def histograms(
    genuine: Sequence[int], impostor: Sequence[int], r: float | None, name: str
) -> Markup:
    """Draw genuine and impostor cosines as densities over [-1, 1].

    Args:
        genuine: counts in equal bins over [-1, 1].
        impostor: counts in the same bins.
        r: the recognizer's radius, drawn as a line, or None.
        name: a description of the chart, for people who cannot see it.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.4, 1.9), layout="constrained")
        axes = figure.add_subplot()
        edges = np.linspace(-1.0, 1.0, len(genuine) + 1)
        top = 0.0
        for counts, colour in ((impostor, SECOND), (genuine, FIRST)):
            density = np.asarray(counts) / max(sum(counts), 1) / (edges[1] - edges[0])
            axes.stairs(density, edges, fill=True, color=colour, alpha=0.28, linewidth=0)
            axes.stairs(density, edges, color=colour, linewidth=1.3)
            top = max(top, density.max())
        used = np.flatnonzero(np.asarray(genuine) + np.asarray(impostor))
        axes.set_xlim(min(float(edges[used[0]]), 0.0) if len(used) else -1.0, 1.0)
        axes.set_ylim(0, top * 1.22 or 1.0)  # room for the label of r
        if r is not None:
            axes.axvline(r, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
            left = r > 0.8
            axes.annotate(
                f"r = {r:.2f}", (r, top * 1.22), xytext=(-4 if left else 4, -6), color=INK,
                textcoords="offset points", ha="right" if left else "left", fontsize=8.5,
            )  # fmt: skip
        axes.set_xlabel("cosine")
        axes.set_yticks([])
        open_sides(axes, ("left", "right", "top"))
        return inline(figure, name)


def accuracies(rows: Mapping[str, Mapping[str, Sequence[float]]], columns: Sequence[str]) -> Markup:
    """Draw the accuracy of each row on each benchmark: a dot for each seed, a bar for the mean.

    Args:
        rows: for each row, its accuracies in [0, 1] by benchmark, one value for each seed.
        columns: the benchmarks, from top to bottom.
    """
    name = "accuracy by benchmark, every seed a dot"
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.4, 0.42 * len(columns) + 0.8), layout="constrained")
        axes = figure.add_subplot()
        step = 0.62 / max(len(rows), 1)
        for number, (row, values) in enumerate(rows.items()):
            colour = SERIES[number % len(SERIES)]
            for line, column in enumerate(columns):
                if column not in values:
                    continue
                points = 100 * np.asarray(values[column], dtype=float)
                y = line + (number - (len(rows) - 1) / 2) * step
                axes.plot([points.min(), points.max()], [y, y], color=colour, linewidth=1.2)
                axes.plot(points, np.full(len(points), y), "o", color=colour, markersize=3.2,
                          alpha=0.55, markeredgewidth=0)  # fmt: skip
                axes.plot(points.mean(), y, "|", color=colour, markersize=9, markeredgewidth=2.2,
                          label=plain(row) if line == 0 else None)  # fmt: skip
        axes.axvline(50, color=LINE, linewidth=0.8)
        axes.set_yticks(
            range(len(columns)), [plain(column.replace("_", " ")) for column in columns]
        )
        axes.set_ylim(len(columns) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("accuracy in percent; 50 is chance")
        axes.xaxis.grid(True, color=LINE, linewidth=0.5)
        axes.set_axisbelow(True)
        open_sides(axes, ("left", "right", "top"))
        return inline(figure, name)


def det(curves: Mapping[str, Mapping[str, Sequence[float]]], name: str) -> Markup:
    """Draw FNMR over FMR on logarithmic axes, with a line for each curve.

    Args:
        curves: by label, "fmr" and "fnmr" in [0, 1], as `det_curve` returns them, and "floor", the
            lowest FNMR that the pairs resolve; below it the line is dotted.
        name: what the chart shows, for those who cannot see it.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.4, 2.6), layout="constrained")
        axes = figure.add_subplot()
        lowest = 1.0
        for number, (label, curve) in enumerate(curves.items()):
            fnmr = np.array(curve["fnmr"], dtype=float)
            lowest = min([lowest, *fnmr[fnmr > 0]])
            shown = np.where(fnmr > 0, fnmr, np.nan)  # nothing is refused: no point on a log axis
            colour, floor = SERIES[number % len(SERIES)], curve.get("floor", [0.0])[0]
            axes.plot(curve["fmr"], shown, color=colour, linewidth=1.1, linestyle=":")
            axes.plot(curve["fmr"], np.where(fnmr >= floor, shown, np.nan), color=colour,
                      linewidth=1.4, label=plain(label))  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(lowest / 1.5, 1.3)
        axes.set_xlabel("FMR")
        axes.set_ylabel("FNMR")
        axes.grid(True, color=LINE, linewidth=0.4)
        axes.set_axisbelow(True)
        axes.minorticks_off()
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8)
        open_sides(axes, ("right", "top"))
        return inline(figure, name)


def compared(
    first: Sequence[int], second: Sequence[int] | None, low: float, high: float, name: str,
    label: str = "", height: float = 1.3,
) -> Markup:  # fmt: skip
    """Draw a filled histogram, and another one as a line over it, both as shares.

    Args:
        first: counts in equal bins from `low` to `high`.
        second: counts in the same bins, or None.
        low: lower end.
        high: upper end.
        name: a description of the chart, for people who cannot see it.
        label: the label of the axis.
        height: height in inches; the width is 3.1.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(3.1, height), layout="constrained")
        axes = figure.add_subplot()
        edges = np.linspace(low, high, len(first) + 1)
        shares = np.asarray(first) / max(sum(first), 1)
        axes.stairs(shares, edges, fill=True, color=FIRST, alpha=0.35, linewidth=0)
        axes.stairs(shares, edges, color=FIRST, linewidth=1.2)
        if second is not None:
            beside = np.asarray(second) / max(sum(second), 1)
            axes.stairs(beside, edges, color=SECOND, linewidth=1.2)
        used = np.flatnonzero(np.asarray(first) + np.asarray(second or first))
        if len(used):
            left, right = max(used[0] - 1, 0), min(used[-1] + 2, len(first))
            axes.set_xlim(float(edges[left]), float(edges[right]))
        axes.set_ylim(bottom=0)
        axes.set_yticks([])
        if label:
            axes.set_xlabel(plain(label))
        open_sides(axes, ("left", "right", "top"))
        return inline(figure, name)


def plain(text: str) -> str:
    """Return a text that matplotlib draws as it is: a name of others may hold dollar signs."""
    return text.replace("$", r"\$")


def open_sides(axes: Axes, sides: Sequence[str]) -> None:
    """Remove lines around a chart on the given sides."""
    for side in sides:
        axes.spines[side].set_visible(False)


def inline(figure: Figure, name: str) -> Markup:
    """Return a figure as SVG in the page's colours; `name` describes it."""
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _opening(name), text, count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # ids must be unique on a page
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return Markup(text)


def _opening(name: str) -> str:
    label = str(escape(name)).replace("\\", "")
    xlink = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return rf'<svg {xlink} viewBox="\1" role="img" aria-label="{label}">'
