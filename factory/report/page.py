"""The report of a run or a dataset: one HTML file that opens offline."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from factory.datasets.manifest import MANIFEST, DatasetManifest, load_manifest
from factory.datasets.store import Store, below, write_file
from factory.evaluation.gap import REAL, Gap, gap, over_seeds
from factory.evaluation.published import COLUMNS, NOTE, PUBLISHED
from factory.plan import human
from factory.recipe import InputError, public
from factory.report.charts import SERIES, accuracies, histograms
from factory.report.contact import A_ROW, HALF, ROOM, contact_sheet
from factory.report.few import EXACT, error_interval, group_interval, lacking, unresolved
from factory.report.first import answers
from factory.report.measures import (
    coverage_charts,
    error_curves,
    nearest_charts,
    read_measures,
    sections,
    sorted_measures,
)
from factory.report.words import ORDER, duration, figure, interval, named, percent

RESULTS = "results.json"
REPORT = "report.html"
SHEET_IDENTITIES, SHEET_IMAGES = 12, A_ROW


def collect(url: str, measures: Sequence[str] = ()) -> dict[str, Any]:
    """Return the facts about a run or a dataset in the form that `page` takes.

    A run's folder holds `results.json`, which may name its datasets by URL or by a path inside the
    folder. Without such names, the folders `synthetic` and `real` are taken if they exist. The page
    of a dataset shows its measurements.

    Args:
        url: the folder.
        measures: for a dataset, further JSON files of the commands measure and evaluate; those in
            its own folder `measures/` are read in any case.

    Raises:
        InputError: the folder is neither a run's nor a finished dataset, or a file has another
            form.
    """
    store = Store(url)
    if store.exists(RESULTS):
        if measures:
            raise InputError(f"--measures {measures[0]}: {url} is a run; accepted with a dataset")
        try:
            results = json.loads(store.read(RESULTS))
        except ValueError as error:
            raise InputError(f"{store.url}/{RESULTS}: not JSON ({error})") from None
        if not isinstance(results, dict):
            raise InputError(f"{store.url}/{RESULTS}: accepted is a JSON object")
        named = results.get("datasets") or {
            name: name for name in ("synthetic", "real") if store.exists(f"{name}/{MANIFEST}")
        }
        return {**results, "datasets": {key: _inside(url, at) for key, at in named.items()}}
    if store.exists(MANIFEST):
        name = str(load_manifest(store).recipe.get("name", "dataset"))
        found = sorted_measures(name, read_measures(store, measures))
        return {"title": f"Dataset {name}", "datasets": {name: url}, **found}
    raise InputError(
        f"{store.url}: neither {RESULTS} nor {MANIFEST} there; accepted is the folder of a run or "
        "of a finished dataset"
    )


def write_page(path: str | Path, text: str) -> Path:
    """Write a page to a local file, which is never seen half-written, and return its path."""
    write_file(path, text.encode())
    return Path(path)


def page(results: Mapping[str, Any]) -> str:
    """Return the page as one self-contained HTML text.

    Args:
        results: each part is optional; without it its section is left out.
            title: str.
            recipe: mapping, shown as JSON.
            datasets: {name: url}; contact sheets, screens and stage seconds are read from there.
            benchmarks: {row: {"seeds": [...], benchmark: [accuracy in [0, 1] of each seed],
                "average": [...]}}.
            images: {row: number of training images}.
            gap: `Gap.as_dict()`.
            quality: {dataset: {recognizer: `quality.measure(...)`}}, each with the parts
                "leakage", "variety" and "coverage" if they were measured.
            fairness: {name: `Fairness.as_dict()`}.
            protocols: contents of other protocols, each with its recognizer's name.
            timings: {stage: seconds of wall time}.
            provenance: [{"name", "location", "sha256", "licence"}].
            tracking: how to look at the runs in MLflow.

    Raises:
        InputError: a named dataset cannot be read.
    """
    stores = {name: Store(url) for name, url in results.get("datasets", {}).items()}
    manifests = {name: load_manifest(store) for name, store in stores.items()}
    paired = _paired(stores)
    sheets = {
        name: contact_sheet(
            store, SHEET_IDENTITIES, SHEET_IMAGES, HALF if paired and name in paired[0] else ROOM
        )
        for name, store in stores.items()
    }
    pixels = {name: sheet.pixels for name, sheet in sheets.items()}
    rows = _benchmark_rows(results.get("benchmarks", {}))
    columns = _columns(rows)
    quality = results.get("quality", {})
    models = [_masked(entry) for entry in results.get("provenance") or _models(manifests)]
    filters = {
        "human": human, "percent": percent, "figure": figure, "duration": duration, "name": named,
        "interval": interval, "error_interval": error_interval, "group_interval": group_interval,
    }  # fmt: skip
    return template("page.html", filters).render(
        title=results.get("title", "Face data factory"),
        answers=answers(results, manifests, rows, pixels, models),
        gap=results.get("gap"),
        behind=_behind(rows),
        series=len(SERIES),
        columns=columns,
        rows={row: _cells(values, columns) for row, values in rows.items()},
        seeds={row: len(values["average"]) for row, values in rows.items()},
        images=results.get("images", {}),
        accuracy_chart=_accuracy_chart(rows, columns),
        sheets=sheets,
        paired=paired,
        a_row=SHEET_IMAGES,
        with_cosines=any(s.cosine is not None for one in sheets.values() for s in one.strips),
        exact=EXACT,
        fewest=any(error_interval(m) for judged in quality.values() for m in judged.values()),
        quality=quality,
        charts=_quality_charts(quality),
        error_chart=error_curves(quality),
        leakage=sections(quality, "leakage"),
        nearest={
            key: nearest_charts(found, named(key[0]))
            for key, found in sections(quality, "leakage").items()
        },
        variety=sections(quality, "variety"),
        coverage=sections(quality, "coverage"),
        covered={
            key: coverage_charts(found, named(key[0]))
            for key, found in sections(quality, "coverage").items()
        },
        fairness=results.get("fairness", {}),
        protocols=results.get("protocols", []),
        published=PUBLISHED,
        published_columns=COLUMNS,
        published_note=NOTE,
        definitions=_definitions(quality),
        screens={name: _screens(manifest) for name, manifest in manifests.items()},
        seconds=sum(results.get("timings", {}).values()),
        timings=_bars(results.get("timings", {})),
        stages={name: _bars(manifest.totals.seconds) for name, manifest in manifests.items()},
        provenance=models,
        licences={name: manifest.licence for name, manifest in manifests.items()},
        versions=_versions(manifests),
        recipe=_pretty(results.get("recipe")),
        recipes={name: _pretty(manifest.recipe) for name, manifest in manifests.items()},
        tracking=public(str(results.get("tracking") or "")),
    )


def template(name: str, filters: Mapping[str, Callable[..., Any]]) -> jinja2.Template:
    """Return one of the package's page templates, in which an undefined name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("factory", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(filters)
    environment.tests["inline"] = lambda uri: str(uri).startswith("data:image/")
    return environment.get_template(name)


