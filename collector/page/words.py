"""Numbers, times and states as people say them."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

STATES: Final = {
    "starting": "starting",
    "running": "running",
    "draining": "running, sending everything at once",
    "stopping": "stopping",
    "failed": "failed",
    "stopped": "stopped",
}
LANE_STATES: Final = {
    "done": "all delivered",
    "idle": "collecting",
    "sending": "sending",
    "backing-off": "trying again",
    "paused": "paused",
}
_REFUSALS: Final = {
    400: "the upstream refused what it holds",
    422: "the upstream refused what it holds",
    207: "the upstream refused it and took others",
    413: "too large for the upstream",
}
_UNITS: Final = ((86_400, "day"), (3600, "h"), (60, "min"), (1, "s"))


def count(number: int) -> str:
    """``1 234 567``, never broken between lines."""
    return f"{number:,}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    """``4 s``, ``2 h 5 min``: the two largest units."""
    left = int(seconds)
    for (unit, name), (next_unit, next_name) in pairwise(_UNITS):
        if left >= unit:
            whole, rest = divmod(left, unit)
            return " ".join([_said(whole, name), *([_said(rest // next_unit, next_name)] if rest >= next_unit else [])])
    return _said(left, "s")


def size(number: int) -> str:
    """``512 MiB``, as the configuration writes it."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}".replace(".0 ", " ")
    return f"{number} B"


def refusal(letter: Mapping[str, Any]) -> str:
    """Why a dead letter died, without what the upstream said of it."""
    if letter["status"] is None:
        return str(letter["reason"])
    return _REFUSALS.get(letter["status"], f"the upstream refused it ({letter['status']})")


def _said(number: int, unit: str) -> str:
    return f"{number} {unit}{'s' if unit == 'day' and number != 1 else ''}"
