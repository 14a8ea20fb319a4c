"""The protocols of the command evaluate: each maps a recognizer and a folder to an outcome."""

from collections.abc import Callable
from dataclasses import asdict

from factory.evaluation.benchmarks import benchmark_folder
from factory.evaluation.fairness import Fairness, by_group, read_groups
from factory.evaluation.ijb import Switches, evaluate_ijb
from factory.evaluation.tables import Outcome, Table, percent
from factory.evaluation.tinyface import evaluate_tinyface
from factory.evaluation.verification import Verification, average, bin_files, measured, read_bin
from factory.recipe import InputError, local_path
from factory.recognition.images import NamedEmbedder

PROTOCOLS = ("verification", "ijb", "tinyface")
SWITCHES = "N1D1F1"
Say = Callable[[str], None]


def evaluate(
    recognizer: NamedEmbedder,
    protocol: str,
    folder: str,
    say: Say,
    resize: bool = False,
    groups: str = "",
    switches: str = "",
) -> Outcome:
    """Measure a recognizer by one of `PROTOCOLS`.

    Args:
        recognizer: the recognizer to measure.
        protocol: the name of the protocol.
        folder: a folder of `.bin` files, an IJB release or a TinyFace test set.
        say: is called with lines of progress.
        resize: resize images of another size; IJB's images are aligned to the size in any case.
        groups: for verification, a file of groups (`fairness.read_groups`), or "".
        switches: for ijb, one or more of the form N1D1F1, separated by commas; "" is `SWITCHES`.

    Raises:
        InputError: the protocol does not accept an argument, or the folder is not complete.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol {protocol}; accepted: {', '.join(PROTOCOLS)}")
    if groups and protocol != "verification":
        raise InputError(
            f"--groups {groups}: only --protocol verification reports groups, {protocol} does not"
        )
    if switches and protocol != "ijb":
        raise InputError(
            f"--switches {switches}: only --protocol ijb has switches, {protocol} does not"
        )
    if protocol == "ijb":
        settings = [Switches.parse(text) for text in (switches or SWITCHES).split(",")]
        return evaluate_ijb(recognizer, folder, settings, say)
    if protocol == "tinyface":
        return evaluate_tinyface(recognizer, folder, resize, say)
    return _verification(recognizer, folder, say, resize, groups)


def _verification(
    recognizer: NamedEmbedder, folder: str, say: Say, resize: bool, groups: str
) -> Outcome:
    benchmarks = bin_files(benchmark_folder(folder, say))
    known = read_groups(local_path(groups)) if groups else {}
    strangers = sorted(set(known) - set(benchmarks))
    if strangers:
        raise InputError(
            f"--groups {groups}: benchmark {strangers[0]}; accepted: {', '.join(benchmarks)}"
        )
    results: dict[str, Verification] = {}
    fair: dict[str, Fairness] = {}
    for name, file in benchmarks.items():
        say(f"benchmark {name}")
        found = measured(recognizer, read_bin(file), resize)
        results[name] = Verification.of(found)
        if name in known:
            fair[name] = by_group(found, known[name])
    mean = average(results.values())
    content = {
        "benchmarks": {
            name: asdict(result) | ({"fairness": fair[name].as_dict()} if name in fair else {})
            for name, result in results.items()
        },
        "average": mean,
    }
    metrics = {f"{name}.accuracy": result.accuracy for name, result in results.items()}
    metrics |= {
        f"{name}.group.{group}.accuracy": one.accuracy
        for name, found in fair.items()
        for group, one in found.groups.items()
    }
    tables = [_table(recognizer.name, results, mean)]
    tables += [_group_table(name, found) for name, found in fair.items()]
    return Outcome(content, tables, metrics | {"average": mean})


def _table(name: str, results: dict[str, Verification], mean: float) -> Table:
    columns = ("benchmark", "pairs", "Accuracy-Flip", "EER", "TAR@FAR=1e-3")
    table = Table(f"{name}, in percent", columns)
    for result in results.values():
        table.rows.append((
            result.name,
            f"{result.pairs}",
            f"{percent(result.accuracy)} +- {percent(result.accuracy_std)}",
            percent(result.eer),
            percent(result.tar if result.tar_resolved else None),
        ))  # fmt: skip
    table.rows.append(("average", "", percent(mean), "", ""))
    return table


def _group_table(name: str, found: Fairness) -> Table:
    columns = ("group", "pairs", "accuracy", "FNMR", "FMR", "TAR@FAR=1e-3", "EER", "own accuracy")
    table = Table(f"{name} by group, in percent", columns)
    for group, one in found.groups.items():
        own = one.own["accuracy"] if one.own else None
        shares = (one.fnmr, one.fmr, one.tar, one.eer, own)
        cells = ("-" if share is None else percent(share) for share in shares)
        error = f"{percent(one.accuracy)} +- {percent(one.accuracy_error)}"
        table.rows.append((group, f"{one.pairs}", error, *cells))
    verdict = "" if found.gap_resolved else ", not resolved"
    table.rows.append(
        (f"spread {percent(found.spread)}, worst {found.worst}: gap {percent(found.gap)}{verdict}",
         *[""] * 7)
    )  # fmt: skip
    return table
