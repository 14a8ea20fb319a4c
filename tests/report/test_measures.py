"""The page of one dataset with everything that can be measured of it."""

import importlib.util
import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from factory.datasets.store import Store
from factory.evaluation.coverage import Predicted, measure_coverage
from factory.evaluation.dataset import Embedded, samples
from factory.evaluation.fairness import by_group
from factory.evaluation.leakage import leakage, show_pairs
from factory.evaluation.quality import Radius, measure
from factory.evaluation.variety import measure_variety
from factory.evaluation.verification import Distances, Verification
from factory.recipe import InputError
from factory.recognition.attributes import STUDIO, Predictor
from factory.report import collect, page
from factory.report.measures import sorted_measures

spec = importlib.util.spec_from_file_location("page_of", Path(__file__).with_name("test_page.py"))
assert spec and spec.loader
page_of = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page_of)


def embedded(people, each, seed, keys=None, noise=0.5):
    rng = np.random.default_rng(seed)
    unit = rng.normal(size=(people, 24))[np.repeat(range(people), each)]
    unit = unit + rng.normal(size=unit.shape) * noise
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    keys = keys or tuple(f"{n}" for n in range(len(unit)))
    return Embedded(unit, np.repeat(range(people), each), tuple(keys))


def measured(url):
    """Return what measure.py writes, of made-up embeddings of the dataset."""
    store = Store(url)
    keys = tuple(sample.key for sample in samples(store))
    made, real = embedded(10, 3, 0, keys), embedded(10, 3, 1, keys)
    radius = Radius(0.5, 1e-4, 100_000)
    found = measure(made, radius)
    leaks = leakage(made, real, embedded(10, 3, 2), radius)
    leaks["closest"] = show_pairs(leaks["closest"], samples(store), samples(store))
    network = {"name": "net", "size": 32, "sha256": "0" * 64, "licence": "MIT"}
    rng = np.random.default_rng(0)
    predictor = Predictor("shipped", 64, STUDIO, "0" * 64, "MIT",
                          dict.fromkeys(STUDIO, 1.0), {}, {}, lambda images: images)  # fmt: skip
    both = [
        Predicted({name: rng.uniform(a.low, a.high, 30) ** power for name, a in STUDIO.items()})
        for power in (1, 1)
    ]
    return {
        "recognizer": {"name": "judge"},
        **found,
        "leakage": leaks,
        "variety": {
            "real": "x", "network": network,
            **measure_variety(made.unit, made.labels, real.unit, real.labels, k=2),
        },
        "coverage": measure_coverage(both[0], predictor, both[1], "studio faces"),
    }  # fmt: skip


def evaluated(seed):
    rng = np.random.default_rng(seed)
    same = rng.random(200) < 0.5
    found = Distances.of(
        "toy", np.clip(np.where(same, 0.9, 1.5) + rng.normal(0, 0.3, 200), 0, 4), same
    )
    groups = by_group(found, rng.choice(["old", "young"], 200).tolist()).as_dict()
    result = {**asdict(Verification.of(found)), "fairness": groups}
    return {
        "recognizer": {"name": "desk"},
        "benchmarks": {"toy": result},
        "average": result["accuracy"],
    }


