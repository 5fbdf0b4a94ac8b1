"""Trackers that are made at import and get their settings when the application is made."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tracker.bound import BoundTracker
from tracker.errors import InvalidRecord
from tracker.tracker import Tracker

_NAMES: Final = {
    "URL" if name == "target" else name.upper(): name
    for name in inspect.signature(Tracker).parameters
    if name != "clock"
}
"""The arguments of `Tracker` as settings: ``URL``, ``ON_ERROR``, ``MAX_RECORDS``, ..."""


def options(settings: Mapping[str, Any], others: Iterable[str] = (), prefix: str = "") -> dict[str, Any]:
    """The arguments of `Tracker` among settings; `others` are settings of the framework's own.

    Raises `InvalidRecord` for an unknown setting, and names the nearest.
    """
    for name in settings:
        if name not in _NAMES and name not in others:
            near = difflib.get_close_matches(str(name).upper(), [*_NAMES, *others], 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(sorted([*_NAMES, *others]))}"
            raise InvalidRecord(f"{prefix}{name}", f"is no setting; {hint}")
    return {_NAMES[name]: value for name, value in settings.items() if name in _NAMES and value is not None}


class ConfiguredTracker(BoundTracker):
    """A `BoundTracker` without settings yet: `configure` gives them, and using it before that says so."""

    _how: str = "call configure()"
    """What to do, in the words of the framework."""

    def __init__(self) -> None:
        """Nothing yet."""

    def configure(self, **options: Any) -> None:
        """Takes the arguments of `Tracker`. Called again, as tests do, it starts with the new ones."""
        super().__init__(**options)

    def __getattr__(self, name: str) -> Any:
        if name in ("_sender", "_account"):
            raise RuntimeError(f"the tracker has no settings yet: {self._how}")
        raise AttributeError(f"{type(self).__name__} has no {name!r}")
