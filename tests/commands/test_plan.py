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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.yaml",), "no file nowhere.yaml"),
        ((RECIPE, "--set", "identities.count=x"), "identities.count: 'x'"),
        ((RECIPE, "--set", "kind=fr"), "this job accepts 'generate'"),
    ],
)
def test_wrong_recipes_are_exit_code_2(arguments: tuple[str, ...], words: str) -> None:
    done = ready.run("jobs/plan.py", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
