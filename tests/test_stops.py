"""Whatever a stopped job does, it ends soon, with one line, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from stopping import check, stop

from factory import stops

SOON = 15.0  # seconds; it takes five at most where the machine is not busy with other work
JOB = """
import multiprocessing, os, signal, subprocess, sys, threading, time
from pathlib import Path
from factory import stops
from factory.commands import chain, cli

def job(arguments):
{body}

if __name__ == "__main__":
    cli.run(cli.parser("A job."), job)
"""


def script(folder: Path, body: str) -> Path:
    file = folder / "job.py"
    file.write_text(JOB.format(body=textwrap.indent(textwrap.dedent(body), "    ")))
    return file


def ready(said: str) -> bool:
    return "ready" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_says_what_is_kept_and_ends_all_that_was_started(
    tmp_path: Path, number: signal.Signals
) -> None:
    body = """
        child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
        subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE)
        with stops.keeping(lambda: "3 of 60 shards are committed"):
            print("ready", flush=True)
            time.sleep(600)
    """
    found = stop([script(tmp_path, body)], tmp_path, number, ready)
    assert check(found, number, ".*") == "3 of 60 shards are committed"
    assert found.seconds < SOON


def test_blocks_end_in_order_before_the_line(tmp_path: Path) -> None:
    body = """
        with stops.keeping(lambda: Path("ended").read_text()):
            try:
                print("ready", flush=True)
                time.sleep(600)
            finally:
                Path("ended").write_text("all of it")
    """
    body = body.replace('"ended"', repr(str(tmp_path / "ended")))
    found = stop([script(tmp_path, body)], tmp_path, signal.SIGTERM, ready)
    assert check(found, signal.SIGTERM, ".*") == "all of it"


HANGS = """
    def tell():
        raise OSError("no answer")

    with stops.ending(lambda: Path("done").write_text("")), stops.keeping(tell):
        try:
            print("ready", flush=True)
            time.sleep(600)
        finally:
            time.sleep(600)
"""


def test_a_job_that_hangs_while_it_ends_is_ended(tmp_path: Path) -> None:
    body = HANGS.replace('"done"', repr(str(tmp_path / "done")))
    found = stop([script(tmp_path, body)], tmp_path, signal.SIGINT, ready)
    check(found, signal.SIGINT)
    assert stops.ORDERLY_SEC <= found.seconds < SOON and (tmp_path / "done").exists()


def test_a_second_signal_ends_at_once_but_one_that_is_sent_twice_is_one(tmp_path: Path) -> None:
    body = HANGS.replace('"done"', repr(str(tmp_path / "done")))
    found = stop([script(tmp_path, body)], tmp_path, signal.SIGINT, ready, 1.0)
    check(found, signal.SIGINT)
    assert found.seconds < stops.ORDERLY_SEC or os.getloadavg()[0] > 2
    body = """
        try:
            print("ready", flush=True)
            time.sleep(600)
        finally:
            time.sleep(1)
            print("lost")
            Path("ended").write_text("")
    """
    body = body.replace('"ended"', repr(str(tmp_path / "ended")))
    found = stop([script(tmp_path, body)], tmp_path, signal.SIGINT, ready, 0.01)
    check(found, signal.SIGINT)
    assert (tmp_path / "ended").exists() and "lost" not in found.out


@pytest.mark.parametrize("group", [True, False])
def test_a_job_that_runs_another_hands_the_signal_on_and_leaves_the_line_to_it(
    tmp_path: Path, group: bool
) -> None:
    body = """
        with stops.keeping(lambda: "2 of 9 shards are committed"):
            print("ready", flush=True)
            time.sleep(600)
    """
    inner = script(tmp_path, body).rename(tmp_path / "inner.py")
    instead = tmp_path / "python"  # of the command that a chain would run
    instead.write_text(f"#!/bin/sh\nexec {sys.executable} {inner}\n")
    instead.chmod(0o755)
    outer = f"""
        sys.executable = {str(instead)!r}
        made = chain.Chain(Path("."), "", "", (1,), Path("."))
        made.step("inner", "inner")
    """
    file = script(tmp_path, outer)
    number = signal.SIGINT if group else signal.SIGTERM
    found = stop([file], tmp_path, number, ready, group=group)
    assert check(found, number, ".*") == "2 of 9 shards are committed"


def test_a_child_that_is_still_importing_shows_nothing_of_its_own(tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ntime.sleep(600)\n")
    body = f"""
        with stops.shielded():
            child = subprocess.Popen([sys.executable, {str(slow)!r}])
        print("ready", flush=True)
        child.wait()
    """
    found = stop([script(tmp_path, body)], tmp_path, signal.SIGINT, ready, group=True)
    check(found, signal.SIGINT)


def test_a_job_that_is_still_importing_says_the_line(tmp_path: Path) -> None:
    file = tmp_path / "jobs/slow.py"
    file.parent.mkdir()
    file.write_text(
        "import time\nfrom factory.commands import cli\nprint('ready')\ntime.sleep(600)\n"
    )
    check(stop([file], tmp_path, signal.SIGINT, ready), signal.SIGINT)


def test_handlers_are_those_of_before_after_the_block() -> None:
    before = [signal.getsignal(number) for number in stops.SIGNALS]
    with stops.watched():
        assert [signal.getsignal(number) for number in stops.SIGNALS] != before
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ray does
        stops.install()
        assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT)
    assert [signal.getsignal(number) for number in stops.SIGNALS] == before
    stops.install()  # nobody watches: as in a worker
    assert [signal.getsignal(number) for number in stops.SIGNALS] == before


def test_what_is_killed_is_gone_even_if_its_parent_goes_first(tmp_path: Path) -> None:
    """A process with much memory takes longer to go than its parent, and is then init's."""
    large = f"m = b'x' * (1 << 30); open({str(tmp_path / 'ready')!r}, 'w').close(); input()"
    words = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {large!r}])"
    with subprocess.Popen([sys.executable, "-c", words], stdin=subprocess.PIPE) as started:
        while not (tmp_path / "ready").exists():
            assert started.poll() is None
            time.sleep(0.01)
        (child,) = psutil.Process(started.pid).children()
        family = {started.pid, child.pid}
        assert family <= stops.below()
        stops.kill(family)
        assert [one for one in family if _lives(one)] == []


def _lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
