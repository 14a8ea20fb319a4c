"""Counters as Prometheus sees them, and the dashboard that shows them."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from factory.cluster import counters
from factory.cluster.counters import COUNTERS, GAUGES, HISTOGRAMS

NAMES = COUNTERS | GAUGES
NAMES |= {f"{name}_bucket": (text, (*tags, "le")) for name, (text, tags) in HISTOGRAMS.items()}
ROOT = Path(__file__).parents[2]
RAYS_OWN = {  # of Ray's reporter and autoscaler
    *("ray_node_cpu_utilization", "ray_node_gpus_utilization"),
    *("autoscaler_active_nodes", "autoscaler_pending_nodes"),
}


def scraped(name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Return a counter's values on the first node's metrics port, by the labels that are ours."""
    import ray

    (node, *_) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=300).read().decode()
    tags = NAMES[name][1]
    return {
        tuple((tag, sample.labels[tag]) for tag in tags): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"ray_{name}"
    }


@pytest.mark.ray
def test_a_shard_and_a_trial_are_scraped_as_counted(ray_cluster) -> None:
    rejects = {"no_face": 3, "identity_drift": 1, "near_duplicate": 0}
    for _ in range(2):
        counters.shard("counted", "studio", 7, rejects, {"render": 1.5, "commit": 0.25})
    for seconds in (0.02, 0.2, 5.0):
        counters.committed("counted", "studio", seconds, {"it failed": 2})
    counters.at_work("counted", "studio", 3, 7)
    counters.again("counted", "studio", 4)
    counters.trial("bands", "finished")
    of = (("recipe", "counted"), ("system", "studio"))
    trial = (("search", "bands"), ("outcome", "finished"))  # other tests count trials of their own
    while trial not in scraped("factory_trials_total"):
        time.sleep(0.5)
    assert scraped("factory_trials_total")[trial] == 1
    assert scraped("factory_shards_total")[of] == 2
    assert scraped("factory_images_total")[of] == 14
    found = {tags[2][1]: n for tags, n in scraped("factory_commit_seconds_bucket").items()}
    assert {float(end) for end in found} == {*counters.COMMIT_SEC, float("inf")}
    assert [found[end] for end in ("0.03", "0.1", "0.3", "3.0", "10.0", "+Inf")] == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert scraped("factory_store_repeats_total")[(*of, ("why", "it failed"))] == 6
    assert (scraped("factory_nodes")[of], scraped("factory_actors")[of]) == (3, 7)
    assert scraped("factory_retries_total")[of] == 4
    found = scraped("factory_rejects_total")
    assert {tags[2][1]: n for tags, n in found.items() if tags[:2] == of} == {
        "no_face": 6,
        "identity_drift": 2,
    }
    found = scraped("factory_stage_seconds_total")
    assert {tags[2][1]: n for tags, n in found.items() if tags[:2] == of} == {
        "render": 3.0,
        "commit": 0.5,
    }


def test_the_dashboard_shows_every_counter_and_asks_for_nothing_else() -> None:
    board = json.loads((ROOT / "docs/grafana.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    names = {name for expr in asked for name in re.findall(r"\b(?:ray|autoscaler)_\w+", expr)}
    assert names == {f"ray_{name}" for name in NAMES} | RAYS_OWN
    for expr in asked:
        labels = set(re.findall(r"(\w+)=~", expr))
        for group in re.findall(r"by \(([\w, ]+)\)", expr):
            labels |= set(group.split(", "))
        ours = {tag for name in NAMES if f"ray_{name}" in expr for tag in NAMES[name][1]}
        assert not ours or labels <= ours, expr
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_rays_own_names_are_rays() -> None:
    from ray.autoscaler._private.prom_metrics import AutoscalerPrometheusMetrics
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    of_nodes = {f"ray_{name}" for name in METRICS_GAUGES}
    registry = AutoscalerPrometheusMetrics("a session").registry
    of_autoscaler = {family.name for family in registry.collect()}
    assert of_nodes | of_autoscaler >= RAYS_OWN
