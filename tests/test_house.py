"""What the house promises: its rooms, who may import whom, what stays light, what is declared."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {
    *("pyproject.toml", "factory", "jobs", "tune_spaces", "cluster.yaml", "tests", "README.md"),
    *("LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "docs"),
    *("benchmarks", "SECURITY.md", "CITATION.cff"),
}
LIGHT = ("recipe", "nodes", "plan", "seeding", "stops", "datasets", "export")
LIGHT_COMMANDS = ("cli", "plan", "verify", "export", "make_pairs", "compose")
LONGEST, SHORTEST = 500, 15  # lines of a file of the factory's
COMES_WITH = {  # parts of what is declared
    **{"pydantic_core": "pydantic", "markupsafe": "jinja2"},
    **{"botocore": "boto3", "prometheus_client": "ray", "grpc": "ray"},
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


def test_ray_data_runs_pools_and_is_told_to_be_quiet_and_no_more() -> None:
    users = {
        str(path)
        for path in python_files("factory", "jobs", "tune_spaces", "benchmarks")
        if any(re.match(r"ray\.data\b", name) for name in imports(path))
        or "ray.data." in (ROOT / path).read_text()
    }
    assert users == {f"factory/cluster/{name}.py" for name in ("workers", "connect")}


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
    assert parts - {"__init__", "__main__"} <= held


def modules() -> dict[str, Path]:
    """Return every module of the factory and its file."""
    return {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
        for path in python_files("factory")
    }


def test_no_module_imports_itself_however_many_are_between() -> None:
    """At any depth of a file: in functions and for type checkers, too."""
    known, needed = modules(), {}
    for module, path in known.items():
        inner = [name if name in known else name.rpartition(".")[0] for name in imports(path)]
        needed[module] = {name for name in inner if name in known}
    assert sum(map(len, needed.values())) > 500
    try:
        TopologicalSorter(needed).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_imports_name_modules_and_no_packages_parts() -> None:
    """`imports` reads no `from . import a`, and nothing may hide from it."""
    for path in python_files("factory", "benchmarks", "jobs"):
        nodes = ast.walk(ast.parse((ROOT / path).read_text()))
        assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level], path


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(list)
    for path in python_files("factory"):
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path}:{node.lineno}")
    assert len(places) > 150
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_files_are_neither_long_nor_mere_slips() -> None:
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in python_files("factory")}
    assert {str(path): count for path, count in lines.items() if count > LONGEST} == {}
    slips = {path: count for path, count in lines.items() if count < SHORTEST}
    assert {str(path): count for path, count in slips.items() if path.stem != "__init__"} == {}


def named(path: Path) -> set[str]:
    """Return the names that a file defines at its top, and those of its classes' parts."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (part for part in node.body if isinstance(part, ast.FunctionDef))
            found |= {f"{node.name}.{part.name}" for part in inner}
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_what_the_page_of_the_architecture_names_is_there() -> None:
    """Its walks name files, and in files what to look for: `factory/plan.py:shards`."""
    page = (ROOT / "docs/architecture.md").read_text()
    told = re.findall(r"(factory/[\w/]+\.py)(?::([A-Za-z_][\w.]*\w))?", page)
    assert len([name for _, name in told if name]) > 10
    for file, name in told:
        assert (ROOT / file).is_file(), file
        assert not name or name in named(Path(file)), f"{file}:{name}"
    folders = re.findall(r"`((?:factory|benchmarks|tests|jobs|tune_spaces)/(?:[\w]+/)*)`", page)
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
    rooms = {f"{path.parent}/" for path in python_files("factory")} - {"factory/"}
    assert rooms - set(folders) == set(), "every room is named"


def light_modules() -> list[str]:
    """Return what planning, verifying and exporting are made of; the feed is training's."""
    return [
        module
        for module in modules()
        for inner in [module.split(".")[1:]]
        if inner
        and (
            (inner[0] in LIGHT and inner[-1] != "feed")
            or (inner[0] == "commands" and inner[-1] in LIGHT_COMMANDS)
        )
    ]


def test_planning_verifying_exporting_import_neither_torch_nor_ray() -> None:
    light = light_modules()
    assert {"factory.recipe.load", "factory.plan", "factory.commands.cli"} <= set(light)
    code = (
        f"import sys, importlib\nfor name in {light!r}: importlib.import_module(name)\n"
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
    own = {"factory", "benchmarks", *(p.stem for p in python_files("tests"))}
    known = packages_distributions()
    undeclared = {
        f"{path}: {name}"
        for path in python_files("factory", "jobs", "tune_spaces", "benchmarks", "tests")
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


def test_shipped_weights_are_60_mib_at_most() -> None:
    files = list((ROOT / "factory/weights").rglob("*.safetensors"))
    assert len(files) > 8 and sum(file.stat().st_size for file in files) <= 60 * 2**20


def test_the_tree_that_a_job_uploads_is_60_mib_at_most() -> None:
    left_out = get_excludes_from_ignore_files(ROOT, include_gitignore=True)
    sent = [f for f in tracked() if not any(ignored(ROOT / f) for ignored in left_out)]
    assert Path("factory/__main__.py") in sent
    assert Path("docs/index.md") not in sent
    assert sum((ROOT / file).stat().st_size for file in sent) <= 60 * 2**20
