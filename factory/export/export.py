"""Exporting a dataset: it is read once into scratch files, then written in the format's order."""

import re
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

import factory
from factory.datasets.decode import PNG_MAGIC, DecodeError
from factory.datasets.decode import image_size as stated_size
from factory.datasets.provenance import DIGITAL_SOURCE_TYPE
from factory.datasets.scratch import scratch
from factory.datasets.store import Store
from factory.export.about import About
from factory.export.card import card, is_synthetic, licence_text
from factory.export.folder import write_folder
from factory.export.held_out import HeldOut, check_pairs, check_source
from factory.export.kits import validation_name, write_arcface, write_cvlface
from factory.export.output import Output
from factory.export.parquet import write_hf
from factory.export.recordio import DIALECTS
from factory.export.sheet import ContactSheet, sign
from factory.export.source import Source, open_source
from factory.export.spool import BUCKET_BYTES, Spool, Spooled, grouped, shuffled
from factory.export.wds import write_wds
from factory.export.zip import write_edm
from factory.recipe import InputError
from factory.recognition.images import decode, fitted

FORMATS: dict[str, Callable[[Iterator[Spooled], About, Output], None]] = {
    "arcface_torch": write_arcface,
    "cvlface": write_cvlface,
    "imagefolder": write_folder,
    "hf": write_hf,
    "wds": write_wds,
    "edm": write_edm,
}
RECORDS = ("arcface_torch", "cvlface")
NAME = re.compile(r"[A-Za-z0-9_-]+")
NOISE = "synthetic"  # arcface_torch and CVLface train on random noise under this name
QUALITY = 95  # JPEG quality of resized images


@dataclass(frozen=True)
class Options:
    """The options of an export.

    Attributes:
        format: one of `FORMATS`.
        dialect: the dialect of RecordIO, im2rec or insightface.
        size: resize to this height and width in pixels; None keeps the images' bytes.
        seed: seed of the order.
        pairs: number of verification pairs, whose identities are left out of the training images.
        measured: results of the command measure (--json) for the card.
        c2pa: PEM files of a certificate and its key, to sign a contact sheet.
    """

    format: str
    dialect: str | None = None
    size: int | None = None
    seed: int = 0
    pairs: int = 0
    measured: tuple[dict[str, Any], ...] = ()
    c2pa: tuple[Path, Path] | None = None


def export(source_store: Store, target: Store, options: Options) -> About:
    """Write a dataset or composition in another format; equal calls write equal bytes.

    Memory grows by nine bytes for each identity, not with the images. Scratch files as large as the
    images are written below the folder for temporary files (TMPDIR).

    Args:
        source_store: a dataset's or composition's folder or URL.
        target: an empty folder or URL; the last part of its address names the export.
        options: format, order and additions.

    Returns:
        The facts about the export.

    Raises:
        InputError: source, target or options are not accepted.
        FaultError: a shard differs from its manifest.
    """
    name = _name(target.url)
    dialect = _dialect(options)
    check_pairs(options.pairs)
    if options.size is not None and not 16 <= options.size <= 1024:
        raise InputError(f"--size {options.size}; accepted is 16 to 1024")
    source = open_source(source_store)
    if options.pairs:
        check_source(source)
    if options.c2pa is not None and not is_synthetic(source):
        kinds = sorted({manifest.digitalSourceType for manifest in source.manifests})
        raise InputError(
            f"--c2pa: images of {source_store.url} are {', '.join(kinds)}; the sheet would be "
            f"signed as made by a trained model, accepted is {DIGITAL_SOURCE_TYPE} alone"
        )
    out = Output(target, _claim(name, dialect, source, options))
    in_labels = options.format in ("imagefolder", "edm") or dialect == "insightface"
    order = grouped(source.labels) if in_labels else shuffled(options.seed)
    with scratch() as folder:
        spool = Spool(folder, order, source.bytes, BUCKET_BYTES)
        kind, sheet = _Kind(options.size), ContactSheet()
        for item in source.read():
            kind.see(item.encoded, item.label)
            spool.add(item.label, item.encoded, item.sidecar)
            if options.c2pa is not None:
                sheet.see(item.label, item.encoded)
        ranks = _ranks(spool)
        composed = source.recipe.get("kind") == "compose"
        held_out = HeldOut(spool.counts, options.pairs, options.seed, composed)
        counts = spool.counts[: held_out.first]
        about = About(
            name=name,
            format=options.format,
            source=source,
            images=sum(counts),
            classes=sum(1 for count in counts if count),
            size=options.size or kind.size,
            made_size=kind.size,
            extension=kind.extension,
            dialect=dialect,
            seed=options.seed,
            pairs=options.pairs,
            held_out=held_out.identities,
        )
        items = (
            item._replace(label=ranks[item.label])
            for item in map(kind.fit, spool.read())
            if not held_out.takes(item)
        )
        FORMATS[options.format](items, about, out)
        deque(items, maxlen=0)  # pass the held-out images that the format did not ask for
        if options.pairs:
            held_out.write(out, f"{validation_name(about)}.bin")
    out.write("LICENSE", licence_text(about).encode())
    out.write("README.md", card(about, options.measured).encode())
    if options.c2pa is not None:
        cert, key = options.c2pa
        signed = sign(sheet.jpeg(), f"{name} contact sheet", source.sha256, cert, key)
        out.write("contact_sheet.jpg", signed)
    out.finish()
    return about


