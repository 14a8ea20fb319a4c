"""Jobs by `ray job submit`: what is uploaded, exit codes, the last line of the log."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from heads import end

from factory.commands import cli
from factory.datasets.images import contents_digest
from factory.datasets.store import Store
from factory.datasets.verify import verify

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PLAIN = "jobs/recipes/desk/generate/studio_plain.yaml"
NET = "package:weights/judge/recognizer.safetensors"


def test_the_jobs_and_the_package_are_uploaded_and_nothing_heavy(tmp_path: Path) -> None:
    from ray._private.ray_constants import (
        DASHBOARD_CLIENT_MAX_SIZE,
        get_runtime_env_default_excludes,
    )
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "tree.zip"
    excludes = get_runtime_env_default_excludes()
    create_package(str(ROOT), package, include_gitignore=True, excludes=excludes)
    listed = subprocess.run(
        ["git", "ls-files", "factory", "jobs", "tune_spaces", "pyproject.toml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    needed = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    with zipfile.ZipFile(package) as opened:
        names = set(opened.namelist())
    benchmarks = {name for name in needed if re.match(r"factory/studio/bins/.*\.bin", name)}
    assert len(benchmarks) == 5  # made again by the first command that asks for them
    assert needed - names == benchmarks | {"factory/weights/idiff_face/denoiser.safetensors"}
    heads = {name.partition("/")[0] for name in names}
    assert not heads & {
        ".git",
        ".venv",
        "runs",
        "mlruns",
        "mlflow.db",
        "tests",
        "docs",
        "benchmarks",
    }
    assert package.stat().st_size < 0.95 * DASHBOARD_CLIENT_MAX_SIZE  # the rest is the user's


@pytest.mark.parametrize(
    ("flag", "given", "refused"),
    [
        ("--out", "runs/x", True),
        ("--out", "/data/x", False),
        ("--out", "s3://bucket/x", False),
        ("--json", "x.json", True),
    ],
)
def test_an_output_that_ray_would_delete_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, flag: str, given: str, refused: bool
) -> None:
    copy = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    copy.mkdir(parents=True)
    parser = cli.parser("A job.")
    parser.add_argument(flag)
    monkeypatch.setattr(sys, "argv", ["job.py", flag, given])
    with pytest.raises(SystemExit, match="0"):  # anywhere else, a relative path is right
        cli.run(parser, lambda arguments: None)
    monkeypatch.chdir(copy)
    with pytest.raises(SystemExit, match="2" if refused else "0"):
        cli.run(parser, lambda arguments: None)
    assert (f"{flag} {given}: a submitted job runs in a copy" in capsys.readouterr().err) == refused


@dataclass
class Head:
    """A Ray head that asks for a token, and a way to submit to it."""

    address: str
    env: dict[str, str]
    folder: Path

    def get(self, path: str, token: bool = True) -> Any:
        said = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"} if token else {}
        request = urllib.request.Request(self.address + path, headers=said)
        return json.loads(urllib.request.urlopen(request, timeout=30).read())

    def answers(self) -> bool:
        """Whether it is up."""
        try:
            self.get("/api/jobs/")
        except OSError:
            return False
        return True

    def submit(self, *entrypoint: str) -> tuple[int, list[str]]:
        """Run a job as the page tells a user to; returns the exit code and the lines of its log."""
        name = f"job-{secrets.token_hex(4)}"
        ran = subprocess.run(
            [
                str(BIN / "ray"), "job", "submit", "--address", self.address, "--submission-id",
                name, "--working-dir", ".", "--", *entrypoint,
            ],
            cwd=ROOT, env=self.env, capture_output=True, text=True,
        )  # fmt: skip
        try:
            lines = self.get(f"/api/jobs/{name}/logs")["logs"].splitlines()
        except urllib.error.HTTPError:
            raise AssertionError(f"not submitted: {ran.stderr[-2000:]}") from None
        return ran.returncode, [line for line in lines if line.strip()]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head of this test's own: its ports, its folder; its processes are ended by their ids."""
    folder = Path(tempfile.mkdtemp(prefix="head-"))  # short: the paths of sockets are limited
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    gcs, dashboard, client, agent = (str(one.getsockname()[1]) for one in sockets)
    for one in sockets:
        one.close()
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "OMP_WAIT_POLICY": "PASSIVE",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    started = subprocess.Popen(
        [
            str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats",
            "--port", gcs, "--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard,
            "--ray-client-server-port", client, "--dashboard-agent-listen-port", agent,
            "--min-worker-port", "0", "--max-worker-port", "0", "--num-cpus", "2",
            "--temp-dir", str(folder / "ray"),
        ],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    made = Head(f"http://127.0.0.1:{dashboard}", env, folder)
    try:
        deadline = time.time() + 600
        while not made.answers():
            assert started.poll() is None and time.time() < deadline, "the head does not start"
            time.sleep(1)
        yield made
    finally:
        end(started, folder)


@pytest.mark.ray
@pytest.mark.slow
def test_success_and_failure_are_told_and_the_last_line_has_the_code(head: Head) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        head.get("/api/jobs/", token=False)
    small = ("--set", "identities.count=4", "--set", "image.size=16", "--set", "shard.identities=2")
    out = head.folder / "faces"
    generate = ("python", "jobs/generate.py", PLAIN, *small, "--out")
    code, lines = head.submit(*generate, str(out))
    assert (code, lines[-1]) == (0, f"{out}: 32 of 32 images in 2 shards, 2 made now")
    assert verify(Store(out)) == []
    code, lines = head.submit("python", "-c", "import factory; print(factory.__file__)")
    assert code == 0 and "working_dir_files" in lines[-1]  # the tree that was uploaded
    code, lines = head.submit(*generate, "runs/faces")
    assert code == 1 and lines[-1].startswith("error: --out runs/faces: a submitted job runs in a")
    assert lines[-1].endswith("(exit code 2)")
    next((out / "shards").glob("*.tar")).write_bytes(b"")
    code, lines = head.submit("python", "jobs/verify.py", str(out))
    assert code == 1 and lines[-1].endswith("(exit code 1)")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_job_runs_by_it(head: Head) -> None:
    """The shortest work of each job; those that only start other jobs are asked for their help."""
    folder = head.folder / "all"
    folder.mkdir()
    faces, composed, bank = str(folder / "faces"), folder / "mix.yaml", folder / "bank.yaml"
    few = ("--set", "identities.count=24", "--set", "identities.images_each=8")
    code, lines = head.submit("python", "jobs/generate.py", PLAIN, *few, "--out", faces)
    assert code == 0, lines
    named = {"url": faces, "digest": contents_digest(Store(faces))}
    recipe = {"kind": "compose", "name": "m", "seed": 1, "pools": {"a": {"url": faces}}}
    composed.write_text(yaml.safe_dump(recipe))
    recipe = {"kind": "bank", "name": "b", "seed": 1, "licence": "CC0-1.0", "candidates": named}
    recipe |= {
        "weights": {"recognizer": {"location": NET}},
        "max_cosine": 1.0,
        "workers": {"max": 1},
    }
    bank.write_text(yaml.safe_dump(recipe))
    fr, autoencoder = (
        f"jobs/recipes/desk/{name}.yaml" for name in ("fr/desk", "train/autoencoder")
    )
    data = ("--set", f"data.train={faces}")
    work: dict[str, tuple[str, ...]] = {
        "generate": (PLAIN, *few, "--out", faces),
        "plan": (PLAIN,),
        "verify": (faces,),
        "report": (faces,),
        "export": (faces, "--format", "imagefolder", "--to", f"{folder}/images"),
        "make_pairs": (faces, "--to", f"{folder}/val.bin", "--pairs", "8", "--folds", "2"),
        "prepare": (f"{faces}/shards", "--out", f"{folder}/mine", "--licence", "own"),
        "compose": (str(composed), "--out", f"{folder}/mix"),
        "make_bank": (str(bank), "--out", f"{folder}/bank"),
        "make_benchmarks": ("--out", f"{folder}/bins", "--pairs", "20"),
        "evaluate": ("--recognizer", NET, "--benchmarks", f"{folder}/bins"),
        "measure": (faces, "--recognizer", NET),
        "train_attributes": (faces, "--out", f"{folder}/attributes", "--epochs", "1"),
        "train_recognizer": (
            *(fr, "--out", f"{folder}/fr", *data, "--set", "schedule.steps=2"),
            *("--set", "schedule.batch_size=8", "--set", "data.identities=24"),
            *("--set", "data.images_each=4"),
        ),
        "train_diffusion": (
            *(autoencoder, "--out", f"{folder}/autoencoder", *data, "--max-steps", "2"),
            *("--set", "schedule.batch_size=4"),
        ),
    }
    failed = {}
    jobs = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
    assert set(work) <= set(jobs)
    for job in [*work, *(job for job in jobs if job not in work)]:
        code, lines = head.submit("python", f"jobs/{job}.py", *work.get(job, ("--help",)))
        if code or not lines or "Traceback" in "".join(lines):
            failed[job] = lines[-5:]
    assert not failed, json.dumps(failed, indent=1)
