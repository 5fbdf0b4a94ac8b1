"""What waits in memory: an account per tracker, a line per kind. Both are guarded by their sender's lock."""

import random
import time as _time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal

from tracker.receipt import Counters, Failure, OnError, Reason, Receipt, callbacks
from tracker.stamp import MAX_BODY

if TYPE_CHECKING:
    from tracker.sender import Sender

Listener = Callable[[], object]
WhenFull = Literal["refuse", "discard-oldest", "block"]

MAX_RECORDS: Final = 1000
"""Records of one request."""
_BACKOFF_BASE_S: Final = 0.1
_BACKOFF_MAX_S: Final = 5.0  # the collector is close by, and memory is small
_RETRY_AFTER_MAX_S: Final = 60.0


class Account:
    """What one tracker may keep in memory, and what became of its records."""

    def __init__(
        self,
        sender: "Sender",
        on_error: OnError | None,
        max_records: int,
        max_bytes: int,
        when_full: WhenFull,
        block_for: float,
        close_timeout: float,
    ) -> None:
        self.sender: Sender = sender
        self.on_error: OnError | None = on_error
        self.max_records: int = max_records
        self.max_bytes: int = max_bytes
        self.when_full: WhenFull = when_full
        self.block_for: float = block_for
        self.close_timeout: float = close_timeout
        self.reset()

    def reset(self) -> None:
        """Nothing tracked yet."""
        self.tracked: int = 0
        self.durable: int = 0
        self.refused: int = 0
        self.dropped: int = 0
        self.waiting: int = 0
        self.waiting_bytes: int = 0

    def has_room(self, size: int) -> bool:
        """Whether a record of so many bytes fits beside what waits."""
        return self.waiting < self.max_records and self.waiting_bytes + size <= self.max_bytes

    def enter(self, size: int) -> bool:
        """Takes a place for a record of so many bytes; False when there is no room for it."""
        if not self.has_room(size):
            return False
        self.waiting += 1
        self.waiting_bytes += size
        return True

    def room(self) -> str:
        """What waits, for a message."""
        return f"{self.waiting} records of {self.waiting_bytes} bytes wait (see max_records, max_bytes)"

    def fail(self, receipt: Receipt, reason: Reason, message: str, *, dropped: bool = False) -> None:
        """Ends a record that does not wait (any more): counted, and handed to `on_error`."""
        if dropped:
            self.dropped += 1
        else:
            self.refused += 1
        receipt.error = failure = Failure(receipt._body, reason, message)
        callbacks.call(self.on_error, failure)

    def turn_away(self, receipt: Receipt, reason: Reason, message: str, *, dropped: bool = True) -> None:
        """Counts and fails a record that was never let in."""
        with self.sender.lock:
            self.tracked += 1
            self.fail(receipt, reason, message, dropped=dropped)

    def leave_out(self, receipt: Receipt) -> None:
        """Counts a record that the application itself dropped: no failure to call `on_error` for."""
        with self.sender.lock:
            self.tracked += 1
            self.dropped += 1
        receipt.error = Failure(b"{}", "before_record", "dropped by before_record")

    def counters(self) -> Counters:
        """A consistent copy of the figures."""
        with self.sender.lock:
            return Counters(self.tracked, self.durable, self.refused, self.dropped, self.waiting)


class Line:
    """The records of one kind, in the order tracked."""

    def __init__(self, path: str) -> None:
        self.path: str = path
        self.waiting: deque[Receipt] = deque()
        self.in_flight: list[Receipt] = []
        self.limit: int = MAX_RECORDS
        """Records per request: halved by a 413, doubled again by every success."""
        self.one_by_one: int = 0
        """So many of the next records go alone: their batch was refused, and nobody said for which."""
        self.failures: int = 0
        self.not_before: float = 0.0
        self.unreachable: bool = False
        """The last attempt got no answer at all."""
        self.served: float = 0.0
        self.parked: bool = True
        """The thread sleeps and does not expect anything here: wake it."""

    def take(self) -> list[Receipt]:
        """The head of the line as one request: within the limits, stamped under one offset of the clock."""
        limit = 1 if self.one_by_one else self.limit
        offset_ms = self.waiting[0]._offset_ms
        size = 1
        for receipt in islice(self.waiting, limit):
            size += len(receipt._body) + 1
            if size > MAX_BODY or receipt._offset_ms != offset_ms:
                break
            self.in_flight.append(receipt)
        for _ in self.in_flight:
            self.waiting.popleft()
        self.one_by_one -= bool(self.one_by_one)
        return self.in_flight

    def oldest_of(self, account: Account) -> Receipt | None:
        """The account's first record that is not in flight."""
        if not self.waiting or self.waiting[0]._account is account:  # the usual case: one tracker per target
            return self.waiting[0] if self.waiting else None
        return next((receipt for receipt in tuple(self.waiting) if receipt._account is account), None)

    def put_back(self) -> None:
        """After a failed attempt: what was in flight is the head of the line again."""
        self.waiting.extendleft(receipt for receipt in reversed(self.in_flight) if receipt.error is None)
        self.in_flight = []

    def later(self, retry_after: float | None) -> None:
        """Puts back and backs off: full jitter, on top of what the collector asked for."""
        self.put_back()
        backoff = random.random() * min(_BACKOFF_MAX_S, _BACKOFF_BASE_S * 2 ** min(self.failures, 10))  # noqa: S311
        if retry_after is not None:
            backoff += min(retry_after, _RETRY_AFTER_MAX_S)
        self.failures += 1
        self.not_before = _time.monotonic() + backoff


def release(receipt: Receipt) -> Account:
    """Gives a record's place in memory back."""
    account = receipt._account
    assert account is not None  # it was put
    account.waiting -= 1
    account.waiting_bytes -= len(receipt._body)
    return account


def let_go(receipt: Receipt) -> list[Listener]:
    """The record is durable or has failed: its receipt refers to nothing any more. Returns whom to tell."""
    listeners = receipt._listeners or []
    receipt._account = receipt._listeners = None
    return listeners
