import hashlib
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from faces import make_pool

from factory.datasets.compose import compose
from factory.datasets.composition import load_composition, read_rows
from factory.datasets.feed import Feed
from factory.datasets.manifest import COMMIT, TAR, shard_file
from factory.datasets.materialise import materialise
from factory.datasets.store import Store
from factory.datasets.tar import read_tar, write_tar
from factory.datasets.verify import verify
from factory.evaluation.dataset import samples
from factory.recipe import InputError, parse

SEED, SHARD = 4, 20


@pytest.fixture
def view(tmp_path: Path) -> Store:
    """A composition of six people x four images, and three x two that an epoch holds thrice."""
    raw = {
        "kind": "compose",
        "name": "view",
        "seed": SEED,
        "shard_images": SHARD,
        "pools": {
            "a": {"url": make_pool(tmp_path / "a", 6, 4, world=1, per=4)},
            "b": {"url": make_pool(tmp_path / "b", 3, 2, world=2), "repeat": 3},
        },
    }
    made, out = parse(raw), Store(tmp_path / "view")
    compose(made, out)  # type: ignore[arg-type]
    return out


def expected(view: Store, tmp_path: Path) -> Counter[tuple[int, str]]:
    """Count (label, sha256 of the image) over an epoch, read by tarfile from the pools."""
    found: Counter[tuple[int, str]] = Counter()
    rows = read_rows(view, load_composition(view))
    for row in range(len(rows)):
        pool = rows.pools[rows.pool[row]]
        path = tmp_path / pool / shard_file(rows.shards[rows.shard[row]][1], TAR)
        with tarfile.open(path) as tar:
            file = tar.extractfile(f"{bytes(rows.key[row]).decode()}.jpg")
            assert file is not None
            sha = hashlib.sha256(file.read()).hexdigest()
        found[int(rows.label[row]), sha] += int(rows.repeat[row])
    return found


def test_the_shards_hold_an_epoch_shuffled_and_verify(view: Store, tmp_path: Path) -> None:
    to = Store(tmp_path / "made")
    manifest = materialise(view, to)
    assert verify(to) == []
    assert [entry.kept for entry in manifest.shards] == [20, 20, 2]
    assert manifest.licence == "CC0-1.0"
    found: Counter[tuple[int, str]] = Counter()
    keys, pools = [], []
    for path in sorted((tmp_path / "made" / "shards").glob("*.tar")):
        for key, parts in read_tar(path):
            sidecar = json.loads(parts["json"])
            assert int(parts["cls"]) == sidecar["label"]
            assert sidecar["source_key"] == f"{sidecar['identity']:07d}_{sidecar['slot']:04d}"
            found[int(parts["cls"]), hashlib.sha256(parts["jpg"]).hexdigest()] += 1
            keys.append(key)
            pools.append(sidecar["pool"])
    assert found == expected(view, tmp_path)
    assert len(set(keys)) == len(keys) == 24 + 18
    assert 0.2 < pools[:20].count("b") / 20 < 0.7  # mixed, not one pool after the other


def test_every_reader_of_datasets_reads_it(view: Store, tmp_path: Path) -> None:
    to = Store(tmp_path / "made")
    materialise(view, to)
    labels = Counter(sample.label for sample in samples(to))
    assert labels == {**dict.fromkeys(range(6), 4), **dict.fromkeys(range(6, 9), 6)}
    assert Counter(s.label for s in samples(to, identities=2, images_each=3)) == {0: 3, 1: 3}
    plain, index = Feed([str(to.root)], 6, 0, 32), Feed([str(view.root)], 6, 0, 32)
    assert (len(plain), plain.classes) == (len(index), index.classes) == (42, 9)


def test_it_resumes_with_the_same_bytes(view: Store, tmp_path: Path) -> None:
    materialise(view, Store(tmp_path / "one"))
    to, middle = Store(tmp_path / "two"), "p000000020-000000040"
    materialise(view, to)
    to.delete("manifest.json")
    to.delete(shard_file(middle, COMMIT))
    to.write(shard_file(middle, TAR), b"torn")
    said: list[str] = []
    materialise(view, to, say=said.append)
    assert said == ["shard 2 of 3"]
    for path in sorted((tmp_path / "one").rglob("*")):
        if path.is_file():
            assert (
                path.read_bytes()
                == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
            )


def test_a_wrong_label_and_a_foreign_position_are_named(view: Store, tmp_path: Path) -> None:
    to, name = Store(tmp_path / "made"), "p000000040-000000042"
    materialise(view, to)
    path = tmp_path / "made" / shard_file(name, TAR)
    (first, parts), (_, more) = read_tar(path.read_bytes())
    sha256, size = write_tar(
        path, [(first, {**parts, "cls": b"77"}), ("000000050", {**more, "json": b"[]"})]
    )
    raw = json.loads(to.read(shard_file(name, COMMIT))) | {"sha256": sha256, "bytes": size}
    to.write(shard_file(name, COMMIT), json.dumps(raw).encode())
    kinds = {fault.kind for fault in verify(to)}
    assert kinds == {"wrong_label", "foreign_key", "stale_merge"}


def test_another_folder_is_asked_for(view: Store, tmp_path: Path) -> None:
    said = r"^--materialise .*: recipe\.json is of kind 'generate', as another command's output"
    with pytest.raises(InputError, match=said):
        materialise(view, Store(tmp_path / "a"))
    with pytest.raises(InputError, match="no composition there"):
        materialise(Store(tmp_path / "a"), Store(tmp_path / "made"))
