"""What a sweep decides without Ray: what to try next, whom to stop, what its folder means."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from faces import make_pool
from lasting import bins
from ray import tune

from factory import tracking
from factory.datasets.provenance import sha256_file
from factory.datasets.store import Store
from factory.recipe import Backbone, FaultError, InputError, KnownFaces
from factory.recognition.backbones import make_backbone
from factory.recognition.faces import save_faces
from factory.recognition.recognizers import save_recognizer
from factory.search import Asha, Choice, Pool, Real, Space
from factory.search.book import Book, placeless
from factory.search.following import Following
from factory.search.pools import Pools
from factory.search.results import SWEEP
from factory.search.suggestions import Suggestions, scheduler, tpe
from factory.search.sweep import check_ended, check_inputs, finish, fitting, run, sweep
from factory.search.tracked import Tracked

ROOT = Path(__file__).parents[2]


def space(**changes):
    axes = {"x": Real(0.0, 1.0), "kind": Choice("good", "bad"), "band": Choice([0, 1], [1, 2])}
    given = {"name": "s", "question": "?", "axes": axes, "composition": dict, "search": "tpe"}
    return Space(**(given | changes))


def end(book, number, point, accuracy, state="finished", curve=()):
    rows = [{"iteration": n + 1, "accuracy": value} for n, value in enumerate(curve)]
    result = {"number": number, "point": point, "state": state, "accuracy": accuracy}
    book.end(result | {"curve": rows, "images": 1, "generation_seconds": number})


def any_point(point):
    return True


def goodness(point):
    return 0.9 - (point["x"] - 0.2) ** 2 - 0.2 * (point["kind"] == "bad")


@pytest.mark.parametrize("objectives", [("accuracy",), ("accuracy", "generation_seconds")])
def test_tpe_goes_where_results_were_good(tmp_path, objectives):
    searched = space(objectives=objectives)
    book = Book(Store(tmp_path), searched)
    book.claim("", 3, {})
    for number in range(16):
        point = json.loads(json.dumps(searched.draw(number)))
        end(book, number, point, goodness(point))
    end(book, 16, searched.draw(16), 0.1, state="stopped", curve=[0.1])
    end(book, 17, searched.draw(17), 0.0, state="refused")
    points = [tpe(searched, book, number, any_point) for number in range(18, 34)]
    assert points[0] == tpe(searched, Book(Store(tmp_path), searched), 18, any_point)
    assert all(0 <= point["x"] <= 1 and point["band"] in ([0, 1], [1, 2]) for point in points)
    if len(objectives) == 1:
        before = [goodness(searched.draw(number)) for number in range(16)]
        assert sum(map(goodness, points)) / 16 > sum(before) / 16 + 0.05


def test_of_several_objectives_a_stopped_trial_counts_by_its_last_accuracy(tmp_path):
    searched, drawn = space(objectives=("accuracy", "images")), {}
    for state in ("refused", "stopped", "finished"):
        book = Book(Store(tmp_path / state), searched)
        for number in range(6):
            end(book, number, {"x": number / 16, "kind": "good", "band": [0, 1]}, 0.5)
        for number in range(6, 12):
            end(book, number, {"x": number / 12, "kind": "bad", "band": [1, 2]}, 0.1, state)
        drawn[state] = [tpe(searched, book, number, any_point) for number in range(12, 20)]
    assert drawn["stopped"] == drawn["finished"] != drawn["refused"]


def test_tpe_draws_no_point_that_was_refused(tmp_path):
    searched = space(axes={"kind": Choice("good", "bad"), "band": Choice([0, 1], [1, 2])})
    book = Book(Store(tmp_path), searched)
    for number in range(6):
        end(book, number, {"kind": "good", "band": [0, 1]}, 0.9)
    end(book, 6, {"kind": "good", "band": [0, 1]}, 0.0, state="refused")
    end(book, 7, {"kind": "good", "band": [1, 2]}, 0.0, state="refused")
    drawn = [tpe(searched, book, number, any_point) for number in range(8, 20)]
    assert {point["kind"] for point in drawn} == {"bad"}


def test_tpe_draws_no_point_that_makes_no_recipe(tmp_path):
    def composition(point):
        return {"images": 40, "pools": {"faces": {"url": "faces", "weight": point["share"]}}}

    axes = {"share": Choice(0.0, 1.0)}
    searched = space(
        axes=axes, composition=composition, fr=f"{ROOT}/jobs/recipes/desk/fr/desk.yaml"
    )
    book = Book(Store(tmp_path), searched)
    book.claim("", 12, {})
    for number in range(6):  # the point without a recipe looks best
        end(book, number, {"share": float(number % 2)}, 0.9 - 0.8 * (number % 2))
    suggestions = Suggestions(searched, book, list(range(6, 12)), "pools")
    for number in range(6, 12):
        assert suggestions.suggest("") == {"number": number}
        assert book.begun(number)["point"] == {"share": 1.0}


def test_tpe_draws_each_point_once_as_long_as_there_is_another(tmp_path):
    axes = {"kind": Choice("good", "bad"), "band": Choice([0, 1], [1, 2], [2, 3])}
    searched = space(axes=axes)
    book, drawn = Book(Store(tmp_path), searched), []
    for number in range(8):
        drawn.append(json.dumps(point := tpe(searched, book, number, any_point)))
        book.note(number, {"number": number, "point": point})
        end(book, number, json.loads(json.dumps(point)), 0.9 if point["kind"] == "good" else 0.1)
    assert len(set(drawn[:6])) == len(set(drawn)) == 6


def test_halving_of_a_resumed_sweep_knows_earlier_reports(tmp_path):
    halved = space(asha=Asha(grace=1, factor=2), reports=4)
    book = Book(Store(tmp_path), halved)
    for number, accuracy in enumerate((0.5, 0.6, 0.7, 0.8)):
        end(book, number, {}, accuracy, curve=[accuracy] * 4)

    def says(accuracy, report):
        made = scheduler(halved, book)
        trial = SimpleNamespace(trial_id="now")
        made.on_trial_add(None, trial)
        return made.on_trial_result(
            None, trial, {"training_iteration": report, "accuracy": accuracy}
        )

    # The median of what was reported at rungs 1, 2 and 4 is 0.65.
    assert [says(0.6, report) for report in (1, 2, 4)] == ["STOP"] * 3
    assert [says(0.66, report) for report in (1, 2, 4)] == ["CONTINUE"] * 3
    assert type(scheduler(space(), book)).__name__ == "FIFOScheduler"


def test_a_folder_keeps_its_search(tmp_path):
    store = Store(tmp_path)
    Book(store, space()).claim("run-1", 3, {})
    again = Book(store, space())
    assert again.run_id == "run-1" and again.results() == {}
    with pytest.raises(InputError, match=r"search of another recipe: seeds is \[1\] there, \[1, 2"):
        Book(store, space(seeds=(1, 2)))
    again.note(3, {"number": 3})
    again.note(3, {"asked": 5.0})
    assert again.begun(3) == {"number": 3, "asked": 5.0} and again.begun(4) is None
    store.delete(SWEEP)
    with pytest.raises(InputError, match=r"holds space\.py and no sweep\.json"):
        Book(store, space())


def test_a_sweep_that_came_to_nothing_says_why():
    refused, finished = {"state": "refused", "why": "2 qualify"}, {"state": "finished"}
    check_ended({0: refused, 1: finished}, {}, 2)
    with pytest.raises(FaultError, match=r"none of 2 trials .* the last, 1, was refused: 2 q"):
        check_ended({0: refused, 1: refused}, {}, 2)
    with pytest.raises(FaultError, match="1 of 2 trials failed, the first, 1: no weights"):
        check_ended({0: finished}, {1: "no weights"}, 2)


def test_a_folder_keeps_what_its_trials_were_made_of(tmp_path):
    def made(fields=None, folder=ROOT, **sets):
        recipe = tmp_path / "plain.yaml"
        recipe.write_text((ROOT / "jobs/recipes/desk/generate/studio_plain.yaml").read_text())
        views = {"pools": {"studio": Pool(str(recipe), *sets.get("pool", ())).view()}}
        fr = tmp_path / "fr.yaml"
        trained = yaml.safe_load((ROOT / "jobs/recipes/desk/fr/desk.yaml").read_text())
        fr.write_text(yaml.safe_dump(trained | sets.get("fr", {})))
        return Space("s", "?", {"x": Choice(1)}, lambda p: views | (fields or {}), fr=str(fr),
                     source=str(sets))  # fmt: skip

    def again(space, pools="runs/pools"):
        return sweep(space, str(tmp_path / "out"), 1, pools, 0, "", print)

    store = Store(tmp_path / "out")
    book = Book(store, made())
    book.claim("", 3, {})
    book.begin(made().trial(0, {"x": 1}, "/other/checkout/pools"))
    book.note(0, {"asked": 1.0, "run_id": "r"})
    book.check("runs/pools")
    Book(store, made(pool=("workers.max=3",))).check("s3://elsewhere/pools")  # changes no result
    Book(store, made(fr={"checkpoint": {"every_steps": 7}})).check("")
    for change, field in (
        ({"fields": {"images": 40}}, "compose.images None, .* 40"),
        ({"pool": ("seed=77",)}, r"pools.studio.recipe.seed \d+, .* 77"),
        ({"fr": {"augment": []}}, r"fr.augment \['flip.*\[\]"),
    ):
        with pytest.raises(InputError, match=f"trial 0 has begun with {field}"):
            again(made(**change))
    assert store.read("space.py") == b"{}"


def test_trials_at_a_time_follow_what_the_cluster_may_grow_to(monkeypatch):
    gpu = ("fr.engine.num_cpus=2", "fr.engine.num_gpus=0.5")
    fr = str(ROOT / "jobs/recipes/desk/fr/desk.yaml")
    view = {"pools": {"a": {"url": "there"}}}

    def most(said, sets):
        monkeypatch.setenv("FACTORY_GROWS_TO", said)
        searched = Space("s", "?", {"x": Choice(1)}, lambda point: view, fr, sets)
        return fitting([searched.trial(0, {"x": 1}, "pools")])

    assert most("8x16,3x16+2", gpu) == 12  # halves of 6 GPUs, none of which need be there yet
    assert most("8x2,3x2+2", gpu) == 11  # pairs of 22 CPUs
    assert most("2x3", gpu[:1]) == 3
    with pytest.raises(InputError, match=r"engine.num_gpus: 0.5, but .* has 0 GPU"):
        most("8x16", gpu)


def test_what_is_not_there_is_found_before_anything_starts(tmp_path):
    torch.manual_seed(0)
    sizes = {"name": "iresnet", "widths": [8] * 4, "depths": [1] * 4, "embedding_size": 16}
    backbone, file = Backbone.model_validate(sizes), tmp_path / "r.safetensors"
    save_recognizer(file, make_backbone(backbone, 32).state_dict(), backbone, 32, "r", "CC0-1.0")
    sha256 = sha256_file(file)
    known = save_faces(tmp_path / "known.safetensors", np.eye(16), sha256)
    there = {"url": make_pool(tmp_path / "there", 3, 2)}
    plain = Pool(str(ROOT / "jobs/recipes/desk/generate/studio_plain.yaml"))
    others = Pool(str(ROOT / "jobs/recipes/desk/generate/idiff_face.yaml"),
                  "weights.denoiser.location=none.safetensors")  # fmt: skip

    def check(pool=there, recognizer=None, **changes):
        fields = {"pools": {"a": pool}, "recognizer": recognizer}
        given = {"fr": str(ROOT / "jobs/recipes/desk/fr/desk.yaml")} | changes
        given["precision"] = {"generate": "float32", "fr": "float32"}
        searched = Space("s", "?", {"x": Choice(1)}, lambda point: fields, **given)
        check_inputs(searched, [searched.trial(0, {"x": 1}, str(tmp_path / "pools"))])

    weights = {"location": str(file), "licence": "CC0-1.0"}
    leaks = {"objectives": ("leakage",)}
    faces = {"location": str(tmp_path / "known.safetensors"), "sha256": known}
    small, damaged = bins(tmp_path / "small", 20, size=32), bins(tmp_path / "damaged", 20)
    (damaged / "broken.bin").write_bytes(b"cut off")
    check(plain.view(), weights | {"sha256": sha256}, **leaks, known=KnownFaces(**faces))
    for wrong, message in (
        ({"benchmarks": str(tmp_path)}, "no .bin file"),
        (
            {"benchmarks": str(small)},
            "blobs0 image 0: 32 x 32 pixels, .* 64",
        ),
        ({"benchmarks": str(damaged)}, "broken.bin: not a verification file"),
        ({"sets": ("fr.augment=[spin]",)}, "spin"),
        ({"pool": {"url": str(tmp_path / "typo")}}, r"pools.a.url: .*typo holds no finished"),
        ({"pool": others.view()}, r"weights.denoiser.location: no file none.safetensors"),
        ({"recognizer": weights | {"location": "no.safetensors"}}, r"no.safetensors"),
        (
            {"recognizer": weights | {"sha256": "0" * 64}},
            r"recognizer.sha256: 0000.* has " + sha256,
        ),
        (
            {"recognizer": weights, **leaks, "known": KnownFaces(**faces | {"sha256": "1" * 64})},
            r"space known.sha256: 1111.* has " + known,
        ),
    ):
        with pytest.raises(InputError, match=message):
            check(**wrong)


class Run:
    """A run in MLflow that notes what is asked of it, and may be `away`."""

    def __init__(self):
        self.id, self.away, self.steps, self.ended = "r", False, [], ""

    def metrics(self, values, step=None):
        if self.away:
            raise OSError("no answer")
        self.steps += [step] if "accuracy" in values else []

    def tag(self, *given):
        pass

    artifact = dataset = tag


@pytest.fixture
def runs(monkeypatch):
    """Runs in MLflow, the sweep's first, in the order they are begun."""
    begun = []

    @contextmanager
    def run(*given, **named):
        made = Run()
        begun.append(made)
        try:
            yield made
        except BaseException:
            made.ended = "FAILED"
            raise
        made.ended = "FINISHED"

    monkeypatch.setattr(tracking, "run", run)
    return begun


