"""The jobs that measure, as a user runs them."""

import hashlib
import json
import os

import numpy as np
import pytest
import ready
import torch
from faces import make_dataset
from safetensors.numpy import load_file

from factory.evaluation.verification import read_bin
from factory.recipe import Backbone
from factory.recognition.backbones import make_backbone
from factory.recognition.recognizers import save_recognizer


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a recognizer, small benchmarks and a dataset, all at 32 pixels."""
    folder = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    backbone = Backbone(name="iresnet", embedding_size=16, widths=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    weights = make_backbone(backbone, 32).state_dict()
    save_recognizer(folder / "net.safetensors", weights, backbone, 32, "net", "MIT")
    make_dataset(folder / "faces", identities=4, images_each=3)
    done = job(folder, "make_benchmarks", "--out", "bench", "--pairs", "20", "--size", "32")
    assert done.returncode == 0, done.stderr
    return folder


def job(folder, name, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return ready.run(f"jobs/{name}.py", *arguments, cwd=folder, env=environment)


def test_benchmarks_are_stated_and_readable(work):
    manifest = json.loads((work / "bench" / "benchmarks.json").read_text())
    names = sorted(p.name for p in (work / "bench").glob("*.bin"))
    assert names == sorted(manifest["sha256"])
    assert len(names) == 5
    assert all(read_bin(work / "bench" / name).same.sum() == 10 for name in names)
    same = job(work, "make_benchmarks", "--out", "bench", "--pairs", "20", "--size", "32")
    assert "bench: finished already, five benchmarks of 20 pairs" in same.stdout
    other = job(work, "make_benchmarks", "--out", "bench", "--pairs", "40", "--size", "32")
    assert other.returncode == 2
    assert "pairs is 20 there, 40 here" in other.stderr


def test_evaluate_prints_writes_and_tracks(work):
    done = job(work, "evaluate", "--recognizer", "net.safetensors", "--benchmarks", "bench",
               "--json", "out.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((work / "out.json").read_text())
    assert len(found["benchmarks"]) == 5
    mean = sum(b["accuracy"] for b in found["benchmarks"].values()) / 5
    assert found["average"] == pytest.approx(mean)
    assert f"{100 * mean:.2f}" in done.stdout
    assert (work / "mlflow.db").is_file()


def test_measure_prints_and_writes(work):
    make_dataset(work / "real", identities=3, images_each=3)  # three of the same four people
    make_dataset(work / "unseen", identities=3, images_each=3, world=1)
    done = job(work, "measure", "faces", "--recognizer", "net.safetensors", "--r", "0.5",
               "--json", "quality.json", "--against", "real", "--held-out", "unseen",
               "--embeddings", "faces.safetensors", "--centres", "people.safetensors")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((work / "quality.json").read_text())
    assert (found["identities"], found["images"], found["r"]) == (4, 12, 0.5)
    assert "spread" in done.stdout
    assert found["leakage"]["images"]["training"]["highest"] == pytest.approx(1.0, abs=1e-6)
    assert f"{found['leakage']['membership']['auc']:.3f}" in done.stdout
    written = (work / "faces.safetensors").read_bytes()
    assert hashlib.sha256(written).hexdigest() in done.stdout
    faces = load_file(work / "faces.safetensors")["faces"].reshape(4, 3, -1).sum(axis=1)
    people = load_file(work / "people.safetensors")["faces"]
    np.testing.assert_allclose(
        people, faces / np.linalg.norm(faces, axis=1, keepdims=True), atol=1e-6
    )


def test_embeddings_are_written_of_people_with_one_image(work):
    make_dataset(work / "single", identities=5, images_each=1)
    done = job(work, "measure", "single", "--recognizer", "net.safetensors",
               "--embeddings", "single.safetensors")  # fmt: skip
    assert done.returncode == 2
    assert "a measurement needs two identities, and two images of one of them" in done.stderr
    assert hashlib.sha256((work / "single.safetensors").read_bytes()).hexdigest() in done.stdout
    assert load_file(work / "single.safetensors")["faces"].shape == (5, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "--recognizer", "none", "--benchmarks", "bench"), "recognizer 'none'"),
        (
            ("evaluate", "--recognizer", "net.safetensors", "--benchmarks", "faces"),
            "no .bin file",
        ),
        (("measure", "none", "--recognizer", "net.safetensors"), "no finished shard"),
        (
            ("measure", "faces", "--recognizer", "net.safetensors", "--held-out", "unseen"),
            "--held-out: this goes with --against, which is missing",
        ),
        (
            ("measure", "faces", "--recognizer", "net.safetensors", "--tasks", "-1"),
            "--tasks -1; accepted is 0 or more",
        ),
        (("report", "bench"), "neither results.json nor manifest.json"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(work, arguments, message):
    done = job(work, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().count("error:") == 1