def _inside(url: str, location: str) -> str:
    if "://" in location or Path(location).is_absolute():
        return location
    if Store(url).exists(f"{location}/{MANIFEST}"):
        return below(url, location)
    return location


def _benchmark_rows(benchmarks: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    found = {}
    for row in sorted(benchmarks, key=lambda r: (ORDER.index(r) if r in ORDER else len(ORDER), r)):
        values = {
            column: [float(v) for v in given]
            for column, given in benchmarks[row].items()
            if column != "seeds"
        }
        if "average" not in values:
            values["average"] = [
                sum(seed) / len(seed) for seed in zip(*values.values(), strict=True)
            ]
        found[row] = values
    return found


def _behind(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Gap]:
    """Return each row's gap to the row `real`; empty if there is no such row."""
    if REAL not in rows:
        return {}
    return {
        row: gap(rows[REAL]["average"], values["average"])
        for row, values in rows.items()
        if row != REAL
    }


def _columns(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    seen = dict.fromkeys(column for values in rows.values() for column in values)
    return [*(column for column in seen if column != "average"), *(["average"] if seen else [])]


def _cells(values: Mapping[str, Sequence[float]], columns: Sequence[str]) -> list[Any]:
    return [over_seeds(values[column]) if values.get(column) else None for column in columns]


def _accuracy_chart(rows: Mapping[str, Any], columns: Sequence[str]) -> Markup:
    if not rows:
        return Markup("")
    return accuracies({named(row): values for row, values in rows.items()}, columns)


def _paired(sheets: Mapping[str, Any]) -> list[tuple[str, str]]:
    if {"synthetic", "real"} <= set(sheets):
        return [("synthetic", "real")]
    return []


def _quality_charts(quality: Mapping[str, Any]) -> dict[tuple[str, str], Markup]:
    return {
        (dataset, recognizer): _quality_chart(found, f"{named(dataset)} under the {recognizer}")
        for dataset, judged in quality.items()
        for recognizer, found in judged.items()
        if "histograms" in found
    }


def _quality_chart(found: Mapping[str, Any], of: str) -> Markup:
    both = found["histograms"]
    counts = {f"{kind} pairs": sum(both[kind]) for kind in ("genuine", "impostor")}
    if why := lacking(counts):
        return unresolved(why)
    return histograms(both["genuine"], both["impostor"], found.get("r"), f"cosines of {of}")


def _definitions(quality: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for judged in quality.values():
        for measured in judged.values():
            found.update(measured.get("definitions", {}))
    return found


def _screens(manifest: DatasetManifest) -> dict[str, Any]:
    totals = manifest.totals
    tried = totals.kept + sum(totals.reasons.values())
    return {
        "planned": totals.planned,
        "kept": totals.kept,
        "missing": totals.planned - totals.kept,
        "tried": tried,
        "kept_share": totals.kept / tried if tried else 0.0,
        "reasons": sorted(totals.reasons.items(), key=lambda item: -item[1]),
        "bytes": totals.bytes,
        "shards": len(manifest.shards),
    }


def _bars(seconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    longest = max(seconds.values(), default=0.0) or 1.0
    return [(stage, spent, 100 * spent / longest) for stage, spent in seconds.items()]


def _models(manifests: Mapping[str, DatasetManifest]) -> list[dict[str, str]]:
    found = {m.sha256 or m.location: m for one in manifests.values() for m in one.models}
    return [model.model_dump() for model in found.values()]


def _masked(entry: Mapping[str, Any]) -> dict[str, str]:
    fields = ("name", "location", "sha256", "licence")
    return {field: public(str(entry.get(field, ""))) for field in fields}


def _versions(manifests: Mapping[str, DatasetManifest]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for manifest in manifests.values():
        for library, version in manifest.created_with.items():
            found.setdefault(library, set()).add(version)
    return {library: ", ".join(sorted(seen)) for library, seen in sorted(found.items())}


def _pretty(recipe: Any) -> str:
    if not recipe:
        return ""
    text = public(json.dumps(recipe, indent=2, sort_keys=True))
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