@pytest.fixture
def following(tmp_path, runs):
    """Return what follows a sweep of one begun trial, and the trial as Tune has it."""
    store, said = Store(tmp_path), []
    book = Book(store, space())
    book.note(0, {"number": 0, "point": {"x": 1}, "asked": 0, "compose": 0, "fr": 0, "pools": {}})
    store.write("trials/0000/composition/composition.json", b"{}")
    with Tracked("", space(), store, "", said.append) as tracked:
        yield (
            Following(book, tracked, said.append, 1),
            SimpleNamespace(config={"number": 0}, said=said),
        )


FACTS = {
    "pools": {},
    "started": 1.0,
    "accuracies": [0.7],
    "benchmarks": {},
    "taken": {},
    "seconds": {"all": 2.0, "startup": 0.5},
}


def report(follows, trial, step, accuracies=(0.7,), last=True):
    row = {"seed": 1, "step": step, "loss": 1.0, "accuracy": 0.7, "complete": True, "last": last}
    row["facts"] = FACTS | {"accuracies": list(accuracies)}
    trial.last_result = row | {"training_iteration": step}
    follows.on_trial_result(0, [], trial, trial.last_result)


def test_a_line_says_when_its_accuracy_is_a_mean_over_seeds(following):
    follows, trial = following
    follows.on_trial_start(0, [], trial)
    for step, accuracies, last in (
        (1, (0.7,), True),
        (2, (0.6, 0.8), False),
        (3, (0.6, 0.8), True),
    ):
        report(follows, trial, step, accuracies, last)
    line = "trial 1/1 x=1: seed 1, step {}, accuracy 70.00 %{}"
    wanted = [line.format(1, ""), line.format(2, ""), line.format(3, ", the mean of 2 seeds")]
    assert [said for said in trial.said if "step" in said] == wanted


