"""Where others' faces lie: folders, RecordIO, tars, zips, parquet, LMDB, datasets of ours.

A source is listed once, in an order that only its names decide; reading an image needs nothing but
its entry, so any worker reads any part. Labels of a dataset are 0 to K-1 in the order of the
source's identities: names by name, numbers by value.
"""

from collections import defaultdict
from pathlib import PurePosixPath

from factory.datasets.claim import CLAIM
from factory.datasets.manifest import MANIFEST, load_manifest
from factory.datasets.recordio import LARGEST_LABEL
from factory.datasets.store import Store, parted
from factory.prepare import recordio
from factory.prepare.folders import Walked, list_folder, walk
from factory.prepare.labels import LISTS, Labels, load_labels, read_labels
from factory.prepare.listing import (
    ACCEPTED,
    DATASET,
    RECORDIO,
    Item,
    Labelling,
    Listing,
    by_label,
    is_image,
    listed,
    shown,
)
from factory.prepare.lmdbs import DATA, SUFFIX, is_lmdb, list_lmdb
from factory.prepare.parquet import SUFFIX as TABLE
from factory.prepare.parquet import list_parquet
from factory.prepare.reader import ItemReader
from factory.prepare.tars import list_tars
from factory.prepare.zips import list_zips
from factory.recipe import InputError, public

__all__ = ["Item", "ItemReader", "Listing", "list_source"]

