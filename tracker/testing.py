"""For your tests: what was tracked, a clock that stands still, salts you can predict.

def test_a_sale_is_tracked():
    with capture_events(clock=FrozenClock(), salts=numbered_salts()) as tracked:
        shop.sell("A-1")  # makes and uses a Tracker of its own
    assert tracked.of_type("added-to-cart")[0]["params"]["sku"] == "A-1"
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from tracker import salt
from tracker.receipt import Receipt
from tracker.salt import Salts
from tracker.stamp import Stamper
from tracker.time import Clock, SystemClock, datetime_ms
from tracker.tracker import Tracker, captures

__all__ = ["Captured", "FrozenClock", "capture_events", "numbered_salts"]


class FrozenClock:
    """A clock that moves only when told to. Wall time and time since boot are separate, as in life."""

    def __init__(self, now: datetime = datetime(2026, 5, 4, 9, 53, 56, 999_000, UTC)) -> None:
        self._wall_ms = datetime_ms(now)
        self._boot_ms = 60_000

    def wall_ms(self) -> int:
        return self._wall_ms

    def boot_ms(self) -> int:
        return self._boot_ms

    def boot_id(self) -> str:
        return "frozen"

    def advance(self, by: timedelta) -> None:
        """Time passes."""
        self._wall_ms += by // timedelta(milliseconds=1)
        self._boot_ms += by // timedelta(milliseconds=1)

    def set(self, now: datetime) -> None:
        """Somebody sets the clock: no time passes."""
        self._wall_ms = datetime_ms(now)


def numbered_salts(prefix: str = "salt-") -> Salts:
    """Salts ``salt-1``, ``salt-2``, ... in the order tracked."""
    numbers = itertools.count(1)
    return lambda _ms: f"{prefix}{next(numbers)}"


class Captured(list[dict[str, Any]]):
    """What was tracked, in order, each record as the JSON that would have been sent."""

    def of_type(self, event_type: str) -> list[dict[str, Any]]:
        """The events of one type, such as ``added-to-cart`` or ``custom``."""
        return [record for record in self if record.get("type") == event_type]

    @property
    def transactions(self) -> list[dict[str, Any]]:
        """The transactions."""
        return [record for record in self if "orderId" in record]

    @property
    def tracker(self) -> Tracker:
        """A tracker for code that wants one given; any other tracker is captured just as well."""
        return Tracker()


@contextmanager
def capture_events(*, clock: Clock | None = None, salts: Salts | None = None) -> Iterator[Captured]:
    """Within the block nothing leaves the process: every `Tracker`'s records go into the list, all threads' too.

    Receipts are durable at once. Arguments are checked as always.
    """
    captured = Captured()
    capture = _Capture(Stamper(clock or SystemClock(), salts or salt.fresh), captured)
    captures.append(capture)
    try:
        yield captured
    finally:
        captures.remove(capture)


class _Capture(NamedTuple):
    stamper: Stamper | None
    captured: Captured

    def take(self, receipt: Receipt) -> bool:
        self.captured.append(msgspec.json.decode(receipt._body))
        receipt.durable = True
        return True
