"""What is kept of a sweep: its rows, a chart, and no more said than the seeds support."""

import json
from pathlib import Path

import pytest
import ready
from sweeps import write_sweep

from factory.datasets.store import Store
from factory.recipe import InputError
from factory.report.study import gathered, table, verdict
from factory.search.results import SWEEP

STUDIES = sorted((Path(__file__).parents[2] / "docs/study").glob("*.json"))


def test_a_study_keeps_finished_trials_best_first_and_counts_the_others(tmp_path):
    write_sweep(Store(tmp_path), 6)
    study = gathered(Store(tmp_path))
    assert [row["trial"] for row in study["rows"]] == [5, 2, 1, 0]
    assert study["pairs"] == {"frontal": 600}
    assert study["not_finished"] == {"refused": 1, "stopped": 1}
    best = study["rows"][0]
    assert best["accuracy"] == pytest.approx(76.0) and best["sd"] == pytest.approx(1.414)
    assert best["generation_seconds"] == 60.0 and best["benchmarks"] == {"frontal": 76.0}
    text = table(study)
    assert "76.00 +- 1.41" in text and "5.00 points apart over 2 seeds" in text
    # Means 71, 72, 73, 76 of two seeds, 2 points apart: F(3, 4) = 28 / 3 / 2 = 4.67, p = 0.0855.
    assert study["chance"] == pytest.approx(0.0855, abs=1e-3)
    assert study["resolved"] is False and "any differ is not resolved" in text
    assert "p = 0.085)" in text
    assert "p < 1e-05)" in verdict(study | {"chance": 0.0, "resolved": True})


def test_of_a_single_ordered_axis_the_trend_is_told(tmp_path):
    store = Store(tmp_path)
    write_sweep(store, 6)
    sweep = json.loads(store.read(SWEEP))
    for number in (3, 4):  # which were stopped and refused
        result = json.loads(store.read("trials/0002/result.json")) | {"number": number}
        result |= {"point": {"rate": 0.001 * number}, "accuracies": [0.5 + 0.01 * number] * 2}
        store.write(f"trials/{number:04d}/result.json", json.dumps(result).encode())
    assert gathered(store)["trend"] is None  # three axes
    sweep["space"]["axes"] = {"rate": sweep["space"]["axes"]["rate"]}
    store.write(SWEEP, json.dumps(sweep).encode())
    study = gathered(store)
    order = [row["accuracy"] for row in sorted(study["rows"], key=lambda row: row["point"]["rate"])]
    pairs = [(a, b) for n, a in enumerate(order) for b in order[n + 1 :]]
    up = sum(a < b for a, b in pairs)
    assert len(pairs) == 15 and study["trend"]["tau"] == pytest.approx(
        (2 * up - len(pairs)) / len(pairs), abs=1e-3
    )
    assert "along the axis is not resolved" in verdict(study)
    sweep["space"]["axes"]["rate"]["ordered"] = False
    store.write(SWEEP, json.dumps(sweep).encode())
    assert gathered(store)["trend"] is None


def test_the_command_writes_json_and_a_chart(tmp_path):
    write_sweep(Store(tmp_path / "sweep"), 6)
    words = [str(tmp_path / "sweep"), "--out", str(tmp_path / "s")]
    done = ready.run("factory/report/study.py", *words)
    assert done.returncode == 0, done.stderr
    assert "### Which rate?" in done.stdout
    assert json.loads((tmp_path / "s/rates.json").read_text())["name"] == "rates"
    chart = (tmp_path / "s/rates.svg").read_text()
    assert "Which rate?" in chart and "accuracy, %" in chart
    done = ready.run("factory/report/study.py", str(tmp_path), *words[1:])
    assert done.returncode == 2 and "no sweep there (sweep.json is missing)" in done.stderr


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_page_of_the_desk_study_has_the_tables_of_its_files(file: Path) -> None:
    study = json.loads(file.read_text())
    assert table(study) in (file.parent / "README.md").read_text()
    assert file.with_suffix(".svg").is_file()


def test_folders_without_figures_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no sweep there \(sweep.json is missing\)"):
        gathered(Store(tmp_path))
    write_sweep(Store(tmp_path), 0)
    with pytest.raises(InputError, match="no trial is finished"):
        gathered(Store(tmp_path))
