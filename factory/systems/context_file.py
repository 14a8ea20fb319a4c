"""Contexts of a file: vectors by name, of which identity i is the i-th."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from factory.datasets.located import local_file
from factory.datasets.provenance import sha256_file
from factory.recipe import Address, InputError, Part
from factory.recognition.tensors import read_tensors
from factory.systems.contexts import unit

ACCEPTED = "accepted is a file of vectors by name, as torch.save writes a dictionary"


class ContextsFile(Part):
    """A file of contexts, named by where it lies and what it holds."""

    url: Address = Field(description="Path or URL of vectors by name, as torch.save writes them.")
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] = Field(
        description="The first 16 digits of its sha256; a wrong one is answered with the right one."
    )


def check_source(named: ContextsFile | None, source: str) -> None:
    """Refuse a file of contexts without the source that takes them, and the other way round."""
    if (named is not None) != (source == "file"):
        raise InputError(
            f"recipe field options.contexts: {'given' if named else 'missing'},"
            f" and identities.source is {source}; the source file needs contexts, and no other does"
        )


def read_contexts(named: ContextsFile | None, count: int) -> np.ndarray:
    """Return the contexts of a file in their order, float32 [n, D] of unit length.

    Args:
        named: the file; None gives none, [0, 0].
        count: how many identities there are to be; there may be more vectors.

    Raises:
        InputError: the file is missing, another one, too short, or holds vectors of several sizes.
    """
    if named is None:
        return np.zeros((0, 0), np.float32)
    field = "recipe field options.contexts"
    path = local_file(named.url, f"{field}.url", ACCEPTED)
    found = sha256_file(path)[: len(named.digest)]
    if found != named.digest:
        raise InputError(f"{field}.digest: {named.digest}, but {path} has {found}")
    vectors = [v.flatten() for v in read_tensors(path, f"{field}.url", (), ACCEPTED).values()]
    if len({len(vector) for vector in vectors}) > 1:
        raise InputError(f"{field}.url: vectors of several sizes in {path}; {ACCEPTED}")
    if len(vectors) < count:
        raise InputError(
            f"recipe field identities.count: {count}; {path} has {len(vectors)} contexts"
        )
    return unit(torch.stack(vectors).numpy())
