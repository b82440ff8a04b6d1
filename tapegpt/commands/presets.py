"""tapegpt presets: what each stands for."""

import json

from tapegpt.bounds import Choice, flag
from tapegpt.presets import PRESETS


def run(name: str | None, as_json: bool) -> int:
    """Print one, or all. Returns the exit code."""
    if name is not None:
        Choice(tuple(PRESETS)).check("preset", name)
    shown = {known: PRESETS[known] for known in PRESETS if name in (None, known)}
    if as_json:
        print(json.dumps({known: dict(settings) for known, settings in shown.items()}, indent=2))
        return 0
    for known, settings in shown.items():
        print(known)
        for setting, value in settings.items():
            print(f"    {_spelled(setting, value)}")
    return 0


def _spelled(setting: str, value: object) -> str:
    if isinstance(value, bool):
        return flag(setting) if value else flag(f"no_{setting}")
    return f"{flag(setting)} {value:g}" if isinstance(value, float) else f"{flag(setting)} {value}"
