"""The client of the current request, task or block, so that the code in it need not pass it around.

A `Binding` lives in a context variable: threads and asyncio tasks each see their own, and what a request
hands to other threads or tasks together with its context sees the same one.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import ClassVar, Final

import msgspec

from tracker.checks import Source
from tracker.clients import Client
from tracker.errors import InvalidRecord, MissingArgument
from tracker.receipt import Receipt
from tracker.record import Record
from tracker.tracker import Tracker

log: logging.Logger = logging.getLogger(__name__)

COOKIE: Final = "_snrs_uuid"
"""The cookie in which the vendor's web tracker keeps the uuid of the anonymous profile."""
_UUID_COOKIE: Final = re.compile(rf"(?:^|;)\s*{COOKIE}=([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})\s*(?:;|$)")
_NOBODY: Final = Client(id=0)
"""Stands for a visitor nobody knows while a record is made and checked; never sent."""

ClientFinder = Callable[[], Client | None]


def anonymous_uuid(cookies: str | None) -> str | None:
    """The anonymous profile's uuid in a ``Cookie`` header; None when there is none, or none the API would take."""
    found = _UUID_COOKIE.search(cookies or "")
    return found[1] if found else None


class Binding:
    """Whose request this is: asked for when the first record needs it, at most once.

    Args:
        find: the signed-in client, or None; may be slow, so a request that tracks nothing never calls it.
        uuid: the anonymous profile, for when nobody is signed in.
    """

    __slots__ = ("_client", "_fallback", "_find", "uuid", "why_nobody")

    def __init__(self, find: ClientFinder | None = None, uuid: str | None = None) -> None:
        self._find = find
        self.uuid: str | None = uuid
        self._fallback = uuid
        self._client: Client | None = None
        self.why_nobody: str = f"nobody is signed in and there is no {COOKIE} cookie, so it is nobody's record"

    @property
    def client(self) -> Client | None:
        """The signed-in client, else the anonymous one, else None."""
        self.look_up()
        return self._client

    @client.setter
    def client(self, client: Client) -> None:
        self._client, self._find = client, None

    def look_up(self) -> None:
        """Finds out, if nobody has asked before."""
        if self._client is None and self._find is not None:
            find, self._find = self._find, None
            try:
                self._client = find()
            except Exception as error:  # the visitor must not pay for it
                self._fallback = None
                self.why_nobody = f"the function that tells the client failed with {type(error).__name__}"
                log.error(f"{self.why_nobody}: records of such requests are refused")
                return
        if self._client is None and self._fallback is not None:
            self._client = Client(uuid=self._fallback)


_current: Final[ContextVar[Binding | None]] = ContextVar("tillpost_client", default=None)


@contextmanager
def bound(binding: Binding) -> Iterator[Binding]:
    """Within the block this is the binding; for middlewares."""
    before = _current.set(binding)
    try:
        yield binding
    finally:
        _current.reset(before)


@contextmanager
def bound_client(client: Client | ClientFinder) -> Iterator[None]:
    """Within the block a `BoundTracker` tracks for this client: a task, a job, a test.

    A function is called when the first record needs it; when it returns None, records are refused as nobody's.
    """
    if isinstance(client, Client):
        binding = Binding()
        binding.client = client
    else:
        binding = Binding(client)
    with bound(binding):
        yield


class BoundTracker(Tracker):
    """A `Tracker` whose `client` may be left out: it is then the client bound by a middleware or `bound_client`.

    Where nothing is bound at all a missing client raises, as it does with a `Tracker`. A visitor nobody knows
    is no mistake of the code: the record is refused, counted and handed to `on_error`, and nothing is raised.
    """

    _fills_in: ClassVar[bool] = True

    @property
    def client(self) -> Client | None:
        """The bound client; None when nothing is bound or nobody is known."""
        binding = _current.get()
        return None if binding is None else binding.client

    def look_up(self) -> None:
        """Asks now whose request this is, where a later look would block an event loop."""
        _here().look_up()

    def bind(self, client: Client) -> None:
        """From here on to the end of the request, or of the `bound_client` block, records are this client's.

        Raises `InvalidRecord` where there is neither.
        """
        if not isinstance(client, Client):
            raise InvalidRecord("client", "must be a Client", client)
        _here().client = client

    def login(
        self,
        client: Client,
        *,
        source: Source | None = None,
        label: str | None = None,
        params: Mapping[str, object] | None = None,
        time: datetime | None = None,
        salt: str | None = None,
    ) -> Receipt:
        """Records the login of a client and binds it.

        The event carries both identifiers, the client's own and the anonymous profile's uuid of this request,
        so that the API makes one profile of the two (`Client.merged`).
        """
        uuid = _here().uuid
        both = client if uuid is None else client.merged(uuid)
        receipt = self.logged_in(both, source=source, label=label, params=params, time=time, salt=salt)
        self.bind(client)
        return receipt

    def _whose(self) -> Client:
        return _here().client or _NOBODY

    def _stamped(self, record: Record) -> Receipt:
        receipt = super()._stamped(record)
        if record.client is _NOBODY and receipt.error is None:
            fields = msgspec.json.decode(receipt._body, type=dict[str, msgspec.Raw])
            del fields["client"]
            receipt._body = msgspec.json.encode(fields)
            self._account.turn_away(receipt, "refused", _here().why_nobody, dropped=False)
        return receipt


def _here() -> Binding:
    binding = _current.get()
    if binding is None:
        raise MissingArgument(
            "client", "is required: nothing is bound here; give one, use a middleware, or `with bound_client(...)`"
        )
    return binding
