"""Held-out identities of an export, and the verification pairs that are made of them.

The last identities are held out: at most a tenth of all and at most one for each genuine pair, but
at least two for each fold. Memory holds only the images that the pairs need.
"""

from collections.abc import Sequence

import numpy as np

from factory.datasets.scratch import scratch
from factory.evaluation.verification import FOLDS, write_bin
from factory.export.output import Output
from factory.export.source import Source
from factory.export.spool import Spooled
from factory.recipe import InputError

FEWEST, SHARE = 2 * FOLDS, 10


class HeldOut:
    """Chooses the images of the pairs, and collects them while the export passes them by."""

    def __init__(self, counts: Sequence[int], pairs: int, seed: int, composed: bool) -> None:
        """Choose identities and pairs.

        Args:
            counts: number of images by label.
            pairs: number of pairs; 0 holds nobody out.
            seed: seed of the pairs.
            composed: whether the source is a composition, which may repeat an image.

        Raises:
            InputError: there are too few identities or images for so many pairs.
        """
        self.pairs, self.composed = pairs, composed
        self.first = len(counts)  # labels from here on are held out
        self.identities = 0
        self._same: list[bool] = []
        self._places: dict[tuple[int, int], list[int]] = {}
        if not pairs:
            return
        from factory.export.pairs import choose_pairs

        people = [label for label, count in enumerate(counts) if count]
        self.identities = max(FEWEST, min(pairs // 2, len(people) // SHARE))
        if 2 * self.identities > len(people):
            raise InputError(
                f"--pairs {pairs}: its pairs would take {self.identities} of the {len(people)} "
                f"identities out of the training images; the dataset needs {2 * self.identities} "
                "identities or more"
            )
        self.first = people[-self.identities]
        images = [(who, n) for who in people[-self.identities :] for n in range(counts[who])]
        chosen = choose_pairs(np.array([who for who, _ in images]), pairs, FOLDS, seed)
        self._same = chosen.same.tolist()
        for place, row in enumerate(chosen.rows.ravel().tolist()):
            self._places.setdefault(images[row], []).append(place)
        self._files = [b""] * (2 * pairs)

    def takes(self, item: Spooled) -> bool:
        """Tell whether an image is held out; keep it if a pair needs it."""
        for place in self._places.get((item.label, item.number), ()):
            self._files[place] = item.encoded
        return item.label >= self.first

    def write(self, out: Output, name: str) -> None:
        """Write the pairs, after all images have passed.

        Raises:
            InputError: a genuine pair would be an image of a composition and its own copy.
        """
        from factory.export.pairs import refuse_copies

        if self.composed:
            refuse_copies("--pairs", self._files, self._same)
        with scratch() as folder:
            path = folder / name
            out.put(path, name, write_bin(path, self._files, self._same))


def check_pairs(pairs: int) -> None:
    """Refuse a number of pairs that cannot be divided into folds, before anything is read."""
    if pairs < 0 or pairs % (2 * FOLDS):
        raise InputError(f"--pairs {pairs}; accepted is a multiple of {2 * FOLDS}")


def check_source(source: Source) -> None:
    """Refuse a composition with repeated images, before any image is read."""
    for name, pool in source.recipe.get("pools", {}).items():
        if pool["repeat"] > 1:
            raise InputError(
                f"--pairs: pool {name} of the composition has repeat {pool['repeat']}, so that a "
                "genuine pair could be an image and its own copy; accepted is repeat 1, or "
                "jobs/make_pairs.py on the pool"
            )
