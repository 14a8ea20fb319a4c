"""Others' faces to a dataset like any other: verified, fed to a training, read by an evaluation."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import scrfd
from others import im2rec, insightface, write_tar
from PIL import Image

from factory.cluster import capacity, workers
from factory.datasets.embeddings import embeddings_file, read_embeddings
from factory.datasets.feed import Feed
from factory.datasets.manifest import load_manifest, load_shard_manifest
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.evaluation.dataset import embed_dataset, samples
from factory.prepare import run
from factory.prepare.run import Preparation, Wishes, check_claim, plan, prepare
from factory.recipe import FaultError, InputError
from factory.recognition.recognizers import load_recognizer

ROOT = Path(__file__).parents[2]
TEACHER = "package:weights/teacher/recognizer.safetensors"
PEOPLE = {"anna": 3, "bo": 1, "carl": 4, "dora": 2}
SIZE = 64


def jpeg(person: int, number: int, size: int = SIZE) -> bytes:
    small = np.random.default_rng((person, number)).integers(0, 256, (5, 5, 3), np.uint8)
    sink = io.BytesIO()
    image = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
    image.save(sink, "JPEG", quality=90)
    return sink.getvalue()


SAMPLES = [
    (person, jpeg(person, number))
    for person, count in enumerate(PEOPLE.values())
    for number in range(count)
]


def folders(path: Path) -> Path:
    for person, (name, count) in enumerate(PEOPLE.items()):
        (path / name).mkdir(parents=True)
        for number in range(count):
            (path / name / f"{number}.jpg").write_bytes(jpeg(person, number))
    return path


def tars(path: Path) -> Path:
    path.mkdir()
    files = [
        pair
        for number, (label, image) in enumerate(SAMPLES)
        for pair in ((f"{number:03d}.jpg", image), (f"{number:03d}.cls", b"%d" % label))
    ]
    write_tar(path / "a.tar", files[:6])
    write_tar(path / "b.tar", files[6:])
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {
    "folders": folders,
    "im2rec": lambda path: im2rec(path.with_suffix(".rec"), SAMPLES),
    "insightface": lambda path: insightface(path.with_suffix(".rec"), SAMPLES),
    "tars": tars,
}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the workers in this process; what Ray does with them has a test of its own."""

    def each(
        rows: Iterable[dict[str, Any]], actor: type, assignment: Any, *_: Any
    ) -> Iterator[Any]:
        worker = actor(assignment)
        for row in rows:
            column = np.empty(1, object)
            column[0] = row["task"]
            yield worker({"task": column})

    monkeypatch.setattr(workers, "each", each)
    monkeypatch.setattr(capacity, "cpus", lambda: 1)


def make(source: Path | str, out: Path | str, **wishes: Any) -> tuple[Preparation, Store]:
    given = plan(Wishes(**{"source": str(source), "licence": "CC-BY-4.0", **wishes}))
    store = Store(str(out))
    prepare(given, store, 1, lambda line: None)
    return given, store


def files(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "shards").iterdir())
        if path.suffix != ".json"  # manifests state seconds
    }


@pytest.mark.parametrize("kind", SOURCES)
def test_labels_and_bytes_of_every_kind_of_source(here, tmp_path: Path, kind: str) -> None:
    given, store = make(SOURCES[kind](tmp_path / "source"), tmp_path / "out", shard_images=4)
    found = [(sample.label, sample.encoded) for sample in samples(store)]
    assert found == SAMPLES
    assert verify(store) == []
    assert [shard.planned for shard in given.shards] == [4, 4, 2]
    sidecars = [sample.sidecar for sample in samples(store)]
    names = list(PEOPLE) if kind == "folders" else ["0", "1", "2", "3"]
    assert [sidecar["source_identity"] for sidecar in sidecars] == [names[n] for n, _ in SAMPLES]
    assert {sidecar["digitalSourceType"] for sidecar in sidecars} == {"digitalCapture"}
    manifest = load_manifest(store)
    assert (manifest.licence, manifest.totals.kept) == ("CC-BY-4.0", 10)
    assert manifest.digitalSourceType == "digitalCapture"
    assert manifest.recipe["system"] == "prepared"
    assert manifest.recipe["identities"] == {"count": 4, "images_each": 4}