PACKED = (".rec", ".tar", ".zip", SUFFIX, TABLE, ".mdb")
COMPRESSED = (
    *(".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".gz", ".bz2", ".xz"),
    *(".7z", ".rar", ".zst"),
)
MEMBERS = ("cls", "txt")  # of a tar, where --label finds a label
LISTED_BESIDE = ("list.txt", "train.tsv", "list.csv", "labels.csv", "list.lst")


def list_source(
    source: str, unlabelled: bool = False, label: str = "", level: int | None = None
) -> tuple[Store, Listing]:
    """Find out what a source is and list it.

    Args:
        source: a folder or URL, or a file of a kind that holds many images.
        unlabelled: take every image of a folder, however deep, for a person of its own.
        label: where labels stand, as `--label` says it.
        level: the depth of the folder that is a person.

    Returns:
        The store from which entries are read, and the listing.

    Raises:
        InputError: the source is missing, has no images, is damaged or of an unknown kind.
    """
    how = Labelling(label, level, unlabelled)
    if level is not None and level < 1:
        raise InputError(f"--identity-level {level}; accepted is 1 or more")
    place, query = parted(source)
    path = PurePosixPath(place)
    if path.name.lower().endswith(COMPRESSED):
        raise _compressed(source, path.name)
    store = Store(source)
    if path.suffix.lower() in PACKED and not (store.root is not None and store.root.is_dir()):
        folder = place[: -len(path.name)].rstrip("/") or ("/" if place[0] == "/" else ".")
        store = Store(folder + query)
        if not store.exists(path.name):
            raise InputError(f"SOURCE {public(source)}: no such file; accepted: {ACCEPTED}")
        return store, _packed(store, [path.name], how)
    if store.root is not None and not store.root.is_dir():
        what = "a file of no known kind" if store.root.exists() else "no such folder"
        raise InputError(f"SOURCE {public(source)}: {what}; accepted: {ACCEPTED}")
    if store.exists(MANIFEST) and store.exists(CLAIM):
        _only("a dataset", store, how)
        return store, _dataset(store)
    return store, _held(store, walk(store), how)


def _held(store: Store, walked: Walked, how: Labelling) -> Listing:
    """Return the listing of what lies in a folder."""
    top = sorted(name for name in walked.sizes if "/" not in name)
    if is_lmdb(top):
        return _packed(store, [DATA], how)
    packed = [name for name in top if name.endswith((".rec", ".tar"))]
    images = any(map(is_image, walked.sizes))
    if not packed and not images:
        for suffixes, names in (
            (".zip", top),
            (SUFFIX, top),
            (TABLE, sorted(walked.sizes)),
        ):
            packed = packed or [name for name in names if name.lower().endswith(suffixes)]
        squeezed = [name for name in sorted(walked.sizes) if name.lower().endswith(COMPRESSED)]
        if not packed and squeezed:
            raise _compressed(store.url, squeezed[0])
    if packed:
        return _packed(store, packed, how, len(walked.sizes) - len(packed))
    return list_folder(store, walked, how, _list_of(how, store, "folder"))


def _compressed(where: str, name: str) -> InputError:
    return InputError(
        f"SOURCE {public(where)}: {shown(name)} is a compressed archive, which cannot be read at "
        "any place; unpack it first (tar xf, 7z x), accepted is what lies inside"
    )


def _packed(store: Store, names: list[str], how: Labelling, others: int = 0) -> Listing:
    kinds = {PurePosixPath(name).suffix.lower() for name in names}
    kind = kinds.pop()
    if kinds or (kind in (".rec", SUFFIX) and len(names) > 1):
        raise InputError(
            f"SOURCE {store.url}: {', '.join(map(shown, names[:4]))}; accepted is one .rec file "
            "(name it) or tars alone, zips alone, parquet files alone"
        )
    if kind == ".zip":
        return list_zips(store, names, how, _list_of(how, store, "zip"))
    if how.unlabelled:
        raise InputError(
            f"SOURCE {store.url}: --unlabelled; accepted is a folder of images, or zips of them"
        )
    if how.level is not None or how.label == "folder":
        flag = "--label folder" if how.level is None else f"--identity-level {how.level}"
        raise InputError(f"{flag}: {shown(names[0])} has no folders of people; accepted is none")
    if kind == ".tar":
        return list_tars(store, names, how, _list_of(how, store, "tar"))
    if kind == TABLE:
        _list_of(how, store, "parquet")
        return list_parquet(store, names, how, others)
    if kind == ".rec":
        return _recordio(store, names[0], how, _list_of(how, store, "record"))
    _only("LMDB", store, how)
    return list_lmdb(store, names[0])


def _only(what: str, store: Store, how: Labelling) -> None:
    """Refuse what a source with labels of its own has no use for."""
    flags = {
        "--unlabelled": how.unlabelled,
        f"--label {how.label}": how.label,
        f"--identity-level {how.level}": how.level is not None,
    }
    for flag, given in flags.items():
        if given:
            raise InputError(
                f"SOURCE {store.url}: {flag}; {what} has its own labels, accepted is a folder of "
                "images"
            )


def _list_of(how: Labelling, store: Store, kind: str) -> Labels | None:
    """Return the list that --label names; None where it names none.

    Raises:
        InputError: it names something that this kind of source has not.
    """
    label = how.label
    name, _, field = label.partition(":")
    of = {
        "tar": (*MEMBERS, "json:FIELD"),
        "parquet": ("column:NAME",),
        "record": ("cls (the records' own)",),
        "folder": ("folder",),
        "zip": ("folder",),
    }[kind]
    if not label:
        return None
    if label in ("json", "column") or (name in ("json", "column") and not field):
        raise InputError(f"--label {label}: names no field; accepted is {name}:NAME")
    own = {
        "tar": label in MEMBERS or name == "json",
        "parquet": name == "column",
        "record": label == "cls",
        "folder": label == "folder",
        "zip": label == "folder",
    }[kind]
    if own:
        return None
    known = label in (*MEMBERS, "folder") or (name in ("json", "column") and "://" not in label)
    if known or kind == "parquet":
        further = "" if kind == "parquet" else ", or a file that lists paths and labels"
        raise InputError(
            f"--label {shown(label)}: SOURCE {store.url} is no source of such labels; accepted is "
            f"{', '.join(of)}{further}"
        )
    if how.unlabelled:
        raise InputError(f"--label {shown(label)}: not with --unlabelled; accepted is one of them")
    return load_labels(label)


def _recordio(store: Store, rec: str, how: Labelling, labels: Labels | None) -> Listing:
    what = f"SOURCE {store.url}/{rec}"
    entries: list[tuple[int, float, Item]] = []
    for key, offset, label in recordio.image_records(store, rec):
        if not (label == label and 0 <= label <= LARGEST_LABEL and label == int(label)):
            raise InputError(
                f"{what}: record {key} has label {label}; accepted are integers 0 to "
                f"{LARGEST_LABEL}"
            )
        entries.append((key, label, Item(rec, str(key), offset)))
    sizes = [store.size(rec)]
    alike = len(entries) > 1 and len({label for _, label, _ in entries}) == 1
    if labels is None and not how.label and alike:
        labels = _beside(store, rec)
    if labels is None:
        found: dict[int, list[Item]] = defaultdict(list)
        for _, label, item in entries:
            found[int(label)].append(item)
        return listed(store, RECORDIO, found, 0, sizes)
    of, notes = labels.of_records([key for key, _, _ in entries], what)
    pairs = ((text, item) for text, (_, _, item) in zip(of, entries, strict=True))
    return listed(store, RECORDIO, by_label(pairs), 0, sizes, 0, notes)


def _beside(store: Store, rec: str) -> Labels | None:
    """Return the list of labels beside records that all have one label, as DCFace ships them.

    Raises:
        InputError: what lies there cannot be read as one.
    """
    stem = str(PurePosixPath(rec).with_suffix(""))
    for name in (*(stem + suffix for suffix in LISTS), *LISTED_BESIDE):
        if store.exists(name):
            try:
                return read_labels(store, name, name)
            except InputError as error:
                raise InputError(
                    f"SOURCE {store.url}/{rec}: all its labels are equal, and the list beside it "
                    f"cannot be read ({error}); accepted is also --label cls, which takes the "
                    "records' own"
                ) from None
    return None


def _dataset(store: Store) -> Listing:
    tars = [f"shards/{shard.name}.tar" for shard in load_manifest(store).shards]
    if absent := next((name for name in tars if not store.exists(name)), ""):
        raise InputError(
            f"SOURCE {store.url}: {absent} is not there; accepted is a dataset with its own shards "
            "(a composition gets them by --materialise)"
        )
    return list_tars(store, tars, Labelling(), kind=DATASET)
