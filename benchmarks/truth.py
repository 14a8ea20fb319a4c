"""A denoiser that is told who a studio person is by the studio's own numbers, not by an embedding.

    FACTORY_SYSTEMS=benchmarks.truth factory train_diffusion benchmarks/truth.yaml --out runs/truth

It is IDiff-Face in all else, and bounds what a better teacher could bring.
`benchmarks.where_the_gap_is --truth` samples it.
"""

import dataclasses
from functools import lru_cache

import numpy as np
from torch import nn

from factory.diffusion.sampling import Given
from factory.studio.people import FEMALE_STYLES, MALE_STYLES, Person, person
from factory.systems.contexts import unit
from factory.systems.idiff_face import IDiffFace, IDiffFaceTraining
from factory.systems.training import Drawn

# What names a person or seeds it, and what has no fixed length.
UNSEEN = ("split", "index", "plain", "texture_seed", "moles", "scars")
STYLES = {
    "hair_style": tuple(sorted({*MALE_STYLES, *FEMALE_STYLES, "curly"})),
    "beard_style": ("none", "stubble", "moustache", "goatee", "chin", "short", "full", "sideburns"),
}
MEASURED = 2000  # people over whom means and spreads are taken


def numbers(who: Person) -> np.ndarray:
    """Return what stays with a person from picture to picture, float64 [D]; styles as one-hot."""
    found: list[np.ndarray] = []
    for field in dataclasses.fields(Person):
        if field.name in UNSEEN:
            continue
        value = getattr(who, field.name)
        if field.name in STYLES:
            value = [float(value == style) for style in STYLES[field.name]]
        elif isinstance(value, dict):
            value = list(value.values())
        found.append(np.atleast_1d(np.asarray(value, np.float64)))
    return np.concatenate(found)


@lru_cache(1)
def scale() -> tuple[np.ndarray, np.ndarray]:
    """Return mean and spread of each number over people of the `train` set, float64 [D]."""
    rows = np.stack([numbers(person("train", index)) for index in range(MEASURED)])
    return rows.mean(axis=0), rows.std(axis=0).clip(1e-6)


@lru_cache(32_768)
def _context(index: int) -> np.ndarray:
    mean, spread = scale()
    return unit(((numbers(person("train", index)) - mean) / spread)[None])[0]


def truths(indices: np.ndarray) -> np.ndarray:
    """Return contexts of people of the studio's `train` set, float32 [n, D], unit vectors.

    Args:
        indices: their numbers, int64 [n].
    """
    return np.stack([_context(int(index)) for index in indices])


class TruthTraining(IDiffFaceTraining):
    """Train IDiff-Face's denoiser on the truth; its identity loss still asks the teacher."""

    @property
    def embedding_size(self) -> int:
        """Return the dimensions of the teacher's embeddings, which the network does not take."""
        return self.data.arrays["embeddings"].shape[2]

    def draw(self, draws: np.random.Generator, rows: np.ndarray, flip: np.ndarray) -> Drawn:
        """Draw the truth of each image's person, and its embedding for the identity loss."""
        drawn = super().draw(draws, rows, flip)
        return Drawn((self.told(rows),), drawn.wanted)

    def shown(self, module: nn.Module, rows: np.ndarray) -> Given:
        """Return the truth of the examples' people."""
        return self._array(self.told(rows))

    def told(self, rows: np.ndarray) -> np.ndarray:
        """Return the truth of the people of examples, float32 [B, D]."""
        people = [int(key.split(b"_")[0]) for key in self.data.keys[rows]]
        return truths(np.array(people))


SYSTEM = IDiffFace
TRAINING = TruthTraining
