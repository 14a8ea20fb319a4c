"""The results of an evaluation: tables to print, JSON to keep, numbers to track."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Table:
    """A table of texts to print; the first column is aligned left, the others right."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)


@dataclass
class Outcome:
    """The outcome of a protocol.

    Attributes:
        content: all results, JSON-able.
        tables: tables to print.
        metrics: finite numbers by name, for MLflow; unresolved rates are left out.
    """

    content: dict[str, Any]
    tables: list[Table]
    metrics: dict[str, float]


def show(tables: Sequence[Table]) -> None:
    """Print tables one after another."""
    import rich.table
    from rich.console import Console

    for table in tables:
        shown = rich.table.Table(title=table.title)
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if number else "left")
        for row in table.rows:
            shown.add_row(*row)
        Console().print(shown)


def percent(share: float | None, digits: int = 2) -> str:
    """Write a share of one in percent, without the percent sign; None becomes "unresolved"."""
    return "unresolved" if share is None else f"{100 * share:.{digits}f}"


def rate(value: float) -> str:
    """Write a rate such as 1e-4."""
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"
