"""The search over compositions: a space of them, its trials on Ray Tune, what came of each."""

from factory.search.space import Asha, Choice, Pool, Real, Space

__all__ = ["Asha", "Choice", "Pool", "Real", "Space"]
