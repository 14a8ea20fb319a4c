"""Ten-fold face verification on `.bin` benchmark files, by the protocol of the field.

A `.bin` file is a pickle of (encoded images, issame). Images 2i and 2i+1 are pair i, and the order
of the pairs decides the folds. In the protocol, the embeddings of an image and of its mirror image
are summed, then scaled to unit length. The score of a pair is the squared L2 distance. The best
threshold on nine folds judges the tenth. The accuracy is the mean over the folds; the population
standard deviation is stated with it.
"""

import hashlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory.datasets.store import write_file
from factory.evaluation.scores import rates, resolved
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

FOLDS = 10
ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)
FAR_THRESHOLDS = np.arange(0, 4, 0.001)
FAR = 1e-3
SHOWN = 200  # characters of what a damaged file's error says


@dataclass(frozen=True)
class Pairs:
    """A benchmark: encoded images, two adjacent ones a pair, and whether a pair is one person."""

    name: str
    images: tuple[bytes, ...]
    same: np.ndarray  # bool [pairs]


@dataclass(frozen=True)
class Verification:
    """A recognizer's result on one benchmark; rates are in [0, 1].

    Attributes:
        name: the benchmark.
        pairs: its number of pairs.
        accuracy: mean over the folds ("Accuracy-Flip").
        accuracy_std: population standard deviation over the folds.
        threshold: mean over the folds of the best threshold, a squared L2 distance in [0, 4].
        auc: area under the ROC curve of all pairs.
        eer: equal error rate of all pairs.
        tar: mean of the true accept rate at the other folds' threshold for FAR `far`, over the
            folds that have genuine pairs and whose other folds have impostor pairs.
        tar_std: its population standard deviation over these folds.
        far: the false accept rate of `tar`.
        tar_resolved: whether there are enough impostor pairs to quote `tar`.
        xnorm: mean length of the embeddings before they are summed and scaled.
    """

    name: str
    pairs: int
    accuracy: float
    accuracy_std: float
    threshold: float
    auc: float
    eer: float
    tar: float
    tar_std: float
    far: float
    tar_resolved: bool
    xnorm: float

    @classmethod
    def of(cls, found: "Distances") -> "Verification":
        """Return the result for measured distances."""
        same, distances = found.same, found.distances
        right, at_far = (distances < found.thresholds) == same, distances < found.far_thresholds
        tests = folds(len(same))
        accuracies = [np.mean(right[test]) for test in tests]
        counted = same & ~np.isnan(found.far_thresholds)
        tars = [np.mean(at_far[test][counted[test]]) for test in tests if counted[test].any()]
        over_all = rates(-distances[same], -distances[~same])
        return cls(
            name=found.name,
            pairs=len(same),
            accuracy=float(np.mean(accuracies)),
            accuracy_std=float(np.std(accuracies)),
            threshold=float(np.mean([found.thresholds[test[0]] for test in tests])),
            auc=over_all.auc,
            eer=over_all.eer,
            tar=float(np.mean(tars)),
            tar_std=float(np.std(tars)),
            far=FAR,
            tar_resolved=resolved(FAR, int((~same).sum())),
            xnorm=found.xnorm,
        )


@dataclass(frozen=True)
class Distances:
    """The distances of a benchmark's pairs under a recognizer, and the folds' thresholds.

    Attributes:
        name: the benchmark.
        distances: squared L2 distances of unit flip sums, float64 [pairs] in [0, 4].
        same: whether each pair shows one person, bool [pairs].
        thresholds: the threshold of each pair's fold, best on the other folds, float64 [pairs].
        far_thresholds: the threshold of each pair's fold for FAR 1e-3 on the other folds, float64
            [pairs]; NaN where these have no impostor pair.
        xnorm: mean length of the embeddings before they are summed and scaled.
    """

    name: str
    distances: np.ndarray
    same: np.ndarray
    thresholds: np.ndarray
    far_thresholds: np.ndarray
    xnorm: float

    @classmethod
    def of(
        cls, name: str, distances: np.ndarray, same: np.ndarray, xnorm: float = 0.0
    ) -> "Distances":
        """Compute the folds' thresholds from squared distances, float64 [pairs], and issame."""
        best, far = np.empty(len(same)), np.empty(len(same))
        for test in folds(len(same)):
            others = np.setdiff1d(np.arange(len(same)), test)
            best[test] = best_threshold(distances[others], same[others])
            far[test] = far_threshold(distances[others][~same[others]], FAR)
        return cls(name, distances, same, best, far, xnorm)


