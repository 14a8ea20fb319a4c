"""The console command: `factory NAME ...`, as the environment's bin folder has it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import factory
from factory import __main__ as console

ROOT = Path(__file__).parents[1]
COMMANDS = ROOT / "factory/commands"


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "factory", *words], cwd=cwd, capture_output=True, text=True
    )


def mains() -> list[str]:
    """Return the modules of the commands that have a main."""
    return sorted(
        path.stem
        for path in COMMANDS.glob("*.py")
        if any(
            isinstance(node, ast.FunctionDef) and node.name == "main"
            for node in ast.parse(path.read_text()).body
        )
    )


def test_help_lists_every_command_with_its_first_sentence() -> None:
    assert console.names() == mains() and len(mains()) > 15
    asked = run("--help")
    assert asked.returncode == 0 and asked.stderr == ""
    assert run("-h").stdout == asked.stdout
    told = dict(line.split(maxsplit=1) for line in asked.stdout.splitlines() if line[:2] == "  ")
    assert sorted(told) == mains()
    for name, said in told.items():
        text = ast.get_docstring(ast.parse((COMMANDS / f"{name}.py").read_text()))
        assert text is not None and said.endswith(".")
        assert text == said or text.startswith(f"{said}\n\n"), "it is the whole first paragraph"
    assert f"version {factory.__version__}" in asked.stdout


def test_without_a_command_the_list_is_shown_and_the_exit_code_is_2() -> None:
    asked = run()
    assert (asked.returncode, asked.stderr) == (2, "")
    assert asked.stdout == f"{console.overview()}\n"
    assert run("--version").stdout == f"{factory.__version__}\n"


@pytest.mark.parametrize("word", ["generat", "cli", "__init__", "chain", "--set", "../stops"])
def test_an_unknown_command_is_one_error_and_exit_code_2(word: str) -> None:
    asked = run(word, "desk/generate/studio.yaml")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr == (
        f"error: command {word!r}; accepted: {', '.join(mains())} (exit code 2)\n"
    )


@pytest.mark.parametrize("name", ["make_bank", "make-bank"])
def test_dashes_and_underscores_name_the_same_command(name: str) -> None:
    asked = run(name, "--help")
    assert asked.returncode == 0 and asked.stdout.startswith("usage: factory make_bank [-h]")


def test_a_command_takes_its_words_and_gives_its_exit_code(tmp_path: Path) -> None:
    """Anywhere, by the short name of a recipe."""
    planned = run("plan", "desk/generate/studio.yaml", "--set", "identities.count=7", cwd=tmp_path)
    assert planned.returncode == 0 and "7 x " in planned.stdout, planned.stderr
    asked = run("plan", "desk/generate/none.yaml", cwd=tmp_path)
    assert asked.returncode == 2 and asked.stderr.endswith("(exit code 2)\n")
    assert asked.stderr.startswith("error: recipe: no file desk/generate/none.yaml; accepted is")


def test_every_job_is_a_script_that_runs_the_command_of_its_name() -> None:
    for name in mains():
        script = (ROOT / f"jobs/{name}.py").read_text()
        assert f"The command `factory {name}`" in script
        assert f"from factory.commands.{name} import main\n" in script
