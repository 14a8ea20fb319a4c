"""The hardware of a process: its CPU or GPU, threads, precision and deterministic kernels."""

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

WORKSPACE = ":4096:8"  # makes cuBLAS add up in one order; it reads this when it first starts
CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # variables that limit oneDNN's instructions
WITHOUT_BFLOAT16 = (  # oneDNN's names of instruction sets that cannot multiply bfloat16
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_CORE", "AVX512_CORE_VNNI"),
)
WITHOUT_AMX = (*WITHOUT_BFLOAT16, "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512")
INTEL = "GenuineIntel"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
AMPERE = (8, 0)  # the lowest compute capability of a GPU that can multiply bfloat16


@dataclass(frozen=True)
class Processor:
    """The CPU or GPU that a node computes on.

    Attributes:
        node: the node's host name.
        name: the name of the CPU or GPU.
        bfloat16: whether the libraries multiply bfloat16 faster than float32 on it.
    """

    node: str
    name: str
    bfloat16: bool


def processor(gpu: bool) -> Processor:
    """Return this process's GPU if `gpu`, else its CPU."""
    node = socket.gethostname()
    if gpu:
        able = torch.cuda.get_device_capability() >= AMPERE
        return Processor(node, torch.cuda.get_device_name(), able)
    return Processor(node, cpu_name(), _cpu_multiplies_bfloat16())


def cpu_name() -> str:
    """Return the CPU's name from /proc/cpuinfo, or the machine's type without one."""
    return _cpu_fact("model name") or platform.machine()


def _cpu_fact(name: str) -> str:
    """Return what /proc/cpuinfo says of the first CPU, "" if it does not say."""
    with open("/proc/cpuinfo") as file:
        found = [line.partition(":")[2].strip() for line in file if line.startswith(name)]
    return found[0] if found else ""


def _cpu_multiplies_bfloat16() -> bool:
    """Tell whether oneDNN and torch will gain from bfloat16; a user may have limited them.

    An Intel processor gains by AMX alone. AVX512-BF16 multiplies there on one of two ports: a
    Xeon whose hypervisor hides AMX took twice as long as in float32 (docs/precision.md).
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False  # a True is not enough: any AVX-512 counts there, even without bfloat16
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False
    caps = {os.environ.get(cap, "").upper() for cap in CAPS}
    if torch.cpu._is_amx_tile_supported() and caps.isdisjoint(WITHOUT_AMX):
        return True
    if _cpu_fact("vendor_id") == INTEL:
        return False
    return torch.cpu._is_avx512_bf16_supported() and caps.isdisjoint(WITHOUT_BFLOAT16)


def slowness(gpu: bool) -> str:
    """Return a sentence on the cost of bfloat16 here; "" if it is faster than float32.

    A convolution like those of the desk networks is timed in both precisions, which takes a few
    tenths of a second.
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
        f"{here.name} of node {here.node} has no fast bfloat16: a convolution takes "
        f"{seconds[1] / seconds[0]:.1f} times as long as in float32"
    )


def _seconds(layer: torch.nn.Module, x: torch.Tensor, low: bool) -> float:
    """Return the median time of a call in seconds; on a GPU this includes the wait for its end."""
    found = []
    with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=low):
        for _ in range(7):
            start = time.perf_counter()
            layer(x).sum().item()
            found.append(time.perf_counter() - start)
    return statistics.median(found[2:])


def set_up(threads: int, gpu: bool, precision: str = "float32") -> None:
    """Prepare this process for computing; call this before its first tensor on a GPU.

    On a GPU, torch is told to use deterministic kernels and to warn of an operation that has none.
    On a CPU all kernels are deterministic; the number of threads is set, and freed memory is kept
    for the next tensor. A process that is slow in bfloat16 and told to use it logs one warning.

    Args:
        threads: number of torch's threads on the CPU.
        gpu: whether the process computes on a GPU.
        precision: float32 or bfloat16, in which its networks compute.
    """
    torch.set_num_threads(threads)
    _keep_freed_memory()
    if precision == "bfloat16" and (said := slowness(gpu)):
        logging.getLogger(__name__).warning("%s; float32 avoids it", said)
    if not gpu:
        return
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = WORKSPACE
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory: Any = torch.utils.deterministic  # typed as a module without it
    memory.fill_uninitialized_memory = False  # filling costs time; nothing here reads such memory


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next tensor instead of returning it to the kernel.

    Each training step frees and requests the same large blocks. The kernel would clear them again
    page by page, which took a tenth of a recognizer's step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def gpu_facts() -> dict[str, str]:
    """Return the facts that decide the bytes a GPU computes: its name and CUDA's version."""
    return {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
