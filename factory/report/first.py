"""The first screen: what a dataset is, whether it is good, and whether it may be used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from factory.datasets.licences import FORBIDS, LICENCES
from factory.datasets.manifest import DatasetManifest
from factory.evaluation.gap import REAL, over_seeds
from factory.plan import human
from factory.recipe import public
from factory.report.few import error_interval, pairs_of
from factory.report.words import figure, interval, named, percent

JUDGE = "judge"
MOST = 5  # figures that say how good a dataset is
MADE = {  # what a system does, as a sentence
    "studio": "The studio drew them: a program renders heads, no trained model takes part.",
    "idiff_face": "IDiff-Face made them: a diffusion model follows one vector for each person.",
    "dcface": "DCFace made them: a diffusion model mixes a person's image with a style image.",
    "cemiface": "CemiFace made them: a diffusion model keeps a set likeness to a person's image.",
    "id3": "ID3 made them: a diffusion model follows a person's vector, pose and age.",
    "prepared": "They were there before. The job prepare read them from a source.",
    "compose": "They come from other datasets, which a composition put together.",
    "bank": "They were chosen from candidates, one image for each person.",
}
SOURCE_TYPES = {  # IPTC's terms
    "trainedAlgorithmicMedia": "IPTC's term for synthetic images, made by a trained model.",
    "digitalCapture": "IPTC's term for photographs. The people in them have rights of their own.",
}
UNMEASURED = "Nobody has measured it, or the page was not given the measures."
MEASURE = "factory measure URL --recognizer JUDGE"
THEN = "--json FILE && factory report URL --measures FILE"


@dataclass(frozen=True)
class Told:
    """One thing the first screen tells.

    Attributes:
        name: what it is called.
        value: its value in words.
        meaning: what that means, a sentence or two.
        command: what to type for more.
    """

    name: str
    value: str
    meaning: str = ""
    command: str = ""


@dataclass
class Answer:
    """A question of the first screen and its answer.

    Attributes:
        question: in words.
        lead: a sentence.
        told: the few facts.
    """

    question: str
    lead: str = ""
    told: list[Told] = field(default_factory=list)


def answers(
    results: Mapping[str, Any],
    manifests: Mapping[str, DatasetManifest],
    rows: Mapping[str, Mapping[str, Sequence[float]]],
    pixels: Mapping[str, str],
    models: Sequence[Mapping[str, str]],
) -> list[Answer]:
    """Return the three answers; a page without datasets has no first and no last one.

    Args:
        results: as `page` takes them.
        manifests: of the datasets, by name.
        rows: accuracies of the benchmarks by what was trained on.
        pixels: the size of the images of each dataset, in words.
        models: name and licence of every model that touched the images.
    """
    good = is_it_good(results, manifests, rows)
    if not manifests:
        return [good] if good.told else []
    return [
        what_is_it(manifests, pixels),
        good,
        may_i_use_it(manifests, results.get("quality", {}), models),
    ]


def what_is_it(manifests: Mapping[str, DatasetManifest], pixels: Mapping[str, str]) -> Answer:
    """Say which system made how many images of how many people, how large, and by which recipe."""
    if len(manifests) == 1:
        ((name, manifest),) = manifests.items()
        return _one(named(name), manifest, pixels.get(name, ""))
    told = []
    for name, manifest in manifests.items():
        size = pixels.get(name, "")
        made = f"System {system(manifest)}, {size}." if size else f"System {system(manifest)}."
        told.append(Told(named(name), extent(manifest), made))
    return Answer(
        "What is this?", f"This page compares {len(manifests)} datasets: people x images.", told
    )


def _one(name: str, manifest: DatasetManifest, size: str) -> Answer:
    kept, planned = manifest.totals.kept, manifest.totals.planned
    full = "all that were planned" if kept == planned else f"{planned:,} were planned"
    encoded = _encoded(manifest.recipe.get("image"))
    stored = f"{human(manifest.totals.bytes)} in {len(manifest.shards):,} shards"
    seed = manifest.recipe.get("seed")
    told = [
        Told("People x images", extent(manifest), f"It holds {kept:,} images, {full}."),
        Told("Size", size or "unknown", f"{encoded} They take {stored}.".strip()),
        Told("System", system(manifest), MADE.get(_kind(manifest), "This system made them.")),
        Told(
            "Recipe",
            public(str(manifest.recipe.get("name", "unnamed"))),
            f"The recipe{'' if seed is None else f', seed {seed},'} and the content digest "
            f"{manifest.content_digest} name these images.",
        ),
    ]
    people = _count(manifest, "count")
    of = "" if people is None else f" of {people:,} people"
    return Answer("What is this dataset?", f"{name} holds {kept:,} face images{of}.", told)


def is_it_good(
    results: Mapping[str, Any],
    manifests: Mapping[str, DatasetManifest],
    rows: Mapping[str, Mapping[str, Sequence[float]]],
) -> Answer:
    """Give the few figures that say how good a dataset is, each with what it means."""
    answer = Answer("Is it good?")
    trained = [row for row in rows if row != REAL] or list(rows)
    if trained:
        mean = over_seeds(rows[trained[0]]["average"])
        sd = "" if mean.sd is None else f" \u00b1 {percent(mean.sd, 2)}"
        answer.told.append(
            Told(
                "Accuracy",
                f"{percent(mean.mean, 2)}{sd} %",
                f"A recognizer ({named(trained[0])}) judges this share of pairs rightly. "
                "Chance gives 50 %.",
            )
        )
    if behind := results.get("gap"):
        error = behind.get("absolute_error")
        more = "" if error is None else f" \u00b1 {figure(error, 2)}"
        answer.told.append(
            Told(
                "Gap to real",
                f"{figure(behind['absolute'], 2)}{more} points",
                "Real images, equal in number, teach a recognizer this much more.",
            )
        )
    dataset, recognizer, found = _chosen(results.get("quality", {}))
    if found:
        answer.lead = _separates(found, recognizer, dataset)
        answer.told += _quality(found)
    elif answer.told:
        answer.lead = "Recognizers were trained on it and tested."
    elif manifests:
        answer.lead = UNMEASURED
        meaning = "These commands measure error and spread, and write this page again."
        answer.told.append(Told("Quality", "not measured", meaning, f"{MEASURE} {THEN}"))
    if manifests:
        answer.told += _screened(manifests)
    answer.told = answer.told[:MOST]
    return answer


def may_i_use_it(
    manifests: Mapping[str, DatasetManifest],
    quality: Mapping[str, Any],
    models: Sequence[Mapping[str, str]],
) -> Answer:
    """State the licences of datasets and models, leakage, and IPTC's digital source type."""
    answer = Answer("May I use it?", "These facts decide. They are no legal advice.")
    licences = _together({n: public(m.licence) for n, m in manifests.items()})
    for licence, names in licences.items():
        of = "" if len(licences) == 1 else f" of {names}"
        answer.told.append(Told(f"Licence{of}", licence, terms(licence)))
    answer.told.append(_models(models, [_kind(one) for one in manifests.values()]))
    answer.told.append(_leakage(quality))
    types = _together({n: m.digitalSourceType for n, m in manifests.items()})
    for kind, names in types.items():
        of = "" if len(types) == 1 else f" of {names}"
        meaning = SOURCE_TYPES.get(kind, "The manifest states this term.")
        answer.told.append(Told(f"Digital source type{of}", kind, meaning))
    return answer


