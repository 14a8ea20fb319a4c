"""What a process sets for a GPU, and that a CPU is left as it was."""

import os

import torch
from gpu import settings_kept

from factory.hardware import set_up


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
