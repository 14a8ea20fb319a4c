"""What holds for every format: equal labels, equal bytes, nothing overwritten, bounded memory."""

import hashlib
import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import patches
import pytest
from patches import Made, colours_kept, pixels
from PIL import Image

from factory.datasets.store import Store
from factory.export.about import About
from factory.export.export import FORMATS, Options, _Kind, export
from factory.export.spool import Spooled
from factory.recipe import FaultError, InputError

Run = Callable[..., tuple[Path, About]]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("format", FORMATS)
def test_two_runs_give_the_same_bytes(format: str, dataset: Made, tmp_path: Path) -> None:
    trees = []
    for place in ("a", "b"):
        folder = tmp_path / place / "acme_v1"
        export(dataset.store, Store(folder), Options(format, pairs=0))
        trees.append(tree(folder))
    assert trees[0] == trees[1]
    sums = dict(line.split("  ")[::-1] for line in trees[0].pop("SHA256SUMS").decode().splitlines())
    assert sums == {name: hashlib.sha256(data).hexdigest() for name, data in trees[0].items()}
    assert {"README.md", "LICENSE", "export.json"} <= sums.keys()


def test_every_format_has_the_same_labels(run: Run, dataset: Made) -> None:
    counts = {
        format: (about.images, about.classes)
        for format, (_, about) in ((format, run(format, f"set_{format}")) for format in FORMATS)
    }
    labels = {label for label, _ in dataset.pixels}
    assert set(counts.values()) == {(dataset.pixels.total(), len(labels))}
    assert labels == set(range(patches.IDENTITIES - 1))  # one identity has no image


