"""The facade: a method for every current event type, and what surrounds them."""

import functools
import inspect
import logging
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterable
from datetime import datetime
from time import monotonic
from types import SimpleNamespace, TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Final,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    cast,
    get_type_hints,
    overload,
)

import msgspec

from tracker import events, process, salt
from tracker.checks import kind_of
from tracker.clients import Client
from tracker.errors import InvalidRecord, MissingArgument
from tracker.privacy import BeforeRecord, Redaction, show, shown
from tracker.receipt import Counters, OnError, Receipt, callbacks, settled
from tracker.record import Record, kinds
from tracker.sender import Sender
from tracker.stamp import Stamper
from tracker.time import Clock, SystemClock
from tracker.transactions import Transaction
from tracker.transport import EmbeddedCollector, connect
from tracker.waiting import Account, WhenFull

if TYPE_CHECKING:
    from tracker.bound import BoundTracker

P = ParamSpec("P")
R = TypeVar("R", bound=Record)

log: logging.Logger = logging.getLogger(__name__)

_LAST_CALLS_S: Final = 1.0
_DEFAULT_TARGET: Final = "http://127.0.0.1:8787"
_CLOCK: Final = SystemClock()
_SIZE: Final = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|KB|MB|GB)?", re.ASCII)
_UNITS: Final = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 1000, "MB": 10**6, "GB": 10**9}


class WithClient(Protocol[P]):
    """A method of a `Tracker`: the client first, then the arguments of the record."""

    def __call__(self, client: Client, *args: P.args, **kwargs: P.kwargs) -> Receipt: ...


class MayHaveClient(Protocol[P]):
    """A method of a `BoundTracker`: without a client, the one that is bound."""

    def __call__(self, client: Client | None = None, *args: P.args, **kwargs: P.kwargs) -> Receipt: ...


class Tracks(Protocol[P]):
    """A method that tracks one class of records, as type checkers see it; at run time a plain function."""

    @overload
    def __get__(self, tracker: "BoundTracker", owner: type | None = None) -> MayHaveClient[P]: ...

    @overload
    def __get__(self, tracker: "Tracker", owner: type | None = None) -> WithClient[P]: ...

    @overload
    def __get__(
        self, tracker: None, owner: type | None = None
    ) -> Callable[Concatenate["Tracker", Client, P], Receipt]: ...


def _tracks(
    record_type: Callable[Concatenate[Client, P], R],
) -> Callable[[Callable[["Tracker", R], Receipt]], Tracks[P]]:
    """Gives a method that takes a record the arguments of the record's class, so that they are listed once."""
    make = cast(Callable[..., R], record_type)

    def with_its_arguments(method: Callable[["Tracker", R], Receipt]) -> Tracks[P]:
        @functools.wraps(method)
        def tracked(self: "Tracker", /, *args: Any, **kwargs: Any) -> Receipt:
            if self._fills_in and (args[0] if args else kwargs.get("client")) is None:
                args, kwargs["client"] = args[1:], self._whose()
            try:
                record = make(*args, **kwargs)
            except TypeError as error:
                _say_what_is_missing(make, args, kwargs)
                raise error from None
            return method(self, record)

        tracked.__signature__ = _signature(make)  # type: ignore[attr-defined]
        return cast(Tracks[P], tracked)

    return with_its_arguments


def _signature(record_type: Callable[..., Record]) -> inspect.Signature:
    given = inspect.signature(record_type).parameters.values()
    own = [parameter.replace(annotation=_plain(parameter.annotation)) for parameter in given]
    myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    return inspect.Signature([myself, *own], return_annotation=Receipt)


@functools.cache  # a few types stand in hundreds of places, and an import should be quick
def _plain(annotation: Any) -> Any:
    """A type without what `Annotated` adds."""
    return get_type_hints(SimpleNamespace(__annotations__={"its": annotation}))["its"]


def _say_what_is_missing(record_type: Callable[..., Record], args: tuple[object, ...], given: dict[str, Any]) -> None:
    """Raises `MissingArgument` when a required one is left out; any other TypeError stays what it is."""
    for at, (name, parameter) in enumerate(inspect.signature(record_type).parameters.items()):
        if parameter.default is inspect.Parameter.empty and name not in given and at >= len(args):
            raise MissingArgument(name, "is required") from None


