"""Rows of datasets: what may stand side by side, and the whole job at sizes of nothing."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from faces import make_pool
from PIL import Image

from factory.comparison import markdown, named_datasets
from factory.recipe import InputError

ROOT = Path(__file__).parent.parent
SMALLEST = ("schedule.steps=4", "schedule.batch_size=8")


def test_rows_are_datasets_of_one_size_and_unlike_names(tmp_path: Path) -> None:
    real, made = (make_pool(tmp_path / name, 3, 2) for name in ("studio", "made"))
    assert named_datasets(real, [made + "/"]) == {"real": real, "made": made + "/"}
    with pytest.raises(InputError, match="two rows 'made'"):
        named_datasets(real, [made, made])
    smaller = make_pool(tmp_path / "smaller", 2, 2)
    with pytest.raises(InputError, match=r"real 6 images of 3, .* of 2; accepted"):
        named_datasets(real, [smaller])
    with pytest.raises(InputError, match="nowhere"):
        named_datasets(real, [str(tmp_path / "nowhere")])


def test_the_table_leaves_out_what_does_not_exist() -> None:
    row = {"uniqueness": 0.5, "consistency": 1.0, "diversity": None, "eer": 0.0123, "spread": 0.2,
           "accuracy": 81.25, "accuracy_sd": 0.5, "gap": 0.0, "gap_error": 0.25,
           "images_per_second": None}  # fmt: skip
    *_, real, made = markdown({"real": row, "made": row | {"diversity": 0.25}}).splitlines()
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
    words += ["--dataset", made, "--out", str(out), "--seeds", "2"]
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
