"""cluster.yaml: what Ray's own validation checks, and what it lets through."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent
DASHBOARD_LOCAL = "--dashboard-host=127.0.0.1"


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_ray_would_refuse_a_typo(cluster: dict[str, Any]) -> None:
    broken = copy.deepcopy(cluster)
    broken["idle_timeout_minuets"] = 5
    with pytest.raises(Exception, match="idle_timeout_minuets"):
        validate_config(prepare_config(broken))


def test_images_are_pinned_to_the_ray_of_the_constraints(cluster: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    images = [cluster["docker"]["image"]]
    for node in cluster["available_node_types"].values():
        images += [node["docker"]["worker_image"]] if "docker" in node else []
    assert all(image.startswith(f"rayproject/ray:{pinned[1]}-py311") for image in images), images


def test_gpu_workers_are_spot_and_the_head_is_not(cluster: dict[str, Any]) -> None:
    for node in cluster["available_node_types"].values():
        market = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        if "GPU" in node["resources"]:
            assert market == "spot"
            assert node["docker"]["worker_image"].endswith("-gpu")
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] == 0


def test_workers_go_when_idle_and_their_sum_is_allowed(cluster: dict[str, Any]) -> None:
    assert 0 < cluster["idle_timeout_minutes"] <= 15
    workers = [n for n in cluster["available_node_types"].values() if "max_workers" in n]
    assert all(n["min_workers"] == 0 < n["max_workers"] for n in workers)
    assert sum(n["max_workers"] for n in workers) <= cluster["max_workers"]


def test_nobody_reaches_it_without_the_token(cluster: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["~/.ray"] == "~/.ray"  # where ray keeps its token
    assert "security_group" not in cluster["provider"]  # Ray's own opens ssh and nothing else
    starts = [line for line in cluster["head_start_ray_commands"] if "--head" in line]
    assert len(starts) == 1 and DASHBOARD_LOCAL in starts[0]
    assert "0.0.0.0" not in (ROOT / "cluster.yaml").read_text()