def test_a_trial_that_lost_its_node_reports_again_and_counts_once(following, runs):
    follows, trial = following
    follows.on_trial_start(0, [], trial)
    report(follows, trial, 1)
    follows.on_trial_recover(0, [], trial)
    follows.on_trial_start(0, [], trial)
    report(follows, trial, 1)
    report(follows, trial, 2)
    run = runs[1]
    assert run.ended == "" and len(runs) == 2
    follows.on_trial_complete(0, [], trial)
    result = follows.book.results()[0]
    assert [row["step"] for row in result["curve"]] == [1, 2] and run.steps == [1, 1, 2]
    assert run.ended == "FINISHED" and result["state"] == "finished" and not follows.failed
    assert result["wait"] < 0  # since it was asked for again, not since the first time


def test_errors_of_trials_that_never_began_or_had_ended_are_noted(following, runs):
    follows, trial = following
    follows.on_trial_error(0, [], trial)  # its actor never came up
    assert list(follows.failed) == [0] and len(runs) == 1
    follows.on_trial_start(0, [], trial)
    report(follows, trial, 1)
    runs[1].away = True
    follows.on_trial_error(0, [], trial)
    assert runs[1].ended == "FAILED"


def test_a_tracking_server_that_goes_away_costs_points_and_no_trial(following, runs):
    follows, trial = following
    follows.on_trial_start(0, [], trial)
    runs[1].away = True
    report(follows, trial, 1)
    follows.on_trial_complete(0, [], trial)
    lost = [said for said in trial.said if said.startswith("MLflow: no ")]
    assert lost == [
        "MLflow: no point of trial 0 (no answer)",
        "MLflow: no result of trial 0 (no answer)",
    ]
    assert follows.book.results()[0]["accuracies"] == [0.7] and follows.error is None


