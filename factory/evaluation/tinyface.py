"""TinyFace: closed-set identification of small faces, rank-1 and rank-5.

The folder is the release's test set: `Gallery_Match`, `Gallery_Distractor` and `Probe` with images
named IDENTITY_NUMBER.jpg (the name of a distractor has no meaning). Or it holds the user's own
lists `gallery_match.csv`, `gallery_distractor.csv` and `probe.csv` with the columns file and
identity.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from factory.evaluation.tables import Outcome, Table, percent
from factory.recipe import InputError
from factory.recognition.images import (
    BATCH,
    NamedEmbedder,
    batches,
    decode,
    fitted,
    flip_sum,
    normalized,
)

RANKS = (1, 5)
IMAGES = (".jpg", ".jpeg", ".png")
PARTS = {"gallery": "Gallery_Match", "distractors": "Gallery_Distractor", "probes": "Probe"}
BLOCK = 1024  # probes that are compared with the whole gallery at a time

DEFINITIONS = {
    "rank-n": "share of probes with an image of their identity among the n gallery images of "
    "highest cosine; an image of another identity at the same cosine goes before",
    "embedding": "of an image and of its mirror image, summed, scaled to unit length",
}


@dataclass(frozen=True)
class TinyFaces:
    """Image files and their identities; the identity of a distractor is ""."""

    files: tuple[Path, ...]
    identities: tuple[str, ...]


@dataclass(frozen=True)
class TinyFaceRelease:
    """The three parts of the closed-set test."""

    gallery: TinyFaces
    distractors: TinyFaces
    probes: TinyFaces


def read_release(folder: str | Path) -> TinyFaceRelease:
    """List the images of a TinyFace test set.

    Raises:
        InputError: a part is missing or empty, or a probe's identity is not in the gallery.
    """
    parts = {part: _listed(Path(folder), name) for part, name in PARTS.items()}
    found = TinyFaceRelease(**parts)
    for part in ("gallery", "probes"):
        if "" in parts[part].identities:
            nameless = parts[part].files[parts[part].identities.index("")]
            raise InputError(
                f"benchmarks {folder}: {nameless.name} of {PARTS[part]} names no identity; "
                "accepted is IDENTITY_NUMBER.jpg, or a list"
            )
    strangers = sorted(set(found.probes.identities) - set(found.gallery.identities))
    if strangers:
        raise InputError(
            f"benchmarks {folder}: identity {strangers[0]} of {PARTS['probes']} has no gallery "
            "image; accepted is a closed set"
        )
    return found


def evaluate_tinyface(
    recognizer: NamedEmbedder,
    folder: str | Path,
    resize: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Measure a recognizer on a TinyFace test set.

    Raises:
        InputError: the set is not complete, or an image has another size than the recognizer takes.
    """
    release = read_release(folder)
    unit = {}
    for part, name in PARTS.items():
        say(f"TinyFace {name}: {len(getattr(release, part).files)} images")
        unit[part] = _embedded(recognizer, getattr(release, part), resize)
    names = {name: n for n, name in enumerate(dict.fromkeys(release.gallery.identities))}
    labels = np.array([names[name] for name in release.gallery.identities])
    ranks = first_ranks(
        unit["probes"],
        np.array([names[name] for name in release.probes.identities]),
        np.concatenate([unit["gallery"], unit["distractors"]]),
        np.concatenate([labels, np.full(len(unit["distractors"]), -1)]),
    )
    shares = {f"rank-{n}": float(np.mean(ranks <= n)) for n in RANKS}
    counts = {part: len(getattr(release, part).files) for part in PARTS}
    table = Table(
        f"{recognizer.name} on TinyFace, closed set, in percent", ("probes", "gallery", *shares)
    )
    all_gallery = counts["gallery"] + counts["distractors"]
    cells = (percent(share) for share in shares.values())
    table.rows.append((str(counts["probes"]), str(all_gallery), *cells))
    content = {
        "protocol": "TinyFace closed-set identification",
        **counts,
        "identities": len(names),
        "results": shares,
        "definitions": DEFINITIONS,
    }
    return Outcome(content, [table], {f"TinyFace.{name}": share for name, share in shares.items()})


def first_ranks(
    probes: np.ndarray, labels: np.ndarray, gallery: np.ndarray, gallery_labels: np.ndarray
) -> np.ndarray:
    """Return the rank of the first gallery image of each probe's identity, int64 [P], from 1.

    Args:
        probes: unit rows [P, D].
        labels: int [P]; each of them occurs in `gallery_labels`.
        gallery: unit rows [G, D].
        gallery_labels: int [G]; -1 is a distractor.
    """
    ranks = np.empty(len(probes), np.int64)
    for start in range(0, len(probes), BLOCK):
        rows = slice(start, start + BLOCK)
        cosines = probes[rows] @ gallery.T
        own = labels[rows, None] == gallery_labels[None]
        best = np.where(own, cosines, -np.inf).max(axis=1)
        ranks[rows] = 1 + (~own & (cosines >= best[:, None])).sum(axis=1)
    return ranks


def _embedded(recognizer: NamedEmbedder, faces: TinyFaces, resize: bool) -> np.ndarray:
    def images() -> Iterator[np.ndarray]:
        for file in faces.files:
            if not file.is_file():
                raise InputError(f"benchmark image {file}: missing; accepted is a whole test set")
            what = f"benchmark image {file}"
            yield fitted(decode(file.read_bytes(), what), recognizer.size, what, resize)

    sums = (flip_sum(recognizer, batch)[0] for batch in batches(images(), BATCH))
    parts = [normalized(one).astype(np.float32) for one in sums]
    unit = np.concatenate(parts)
    if not np.isfinite(unit).all():
        raise InputError(f"recognizer {recognizer.name}: an embedding is not a number")
    return unit


def _listed(folder: Path, name: str) -> TinyFaces:
    table = folder / f"{name.lower()}.csv"
    if table.is_file():
        try:
            with table.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{table}: {error}; accepted is CSV in UTF-8") from None
        if not rows or not all(row.get("file") for row in rows):
            raise InputError(
                f"{table}: accepted are the columns file and identity, each line with a file"
            )
        files = tuple(folder / row["file"] for row in rows)
        identities = tuple(row.get("identity") or "" for row in rows)
    else:
        inside = (folder / name).glob("*") if (folder / name).is_dir() else ()
        files = tuple(sorted(path for path in inside if path.suffix.lower() in IMAGES))
        identities = tuple(path.stem.rpartition("_")[0] for path in files)
    if not files:
        raise InputError(
            f"benchmarks {folder}: neither images in {name} nor {table.name}; accepted is a "
            "TinyFace test set"
        )
    return TinyFaces(files, identities)