def verify(recognizer: NamedEmbedder, benchmark: Pairs, resize: bool = False) -> Verification:
    """Measure a recognizer on one benchmark by the ten-fold protocol; see `measured`."""
    return Verification.of(measured(recognizer, benchmark, resize))


def measured(recognizer: NamedEmbedder, benchmark: Pairs, resize: bool) -> Distances:
    """Embed a benchmark's images with their mirror images and return the pairs' distances.

    An image of several pairs, as the field's files have thousands, is embedded once.

    Args:
        recognizer: the recognizer to measure.
        benchmark: ten pairs or more.
        resize: resize images of another size bilinearly instead of refusing them.

    Raises:
        InputError: an image is unreadable or has another size than the recognizer takes, or an
            embedding is not finite.
    """

    first: dict[bytes, int] = {}  # of each distinct image, the number that it first has
    for number, data in enumerate(benchmark.images):
        first.setdefault(data, number)

    def images() -> Iterator[np.ndarray]:
        for data, number in first.items():
            what = f"benchmark {benchmark.name} image {number}"
            yield fitted(decode(data, what), recognizer.size, what, resize)

    made = (flip_sum(recognizer, batch) for batch in batches(images(), BATCH))
    sums, lengths = zip(*made, strict=True)
    rows = dict(zip(first, range(len(first)), strict=True))
    again = [rows[data] for data in benchmark.images]
    unit = normalized(np.concatenate(sums))[again]
    distances = np.square(unit[0::2] - unit[1::2]).sum(axis=1)
    if not np.isfinite(distances).all():
        raise InputError(
            f"recognizer {recognizer.name}: it answers with what is not a number on benchmark "
            f"{benchmark.name}; accepted are finite embeddings"
        )
    both = np.concatenate([part.reshape(2, -1) for part in lengths], axis=1)
    xnorm = float(both[:, again].mean())
    return Distances.of(benchmark.name, distances, benchmark.same, xnorm)


def folds(count: int) -> list[np.ndarray]:
    """Return the consecutive test folds of `count` pairs; the first folds are one pair longer."""
    return np.array_split(np.arange(count), FOLDS)


def best_threshold(distances: np.ndarray, same: np.ndarray) -> float:
    """Return the lowest threshold of highest accuracy; pairs strictly below it are accepted."""
    right = _accepted(distances[same], ACCURACY_THRESHOLDS)
    wrong = _accepted(distances[~same], ACCURACY_THRESHOLDS)
    return ACCURACY_THRESHOLDS[np.argmax(right - wrong)]


def far_threshold(impostor: np.ndarray, far: float) -> float:
    """Return the threshold at which impostor pairs' distances have FAR `far`.

    It is interpolated linearly between steps of 0.001. It is 0 if `far` is never reached, and NaN
    without impostor pairs.
    """
    if not len(impostor):
        return float("nan")
    reached = _accepted(impostor, FAR_THRESHOLDS) / len(impostor)
    return float(np.interp(far, reached, FAR_THRESHOLDS)) if reached.max() >= far else 0.0


def _accepted(distances: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(distances), thresholds, "left")


def evaluate(recognizer: NamedEmbedder, folder: str | Path) -> dict[str, Verification]:
    """Measure a recognizer on every `.bin` file of a folder; return the results by name.

    Raises:
        InputError: the folder holds no `.bin` file, or a file is not a benchmark.
    """
    return {name: verify(recognizer, read_bin(file)) for name, file in bin_files(folder).items()}


def bin_files(folder: str | Path) -> dict[str, Path]:
    """Return the `.bin` files of a folder by name.

    Raises:
        InputError: the folder holds no `.bin` file.
    """
    files = sorted(Path(folder).glob("*.bin"))
    if not files:
        raise InputError(f"benchmarks {folder}: no .bin file; accepted is a folder of them")
    return {file.stem: file for file in files}


def average(results: Iterable[Verification]) -> float:
    """Return the plain mean of the benchmarks' accuracies, in [0, 1]."""
    return float(np.mean([result.accuracy for result in results]))


def write_bin(path: str | Path, images: Sequence[bytes], same: Sequence[bool]) -> str:
    """Write a benchmark file and return its sha256; equal content gives equal bytes.

    Args:
        path: the file to write; it replaces an older one.
        images: encoded images; the two of a pair are adjacent.
        same: for each pair, whether it shows one person.
    """
    if len(images) != 2 * len(same):
        raise ValueError(f"{len(images)} images for {len(same)} pairs; accepted are two a pair")
    seen: dict[bytes, bytes] = {}  # equal bytes become one object, as pickle refers to objects
    content = ([seen.setdefault(i, bytes(i)) for i in images], [bool(s) for s in same])
    data = pickle.dumps(content, protocol=4)
    write_file(path, data)
    return hashlib.sha256(data).hexdigest()


