"""The command line is frozen: each job has these flags and no others."""

import argparse
import errno
import importlib
import os
import re
import resource
import shlex
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import ready

from factory.__main__ import names
from factory.commands import cli
from factory.datasets.store import write_file
from factory.recipe import FaultError, InputError, errors, load

ROOT = Path(__file__).parents[2]
RECIPE = "desk/generate/studio.yaml"
EVERY_JOB = {"--help", "--set", "--address", "--tracking-uri"}
ENTRY_POINT_LINES = 80

# Adding a flag means adding it here, and saying why in the commit.
FLAGS: dict[str, set[str]] = {
    "compare": {
        *("--real", "--dataset", "--out", "--seeds", "--judge", "--features"),
        *("--benchmarks", "--r", "--identities", "--images-each", "--resize", "--unequal"),
    },
    "compose": {"--out", "--materialise"},
    "demo": {"--out", "--seeds", "--smallest", "--full", "--from-scratch"},
    "evaluate": {
        *("--recognizer", "--benchmarks", "--json", "--resize"),
        *("--protocol", "--groups", "--switches"),
    },
    "export": {
        *("--format", "--to", "--dialect", "--size", "--seed", "--pairs", "--measured", "--c2pa"),
    },
    "generate": {"--out", "--extend", "--dry-run"},
    "make_bank": {"--out"},
    "make_benchmarks": {"--out", "--pairs", "--size", "--tasks", "--seed"},
    "make_pairs": {"--to", "--pairs", "--folds", "--seed", "--skip", "--without", "--groups"},
    "measure": {
        *("--recognizer", "--json", "--identities", "--images-each", "--r", "--resize"),
        *("--against", "--held-out", "--tasks", "--embeddings", "--centres"),
        *("--real", "--features", "--same-identities", "--k", "--coverage"),
    },
    "plan": {"--cluster"},  # a plan is made where no cluster says what it may become
    "prepare": {
        *("--out", "--licence", "--name", "--size", "--format", "--resize", "--align"),
        *("--detector", "--recognizer", "--synthetic", "--unlabelled"),
        *("--label", "--identity-level"),
        *("--shard-images", "--actors"),
    },
    "report": {"--to", "--measures"},
    "sweep": {"--out", "--samples", "--seeds", "--benchmarks", "--concurrent", "--pools"},
    "train_attributes": {
        *("--out", "--epochs", "--seed", "--licence", "--identities", "--threads"),
    },
    "train_diffusion": {"--out", "--max-steps"},
    "train_recognizer": {"--out", "--onnx"},
    "verify": {"--repair", "--tasks"},
}
POSITIONAL: dict[str, list[str]] = {
    "compare": ["RECIPE"],
    "compose": ["RECIPE"],
    "demo": [],
    "evaluate": [],
    "export": ["URL"],
    "generate": ["RECIPE"],
    "make_bank": ["RECIPE"],
    "make_benchmarks": [],
    "make_pairs": ["URL"],
    "measure": ["URL"],
    "plan": ["RECIPE"],
    "prepare": ["SOURCE"],
    "report": ["URL"],
    "sweep": ["SPACE"],
    "train_attributes": ["URL"],
    "train_diffusion": ["RECIPE"],
    "train_recognizer": ["RECIPE"],
    "verify": ["URL"],
}


def jobs() -> list[str]:
    return sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """Return each job's --help, as a user sees it."""
    asked = {job: ready.run(f"jobs/{job}.py", "--help") for job in jobs()}
    assert not [job for job, shown in asked.items() if shown.returncode], asked
    return {job: shown.stdout for job, shown in asked.items()}


def test_every_job_is_a_command_and_in_the_table() -> None:
    assert jobs() == names()
    assert set(jobs()) == set(FLAGS) == set(POSITIONAL)


def test_flags_are_frozen(helps: dict[str, str]) -> None:
    found = {
        job: set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", usage(h))) for job, h in helps.items()
    }
    assert {job: flags - EVERY_JOB for job, flags in found.items()} == FLAGS
    assert all(EVERY_JOB - {"--help"} <= flags for flags in found.values())


def test_positional_arguments_are_frozen(helps: dict[str, str]) -> None:
    def positional(text: str) -> list[str]:
        outside = re.sub(r"\[(?:[^\[\]]|\[[^\]]*\])*\]", "", usage(text))
        outside = re.sub(r"--[a-z0-9-]+ \S+", "", outside)
        return [word for word in outside.split()[2:] if word.isupper()]

    assert {job: positional(text) for job, text in helps.items()} == POSITIONAL


