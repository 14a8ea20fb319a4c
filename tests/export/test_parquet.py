"""Parquet read back by `datasets`, as a user of the Hub would."""

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from patches import Made, colours_kept, digest
from PIL import Image

from factory.export.about import About


def test_labels_and_pixels(
    run: Callable[..., tuple[Path, About]],
    dataset: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder, about = run("hf")
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert len(loaded) == about.images
    images = [(row["label"], np.asarray(row["image"].convert("RGB"))) for row in loaded]
    assert Counter((label, digest(image)) for label, image in images) == dataset.pixels
    assert all(colours_kept(image) for _, image in images)
    assert {json.loads(text)["digitalSourceType"] for text in loaded["sidecar"]} == {
        "trainedAlgorithmicMedia"
    }
    labels = loaded["label"]
    assert list(labels) != sorted(labels)


def test_a_file_alone_says_that_it_has_images(run: Callable[..., tuple[Path, About]]) -> None:
    folder, _ = run("hf")
    first = pq.read_table(sorted((folder / "data").iterdir())[0])
    features = json.loads(first.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    row = first.to_pylist()[0]
    assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (32, 32)
    assert row["image"]["path"].startswith(f"{row['label']:07d}_")
