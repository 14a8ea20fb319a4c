"""The search over compositions: a space of them, its trials on Ray Tune, and their results."""

from factory.recipe import KnownFaces
from factory.search.space import Asha, Choice, Pool, Real, Space

__all__ = ["Asha", "Choice", "KnownFaces", "Pool", "Real", "Space"]
