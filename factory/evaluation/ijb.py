"""IJB-B and IJB-C, 1:1: templates of several images, compared in the release's pairs.

The folder is the release as published (`loose_crop/` and `meta/ijbc_*.txt`, or `ijbb_*`). Each face
is aligned by its five points and embedded; the embeddings are summed to templates. Three switches
change the sums. Published figures differ in them, so they are always printed:

* N: the length of an embedding is kept as a weight (N1) or scaled to one before summing (N0),
* D: the embedding is weighted by the detector's score (D1) or not (D0),
* F: the mirror image's embedding is added (F1) or not (F0).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from factory.evaluation.scores import resolved
from factory.evaluation.tables import Outcome, Table, percent, rate
from factory.recipe import InputError
from factory.recognition.alignment import aligned
from factory.recognition.images import BATCH, NamedEmbedder, batches, decode, mirrored, normalized

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
SWITCHES = re.compile(r"N([01])D([01])F([01])")
TRIPLE = "template template label"
BLOCK = 100_000  # pairs that are scored at a time

DEFINITIONS = {
    "template": "mean of the weighted embeddings of each medium, summed over the template's media, "
    "then scaled to unit length; the score of a pair is the dot product",
    "tar": "true accept rate at the point of the ROC curve whose FAR is nearest to the one asked "
    "for, the highest of equal ones; points inside straight runs of the curve are no points",
    "switches": "N: embeddings keep their length; D: weighted by detector score; F: mirror added",
    "resolved": "a FAR is resolved from 10 / impostor pairs upward",
}


@dataclass(frozen=True)
class Switches:
    """The switches that change templates; `str` writes them as N1D1F1."""

    norm: bool
    detector: bool
    flip: bool

    @classmethod
    def parse(cls, text: str) -> "Switches":
        """Read switches of the form N1D1F1.

        Raises:
            InputError: the text has another form.
        """
        found = SWITCHES.fullmatch(text.strip())
        if not found:
            raise InputError(f"--switches {text!r}; accepted is N1D1F1, each digit 0 or 1")
        return cls(*(digit == "1" for digit in found.groups()))

    def __str__(self) -> str:
        return f"N{self.norm:d}D{self.detector:d}F{self.flip:d}"


@dataclass(frozen=True)
class IJBRelease:
    """The lists of an IJB release, after their checks.

    Attributes:
        name: IJBB or IJBC.
        files: image files, in the order of the lists.
        points: float32 [N, 5, 2], the five points in pixels of the loose crop.
        scores: float32 [N], the detector's scores.
        templates: int64 [N], the template of each image.
        media: int64 [N], the medium of each image.
        pairs: int64 [P, 2], the templates to compare.
        same: bool [P], whether a pair is one person.
    """

    name: str
    files: tuple[Path, ...]
    points: np.ndarray
    scores: np.ndarray
    templates: np.ndarray
    media: np.ndarray
    pairs: np.ndarray
    same: np.ndarray


def read_release(folder: str | Path) -> IJBRelease:
    """Read the lists of an IJB release.

    Raises:
        InputError: a file is missing, or a list is malformed or contradicts another one.
    """
    folder = Path(folder)
    lists = sorted((folder / "meta").glob("ijb[bc]_face_tid_mid.txt"))
    if len(lists) != 1:
        raise InputError(
            f"benchmarks {folder}: {len(lists)} lists meta/ijb?_face_tid_mid.txt; accepted is a "
            "folder of one release with loose_crop/ and meta/"
        )
    prefix = lists[0].name.split("_")[0]
    names, ids = _named(lists[0], 2, np.int64)
    others, points = _named(folder / "meta" / f"{prefix}_name_5pts_score.txt", 11, np.float32)
    listed = _numbers(folder / "meta" / f"{prefix}_template_pair_label.txt")
    if others != names:
        raise InputError(
            f"benchmarks {folder}: the lists of templates and of points name other images, or in "
            "another order; accepted are the two of one release"
        )
    templates, media = ids.T
    pairs, labels = listed[:, :2], listed[:, 2]
    unknown = np.setdiff1d(pairs, templates)
    if len(unknown) or not np.isin(labels, (0, 1)).all():
        raise InputError(
            f"benchmarks {folder}: the list of pairs names template {unknown[:1]} without images, "
            "or labels other than 0 and 1; accepted are the lists of one release"
        )
    if len(np.unique(labels)) < 2:
        raise InputError(f"benchmarks {folder}: pairs of one kind only; both are needed")
    return IJBRelease(
        name=prefix.upper(),
        files=tuple(folder / "loose_crop" / name for name in names),
        points=points[:, :10].reshape(-1, 5, 2),
        scores=points[:, 10],
        templates=templates,
        media=media,
        pairs=pairs,
        same=labels == 1,
    )


def evaluate_ijb(
    recognizer: NamedEmbedder,
    folder: str | Path,
    switches: Sequence[Switches],
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Measure a recognizer on an IJB release, 1:1, once for each setting of the switches.

    Images are read once; memory grows with templates x media, not with images or pairs.

    Raises:
        InputError: the release is not complete.
    """
    release = read_release(folder)
    made = templates_of(recognizer, release, switches, say)
    impostors = int((~release.same).sum())
    usable = [resolved(far, impostors) for far in FARS]
    table = Table(
        f"{recognizer.name} on {release.name} 1:1, TAR in percent",
        ("switches", *(f"FAR={rate(far)}" for far in FARS)),
    )
    found, metrics = {}, {}
    for setting, (order, unit) in made.items():
        scores = pair_scores(unit, np.searchsorted(order, release.pairs))
        tars = tar_at(scores, release.same, FARS)
        kept = [tar if known else None for tar, known in zip(tars, usable, strict=True)]
        table.rows.append((setting, *(percent(tar) for tar in kept)))
        found[setting] = {"tar": {rate(far): tar for far, tar in zip(FARS, kept, strict=True)}}
        metrics |= {
            f"{release.name}.{setting}.tar_at_far_{rate(far)}": tar
            for far, tar in zip(FARS, kept, strict=True)
            if tar is not None
        }
    content = {
        "protocol": f"{release.name} 1:1",
        "images": len(release.files),
        "templates": len(np.unique(release.templates)),
        "pairs": len(release.same),
        "impostor_pairs": impostors,
        "results": found,
        "definitions": DEFINITIONS,
    }
    return Outcome(content, [table], metrics)


