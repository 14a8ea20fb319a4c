"""Fixtures shared by all tests."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A real local Ray with four declared CPUs and one declared GPU."""
    import ray

    from factory.engine import connect

    ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    connect("")
    yield
    ray.shutdown()
