"""What is known of an export before its images are written."""

from dataclasses import dataclass

from factory.export.source import Source


@dataclass(frozen=True)
class About:
    """One export.

    Attributes:
        name: the last part of the target's address.
        format: one of `formats.FORMATS`.
        source: what is exported.
        images: how many images are written, held-out identities left out.
        classes: labels are 0 to classes - 1.
        size: height and width of every image in pixels.
        made_size: height and width in the source.
        extension: jpg or png.
        dialect: of RecordIO.
        seed: of the order.
        pairs: pairs of held-out identities, 0 for none.
        held_out: identities that are in the pairs only.
    """

    name: str
    format: str
    source: Source
    images: int
    classes: int
    size: int
    made_size: int
    extension: str
    dialect: str
    seed: int
    pairs: int
    held_out: int
