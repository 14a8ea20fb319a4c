"""Train a predictor of pose, light, age and other attributes on a dataset of the studio.

    factory train_attributes runs/studio/train --out runs/attributes

The dataset's sidecars state the truth. Every sixteenth identity is held out. The command prints
the mean absolute error on those people, beside the error of always predicting the median.
"""

import argparse
from typing import NoReturn

from factory import tracking
from factory.commands import cli
from factory.datasets.store import Store
from factory.recipe import InputError


def job(arguments: argparse.Namespace) -> None:
    """Train, print the held-out error and record the result."""
    for flag in ("epochs", "threads"):
        if getattr(arguments, flag) < 1:
            raise InputError(f"--{flag} {getattr(arguments, flag)}; accepted is 1 or more")
    import torch

    from factory.recognition.attributes import STUDIO
    from factory.training.attributes import plan, train_attributes

    torch.set_num_threads(arguments.threads)
    given = {name: getattr(arguments, name) for name in ("epochs", "seed", "licence", "identities")}
    dataset = {"dataset": arguments.url}
    store = Store(arguments.out)
    training = plan(arguments.url, arguments.out, **given)
    with (
        store.lock("train_attributes"),
        tracking.run(
            arguments.tracking_uri,
            "train_attributes",
            "attributes",
            given | dataset,
            output=store.url,
        ) as run,
    ):
        record = train_attributes(training, lambda line: print(line, flush=True))
        run.metrics({"error": record["error"]})
    print(f"held out: {record['held_out_images']} images; mean absolute error, beside the median's")
    for name, error in record["error"].items():
        base = record["error_of_the_median"][name]
        print(f"{name:<16} {error:8.3f}  {base:8.3f}  {STUDIO[name].unit}")


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, url="folder or URL of a dataset of the studio")
    parser.add_argument("--out", type=cli.local, required=True, help="folder of the predictor")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the dataset")
    parser.add_argument("--seed", type=int, default=31, help="root seed")
    parser.add_argument(
        "--licence",
        default="Apache-2.0",
        help="licence of the weights, unless the dataset's is stricter",
    )
    parser.add_argument("--identities", type=cli.positive, help="train only on labels below N")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    cli.run(parser, job)
