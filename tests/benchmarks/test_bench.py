"""The bench as a user asks for it."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.bench", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_its_flags_are_frozen() -> None:
    asked = run("--help")
    assert asked.returncode == 0, asked.stderr
    usage = " ".join(asked.stdout.partition("\n\n")[0].split())
    flags = {"--set", "--address", "--tracking-uri", "--repeats", "--json"}
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", usage)) == flags
    assert usage.endswith(" RECIPE")


def test_a_recipe_of_another_kind_is_refused() -> None:
    asked = run("desk/compose/mix.yaml")
    assert asked.returncode == 2, asked.stderr
    said = "error: recipe field kind: 'compose'; this job accepts generate and fr (exit code 2)\n"
    assert asked.stderr == said
