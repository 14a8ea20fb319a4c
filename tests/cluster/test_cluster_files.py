"""cluster.yaml and docs/kuberay.yaml: Ray's own validation, and all that it lets through.

What AWS has is read from the tables that botocore (request shapes, regions) and moto (sizes and
places of instance types) bring along, so that nothing is asked of a cloud.
"""

import copy
import gzip
import json
import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.aws.config import DEFAULT_AMI, _create_default_inbound_rules
from ray.autoscaler._private.util import prepare_config, validate_config

from factory.nodes import GROWS_TO, cluster_groups, grows_to, reservations
from factory.recipe import BankRecipe, FRRecipe, GenerateRecipe, TrainRecipe, load

ROOT = Path(__file__).parents[2]
RECIPES = sorted(ROOT.glob("jobs/recipes/paper/*/*.yaml"))
DASHBOARD_LOCAL = "--dashboard-host=127.0.0.1"

Config = dict[str, Any]
Resources = dict[str, float]


@pytest.fixture
def cluster() -> Config:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def kuberay() -> Config:
    return yaml.safe_load((ROOT / "docs/kuberay.yaml").read_text())


def pinned_ray() -> str:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    return pinned[1]


@cache
def asked(path: Path) -> list[Resources]:
    """Return what the actors or workers of a recipe reserve at once, one entry each."""
    recipe = load(path)
    if isinstance(recipe, BankRecipe):
        workers = recipe.workers
        return [{"CPU": workers.num_cpus, "GPU": workers.num_gpus}] * workers.max
    if isinstance(recipe, GenerateRecipe):
        pools = reservations(recipe)
        return [{"CPU": p.num_cpus, "GPU": p.num_gpus} for p in pools for _ in range(p.size)]
    assert isinstance(recipe, FRRecipe | TrainRecipe)
    engine = recipe.engine
    return [{"CPU": engine.num_cpus, "GPU": engine.num_gpus}] * engine.workers


def unplaced(wanted: list[Resources], nodes: list[Resources]) -> int:
    """Return how many reservations find no node, the largest placed first."""
    free, left = [dict(node) for node in nodes], 0
    for one in sorted(wanted, key=lambda r: (r["GPU"], r["CPU"]), reverse=True):
        fits = [n for n in free if all(n.get(kind, 0) >= one[kind] for kind in one)]
        if not fits:
            left += 1
            continue
        taken = min(fits, key=lambda n: (n.get("GPU", 0), n["CPU"]))
        for kind in one:
            taken[kind] = taken.get(kind, 0) - one[kind]
    return left


def too_small(nodes: list[Resources]) -> list[str]:
    """Name the paper recipes that nodes, all of them started, cannot hold."""
    lacks = {path: unplaced(asked(path), nodes) for path in RECIPES}
    return [
        f"recipe {p.parent.name}/{p.name}: {n} actors find no node" for p, n in lacks.items() if n
    ]


# AWS


@cache
def aws(path: str) -> Any:
    found = find_spec("moto")
    assert found is not None and found.submodule_search_locations
    file = Path(found.submodule_search_locations[0], "ec2/resources", path)
    return json.loads(gzip.decompress(file.read_bytes()))


@cache
def offered(region: str) -> set[tuple[str, str]]:
    """Return the instance types of a region's zones, as (zone, type)."""
    listed = aws(f"instance_type_offerings/availability-zone/{region}.json.gz")
    return {(one["Location"], one["InstanceType"]) for one in listed}


@cache
def botocore_knows() -> tuple[list[str], Any]:
    """Return the regions that have EC2, and the shape of a request for instances."""
    session = botocore.session.get_session()
    model = session.get_service_model("ec2")
    return session.get_available_regions("ec2"), model.operation_model("RunInstances").input_shape