def test_what_ends_a_sweep_in_tune_is_told_as_it_was_raised(following, monkeypatch):
    follows, trial = following

    class Tuner:
        """Does as Tune does with an error of a callback."""

        def __init__(self, *given, **named):
            pass

        def fit(self):
            try:
                follows.on_trial_start(0, [], trial)
                report(follows, trial, 1)
                follows.on_trial_complete(0, [], trial)
            except Exception:
                raise tune.TuneError("Traceback ...") from None

    def full(result):
        raise FaultError("s3://b/o: no space left")

    monkeypatch.setattr(tune, "Tuner", Tuner)
    monkeypatch.setattr("factory.search.sweep.ray.kill", lambda actor: None)
    searched, store = space(), follows.book.store
    objective = SimpleNamespace(out=store.url, pools=None)
    again = SimpleNamespace(space=searched, book=follows.book, todo=[0])
    monkeypatch.setattr(follows.book, "end", full)
    with pytest.raises(FaultError, match=r"^s3://b/o: no space left$"):
        run(objective, again, follows, 1)
    monkeypatch.setattr(follows, "on_trial_complete", lambda *given: 1 / 0)
    follows.error = None
    with pytest.raises(tune.TuneError):  # not one of the sweep's own
        run(objective, again, follows, 1)


