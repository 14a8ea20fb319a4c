"""The line that shows how far a job is."""

import sys
import time


class ProgressLine:
    """Shows progress as one line: it is rewritten on a terminal, and repeated in a log."""

    def __init__(self, interval_sec: float = 2.0) -> None:
        """Show at most one line every `interval_sec`."""
        self.interval_sec = interval_sec
        self.shown_at = -interval_sec
        self.rewrite = False
        self.shown = ""

    def __call__(self, line: str) -> None:
        """Show `line`, unless it was just shown or another was less than `interval_sec` ago."""
        if line == self.shown or time.monotonic() - self.shown_at < self.interval_sec:
            return
        up = "\x1b[1A\x1b[2K" if self.rewrite else ""
        print(f"{up}{line}", flush=True)
        self.shown_at, self.rewrite = time.monotonic(), sys.stdout.isatty()
        self.shown = line
