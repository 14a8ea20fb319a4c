"""Rows of datasets: what may stand side by side, and the whole job at sizes of nothing."""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faces import make_pool
from PIL import Image

from factory.cluster import connect
from factory.commands import compare
from factory.commands.chain import BENCHMARKS, JUDGE, trained_at, training_sets
from factory.commands.comparison import (
    Share,
    Size,
    check_sizes,
    check_trained,
    feature_network,
    named_datasets,
    sizes,
    table,
)
from factory.datasets.feed import Feed
from factory.datasets.store import Store
from factory.evaluation.features import load_features
from factory.recipe import FRRecipe, InputError, load, local_path
from factory.recognition import recognizers
from factory.recognition.recognizers import load_recognizer
from factory.training.output import RECORD, claim, data_read

ROOT = Path(__file__).parents[2]
SMALLEST = ("schedule.steps=4", "schedule.batch_size=8")


def test_rows_are_datasets_of_one_size_and_unlike_names(tmp_path: Path) -> None:
    real, made = (make_pool(tmp_path / name, 3, 2) for name in ("studio", "made"))
    assert named_datasets(real, [made + "/"]) == {"real": real, "made": made + "/"}
    assert set(sizes({"real": real, "made": made}, Share()).values()) == {Size(6, 3)}
    with pytest.raises(InputError, match="two folders are called 'made'"):
        named_datasets(real, [made, made])
    smaller = make_pool(tmp_path / "smaller", 2, 2)
    rows = named_datasets(real, [smaller])
    with pytest.raises(InputError, match=r"real 6 images of 3 .* 4 images of 2 .*; accepted"):
        sizes(rows, Share())
    assert sizes(rows, Share(2, 2)) == {"real": Size(4, 2), "smaller": Size(4, 2)}
    with pytest.raises(InputError, match="--identities 3: dataset smaller has only 2"):
        sizes(rows, Share(3, 2), unequal=True)
    with pytest.raises(InputError, match="nowhere"):
        named_datasets(real, [str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match=r"dataset x: s3://b/x holds credentials"):
        named_datasets(real, ["s3://k:secret@b/x"])


def test_people_with_fewer_images_make_a_part_smaller(tmp_path: Path) -> None:
    tail = tuple((person, slot) for person in (1, 2) for slot in range(2, 5))  # two images each
    real = make_pool(tmp_path / "studio", 4, 5, lost=tail)
    made = make_pool(tmp_path / "made", 4, 5, world=1)
    rows = {"real": real, "made": made}
    with pytest.raises(InputError) as caught:
        sizes(rows, Share(4, 3))
    for words in ("real 10 images of 4 people", "made 12 images", "asked for were 12", "--unequal"):
        assert words in str(caught.value)
    counted = sizes(rows, Share(4, 3), unequal=True)
    assert counted == {"real": Size(10, 4), "made": Size(12, 4)}
    for name, size in counted.items():  # as a training counts them
        fed = Feed([rows[name]], 4, seed=1, size=32, identities=4, images_each=3)
        assert (len(fed), fed.classes) == (size.images, size.people)
        fed.close()
    assert set(sizes(rows, Share(4, 2)).values()) == {Size(8, 4)}
    with pytest.raises(InputError, match="real 14 images of 4 people, made 20 images"):
        sizes(rows, Share())


def test_some_slots_that_stayed_empty_are_no_other_size(tmp_path: Path) -> None:
    whole = make_pool(tmp_path / "whole", 10, 20)
    for lost, alike in ((((0, 3), (4, 4)), True), (((0, 3), (4, 4), (5, 5)), False)):
        other = make_pool(tmp_path / f"lost{len(lost)}", 10, 20, world=1, lost=lost)
        rows = {"real": whole, "other": other}
        if alike:
            assert sizes(rows, Share())["other"] == Size(198, 10)
            continue
        with pytest.raises(InputError, match="other 197 images"):
            sizes(rows, Share())


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
    network = replace(load_features(JUDGE), name="net", size=48)
    with pytest.raises(InputError, match=r"made, in features net: 64 x 64 .* takes 48 x 48"):
        check_sizes(made, recipe, judge, local_path(BENCHMARKS), network)
    small = {"small": make_pool(tmp_path / "small", 3, 2, size=32)}
    with pytest.raises(InputError, match=r"small, under the judge .*: 32 x 32 pixels"):
        check_sizes(small, recipe, judge, local_path(BENCHMARKS))


def test_a_row_whose_dataset_changed_is_refused_before_others_are_trained(tmp_path: Path) -> None:
    rows = {name: make_pool(tmp_path / name, 4, 3) for name in ("real", "made")}
    recipe, sets = "jobs/recipes/desk/fr/desk.yaml", ("engine.precision=float32", *SMALLEST)
    asked = (tmp_path / "out", rows, (1, 2), recipe, sets, Share(3, 2), False)
    check_trained(*asked)
    own = training_sets(rows["made"], 1, Share(3, 2).sets, sets, False)
    trained, store = load(recipe, own), Store(trained_at(tmp_path / "out", "made", 1))
    assert isinstance(trained, FRRecipe)
    claim(store, trained)
    store.write(RECORD, json.dumps(data_read(trained, 6, 3)).encode())
    check_trained(*asked)
    shutil.rmtree(rows["made"])
    make_pool(tmp_path / "made", 4, 3, world=1)
    with pytest.raises(InputError, match=r"out/fr/made/seed1: was trained on 6 images of 3 .*1\)"):
        check_trained(*asked)
    asked = (*asked[:5], Share(3, 1), False)
    with pytest.raises(InputError, match=r"another recipe: data\.images_each is 2 there, 1 here"):
        check_trained(*asked)


def test_a_judge_without_the_layer_for_diversity_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = (make_pool(tmp_path / name, 3, 2, size=64) for name in ("studio", "made"))
    judge, load_judge = load_recognizer(JUDGE), recognizers.load_recognizer

    def loaded(reference: str, *how: Any) -> Any:
        return judge if reference.startswith("onnx:") else load_judge(reference, *how)

    def begun(address: str) -> None:
        raise AssertionError("the comparison has begun")

    monkeypatch.setattr(recognizers, "load_recognizer", loaded)
    monkeypatch.setattr(connect, "connect", begun)
    given = argparse.Namespace(
        recipe="jobs/recipes/desk/fr/desk.yaml", overrides=[], real=real, dataset=[made],
        out=str(tmp_path / "out"), seeds=1, judge="onnx:theirs.onnx", r=0.3, features="",
        benchmarks=BENCHMARKS, identities=None, images_each=None, unequal=False, resize=False,
        address="", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
    )  # fmt: skip
    with pytest.raises(InputError) as caught:
        compare.job(given)
    for words in ("--judge onnx:theirs.onnx: has no layer2", "--features chooses another"):
        assert words in str(caught.value)
    assert not (tmp_path / "out").exists()
    given.features = "onnx:theirs.onnx#layer2"
    with pytest.raises(InputError, match=r"--features 'onnx:theirs\.onnx#layer2': no layer of"):
        compare.job(given)
    assert feature_network("onnx:theirs.onnx", JUDGE).location == JUDGE
    assert feature_network(JUDGE, "").location == f"{JUDGE}#layer2"


def test_the_table_leaves_out_what_does_not_exist() -> None:
    row = {"images": 1200, "uniqueness": 0.5, "consistency": 1.0, "diversity": None,
           "eer": 0.0123, "spread": 0.2, "accuracy": 81.25, "accuracy_sd": 0.5, "gap": 0.0,
           "gap_error": 0.25, "images_per_second": None}  # fmt: skip
    *_, real, made = table({"real": row, "made": row | {"diversity": 0.25}}).splitlines()
    assert real == "| real | 1,200 | 0.500 | 1.000 | - | 1.23 | 0.200 | 81.25 +- 0.50 | - | - |"
    assert made == (
        "| made | 1,200 | 0.500 | 1.000 | 0.250 | 1.23 | 0.200 | 81.25 +- 0.50 | 0.00 +- 0.25 | - |"
    )


@pytest.mark.slow
@pytest.mark.ray
def test_the_job_fills_a_row_for_each_dataset(tmp_path: Path) -> None:
    real, made = (
        make_pool(tmp_path / name, 12, 5, size=64, world=world)
        for world, name in enumerate(("studio", "made"))
    )
    out = tmp_path / "compared"
    words = ["jobs/compare.py", "jobs/recipes/desk/fr/desk.yaml", "--real", real]
    words += ["--dataset", made, "--out", str(out), "--seeds", "2", "--r", "0.5"]
    words += ["--identities", "11", "--images-each", "4"]
    words += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    for override in SMALLEST:
        words += ["--set", override]
    run = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    results = json.loads((out / "results.json").read_text())
    assert set(results["rows"]) == {"real", "made"}
    averages = results["benchmarks"]["made"]["average"]
    row = results["rows"]["made"]
    assert row["images"] == results["quality"]["made"]["judge"]["images"] == 44
    assert row["accuracy"] == pytest.approx(100 * statistics.mean(averages))
    assert row["accuracy_sd"] == pytest.approx(100 * statistics.stdev(averages))
    behind = 100 * statistics.mean(results["benchmarks"]["real"]["average"]) - row["accuracy"]
    assert row["gap"] == pytest.approx(behind)
    assert 0 <= row["diversity"] <= 1
    assert (out / "table.md").read_text().strip() in run.stdout
    for name in ("real", "made"):
        with Image.open(out / f"sheets/{name}.jpg") as sheet:
            assert sheet.size == (5 * 66 - 2, 8 * 66 - 2)
    page = (out / "report.html").read_text()
    assert '<th scope="row">made<' in page
    again = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    assert json.loads((out / "results.json").read_text())["rows"] == results["rows"]