def commands() -> list[tuple[str, str, list[str]]]:
    """Return the commands in the pages' code blocks: page, command, and the words after it."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))):
        for block in page.read_text().split("```")[1::2]:
            for line in block.replace("\\\n", " ").splitlines():
                line = line.partition("# ")[0]
                told = re.search(r"(?:^|[\s/])factory +([a-z][a-z_-]*)( .*|$)", line)
                told = told or re.search(r"python jobs/(\w+)\.py(.*)", line)
                if told:
                    found.append((page.name, told[1].replace("-", "_"), shlex.split(told[2])))
    return found


def is_recipe(word: str) -> bool:
    """Tell a recipe's path, in a checkout or by its short name, from other words."""
    return bool(re.match(r"(?:jobs/recipes/)?(?:desk|paper|published)/[\w/]+\.yaml$", word))


def test_commands_in_the_pages_have_flags_and_recipes_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short names are found wherever a command is run."""
    monkeypatch.chdir(tmp_path)
    found, recipes = commands(), 0
    assert len(found) > 30
    for page, command, words in found:
        assert command in FLAGS, (page, command, words)
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= FLAGS[command] | EVERY_JOB, (page, command, words)
        for recipe in filter(is_recipe, words):
            if "BAND" in recipe:
                continue
            recipes += 1
            sets = [after for word, after in pairwise(words) if word == "--set"]
            sets = [after.replace("=DIGEST", f"='{'0' * 16}'") for after in sets]
            stated = [s for s in sets if not s.partition("=")[2].isupper()]
            assert load(recipe, stated), (page, recipe)
    assert recipes > 10


def usage(text: str) -> str:
    """Return the usage paragraph of a --help text on one line."""
    return " ".join(text.partition("\n\n")[0].split())


def test_help_says_what_the_job_does(helps: dict[str, str]) -> None:
    for job, text in helps.items():
        described = text.split("\n\n")[1]
        assert described and not described.startswith(("positional", "options")), job


@pytest.mark.parametrize("job", jobs())
def test_entry_points_are_short(job: str) -> None:
    assert len((ROOT / "jobs" / f"{job}.py").read_text().splitlines()) < ENTRY_POINT_LINES


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return each command's parser."""
    made: dict[str, argparse.ArgumentParser] = {}
    with pytest.MonkeyPatch.context() as patched:
        for name in names():
            patched.setattr(cli, "run", lambda parser, job, name=name: made.update({name: parser}))
            importlib.import_module(f"factory.commands.{name}").main()
    return made


def test_what_names_an_output_is_refused_where_ray_would_delete_it(
    parsers: dict[str, argparse.ArgumentParser],
) -> None:
    """The types of local outputs are used for nothing else; an output may be a URL as well."""
    written = {
        action.dest
        for parser in parsers.values()
        for action in parser._actions
        if action.type in (cli.file, cli.local) or str(action.help).startswith("also write")
    }
    assert {"out", "to", "json", "embeddings", "centres", "onnx", "materialise"} <= written
    assert written <= set(cli.OUTPUTS)


