"""Check every byte of a dataset and name each fault; exit code 0 says that it is whole.

factory verify runs/faces
factory verify runs/faces --repair     # then run generate again
factory verify s3://BUCKET/faces --address auto --tasks 64
"""

import argparse
import time
from contextlib import nullcontext
from typing import NoReturn

from factory.commands import cli
from factory.datasets.claim import CLAIM
from factory.datasets.manifest import load_manifest
from factory.datasets.store import Store
from factory.datasets.verify import repair, verify
from factory.recipe.errors import DONE


def job(arguments: argparse.Namespace) -> int:
    """Verify; with --repair also remove what generate has to make again."""
    store = Store(arguments.url)
    start, removed, spread = time.monotonic(), [], cli.spread(arguments)
    # The lock keeps a shard that is just being committed from being reported as faulty. Without
    # a dataset no lock is taken, since the lock would make the folder.
    locked = arguments.repair and store.exists(CLAIM)
    with store.lock("verify --repair") if locked else nullcontext():
        faults = verify(store, spread=spread)
        for fault in faults:
            print(fault)
        if locked:
            removed = repair(store, faults)
    if not faults:
        totals, seconds = load_manifest(store).totals, time.monotonic() - start
        print(
            f"{store.url}: whole: {totals.kept:,} of {totals.planned:,} planned images, "
            f"{totals.bytes:,} bytes, checked in {seconds:.1f} s"
        )
        return DONE
    if arguments.repair:
        for name in removed:
            print(f"removed {name}")
        rest = f"removed {len(removed)} files; run generate with its recipe again"
    else:
        rest = "--repair removes what is faulty, generate then makes it again"
    raise cli.FaultError(f"{store.url}: {len(faults)} faults; {rest}")


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, url="folder or URL of a dataset")
    parser.add_argument("--tasks", type=int, default=0, help="check in N Ray tasks at a time")
    parser.add_argument("--repair", action="store_true", help="remove faulty files")
    cli.run(parser, job)
