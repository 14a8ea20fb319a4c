"""Every job that lasts, stopped in the middle by both signals, and run again to its end."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lasting import JOBS, Lasting, command, states, unfinished
from stopping import ROOT, check, stop

QUICK = ("verify", "export")  # test_stops.py and tests/test_stops.py have others


def marked(lasting: Lasting) -> object:
    marks = [pytest.mark.slow] if lasting.job not in QUICK else []
    return pytest.param(lasting, marks=marks, id=lasting.job + lasting.what)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("lasting", [marked(lasting) for lasting in JOBS])
def test_a_stop_is_one_line_and_leaves_nothing_half_done(lasting: Lasting, tmp_path: Path) -> None:
    words = command(lasting, tmp_path)
    found = None
    for number in (signal.SIGINT, signal.SIGTERM):
        group = number == signal.SIGINT  # as a terminal's Ctrl-C
        found = stop(words, tmp_path, number, lasting.sign(tmp_path), group=group)
        check(found, number, lasting.kept)
        assert unfinished(tmp_path) == []
        assert [name for name in lasting.whole if (tmp_path / name).exists()] == []
    assert found is not None and re.search(lasting.resumes, found.out), found.out
    assert states(tmp_path) == ["KILLED"] * (2 * lasting.runs)
    if lasting.ends:
        ran = subprocess.run(
            [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
        assert all((tmp_path / name).exists() for name in lasting.whole)
        assert unfinished(tmp_path) == []