class Tracker:
    """Hands records to a collector, from memory to its disk, without ever blocking or harming the caller.

    Args:
        target: where the collector is: a URL (``http://127.0.0.1:8787``, ``https://...``,
            ``unix:///run/tillpost.sock``), an embedded `Collector`, or None for ``TILLPOST_URL``, else
            http://127.0.0.1:8787. An embedded collector is started by the first record and stays yours: `close`
            leaves the records durable in it and does not close it.
        token: the collector's ingest token; without it ``TILLPOST_INGEST_TOKEN`` (or ``..._FILE``), else none.
        on_error: called with a `Failure` for every record that could not be kept, on a thread of ours.
        max_records: so many records wait in memory at most, in flight included.
        max_bytes: and so many bytes of them; a number or a text like ``16MiB``.
        when_full: what happens to a record that does not fit: ``refuse`` fails it, ``discard-oldest`` fails
            older ones to make room, ``block`` waits up to `block_for` seconds for room and then fails it.
        block_for: seconds, for ``block``.
        close_timeout: seconds `close`, and the end of the process, wait for what is not durable yet.
        before_record: called with every record before it is stamped; returns it, another one
            (``record.replace(label="...")``) or None to drop it. On the caller's thread: be quick, and track nothing
            in it. Should it fail, the record is dropped, counted and handed to `on_error`, never sent unchanged.
        redact: names of params, as they are sent, that are left out of every record, at any depth.
        debug: shows each record as it would be sent, personal data and all, at level DEBUG of the logger
            ``tracker.debug``.
        clock: where stamps come from; for tests.

    A wrong argument raises `InvalidRecord` here. `TILLPOST_DISABLED=1` makes a tracker that checks, counts and
    drops. Trackers of one target share one thread and one connection; a forked child gets its own.
    """

    def __init__(
        self,
        target: str | EmbeddedCollector | None = None,
        *,
        token: str | None = None,
        on_error: OnError | None = None,
        max_records: int = 10_000,
        max_bytes: int | str = "16MiB",
        when_full: WhenFull = "refuse",
        block_for: float = 0.1,
        close_timeout: float = 5.0,
        before_record: BeforeRecord | None = None,
        redact: Iterable[str] = (),
        debug: bool = False,
        clock: Clock | None = None,
    ) -> None:
        if target is None:
            target = os.environ.get("TILLPOST_URL") or _DEFAULT_TARGET
        token = _token(token)
        if on_error is not None and not callable(on_error):
            raise InvalidRecord("on_error", f"must be callable with a Failure, not {kind_of(on_error)}", on_error)
        if before_record is not None and not callable(before_record):
            raise InvalidRecord("before_record", f"must be callable with a record, not {kind_of(before_record)}")
        if when_full not in ("refuse", "discard-oldest", "block"):
            raise InvalidRecord("when_full", "must be refuse, discard-oldest or block", when_full)
        if isinstance(max_records, bool) or not isinstance(max_records, int) or max_records < 1:
            raise InvalidRecord("max_records", "must be a whole number, 1 or more", max_records)
        self._before_record = before_record
        self._redact = Redaction(redact) if redact else None
        self._debug = debug
        if debug and not shown.isEnabledFor(logging.DEBUG):
            log.warning("debug=True shows records at level DEBUG of the logger tracker.debug, which is not enabled")
        clock = clock or _CLOCK
        key = (target if isinstance(target, str) else id(target), token, id(clock))
        self._sender = process.shared(key, lambda: Sender(connect(target, token), Stamper(clock, salt.fresh)))
        self._account = Account(
            self._sender,
            on_error,
            max_records,
            _bytes(max_bytes),
            when_full,
            _seconds("block_for", block_for),
            _seconds("close_timeout", close_timeout),
        )
        self._disabled = os.environ.get("TILLPOST_DISABLED", "").lower() not in ("", "0", "false", "no")
        self._closed = False
        self._said: set[str] = set()
        self._sender.join(self._account)
        # A tracker nobody holds any more needs no close: what it tracked is still sent.
        self._leave = weakref.finalize(self, self._sender.leave)
        self._leave.atexit = False

    # Records

    def track(self, record: Record, *, time: datetime | None = None, salt: str | None = None) -> Receipt:
        """Stamps a record and gives it a place in memory; sending and failing happen behind your back.

        `record` is any class of `tracker.events`, or a `Transaction`. Raises `InvalidRecord` for a wrong argument
        and never for a collector that is away, full or broken: the receipt, `on_error` and `counters` tell.
        """
        if type(record) not in kinds and not isinstance(record, Record):
            raise InvalidRecord("record", f"must be an event or a Transaction, not {kind_of(record)}", record)
        if time is not None or salt is not None:
            record = msgspec.structs.replace(record, time=time or record.time, salt=salt or record.salt)
        receipt = self._stamped(record)
        if receipt.error is None:
            self._put(receipt)
        return receipt

    def _stamped(self, record: Record) -> Receipt:
        """The record as it will be sent; with an error when `before_record` dropped it or failed."""
        stamper = (captures[-1].stamper if captures else None) or self._sender.stamper
        if self._before_record is not None:
            try:
                kept = self._before_record(record)
                if kept is None:
                    receipt = Receipt(record.path, b"", "", "", False, 0)
                    self._account.leave_out(receipt)
                    return receipt
                if not isinstance(kept, Record):
                    raise TypeError(f"before_record must return a record or None, not {kind_of(kept)}")
                receipt = stamper.stamp(kept, self._redact)
            except Exception as error:  # the sale must not pay for it, and what was to be hidden must not leave
                receipt = stamper.stamp(record, self._redact)
                message = f"before_record failed with {type(error).__name__}: the record was dropped"
                self._account.turn_away(receipt, "before_record", message)
                self._say_once(message)
                return receipt
        else:
            receipt = stamper.stamp(record, self._redact)
        if self._debug:
            show(receipt)
        return receipt

    def _resend(self, path: str, body: bytes) -> Receipt:
        """Tracks what was stamped earlier and kept elsewhere: an outbox."""
        stamper = (captures[-1].stamper if captures else None) or self._sender.stamper
        receipt = stamper.again(path, body)
        self._put(receipt)
        return receipt

    def _put(self, receipt: Receipt) -> None:
        """Sends a stamped record on its way, or to whoever captures."""
        if captures and captures[-1].take(receipt):
            return
        if self._closed:
            self._account.turn_away(receipt, "closed", "tracked after close", dropped=False)
        elif self._disabled:
            self._account.turn_away(receipt, "disabled", "TILLPOST_DISABLED is set")
        else:
            self._sender.put(receipt, self._account)

    _fills_in: ClassVar[bool] = False
    """Whether a client that is left out is asked of `_whose`; see `BoundTracker`."""

    def _whose(self) -> Client:
        raise MissingArgument("client", "is required")

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            log.error(message)

    @_tracks(Transaction)
    def transaction(self, record: Transaction) -> Receipt:
        """A completed sale; `revenue` is computed from the products when not given, `value` equals it."""
        return self.track(record)

    @_tracks(events.Custom)
    def custom(self, record: events.Custom) -> Receipt:
        """An event of your own: an `action` in the style ``context.action``, and free-form `params`."""
        return self.track(record)

    @_tracks(events.ApplicationStarted)
    def application_started(self, record: events.ApplicationStarted) -> Receipt:
        """The application was started."""
        return self.track(record)

    @_tracks(events.Registered)
    def registered(self, record: events.Registered) -> Receipt:
        """The client made an account."""
        return self.track(record)

    @_tracks(events.LoggedIn)
    def logged_in(self, record: events.LoggedIn) -> Receipt:
        """The client logged in."""
        return self.track(record)

    @_tracks(events.LoggedOut)
    def logged_out(self, record: events.LoggedOut) -> Receipt:
        """The client logged out."""
        return self.track(record)

    @_tracks(events.AddedToCart)
    def added_to_cart(self, record: events.AddedToCart) -> Receipt:
        """A product was put into the cart, or scanned at the till."""
        return self.track(record)

    @_tracks(events.RemovedFromCart)
    def removed_from_cart(self, record: events.RemovedFromCart) -> Receipt:
        """A product was taken out of the cart."""
        return self.track(record)

    @_tracks(events.AddedToFavorites)
    def added_to_favorites(self, record: events.AddedToFavorites) -> Receipt:
        """A product was marked as a favourite."""
        return self.track(record)

    @_tracks(events.ProductView)
    def product_view(self, record: events.ProductView) -> Receipt:
        """A product page was seen."""
        return self.track(record)

    @_tracks(events.AssignedToCompany)
    def assigned_to_company(self, record: events.AssignedToCompany) -> Receipt:
        """The client was assigned to a company."""
        return self.track(record)

    @_tracks(events.AppearedInLocation)
    def appeared_in_location(self, record: events.AppearedInLocation) -> Receipt:
        """The client was seen at a place."""
        return self.track(record)

    @_tracks(events.PushReceived)
    def push_received(self, record: events.PushReceived) -> Receipt:
        """A push message was received in the background."""
        return self.track(record)

    @_tracks(events.PushViewed)
    def push_viewed(self, record: events.PushViewed) -> Receipt:
        """A push message was seen."""
        return self.track(record)

    @_tracks(events.PushClicked)
    def push_clicked(self, record: events.PushClicked) -> Receipt:
        """A push message was clicked."""
        return self.track(record)

    @_tracks(events.PushCancelled)
    def push_cancelled(self, record: events.PushCancelled) -> Receipt:
        """A push message was dismissed."""
        return self.track(record)

    @_tracks(events.CancelledTransaction)
    def cancelled_transaction(self, record: events.CancelledTransaction) -> Receipt:
        """A sale was cancelled or goods came back; amounts are positive, as in the sale."""
        return self.track(record)

    @_tracks(events.HitTimer)
    def hit_timer(self, record: events.HitTimer) -> Receipt:
        """A timer was hit."""
        return self.track(record)

    @_tracks(events.Searched)
    def searched(self, record: events.Searched) -> Receipt:
        """The client searched for something."""
        return self.track(record)

    @_tracks(events.Shared)
    def shared(self, record: events.Shared) -> Receipt:
        """The client shared something."""
        return self.track(record)

    @_tracks(events.VisitedScreen)
    def visited_screen(self, record: events.VisitedScreen) -> Receipt:
        """A screen of an application was visited."""
        return self.track(record)

    @_tracks(events.RecommendationView)
    def recommendation_view(self, record: events.RecommendationView) -> Receipt:
        """A frame of recommendations was seen."""
        return self.track(record)

    @_tracks(events.ItemSearchClick)
    def item_search_click(self, record: events.ItemSearchClick) -> Receipt:
        """An item among search results was clicked."""
        return self.track(record)

    # Waiting and counting

    def counters(self) -> Counters:
        """Where this tracker's records are, in this process."""
        return self._account.counters()

    def flush(self, timeout: float | None = None) -> bool:
        """True when everything tracked so far and still waiting is durable within `timeout` seconds.

        Durable is on the collector's disk, not delivered to the API. Without `timeout`: `close_timeout`.
        """
        timeout = self._account.close_timeout if timeout is None else timeout
        return self._sender.flush(self._account, timeout)

    async def aflush(self, timeout: float | None = None) -> bool:
        """`flush` for asyncio: waits without holding up the loop, and without a thread of its own."""
        timeout = self._account.close_timeout if timeout is None else timeout
        awaited = self._sender.hurry(self._account)
        await settled(self._sender, awaited, timeout)
        return all(receipt.durable for receipt in awaited)

    def close(self) -> None:
        """Flushes and stops, within `close_timeout` seconds. What is not durable then fails as ``closed``.

        `on_error` gets a second more for these. Records tracked afterwards fail the same way. May be called again.
        """
        if self._closed:
            return
        self._closed = True
        deadline = monotonic() + self._account.close_timeout
        self.flush()
        self._sender.give_up(self._account, "the tracker was closed before the collector could be reached")
        self._leave()
        self._sender.rest(deadline - monotonic())
        callbacks.drain(max(_LAST_CALLS_S, deadline - monotonic()))

    async def aclose(self) -> None:
        """`close` for asyncio."""
        import asyncio

        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Capture(Protocol):
    """Who takes the records of all trackers instead of their collectors; see `tracker.testing`."""

    @property
    def stamper(self) -> Stamper | None:
        """Stamps them; None leaves that to each tracker's own."""
        ...

    def take(self, receipt: Receipt) -> bool:
        """True when the record goes no further."""
        ...


captures: Final[list[Capture]] = []
"""The last one counts."""


def _token(given: str | None) -> str | None:
    path = os.environ.get("TILLPOST_INGEST_TOKEN_FILE")
    if given is None:
        given = os.environ.get("TILLPOST_INGEST_TOKEN")
    if given is None and path:
        try:
            with open(path) as file:  # noqa: PTH123  pathlib is slow to load
                given = file.read().strip()
        except OSError as error:
            raise InvalidRecord("token", f"TILLPOST_INGEST_TOKEN_FILE cannot be read: {error.strerror}", path) from None
    if given is not None and not (isinstance(given, str) and given.isascii() and given.isprintable()):
        raise InvalidRecord("token", "must be printable ASCII", given)
    return given or None


def _bytes(given: int | str) -> int:
    found = _SIZE.fullmatch(str(given).strip())
    size = int(found[1]) * _UNITS[found[2]] if found and not isinstance(given, bool) else 0
    if size < 1:
        raise InvalidRecord("max_bytes", "must be a number of bytes or a text like 16MiB", given)
    return size


def _seconds(field: str, given: float) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < threading.TIMEOUT_MAX:
        raise InvalidRecord(field, "must be a number of seconds, 0 or more", given)
    return float(given)