def templates_of(
    recognizer: NamedEmbedder,
    release: IJBRelease,
    switches: Sequence[Switches],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for each setting the templates' numbers, int64 [T] rising, and unit rows [T, D]."""
    keys = np.stack([release.templates, release.media], axis=1)
    groups, of, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    of = of.ravel()
    sums: dict[str, np.ndarray] = {}
    done = 0
    for batch in batches(_faces(release, recognizer.size), BATCH):
        rows = slice(done, done + len(batch))
        plain = recognizer.embed(batch).astype(np.float64)
        flips = plain
        if any(setting.flip for setting in switches):
            flips = plain + recognizer.embed(mirrored(batch))
        for setting in switches:
            value = flips if setting.flip else plain
            value = value if setting.norm else normalized(value)
            value = value * release.scores[rows, None] if setting.detector else value
            total = sums.setdefault(str(setting), np.zeros((len(groups), value.shape[1])))
            np.add.at(total, of[rows], value)
        done += len(batch)
        say(f"{release.name}: {done} of {len(release.files)} images")
    starts = np.flatnonzero(np.diff(groups[:, 0], prepend=groups[0, 0] - 1))
    return {
        setting: (
            groups[starts, 0],
            normalized(np.add.reduceat(total / counts[:, None], starts, axis=0)),
        )
        for setting, total in sums.items()
    }


def pair_scores(unit: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the dot product of each pair of rows, float64 [P], in blocks."""
    parts = [
        np.einsum("ij,ij->i", unit[block[:, 0]], unit[block[:, 1]])
        for block in (rows[n : n + BLOCK] for n in range(0, len(rows), BLOCK))
    ]
    return np.concatenate(parts)


def tar_at(scores: np.ndarray, same: np.ndarray, fars: Sequence[float]) -> list[float]:
    """Return the TAR at the ROC point nearest to each FAR; see `DEFINITIONS`.

    Args:
        scores: float [P]; a higher score means more alike.
        same: bool [P], with both kinds of pairs.
        fars: rates in [0, 1].

    Raises:
        InputError: a score is not a number.
    """
    if not np.isfinite(scores).all():
        raise InputError("recognizer: a score is not a number; accepted are finite embeddings")
    order = np.argsort(-scores, kind="stable")
    ranked, right = scores[order], same[order]
    last = np.r_[np.flatnonzero(np.diff(ranked)), len(ranked) - 1]  # end of each run of equal ones
    accepted = np.cumsum(right)[last]
    wrong = last + 1 - accepted
    if len(last) > 2:
        turns = np.r_[True, (np.diff(wrong, 2) != 0) | (np.diff(accepted, 2) != 0), True]
        accepted, wrong = accepted[turns], wrong[turns]
    far = np.r_[0, wrong] / wrong[-1]
    tar = np.r_[0, accepted] / accepted[-1]
    found = []
    for asked in fars:
        away = np.abs(far - asked)
        nearest = len(away) - 1 - int(np.argmin(away[::-1]))  # the highest FAR of equally near ones
        found.append(float(tar[nearest]))
    return found


def _faces(release: IJBRelease, size: int) -> Iterator[np.ndarray]:
    for file, points in zip(release.files, release.points, strict=True):
        if not file.is_file():
            raise InputError(
                f"benchmark {release.name}: no image {file}; accepted is a whole release"
            )
        yield aligned(decode(file.read_bytes(), f"benchmark image {file.name}"), points, size)


def _named(path: Path, count: int, kind: type) -> tuple[list[str], np.ndarray]:
    """Read lines that consist of a name and `count` numbers."""
    if not path.is_file():
        raise InputError(f"benchmarks: no list {path}; accepted is a whole release")
    names, rows = [], []
    for number, line in enumerate(_lines(path), start=1):
        name, *values = line.split() or [""]
        try:
            row = np.array(values, dtype=kind)
        except (ValueError, OverflowError):
            row = np.empty(0)
        if len(row) != count:
            raise InputError(
                f"{path} line {number}: {line.strip()[:60]!r}; accepted is a name and {count} "
                "numbers"
            )
        names.append(name)
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: empty; accepted is the list of a release")
    return names, np.stack(rows)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {error}; accepted is a list in UTF-8") from None


def _numbers(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"benchmarks: no list {path}; accepted is a whole release")
    try:
        found = np.loadtxt(path, dtype=np.int64, ndmin=2)
    except ValueError as error:
        raise InputError(f"{path}: {error}; accepted are lines of {TRIPLE}") from None
    if found.ndim != 2 or found.shape[1] != 3:
        raise InputError(f"{path}: accepted are lines of {TRIPLE}")
    return found
