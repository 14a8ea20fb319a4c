"""Lines of progress: none twice, none too often."""

import pytest

from factory.cluster.progress import ProgressLine


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