def faults(cluster: Config) -> list[str]:
    """Name what keeps a cluster that Ray's validation accepts from starting or from its work."""
    region = cluster["provider"].get("region")
    regions, request = botocore_knows()
    if region not in regions:
        return [f"provider.region: {region}, no region of AWS"]
    found, places = [], offered(region)
    zones = cluster["provider"].get("availability_zone", f"{region}a").split(",")
    for zone in zones:
        if zone not in {place for place, _ in places}:
            found.append(f"provider.availability_zone: {zone}, not in {region}")
    nodes: list[Resources] = []
    for name, node in cluster["available_node_types"].items():
        what, config = node["node_config"].get("InstanceType"), node["node_config"]
        report = ParamValidator().validate(config | {"MinCount": 1, "MaxCount": 1}, request)
        found += [f"{name}.node_config: {report.generate_report()}"] * report.has_errors()
        size = aws("instance_types.json.gz").get(what)
        if size is None:
            found.append(f"{name}.InstanceType: {what}, no such type")
            continue
        if not any((zone, what) in places for zone in zones):
            found.append(f"{name}.InstanceType: {what}, not offered in {cluster['provider']}")
        has = {
            "CPU": size["VCpuInfo"]["DefaultVCpus"],
            "GPU": sum(gpu["Count"] for gpu in size.get("GpuInfo", {}).get("Gpus", [])),
        }
        if "ImageId" not in config and region not in DEFAULT_AMI:
            found.append(f"{name}.ImageId: missing, and Ray has no default in {region}")
        if has["GPU"] and not config.get("ImageId", "").startswith("ami-"):
            found.append(f"{name}.ImageId: missing, and Ray's default has an old driver")
        idle = name == cluster["head_node_type"] and node["resources"]["CPU"] == 0
        says = {"CPU": 0, "GPU": 0} | node["resources"]
        if says != has and not idle:
            found.append(f"{name}.resources: {says}, but {what} has {has}")
        image = node.get("docker", {}).get("worker_image", cluster["docker"].get("image", ""))
        if image.endswith("-gpu") != bool(has["GPU"]):
            found.append(f"{name}: image {image} on {what}")
        most = node.get("max_workers", 0)
        if name != cluster["head_node_type"] and not most:
            found.append(f"{name}.max_workers: {most}, the group never starts")
        nodes += [node["resources"]] * most
    if len(nodes) > cluster["max_workers"]:
        found.append(f"max_workers: {cluster['max_workers']}, the groups have {len(nodes)}")
    return found + too_small(nodes)


def test_ray_accepts_it(cluster: Config) -> None:
    validate_config(prepare_config(cluster))


def test_ray_would_refuse_a_typo(cluster: Config) -> None:
    broken = copy.deepcopy(cluster)
    broken["idle_timeout_minuets"] = 5
    with pytest.raises(Exception, match="idle_timeout_minuets"):
        validate_config(prepare_config(broken))


def test_it_can_start_and_hold_every_paper_recipe(cluster: Config) -> None:
    assert len(RECIPES) >= 12
    assert faults(cluster) == []


def groups(change: Callable[[Config], Any]) -> Callable[[Config], Any]:
    return lambda cluster: change(cluster["available_node_types"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["provider"].pop("region"), "provider.region: None"),
        (lambda c: c["provider"].update(region="us-west-9"), "us-west-9, no region of AWS"),
        (lambda c: c["provider"].update(availability_zone="us-east-1a"), "us-east-1a, not in"),
        (lambda c: c.update(max_workers=10), "max_workers: 10, the groups have 24"),
        (groups(lambda g: g["cpu"].update(max_workers=0)), "cpu.max_workers: 0"),
        (groups(lambda g: g["gpu_spot"].update(max_workers=4)), "actors find no node"),
        (groups(lambda g: g["cpu"]["resources"].update(CPU=32)), "but c6i.4xlarge has"),
        (groups(lambda g: g["cpu"]["resources"].update(GPU=1)), "but c6i.4xlarge has"),
        (groups(lambda g: g["cpu"]["node_config"].update(InstanceTyp="x")), '"InstanceTyp"'),
        (groups(lambda g: g["cpu"]["node_config"].update(InstanceType="c99.large")), "no such"),
        (groups(lambda g: g["gpu_spot"].pop("docker")), "image rayproject/ray"),
        (
            groups(lambda g: g["gpu_spot"]["node_config"].pop("ImageId")),
            "gpu_spot.ImageId: missing",
        ),
        (
            groups(lambda g: g["cpu"]["node_config"]["BlockDeviceMappings"][0].update(Esb={})),
            '"Esb"',
        ),
        (
            lambda c: (
                c["provider"].update(region="af-south-1", availability_zone="af-south-1a"),
                c["available_node_types"]["cpu"]["node_config"].update(InstanceType="c8g.large"),
            ),
            "Ray has no default in af-south-1",
        ),
    ],
)
def test_what_ray_lets_through_is_found(cluster: Config, change: Any, named: str) -> None:
    change(cluster)
    validate_config(prepare_config(copy.deepcopy(cluster)))
    assert any(named in fault for fault in faults(cluster)), faults(cluster)


