"""What an export of this project states of itself: licence, models and kind of source."""

import re

from factory.datasets.provenance import DIGITAL_SOURCE_TYPE, Inherited, Model
from factory.datasets.store import Store

EXPORT, LICENCE, CARD = "export.json", "LICENSE", "README.md"
STATED = re.compile(r"^\S+ may be used under: (.+)$", re.MULTILINE)
MODEL = re.compile(r"^  (.+?)  model (.+), sha256 ([0-9a-f]{64})$", re.MULTILINE)
PLACE = "an export's card"  # where models of an export are described, if the card has no row
ROW = r"^\| {} \| (.+?) \| .+? \| `{}` \|$"


def exported(store: Store) -> tuple[Inherited, str] | None:
    """Return what an export hands down, and IPTC's term for its images; None where it is none."""
    if not (store.exists(EXPORT) and store.exists(LICENCE)):
        return None
    text = store.read(LICENCE).decode("utf-8", "replace")
    stated = STATED.search(text)
    if stated is None:
        return None
    card = store.read(CARD).decode("utf-8", "replace") if store.exists(CARD) else ""
    models = []
    for licence, name, sha256 in MODEL.findall(text):
        row = re.search(ROW.format(re.escape(name), sha256), card, re.MULTILINE)
        location = row[1] if row else PLACE
        models.append(Model(name=name, location=location, sha256=sha256, licence=licence))
    head = card.split("---")[1] if card.startswith("---") else ""
    synthetic = re.search(r"^- synthetic$", head, re.MULTILINE) is not None
    inherited = Inherited(models=tuple(models), licences=(stated[1].strip(),))
    return inherited, DIGITAL_SOURCE_TYPE if synthetic else ""
