"""The line that shows how far a job is."""

import sys
import threading
import time

TERMINAL_SEC, LOG_SEC = 2.0, 60.0  # between two lines of one kind

_open = threading.RLock()  # one line at a time: a watch has lines, too
_rewrites: "ProgressLine | None" = None  # whose line is the last one of a terminal


class ProgressLine:
    """Shows progress as one line: it is rewritten on a terminal, and repeated in a log.

    A log gets a line a minute of each kind, which is a line's first word.
    """

    def __init__(self, interval_sec: float | None = None) -> None:
        """Show at most one line of a kind every `interval_sec`; two seconds on a terminal."""
        self.interval_sec = interval_sec
        self.shown_at = -float("inf")
        self.shown = ""

    def __call__(self, line: str) -> None:
        """Show `line`, unless it was just shown or another was less than `interval_sec` ago."""
        global _rewrites
        terminal = sys.stdout.isatty()
        with _open:
            if line == self.shown:
                return
            soon = time.monotonic() - self.shown_at < self._interval(terminal)
            if soon and (terminal or _kind(line) == _kind(self.shown)):
                return
            up = "\x1b[1A\x1b[2K" if _rewrites is self else ""
            print(f"{up}{line}", flush=True)
            self.shown_at, self.shown = time.monotonic(), line
            _rewrites = self if terminal else None

    def _interval(self, terminal: bool) -> float:
        if self.interval_sec is not None:
            return self.interval_sec
        return TERMINAL_SEC if terminal else LOG_SEC


def notice(line: str) -> None:
    """Show a line that stays, whatever progress comes after it."""
    global _rewrites
    with _open:
        print(line, flush=True)
        _rewrites = None


def _kind(line: str) -> str:
    return line.partition(" ")[0]
