"""ImageFolder read back by Hugging Face's own reader, and by sorting folders as trainers do."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from patches import Made, colours_kept, digest

from factory.export.about import About


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def test_labels_and_pixels(
    run: Callable[..., tuple[Path, About]], dataset: Made, tmp_path: Path
) -> None:
    import datasets

    folder, about = run("imagefolder")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    images = [(row["label"], np.asarray(row["image"].convert("RGB"))) for row in loaded]
    assert Counter((label, digest(image)) for label, image in images) == dataset.pixels
    assert loaded.features["label"].num_classes == about.classes
    assert all(colours_kept(image) for _, image in images)


def test_sorted_as_text_or_as_numbers_is_the_same(run: Callable[..., tuple[Path, About]]) -> None:
    folder, about = run("imagefolder")
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    natural = sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    assert sorted(names) == natural
    assert [int(name) for name in natural] == list(range(about.classes))