def test_a_reservation_needs_one_node_not_the_sum_of_several() -> None:
    halves: list[Resources] = [{"CPU": 4, "GPU": 1}] * 2
    assert unplaced([{"CPU": 8, "GPU": 1}], halves) == 1
    assert unplaced([{"CPU": 4, "GPU": 0.5}] * 2, halves) == 0
    assert unplaced([{"CPU": 1, "GPU": 0}] * 9, halves) == 1


def test_jobs_are_told_what_it_grows_to(cluster: Config) -> None:
    (said,) = [line for line in cluster["docker"]["run_options"] if GROWS_TO in line]
    groups = [n for name, n in cluster["available_node_types"].items() if name != "head"]
    told = [({"CPU": 0, "GPU": 0} | n["resources"], n["max_workers"]) for n in groups]
    assert grown(said.partition("=")[2]) == told
    below = [group for group in cluster_groups(cluster, "cluster.yaml") if group.cpus]
    assert [({"CPU": g.cpus, "GPU": g.gpus}, g.count) for g in below] == told


def grown(said: str) -> list[tuple[Resources, int]]:
    return [({"CPU": g.cpus, "GPU": g.gpus}, g.count) for g in grows_to(said)]


def test_images_are_pinned_to_the_ray_of_the_constraints(cluster: Config) -> None:
    images = [cluster["docker"]["image"]]
    for node in cluster["available_node_types"].values():
        images += [node["docker"]["worker_image"]] if "docker" in node else []
    assert all(image.startswith(f"rayproject/ray:{pinned_ray()}-py311") for image in images), images


def test_workers_are_spot_and_the_head_is_not(cluster: Config) -> None:
    head = cluster["available_node_types"].pop(cluster["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"] and head["resources"]["CPU"] == 0
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert node["min_workers"] == 0
    assert 0 < cluster["idle_timeout_minutes"] <= 15


def test_the_world_reaches_ssh_alone_and_ray_asks_for_the_token(cluster: Config) -> None:
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["~/.ray"] == "~/.ray"  # where ray keeps its token
    assert "security_group" not in cluster["provider"]
    public = [rule for rule in _create_default_inbound_rules(["sg-1"]) if "IpRanges" in rule]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in public] == [(22, 22)]
    starts = [line for line in cluster["head_start_ray_commands"] if "ray start --head" in line]
    assert len(starts) == 1 and DASHBOARD_LOCAL in starts[0]
    assert "0.0.0.0" not in (ROOT / "cluster.yaml").read_text()


def test_drivers_write_to_an_mlflow_that_only_the_head_reaches(cluster: Config) -> None:
    server, ray_start = cluster["head_start_ray_commands"][1:]
    assert "mlflow server --host 127.0.0.1 --port 5000 " in server and server.endswith("&")
    assert ray_start.startswith("MLFLOW_TRACKING_URI=http://127.0.0.1:5000 ray start --head ")


def test_what_git_ignores_is_not_copied_to_the_nodes(cluster: Config) -> None:
    assert cluster["rsync_filter"] == [".gitignore"] and ".git" in cluster["rsync_exclude"]
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {".venv/", "runs/", "mlruns/"} <= set(ignored)


