"""The page of a made-up sweep: every trial in its table, charts where there is a thing to show."""

import json
from html.parser import HTMLParser

import pytest

from factory.report.sweep import sweep_page
from factory.search import Choice, Real, Space
from factory.search.results import SWEEP, best, front
from factory.shards.store import Store

AXES = {"rate": Real(0.01, 1.0, log=True), "size": Choice([4, 2], [8, 1]), "kind": Choice("a", "b")}
OBJECTIVES = ("accuracy", "generation_seconds")


def write(store, count):
    space = Space("rates", "Which rate?", AXES, dict, objectives=OBJECTIVES, seeds=(1, 2))
    results = []
    for number in range(count):
        accuracies = [0.7 + 0.01 * number, 0.72 + 0.01 * number]
        result = {
            "number": number,
            "point": json.loads(json.dumps(space.draw(number))),
            "state": "finished",
            "accuracy": sum(accuracies) / 2,
            "accuracies": accuracies,
            "images": 10,
            "identities": 5,
            "generation_seconds": 10.0 * (number + 1),
            "curve": [{"iteration": n, "accuracy": 0.5 + 0.1 * n} for n in (1, 2)],
            "seconds": {"train": 2.0, "all": 3.0},
            "wait": 0.5,
            "taken": {"pool": {"mean_cosine": 0.875}},
        }
        if number == 3:
            result |= {"state": "stopped", "accuracies": []}
        if number == 4:
            result = {name: result[name] for name in ("number", "point", "curve")}
            result |= {"state": "refused", "why": "7 <qualify>", "curve": []}
        results.append(result)
        store.write(f"trials/{number:04d}/result.json", json.dumps(result).encode())
    finished = [result for result in results if result["state"] == "finished"]
    ended = {"best": best(finished, OBJECTIVES), "front": front(finished, OBJECTIVES)}
    store.write(SWEEP, json.dumps({"space": space.described(), **ended, "overhead": 1.04}).encode())


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text, self.charts, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        given = dict(attrs)
        self.charts += [given["aria-label"]] if "aria-label" in given else []
        self.links += [given[name] for name in ("src", "href") if name in given]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(store):
    reader = Reader()
    reader.feed(sweep_page(store))
    assert reader.open == [] and all(link.startswith(("data:", "#")) for link in reader.links)
    return reader.charts, " ".join(" ".join(reader.text).split())


@pytest.mark.parametrize("count", [0, 1, 6])
def test_a_page_shows_what_there_is(tmp_path, count):
    store = Store(tmp_path)
    write(store, count)
    charts, text = read(store)
    assert "Which rate?" in text and "Overhead 1.04" in text
    if not count:
        assert charts == []
        return
    responses = {f"accuracy over {name}" for name in (*AXES, "seconds of generation")}
    assert responses <= set(charts) and any("parallel" in chart for chart in charts)
    assert f"{count - 1} best" in text and f"{100 * (0.71 + 0.01 * (count - 1)):.2f}" in text
    if count == 6:
        assert "stopped at 74.00" in text and "refused: 7 <qualify>" in text
        assert "1 stopped, 1 refused" in text and "+- 1.41" in text
        assert "0 front" in text and "3 front" not in text