def read_bin(path: str | Path) -> Pairs:
    """Read a benchmark file written by Python 2 or 3 without running code (docs/contracts.md 9).

    Raises:
        InputError: the file is missing, is not a benchmark, asks for code, or its counts differ.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"benchmark: no file {path}; accepted is a .bin verification file")
    try:
        with path.open("rb") as file:
            content = _Plain(file, encoding="bytes").load()
        images, same = _checked(content)
    except Exception as error:  # a damaged pickle raises almost any exception
        why = " ".join(str(error).split())[:SHOWN]
        raise InputError(
            f"benchmark {path}: not a verification file ({why}); accepted is a pickle of "
            "(encoded images, issame)"
        ) from None
    return Pairs(path.stem, images, same)


def _checked(content: Any) -> tuple[tuple[bytes, ...], np.ndarray]:
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise ValueError(f"it holds {type(content).__name__}, not two lists")
    images = tuple(_encoded(image) for image in _items(content[0], "images"))
    same = np.array([_truth(value) for value in _items(content[1], "issame")], dtype=bool)
    if len(images) != 2 * len(same):
        raise ValueError(f"{len(images)} images for {len(same)} pairs, not two a pair")
    if len(same) < FOLDS or same.all() or not same.any():
        raise ValueError(f"{len(same)} pairs, {same.sum()} genuine: both kinds and 10 are needed")
    return images, same


def _items(value: Any, what: str) -> list[Any]:
    if isinstance(value, _Array):
        value = value.content().tolist()
    if not isinstance(value, list | tuple):
        raise ValueError(f"{what} is {type(value).__name__}, not a list")
    return list(value)


def _encoded(value: Any) -> bytes:
    if isinstance(value, _Array):
        return value.content().tobytes()
    if not isinstance(value, bytes | bytearray):
        raise ValueError(f"an image is {type(value).__name__}, not bytes")
    return bytes(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool | int) or value not in (0, 1):
        raise ValueError(f"issame holds {type(value).__name__}, not truth values")
    return bool(value)


class _Global:
    """Stands for one of the few names that a benchmark may contain; a file cannot change it."""

    __slots__ = ("_made",)

    def __init__(self, made: Callable[..., Any]) -> None:
        self._made = made

    def __call__(self, *arguments: Any) -> Any:
        return self._made(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a name")


class _Type:
    """One of the two accepted numpy types, bytes and truth values, by its name."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any, *_: Any) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else name
        known = {"u1": np.uint8, "b1": np.bool_}
        if not isinstance(text, str) or text not in known:
            raise pickle.UnpicklingError("it holds numpy data that are not bytes or truth values")
        self.dtype = known[text]

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and similar state, which one-byte types do not have."""


class _Array:
    """A numpy array of one-byte values, rebuilt from its bytes alone."""

    __slots__ = ("_dtype", "_raw")

    def __init__(self, *_: Any) -> None:
        self._raw, self._dtype = b"", np.uint8

    def __setstate__(self, state: Any) -> None:
        _, _, kind, _, raw = state
        self._raw, self._dtype = _raw_bytes(raw), kind.dtype

    @classmethod
    def of(cls, raw: Any, kind: _Type, *_: Any) -> "_Array":
        made = cls()
        made._raw, made._dtype = _raw_bytes(raw), kind.dtype
        return made

    def content(self) -> np.ndarray:
        return np.frombuffer(self._raw, dtype=np.uint8).astype(self._dtype)


def _raw_bytes(raw: Any) -> bytes:
    return raw.encode("latin1") if isinstance(raw, str) else bytes(memoryview(raw))


def _scalar(kind: _Type, raw: Any) -> int:
    return int.from_bytes(_raw_bytes(raw)[:1], "big")


_NUMPY = {
    "_reconstruct": _Array,
    "_frombuffer": _Array.of,
    "scalar": _scalar,
}


class _Plain(pickle.Unpickler):
    """Loads bytes, lists, truth values and numpy bytes; refuses other names without an import."""

    def find_class(self, module: str, name: str) -> Any:
        parent, _, leaf = module.rpartition(".")
        if parent in ("numpy.core", "numpy._core") and leaf in ("multiarray", "numeric"):
            if name in _NUMPY:
                return _Global(_NUMPY[name])
        elif (module, name) == ("numpy", "dtype"):
            return _Global(_Type)
        elif (module, name) == ("numpy", "ndarray"):
            return _Global(_Array)
        elif (module, name) == ("_codecs", "encode"):
            return _Global(lambda text, _: _raw_bytes(text))
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
