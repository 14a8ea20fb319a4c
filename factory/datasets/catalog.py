"""A catalog of other projects' models: their sources and licences. It holds no weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

UNKNOWN = "unknown"
RESEARCH = "non-commercial-research"


@dataclass(frozen=True)
class Entry:
    """The facts about a model, or a pack of models, that another project publishes.

    Attributes:
        name: the publisher's name for it; for a pack of insightface the name of its folder.
        files: names of its files without suffix.
        licence: the licence of the weights that the publisher states; "unknown" if there is none.
        source: the page where it is published.
        note: further facts for a user.
        pack: whether `insightface:NAME` finds it.
        archive: the address that insightface downloads it from; "" if a user must do it by hand.
    """

    name: str
    files: tuple[str, ...]
    licence: str
    source: str
    note: str = ""
    pack: bool = False
    archive: str = ""


_ZOO = "https://github.com/deepinsight/insightface/tree/master/python-package/docs/model_zoo.md"
_RELEASE = "https://github.com/deepinsight/insightface/releases/download/model-zoo"
_BY_HAND = "download the archive from the page and unpack it below ~/.insightface/models"
_TRAINED_ON = "trained on photographs collected from the web; ask the publisher for other terms"

_LANDMARKS = ("1k3d68", "2d106det", "genderage")


def _pack(name: str, files: tuple[str, ...], note: str, archive: str = "") -> Entry:
    """Return the entry of a pack of insightface's model zoo."""
    return Entry(name, files, RESEARCH, _ZOO, note, pack=True, archive=archive)


CATALOG = (
    _pack(
        "buffalo_l",
        ("w600k_r50", "det_10g", *_LANDMARKS),
        "ResNet50 on WebFace600K, detector SCRFD-10GF",
        f"{_RELEASE}/buffalo_l.zip",
    ),
    _pack(
        "buffalo_m",
        ("w600k_r50", "det_2.5g", *_LANDMARKS),
        "ResNet50 on WebFace600K, detector SCRFD-2.5GF",
    ),
    _pack(
        "buffalo_s",
        ("w600k_mbf", "det_500m", *_LANDMARKS),
        "MobileFaceNet on WebFace600K, detector SCRFD-500MF",
    ),
    _pack(
        "buffalo_sc",
        ("w600k_mbf", "det_500m"),
        "MobileFaceNet on WebFace600K, detector SCRFD-500MF",
    ),
    _pack(
        "antelopev2",
        ("glintr100", "scrfd_10g_bnkps", *_LANDMARKS),
        "ResNet100 on Glint360K, detector SCRFD-10GF",
    ),
    Entry(
        "arcface_torch",
        tuple(
            f"{data}_{net}"
            for data in ("ms1mv2_arcface", "ms1mv3_arcface", "glint360k_cosface")
            for net in ("r18_fp16", "r34_fp16", "r50_fp16", "r100_fp16", "r200_fp16", "mbf_fp16")
        ),
        RESEARCH,
        "https://github.com/deepinsight/insightface/tree/master/model_zoo",
        "RGB; weights of insightface, for non-commercial research whatever the code's licence",
    ),
    Entry(
        "AdaFace",
        tuple(
            f"adaface_{net}_{data}"
            for net in ("ir18", "ir50", "ir101")
            for data in ("casia", "vgg2", "webface4m", "webface12m", "ms1mv2", "ms1mv3")
        ),
        UNKNOWN,
        "https://github.com/mk-minchul/AdaFace",
        f"BGR; MIT for the code, no licence of the weights is stated; {_TRAINED_ON}",
    ),
    Entry(
        "MagFace",
        ("magface_epoch_00025",),
        UNKNOWN,
        "https://github.com/IrvingMeng/MagFace",
        f"BGR; Apache-2.0 for the code, no licence of the weights is stated; {_TRAINED_ON}",
    ),
    Entry(
        "DCFace checkpoints",
        ("dcface_3x3", "dcface_5x5", "ffhq_10m", "ffhq_10m_ft"),
        UNKNOWN,
        "https://github.com/mk-minchul/dcface",
        f"no licence is stated; {_TRAINED_ON} (CASIA-WebFace, FFHQ)",
    ),
    Entry(
        "IDiff-Face checkpoints",
        ("ema_averaged_model",),
        "CC-BY-NC-SA-4.0",
        "https://github.com/fdbtrs/IDiff-Face",
        "25 % and 50 % CPD have files of one name; trained on FFHQ",
    ),
    Entry(
        "Arc2Face",
        ("arc2face",),
        "MIT",
        "https://huggingface.co/FoivosPar/Arc2Face",
        "MIT as the authors state it; trained further from Stable Diffusion 1.5, whose CreativeML "
        "OpenRAIL-M reaches what is made from it; trained on WebFace42M, FFHQ and CelebA-HQ",
    ),
    Entry(
        "VQ-f4 of latent-diffusion",
        ("first_stage_decoder_state_dict", "first_stage_encoder_state_dict"),
        UNKNOWN,
        "https://github.com/CompVis/latent-diffusion",
        "handed on by IDiff-Face, which refers to CompVis's terms; trained on FFHQ",
    ),
)


def find(name: str) -> Entry | None:
    """Return the first entry with this name or with a file of this name; case is ignored."""
    name = name.lower()
    return next((e for e in CATALOG if name in (e.name.lower(), *e.files)), None)


def entry_of(path: PurePath) -> Entry | None:
    """Return the entry of a file of weights; None if the catalog has none.

    A file is found by its name without suffix or by the name of its folder, since publishers name
    them so.
    """
    return find(path.stem) or find(path.parent.name)


def licence_of(path: PurePath, stated: str = "") -> str:
    """Return the licence of a file of weights: the one stated, else the catalog's, else unknown."""
    entry = entry_of(path)
    return stated or (entry.licence if entry else UNKNOWN)


def packs() -> Iterator[Entry]:
    """Yield the entries that `insightface:NAME` finds."""
    return (entry for entry in CATALOG if entry.pack)


def by_hand(entry: Entry) -> str:
    """Return how to get a pack onto a machine, with its licence."""
    how = "add ?download=yes to fetch it" if entry.archive else _BY_HAND
    return f"{how} (licence {entry.licence}; {entry.source})"
