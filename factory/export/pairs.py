"""Verification pairs of identities that no training saw, as a `.bin` benchmark file.

No identity is in two folds, so that a threshold from nine folds is tested on other people. Half of
the pairs of every fold are genuine, in an order drawn by the seed.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from factory.datasets.composition import is_composition, load_composition, read_rows
from factory.datasets.feed import images_of
from factory.datasets.index import Reader
from factory.datasets.manifest import load_manifest
from factory.datasets.people import candidates
from factory.datasets.store import Store
from factory.evaluation.verification import FOLDS, write_bin
from factory.recipe import InputError, people_of
from factory.seeding import generator, seed64

TRIES = 200  # draws of an impostor before the fold counts as too small


@dataclass(frozen=True)
class ChosenPairs:
    """Pairs of rows.

    Attributes:
        rows: int64 [pairs, 2].
        same: bool [pairs], whether a pair shows one person; true for half of every fold.
    """

    rows: np.ndarray
    same: np.ndarray


@dataclass(frozen=True)
class Written:
    """The content of a file of pairs."""

    sha256: str
    pairs: int
    identities: int


def choose_pairs(
    labels: np.ndarray,
    pairs: int,
    folds: int = FOLDS,
    seed: int = 1,
    groups: Mapping[int, str] | None = None,
) -> ChosenPairs:
    """Choose verification pairs; equal arguments give equal pairs.

    All identities of a fold give a genuine pair before any of them gives a second one. No pair of
    images is used twice.

    Args:
        labels: int64 [N], the identity of each image.
        pairs: number of pairs, a multiple of 2 * folds.
        folds: number of consecutive equal parts, with no identity in common.
        seed: seed of identities, images and order.
        groups: the group of each identity; both people of an impostor pair then have one group.

    Raises:
        InputError: the number of pairs does not fit the folds, an identity has no group, or there
            are too few identities or images for so many pairs.
    """
    if folds < 2 or pairs < 1 or pairs % (2 * folds):
        raise InputError(
            f"pairs: {pairs} in {folds} folds; accepted is a multiple of {2 * max(folds, 2)}, in 2 "
            "folds or more"
        )
    order = np.argsort(labels, kind="stable")
    people, first = np.unique(labels[order], return_index=True)
    rows = dict(zip(people.tolist(), np.split(order, first[1:]), strict=True))
    if groups is not None:
        lost = next((who for who in rows if who not in groups), None)
        if lost is not None:
            raise InputError(f"groups: identity {lost} has no group; each identity needs one")
    shuffled = generator(seed64(seed, "pairs")).permutation(people)
    half = pairs // folds // 2
    chosen, same = [], []
    for fold, part in enumerate(np.array_split(shuffled, folds)):
        members = {int(who): rows[int(who)] for who in part}
        draws = generator(seed64(seed, "pairs of a fold", fold))
        both = _genuine(members, half, draws) + _impostors(members, half, draws, groups)
        for entry in draws.permutation(2 * half).tolist():
            chosen.append(both[entry])
            same.append(entry < half)
    return ChosenPairs(np.array(chosen, np.int64), np.array(same, bool))


def write_pairs(
    store: Store,
    to: str | Path,
    pairs: int,
    folds: int = FOLDS,
    seed: int = 1,
    skip: int = 0,
    without: Store | None = None,
    groups: Mapping[int, str] | None = None,
) -> Written:
    """Write a benchmark file of pairs from a dataset or composition; images are copied unchanged.

    Args:
        store: the dataset or composition.
        to: the `.bin` file to write; it replaces an older one.
        pairs, folds, seed, groups: as in `choose_pairs`.
        skip: leave out the first N identities, which a training with `data.identities: N` saw.
        without: a composition; its identities of this dataset are left out, and those people whom
            its other pools draw from the same source.

    Raises:
        InputError: as `choose_pairs`; or there is no dataset, `without` holds none of its images,
            or a genuine pair would be an image of a composition and its own copy.
    """
    images = images_of(store)
    people = np.unique(images.labels)
    held_out = people[skip:]
    if not len(held_out):
        raise InputError(
            f"--skip {skip}: {store.url} has {len(people)} identities, none is left; accepted is "
            f"less than {len(people)}"
        )
    if without is not None:
        held_out = np.setdiff1d(held_out, _used(store, without))
        if not len(held_out):
            raise InputError(
                f"--without {without.url}: it holds every identity of {store.url} that --skip "
                "leaves; accepted is a composition of some of them"
            )
    kept = np.flatnonzero(np.isin(images.labels, held_out))
    chosen = choose_pairs(images.labels[kept], pairs, folds, seed, groups)
    reader, files = Reader(), []
    for row in kept[chosen.rows.ravel()]:
        path = images.paths[images.shard[row]]
        files.append(reader.read(path, int(images.offset[row]), int(images.size[row])))
    reader.close()
    if is_composition(store) or load_manifest(store).recipe.get("kind") == "compose":
        refuse_copies(store.url, files, chosen.same.tolist())
    sha256 = write_bin(to, files, chosen.same.tolist())
    used = np.unique(images.labels[kept[chosen.rows]])
    return Written(sha256, pairs, len(used))


def refuse_copies(what: str, files: Sequence[bytes], same: Sequence[bool]) -> None:
    """Refuse genuine pairs of an image and its copy, since a composition may repeat an image.

    Raises:
        InputError: files 2i and 2i + 1 are equal and pair i is genuine.
    """
    copies = sum(files[2 * n] == files[2 * n + 1] for n, genuine in enumerate(same) if genuine)
    if copies:
        raise InputError(
            f"{what}: {copies} genuine pairs would be an image and its own copy, which the "
            "composition holds more than once; accepted is jobs/make_pairs.py on a pool of it"
        )


def read_identity_groups(path: str | Path) -> dict[int, str]:
    """Read the group of each identity: a .json of {identity: group}, or a .csv identity,group.

    Raises:
        InputError: there is no such file, or it has another form.
    """
    path = Path(path)
    accepted = "a .json of {identity: group}, or a .csv with the columns identity, group"
    if not path.is_file():
        raise InputError(f"--groups {path}: no such file; accepted is {accepted}")
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                return {int(row["identity"]): row["group"] for row in csv.DictReader(file)}
        found = json.loads(path.read_text(encoding="utf-8"))
        return {int(identity): str(group) for identity, group in found.items()}
    except (csv.Error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"
        raise InputError(f"--groups {path}: {said}; accepted is {accepted}") from None


def _genuine(
    members: dict[int, np.ndarray], half: int, draws: np.random.Generator
) -> list[tuple[int, int]]:
    """Take a pair of each identity in turn, then a second one, until there are `half` pairs."""
    found: list[tuple[int, int]] = []
    queues = [combinations(draws.permutation(rows).tolist(), 2) for rows in members.values()]
    while queues and len(found) < half:
        taken = [(queue, next(queue, None)) for queue in queues]
        found += [pair for _, pair in taken if pair is not None]
        queues = [queue for queue, pair in taken if pair is not None]
    if len(found) < half:
        raise InputError(
            f"pairs: a fold of {len(members)} identities has {len(found)} genuine pairs, {half} "
            "are needed; lower --pairs or --folds, or hold out more identities"
        )
    return found[:half]


def _impostors(
    members: dict[int, np.ndarray],
    half: int,
    draws: np.random.Generator,
    groups: Mapping[int, str] | None,
) -> list[tuple[int, int]]:
    """Pair each identity in turn with another one, of the same group if there are groups."""
    people = list(members)
    alike: dict[str, list[int]] = {}
    for who in people:
        alike.setdefault(groups[who] if groups is not None else "", []).append(who)
    first = [who for group in alike.values() if len(group) > 1 for who in group]
    found: list[tuple[int, int]] = []
    used: set[tuple[int, int]] = set()
    tries = 0
    while len(found) < half:
        if not first or tries >= TRIES:
            raise InputError(
                f"pairs: a fold of {len(people)} identities has too few impostors"
                f"{' of one group' if groups is not None else ''}, {half} are needed; lower "
                "--pairs or --folds, or hold out more identities"
            )
        who = first[len(found) % len(first)]
        others = alike[groups[who] if groups is not None else ""]
        other = others[int(draws.integers(len(others)))]
        one, two = (int(draws.choice(members[person])) for person in (who, other))
        tries += 1
        if who != other and (min(one, two), max(one, two)) not in used:
            used.add((min(one, two), max(one, two)))
            found.append((one, two))
            tries = 0
    return found


def _used(store: Store, without: Store) -> np.ndarray:
    """Return the identities of a dataset whom a composition's images show, by whichever pool."""
    if is_composition(store):
        raise InputError(f"--without {without.url}: accepted with a dataset, not a composition")
    composition, manifest = load_composition(without), load_manifest(store)
    rows, source = read_rows(without, composition), people_of(manifest.recipe)
    used = []
    for number, name in enumerate(rows.pools):
        pool, identities = composition.pools[name], rows.identity[rows.pool == number]
        other = Store(pool.url)
        if pool.content_digest == manifest.content_digest:
            used.append(np.unique(identities))
        elif source and people_of(load_manifest(other).recipe) == source:
            labels = np.unique(images_of(store).labels)
            shown = np.isin(candidates(store, labels), candidates(other, np.unique(identities)))
            used.append(labels[shown])
    if not used:
        raise InputError(
            f"--without {without.url}: this composition holds no image of {store.url}: no pool of "
            "it has that dataset's content digest, or draws the same people"
        )
    return np.unique(np.concatenate(used))
