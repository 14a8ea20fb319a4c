"""Ready-made folders for arcface_torch and CVLface: records, labels, landmarks, configurations."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np

from factory.export.about import About
from factory.export.output import Output
from factory.export.recordio import check_counts, write_records
from factory.export.spool import Spooled

NETWORKS = ("r50", "r100", "mbf")
REAL_BENCHMARKS = ("lfw", "cfp_fp", "agedb_30")  # arcface_torch skips missing ones
EPOCHS, WARMUP_EPOCHS = 20, 1
BATCH_SIZE, LEARNING_RATE, GPUS = 128, 0.1, 8
TRAINER_SIZE = 112


def write_arcface(items: Iterator[Spooled], about: About, out: Output) -> None:
    """Write `train.rec`, `train.idx`, `train.tsv`, `property` and a file for each network."""
    _write_records(items, about, out, landmarks=False)
    size = f"{about.size},{about.size}"
    out.write("property", f"{about.classes},{size}\n".encode())
    for network in NETWORKS:
        out.write(f"{about.name}_{network}.py", arcface_config(about, network).encode())


def write_cvlface(items: Iterator[Spooled], about: About, out: Output) -> None:
    """Write the records, `train.tsv`, `ldmk_5points.csv` and the dataset's configuration."""
    _write_records(items, about, out, landmarks=True)
    out.write(f"{about.name}.yaml", cvlface_config(about).encode())


def validation_name(about: About) -> str:
    """Return the name of the held-out pairs in a list of benchmarks."""
    return f"{about.name}_val"


def arcface_config(about: About, network: str) -> str:
    """Return a configuration of arcface_torch with CosFace's margin, as synthetic sets use it."""
    variable = "DATA_ROOT"
    targets = [validation_name(about)] if about.pairs else []
    return f'''"""{about.name}: {about.images:,} images of {about.classes:,} identities."""

import os
from pathlib import Path

from easydict import EasyDict

here = Path(__file__).resolve().parent  # of the data, when this file is linked into configs/
if not (here / "train.rec").is_file():
    here = Path(os.environ.get("{variable}", "")) / "{about.name}"
if not (here / "train.rec").is_file():
    raise FileNotFoundError(
        "no train.rec: link this file into configs/ instead of copying it (ln -s), "
        "or set {variable} to the folder that holds {about.name}/"
    )

config = EasyDict()
config.margin_list = (1.0, 0.0, 0.4)
config.network = "{network}"
config.resume = False
config.output = None
config.embedding_size = 512
config.sample_rate = 1.0
config.fp16 = True
config.momentum = 0.9
config.weight_decay = {"1e-4" if network == "mbf" else "5e-4"}
config.batch_size = {BATCH_SIZE}
config.lr = {LEARNING_RATE}  # for {GPUS} GPUs of {BATCH_SIZE} images; scale it with their product
config.verbose = 2000
config.dali = False

config.rec = str(here)
config.num_classes = {about.classes}
config.num_image = {about.images}
config.num_epoch = {EPOCHS}
config.warmup_epoch = {WARMUP_EPOCHS}
config.val_targets = {[*targets, *REAL_BENCHMARKS]}
'''


def cvlface_config(about: About) -> str:
    """Return a dataset's configuration of CVLface; DATA_ROOT is the folder above the export."""
    return f"""data_root: ${{oc.env:DATA_ROOT}}
rec: '{about.name}'
color_space: 'RGB'
num_classes: {about.classes}
num_image: {about.images}

repeated_sampling_cfg: null
semi_sampling_cfg: null
"""


def _write_records(items: Iterator[Spooled], about: About, out: Output, landmarks: bool) -> None:
    """Write the records, and line by line the tables that belong to them.

    `train.tsv` has key, path and label. `ldmk_5points.csv` has the row's number and five points as
    shares of the image: where the detector found them, of a face that `prepare` aligned; otherwise
    those of the template, to which such a face is aligned already.
    """
    check_counts(about.images, about.classes, about.dialect)
    with ExitStack() as stack:
        rec, idx, tsv = (
            stack.enter_context(out.open(f"train.{kind}")) for kind in ("rec", "idx", "tsv")
        )
        table = stack.enter_context(out.open("ldmk_5points.csv")) if landmarks else None
        template = _shares(_template())
        if table is not None:
            table.write(b"idx," + b",".join(b"ldmk_%d" % n for n in range(10)) + b"\n")
        written = write_records(items, rec, idx, about.images, about.dialect)
        for row, (key, item) in enumerate(written):
            path = f"{item.label}/{item.number:04d}.{about.extension}"
            tsv.write(f"{key}\t{path}\t{item.label}\n".encode())
            if table is not None:
                found = _found(item.sidecar)
                table.write(b"%d,%s\n" % (row, template if found is None else _shares(found)))


def _found(sidecar: bytes) -> np.ndarray | None:
    """Return where the detector's points lie in the aligned image, float64 [5, 2]; None for none.

    The sidecar has them in pixels of the photograph. The image was cut out by the rotation, scale
    and shift that brings them nearest to the template; it brings them to their places in it.
    """
    if b'"points"' not in sidecar:
        return None
    from factory.studio.render import similarity

    points = json.loads(sidecar).get("face", {}).get("points")
    if points is None:
        return None
    placed = np.array(points, np.float64)
    move = similarity(placed, _template())
    return placed @ move[:, :2].T + move[:, 2]


def _template() -> np.ndarray:
    """Return the points of ArcFace's template in an image of 112 pixels, float64 [5, 2]."""
    from factory.studio.render import TEMPLATE_112

    return TEMPLATE_112.astype(np.float64)


def _shares(points: np.ndarray) -> bytes:
    """Return points of an image of 112 pixels, x and y alternating, as shares of it."""
    return ",".join(f"{value / TRAINER_SIZE:.6f}" for value in points.ravel().tolist()).encode()
