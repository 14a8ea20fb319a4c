"""Compare datasets: one judge measures each, one recipe trains recognizers on each, a row each.

    python jobs/compare.py jobs/recipes/desk/fr/desk.yaml --real runs/studio_faces \
        --dataset runs/idiff_face --dataset runs/dcface --seeds 3 --out runs/compared

To resume, run the same command again: finished trainings are kept.
"""

import argparse
import json
from pathlib import Path

from factory import cli, tracking
from factory.chain import BENCHMARKS, JUDGE
from factory.comparison import FEATURES, Comparison, markdown, named_datasets, sheet
from factory.recipe import InputError, load, local_path


def job(given: argparse.Namespace) -> None:
    """Check the datasets, fill the rows and write the table and its report."""
    recipe = load(given.recipe, given.overrides, kind="fr")
    if given.seeds < 1:
        raise InputError(f"--seeds {given.seeds}; accepted is 1 or more")
    datasets = named_datasets(given.real, given.dataset)
    import ray

    from factory.engine import connect

    out = Path(given.out)
    (out / "sheets").mkdir(parents=True, exist_ok=True)
    for name, url in datasets.items():
        (out / "sheets" / f"{name}.jpg").write_bytes(sheet(url))
    uri = tracking.resolve(given.tracking_uri)
    what = {"datasets": datasets, "seeds": given.seeds, "judge": given.judge}
    with tracking.run(uri, "compare", out.name, what) as tracked:
        connect(given.address)
        address, seeds = ray.get_runtime_context().gcs_address, range(1, given.seeds + 1)
        chain = Comparison(out, address, uri, seeds, local_path(BENCHMARKS), given.recipe,
                           given.overrides, given.judge, given.features)  # fmt: skip
        results = chain.compare(datasets, recipe)
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        for name, row in results["rows"].items():
            tracked.metrics({f"{name}.{key}": row[key] for key in ("accuracy", "gap", "eer")})
        table = markdown(results["rows"])
        (out / "table.md").write_text(table + "\n")
        chain.step("report", "report", out)
        for name in ("results.json", "table.md", "report.html", "sheets"):
            tracked.artifact(out / name, "sheets" if name == "sheets" else "")
    print(f"\n{table}\n\nreport: {(out / 'report.html').resolve()}")


if __name__ == "__main__":
    parser = cli.parser(__doc__, recipe="an fr recipe (YAML); its data is each dataset in turn")
    parser.add_argument("--real", required=True, help="dataset the gap is taken to")
    parser.add_argument(
        "--dataset", action="append", required=True, help="a dataset (repeatable), of that size"
    )
    parser.add_argument("--out", required=True, help="folder of the comparison")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row (default 1)")
    parser.add_argument("--judge", default=JUDGE, help="recognizer that measures")
    parser.add_argument("--features", default=FEATURES, help="network diversity is taken in")
    cli.run(parser, job)
