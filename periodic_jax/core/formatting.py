"""Numbers, counts and sizes as text, and the command line's spelling of a setting."""

from collections.abc import Iterable


def format_bytes(size: float) -> str:
    """Bytes with a unit.

    Example:
        >>> format_bytes(999), format_bytes(1_234_567)
        ('999 B', '1.23 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def format_duration(seconds: float) -> str:
    """A time with a unit.

    Example:
        >>> format_duration(90), format_duration(7200), format_duration(200_000)
        ('90 s', '2 h', '2.31 days')
    """
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def short_numbers(values: Iterable[float]) -> list[str]:
    """Numbers for tables and legends: three digits, or as many as tell different ones apart.

    Example:
        >>> short_numbers([0.0316227766, 1.0]), short_numbers([0.12341, 0.12342])
        (['0.0316', '1'], ['0.12341', '0.12342'])
    """
    values = list(values)
    texts = ([f"{value:.{digits}g}" for value in values] for digits in range(3, 18))
    return next(text for text in texts if len(set(text)) == len(set(values)))


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things.

    Args:
        number: how many.
        noun: one of them.
        plural: several of them; the noun with an s, if not given.

    Example:
        >>> counted(1, "step"), counted(2000, "step"), counted(2, "minimum", "minima")
        ('1 step', '2000 steps', '2 minima')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def flag_of(name: str) -> str:
    """The command-line spelling of a setting: ``weight_decay`` is ``--weight-decay``."""
    return "--" + name.replace("_", "-")
