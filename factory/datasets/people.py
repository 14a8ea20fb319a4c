"""People of several datasets: who of one is also in another, by what they were drawn from."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq

from factory.datasets.index import Index
from factory.datasets.manifest import DatasetManifest
from factory.datasets.store import Store
from factory.recipe import people_of

NOBODY = -1


class Held(Protocol):
    """A dataset that is open: its name among others, its folder, its manifest and its index."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def store(self) -> Store: ...  # noqa: D102
    @property
    def manifest(self) -> DatasetManifest: ...  # noqa: D102
    @property
    def index(self) -> Index: ...  # noqa: D102


class People:
    """The people of datasets, by whom of which source they show.

    A dataset draws candidates from a source: a set of studio people, a bank of images, a seed.
    `identities.max_cosine` drops some, so that one label may be two candidates in two datasets.
    The dataset's bank says which.
    """

    def __init__(self, datasets: Sequence[Held]) -> None:
        """Read the banks of datasets that draw from one source."""
        self._labels = {one.name: one.index.labels for one in datasets}
        sources = {one.name: people_of(one.manifest.recipe) for one in datasets}
        every = [source for source in sources.values() if source]
        self._source = {name: s for name, s in sources.items() if every.count(s) > 1}
        self._drawn = {
            one.name: candidates(one.store, one.index.labels)
            for one in datasets
            if one.name in self._source
        }

    def shared(self, name: str, among: Iterable[str]) -> tuple[str, ...]:
        """Return which of the datasets `among` draw from the source of a dataset."""
        mine = self._source.get(name)
        return tuple(n for n in among if mine is not None and self._source.get(n) == mine)

    def labels(self, name: str, other: str) -> np.ndarray:
        """Return for each image the label of its person in another dataset; `NOBODY` for none.

        Where the two draw from different sources, equal labels are one person.
        """
        if name == other or not self.shared(name, [other]):
            return self._labels[name]
        numbers, first = np.unique(self._drawn[other], return_index=True)
        place = np.searchsorted(numbers, self._drawn[name]).clip(max=len(numbers) - 1)
        met = numbers[place] == self._drawn[name]
        return np.where(met, self._labels[other][first[place]], NOBODY)

    def of(self, name: str, other: str, rows: np.ndarray) -> np.ndarray:
        """Return the labels of those people who are in another dataset's images `rows`."""
        there = np.isin(self.labels(name, other), self._labels[other][rows])
        return np.unique(self._labels[name][there])

    def besides(self, name: str, taken: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the labels of those people whom no image shows that others gave.

        Args:
            name: the dataset.
            taken: the rows that other datasets of its source gave, by name.
        """
        given = np.concatenate([self._drawn[other][rows] for other, rows in taken.items()])
        return np.unique(self._labels[name][~np.isin(self._drawn[name], given)])


def candidates(store: Store, labels: np.ndarray) -> np.ndarray:
    """Return for each label which candidate of its source it is, int64 [n].

    Without a bank, as the studio's datasets are, a label is its candidate.
    """
    blocks = sorted(name for name in store.list("bank") if name.endswith(".parquet"))
    if not blocks:
        return labels.astype(np.int64)
    columns = [pq.read_table(io.BytesIO(store.read(b)), columns=["candidate"]) for b in blocks]
    return np.concatenate([np.asarray(table["candidate"]) for table in columns])[labels]
