"""WebDataset shards read back by the webdataset library."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from patches import Made, colours_kept, digest

from factory.datasets.store import Store
from factory.export.about import About
from factory.export.export import Options, export
from factory.export.wds import shard_size
from factory.recipe import FaultError


def test_labels_and_pixels(run: Callable[..., tuple[Path, About]], dataset: Made) -> None:
    folder, about = run("wds")
    urls = sorted(map(str, folder.glob("*.tar")))
    read = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")
    samples = list(read)
    images = [(sample["cls"], np.asarray(sample["jpg"])) for sample in samples]
    assert Counter((label, digest(image)) for label, image in images) == dataset.pixels
    assert all(colours_kept(image) for _, image in images)
    assert {sample["json"]["digitalSourceType"] for sample in samples} == {
        "trainedAlgorithmicMedia"
    }
    keys = [sample["__key__"] for sample in samples]
    assert len(set(keys)) == about.images and not any("." in key for key in keys)
    assert [label for label, _ in images] != sorted(label for label, _ in images)


def test_the_index_is_true(run: Callable[..., tuple[Path, About]]) -> None:
    folder, about = run("wds")
    index = json.loads((folder / "index.json").read_text())
    assert index["__kind__"] == "wids-shard-index-v1" and index["wids_version"] == 1
    assert [part["url"] for part in index["shardlist"]] == sorted(
        path.name for path in folder.glob("*.tar")
    )
    for part in index["shardlist"]:
        data = (folder / part["url"]).read_bytes()
        assert part["md5sum"] == hashlib.md5(data).hexdigest()
        assert part["filesize"] == len(data)
    assert sum(part["nsamples"] for part in index["shardlist"]) == about.images


def test_there_are_files_for_sixteen_readers_and_none_is_huge() -> None:
    assert shard_size(1) == 1
    assert -(-33 // shard_size(33)) <= 16
    assert -(-1600 // shard_size(1600)) == 16
    assert shard_size(10**7) == 10_000


def test_from_url_to_url_by_several_shards_at_once_gives_the_same_bytes(
    run: Callable[..., tuple[Path, About]], dataset: Made, s3: str
) -> None:
    folder, _ = run("wds")
    there, to = Store(s3 % "export-source"), Store(s3 % "export-target/acme_v1")
    for name in dataset.store.list():
        there.write(name, dataset.store.read(name))
    export(there, to, Options("wds"))
    here = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    assert {name: to.read(name) for name in to.list() if "." in name} == here
    assert to.read("SHA256SUMS") == (folder / "SHA256SUMS").read_bytes()
    lost = next(name for name in there.list("shards") if name.endswith(".tar"))
    there.delete(lost)
    with pytest.raises(FaultError, match=rf"{lost}: missing; jobs/verify"):
        export(there, Store(s3 % "export-target/acme_v2"), Options("wds"))
