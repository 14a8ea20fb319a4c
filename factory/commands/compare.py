"""Compare datasets: one judge measures each, and one recipe trains recognizers on each.

    factory compare desk/fr/desk.yaml --real runs/studio_faces \
        --dataset runs/idiff_face --dataset runs/dcface --seeds 3 --out runs/compared

The result is a table with one row per dataset. For your own faces, give your own --judge and
--benchmarks, and give --r where the judge was trained on photographs. To resume, run the same
command again: finished trainings are kept.
"""

import argparse
import json
from pathlib import Path
from typing import NoReturn

from factory import stops, tracking
from factory.commands import cli, comparison
from factory.commands.chain import BENCHMARKS, JUDGE
from factory.commands.comparison import COMPARISON, LAYER, Comparison, Share
from factory.datasets.store import Store
from factory.evaluation.benchmarks import benchmark_folder
from factory.recipe import FRRecipe, load


def job(given: argparse.Namespace) -> None:
    """Check the datasets, measure and train on each, and write the table and its report."""
    recipe = load(given.recipe, given.overrides, kind="fr")
    part = Share(given.identities, given.images_each)
    assert isinstance(recipe, FRRecipe)
    out, store = Path(given.out), Store(given.out)
    wanted = {"kind": "compare", "recipe": recipe.model_dump(mode="json", exclude={"data", "seed"})}
    COMPARISON.check(store, wanted)
    datasets = comparison.named_datasets(given.real, given.dataset)
    counted = comparison.sizes(datasets, part, given.unequal)
    print("\n".join(f"{name}: {size} people" for name, size in counted.items()), flush=True)
    benchmarks = benchmark_folder(given.benchmarks)
    import ray

    from factory.cluster.connect import connect
    from factory.recognition.recognizers import load_recognizer

    judge = load_recognizer(given.judge)
    network = comparison.feature_network(given.judge, given.features)
    if not given.resize:
        comparison.check_sizes(datasets, recipe, judge, benchmarks, network)
    seeds = range(1, given.seeds + 1)
    comparison.check_trained(
        out, datasets, seeds, given.recipe, given.overrides, part, given.resize
    )
    measured = (*part.flags, *(() if given.r is None else (f"--r={given.r}",)))
    uri = tracking.resolve(given.tracking_uri)
    what = {"datasets": datasets, "seeds": given.seeds, "judge": given.judge}
    with (
        store.lock("compare"),
        tracking.run(uri, "compare", out.name, what, output=store.url) as tracked,
        stops.keeping(lambda: "finished trainings are kept"),
    ):
        COMPARISON.write(store, wanted)
        comparison.write_sheets(datasets, store)
        connect(given.address)
        address = ray.get_runtime_context().gcs_address
        chain = Comparison(out, address, uri, seeds, benchmarks, given.recipe, given.overrides,
                           given.judge, network.location, measured,
                           part=part.sets, resize=given.resize)  # fmt: skip
        results = chain.compare(datasets, recipe, counted)
        store.write("results.json", (json.dumps(results, indent=1) + "\n").encode())
        for name, row in results["rows"].items():
            tracked.metrics({f"{name}.{key}": row[key] for key in ("accuracy", "gap", "eer")})
        text = comparison.table(results["rows"])
        store.write("table.md", (text + "\n").encode())
        chain.step("report", "report", out)
        for name in ("results.json", "table.md", "report.html", "sheets"):
            tracked.artifact(out / name, "sheets" if name == "sheets" else "")
    print(f"\n{text}\n\nreport: {(out / 'report.html').resolve()}")


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, recipe="an fr recipe (YAML); each dataset replaces its data")
    add = parser.add_argument
    add("--real", required=True, help="dataset that the gap is measured against")
    add(
        "--dataset",
        action="append",
        required=True,
        help="a dataset with as many images as the others (repeatable)",
    )
    add("--out", type=cli.local, required=True, help="folder of the comparison")
    add("--seeds", type=cli.positive, default=1, help="trainings of each row (default 1)")
    add("--judge", default=JUDGE, help="recognizer that measures the datasets")
    add("--r", type=float, help="the judge's radius, a cosine (default: from studio people)")
    add("--features", default="", help=f"network for diversity (default: JUDGE#{LAYER})")
    add("--benchmarks", default=BENCHMARKS, help="folder of .bin files (default: the studio's)")
    add("--identities", type=cli.positive, help="compare the first N identities of each dataset")
    add("--images-each", type=cli.positive, help="compare the first N images of each identity")
    add("--unequal", action="store_true", help="accept datasets whose counts differ")
    add("--resize", action="store_true", help="resize images of another size")
    cli.run(parser, job)
