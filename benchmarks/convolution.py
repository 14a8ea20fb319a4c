"""Measure how fast one core convolves, in float32 and bfloat16, channels last and contiguous.

    python -m benchmarks.convolution

One 3x3 convolution of 128 channels on 32x32 maps, a batch of 16. Its rate says what the precision
of a recipe costs on a processor: where bfloat16 is emulated, it is many times slower than float32.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import conv2d

from factory.cluster import hardware

BATCH, CHANNELS, EDGE, KERNEL = 16, 128, 32, 3
OPERATIONS = 2 * BATCH * CHANNELS**2 * EDGE**2 * KERNEL**2  # a multiplication and an addition
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@torch.inference_mode()
def rate(dtype: torch.dtype, layout: torch.memory_format, repeats: int) -> float:
    """Return operations a second of the convolution, the median of `repeats` runs."""
    kernels = torch.randn(CHANNELS, CHANNELS, KERNEL, KERNEL)
    maps = torch.randn(BATCH, CHANNELS, EDGE, EDGE)
    kernels, maps = (given.to(dtype=dtype, memory_format=layout) for given in (kernels, maps))
    conv2d(maps, kernels, padding=KERNEL // 2)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        conv2d(maps, kernels, padding=KERNEL // 2)
        seconds.append(time.perf_counter() - start)
    return OPERATIONS / statistics.median(seconds)


def measure(repeats: int) -> dict[str, Any]:
    """Return the processor, and GFLOP/s by precision and layout."""
    here = hardware.processor(gpu=False)
    found: dict[str, Any] = {"processor": here.name, "fast_bfloat16": here.bfloat16}
    for name, dtype in DTYPES.items():
        for layout, memory in LAYOUTS.items():
            found[f"{name}_{layout}_gflops"] = round(rate(dtype, memory, repeats) / 1e9, 1)
    return found


def main() -> None:
    """Measure on one core, print and write the rates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20, help="runs of each convolution")
    parser.add_argument("--json", help="write the rates to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(given.repeats)
    print(json.dumps(found))
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
