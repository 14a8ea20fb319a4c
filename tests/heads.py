"""The end of a Ray head that a test started in a folder of its own."""

import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil


def end(started: subprocess.Popen[bytes], folder: Path) -> None:
    """End `ray start --block` and what it left: agents and nodes outlive a head that is lost.

    Never `ray stop`, which ends every Ray of the machine: ours are those that name our folder.
    """
    started.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        started.wait(timeout=30)
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if any(str(folder) in word for word in process.cmdline()):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)
