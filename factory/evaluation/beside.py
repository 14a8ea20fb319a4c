"""A dataset beside real images: its variety in a network's features, and what attributes it covers.

What `jobs/measure.py` does for `--real`, `--features` and `--coverage`.
"""

from typing import Any

from factory.evaluation.coverage import coverage_table, measure_coverage, predict_dataset
from factory.evaluation.features import extract_dataset, load_features
from factory.evaluation.tables import Outcome, Table
from factory.evaluation.variety import K, measure_variety
from factory.recipe import InputError
from factory.recognition.attributes import SHIPPED, load_predictor
from factory.shards.store import Store

SHOWN = ("precision", "recall", "fid", "diversity", "diversity_unmatched")
FLAGS: dict[str, dict[str, Any]] = {
    "--real": {"default": "", "help": "real images to stand beside: diversity, FID, coverage"},
    "--features": {"default": "", "help": "feature network for --real (default: the recognizer)"},
    "--same-identities": {"action": "store_true", "help": "a label is one person in both"},
    "--k": {"type": int, "default": K, "help": "neighbour that gives a radius"},
    "--coverage": {
        "nargs": "?", "const": SHIPPED, "default": "", "metavar": "PREDICTOR",
        "help": "distribution of pose, light, age ... (default predictor: the shipped one)",
    },
}  # fmt: skip


def measure_beside(store: Store, given: Any) -> Outcome:
    """Return what the flags of `FLAGS` ask for; nothing where none is given.

    Args:
        store: the dataset.
        given: the job's arguments: those of `FLAGS`, recognizer, identities, images_each, resize.

    Raises:
        InputError: a flag that only means something beside --real is given without it.
    """
    if not given.real and (given.features or given.same_identities or given.k != K):
        raise InputError("--features, --same-identities, --k: accepted with --real only")
    found = Outcome({}, [], {})
    real = Store(given.real) if given.real else None
    some = (given.identities, given.images_each)
    if real is not None:
        network = load_features(given.features or given.recognizer)
        made = extract_dataset(store, network, *some, resize=given.resize)
        beside = extract_dataset(real, network, *some, resize=given.resize)
        variety = measure_variety(*made, *beside, k=given.k, same_identities=given.same_identities)
        found.content["variety"] = {"real": real.url, "network": network.as_dict(), **variety}
        found.tables.append(variety_table(found.content["variety"]))
        found.metrics |= {
            f"variety/{name}": variety[name] for name in SHOWN if variety[name] is not None
        }
    if given.coverage:
        predictor = load_predictor(given.coverage)
        seen = predict_dataset(store, predictor, *some)
        others = predict_dataset(real, predictor, *some) if real else None
        coverage = measure_coverage(seen, predictor, others, real.url if real else "")
        found.content["coverage"] = coverage
        found.tables.append(coverage_table(coverage))
        found.metrics |= {
            f"coverage/{name}/{key}": one[key]
            for name, one in coverage["attributes"].items()
            for key in ("mean", "sd", "overlap", "distance")
            if one[key] is not None
        }
    return found


def variety_table(found: dict[str, Any]) -> Table:
    """Return the figures of variety as a table; the two diversities are columns of their own."""
    title = f"Beside {found['real']}, features of {found['network']['name']}, k = {found['k']}"
    table = Table(title, ("images", "real images", *SHOWN))
    why = {"fid": "unresolved", "diversity": "not defined"}
    cells = (why.get(name, "-") if found[name] is None else f"{found[name]:.4f}" for name in SHOWN)
    table.rows.append((str(found["images"]), str(found["real_images"]), *cells))
    return table