def terms(licence: str) -> str:
    """Say in plain words what a licence is known to allow; the strictest part of it decides."""
    parts = licence.split(" AND ")
    if "unknown" in parts:
        return "Nobody has stated a licence. Ask the maker before you use it."
    if others := [part for part in parts if part not in LICENCES]:
        return f"This project does not know {' and '.join(others)}. Read the terms first."
    if "proprietary" in parts:
        return "The owner decides. Ask the owner before you use it."
    if any(LICENCES.index(part) >= LICENCES.index(FORBIDS) for part in parts):
        return "It forbids commercial use. Research may use it under its terms."
    if parts == ["CC0-1.0"]:
        return "It allows any use, commercial use too, and asks for nothing."
    return "It allows commercial use under its terms."


def extent(manifest: DatasetManifest) -> str:
    """Return people x images, or the images where the recipe counts no people."""
    people, each = _count(manifest, "count"), _count(manifest, "images_each")
    if people is None or each is None:
        return f"{manifest.totals.kept:,} images"
    return f"{people:,} x {each:,}"


def system(manifest: DatasetManifest) -> str:
    """Return the name of what made a dataset: its system, else the kind of its recipe."""
    recipe = manifest.recipe
    return public(str(recipe.get("system") or recipe.get("kind") or "unknown"))


def _kind(manifest: DatasetManifest) -> str:
    return str(manifest.recipe.get("system") or manifest.recipe.get("kind"))


def _count(manifest: DatasetManifest, what: str) -> int | None:
    counts = manifest.recipe.get("identities")
    found = counts.get(what) if isinstance(counts, Mapping) else None
    return found if isinstance(found, int) else None


