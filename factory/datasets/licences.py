"""Licences in order: what a dataset inherits is the strictest of those of its parts."""

from collections.abc import Iterable

LICENCES = (  # from the most permissive to the strictest
    "CC0-1.0",
    "MIT-0",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "Apache-2.0",
    "CC-BY-4.0",
    "MPL-2.0",
    "LGPL-3.0",
    "GPL-3.0",
    "AGPL-3.0",
    "CC-BY-SA-4.0",
    "OpenRAIL",
    "CC-BY-NC-4.0",
    "CC-BY-NC-SA-4.0",
    "CC-BY-NC-ND-4.0",
    "non-commercial-research",
    "proprietary",
    "unknown",
)
FORBIDS = "CC-BY-NC-4.0"  # commercial use, as all that are stricter


def strictest(licences: Iterable[str]) -> str:
    """Return the licence a dataset inherits: the strictest of those of its recipe and models.

    A licence that is not in `LICENCES` keeps its name, since nobody has compared its terms; several
    such, and the strictest that is in it where that forbids commercial use, are joined by AND.
    """
    found = {part for licence in licences for part in licence.split(" AND ")} or {"unknown"}
    known = sorted(found & set(LICENCES), key=LICENCES.index)[-1:]
    own = sorted(found - set(LICENCES))
    if own and known and LICENCES.index(known[0]) < LICENCES.index(FORBIDS):
        known = []
    return " AND ".join(sorted([*own, *known]))
