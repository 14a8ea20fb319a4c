"""Ray's autoscaler, with nodes that are processes of this machine: none, three, none again.

The wheel lacks a file that Ray's local provider reads, so the test runs on a copy of the installed
Ray (links to its files) that has one. Nothing is installed, and .venv is left alone.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from heads import end
from moody import moody

from factory.datasets.claim import write_claim
from factory.datasets.provenance import versions
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.nodes import GROWS_TO
from factory.plan import shards
from factory.recipe import content_digest
from factory.systems import ELSEWHERE

HERE = Path(__file__).parent
HEAD_ID = "f" * 51 + "00000"  # what Ray's local provider calls its head
LISTS = (  # what Ray's checks want named, though nothing is installed on these nodes
    *("setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("initialization_commands", "head_start_ray_commands", "worker_start_ray_commands"),
    *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
)
START = "from ray.scripts.scripts import main; main()"


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection((ray.util.get_node_ip_address(), port), 5):
        return True
    return False


@pytest.fixture
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A head without CPUs that may start three nodes of one; yields its address and environment."""
    folder = Path(tempfile.mkdtemp(prefix="auto-"))  # short: the paths of sockets are limited
    installed = Path(ray.__file__).parent
    shutil.copytree(
        installed, folder / "site/ray", copy_function=os.symlink,
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    with (
        socket.create_server(("127.0.0.1", 0)) as free,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        port, dashboard = free.getsockname()[1], other.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    config = {
        "cluster_name": "local",
        "max_workers": 3,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "fake_multinode",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "gcs_address": address,
        },
        "auth": {},
        **{name: [] for name in LISTS},
        "file_mounts": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {
                "resources": {"CPU": 1, "object_store_memory": 150 * 2**20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 3,
            },
        },
    }
    provider = folder / "site/ray/autoscaler/_private/fake_multi_node"
    for path in (folder / "cluster.json", provider / "example.yaml"):
        path.write_text(json.dumps(config))  # JSON is YAML
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "PYTHONPATH": f"{folder}/site:{HERE.parent}:{HERE.parents[1]}",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_AUTH_MODE": "disabled",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        GROWS_TO: "3x1",
    }
    started = subprocess.Popen(
        [
            sys.executable, "-c", START, "start", "--head", "--block", "--disable-usage-stats",
            "--port", str(port), "--num-cpus", "0", "--include-dashboard", "false",
            "--dashboard-port", str(dashboard),
            "--min-worker-port", "0", "--max-worker-port", "0",
            "--dashboard-agent-listen-port", "0", "--autoscaling-config",
            str(folder / "cluster.json"), "--temp-dir", str(folder / "ray"),
        ],
        env=env, stdout=(folder / "head.txt").open("w"), stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.time() + 600
        while not list(folder.glob("ray/session_latest/sockets/raylet*")):
            assert started.poll() is None and time.time() < deadline, "the head does not start"
            time.sleep(1)
        while not answers(port):
            said = (folder / "head.txt").read_text()[-2000:]
            assert started.poll() is None and time.time() < deadline, said
            time.sleep(1)
        yield address, env
    finally:
        print((folder / "head.txt").read_text()[-3000:])  # shown if the test fails
        end(started, folder)


@pytest.mark.ray
@pytest.mark.slow
def test_a_pool_grows_with_the_autoscalers_nodes_loses_one_and_gives_them_back(
    head, make_alone, tars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From none to three, one of which is killed, to none: as on spot nodes.

    The pool gives back makers that have no shard. Their nodes go when all shards are made: until
    then Ray Data 2.60 repeats its last request for nodes.
    """
    monkeypatch.setenv(ELSEWHERE, "moody")
    moods = tmp_path / "moods"
    recipe = moody(moods, 12, max=3, min=1)
    make_alone(recipe, Store(tmp_path / "whole"))
    names = [shard.name for shard in shards(recipe)]
    for name in names[2:]:  # they wait until three nodes are used
        (moods / f"{name}.nodes").write_text("3")
    (moods / f"{names[-1]}.gate").touch()
    store = Store(tmp_path / "scaled")
    write_claim(store, recipe, content_digest(recipe, versions()), ())
    address, env = head
    ran = subprocess.run(
        [sys.executable, str(HERE / "autoscaled.py"), str(tmp_path / "scaled"), address, moods],
        capture_output=True, text=True, env=env | {ELSEWHERE: "moody"}, timeout=600,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = [int(number) for number in re.findall(r"(\d) nodes (?:before|at|after)", ran.stdout)]
    assert found == [0, 3, 0], ran.stdout
    assert "1 of 3 CPUs taken at the last shard" in ran.stdout
    assert "killed a node" in ran.stdout and "is made again" not in ran.stdout
    assert tars(store) == tars(Store(tmp_path / "whole"))
    assert verify(store) == []
