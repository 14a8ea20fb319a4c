"""The precision that `auto` stands for, decided once from the nodes that will do the work.

After that it is a fixed value: the output's claim and the content digest hold it, and a resumed run
keeps it (`factory.recipe.kept_precision`), whatever processors it finds.
"""

from collections.abc import Callable

from factory.cluster import hardware
from factory.cluster.hardware import Processor
from factory.recipe import (
    AUTO,
    GenerateRecipe,
    InputError,
    R,
    precision_field,
    stated_precision,
    with_precision,
)


def settled(recipe: R, say: Callable[[str], None]) -> R:
    """Return the recipe with a fixed precision, after a look at the connected cluster's nodes.

    One line says what `auto` became and why, or what bfloat16 costs on a node that is slow in it.

    Args:
        recipe: the recipe to run; if its output is claimed already, with the claim's precision.
        say: receives the line.

    Raises:
        InputError: the recipe says `auto`, and the nodes that can do the work differ.
    """
    field, stated = precision_field(recipe), stated_precision(recipe)
    if stated not in (AUTO, "bfloat16"):
        return recipe
    found = looks(recipe, timed=stated != AUTO)
    if stated == AUTO:
        chosen = common([one for one, _ in found], field)
        has = "has" if chosen == "bfloat16" else "has no"
        say(f"{field}: auto is {chosen} here: {found[0][0].name} {has} fast bfloat16")
        return with_precision(recipe, chosen)
    for _, said in found:
        if said:
            say(f"warning: {said}; {field} float32 avoids it, auto chooses by itself")
    return recipe


def common(found: list[Processor], field: str) -> str:
    """Return the precision that suits every processor.

    Args:
        found: the processor of each node.
        field: the recipe field to name in the error.

    Raises:
        InputError: some are faster in bfloat16 and some are not.
    """
    able = [one for one in found if one.bfloat16]
    if not able:
        return "float32"
    if len(able) == len(found):
        return "bfloat16"
    lacking = next(one for one in found if not one.bfloat16)
    raise InputError(
        f"recipe field {field}: auto, but the cluster's nodes differ: {able[0].name} "
        f"({able[0].node}) has fast bfloat16, {lacking.name} ({lacking.node}) has none; "
        "accepted are float32 and bfloat16, which all nodes then compute in"
    )


def looks(recipe: R, timed: bool) -> list[tuple[Processor, str]]:
    """Return the processors of the nodes that can hold a worker of the recipe.

    If there is no such node yet, the cluster is asked for one as the work itself would ask.

    Args:
        recipe: states what a worker reserves.
        timed: also time what bfloat16 costs on a processor that is slow in it.

    Returns:
        For each node its processor and a sentence on what bfloat16 costs there; the sentence is
        "" if it was not timed or bfloat16 is fast.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from factory.cluster.connect import started_here
    from factory.cluster.workers import runtime_env

    worker = recipe.workers if isinstance(recipe, GenerateRecipe) else recipe.engine
    gpu, look = worker.num_gpus > 0, ray.remote(_look)
    if started_here() and not gpu and len(ray.nodes()) == 1:  # this process runs on that node
        return [_look(gpu, timed)]
    shared = {"num_gpus": worker.num_gpus or None, "runtime_env": runtime_env(worker.threads)}
    nodes = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("CPU", 0.0) >= worker.num_cpus
        and node["Resources"].get("GPU", 0.0) >= worker.num_gpus
    ]
    if not nodes:
        asked = look.options(**shared, num_cpus=worker.num_cpus).remote(gpu, timed)
        return [ray.get(asked)]
    there = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    return ray.get(
        [
            look.options(**shared, num_cpus=0, scheduling_strategy=node).remote(gpu, timed)
            for node in there
        ]
    )


def _look(gpu: bool, timed: bool) -> tuple[Processor, str]:
    return hardware.processor(gpu), hardware.slowness(gpu) if timed else ""