def test_a_training_is_fed_and_tars_are_read_by_others(here, tmp_path: Path) -> None:
    make(folders(tmp_path / "source"), tmp_path / "out", shard_images=4)
    feed = Feed([str(tmp_path / "out")], 5, 1, SIZE)
    assert (feed.classes, len(feed)) == (4, 10)
    batch = next(feed.batches(0, 1))
    for key, label, image in zip(batch.keys, batch.labels, batch.images, strict=True):
        person, number = int(key[:7]), int(key[8:])
        assert label == person
        truth = np.asarray(Image.open(io.BytesIO(jpeg(person, number))))
        assert np.abs(image.astype(int) - truth).max() <= 2  # two decoders
    feed.close()
    read = {}
    for path in sorted((tmp_path / "out" / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                read[member.name] = content.read()
    assert [int(data) for name, data in read.items() if name.endswith(".cls")] == [
        label for label, _ in SAMPLES
    ]


def test_source_and_dataset_on_an_object_store(here, s3: str, tmp_path: Path) -> None:
    rec = im2rec(tmp_path / "train.rec", SAMPLES)
    address = s3 % f"source-{time.time_ns()}"
    for path in (rec, rec.with_suffix(".idx")):
        Store(address).put(path, path.name)
    url, mark, query = address.partition("?")
    out = s3 % f"out-{time.time_ns()}"
    _, store = make(f"{url}/train.rec{mark}{query}", out, recognizer=TEACHER)
    assert [(s.label, s.encoded) for s in samples(store)] == SAMPLES
    assert verify(store) == []
    assert plan(Wishes(address, "CC-BY-4.0")).listing == plan(Wishes(str(rec), "MIT")).listing


def test_rejects_are_counted_and_listed(here, tmp_path: Path) -> None:
    source = folders(tmp_path / "source")
    (source / "bo" / "broken.jpg").write_bytes(jpeg(1, 9)[:300])
    (source / "dora" / "large.jpg").write_bytes(jpeg(3, 9, 80))
    given, store = make(source, tmp_path / "out", size=SIZE, shard_images=4)
    manifest = load_manifest(store)
    assert manifest.totals.reasons == {"unreadable": 1, "wrong_size": 1}
    assert (manifest.totals.planned, manifest.totals.kept) == (12, 10)
    assert verify(store) == []
    rows = [
        row
        for shard in given.shards
        for row in pq.read_table(
            tmp_path / "out" / "shards" / f"{shard.name}.rejects.parquet"
        ).to_pylist()
    ]
    assert [(row["key"], row["reason"], row["source"]) for row in rows] == [
        ("0000001_0001", "unreadable", "bo/broken.jpg"),
        ("0000003_0002", "wrong_size", "dora/large.jpg"),
    ]
    missing = [load_shard_manifest(store, shard.name).missing for shard in given.shards]
    assert [key for keys in missing for key in keys] == [row["key"] for row in rows]


def test_images_of_another_size_are_scaled_when_asked_for(here, tmp_path: Path) -> None:
    source = folders(tmp_path / "source")
    (source / "dora" / "large.jpg").write_bytes(jpeg(3, 9, 80))
    with pytest.raises(InputError, match=r"has 64 x 64 pixels, dora/large\.jpg 80 x 80; accepted"):
        plan(Wishes(str(source), "MIT"))
    _, store = make(source, tmp_path / "out", size=SIZE, resize=True)
    assert load_manifest(store).totals.kept == 11
    assert [s.sidecar.get("resized_from") for s in samples(store)] == [None] * 10 + [80]


def test_a_stopped_run_is_completed_by_the_same_call(here, tmp_path: Path, monkeypatch) -> None:
    source = folders(tmp_path / "source")
    _, whole = make(source, tmp_path / "whole", shard_images=2)
    given, store = plan(Wishes(str(source), "CC-BY-4.0", shard_images=2)), Store(tmp_path / "out")
    inner, said = workers.each, []

    def stopping(rows: Iterable, *rest: Any) -> Iterator[Any]:
        yield from inner(islice(rows, 3), *rest)  # type: ignore[call-arg]
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "each", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(given, store, 1, lambda line: None)
    assert [fault.kind for fault in verify(store)] == ["missing_shard"] * 3
    part = tmp_path / "out" / "shards" / "x.tar.part-elsewhere.1.00"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").iterdir()}
    part.write_bytes(b"")
    monkeypatch.setattr(workers, "each", inner)
    prepare(given, store, 1, said.append)
    assert said[0] == "resuming: 3 of 6 shards are committed"
    assert files(tmp_path / "out").items() >= files(tmp_path / "whole").items()
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    part.unlink(missing_ok=True)
    assert verify(store) == verify(whole) == []
    next((tmp_path / "out" / "shards").glob("*.tar")).unlink()
    prepare(given, store, 1, lambda line: None)
    assert verify(store) == []


def test_shards_are_handed_over_as_they_are_asked_for(here, tmp_path: Path, monkeypatch) -> None:
    """The list of all images is in memory once, and never a second time as tasks."""
    given = plan(Wishes(str(folders(tmp_path / "source")), "MIT", shard_images=2))
    inner, task, made = workers.each, run._task, []

    def each(rows: Iterable, *rest: Any) -> Iterator[Any]:
        for number, row in enumerate(inner(rows, *rest), 1):  # type: ignore[call-arg]
            assert len(made) == number, "no task is made before the one ahead of it is done"
            yield row

    monkeypatch.setattr(workers, "each", each)
    monkeypatch.setattr(run, "_task", lambda *what: made.append(what) or task(*what))
    prepare(given, Store(tmp_path / "out"), 1, lambda line: None)
    assert len(made) == 6


def test_a_worker_with_other_libraries_makes_nothing(
    here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = plan(Wishes(str(folders(tmp_path / "source")), "CC-BY-4.0"))
    monkeypatch.setattr(run, "_versions", lambda align: {"simplejpeg": "0.1"})
    with pytest.raises(InputError, match=r"simplejpeg: .* on node .*, but 0\.1 where"):
        prepare(given, Store(tmp_path / "out"), 1, lambda line: None)


def test_a_folder_of_another_dataset_is_left_alone(here, tmp_path: Path) -> None:
    source = folders(tmp_path / "source")
    _, store = make(source, tmp_path / "out")
    check_claim(store, plan(Wishes(str(source), "CC-BY-4.0")).claim)
    moved = tmp_path / "moved"
    source.rename(moved)
    check_claim(store, plan(Wishes(str(moved), "CC-BY-4.0", name="source")).claim)
    (moved / "anna" / "new.jpg").write_bytes(jpeg(0, 5))
    for changed in (
        {},
        {"licence": "MIT"},
        {"shard_images": 3},
        {"synthetic": True},
        {"format": "png"},
    ):
        wishes = Wishes(
            **{"source": str(moved), "licence": "CC-BY-4.0", "name": "source"} | changed
        )
        with pytest.raises(InputError, match=r"dataset of another recipe: .* there, .* here"):
            check_claim(store, plan(wishes).claim)


def test_embeddings_are_computed_once_and_beside_the_shards(here, tmp_path: Path) -> None:
    source = folders(tmp_path / "source")
    _, store = make(source, tmp_path / "out", shard_images=4)
    before = files(tmp_path / "out")
    given, _ = make(source, tmp_path / "out", shard_images=4, recognizer=TEACHER)
    assert files(tmp_path / "out") == before and verify(store) == []
    recognizer = load_recognizer(TEACHER)
    truth = embed_dataset(store, recognizer)
    keys, found = [], []
    for shard in given.shards:
        sha256 = load_shard_manifest(store, shard.name).sha256
        names, rows = read_embeddings(store, shard.name, sha256, recognizer.sha256)
        keys += names
        found.append(rows)
        with pytest.raises(InputError, match="computed from a tar of sha256"):
            read_embeddings(store, shard.name, "0" * 64, recognizer.sha256)
    unit = np.concatenate(found)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    assert tuple(keys) == truth.keys
    assert unit == pytest.approx(truth.unit, abs=1e-4)
    store.write(embeddings_file(recognizer.sha256, "i0000009-0000010-s0000-0001"), b"")
    assert [fault.kind for fault in verify(store)] == ["foreign_file"]


def test_photographs_are_aligned_and_the_detector_is_named(here, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    for number, size in enumerate(((200, 150), (90, 300))):
        Image.new("RGB", size, (255, 255, 255)).save(source / "a" / f"{number}.png")
    Image.new("RGB", (50, 50)).save(source / "a" / "dark.png")
    detector = scrfd.write_detector(tmp_path / "det_10g.onnx")
    _, store = make(source, tmp_path / "out", align=True, detector=str(detector), size=32)
    manifest = load_manifest(store)
    assert manifest.totals.reasons == {"no_face": 1} and manifest.totals.kept == 2
    assert manifest.licence == "non-commercial-research"
    (model,) = manifest.models
    assert (model.name, model.licence) == ("detector", "non-commercial-research")
    assert model.sha256 == hashlib.sha256(detector.read_bytes()).hexdigest()
    assert all(sample.sidecar["face"]["faces"] == 1 for sample in samples(store))
    assert verify(store) == []
    stated = f"{detector}?licence=MIT"
    given = plan(Wishes(str(source), "CC0-1.0", align=True, detector=stated))
    assert given.recipe.weights["detector"].licence == "MIT" and given.recipe.image.size == 112


def test_a_finished_dataset_is_prepared_again_and_hands_down_what_it_states(
    here, tmp_path: Path
) -> None:
    photographs = tmp_path / "photographs"
    for name in ("a", "b", "c"):
        (photographs / name).mkdir(parents=True)
        Image.new("RGB", (200, 150), (255, 255, 255)).save(photographs / name / "0.png")
    Image.new("RGB", (50, 50)).save(photographs / "b" / "0.png")  # without a face: b is left out
    detector = scrfd.write_detector(tmp_path / "det_10g.onnx")
    wishes = {"align": True, "detector": str(detector), "size": 64}
    _, made = make(photographs, tmp_path / "made", synthetic=True, **wishes)
    _, store = make(tmp_path / "made", tmp_path / "again", size=32, resize=True, licence="CC0-1.0")
    manifest = load_manifest(store)
    assert manifest.licence == "non-commercial-research"
    assert manifest.models == load_manifest(made).models and manifest.models
    assert manifest.digitalSourceType == "trainedAlgorithmicMedia"
    found = [(s.label, s.sidecar["source_identity"], s.sidecar["source"]) for s in samples(store)]
    originals = [(s.label, s.key) for s in samples(made)]
    assert [label for label, _ in originals] == [0, 2]
    assert [(int(name), Path(key).stem) for _, name, key in found] == originals
    assert [label for label, _, _ in found] == [0, 1]
    assert verify(store) == []
    (photographs / "manifest.json").write_text("{}")  # somebody else's: no dataset of ours
    assert plan(Wishes(str(photographs), "CC0-1.0", size=64)).listing.kind == "folder"
    next((tmp_path / "made" / "shards").glob("*.tar")).unlink()
    with pytest.raises(InputError, match=r"shards/.*tar is not there; accepted is a dataset with"):
        plan(Wishes(str(tmp_path / "made"), "CC0-1.0"))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"align": True}, "--align: without --detector; accepted is --align --detector FILE"),
        ({"detector": "x.onnx"}, "--align: missing, but --detector is given"),
        ({"align": True, "detector": "absent.onnx"}, r"--detector absent\.onnx: no such file"),
        ({"shard_images": 0}, "--shard-images 0; accepted is 1 or more"),
        ({"size": 4}, r"image\.size: 4; input should be greater than or equal to 16"),
        ({"recognizer": TEACHER, "size": 32}, "takes 64 pixels, the dataset has 32; accepted is"),
        ({"recognizer": "keras:x"}, "unknown prefix 'keras'"),
    ],
)
def test_mistakes_are_one_error_before_anything_is_written(tmp_path, wishes, message) -> None:
    source = folders(tmp_path / "source")
    with pytest.raises(InputError, match=message):
        plan(Wishes(**{"source": str(source), "licence": "MIT"} | wishes))


