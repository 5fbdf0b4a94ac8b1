"""The one background thread of a target: from records waiting in memory to answers.

A line per kind keeps order and backs off by itself. A line has one request in flight; what waits
meanwhile goes into the next. Until an answer says that records are durable they count as waiting,
and a failed attempt puts them back at the head of their line, byte for byte as they were.

One lock guards all of it and is never held while anything is sent or called. It is an RLock, because a
signal handler or a finaliser may come in at any point of the very thread that holds it.
"""

import logging
import os
import re
import threading
import time as _time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from tracker import process, wire
from tracker.receipt import Failure, Receipt, callbacks
from tracker.stamp import Stamper, clock_header
from tracker.transport import Answer, CannotStart, Transport, TransportError
from tracker.waiting import MAX_RECORDS, Account, Line, Listener, let_go, release

log: logging.Logger = logging.getLogger(__name__)

_TIMEOUT_S: Final = 10.0
_LATER: Final = frozenset({408, 425, 429})
_INDEX: Final = re.compile(r"\[(\d{1,9})\]\.?(.*)", re.DOTALL)


class Sender:
    """Everything that goes to one target from this process, whatever the number of trackers."""

    def __init__(self, transport: Transport, stamper: Stamper) -> None:
        self.stamper: Stamper = stamper
        self._transport = transport
        self.close_timeout: float = 0.0
        self._accounts: weakref.WeakSet[Account] = weakref.WeakSet()
        self._users = 0
        self._begin()

    def _begin(self) -> None:
        self._make_locks()
        self._lines = {path: Line(path) for path in (wire.EVENTS_BATCH, wire.TRANSACTIONS_BATCH)}
        self._thread: threading.Thread | None = None
        self._troubles: set[str] = set()
        self._ended = False

    def _make_locks(self) -> None:
        self.lock: threading.RLock = threading.RLock()
        self._work = threading.Condition(self.lock)
        self._settled = threading.Condition(self.lock)
        self._locks_of: object = threading.Lock

    def forget_parent(self) -> None:
        """In a forked child: what waits is the parent's to send, over the parent's connection."""
        self._transport.forget_parent()
        self._begin()
        for account in self._accounts:
            account.reset()

    # The callers' side

    def join(self, account: Account) -> None:
        """One more tracker sends here."""
        with self.lock:
            self._accounts.add(account)
            self.close_timeout = max(self.close_timeout, account.close_timeout)
            self._users += 1

    def accounts(self) -> list[Account]:
        """Those of the trackers that send here and are still held."""
        with self.lock:
            return list(self._accounts)

    def leave(self) -> None:
        """One tracker less: after the last one the thread ends, once nothing waits."""
        with self.lock:
            self._users -= 1
            self._work.notify_all()

    def put(self, receipt: Receipt, account: Account) -> None:
        """Gives a record its place in memory, or fails it; never waits longer than `block_for`."""
        size = len(receipt._body)
        told: list[Listener] | None = None
        if self._thread is None and self._locks_of is not threading.Lock:
            self._make_locks()  # gevent has patched since: the locks of threads do not tell greenlets apart
        with self.lock:
            account.tracked = receipt._number = account.tracked + 1
            if self._ended:
                account.fail(receipt, "closed", "tracked after the process had flushed what it tracked")
                return
            if not account.enter(size) and not (self._make_room(account, size, told := []) and account.enter(size)):
                account.fail(receipt, "full", f"refused: {account.room()}")
                return
            receipt._account = account
            line = self._lines[receipt._path]
            line.waiting.append(receipt)
            if self._thread is None:
                self._start()
            if line.parked:
                line.parked = False
                self._work.notify()
        if told:
            _call(told)

    def _make_room(self, account: Account, size: int, told: list[Listener]) -> bool:
        if account.when_full == "discard-oldest" and size <= account.max_bytes:
            while not account.has_room(size):
                oldest = self._take_oldest(account)
                if oldest is None:
                    return False
                release(oldest)
                account.fail(oldest, "full", f"discarded for a newer record; {account.room()}", dropped=True)
                told += let_go(oldest)
                self._settled.notify_all()
            return True
        if account.when_full == "block" and threading.current_thread() is not self._thread:
            return self._settled.wait_for(lambda: account.has_room(size), account.block_for)
        return False

    def _take_oldest(self, account: Account) -> Receipt | None:
        """Removes and returns the account's oldest record, one not in flight if there is any."""
        heads = [head for line in self._lines.values() if (head := line.oldest_of(account)) is not None]
        # What is in flight may arrive all the same; but newer records must not wait for a hanging collector.
        oldest = min(heads or self._of(account), key=lambda receipt: receipt._number, default=None)
        if heads and oldest is not None:
            try:
                self._lines[oldest._path].waiting.remove(oldest)
            except ValueError:  # a signal handler came in between and discarded it
                return self._take_oldest(account)
        return oldest

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Waits until `condition`, looked at under the lock after every answer, holds."""
        with self.lock:
            return self._settled.wait_for(condition, max(0.0, timeout))

    def when_settled(self, receipts: list[Receipt], listener: Listener) -> Callable[[], None]:
        """Calls `listener` once all of them are durable or have failed; what it returns takes that back."""
        with self.lock:
            waiting = [receipt for receipt in receipts if not receipt.durable and receipt.error is None]
            left = len(waiting)

            def one_less() -> None:
                nonlocal left
                with self.lock:
                    left -= 1
                    if left:
                        return
                listener()

            for receipt in waiting:
                receipt._listeners = [*(receipt._listeners or ()), one_less]

        def forget() -> None:
            with self.lock:
                for receipt in waiting:
                    if not receipt.durable and receipt._listeners and one_less in receipt._listeners:
                        receipt._listeners.remove(one_less)

        if not waiting:
            listener()
        return forget

    def flush(self, account: Account, timeout: float) -> bool:
        """True when everything the account has waiting now became durable within `timeout` seconds."""
        deadline = _time.monotonic() + timeout
        awaited = self.hurry(account)
        for receipt in awaited:
            receipt.wait(deadline - _time.monotonic())
        return all(receipt.durable for receipt in awaited)

    def hurry(self, account: Account) -> list[Receipt]:
        """What the account has waiting now. Somebody waits for it: an unreachable collector is tried again at once."""
        with self.lock:
            for line in self._lines.values():
                if line.unreachable:
                    line.not_before = 0.0
            self._work.notify_all()
            return self._of(account)

    def give_up(self, account: Account, message: str) -> None:
        """Fails what the account still has waiting; whether what is in flight arrives is not known."""
        with self.lock:
            listeners: list[Listener] = []
            for receipt in self._of(account):
                with suppress(ValueError):  # in flight
                    self._lines[receipt._path].waiting.remove(receipt)
                release(receipt)
                account.fail(receipt, "closed", message, dropped=True)
                listeners += let_go(receipt)
            self._settled.notify_all()
            self._work.notify_all()
        _call(listeners)

    def finish(self, deadline: float) -> None:
        """The process ends: flushes what waits, fails what is left at `deadline` (monotonic), takes no more."""
        with self.lock:
            accounts = [account for account in self._accounts if account.waiting]
            self._ended = True
        for account in accounts:
            self.flush(account, min(account.close_timeout, deadline - _time.monotonic()))
            self.give_up(account, "the process ended before the collector could be reached")

    def rest(self, timeout: float) -> None:
        """Waits for the thread to end, if nobody needs it any more."""
        thread = self._thread
        if thread is not None and self._users <= 0 and thread is not threading.current_thread():
            thread.join(max(0.0, timeout))

    def _of(self, account: Account) -> list[Receipt]:
        return [
            receipt
            for line in self._lines.values()
            for receipt in (*line.in_flight, *line.waiting)
            if receipt._account is account and receipt.error is None and not receipt.durable
        ]

    # The thread's side

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="tillpost-tracker", daemon=True)
        if self._thread is not None:  # a signal handler came in while we made ours, and tracked
            return
        self._thread = thread
        try:  # assigned before it starts: a signal handler that tracks meanwhile must not start another
            thread.start()
        except RuntimeError as error:  # out of threads, or the interpreter is ending: the next record tries again
            self._thread = None
            self._say_once("thread", f"no thread to send from: {error}")
            return
        process.exit_last()

    def _run(self) -> None:
        home = os.getpid()
        try:
            while (line := self._next(home)) is not None:
                result: Answer | TransportError
                try:
                    result = self._send(line)
                except TransportError as error:
                    result = error
                except Exception as error:  # a mistake of ours: the records stay, and go on being tried
                    result = TransportError(f"unexpected {type(error).__name__}")
                process.stay(home)
                if isinstance(result, TransportError):
                    _call(self._failed(line, result))
                else:
                    _call(self._judge(line, result))
        except BaseException:  # a mistake of ours: the next record starts another thread
            with self.lock:
                for line in self._lines.values():
                    line.put_back()
                if self._thread is threading.current_thread():
                    self._thread = None
            raise
        finally:
            self._transport.close()

    def _next(self, home: int) -> Line | None:
        """The next line with something to send, its records taken; None when the thread is to end."""
        with self.lock:
            while True:
                now = _time.monotonic()
                pending = [line for line in self._lines.values() if line.waiting]
                ready = [line for line in pending if line.not_before <= now]
                if ready:
                    line = min(ready, key=lambda line: line.served)
                    line.served = now
                    line.take()
                    return line
                if not pending and self._users <= 0:
                    self._thread = None
                    return None
                for line in self._lines.values():
                    line.parked = line not in pending
                wake = min((line.not_before for line in pending), default=None)
                self._work.wait(None if wake is None else wake - now)
                process.stay(home)

    def _send(self, line: Line) -> Answer:
        batch = line.in_flight
        body = b"[" + b",".join([receipt._body for receipt in batch]) + b"]"
        headers = {wire.CLOCK_HEADER: clock_header(self.stamper.clock, batch)}
        return self._transport.send(line.path, body, headers, _TIMEOUT_S)

    def _judge(self, line: Line, answer: Answer) -> list[Listener]:
        """Settles the records in flight by what the collector says; returns whom to tell."""
        count = len(line.in_flight)
        with self.lock:
            if answer.status == 202 and answer.headers.get(wire.ACCEPTED_HEADER.lower()) == str(count):
                return self._accepted(line)
            if answer.status == 400 and (named := _named(answer.body)) is not None:
                return self._refused(line, named)
            if answer.status == 413 and count == 1:
                return self._refused(line, {0: "too large for the collector"})
            if answer.status == 413:
                line.limit = count // 2
                line.put_back()
                return []
            if answer.status in _LATER or answer.status >= 500:
                self._say_once("busy", f"the collector answers {answer.status}: records wait in memory")
            else:
                self._say_once(str(answer.status), f"the collector answers {answer.status}: {_hint(answer.status)}")
            line.unreachable = False
            line.later(_retry_after(answer.headers.get("retry-after")))
            return []

    def _accepted(self, line: Line) -> list[Listener]:
        listeners: list[Listener] = []
        for receipt in line.in_flight:
            if receipt.error is None:
                release(receipt).durable += 1
                receipt.durable = True
                receipt._body = b""
                listeners += let_go(receipt)
        line.in_flight = []
        line.failures = 0
        line.limit = min(line.limit * 2, MAX_RECORDS)
        if self._troubles:
            self._troubles.clear()
            log.warning("records are getting through again")
        self._settled.notify_all()
        return listeners

    def _refused(self, line: Line, named: dict[int, str]) -> list[Listener]:
        """Fails the records a refusal names; one of many that names none makes them go one by one."""
        batch = line.in_flight
        if len(batch) == 1:
            named = {0: named.get(0, "refused, the collector does not say why")}
        listeners: list[Listener] = []
        culprits = [at for at in named if at < len(batch)]
        for at in culprits:
            receipt = batch[at]
            if receipt.error is None:
                release(receipt).fail(receipt, "refused", named[at])
                listeners += let_go(receipt)
        if not culprits:
            line.one_by_one = len(batch)
        line.put_back()
        self._settled.notify_all()
        return listeners

    def _failed(self, line: Line, error: TransportError) -> list[Listener]:
        with self.lock:
            if isinstance(error, CannotStart):
                self._announce(line, str(error))
            self._say_once("away", f"the collector cannot be reached ({error}): records wait in memory")
            line.unreachable = True
            line.later(None)
        return []

    def _announce(self, line: Line, message: str) -> None:
        """Tells each tracker once, by its oldest record here, that the collector does not start."""
        if "away" not in self._troubles:
            oldest = {receipt._account: receipt for receipt in reversed((*line.in_flight, *line.waiting))}
            for account, receipt in oldest.items():
                if account is not None and receipt.error is None:
                    callbacks.call(account.on_error, Failure(receipt._body, "refused", message, kept=True))

    def _say_once(self, trouble: str, message: str) -> None:
        """One line per trouble until records get through again: an outage must not fill a console."""
        if trouble not in self._troubles:
            self._troubles.add(trouble)
            log.warning(message)


def _call(listeners: list[Listener]) -> None:
    for listener in listeners:
        try:
            listener()
        except RuntimeError:
            log.debug("a receipt was awaited in an event loop that has ended")


def _hint(status: int) -> str:
    if status in (401, 403):
        return "check the token (token=, TILLPOST_INGEST_TOKEN); records wait in memory"
    if status == 202:
        return "but does not confirm our records, so it is no collector: check the target; records wait in memory"
    return "check that the target is a collector; records wait in memory"


def _named(body: bytes) -> dict[int, str] | None:
    """The records a 400 names, by position, with the messages; None when the answer is not the API's error."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(answer, dict) or not {"status", "message"} <= answer.keys():
        return None
    named: dict[int, str] = {}
    errors = answer.get("errors")
    for error in errors if isinstance(errors, list) else ():
        if isinstance(error, dict) and (found := _INDEX.fullmatch(str(error.get("field")))):
            at, said = int(found[1]), str(error.get("message"))
            if found[2]:
                said = f"{found[2]}: {said}"
            named[at] = f"{named[at]}; {said}" if at in named else said
    return named


def _retry_after(text: str | None) -> float | None:
    """Seconds of a Retry-After header, which may be a date; None when there is none to understand."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    from email.utils import parsedate_to_datetime  # loaded with HTTP

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - _time.time())
    except ValueError:
        return None
