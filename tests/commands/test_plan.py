"""`factory plan` as a user runs it."""

import pytest
import ready

RECIPE = "desk/generate/studio.yaml"


def test_the_plan_says_what_will_be_made() -> None:
    done = ready.run(
        "jobs/plan.py",
        RECIPE,
        *("--set", "identities.count=30", "--set", "identities.images_each=4"),
        *("--set", "shard.identities=10", "--set", "workers.max=2"),
        *("--set", "cost={seconds_per_image: [60, 90], source: somebody, bytes_per_image: 1000}"),
    )
    assert done.returncode == 0, done.stderr
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert rows["shards"] == "3: i0000000-0000010-s0000-0004 to i0000020-0000030-s0000-0004"
    assert rows["identities"] == "30 x 4 images"
    assert rows["images"] == "120"
    assert rows["bytes"] == "427 kB"  # 120 x (1000 + 5 blocks of 512)
    assert rows["actor-hours"] == "2.0 h to 3.0 h"
    assert rows["source"] == "somebody"


def test_the_plan_says_what_it_reserves_and_costs_and_on_which_nodes() -> None:
    done = ready.run(
        *("jobs/plan.py", RECIPE, "--cluster", "cluster.yaml"),
        *("--set", "identities.count=3600", "--set", "identities.images_each=4"),
        *("--set", "workers={max: 6, min: 2, num_cpus: 4, num_gpus: 0.5, committers: 5}"),
        *("--set", "cost={seconds_per_image: [0.5, 1], source: somebody}"),
    )
    assert done.returncode == 0, done.stderr
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert rows["reserves"] == "2 to 6 makers x 4 CPU + 0.5 GPU, 5 committers x 1 CPU"
    assert rows["together"] == "29 CPU + 3 GPU"
    assert rows["nodes"] == "gpu_spot 3 of 16"
    assert rows["GPU-hours"] == "1.0 h to 2.0 h"  # 14,400 images, half a GPU each


HELD = "workers={max: 17, num_gpus: 1}"
HOLDS = "--cluster", "cluster.yaml"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.yaml",), "no file nowhere.yaml"),
        ((RECIPE, "--set", "identities.count=x"), "identities.count: 'x'"),
        ((RECIPE, "--set", "kind=fr"), "this job accepts 'generate'"),
        (
            (RECIPE, "--set", "workers={max: 2, min: 3}"),
            "workers: min is 3; it must be 1 to max",
        ),
        ((RECIPE, *HOLDS, "--set", HELD), "workers.max 17 x 1: 17 GPU together, but the cluster"),
        ((RECIPE, *HOLDS, "--set", "workers={max: 1, num_cpus: 17}"), "num_cpus: 17, but the larg"),
        (
            (RECIPE, *HOLDS, "--set", "workers={max: 25, num_cpus: 9}"),
            "workers.max: 25, but the nodes of the cluster have room for 24 actors of 9 CPU, each",
        ),
        ((RECIPE, "--cluster", "nowhere.yaml"), "--cluster nowhere.yaml: [Errno 2]"),
        ((RECIPE, "--cluster", "README.md"), "--cluster README.md"),
    ],
)
def test_wrong_recipes_are_exit_code_2(arguments: tuple[str, ...], words: str) -> None:
    done = ready.run("jobs/plan.py", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
