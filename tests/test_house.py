"""What the house promises: its rooms, who may import whom, what stays light, what is declared."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {
    *("pyproject.toml", "factory", "jobs", "tune_spaces", "cluster.yaml", "tests", "README.md"),
    *("LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "docs"),
}
LIGHT = ("recipe", "plan", "seeding", "datasets", "export")
COMES_WITH = {  # parts of what is declared
    **{"pydantic_core": "pydantic", "markupsafe": "jinja2"},
    **{"botocore": "boto3", "prometheus_client": "ray"},
}
NAMELESS = {"utils", "common", "helpers", "misc"}


def tracked(*paths: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = (Path(line) for line in listed.stdout.splitlines())
    return [file for file in files if (ROOT / file).is_file()]


def imports(path: Path) -> Iterator[str]:
    """Yield every module a file imports, at any depth, with `from a import b` as a.b."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def python_files(*folders: str) -> list[Path]:
    return [path for path in tracked(*folders) if path.suffix == ".py"]


def test_top_level_holds_nothing_else() -> None:
    names = {path.parts[0] for path in tracked()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_no_module_without_an_idea_in_its_name() -> None:
    assert not [path for path in python_files() if NAMELESS & {path.stem, *path.parts}]


def test_no_file_is_over_10_mib() -> None:
    assert not [path for path in tracked() if (ROOT / path).stat().st_size > 10 * 2**20]


def test_ray_data_is_imported_in_one_place() -> None:
    users = {
        str(path)
        for path in python_files("factory", "jobs", "tune_spaces")
        if any(re.match(r"ray\.data\b", name) for name in imports(path))
        or "ray.data." in (ROOT / path).read_text()
    }
    assert users <= {"factory/cluster/engine.py"}


def test_imports_run_one_way() -> None:
    linted = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_every_layer_that_exists_is_held() -> None:
    """The contract marks layers that may be missing; none may be left out of it."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    held = {name for layer in contracts[0]["layers"] for name in re.findall(r"\w+", layer)}
    parts = {path.parts[1].removesuffix(".py") for path in python_files("factory")}
    assert parts - {"__init__"} <= held


def light_modules() -> list[str]:
    """Return what planning, verifying and exporting are made of; the feed is training's."""
    found = []
    for path in python_files("factory"):
        inner = path.with_suffix("").parts[1:]
        if inner[0] in LIGHT and inner[-1] not in ("__init__", "feed"):
            found.append(".".join(("factory", *inner)))
    return found


def test_planning_verifying_exporting_import_neither_torch_nor_ray() -> None:
    modules = light_modules()
    assert {"factory.recipe", "factory.plan", "factory.commands.cli"} <= set(modules)
    code = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print([name for name in ('torch', 'ray', 'diffusers', 'mlflow') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


def test_every_import_is_a_declared_dependency() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    needed = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        needed += extra
    declared = {distribution_name(requirement) for requirement in needed}
    declared |= {module for module, parent in COMES_WITH.items() if parent in declared}
    own = {"factory", "jobs", "tune_spaces", *(p.stem for p in python_files("jobs", "tests"))}
    known = packages_distributions()
    undeclared = {
        f"{path}: {name}"
        for path in python_files("factory", "jobs", "tune_spaces", "tests")
        for name in {module.partition(".")[0] for module in imports(path)}
        if name not in sys.stdlib_module_names and name not in own and name not in declared
        if not declared & {distribution_name(found) for found in known.get(name, [])}
    }
    assert not undeclared


def distribution_name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def test_every_dependency_is_pinned_and_no_gpu_build_is() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in pins)
    names = {distribution_name(line) for line in pins}
    assert not [name for name in names if name.startswith(("nvidia", "torchvision", "triton"))]
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {distribution_name(requirement) for requirement in needed} <= names


def test_no_path_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.~-])/(?:tmp|work|root)/")
    texts = [p for p in tracked() if p.parts[0] not in ("tests", ".ci") and p.suffix != ".npz"]
    found = []
    for path in texts:
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:  # weights and arrays
            continue
        found += [f"{path}: {line}" for line in text.splitlines() if pattern.search(line)]
    assert not found


def test_make_without_a_new_enough_python_says_so(tmp_path: Path) -> None:
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    asked = subprocess.run(
        ["make", "test", "PYTHON="], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert asked.returncode != 0
    assert "error: no Python >= 3.11" in asked.stderr + asked.stdout
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("target", ["demo", "test", "test-slow", "lint", "bench"])
def test_every_target_passes_its_flags_on(target: str) -> None:
    shown = subprocess.run(
        ["make", "-n", target, "ARGS=--flag-of-mine"], cwd=ROOT, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert "--flag-of-mine" in shown.stdout
