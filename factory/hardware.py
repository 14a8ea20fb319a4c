"""What a process computes on: its threads, and a GPU's kernels that give equal bytes."""

import os
from typing import Any

import torch

WORKSPACE = ":4096:8"  # what cuBLAS needs to add up in one order; read when it first starts


def set_up(threads: int, gpu: bool) -> None:
    """Set this process up to compute; before its first tensor on a GPU.

    On a GPU torch takes deterministic kernels, and warns of an operation that has none. On a CPU
    nothing but the number of threads is set: its kernels repeat themselves.

    Args:
        threads: torch's on the CPU.
        gpu: whether the process computes on a GPU.
    """
    torch.set_num_threads(threads)
    if not gpu:
        return
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = WORKSPACE
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory: Any = torch.utils.deterministic  # typed as a module without it
    memory.fill_uninitialized_memory = False  # which costs time, and nothing here reads such memory


def gpu_facts() -> dict[str, str]:
    """Return what decides the bytes of this process's GPU: its name and CUDA's version."""
    return {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
