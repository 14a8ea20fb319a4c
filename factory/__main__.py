"""Run one of the commands as `factory NAME ...`; `factory --help` lists them."""

import ast
import importlib
import sys
from pathlib import Path
from typing import NoReturn

import factory
from factory import stops

COMMANDS = Path(__file__).parent / "commands"
SHARED = ("__init__", "cli", "chain", "comparison", "demonstration")  # modules, not commands


def names() -> list[str]:
    """Return the names of the commands, in order."""
    return sorted(path.stem for path in COMMANDS.glob("*.py") if path.stem not in SHARED)


def summary(name: str) -> str:
    """Return the first sentence of a command's description, without importing the command."""
    told = ast.get_docstring(ast.parse((COMMANDS / f"{name}.py").read_text())) or ""
    return told.partition("\n")[0]


def overview() -> str:
    """Return what `factory --help` prints."""
    width = max(map(len, names()))
    rows = "\n".join(f"  {name:<{width}}  {summary(name)}" for name in names())
    return (
        f"usage: factory COMMAND ...\n\nA data factory for labelled synthetic faces, version "
        f"{factory.__version__}.\n\ncommands:\n{rows}\n\nfactory COMMAND --help tells what a "
        "command takes. The recipes that\ncome with the factory are named from jobs/recipes down, "
        "as desk/generate/studio.yaml."
    )


def main() -> NoReturn:
    """Run the command that the first argument names; exit with 2 where no command has that name."""
    stops.importing()
    given = sys.argv[1:2]
    if given in ([], ["-h"], ["--help"]):
        print(overview())
        sys.exit(0 if given else 2)
    if given == ["--version"]:
        print(factory.__version__)
        sys.exit(0)
    name = given[0].replace("-", "_")
    if name not in names():
        print(
            f"error: command {given[0]!r}; accepted: {', '.join(names())} (exit code 2)",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.argv[:2] = [f"factory {name}"]
    importlib.import_module(f"factory.commands.{name}").main()
    raise AssertionError("a command ends the process")


if __name__ == "__main__":
    main()
