"""The facts about an export that are known before its images are written."""

from dataclasses import dataclass

from factory.export.source import Source


@dataclass(frozen=True)
class About:
    """One export.

    Attributes:
        name: the last part of the target's address.
        format: one of `factory.export.export.FORMATS`.
        source: the exported dataset or composition.
        images: number of exported images, without those of held-out identities.
        classes: number of identities; labels are 0 to classes - 1.
        size: height and width of every image in pixels.
        made_size: height and width in the source.
        extension: jpg or png.
        dialect: the dialect of RecordIO.
        seed: seed of the order.
        pairs: number of pairs of held-out identities; 0 for none.
        held_out: number of identities that are only in the pairs.
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
