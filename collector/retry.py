"""When to try again, and when refusals are a wave. Pure: chance and time are passed in."""

import math
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

POSITIVE_JITTER: Final = 0.2
"""How much longer than asked a Retry-After is waited at most, as a share: a thousand tills come back spread out."""


def backoff_s(failures: int, base_s: float, max_s: float, chance: Callable[[], float]) -> float:
    """Full jitter: anything from nothing to the exponential backoff after `failures` in a row, seconds.

    `chance` gives a number from 0 up to 1, as ``random.random`` does.
    """
    exponent = min(max(failures - 1, 0), 62)
    return chance() * min(max_s, base_s * float(1 << exponent))


def delay_s(
    failures: int,
    *,
    base_s: float,
    max_s: float,
    chance: Callable[[], float],
    retry_after_s: float | None = None,
    retry_after_max_s: float = 3600.0,
) -> float:
    """How long to wait after `failures` in a row, seconds: the backoff, never less than was asked for.

    What was asked for is believed up to `retry_after_max_s`, and lengthened by up to a
    fifth so that those who were told the same do not return together.
    """
    waited = backoff_s(failures, base_s, max_s, chance)
    if retry_after_s is None or retry_after_s <= 0:
        return waited
    floor = min(retry_after_s, retry_after_max_s)
    return max(waited, floor * (1 + POSITIVE_JITTER * chance()))


def parse_retry_after(value: str | None, date: str | None = None) -> float | None:
    """Seconds that a Retry-After asks for, from now; None for none, for the past and for nonsense.

    A time of day counts from the answer's own `date`, so a wrong clock of ours does no
    harm; without one it cannot be understood and is left out.
    """
    if value is None:
        return None
    text = value.strip()
    try:
        seconds = float(text)
    except ValueError:
        until, now = parse_http_date_ms(text), parse_http_date_ms(date)
        if until is None or now is None:
            return None
        seconds = (until - now) / 1000
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def parse_http_date_ms(value: str | None) -> int | None:
    """Milliseconds since 1970 of an HTTP date (a header such as ``Date``); None for none or nonsense."""
    if not value:
        return None
    try:
        parsed = parsedate_to_datetime(value.strip())
        if parsed.tzinfo is None:
            parsed = parsed.replace(tzinfo=UTC)
        return round((parsed - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


class Wave:
    """Counts refusals among a lane's last settled records: many at once are a bad deploy, not bad records (G5)."""

    def __init__(self, limit: int, window: int) -> None:
        self.limit = limit
        self.window = window
        self._last: deque[bool] = deque(maxlen=window)
        self._refused = 0

    @classmethod
    def parse(cls, text: str) -> "Wave":
        """From ``dead.wave``, such as ``20/400``. Raises ValueError, saying what it looks like."""
        limit, slash, window = text.partition("/")
        if not slash or not limit.strip().isdecimal() or not window.strip().isdecimal():
            raise ValueError(f"{text!r} is not a wave: it looks like 20/400, refused of the last settled records")
        if not 1 <= int(limit) <= int(window) <= 1_000_000:
            raise ValueError(f"{text!r} is not a wave: both numbers are at least 1, the first not above the second")
        return cls(int(limit), int(window))

    def delivered(self, count: int = 1) -> None:
        if count >= self.window:
            self._last.clear()
            self._last.extend([False] * self.window)
            self._refused = 0
            return
        for _ in range(count):
            self._settle(False)

    def refused(self) -> bool:
        """One more; True when the wave is full now."""
        self._settle(True)
        return self.full

    def _settle(self, refused: bool) -> None:
        if len(self._last) == self.window:
            self._refused -= self._last[0]
        self._last.append(refused)
        self._refused += refused

    @property
    def full(self) -> bool:
        """Whether nothing more may be buried."""
        return self._refused >= self.limit

    def reset(self) -> None:
        """Start the count anew."""
        self._last.clear()
        self._refused = 0
