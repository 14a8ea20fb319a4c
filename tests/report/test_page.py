"""The report of a made-up run, read back with an HTML parser."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from faces import make_dataset

from factory.datasets.claim import CLAIM, write_claim
from factory.datasets.manifest import merge
from factory.datasets.store import Store
from factory.evaluation.dataset import Embedded
from factory.evaluation.gap import gap
from factory.evaluation.quality import Radius, measure
from factory.plan import shards
from factory.recipe import InputError, parse
from factory.report import collect, page, write_page
from factory.report.page import duration

VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Collects images, text and links, and checks that every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.links, self.text, self.ids = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attrs)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        self.links += [v for k, v in attrs.items() if k in ("src", "href") and v]

    def handle_startendtag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href") and v]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader, " ".join(" ".join(reader.text).split())


def dataset(folder, world=0):
    url = make_dataset(folder, identities=10, images_each=3, world=world)
    recipe = parse(
        {
            "kind": "generate",
            "name": "blobs",
            "seed": 5,
            "system": "studio",
            "licence": "CC0-1.0",
            "image": {"size": 32},
            "identities": {"count": 10, "images_each": 3, "source": "train"},
            "shard": {"identities": 8},
            "workers": {"max": 1},
            "cost": {"seconds_per_image": [0.01, 0.02], "source": "a test"},
            "weights": {"teacher": {"location": "s3://b/t", "licence": "MIT"}},
        }
    )
    store = Store(url)
    write_claim(store, recipe, "0" * 16, ())
    # Claims of others may have keys in them, and any name.
    keyed = store.read(CLAIM).replace(b"s3://b/t", b"s3://key:secret@b/t")
    keyed = keyed.replace(b'"blobs"', b'"blobs <b>"')
    store.write(CLAIM, keyed)
    merge(store, shards(recipe))
    return url


def results():
    rows = {
        "synthetic": {"seeds": [1, 2, 3], "frontal": [0.8, 0.81, 0.82], "age_gap": [0.7] * 3},
        "real": {"seeds": [1, 2, 3], "frontal": [0.9, 0.91, 0.92], "age_gap": [0.8] * 3},
    }
    for row in rows.values():
        row["average"] = [(a + b) / 2 for a, b in zip(row["frontal"], row["age_gap"], strict=True)]
    unit = np.repeat(np.eye(3), 2, axis=0)
    judged = measure(Embedded(unit, np.repeat(range(3), 2), ("",) * 6), Radius(0.4, 1e-4, 9))
    return {
        "title": "A <script> run",
        "recipe": {"name": "demo"},
        "benchmarks": rows,
        "images": {"synthetic": 3200, "real": 3184},
        "gap": gap(rows["real"]["average"], rows["synthetic"]["average"]).as_dict(),
        "quality": {"synthetic": {"judge": judged}, "real": {"judge": judged}},
        "timings": {"generate": 61.0, "train": 3.0},
        "provenance": [{"name": "net", "location": "w", "sha256": "ab" * 32, "licence": "MIT"}],
    }


def test_a_run_is_one_file_with_every_section(tmp_path):
    for world, name in enumerate(("synthetic", "real")):
        dataset(tmp_path / name, world)
    (tmp_path / "results.json").write_text(json.dumps(results()))
    path = write_page(tmp_path / "out" / "report.html", page(collect(str(tmp_path))))
    reader, text = read(path.read_text())
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert len(reader.images) == 20
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in reader.images)
    assert {image["alt"] for image in reader.images} >= {"Real faces, identity 9, 3 images"}
    assert all(link.startswith(("data:", "#")) for link in reader.links)  # it opens offline
    assert len(reader.ids) == len(set(reader.ids))  # of one chart beside another
    assert "A <script> run" in text
    assert "81.00 ± 1.00" in text  # 80, 81, 82: the sample standard deviation is 1
    assert "10.00 points, error 0.41" in text  # sd 0.5 on both averages: 0.5 * sqrt(2 / 3)
    assert "3,200" in text and "3,184" in text
    assert "10.00 ± 0.41" in text and "gap, points" in text  # the row's own column
    assert "it is resolved" in text
    assert "abs = real - syn" in text
    assert "rel = (real - syn) / syn" in text
    assert "1 min 04 s" in text
    assert "abababababababab" in text


def test_a_dataset_alone_has_what_applies(tmp_path):
    found = collect(dataset(tmp_path / "d"))
    reader, text = read(page(found))
    assert len(reader.images) == 10
    assert "Dataset blobs <b>" in text
    assert "images made 30" in text
    assert "Accuracy" not in text
    assert "secret" not in text
    assert "s3://b/t" in text and "key:" not in text
    assert page(found) == page(found)


def test_one_seed_and_no_gap_and_shuffled_rows(tmp_path):
    rows = {"synthetic": {"seeds": [1], "frontal": [0.5]}, "real": {"frontal": [0.9]}}
    found = gap([0.9], [0.5]).as_dict()
    _, text = read(page({"benchmarks": rows, "gap": found}))
    assert "40.00" in text
    assert "One seed: the spread over trainings is unknown" in text
    assert "90.00" in text
    _, text = read(page({"benchmarks": {"synthetic": rows["synthetic"]}}))
    assert "gap, points" not in text


def test_nothing_to_report_on_is_said(tmp_path):
    with pytest.raises(InputError, match=r"neither results\.json nor manifest\.json"):
        collect(str(tmp_path))
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        collect(str(tmp_path))


def test_duration():
    assert [duration(s) for s in (0.04, 59.94, 60, 3599, 3661)] == [
        *("0.0 s", "59.9 s", "1 min 00 s", "59 min 59 s", "1 h 01 min"),
    ]