def test_the_best_recipes_are_those_of_the_best_trial_alone(tmp_path):
    plain = Pool(str(ROOT / "jobs/recipes/desk/generate/studio_plain.yaml"))
    fr = str(ROOT / "jobs/recipes/desk/fr/desk.yaml")
    searched = Space("s", "?", {"x": Choice("one", "other")},
                     lambda point: {"pools": {point["x"]: plain.view()}}, fr)  # fmt: skip
    store = Store(tmp_path)
    book = Book(store, searched)
    for number, x in enumerate(("one", "other")):
        book.begin(searched.trial(number, {"x": x}, "pools"))
        summary = {"best": number, "space": searched.described()}
        finish(store, summary, {number: {"accuracy": 0.8}})
        assert sorted(store.list("best")) == ["best/compose.yaml", f"best/{x}.yaml"]


def test_a_sweep_with_failed_trials_keeps_why_and_is_no_success(tmp_path, runs, monkeypatch):
    def trials(objective, suggestions, following, concurrent):
        """Stand in for Tune: the second trial loses its actor before it starts."""
        for number in list(suggestions.todo):
            trial = SimpleNamespace(config=suggestions.suggest(""))
            if number == 1:
                following.on_trial_error(0, [], trial)
                continue
            following.on_trial_start(0, [], trial)
            report(following, trial, 1)
            store.write(f"trials/{number:04d}/composition/composition.json", b"{}")
            following.on_trial_complete(0, [], trial)

    monkeypatch.setattr("factory.search.sweep.run", trials)
    monkeypatch.setattr("factory.search.sweep.fitting", lambda trials: 8)
    actors = SimpleNamespace(remote=lambda **options: lambda actor: actor)
    monkeypatch.setattr("factory.search.sweep.ray", actors)
    monkeypatch.setattr(Pools, "remote", lambda folder: None, raising=False)
    there = {"pools": {"a": {"url": make_pool(tmp_path / "there", 3, 2)}}}
    fr = str(ROOT / "jobs/recipes/desk/fr/desk.yaml")
    searched = Space(
        "s", "?", {"x": Choice(1)}, lambda p: there, fr, ("fr.engine.precision=float32",)
    )
    store = Store(tmp_path / "o")
    with pytest.raises(FaultError, match="1 of 3 trials failed, the first, 1: an error"):
        sweep(searched, str(tmp_path / "o"), 3, "pools", 0, "", lambda line: None)
    kept = json.loads(store.read(SWEEP))
    assert (kept["samples"], kept["done"], kept["best"]) == (3, 2, 0)
    assert [(one["number"], one["state"]) for one in kept["failed"]] == [(1, "failed")]
    assert [run.ended for run in runs] == ["FAILED", "FINISHED", "FINISHED"]
    assert kept["runs"][0]["concurrent"] == 3  # of 8 that would fit


@pytest.mark.parametrize("flag", ["--out", "--pools"])
def test_keys_in_the_addresses_of_a_sweep_are_refused(flag, tmp_path):
    given = {"--out": str(tmp_path / "out"), "--pools": "runs/pools"} | {flag: "s3://k:secret@b/x"}
    with pytest.raises(InputError, match=f"^{flag}: s3://b/x holds credentials"):
        sweep(space(), given["--out"], 1, given["--pools"], 0, "", print)
    assert not (tmp_path / "out").exists()


def test_an_address_with_a_query_keeps_its_last_part_and_its_options():
    kept = {
        "runs/pools/a": "a",
        "s3://b/pools/a?endpoint_override=http://h:9000": "a",
        "adaface:s3://b/f.ckpt?endpoint_override=h:1&channels=bgr": "f.ckpt?channels=bgr",
        "adaface:/home/f.ckpt?channels=bgr": "f.ckpt?channels=bgr",
    }
    for address, last in kept.items():
        assert placeless({"location": address, "name": address}) == {
            "location": last, "name": address,
        }  # fmt: skip
