"""For your tests: what was tracked, a clock that stands still, salts you can predict.

def test_a_sale_is_tracked():
    with capture_events(clock=FrozenClock(), salts=numbered_salts()) as tracked:
        shop.sell("A-1")  # makes and uses a Tracker of its own
    assert_tracked(tracked, AddedToCart, sku="A-1", quantity=1)

With pytest the fixture ``tracked_events`` does the same; see docs/integrations/pytest.md.
"""

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple, Self

import msgspec

from tracker import process, salt
from tracker.assertions import assert_not_tracked, assert_tracked
from tracker.receipt import Failure, Receipt
from tracker.salt import Salts
from tracker.stamp import Stamper
from tracker.time import Clock, SystemClock, datetime_ms
from tracker.tracker import Tracker, captures

__all__ = [
    "Captured",
    "FrozenClock",
    "Guard",
    "assert_not_tracked",
    "assert_tracked",
    "capture_events",
    "flush_trackers",
    "numbered_salts",
]


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
    stamper: Stamper
    captured: Captured

    def take(self, receipt: Receipt) -> bool:
        self.captured.append(msgspec.json.decode(receipt._body))
        receipt.durable = True
        return True


def flush_trackers(timeout: float, target: str | None = None) -> bool:
    """True when everything that the trackers of this process hold became durable within `timeout` seconds.

    With `target` only those that were made for that URL.
    """
    deadline = monotonic() + timeout
    waiting = [(sender, account) for sender in process.senders(target) for account in sender.accounts()]
    return all(sender.flush(account, max(0.0, deadline - monotonic())) for sender, account in waiting)


class Guard:
    """Keeps records from really being sent, and says where they were tracked; `capture_events` goes before it.

    Nothing is raised where a record is tracked, so that no error handling of the application can hide it: ask
    `complaint` afterwards.
    """

    stamper: Final = None

    def __init__(self) -> None:
        self.allowed: bool = False
        """While True records go their way."""
        self._caught: list[str] = []

    def take(self, receipt: Receipt) -> bool:
        """Keeps a record, unless `allowed`."""
        if not self.allowed:
            record = msgspec.json.decode(receipt._body, type=dict[str, Any])
            what = record.get("action") or record.get("type") or "transaction"
            self._caught.append(f"{what} at {_caller()}")
            receipt.error = Failure(receipt._body, "disabled", "a test would have sent this")
        return not self.allowed

    def complaint(self) -> str | None:
        """What would have been sent since the last call, or None."""
        caught, self._caught = self._caught, []
        if not caught:
            return None
        more = [f"  and {len(caught) - _NAMED} more"] if len(caught) > _NAMED else []
        return "\n".join(["this would really have been sent:", *(f"  {each}" for each in caught[:_NAMED]), *more])

    def __enter__(self) -> Self:
        captures.insert(0, self)
        return self

    def __exit__(self, *_: object) -> None:
        captures.remove(self)


_NAMED: Final = 10
_HERE: Final = str(Path(__file__).parent)


def _caller() -> str:
    """File and line of the code that tracks: the nearest outside this package."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
