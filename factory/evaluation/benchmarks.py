"""The studio's verification benchmarks as files: made by a command, or where they are missing.

A tree that `ray job submit` uploads leaves the shipped files out, since they are a third of it. The
first command that asks for them there makes them again, once a machine.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

from factory.cluster.ranges import InRanges, alone
from factory.datasets.claim import Claim
from factory.datasets.provenance import sha256_file, versions
from factory.datasets.scratch import process_token
from factory.datasets.store import Store, cache_home
from factory.evaluation.verification import FOLDS, write_bin
from factory.recipe import InputError, local_path
from factory.studio.benchmarks import BENCHMARKS, Benchmark, joined, make_fold

SHIPPED = "package:studio/bins"
MANIFEST, GROUPS = "benchmarks.json", "groups.json"
# The manifest is written last; files that are there before it are written again.
BINS = Claim(MANIFEST, "benchmarks", own=(*(f"{name}.bin" for name in BENCHMARKS), GROUPS))

Say = Callable[[str], None]


def benchmark_folder(location: str, say: Say = print) -> Path:
    """Return the local folder of benchmarks that a location names.

    Args:
        location: a folder; `package:studio/bins` is made where it was not shipped.
        say: receives a line before minutes of rendering, and one a file.
    """
    folder = local_path(location)
    if location != SHIPPED or any(folder.glob("*.bin")):
        return folder
    wanted = json.loads((folder / MANIFEST).read_text())
    settings: dict[str, Any] = {key: int(wanted[key]) for key in ("pairs", "size", "seed")}
    made = cache_home() / f"benchmarks-{'-'.join(map(str, settings.values()))}"
    if not made.is_dir():
        say(f"{location} was not uploaded: rendering it into {made}, once, in a few minutes")
        part = made.with_name(f"{made.name}.{process_token()}")
        try:
            write_benchmarks(part, **settings, say=say)
            part.replace(made)
        except OSError:
            if not made.is_dir():  # another process was as quick
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return made


def finished(folder: Path, pairs: int, size: int, seed: int) -> bool:
    """Tell whether a folder holds the whole benchmarks of these settings, as they were written.

    Raises:
        InputError: it holds anything but benchmarks of these settings.
    """
    store, wanted = Store(folder), {"pairs": pairs, "size": size, "seed": seed}
    found = BINS.read(store)
    if not found:
        return False
    differing = BINS.differing({name: found.get(name) for name in wanted}, wanted)
    if differing:
        raise BINS.another(store, differing)
    stated = found.get("sha256", {})
    return store.exists(GROUPS) and all(
        store.exists(file) and sha256_file(folder / file) == stated.get(file)
        for file in (f"{name}.bin" for name in BENCHMARKS)
    )


def write_benchmarks(
    folder: Path, pairs: int, size: int, seed: int, say: Say, spread: InRanges = alone
) -> None:
    """Write each of the studio's benchmarks and the groups of its pairs, the manifest last.

    Args:
        folder: where the files go.
        pairs: of each benchmark.
        size: height and width of the images in pixels.
        seed: root seed of the pictures.
        say: receives a line a file.
        spread: runs the rendering of folds, here or as Ray tasks; the files are the same.

    Raises:
        InputError: the folder, or one above it, is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"output {folder} cannot be a folder: {error.strerror}") from None
    settings = {"pairs": pairs, "size": size, "seed": seed}
    rendered = spread(partial(_folds, **settings), product(BENCHMARKS, range(FOLDS)), length=1)
    sha256, known = {}, {}
    for name in BENCHMARKS:
        made = joined(islice(rendered, FOLDS))
        sha256[f"{name}.bin"] = write_bin(folder / f"{name}.bin", made.images, made.same)
        known[name] = {"pairs": made.groups}
        say(f"{name}.bin: {pairs} pairs, sha256 {sha256[f'{name}.bin'][:16]}")
    store = Store(folder)
    store.write(GROUPS, (json.dumps(known) + "\n").encode())
    content = {**settings, "folds": FOLDS, "licence": "CC0-1.0", "sha256": sha256}
    content["versions"] = versions()
    store.write(MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def _folds(named: Sequence[tuple[str, int]], **settings: int) -> list[Benchmark]:
    return [make_fold(name, fold, **settings, folds=FOLDS) for name, fold in named]