def outcome(error: Exception | None, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    def job(_: object) -> None:
        if error is not None:
            raise error

    made = cli.parser("A job.")
    made.parse_args = lambda *_: argparse.Namespace(overrides=[])  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as stopped:
        cli.run(made, job)
    return stopped.value.code, capsys.readouterr().err


def test_exit_codes_are_0_1_2_and_stand_in_the_last_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert outcome(None, capsys) == (errors.DONE, "")
    code, said = outcome(FaultError("shard x: wrong hash"), capsys)
    assert code == errors.FAULTY and said.endswith("shard x: wrong hash (exit code 1)\n")
    code, said = outcome(InputError("recipe field seed: missing"), capsys)
    assert code == errors.WRONG_INPUT and said.endswith("seed: missing (exit code 2)\n")


@pytest.mark.parametrize(
    ("number", "name", "code", "said"),
    [
        (errno.ENOSPC, "/d/x", 1, "/d/x: No space left on device; the same command goes on when"),
        (errno.ENOSPC, None, 1, "a disk: No space left on device; "),
        (errno.EDQUOT, "/d/x", 1, "/d/x: Disk quota exceeded; "),
        (errno.EROFS, "/d/x", 1, "/d/x: Read-only file system; "),
        (errno.EACCES, "/d/x", 2, "/d/x: Permission denied; accepted is a path that this user may"),
        (errno.EPERM, b"/d/x", 2, "/d/x: Operation not permitted; accepted is a path that this"),
        (errno.EISDIR, "/d/x", 2, "/d/x: Is a directory; accepted is a file"),
        (errno.EEXIST, "/d/x", 2, "/d/x: File exists; accepted is a folder, or a path that is"),
        (errno.ENOTDIR, "/d/x", 2, "/d/x: Not a directory; accepted is a path below folders"),
        (errno.ENAMETOOLONG, "x" * 300, 2, f"{'x' * 60}...: a name or path of 300 characters; "),
    ],
)
def test_what_the_system_refuses_is_one_line(
    capsys: pytest.CaptureFixture[str], number: int, name: str | bytes | None, code: int, said: str
) -> None:
    error = OSError(number, os.strerror(number), name)
    told = outcome(error, capsys)
    assert told[0] == code
    assert told[1].startswith(f"error: {said}") and told[1].endswith(f"(exit code {code})\n")
    assert told[1].count("\n") == 1


def test_other_errors_of_the_system_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (
        OSError(errno.EIO, "Input/output error", "/d/x"),
        PermissionError(errno.EPERM, "Operation not permitted"),  # of a process, not of a path
        OSError("the store does not answer"),
    ):
        made = cli.parser("A job.")
        made.parse_args = lambda *_: argparse.Namespace(overrides=[])  # type: ignore[method-assign]
        with pytest.raises(OSError) as caught:
            cli.run(made, partial(throw, error))
        assert caught.value is error


def throw(error: Exception, _: object) -> None:
    raise error


def test_a_full_device_is_named_by_the_flag_that_asked_for_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The kernel names no file where a write to an open one fails."""
    made = cli.parser("A job.")
    given = argparse.Namespace(overrides=[], to="/dev/full")
    made.parse_args = lambda *_: given  # type: ignore[method-assign]
    with pytest.raises(SystemExit, match="1"):
        cli.run(made, lambda arguments: write_file(arguments.to, b"a page"))
    assert capsys.readouterr().err == (
        "error: --to /dev/full: No space left on device; the same command goes on when there is "
        "room to write (exit code 1)\n"
    )


def test_a_job_without_a_recipe_refuses_set(capsys: pytest.CaptureFixture[str]) -> None:
    made = cli.parser("A job.", url="a dataset")
    given = argparse.Namespace(url="x", overrides=["seed=1"])
    made.parse_args = lambda *_: given  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as stopped:
        cli.run(made, lambda _: 0)
    assert stopped.value.code == errors.WRONG_INPUT
    assert "--set seed=1: this job reads no recipe" in capsys.readouterr().err


def test_set_is_repeatable_and_argparse_agrees_on_2() -> None:
    made = cli.parser("A job.", recipe="a recipe")
    asked = made.parse_args(["r.yaml", "--set", "a=1", "--set", "b.c=2"])
    assert asked.overrides == ["a=1", "b.c=2"]
    with pytest.raises(SystemExit) as stopped:
        made.parse_args(["r.yaml", "--unknown"])
    assert stopped.value.code == errors.WRONG_INPUT


@pytest.mark.parametrize("count", ["0", "-2", "few"])
@pytest.mark.parametrize(
    ("job", "flag"),
    [
        *(("compare", flag) for flag in ("--seeds", "--identities", "--images-each")),
        ("demo", "--seeds"),
        *(("measure", flag) for flag in ("--identities", "--images-each")),
        ("prepare", "--size"),
        ("train_attributes", "--identities"),
        ("train_diffusion", "--max-steps"),
    ],
)
def test_a_count_of_nothing_is_refused_before_the_work(
    job: str,
    flag: str,
    count: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def begun(*given: object) -> None:
        raise AssertionError(f"{job} has begun")

    made = importlib.import_module(f"factory.commands.{job}")
    monkeypatch.setattr(made, "job", begun)
    monkeypatch.setattr(sys, "argv", [job, *(["x"] * len(POSITIONAL[job])), f"{flag}={count}"])
    with pytest.raises(SystemExit) as stopped:
        made.main()
    assert stopped.value.code == errors.WRONG_INPUT
    assert f"argument {flag}: {count}: accepted is 1 or more" in capsys.readouterr().err


def seconds(*arguments: str) -> float:
    """Return the processor's time of a Python, which is not that of its neighbours."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def torch_seconds() -> float:
    """How long torch alone takes to import here."""
    return seconds("-c", "import torch")


@pytest.mark.parametrize(
    "job",
    [["jobs/plan.py", RECIPE], ["-m", "factory", "plan", RECIPE], ["jobs/verify.py", "nowhere"]],
)
def test_they_start_at_once_and_load_neither_torch_nor_ray(
    job: list[str], torch_seconds: float
) -> None:
    assert seconds(*job) < 0.5 * torch_seconds  # about a sixth
    words = [sys.executable, "-X", "importtime", *job]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "factory.recipe" in loaded
    assert not {"torch", "ray", "diffusers", "mlflow", "pyarrow"} & loaded


def test_a_file_to_be_written_is_asked_about_before_the_work(tmp_path: Path) -> None:
    for fine in ("", str(tmp_path / "new.json"), "new.json"):
        assert cli.file(fine) == fine
    for wrong, said in (
        (str(tmp_path), "a folder; accepted is a file"),
        (str(tmp_path / "none/x.json"), "is no folder that can be written to"),
        ("s3://bucket/x.json", "this output takes no URL"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=said):
            cli.file(wrong)
