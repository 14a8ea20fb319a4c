"""Licences by strictness: a dataset inherits the strictest licence of its parts."""

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
FORBIDS = "CC-BY-NC-4.0"  # this licence and all stricter ones forbid commercial use


def strictest(licences: Iterable[str]) -> str:
    """Return the licence that a dataset inherits: the strictest of its recipe's and its models'.

    A licence that is not in `LICENCES` keeps its name, because nobody has compared its terms. Such
    licences are joined by AND, together with the strictest one of `LICENCES` if that forbids
    commercial use.
    """
    found = {part for licence in licences for part in licence.split(" AND ")} or {"unknown"}
    known = sorted(found & set(LICENCES), key=LICENCES.index)[-1:]
    own = sorted(found - set(LICENCES))
    if own and known and LICENCES.index(known[0]) < LICENCES.index(FORBIDS):
        known = []
    return " AND ".join(sorted([*own, *known]))
