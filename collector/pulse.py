"""What hangs: it ends no transaction, carries no batch and raises nothing. Only that it does not move tells.

Whoever may hang shows a pulse while something is under way, or overdue: any value that changes when it gets
on. The same pulse at several looks in a row means that nothing moved. Looks are counted, not timed: a process
that was stopped for hours is not stuck.
"""

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Final

STUCK_ROUNDS: Final = 2
"""Looks that may find the same pulse: then it is not alive, and after twice as many only a new start helps."""


class Pulse:
    """Remembers from look to look."""

    def __init__(self) -> None:
        self.looks = 0
        self._seen: Mapping[str, Hashable] = {}
        self._rounds: Counter[str] = Counter()

    def look(self, now: Mapping[str, Hashable]) -> list[str]:
        """Compare with the last look; the names of what only a new start helps."""
        self._rounds = Counter(
            {name: self._rounds[name] + 1 for name, pulse in now.items() if self._seen.get(name) == pulse}
        )
        self._seen = dict(now)
        self.looks += 1
        return [name for name, rounds in self._rounds.items() if rounds >= 2 * STUCK_ROUNDS]

    @property
    def stuck(self) -> list[str]:
        """What has not moved for too long."""
        return sorted(name for name, rounds in self._rounds.items() if rounds >= STUCK_ROUNDS)
