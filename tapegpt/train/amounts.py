"""Numbers as they are shown to people."""


def amount(number: float) -> str:
    """A large number in three digits: 12.3k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def brief(seconds: float) -> str:
    """Seconds in two digits at least: 0.033, 1.2, 31.0, 3600.5."""
    return f"{seconds:.2g}" if seconds < 1 else f"{seconds:.1f}"


def duration(seconds: float) -> str:
    """Seconds, or minutes and hours where there are many: 1:05:00 h."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