@pytest.mark.parametrize("buckets", [1 << 10, 1 << 14])
@pytest.mark.parametrize("format", ["wds", "imagefolder"])
def test_scratch_files_change_nothing(
    format: str, buckets: int, dataset: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(dataset.store, Store(tmp_path / "a" / "acme_v1"), Options(format))
    monkeypatch.setattr("factory.export.export.BUCKET_BYTES", buckets)
    export(dataset.store, Store(tmp_path / "b" / "acme_v1"), Options(format))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_the_seed_is_of_the_order(run: Run) -> None:
    one, two = run("wds", "one")[0], run("arcface_torch", "two", seed=1)[0]
    three = run("arcface_torch", "three")[0]
    first, second = ((folder / "train.tsv").read_text().splitlines() for folder in (two, three))
    assert [line.split("\t")[2] for line in first] != [line.split("\t")[2] for line in second]
    paths = [[line.split("\t")[1] for line in lines] for lines in (first, second)]
    assert sorted(paths[0]) == sorted(paths[1])
    assert json.loads((one / "export.json").read_text())["seed"] == 0


def test_images_are_resized_only_when_asked(run: Run) -> None:
    folder, about = run("imagefolder", size=112)
    images = [pixels(path.read_bytes()) for path in sorted(folder.glob("*/*.jpg"))]
    assert len(images) == about.images and {image.shape for image in images} == {(112, 112, 3)}
    assert all(colours_kept(image) for image in images)
    text = (folder / "README.md").read_text()
    assert "112 x 112 pixels, resized from 32 px" in text
    folder, _ = run("arcface_torch", "small")
    assert "export with `--size 112`" in (folder / "README.md").read_text()


def test_png_stays_png(tmp_path: Path) -> None:
    made = patches.make(
        tmp_path / "data", tmp_path / "work", image={"size": patches.SIZE, "format": "png"}
    )
    folder = tmp_path / "acme_v1"
    export(made.store, Store(folder), Options("imagefolder"))
    found = [
        (int(path.parent.name), patches.digest(pixels(path.read_bytes())))
        for path in folder.glob("*/*.png")
    ]
    assert Counter(found) == made.pixels


@pytest.mark.parametrize("name", ["synthetic", "with.dot", "sp ace"])
def test_names_that_trainers_misread_are_refused(name: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--to"):
        run("wds", name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dialect": "insightface"}, "--dialect insightface"),
        ({"size": 8}, "--size 8"),
        ({"pairs": 30}, "--pairs 30"),
        ({"pairs": 20}, "would take 20 of the 8 identities"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, object], said: str, run: Run
) -> None:
    with pytest.raises(InputError, match=said):
        run("wds", **options)


def test_a_folder_of_something_else_is_left_alone(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "out" / "acme_v1"
    target.mkdir(parents=True)
    (target / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds thesis\.tex and no .*accepted is an empty folder"):
        run("wds")
    assert [path.name for path in target.iterdir()] == ["thesis.tex"]
    run("wds", "mine")
    with pytest.raises(InputError, match=r"holds the export of another recipe: seed is 0 there, 2"):
        run("wds", "mine", seed=2)


def test_an_export_cut_short_is_finished_by_the_same_command(run: Run) -> None:
    folder, _ = run("wds")
    whole = tree(folder)
    for name in ("SHA256SUMS", "README.md", "acme_v1-000003.tar"):
        (folder / name).unlink()
    (folder / "acme_v1-000004.tar").write_bytes(b"half")
    run("wds")
    assert tree(folder) == whole


def test_a_damaged_dataset_is_not_handed_on(run: Run, dataset: Made) -> None:
    root = dataset.store.root
    assert root is not None
    tar = sorted((root / "shards").glob("*.tar"))[1]
    data = bytearray(tar.read_bytes())
    data[data.index(b"\xff\xd8") + 600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(FaultError, match=f"{tar.name}.*jobs/verify.py"):
        run("wds")
    tar.unlink()
    with pytest.raises(FaultError, match=f"{tar.name}: missing"):
        run("wds", "other")
    assert not (root.parent / "out" / "other" / "SHA256SUMS").exists()


def test_images_of_two_sizes_need_a_size(dataset: Made) -> None:
    sink = io.BytesIO()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(sink, "PNG")
    first = next(iter(dataset.encoded))[1]
    strict, kind = _Kind(None), _Kind(24)
    strict.see(first, 0)
    with pytest.raises(InputError, match=r"label 7 is a 20 x 20 png.*32 x 32 jpg.*--size"):
        strict.see(sink.getvalue(), 7)
    wide = io.BytesIO()
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(wide, "PNG")
    with pytest.raises(InputError, match="label 8 is 24 x 20 pixels; accepted are square ones"):
        kind.see(wide.getvalue(), 8)
    for image in (sink.getvalue(), first):
        kind.see(image, 0)
    for image in (sink.getvalue(), first):
        fitted = kind.fit(Spooled(0, 0, image, b"")).encoded
        assert fitted.startswith(b"\xff\xd8\xff") and pixels(fitted).shape == (24, 24, 3)


def test_from_s3_to_s3(s3: str, tmp_path: Path) -> None:
    remote = patches.make(s3 % f"{tmp_path.name}/data", tmp_path / "work")
    local = patches.make(tmp_path / "data", tmp_path / "work")
    for format in ("cvlface", "edm"):
        target = Store(s3 % f"{tmp_path.name}/{format}/acme_v1")
        export(remote.store, target, Options(format))
        folder = tmp_path / format / "acme_v1"
        export(local.store, Store(folder), Options(format))
        files = {name: target.read(name) for name in target.list()}
        assert files == tree(folder)
        assert not any(b"a-secret" in data for data in files.values())


PEAKS = """
import sys, tracemalloc
from pathlib import Path
import patches
from factory.export import export as module
from factory.export.export import Options, export
from factory.datasets.store import Store

module.BUCKET_BYTES = 1 << 16
work, peaks = Path(sys.argv[1]), {}
for identities in (3, 40, 160):  # the first brings imports and caches, which are not counted
    made = patches.make(work / f"data{identities}", work / "work",
        identities={"count": identities, "images_each": 4, "source": "train"},
        shard={"identities": 10})
    for format in module.FORMATS:
        if identities > 3:
            tracemalloc.start()
        export(made.store, Store(work / f"{format}{identities}"), Options(format))
        peaks[format, identities] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
for format in module.FORMATS:
    print(format, peaks[format, 40], peaks[format, 160])
"""


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Four times the images take the same memory, in a process of their own."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, tmp_path],
        cwd=root,
        env={"PYTHONPATH": f"{root}:{root / 'tests'}", "PATH": ""},
        capture_output=True,
        text=True,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, *_ in lines] == list(FORMATS), done.stderr
    assert not [line for line in lines if int(line[2]) > 1.25 * int(line[1])]
