"""Rows of datasets: what may stand side by side, and the whole job at sizes of nothing."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from faces import make_pool
from PIL import Image

from factory.chain import BENCHMARKS, JUDGE
from factory.comparison import Part, check_sizes, named_datasets, table
from factory.recipe import FRRecipe, InputError, load, local_path
from factory.recognition.recognizers import load_recognizer

ROOT = Path(__file__).parent.parent
SMALLEST = ("schedule.steps=4", "schedule.batch_size=8")


def test_rows_are_datasets_of_one_size_and_unlike_names(tmp_path: Path) -> None:
    real, made = (make_pool(tmp_path / name, 3, 2) for name in ("studio", "made"))
    assert named_datasets(real, [made + "/"], Part()) == {"real": real, "made": made + "/"}
    with pytest.raises(InputError, match="two rows 'made'"):
        named_datasets(real, [made, made], Part())
    smaller = make_pool(tmp_path / "smaller", 2, 2)
    with pytest.raises(InputError, match=r"real 6 images of 3, .* of 2; accepted"):
        named_datasets(real, [smaller], Part())
    assert set(named_datasets(real, [smaller], Part(2, 2))) == {"real", "smaller"}
    with pytest.raises(InputError, match="--identities 3: smaller has 2"):
        named_datasets(real, [smaller], Part(3, 2))
    with pytest.raises(InputError, match="nowhere"):
        named_datasets(real, [str(tmp_path / "nowhere")], Part())


def test_images_of_another_size_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    made = {"made": make_pool(tmp_path / "made", 3, 2, size=64)}
    recipe, judge = load("jobs/recipes/desk/fr/desk.yaml"), load_recognizer(JUDGE)
    assert isinstance(recipe, FRRecipe)
    check_sizes(made, recipe, judge, local_path(BENCHMARKS))
    larger = recipe.model_copy(update={"image": recipe.image.model_copy(update={"size": 112})})
    with pytest.raises(InputError, match=r"made, in recipe desk: 64 x 64 .* takes 112 x 112"):
        check_sizes(made, larger, judge, local_path(BENCHMARKS))
    with pytest.raises(InputError, match=r"benchmark age_gap, in recipe desk: 64 x 64 pixels"):
        check_sizes({}, larger, judge, local_path(BENCHMARKS))
    small = {"small": make_pool(tmp_path / "small", 3, 2, size=32)}
    with pytest.raises(InputError, match=r"small, under the judge .*: 32 x 32 pixels"):
        check_sizes(small, recipe, judge, local_path(BENCHMARKS))


def test_the_table_leaves_out_what_does_not_exist() -> None:
    row = {"uniqueness": 0.5, "consistency": 1.0, "diversity": None, "eer": 0.0123, "spread": 0.2,
           "accuracy": 81.25, "accuracy_sd": 0.5, "gap": 0.0, "gap_error": 0.25,
           "images_per_second": None}  # fmt: skip
    *_, real, made = table({"real": row, "made": row | {"diversity": 0.25}}).splitlines()
    assert real == "| real | 0.500 | 1.000 | - | 1.23 | 0.200 | 81.25 +- 0.50 | - | - |"
    assert (
        made == "| made | 0.500 | 1.000 | 0.250 | 1.23 | 0.200 | 81.25 +- 0.50 | 0.00 +- 0.25 | - |"
    )


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_job_fills_a_row_for_each_dataset(tmp_path: Path) -> None:
    real, made = (
        make_pool(tmp_path / name, 12, 4, size=64, world=world)
        for world, name in enumerate(("studio", "made"))
    )
    out = tmp_path / "compared"
    words = ["jobs/compare.py", "jobs/recipes/desk/fr/desk.yaml", "--real", real]
    words += ["--dataset", made, "--out", str(out), "--seeds", "2", "--r", "0.5"]
    words += ["--identities", "11", "--images-each", "3"]
    words += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    for override in SMALLEST:
        words += ["--set", override]
    run = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    results = json.loads((out / "results.json").read_text())
    assert set(results["rows"]) == {"real", "made"}
    averages = results["benchmarks"]["made"]["average"]
    row = results["rows"]["made"]
    assert row["accuracy"] == pytest.approx(100 * statistics.mean(averages))
    assert row["accuracy_sd"] == pytest.approx(100 * statistics.stdev(averages))
    behind = 100 * statistics.mean(results["benchmarks"]["real"]["average"]) - row["accuracy"]
    assert row["gap"] == pytest.approx(behind)
    assert 0 <= row["diversity"] <= 1
    assert (out / "table.md").read_text().strip() in run.stdout
    for name in ("real", "made"):
        with Image.open(out / f"sheets/{name}.jpg") as sheet:
            assert sheet.size == (4 * 66 - 2, 8 * 66 - 2)
    page = (out / "report.html").read_text()
    assert '<th scope="row">made<' in page
    again = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    assert json.loads((out / "results.json").read_text())["rows"] == results["rows"]