HEADINGS = (
    *("Accuracy", "By group", "Further protocols", "Faces", "Separation and spread"),
    *("Beside real images", "Leakage", "Coverage", "Screens", "Provenance"),
)
IJB = {
    "recognizer": {"name": "desk"},
    "protocol": "IJBC 1:1",
    "results": {"N1D1F1": {"tar": {"1e-4": None, "1e-3": 0.5}}},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A finished dataset with measures inside, and further ones beside it."""
    folder = tmp_path_factory.mktemp("measured")
    url = page_of.dataset(folder / "d")
    inside = folder / "d" / "measures"
    inside.mkdir()
    (inside / "judge.json").write_text(json.dumps(measured(url)))
    for seed in range(3):
        (folder / f"seed{seed}.json").write_text(json.dumps(evaluated(seed)))
    (folder / "ijb.json").write_text(json.dumps(IJB))
    return folder


def given(dataset):
    return [str(dataset / name) for name in ("seed0.json", "seed1.json", "seed2.json", "ijb.json")]


def test_every_figure_that_applies_is_on_the_page(dataset):
    html = page(collect(str(dataset / "d"), given(dataset)))
    reader, text = page_of.read(html)
    for heading in HEADINGS:
        assert f"<h2>{heading} <small>" in html, heading
    assert "Membership: AUC 0." in text
    assert "not defined" in text  # matched diversity, without the same identities
    assert "unresolved TAR at FAR 1e-4" in text and "50.00 TAR at FAR 1e-3" in text
    assert "worst group" in text
    assert "light azimuth" in text and "studio faces" in text
    assert "published: trained on" in text and "CemiFace" in text
    assert len([i for i in reader.images if i["alt"].startswith("synthetic ")]) == 10
    assert html.count("<svg") == 1 + 1 + 1 + len(STUDIO)  # two are unresolved, and say so:
    assert "The 30 genuine pairs resolve no FNMR below 33.3 %" in text
    assert "unresolved There are only 10 identities. This chart needs 30 or more." in text
    assert "IJBC 1:1, desk" in text
    assert all(link.startswith(("data:", "#")) for link in reader.links)  # it opens offline
    assert len(reader.ids) == len(set(reader.ids))


def test_enough_pairs_are_charted():
    made, real = embedded(40, 4, 0, noise=1.2), embedded(40, 4, 1)
    radius = Radius(0.5, 1e-4, 100_000)
    found = {**measure(made, radius), "leakage": leakage(made, real, embedded(40, 4, 2), radius)}
    html = page({"quality": {"d": {"judge": found}}})
    assert html.count("<svg") == 1 + 1 + 2  # histogram, DET, nearest of identities and images
    assert "unresolved</strong>" not in html
    assert "95 % interval" not in page_of.read(html)[1].split("Membership")[0]  # 240 pairs
    assert "A line is dotted where fewer than 10 genuine pairs bear it." in html


def test_a_name_in_a_chart_is_text():
    name = page_of.PAYLOAD + "\\1 $\\frac{$"
    found = measure(embedded(40, 4, 0, noise=1.2), Radius(0.5, 1e-4, 100_000))
    reader, text = page_of.read(page({"quality": {name: {name: found, "other": found}}}))
    assert reader.images == [] and not {"script", "img"} & reader.tags
    assert not [attribute for attribute in reader.attributes if attribute.startswith("on")]
    assert text.count(name) >= 4  # the first screen, the table, a chart's heading and a legend


def test_no_word_of_a_table_is_cut(dataset):
    html = page(collect(str(dataset / "d")))
    assert "text-overflow" not in html and "table-layout" not in html
    assert "word-break: break-all" not in html
    table = html[html.index('<table class="wrapped">') :]  # as wide as its longest word
    table = table[: table.index("</table>")]
    for name, attribute in STUDIO.items():
        words = str(escape(attribute.unit))
        assert f">{name.replace('_', ' ')}<br><small>{words}</small></th>" in table


def test_a_picture_of_a_measure_stands_in_the_page_or_is_left_out(dataset):
    found = collect(str(dataset / "d"))
    closest = found["quality"]["blobs"]["judge"]["leakage"]["closest"]
    closest[0]["uri"] = "https://example.org/a.jpg"
    reader, _ = page_of.read(page(found))
    assert len([i for i in reader.images if i["alt"].startswith("synthetic ")]) == 9
    assert all(link.startswith(("data:", "#")) for link in reader.links)


def test_trainings_of_one_recipe_are_seeds_of_one_row(dataset):
    found = collect(str(dataset / "d"), given(dataset))
    averages = [evaluated(seed)["average"] for seed in range(3)]
    assert found["benchmarks"]["desk"]["average"] == averages
    by_group = {
        name: evaluated(seed)["benchmarks"]["toy"]["fairness"]
        for seed, name in enumerate(("desk, toy", "desk, toy (seed1)", "desk, toy (seed2)"))
    }
    assert found["fairness"] == by_group
    text = page_of.read(page(found))[1]
    assert f"{100 * np.mean(averages):.2f} ± {100 * np.std(averages, ddof=1):.2f}" in text


def of(weights, average=None, **accuracies):
    """Return an evaluation of the recognizer desk, with the sha256 of its weights."""
    accuracies = {name: {"accuracy": value} for name, value in accuracies.items()}
    values = [result["accuracy"] for result in accuracies.values()]
    average = sum(values) / len(values) if average is None else average
    who = {"name": "desk", "sha256": weights * 64}
    return {"recognizer": who, "benchmarks": accuracies, "average": average}


def test_files_of_one_recognizer_are_one_training():
    seen = [of("a", lfw=0.9), of("a", hard=0.6, harder=0.3), of("a", lfw=0.9)]
    files = {f"{n}.json": one for n, one in enumerate(seen)}
    row = sorted_measures("d", files)["benchmarks"]["desk"]
    assert row == {"average": [pytest.approx(0.6)], "lfw": [0.9], "hard": [0.6], "harder": [0.3]}
    twice = sorted_measures("d", {"measures/x.json": seen[0], "x.json": seen[0]})
    assert twice["benchmarks"]["desk"] == {"average": [0.9], "lfw": [0.9]}
    seeds = sorted_measures("d", {**files, "b.json": of("b", lfw=0.8, hard=0.5, harder=0.2)})
    assert seeds["benchmarks"]["desk"]["average"] == [pytest.approx(0.6), pytest.approx(0.5)]
    assert seeds["benchmarks"]["desk"]["lfw"] == [0.9, 0.8]


def test_groups_of_one_evaluation_given_twice_are_shown_once():
    one, other = evaluated(0), evaluated(0)
    one["recognizer"] = other["recognizer"] = {"name": "desk", "sha256": "a" * 64}
    assert list(sorted_measures("d", {"a": one, "b": other})["fairness"]) == ["desk, toy"]
    other["benchmarks"]["toy"]["fairness"] = {}  # by other groups
    assert list(sorted_measures("d", {"a": one, "b": other})["fairness"])[1:] == ["desk, toy (b)"]


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (of("a", lfw=0.9), of("b", hard=0.6),
         "a.json and b.json: two trainings of recognizer desk on unlike benchmarks, (lfw) and "
         "(hard); accepted are the same ones of each"),
        (of("a", lfw=0.9), of("b", lfw=0.6, hard=0.5), "(lfw) and (hard, lfw)"),
        (of("a", lfw=0.9), of("a", lfw=0.6),
         "a.json and b.json: recognizer desk has accuracy 0.9 and 0.6 on benchmark lfw; accepted"),
    ],
)  # fmt: skip
def test_what_cannot_be_averaged_is_one_error(one, other, words):
    with pytest.raises(InputError) as caught:
        sorted_measures("d", {"a.json": one, "b.json": other})
    assert words in str(caught.value)


def test_files_of_one_name_in_several_folders_stand_side_by_side():
    files = {f"{folder}/x.json": evaluated(seed) for seed, folder in enumerate("abc")}
    found = sorted_measures("d", files)["fairness"]
    assert list(found) == ["desk, toy", "desk, toy (x)", "desk, toy (x, 2)"]


def test_what_is_not_measured_is_not_on_the_page(tmp_path):
    html = page(collect(page_of.dataset(tmp_path / "d")))
    for heading in ("Leakage", "Coverage", "By group", "Beside real images", "Accuracy"):
        assert f"<h2>{heading} " not in html
    assert "Leakage not measured" in page_of.read(html)[1]  # the first screen asks after it


def test_other_files_are_refused(tmp_path):
    url = page_of.dataset(tmp_path / "d")
    bad = tmp_path / "bad.json"
    for text, message in (("{", "not JSON"), ("[]", "accepted is"), ('{"a": 1}', "accepted is")):
        bad.write_text(text)
        with pytest.raises(InputError, match=message):
            collect(url, [str(bad)])
    good = measure(embedded(10, 3, 0), Radius(0.5, 1e-4, 100_000))
    for broken, field in (
        ({**good, "eer": "<b>"}, "eer is no number"),
        ({**good, "spread": None}, "spread is no number"),
        ({**good, "histograms": 5}, "histograms.genuine is no list"),
        ({**good, "histograms": {"genuine": [1], "impostor": ["a"]}}, "histograms.impostor"),
        ({"benchmarks": {"toy": 5}, "average": 0.5}, "benchmarks.toy.accuracy is no number"),
        ({"benchmarks": [], "average": 0.5}, "benchmarks is no JSON object"),
        ({"benchmarks": {}}, "average is no number"),
    ):
        bad.write_text(json.dumps(broken))
        with pytest.raises(InputError, match=field):
            collect(url, [str(bad)])
    with pytest.raises(InputError, match="no such file"):
        collect(url, ["none.json"])
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="is a run"):
        collect(str(tmp_path), [str(bad)])


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 420])
def test_a_browser_shows_it(dataset, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "this test needs chromium"
    report, shot = tmp_path / "report.html", tmp_path / "shot.png"
    report.write_text(page(collect(str(dataset / "d"), given(dataset))))
    done = subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},5000",
         "--virtual-time-budget=4000", f"--screenshot={shot}", report.as_uri()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    image = np.asarray(Image.open(shot).convert("L"), dtype=float)
    assert image.shape == (5000, width)
    inked = (np.abs(image - np.median(image)) > 30).mean(axis=1)
    assert (inked > 0.005).mean() > 0.2  # text and charts all the way down


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 1000, 390])
def test_nothing_is_wider_than_the_window(dataset, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "this test needs chromium"
    inner = escape(page(collect(str(dataset / "d"), given(dataset))))
    around = tmp_path / "around.html"
    around.write_text(
        f'<iframe id="f" width="{width}" height="800" style="border: 0" srcdoc="{inner}"></iframe>'
        '<p id="said"></p><script>window.onload = () => { const page = f.contentDocument;'
        "said.textContent = 'measured ' + (page.documentElement.scrollWidth"
        " - page.documentElement.clientWidth) + ' ' +"
        "[...page.querySelectorAll('.faces img')].map(i => i.clientWidth / i.naturalWidth)"
        ".filter((s, n, all) => all.indexOf(s) == n) + ' ' +"
        "[...page.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth + 1)"
        ".length; }</script>"
    )
    done = subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,900",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--dump-dom",
         around.as_uri()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    scale = 2 if width > 1180 else 1
    assert f"measured 0 {scale} 0<" in done.stdout, done.stdout[-300:] + done.stderr
