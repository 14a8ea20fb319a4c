"""A made-up sweep: six trials, of which one was stopped and one refused."""

import json

from factory.search import Choice, Real, Space
from factory.search.results import SWEEP, best, front

AXES = {"rate": Real(0.01, 1.0, log=True), "size": Choice([4, 2], [8, 1]), "kind": Choice("a", "b")}
OBJECTIVES = ("accuracy", "generation_seconds")


def write_sweep(store, count, **more):
    """Write the folder of a sweep with the first `count` of six trials, and more of its file."""
    space = Space("rates", "Which rate?", AXES, dict, objectives=OBJECTIVES, seeds=(1, 2))
    results = []
    for number in range(count):
        accuracies = [0.7 + 0.01 * number, 0.72 + 0.01 * number]
        result = {
            "number": number,
            "point": json.loads(json.dumps(space.draw(number))),
            "state": "finished",
            "accuracy": sum(accuracies) / 2,
            "accuracies": accuracies,
            "benchmarks": {"frontal": accuracies},
            "content_digest": f"{number:016x}",
            "images": 10,
            "identities": 5,
            "generation_seconds": 10.0 * (number + 1),
            "curve": [{"iteration": n, "accuracy": 0.5 + 0.1 * n} for n in (1, 2)],
            "seconds": {"train": 2.0, "all": 3.0},
            "pairs": {"frontal": 600},
            "wait": 0.5,
            "taken": {"pool": {"mean_cosine": 0.875}},
        }
        if number == 3:
            result |= {"state": "stopped", "accuracies": []}
        if number == 4:
            result = {name: result[name] for name in ("number", "point", "curve")}
            result |= {"state": "refused", "why": "7 <qualify>", "curve": []}
        results.append(result)
        store.write(f"trials/{number:04d}/result.json", json.dumps(result).encode())
    finished = [result for result in results if result["state"] == "finished"]
    ended = {"best": best(finished, OBJECTIVES), "front": front(finished, OBJECTIVES)}
    held = {"space": space.described(), **ended, "overhead": 1.04, **more}
    store.write(SWEEP, json.dumps(held).encode())
