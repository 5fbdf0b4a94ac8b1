"""Which part of a refused batch to send next, so that a bad record costs only itself. Pure.

The batch is divided from left to right. Of what is known to hold a bad record the first
half is sent: refused, and the search goes on inside it while the rest joins those nobody
has judged; accepted, and the bad one must be in the other half. What nobody has judged is
sent in one piece at the end. One bad record in n costs at most 1 + 2*ceil(log2 n)
requests, the first refusal included; a position the answer hinted at is tried alone first.
"""

from collections.abc import Iterable, Sequence


class Search:
    """Finds the bad records among positions 0 to `count` - 1, a request at a time.

    Send `part`, report `accepted` or `refused`, and again until `part` is empty. A record
    is bad only when it was refused alone: then `refused` returns its position.
    """

    def __init__(self, count: int, hints: Iterable[int] = ()) -> None:
        self._suspects = list(range(count))
        """At least one of these is bad."""
        self._unknown: list[int] = []
        """Nobody has judged these; all of them are right of the suspects, or the suspects are gone."""
        self._hints = _within(hints, self._suspects)

    @property
    def part(self) -> Sequence[int]:
        """Positions to send next; empty when all are judged."""
        if self._hints:
            return self._hints[:1]
        if self._suspects:
            return self._suspects[: max(len(self._suspects) // 2, 1)]
        return self._unknown

    @property
    def left(self) -> Sequence[int]:
        """Positions without a verdict."""
        return sorted((*self._suspects, *self._unknown))

    def accepted(self) -> None:
        """The upstream took `part`."""
        taken = set(self.part)
        # a hint that lied says nothing for the others of its kind
        self._hints = []
        self._forget(taken)

    def refused(self, hints: Sequence[int] = ()) -> int | None:
        """The upstream refused `part`; `hints` are positions within it. The record, if it was alone."""
        part = list(self.part)
        if len(part) == 1:
            culprit = part[0]
            self._hints = [hint for hint in self._hints if hint != culprit]
            self._forget({culprit})
            # with one bad record found, the others may all be good
            self._unknown, self._suspects = sorted((*self._suspects, *self._unknown)), []
            return culprit
        inside = set(part)
        self._unknown = [i for i in (*self._suspects, *self._unknown) if i not in inside]
        self._suspects = part
        self._hints = _within((part[hint] for hint in hints if hint < len(part)), part)
        return None

    def _forget(self, judged: set[int]) -> None:
        self._suspects = [i for i in self._suspects if i not in judged]
        self._unknown = [i for i in self._unknown if i not in judged]


def _within(hints: Iterable[int], positions: Sequence[int]) -> list[int]:
    """Hints worth following. A single position needs none, and naming all of them names nothing."""
    known = [hint for hint in dict.fromkeys(hints) if hint in positions]
    return known if len(known) < len(positions) else []
