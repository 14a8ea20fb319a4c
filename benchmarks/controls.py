"""Measure on the desk models whether the papers' controls do what the papers say.

    python -m benchmarks.controls --out runs/controls --data runs/studio/train \
        --json docs/results/controls.json --plot docs/results/controls.svg

Every value of a control makes one dataset, with the same number of people, seed and recipe, which
the judge measures. Dropout and style grid are choices of a training: their denoisers are trained
first, on --data. To resume, run the same command again.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory import tracking
from factory.commands.chain import BENCHMARKS, JUDGE, RECIPES, Chain
from factory.commands.comparison import LAYER
from factory.datasets.store import Store
from factory.evaluation.benchmarks import benchmark_folder
from factory.evaluation.dataset import samples

PEOPLE, IMAGES_EACH = 40, 8
MEASURED = ("spread", "genuine_mean", "eer", "fdr", "uniqueness", "consistency")
TITLES = {
    "cpd_rate": "IDiff-Face: contextual partial dropout",
    "style_grid": "DCFace: patches a side of the style grid",
    "m": "CemiFace: similarity m asked for",
    "v": "ID3: middle of the bounds of v",
}


@dataclass(frozen=True)
class Setting:
    """One value of a control.

    Attributes:
        value: the number on the axis.
        recipe: the generate recipe's name.
        sets: the recipe's overrides.
        trained: the train recipe's name that makes its denoiser; "" takes the recipe's own.
    """

    value: float
    recipe: str
    sets: tuple[str, ...] = ()
    trained: str = ""


CONTROLS = {
    "cpd_rate": tuple(
        Setting(
            *(rate, "idiff_face_full", ("options.perturb=null",)),  # dropout alone spreads images
            trained=f"idiff_face_cpd{round(100 * rate)}",
        )
        for rate in (0.0, 0.25, 0.5)
    ),
    "style_grid": tuple(
        Setting(grid, "dcface_full", trained=f"dcface_grid{grid}") for grid in (1, 3, 5)
    ),
    "m": tuple(Setting(m, "cemiface", (f"options.m={m}",)) for m in (-0.4, -0.1, 0.2, 0.5, 0.8)),
    "v": tuple(
        Setting((low + high) / 2, "id3", (f"options.bounds=[{low}, {high}]",))
        for low, high in ((0.1, 0.3), (0.4, 0.6), (0.7, 0.9))
    ),
}


def measure_controls(chain: Chain, names: Sequence[str], people: int, data: str) -> dict[str, Any]:
    """Generate and measure every setting of the named controls.

    Args:
        chain: runs the jobs.
        names: names of controls in `CONTROLS`.
        people: number of identities of each dataset; each has eight images.
        data: the dataset that denoisers are trained on.

    Returns:
        the settings by control, each with three kinds of figures: what the judge measured;
        `diversity`, compared with as many people of the studio (unmatched, in the judge's early
        features); and `cosine`, the mean cosine under the teacher between an image and what its
        identity is conditioned on (context, inquiry, identity image, anchor).
    """
    size = (f"identities.count={people}", f"identities.images_each={IMAGES_EACH}")
    real = chain.run / "real"
    chain.step("real", "generate", RECIPES / "generate/studio.yaml", "--out", real, sets=size)
    beside = ("--real", str(real), "--features", f"{JUDGE}#{LAYER}")
    found: dict[str, Any] = {}
    for name in names:
        found[name] = []
        for setting in CONTROLS[name]:
            row = f"{name}_{setting.value:g}"
            out = chain.run / row
            # Every image is kept; otherwise the screen would decide the measure.
            sets = (*setting.sets, *size, "screens.identity_drift=null")
            if setting.trained:
                sets = (*_trained(chain, setting.trained, data), *sets)
            recipe = RECIPES / "generate" / f"{setting.recipe}.yaml"
            chain.step(row, "generate", recipe, "--out", out, sets=sets)
            judged = chain.measure(row, out, "judge", JUDGE, *beside)
            measured = {key: judged[key] for key in MEASURED}
            measured["diversity"] = judged["variety"]["diversity_unmatched"]
            found[name].append({**asdict(setting), **measured, "cosine": mean_cosine(out)})
    return found


def _trained(chain: Chain, name: str, data: str) -> tuple[str, ...]:
    """Train a denoiser, and return the overrides of a generate recipe that sample it."""
    out = chain.run / "weights" / name
    recipe = RECIPES / f"train/{name}.yaml"
    chain.step(
        f"train {name}", "train_diffusion", recipe, "--out", out, sets=(f"data.train={data}",)
    )
    return (
        f"weights.denoiser.location={out / 'denoiser.safetensors'}",
        "weights.denoiser.sha256=''",
    )


def mean_cosine(dataset: str | Path) -> float:
    """Return the mean of the cosines in a dataset's sidecars."""
    return float(np.mean([sample.sidecar["cosine"] for sample in samples(Store(dataset))]))


def draw(found: dict[str, Any], file: str | Path) -> None:
    """Write a chart (SVG) of each control: cosine, spread and diversity over its values."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "controls"}):
        columns = min(len(found), 2)
        lines = -(-len(found) // columns)
        figure = Figure(figsize=(4.2 * columns, 2.8 * lines + 0.4), layout="constrained")
        plots = np.atleast_1d(figure.subplots(lines, columns, sharey=True)).ravel()
        for axes, (name, settings) in zip(plots, found.items(), strict=False):
            values = [setting["value"] for setting in settings]
            for key, label in (
                ("cosine", "cosine to what conditions it (teacher)"),
                ("spread", "spread within a person (judge)"),
                ("diversity", "diversity (judge's early features)"),
            ):
                axes.plot(values, [setting[key] for setting in settings], marker="o", label=label)
            axes.set_title(TITLES[name], fontsize=9)
            axes.set_ylim(0.0, 1.0)
            axes.set_xticks(values)
        for axes in plots[len(found) :]:
            axes.set_visible(False)
        handles, labels = plots[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7)
        figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure the controls, write the figures and draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the datasets")
    parser.add_argument("--controls", nargs="+", choices=list(CONTROLS), default=list(CONTROLS))
    parser.add_argument("--data", default="runs/studio/train", help="dataset of the trainings")
    parser.add_argument("--people", type=int, default=PEOPLE, help="identities of each dataset")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--plot", help="draw the figures to this file (SVG)")
    parser.add_argument("--tracking-uri", default="", help="MLflow server, as for the jobs")
    given = parser.parse_args()
    import ray

    from factory.cluster.connect import connect

    given.out.mkdir(parents=True, exist_ok=True)
    connect("")
    address, uri = ray.get_runtime_context().gcs_address, tracking.resolve(given.tracking_uri)
    chain = Chain(given.out, address, uri, (), benchmark_folder(BENCHMARKS))
    found = measure_controls(chain, given.controls, given.people, given.data)
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")
    if given.plot:
        draw(found, given.plot)
    for name, settings in found.items():
        for setting in settings:
            shown = ", ".join(
                f"{key} {setting[key]:.4f}" for key in ("cosine", "diversity", *MEASURED)
            )
            print(f"{name} {setting['value']:g}: {shown}")


if __name__ == "__main__":
    main()
