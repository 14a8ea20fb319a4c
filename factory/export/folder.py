"""ImageFolder: one folder for each identity, which torchvision, timm and many trainers read.

All names have the same number of digits, so that text order and number order are equal. Trainers
that sort folders in either way therefore find the same labels.
"""

from collections.abc import Iterator

from factory.export.about import About
from factory.export.output import Output
from factory.export.spool import Spooled


def write_folder(items: Iterator[Spooled], about: About, out: Output) -> None:
    """Write `0000000/0000.jpg`, ...; the folder's number is the label."""
    digits = max(7, len(str(about.classes - 1)))

    def name(item: Spooled) -> str:
        return f"{item.label:0{digits}d}/{item.number:04d}.{about.extension}"

    out.write_all((name(item), item.encoded) for item in items)
