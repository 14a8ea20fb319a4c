"""Jobs as a user runs them, but for the seconds that torch, Ray and MLflow take to import.

Each is a process of its own with its own folder, environment, signals and exit code; it is forked
from a server that has imported what jobs import and done nothing else.
"""

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTS = [
    *("torch", "ray.data", "ray.train.torch", "mlflow.tracking"),
    *("mlflow.store.tracking.sqlalchemy_store", "factory.cluster.workers"),
    *("factory.evaluation.quality", "factory.generation.run"),
    *("factory.recognition.recognizers", "factory.systems.dcface", "factory.systems.idiff_face"),
    *("factory.training.diffusion", "factory.training.recognition"),
]

_server = get_context("forkserver")
_server.set_forkserver_preload(IMPORTS)


def run(
    script: str | Path, *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python SCRIPT ARGUMENTS` to its end; return its exit code and what it said."""
    words = [str(ROOT / script), *map(str, arguments)]
    if "--address" in words:  # the server's Ray read, when it was imported, that it needs no token
        return subprocess.run(
            [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True
        )
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("stdout", "stderr")]
        given = (words, str(cwd), dict(os.environ if env is None else env), *map(str, said))
        process = _server.Process(target=_begin, args=given)
        process.start()
        process.join()
        code = process.exitcode
        process.close()
        assert code is not None
        return subprocess.CompletedProcess(words, code, *(path.read_text() for path in said))


def _begin(words: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str) -> None:
    """Become the process of a job."""
    import torch

    for number, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if "OMP_NUM_THREADS" in env:  # read when torch was imported
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