def test_a_source_without_one_readable_image(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="none of 1 images looked at can be read"):
        plan(Wishes(str(tmp_path), "MIT"))


def command(source: Path, out: Path, folder: Path) -> list[str]:
    return [
        *(sys.executable, "jobs/prepare.py", str(source), "--out", str(out), "--licence", "MIT"),
        *("--shard-images", "5", "--actors", "1"),
        *("--tracking-uri", f"sqlite:///{folder}/mlflow.db"),
    ]


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_job_is_completed_by_the_same_command(here, tmp_path: Path) -> None:
    source = im2rec(tmp_path / "train.rec", [(n // 5, jpeg(n // 5, n % 5)) for n in range(160)])
    make(source, tmp_path / "whole", licence="MIT", shard_images=5)
    out = tmp_path / "killed"
    killed = subprocess.Popen(command(source, out, tmp_path), cwd=ROOT, start_new_session=True)
    while len(list(out.glob("shards/i*.json"))) < 2:
        assert killed.poll() is None, "the job ended before it could be killed"
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    done = len(list(out.glob("shards/i*.json")))
    assert 0 < done < 32, f"killed midway: {done} of 32 shards"
    again = subprocess.run(command(source, out, tmp_path), cwd=ROOT, capture_output=True, text=True)
    with suppress(ProcessLookupError):
        os.killpg(killed.pid, signal.SIGKILL)  # Ray's agents outlive a killed driver
    assert again.returncode == 0, again.stderr
    assert "160 images of 32 identities" in again.stdout
    assert "160 of 160 images in 32 shards, licence MIT; left out: none" in again.stdout
    assert files(out) == files(tmp_path / "whole")
    assert verify(Store(out)) == []
    claims = [
        json.loads((folder / "recipe.json").read_text()) for folder in (out, tmp_path / "whole")
    ]
    assert claims[0] == claims[1]


@pytest.mark.ray
def test_a_source_that_fails_on_the_way_is_one_error(
    ray_cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers are handed a window of shards at a time, and what fails is no exception of Ray's."""
    handed, hand = [], workers._handed
    monkeypatch.setattr(workers, "PORTION", 1)
    monkeypatch.setattr(workers, "WINDOW_ROWS", 2)

    def counting(left: Iterator[dict[str, Any]]) -> Any:
        taken: list[dict[str, Any]] = []
        data = hand(taken.append(row) or row for row in left)  # type: ignore[func-returns-value]
        if taken:
            handed.append(len(taken))
        return data

    monkeypatch.setattr(workers, "_handed", counting)
    rec = im2rec(tmp_path / "train.rec", SAMPLES)
    given = plan(Wishes(str(rec), "CC-BY-4.0", shard_images=4))
    whole = rec.read_bytes()
    rec.write_bytes(whole[: len(whole) - 100])
    store = Store(tmp_path / "out")
    with pytest.raises(FaultError, match=r"shard .*train\.rec: ends inside .*; the same command"):
        prepare(given, store, 1, lambda line: None)
    assert handed == [2, 1]
    rec.unlink()
    with pytest.raises(FaultError, match=r"shard .*: .*No such file"):
        prepare(given, store, 1, lambda line: None)
    rec.write_bytes(whole)
    assert prepare(given, store, 1, lambda line: None).totals.kept == len(SAMPLES)
    assert handed == [2, 1, 1, 1]
