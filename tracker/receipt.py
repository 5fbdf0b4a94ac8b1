"""What the application gets back: a receipt per record, a failure for what could not be kept, counters."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

if TYPE_CHECKING:
    from tracker.sender import Sender
    from tracker.waiting import Account

log: logging.Logger = logging.getLogger(__name__)

Reason = Literal["refused", "full", "disabled", "closed", "before_record"]
"""Why a record was not kept; ``before_record``: the application's own hook dropped it, or failed."""


class Counters(msgspec.Struct, frozen=True):
    """Where this tracker's records are: tracked = durable + refused + dropped + waiting."""

    tracked: int
    """Records that passed their checks."""
    durable: int
    """On the collector's disk."""
    refused: int
    """Not taken: no room, closed, or refused by the collector for what they are."""
    dropped: int
    """Taken and given up: discarded for newer ones, left over at close, or the tracker is disabled."""
    waiting: int
    """In memory, in flight included."""


class Failure(msgspec.Struct, frozen=True):
    """A record that could not be kept, and why. Its text holds nothing of the record."""

    body: bytes
    """The record as it would have been sent."""
    reason: Reason
    message: str
    kept: bool = False
    """True while the tracker still holds the record and goes on trying."""

    @property
    def record(self) -> dict[str, Any]:
        """The record as it would have been sent, decoded."""
        record: dict[str, Any] = msgspec.json.decode(self.body)
        return record

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __repr__(self) -> str:
        return f"Failure(reason={self.reason!r}, message={self.message!r}, kept={self.kept})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("reason", self.reason), ("message", self.message), ("kept", self.kept)]


OnError = Callable[[Failure], object]


class Receipt(msgspec.Struct, eq=False, gc=False):
    """A tracked record: until it is durable it has a place in memory, then one on the collector's disk."""

    # Thousands may wait, and Python's garbage collector would look through them again and again. It need not: while
    # one waits its sender holds it, and afterwards it refers to nothing that could refer to it; see `let_go`.

    _path: str
    _body: bytes
    time: str
    """The time as stamped: UTC with milliseconds and ``Z``."""
    salt: str
    """The `eventSalt` as stamped."""
    _given: bool
    _offset_ms: int
    durable: bool = False
    """True once the record is on the collector's disk."""
    error: Failure | None = None
    """Why the record will never be durable; None while it waits."""
    _number: int = 0
    _account: "Account | None" = None
    _listeners: list[Callable[[], object]] | None = None

    def wait(self, timeout: float = 5.0) -> bool:
        """True as soon as the record is durable; False when it has failed, or after `timeout` seconds."""
        account = self._account
        if account is not None and not (self.durable or self.error):
            account.sender.wait_until(lambda: self.durable or self.error is not None, timeout)
        return self.durable

    async def durably(self, timeout: float = 5.0) -> bool:
        """`wait` for asyncio."""
        account = self._account
        if account is not None:
            await settled(account.sender, [self], timeout)
        return self.durable

    def __repr__(self) -> str:
        state = "durable" if self.durable else self.error.reason if self.error else "waiting"
        return f"<Receipt {state}>"


async def settled(sender: "Sender", receipts: "list[Receipt]", timeout: float) -> None:
    """Returns as soon as all of them are durable or have failed, or after `timeout` seconds; no thread waits."""
    import asyncio  # loaded already where a loop runs, and costly where none does

    loop, done = asyncio.get_running_loop(), asyncio.Event()
    forget = sender.when_settled(receipts, lambda: loop.call_soon_threadsafe(done.set))
    try:
        async with asyncio.timeout(timeout):
            await done.wait()
    except TimeoutError:
        return
    finally:
        forget()


_MAX_CALLS: Final = 10_000
_MAX_CALL_BYTES: Final = 16 << 20


class Callbacks:
    """Calls `on_error` on one daemon thread of its own, started by the first failure.

    Never on the caller's thread and never under a lock; a slow `on_error` does not hold up sending.
    What waits to be handed over is bounded like everything else.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Starts anew, as in a forked child: the parent's failures are the parent's."""
        self._make_locks()
        self._calls: deque[tuple[OnError, Failure]] = deque()
        self._bytes = 0
        self._busy = False
        self._thread: threading.Thread | None = None
        self._logged: set[str] = set()

    def _make_locks(self) -> None:
        self._changed = threading.Condition()
        self._locks_of: object = threading.Lock

    def call(self, on_error: OnError | None, failure: Failure) -> None:
        """Hands a failure over; at once, whatever `on_error` does."""
        if on_error is None or threading.current_thread() is self._thread:
            return  # what fails inside on_error is counted, and would otherwise go round for ever
        if self._locks_of is not threading.Lock and self._thread is None:
            self._make_locks()  # gevent has patched since: the locks of threads do not tell greenlets apart
        with self._changed:
            if len(self._calls) >= _MAX_CALLS or self._bytes > _MAX_CALL_BYTES:
                self._log_once("on_error is too slow: failures are counted, but not all are handed over")
                return
            self._calls.append((on_error, failure))
            self._bytes += len(failure.body)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tillpost-on-error", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:
                    self._thread = None
                    self._log_once("no thread for on_error: the interpreter is ending or out of threads")
                    return
            self._changed.notify_all()

    def drain(self, timeout: float) -> bool:
        """True once everything is handed over; False after `timeout` seconds, or inside `on_error`."""
        if threading.current_thread() is self._thread:
            return False
        with self._changed:
            return self._changed.wait_for(
                lambda: self._thread is None or not (self._calls or self._busy), max(0.0, timeout)
            )

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._calls)
                on_error, failure = self._calls.popleft()
                self._bytes -= len(failure.body)
                self._busy = True
            try:
                on_error(failure)
            except Exception as error:
                self._log_once(f"on_error itself failed with {type(error).__name__}: failures are counted all the same")
            del on_error, failure  # they would live on, with all they hold, until the next failure

    def _log_once(self, message: str) -> None:
        if message not in self._logged:
            self._logged.add(message)
            log.error(message)


callbacks: Final = Callbacks()
