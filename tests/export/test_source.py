"""Compositions are exported as they were composed: labels, repeats, pools and all."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import patches
import pytest
import webdataset
from patches import digest, pixels

from factory.datasets.compose import compose
from factory.datasets.composition import Composition, read_rows
from factory.datasets.materialise import materialise
from factory.datasets.store import Store
from factory.datasets.tar import read_tar, write_tar
from factory.export import source as module
from factory.export.export import Options, export
from factory.export.source import open_source
from factory.recipe import ComposeRecipe, FaultError, InputError, parse


@pytest.fixture
def composed(tmp_path: Path) -> tuple[Store, Composition]:
    """Two pools with equal keys; one is seen twice, the other gives two images an identity."""
    given = (("one", 6, "1" * 16, "train"), ("two", 9, "2" * 16, "gallery"))
    for name, count, content, source in given:
        identities = {"count": count, "images_each": patches.SLOTS, "source": source}
        changes = {"identities": identities, "name": name, "content": content}
        patches.make(tmp_path / name, tmp_path / "work", **changes)
    recipe = parse(
        {
            "kind": "compose",
            "name": "mix",
            "seed": 3,
            "pools": {
                "a": {"url": str(tmp_path / "one"), "repeat": 2},
                "b": {"url": str(tmp_path / "two"), "identities": 5, "images_each": 2},
            },
        }
    )
    assert isinstance(recipe, ComposeRecipe)
    store = Store(tmp_path / "mix")
    return store, compose(recipe, store)


def truth(store: Store, composition: Composition) -> Counter[tuple[int, str]]:
    """Return (label, sha256 of pixels) by the offsets of the index, repeats expanded."""
    rows, found = read_rows(store, composition), Counter[tuple[int, str]]()
    for n in range(len(rows)):
        pool, shard = rows.shards[rows.shard[n]]
        url = Path(composition.pools[rows.pools[pool]].url)
        data = (url / "shards" / f"{shard}.tar").read_bytes()
        start = int(rows.offset[n])
        image = pixels(data[start : start + int(rows.size[n])])
        found[int(rows.label[n]), digest(image)] += int(rows.repeat[n])
    return found


@pytest.mark.parametrize("rows", [1 << 16, 5])
def test_labels_repeats_and_pixels(
    rows: int,
    composed: tuple[Store, Composition],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    store, composition = composed
    folder = tmp_path / "acme_mix"
    about = export(store, Store(folder), Options("wds"))
    assert about.images == composition.images_with_repeats
    assert about.classes == composition.identities
    read = webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)
    samples = list(read.decode("rgb8"))
    assert len({sample["__key__"] for sample in samples}) == about.images
    found = Counter((sample["cls"], digest(sample["jpg"])) for sample in samples)
    assert found == truth(store, composition)
    assert max(found.values()) == 2
    assert {sample["json"]["digitalSourceType"] for sample in samples} == {
        "trainedAlgorithmicMedia"
    }


def test_the_card_has_every_pool(composed: tuple[Store, Composition], tmp_path: Path) -> None:
    store, composition = composed
    folder = tmp_path / "acme_mix"
    about = export(store, Store(folder), Options("hf"))
    text = (folder / "README.md").read_text()
    assert "| recipe | one |" in text and "| recipe | two |" in text
    assert about.source.licence == composition.licence == "CC-BY-NC-4.0"
    assert "| a: teacher | teacher.st | MIT |" in text
    stated = json.loads((folder / "export.json").read_text())["source_sha256"]
    assert stated == hashlib.sha256(store.read("composition.json")).hexdigest()


def test_a_materialised_one_has_the_same_images(
    composed: tuple[Store, Composition], tmp_path: Path
) -> None:
    store, composition = composed
    shards = Store(tmp_path / "shards")
    materialise(store, shards)
    folder = tmp_path / "acme_mix"
    export(shards, Store(folder), Options("imagefolder"))
    found = Counter(
        (int(path.parent.name), digest(pixels(path.read_bytes())))
        for path in folder.glob("*/*.jpg")
    )
    assert found == truth(store, composition)


def test_a_pool_that_changed_is_refused(
    composed: tuple[Store, Composition], tmp_path: Path
) -> None:
    store, _ = composed
    manifest = tmp_path / "two" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("2" * 16, "3" * 16))
    with pytest.raises(
        InputError, match=r"pool b of .* has changed since .* is 3{16} now, 2{16} then"
    ):
        open_source(store)


def test_what_a_pool_has_lost_is_missed(
    composed: tuple[Store, Composition], tmp_path: Path
) -> None:
    """A dataset made again under one digest may keep fewer images, or not have a shard."""
    store, composition = composed
    manifest = tmp_path / "two" / "manifest.json"
    whole = json.loads(manifest.read_text())
    rows = read_rows(store, composition)
    used = next(shard for pool, shard in rows.shards if rows.pools[pool] == "b")
    entry = next(entry for entry in whole["shards"] if entry["name"] == used)
    tar = tmp_path / "two" / "shards" / f"{used}.tar"
    samples = list(read_tar(tar))
    assert samples[0][0] in {bytes(key).decode() for key in rows.key}
    sha256, size = write_tar(tar, iter(samples[1:]))
    lost = {"sha256": sha256, "bytes": size, "kept": len(samples) - 1}
    shards = [one | lost if one is entry else one for one in whole["shards"]]
    manifest.write_text(json.dumps(whole | {"shards": shards}))
    with pytest.raises(FaultError, match=f"{used}.tar: has no sample {samples[0][0]} any more"):
        list(open_source(store).read())
    shards = [one for one in whole["shards"] if one is not entry]
    manifest.write_text(json.dumps(whole | {"shards": shards}))
    with pytest.raises(InputError, match=f"pool b: .* has no shard {used} any more"):
        open_source(store)


def test_nothing_to_export_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished dataset"):
        open_source(Store(tmp_path))