# KubeRay: fields and types of the ray.io/v1 definitions of KubeRay 1.6 that the file may use.
Schema = dict[str, Any]
POD: Schema = {
    "spec": {
        "restartPolicy": {"Always", "OnFailure", "Never"},
        "serviceAccountName": str,
        "nodeSelector": {str: str},
        "tolerations": [{"key": str, "operator": {"Exists", "Equal"}, "effect": str, "value": str}],
        "containers": [
            {
                "name": str,
                "image": str,
                "env": [{"name": str, "value": str}],
                "ports": [{"containerPort": int, "name": str}],
                "resources": {"requests": {str: str}, "limits": {str: str}},
            }
        ],
    }
}
RAYJOB: Schema = {
    "apiVersion": {"ray.io/v1"},
    "kind": {"RayJob"},
    "metadata": {"name": str, "namespace": str, "labels": {str: str}},
    "spec": {
        "entrypoint": str,
        "runtimeEnvYAML": str,
        "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "rayClusterSpec": {
            "rayVersion": str,
            "authOptions": {"mode": {"disabled", "token"}, "secretName": str},
            "enableInTreeAutoscaling": bool,
            "autoscalerOptions": {
                "version": {"v1", "v2"},
                "idleTimeoutSeconds": int,
                "upscalingMode": {"Default", "Aggressive", "Conservative"},
            },
            "headGroupSpec": {
                "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
                "rayStartParams": {str: str},
                "template": POD,
            },
            "workerGroupSpecs": [
                {
                    "groupName": str,
                    "replicas": int,
                    "minReplicas": int,
                    "maxReplicas": int,
                    "idleTimeoutSeconds": int,
                    "rayStartParams": {str: str},
                    "template": POD,
                }
            ],
        },
    },
}


def misfits(value: Any, schema: Any, path: str = "") -> list[str]:
    """Name the fields that a schema does not have, and the values it does not take."""
    if isinstance(schema, set):
        return [] if value in schema else [f"{path}: {value!r}"]
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{path}: {value!r}"]
    if isinstance(schema, list):
        return [m for n, one in enumerate(value) for m in misfits(one, schema[0], f"{path}.{n}")]
    return [
        found
        for name, one in value.items()
        for found in (
            misfits(one, schema.get(name, schema.get(str)), f"{path}.{name}".strip("."))
            if name in schema or str in schema
            else [f"{path}.{name}: unknown"]
        )
    ]


def pods(kuberay: Config) -> dict[str, tuple[Config, int]]:
    """Return the pod of each group and how many there may be, by the group's name."""
    spec = kuberay["spec"]["rayClusterSpec"]
    head = {"head": (spec["headGroupSpec"]["template"]["spec"], 1)}
    workers = spec["workerGroupSpecs"]
    return head | {g["groupName"]: (g["template"]["spec"], g["maxReplicas"]) for g in workers}


def reserved(pod: Config) -> Resources:
    """Return what KubeRay tells Ray a pod has: the limits of its first container."""
    limits = pod["containers"][0]["resources"]["limits"]
    return {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}


def test_kuberay_takes_its_fields(kuberay: Config) -> None:
    assert misfits(kuberay, RAYJOB) == []
    spec = kuberay["spec"]["rayClusterSpec"]
    spec["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    spec["workerGroupSpecs"][0]["maxReplica"] = 3
    spec["autoscalerOptions"]["version"] = "v3"
    assert [fault.rpartition(".")[2] for fault in misfits(kuberay, RAYJOB)] == [
        "version: 'v3'", "num-cpus: 0", "maxReplica: unknown"
    ]  # fmt: skip


def test_kuberay_runs_the_ray_of_the_constraints(kuberay: Config) -> None:
    spec = kuberay["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == pinned_ray() and spec["authOptions"] == {"mode": "token"}
    for name, (pod, _) in pods(kuberay).items():
        (container,) = pod["containers"]
        version, gpu = re.fullmatch(r".*:[\d.]+-ray([\d.]+)(-gpu)?", container["image"]).groups()  # type: ignore[union-attr]
        assert version == pinned_ray() and bool(gpu) == name.startswith("gpu")
        assert bool(gpu) == bool(reserved(pod)["GPU"])


def test_kuberay_holds_every_paper_recipe_and_nothing_without_work(kuberay: Config) -> None:
    spec, groups = kuberay["spec"]["rayClusterSpec"], pods(kuberay)
    nodes = [(reserved(pod), most) for name, (pod, most) in groups.items() if name != "head"]
    assert too_small([node for node, most in nodes for _ in range(most)]) == []
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert kuberay["spec"]["shutdownAfterJobFinishes"] and spec["enableInTreeAutoscaling"]
    assert {g["minReplicas"] for g in spec["workerGroupSpecs"]} == {0}
    for pod, _ in groups.values():
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        told = {variable["name"]: variable["value"] for variable in container["env"]}
        assert "MLFLOW_TRACKING_URI" in told and grown(told[GROWS_TO]) == nodes


def test_kuberay_is_reached_by_port_forward_alone(kuberay: Config) -> None:
    assert kuberay["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "jobs/generate.py" in kuberay["spec"]["entrypoint"]
