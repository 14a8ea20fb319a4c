"""What a process sets for a GPU, and that a CPU is left as it was."""

import os
import subprocess
import sys

import torch
from gpu import settings_kept

from factory.cluster.hardware import set_up


def settings() -> tuple[bool, bool, bool, str]:
    cudnn, workspace = torch.backends.cudnn, os.environ.get("CUBLAS_WORKSPACE_CONFIG", "")
    enabled = torch.are_deterministic_algorithms_enabled()
    return cudnn.benchmark, cudnn.deterministic, enabled, workspace


def test_kernels_repeat_themselves_on_a_gpu_and_a_cpu_is_left_alone() -> None:
    threads = torch.get_num_threads()
    with settings_kept():
        torch.backends.cudnn.benchmark = True
        before = settings()
        set_up(threads, False)
        assert settings() == before
        set_up(threads, True)
        assert settings() == (False, True, True, ":4096:8")
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


FAULTS = """
import resource, sys, torch
from factory.cluster.hardware import set_up
if sys.argv[1] == "set up":
    set_up(1, False)
for turn in range(20):
    if turn == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(4_000_000) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    """Page faults, as the kernel counts them: 16 MB of ones are 4,000 pages.

    By itself glibc gives back what it pleases; here it is told to give back every block.
    """
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}

    def faults(how: str) -> int:
        ran = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, env=env
        )
        return int(ran.stdout)

    assert faults("set up") < 1000 < 16 * 4 * 1000 < faults("as it is")
