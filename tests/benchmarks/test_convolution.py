"""The convolution's rate against its count of operations and its runs' own time."""

import time

import torch

from benchmarks.convolution import DTYPES, LAYOUTS, OPERATIONS, measure, rate


def test_a_rate_is_the_operations_of_a_run_over_its_time() -> None:
    start = time.perf_counter()
    found = rate(torch.float32, torch.channels_last, repeats=1)
    assert found >= OPERATIONS / (time.perf_counter() - start)  # the run is a part of this time


def test_operations_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        rate(torch.float32, torch.contiguous_format, repeats=1)
    assert counter.get_total_flops() == 2 * OPERATIONS  # the run that warms up, and one


def test_every_precision_and_layout_has_its_rate() -> None:
    found = measure(repeats=1)
    names = [f"{dtype}_{layout}_gflops" for dtype in DTYPES for layout in LAYOUTS]
    assert list(found) == ["processor", "fast_bfloat16", *names]
    assert all(found[name] > 0 for name in names)
