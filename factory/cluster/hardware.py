"""What a process computes on: its threads, its precision, and kernels that give equal bytes."""

import ctypes
import logging
import os
import platform
import socket
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

WORKSPACE = ":4096:8"  # what cuBLAS needs to add up in one order; read when it first starts
CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # by which a user lowers what oneDNN takes
WITHOUT_BFLOAT16 = (  # oneDNN's names of instruction sets that multiply no bfloat16
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_CORE", "AVX512_CORE_VNNI"),
)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
AMPERE = (8, 0)  # the first compute capability of GPUs that multiplies bfloat16


@dataclass(frozen=True)
class Processor:
    """What a node computes on.

    Attributes:
        node: its host name.
        name: of the CPU or GPU.
        bfloat16: whether it has instructions for bfloat16 that the libraries will use.
    """

    node: str
    name: str
    bfloat16: bool


def processor(gpu: bool) -> Processor:
    """Return what this process computes on: its GPU, or the CPU."""
    node = socket.gethostname()
    if gpu:
        able = torch.cuda.get_device_capability() >= AMPERE
        return Processor(node, torch.cuda.get_device_name(), able)
    return Processor(node, cpu_name(), _cpu_multiplies_bfloat16())


def cpu_name() -> str:
    """Return the CPU's name as the kernel tells it."""
    with open("/proc/cpuinfo") as file:
        named = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _cpu_multiplies_bfloat16() -> bool:
    """Ask what oneDNN and torch will use here, which users can set lower than the CPU's flags."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False  # it takes AVX-512 for enough, with or without bfloat16
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    if any(os.environ.get(cap, "").upper() in WITHOUT_BFLOAT16 for cap in CAPS):
        return False
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def emulation(gpu: bool) -> str:
    """Return what computing in bfloat16 costs on this processor; "" where it has instructions.

    A convolution of the desk networks' kind is timed in both precisions, in a few tenths of a
    second.
    """
    here = processor(gpu)
    if here.bfloat16:
        return ""
    device = torch.device("cuda" if gpu else "cpu")
    x = torch.randn(4, 128, 16, 16, device=device).contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(128, 128, 3, padding=1, device=device)
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seconds = [_seconds(layer, x, low) for low in (False, True)]
    return (
        f"{here.name} of node {here.node} has no bfloat16 instructions and emulates them: a "
        f"convolution takes {seconds[1] / seconds[0]:.0f} times as long as in float32"
    )


def _seconds(layer: torch.nn.Module, x: torch.Tensor, low: bool) -> float:
    """Return the median time of a call; on a GPU with the wait for its end."""
    found = []
    with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=low):
        for _ in range(7):
            start = time.perf_counter()
            layer(x).sum().item()
            found.append(time.perf_counter() - start)
    return statistics.median(found[2:])


def set_up(threads: int, gpu: bool, precision: str = "float32") -> None:
    """Set this process up to compute; before its first tensor on a GPU.

    On a GPU torch takes deterministic kernels, and warns of an operation that has none. On a CPU
    its kernels repeat themselves; there the number of threads is set, and that freed memory is
    kept for the next tensor. A process that is asked
    for bfloat16 and has to emulate it says so once in its log.

    Args:
        threads: torch's on the CPU.
        gpu: whether the process computes on a GPU.
        precision: float32 or bfloat16, what its networks compute in.
    """
    torch.set_num_threads(threads)
    _keep_freed_memory()
    if precision == "bfloat16" and (said := emulation(gpu)):
        logging.getLogger(__name__).warning("%s; float32 avoids it", said)
    if not gpu:
        return
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = WORKSPACE
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory: Any = torch.utils.deterministic  # typed as a module without it
    memory.fill_uninitialized_memory = False  # which costs time, and nothing here reads such memory


def _keep_freed_memory() -> None:
    """Have glibc hand freed memory to the next tensor instead of to the kernel.

    A step frees and takes the same large blocks again; each would come back from the kernel page by
    page, cleared, which took a tenth of a recognizer's step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def gpu_facts() -> dict[str, str]:
    """Return what decides the bytes of this process's GPU: its name and CUDA's version."""
    return {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
