"""A dataset compared with real images: its variety in a network's features, and its attributes.

The command measure uses this for `--real`, `--features` and `--coverage`.
"""

from dataclasses import dataclass
from typing import Any

from factory.datasets.store import Store
from factory.evaluation.coverage import coverage_table, measure_coverage, predict_dataset
from factory.evaluation.dataset import finished
from factory.evaluation.features import FeatureNetwork, extract_dataset, load_features
from factory.evaluation.tables import Outcome, Table
from factory.evaluation.variety import K, measure_variety
from factory.recipe import InputError
from factory.recognition.attributes import SHIPPED, Predictor, load_predictor

SHOWN = ("precision", "recall", "fid", "diversity", "diversity_unmatched")
FLAGS: dict[str, dict[str, Any]] = {
    "--real": {"default": "", "help": "real images to compare with: diversity, FID, coverage"},
    "--features": {"default": "", "help": "feature network for --real (default: the recognizer)"},
    "--same-identities": {"action": "store_true", "help": "a label is one person in both sets"},
    "--k": {"type": int, "default": K, "help": "the k-th nearest neighbour gives a radius"},
    "--coverage": {
        "nargs": "?", "const": SHIPPED, "default": "", "metavar": "PREDICTOR",
        "help": "distribution of pose, light, age ... (default predictor: the shipped one)",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Beside:
    """The measurements that the flags of `FLAGS` ask for, with all that they need loaded.

    Attributes:
        given: the command's arguments: those of `FLAGS`, recognizer, identities, images_each,
            resize.
        real: the real images, if given.
        network: the feature network for both sets; None without real images.
        predictor: the predictor of attributes; None without --coverage.
    """

    given: Any
    real: Store | None
    network: FeatureNetwork | None
    predictor: Predictor | None

    @classmethod
    def of(cls, given: Any) -> "Beside":
        """Check the flags, and load the networks and data that they name.

        Raises:
            InputError: a flag that needs --real is given without it, a reference names no network,
                or --real is not a dataset.
        """
        if not given.real and (given.features or given.same_identities or given.k != K):
            raise InputError(
                "--features, --same-identities, --k: they need --real, which is missing"
            )
        if given.k < 1:
            raise InputError(f"--k {given.k}; accepted is 1 or more")
        real = finished(given.real) if given.real else None
        network = load_features(given.features or given.recognizer) if real else None
        predictor = load_predictor(given.coverage) if given.coverage else None
        return cls(given, real, network, predictor)

    def measure(self, store: Store) -> Outcome:
        """Return the measurements of a dataset; an empty outcome if the flags ask for none.

        Raises:
            InputError: as `extract_dataset`, `predict_dataset` and `measure_variety`.
        """
        given, real, found = self.given, self.real, Outcome({}, [], {})
        some = (given.identities, given.images_each, given.resize)
        if real is not None and self.network is not None:
            made = extract_dataset(store, self.network, *some)
            beside = extract_dataset(real, self.network, *some)
            variety = measure_variety(
                *made, *beside, k=given.k, same_identities=given.same_identities
            )
            variety = {"real": real.url, "network": self.network.as_dict(), **variety}
            found.content["variety"] = variety
            found.tables.append(variety_table(variety))
            found.metrics |= {
                f"variety/{name}": variety[name] for name in SHOWN if variety[name] is not None
            }
        if self.predictor is not None:
            seen = predict_dataset(store, self.predictor, *some)
            others = predict_dataset(real, self.predictor, *some) if real else None
            coverage = measure_coverage(seen, self.predictor, others, real.url if real else "")
            found.content["coverage"] = coverage
            found.tables.append(coverage_table(coverage))
            found.metrics |= {
                f"coverage/{name}/{key}": one[key]
                for name, one in coverage["attributes"].items()
                for key in ("mean", "sd", "overlap", "distance")
                if one[key] is not None
            }
        return found


def _cell(found: dict[str, Any], name: str) -> str:
    if found[name] is None:
        return "unresolved" if name == "fid" else "not defined"
    return f"{found[name]:.4f}"


def variety_table(found: dict[str, Any]) -> Table:
    """Return the figures of variety as a table, with a column for each of the two diversities."""
    title = f"Beside {found['real']}, features of {found['network']['name']}, k = {found['k']}"
    table = Table(title, ("images", "real images", *SHOWN))
    table.rows.append(
        (str(found["images"]), str(found["real_images"]), *(_cell(found, name) for name in SHOWN))
    )
    return table
