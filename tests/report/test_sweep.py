"""The page of a made-up sweep: every trial in its table, charts where there is a thing to show."""

import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from sweeps import AXES, write_sweep

from factory.datasets.store import Store
from factory.report.sweep import sweep_page


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
    write_sweep(store, count)
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
        assert "p = 0.085" in text  # means 71, 72, 73, 76, two seeds each: F(3, 4) = 4.67
        assert "0 front" in text and "3 front" not in text


def test_a_page_counts_what_failed_and_what_is_left(tmp_path):
    store = Store(tmp_path)
    point = {"rate": 0.1, "size": [4, 2], "kind": "a"}
    lost = {"number": 6, "point": point, "state": "failed", "why": "no <weights>"}
    write_sweep(store, 6, samples=9, failed=[lost])
    _, text = read(store)
    assert "Trials 9 4 finished, 1 stopped, 1 refused, 1 failed, 2 not done" in text
    assert "failed: no <weights>" in text
    write_sweep(Store(tmp_path / "whole"), 2, samples=2, failed=[])
    assert "Trials 2 all finished" in read(Store(tmp_path / "whole"))[1]
