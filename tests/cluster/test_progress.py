"""Lines of progress: none twice, none too often."""

import pytest

from factory.cluster import progress
from factory.cluster.progress import ProgressLine, notice


def test_no_line_is_shown_twice_in_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    show = ProgressLine(interval_sec=0.0)
    for line in ("step 1", "step 1", "step 2", "step 1"):
        show(line)
    assert capsys.readouterr().out.splitlines() == ["step 1", "step 2", "step 1"]


def test_a_line_too_soon_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    show = ProgressLine(interval_sec=3600.0)
    for line in ("step 1", "step 2"):
        show(line)
    assert capsys.readouterr().out.splitlines() == ["step 1"]


def test_a_log_has_a_line_a_minute_of_each_kind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    show = ProgressLine()
    for second, line in ((0, "bank 1"), (1, "bank 2"), (2, "shards 1"), (59, "shards 2")):
        now[0] = second
        show(line)
    for second in (62, 63, 122):
        now[0] = second
        show(f"shards at {second}")
    assert capsys.readouterr().out.splitlines() == [
        *("bank 1", "shards 1", "shards at 62", "shards at 122"),
    ]


def test_a_terminals_line_is_rewritten_and_a_notice_stays(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show, up = ProgressLine(0.0), "\x1b[1A\x1b[2K"
    for say, line in ((show, "a"), (show, "b"), (notice, "stuck"), (show, "c"), (show, "d")):
        say(line)
    assert capsys.readouterr().out == f"a\n{up}b\nstuck\nc\n{up}d\n"
    other = ProgressLine(0.0)
    other("e")
    assert capsys.readouterr().out == "e\n"
