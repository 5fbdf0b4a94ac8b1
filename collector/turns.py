"""Who has the connection next: what waits goes into one transaction, but what is slow goes alone, when nobody minds."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

SLOW_SHARE: Final = 0.2
"""Of the connection's time, what slow units get at least when others want it too."""


class Waiting(Protocol):
    """Somebody's work on the file."""

    @property
    def weight(self) -> int:
        """Bytes it may write, about."""
        ...

    @property
    def slow(self) -> bool:
        """Whether it takes a millisecond or more and may be put off."""
        ...


W = TypeVar("W", bound=Waiting)


class Turns(Generic[W]):
    """What waits for the connection.

    A record waits for a slow unit, such as the take of a lane, only where these would else get less than their share:
    under load the takes of all lanes must not stand between an append and its commit, nor stand still.
    """

    def __init__(self, room: int, seconds: Callable[[], float] = time.monotonic) -> None:
        """`room`: bytes that one transaction can take."""
        self._room = room
        self._seconds = seconds
        self._quick: deque[W] = deque()
        self._slow: deque[W] = deque()
        self._begun: float | None = None
        """When the last transaction began."""
        self._was_slow = False
        self._owed_s = 0.0
        """What slow units may take before others; less than nothing: they had more than their share."""

    def __bool__(self) -> bool:
        return bool(self._quick or self._slow)

    def add(self, op: W) -> None:
        (self._slow if op.slow else self._quick).append(op)

    def clear(self) -> list[W]:
        """All that waits; nothing does any more."""
        ops = [*self._quick, *self._slow]
        self._quick.clear()
        self._slow.clear()
        return ops

    def next(self) -> list[W]:
        """What goes into the next transaction; the one before is over."""
        now = self._seconds()
        if self._begun is not None:
            self._settle_up(now - self._begun)
        self._begun = now
        self._was_slow = bool(self._slow) and (not self._quick or self._owed_s > 0)
        if self._was_slow:
            return [self._slow.popleft()]
        group, room = [self._quick.popleft()], self._room
        room -= group[0].weight
        while self._quick and self._quick[0].weight <= room:
            room -= self._quick[0].weight
            group.append(self._quick.popleft())
        return group

    def rest(self) -> None:
        """The transaction is over, and nothing waits."""
        self._begun = None

    def _settle_up(self, took_s: float) -> None:
        if not self._was_slow:
            # credit is for who stands in the queue, not for bygones
            self._owed_s = self._owed_s + SLOW_SHARE / (1 - SLOW_SHARE) * took_s if self._slow else min(self._owed_s, 0)
        elif self._owed_s > 0:
            self._owed_s -= took_s
