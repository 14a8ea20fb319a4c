"""How the pages write numbers and names."""

from factory.evaluation.gap import REAL

NAMES = {
    REAL: "Real faces",
    "synthetic": "Synthetic faces",
    "synthetic_shuffled_labels": "Synthetic, labels shuffled",
}
ORDER = tuple(NAMES)


def named(key: str) -> str:
    """Return the words the page uses for a row or dataset; others keep the name they were given."""
    return NAMES.get(key, key)


def figure(value: float | None, digits: int = 3, absent: str = "-") -> str:
    """Write a number with so many digits, or a word where there is none."""
    return absent if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Write a share of one in percent, without the sign."""
    return "unresolved" if value is None else f"{100 * value:.{digits}f}"


def interval(ends: tuple[float, float], digits: int = 1) -> str:
    """Write an interval of shares of one in percent, without the sign."""
    return f"{percent(ends[0], digits)} to {percent(ends[1], digits)}"


def duration(seconds: float) -> str:
    """Write seconds as hours, minutes and seconds, with tenths below a minute."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
