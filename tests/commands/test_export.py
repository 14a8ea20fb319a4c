"""The command, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import patches
import pytest

from factory.commands.export import read_measured
from factory.recipe import InputError

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "jobs/export.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_export_says_what_it_wrote(tmp_path: Path) -> None:
    made = patches.make(tmp_path / "data", tmp_path / "work")
    result = tmp_path / "quality.json"
    result.write_text(json.dumps({"recognizer": {"name": "judge"}, "eer": 0.125}))
    to = tmp_path / "acme_v1"
    done = run(tmp_path / "data", "--format", "wds", "--to", to, "--measured", result)
    assert done.returncode == 0, done.stderr
    said = f"{made.pixels.total()} images of 8 identities, 32 px, licence CC-BY-NC-4.0"
    assert said in done.stdout
    assert "| eer | 0.125 |" in (to / "README.md").read_text()


def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("[")
    for arguments, said in (
        ((tmp_path / "none", "--format", "wds", "--to", tmp_path / "x"), "no finished dataset"),
        ((tmp_path, "--format", "wds", "--to", tmp_path / "synthetic"), "random noise"),
        ((tmp_path, "--format", "hf", "--to", tmp_path / "x", "--measured", bad), "bad.json"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[" * 100_000, b"[]"])
def test_a_file_of_measures_that_is_none_is_one_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.json").write_bytes(data)
    with pytest.raises(InputError, match=r"--measured .*; accepted is a file of measure\.py"):
        read_measured(str(tmp_path / "m.json"))


def test_exporting_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    patches.make(tmp_path / "data", tmp_path / "work")
    code = (
        "import sys\n"
        "from factory.export.export import FORMATS, Options, export\n"
        "from factory.datasets.store import Store\n"
        f"for f in FORMATS: export(Store({str(tmp_path / 'data')!r}),"
        f" Store({str(tmp_path)!r} + '/' + f), Options(f, size=24))\n"
        "print([name for name in ('torch', 'ray', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