def _encoded(image: Any) -> str:
    if not isinstance(image, Mapping) or "format" not in image:
        return ""
    if image["format"] == "jpg":
        return f"Each is a JPEG of quality {public(str(image.get('quality', '?')))}."
    return f"Each is a {public(str(image['format'])).upper()}."


def _chosen(quality: Mapping[str, Any]) -> tuple[str, str, Mapping[str, Any]]:
    """Return the measure of the first screen: of a dataset that is not real, under the judge."""
    datasets = [name for name in quality if name != REAL and quality[name]]
    if not datasets:
        return "", "", {}
    dataset = "synthetic" if "synthetic" in datasets else datasets[0]
    judged = quality[dataset]
    recognizer = JUDGE if JUDGE in judged else next(iter(judged))
    return dataset, recognizer, judged[recognizer]


def _separates(found: Mapping[str, Any], recognizer: str, dataset: str) -> str:
    return (
        f"The {recognizer}, a recognizer, compared the images of {named(dataset)}. Read error and "
        "spread together: copies of one image have no error."
    )


def _quality(found: Mapping[str, Any]) -> list[Told]:
    genuine, impostor = pairs_of(found)
    ends = error_interval(found)
    value = f"{percent(found['eer'])} %"
    counted = f"{genuine:,} genuine and {impostor:,} impostor pairs"
    if ends:
        value += f", 95 % interval {interval(ends)}"
        counted = f"only {counted}"
    told = [
        Told(
            "EER (equal error rate)",
            value,
            f"The recognizer errs on this share of {counted}. Less is better.",
        ),
        Told(
            "Spread",
            figure(found["spread"]),
            "Images of one person differ by this much: 0 for copies, about 1 for strangers.",
        ),
    ]
    if "uniqueness" in found:
        value = f"{percent(found['uniqueness'])} %"
        told.append(
            Told("Uniqueness", value, "This share of the people look like nobody before them.")
        )
    if "consistency" in found:
        value = f"{percent(found['consistency'])} %"
        told.append(
            Told("Consistency", value, "This share of the images look like their own person.")
        )
    return told


def _screened(manifests: Mapping[str, DatasetManifest]) -> list[Told]:
    made = [one for name, one in manifests.items() if name != REAL] or list(manifests.values())
    kept = sum(one.totals.kept for one in made)
    tried = kept + sum(sum(one.totals.reasons.values()) for one in made)
    if not tried:
        return []
    share = f"{percent(kept / tried)} %"
    return [Told("Kept", share, f"The screens kept {kept:,} of {tried:,} images that were made.")]


def _models(models: Sequence[Mapping[str, str]], kinds: Sequence[str]) -> Told:
    if not models:
        none = "No trained model touched the images."
        if kinds and all(kind == "studio" for kind in kinds):
            none += " A renderer has no training faces to give back."
        return Told("Models", "none", none)
    licences = _together({model["name"]: model["licence"] or "unknown" for model in models})
    listed = "; ".join(f"{licence}: {names}" for licence, names in licences.items())
    strict = [licence for licence in licences if not terms(licence).startswith("It allows")]
    word = f"{len(models)} model{'s' if len(models) > 1 else ''}"
    if strict:
        return Told("Models", word, f"{listed}. Mind {' and '.join(strict)}.")
    return Told("Models", word, f"{listed}. All allow commercial use under their terms.")


def _leakage(quality: Mapping[str, Any]) -> Told:
    for judged in quality.values():
        for found in judged.values():
            if "leakage" not in found:
                continue
            member = found["leakage"].get("membership")
            if not member:
                meaning = "Nearness was measured, without held-out faces to compare. See below."
                return Told("Leakage", "measured in part", meaning)
            said = (
                "It leaks: training faces lie nearer than faces the generator never saw"
                if member["low"] > 0.5
                else "No leak shows beside faces the generator never saw"
            )
            ends = f"{figure(member['low'])} to {figure(member['high'])}"
            meaning = f"{said} (0.5 is none; the 95 % interval is {ends})."
            return Told("Leakage", f"AUC {figure(member['auc'])}", meaning)
    meaning = "Nobody has compared these faces with the faces that the generator learned from."
    command = f"{MEASURE} --against TRAINING --held-out UNSEEN {THEN}"
    return Told("Leakage", "not measured", meaning, command)


def _together(values: Mapping[str, str]) -> dict[str, str]:
    """Return each value once, with the names that have it."""
    found: dict[str, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(named(name))
    return {value: ", ".join(names) for value, names in found.items()}