class _Kind:
    """The one size and encoding of the images; others are refused, or converted with --size."""

    def __init__(self, wanted: int | None) -> None:
        self.wanted, self.size, self.extension = wanted, 0, ""

    def see(self, encoded: bytes, label: int) -> None:
        """Note an image's size and encoding; InputError if it differs and --size was not given."""
        extension, (height, width) = _extension(encoded), image_size(encoded)
        if not self.size:
            self.size, self.extension = height, extension
        if height != width:
            raise InputError(
                f"an image of label {label} is {width} x {height} pixels; accepted are square ones"
            )
        if self.wanted is None and (height, extension) != (self.size, self.extension):
            raise InputError(
                f"an image of label {label} is a {width} x {height} {extension}, the first is "
                f"{self.size} x {self.size} {self.extension}; accepted are images of one size and "
                "encoding, or --size to make them so"
            )
        if extension == "jpg":
            self.extension = extension

    def fit(self, item: Spooled) -> Spooled:
        """Return the image in the size and encoding of the export."""
        same = _extension(item.encoded) == self.extension
        if self.wanted is None or (same and image_size(item.encoded) == (self.wanted,) * 2):
            return item
        from factory.datasets.encode import encode_image
        from factory.recipe import Image

        what = f"image {item.number} of label {item.label}"
        face = fitted(decode(item.encoded, what), self.wanted, what, resize=True)
        how = Image(size=self.wanted, format="jpg", quality=QUALITY)
        if self.extension == "png":
            how = how.model_copy(update={"format": "png"})
        return item._replace(encoded=encode_image(face, how))


def image_size(encoded: bytes) -> tuple[int, int]:
    """Return height and width of a JPEG or PNG in pixels; InputError when it is neither."""
    try:
        return stated_size(encoded)
    except DecodeError as error:
        raise InputError(f"an image cannot be read ({error}); accepted is JPEG or PNG") from None


def _extension(encoded: bytes) -> str:
    return "png" if encoded.startswith(PNG_MAGIC) else "jpg"


def _ranks(spool: Spool) -> Sequence[int]:
    """Return the new label of each source label; new labels are contiguous, without empty ones."""
    return array("I", accumulate((count > 0 for count in spool.counts), initial=0))


def _name(url: str) -> str:
    name = PurePosixPath(url.partition("?")[0].partition("://")[2] or url).name
    if not NAME.fullmatch(name):
        raise InputError(
            f"--to {url}: its last part names the export; accepted are letters, digits, _ and -"
        )
    if name == NOISE:
        raise InputError(
            f"--to {url}: arcface_torch and CVLface train on random noise when a dataset is called "
            f"{NOISE}; accepted is any other name"
        )
    return name


def _dialect(options: Options) -> str:
    if options.dialect is not None and options.format not in RECORDS:
        raise InputError(
            f"--dialect {options.dialect}: only {' and '.join(RECORDS)} have dialects, not "
            f"{options.format}"
        )
    dialect = options.dialect or DIALECTS[0]
    if dialect not in DIALECTS:
        raise InputError(f"--dialect {dialect}; accepted is {' or '.join(DIALECTS)}")
    return dialect


def _claim(name: str, dialect: str, source: Source, options: Options) -> dict[str, Any]:
    return {
        "name": name,
        "format": options.format,
        "dialect": dialect if options.format in RECORDS else None,
        "size": options.size,
        "seed": options.seed,
        "pairs": options.pairs,
        "source_sha256": source.sha256,
        "factory": factory.__version__,
    }
