"""Round trips through a real sqlite store, read back with MLflow's own client."""

import json
import socket
import subprocess
import sys

import pytest

from factory import tracking
from factory.recipe import InputError

RECIPE = {
    "name": "toy",
    "data": {"train": "s3://user:secret@bucket/faces?secret_key=abc&region=x"},
    "sizes": [1, 2],
}


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs.db"


def test_a_run_is_read_back(uri, tmp_path):
    from mlflow import MlflowClient

    file = tmp_path / "report.html"
    file.write_text("<p>hello</p>")
    with tracking.run(uri, "desk", "parent", RECIPE) as parent:
        parent.metrics({"loss": 2.0, "bins": {"frontal": 0.5}}, step=0)
        parent.metrics({"loss": 1.0}, step=7)
        parent.artifact(file)
        parent.dataset("faces", "s3://user:secret@bucket/faces", "0123456789abcdef")
        with tracking.run(uri, "desk", "child", {}, parent=parent.id) as child:
            child.metrics({"accuracy": 0.75})

    client = MlflowClient(tracking_uri=uri)
    found = client.get_run(parent.id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "parent"
    assert found.data.params["sizes"] == "[1, 2]"
    assert found.data.params["data.train"] == "s3://bucket/faces?secret_key=...&region=x"
    assert [(m.step, m.value) for m in client.get_metric_history(parent.id, "loss")] == [
        (0, 2.0),
        (7, 1.0),
    ]
    assert found.data.metrics["bins.frontal"] == 0.5
    dataset = found.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("faces", "0123456789abcdef")
    assert "secret" not in dataset.source
    assert {f.path for f in client.list_artifacts(parent.id)} == {"recipe.json", "report.html"}
    client.download_artifacts(parent.id, "recipe.json", str(tmp_path))
    text = (tmp_path / "recipe.json").read_text()
    assert json.loads(text)["name"] == "toy"
    assert "secret@" not in text
    nested = client.get_run(child.id)
    assert nested.data.tags["mlflow.parentRunId"] == parent.id
    assert nested.data.metrics["accuracy"] == 0.75


def test_weights_become_a_registered_model(uri, tmp_path):
    from mlflow import MlflowClient

    (tmp_path / "weights.bin").write_bytes(b"123")
    for version in ("1", "2"):
        with tracking.run(uri, "desk", "fr", {}) as run:
            tags = {"licence": "Apache-2.0", "data": "s3://user:secret@bucket/faces"}
            assert run.model("desk", tmp_path, tags) == version
    client = MlflowClient(tracking_uri=uri)
    found = client.get_model_version("desk", "2")
    assert found.tags == {"licence": "Apache-2.0", "data": "s3://bucket/faces"}
    assert found.run_id == run.id
    assert [f.path for f in client.list_artifacts(run.id, "model")] == ["model/weights.bin"]


def test_an_exception_marks_the_run_failed(uri):
    from mlflow import MlflowClient

    with pytest.raises(ZeroDivisionError), tracking.run(uri, "desk", "broken", {}) as broken:
        1 / 0  # noqa: B018
    assert MlflowClient(tracking_uri=uri).get_run(broken.id).info.status == "FAILED"


def test_a_stop_marks_the_run_killed(uri):
    from mlflow import MlflowClient

    with pytest.raises(KeyboardInterrupt), tracking.run(uri, "desk", "stopped", {}) as stopped:
        raise KeyboardInterrupt
    assert MlflowClient(tracking_uri=uri).get_run(stopped.id).info.status == "KILLED"


def test_artifacts_lie_beside_the_database(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tracking.run(uri, "desk", "elsewhere", {}):
        pass
    assert list(tmp_path.iterdir()) == []


def test_more_parameters_than_one_call_takes(uri):
    from mlflow import MlflowClient

    with tracking.run(uri, "desk", "many", {f"p{i}": i for i in range(250)}) as many:
        pass
    assert len(MlflowClient(tracking_uri=uri).get_run(many.id).data.params) == 250


def test_an_unreachable_server_is_one_clear_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        pytest.raises(InputError, match=rf"http://127.0.0.1:{port}: .*accepted") as raised,
        tracking.run(f"http://me:pw@127.0.0.1:{port}", "desk", "x", {}),
    ):
        pass
    assert "pw" not in str(raised.value)


def test_resolve_order(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.resolve() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking.resolve() == "http://host:5000"
    assert tracking.resolve("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"


def test_a_killed_writers_run_is_closed_by_the_one_that_takes_over(uri, tmp_path):
    from mlflow import MlflowClient

    client, out = MlflowClient(tracking_uri=uri), str(tmp_path / "o'ut")
    # Never left, as by a process that was killed.
    first = tracking.run(uri, "desk", "killed", {}, output=out)
    second = tracking.run(uri, "desk", "another's", {}, output=str(tmp_path / "b"))
    killed, other = first.__enter__(), second.__enter__()
    with tracking.run(uri, "desk", "next", {}, output=out):
        assert client.get_run(killed.id).info.status == "KILLED"
        assert client.get_run(other.id).info.status == "RUNNING"


def test_a_run_names_its_command_and_draws_no_time_left(uri, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setattr("sys.argv", ["factory generate", "r.yaml", "--out", "s3://k:s@b/x"])
    with tracking.run(uri, "desk", "named", {}) as run:
        run.metrics({"loss": 1.0, "eta_seconds": 9.0}, step=1)
    found = MlflowClient(tracking_uri=uri).get_run(run.id)
    assert found.data.tags["mlflow.source.name"] == "factory generate r.yaml --out s3://b/x"
    assert set(found.data.metrics) == {"loss"}


@pytest.mark.slow
def test_jobs_that_start_together_share_a_new_database(tmp_path):
    code = (
        "import sys; from factory import tracking\n"
        "with tracking.run(sys.argv[1], 'together', 'one', {}) as run: print(run.experiment_id)"
    )
    uri = f"sqlite:///{tmp_path}/new.db"
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, uri], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [job.communicate()[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert len(set(said)) == 1 and said[0].strip()
