"""One request to the stand-in: taken apart (`Call`), answered (`Answer`), and remembered (`Request`)."""

import hashlib
import sys
import time
from typing import Any, Final, NamedTuple

import msgspec
import orjson

from collector.testing.rules import EVENT_TYPES, Problem

READ_LIMIT: Final = 32 * 1024 * 1024
"""A larger body is read to its end and its rest thrown away."""
_RAWS = msgspec.json.Decoder(list[msgspec.Raw])


class Answer(NamedTuple):
    """What goes back; `body` is JSON."""

    status: int
    body: bytes | None = None
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed


class Call:
    """One request, taken apart."""

    def __init__(self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> None:
        self.method, self.path, self.query, self.headers, self.body = method, path, query, headers, body
        """Header names in lower case."""
        self.kind, self.is_batch, self.path_type = _route(path)
        self.raws: list[bytes] = []
        self.records: list[Any] = []
        self.parse_error: str | None = None
        self.problems: dict[int, list[Problem]] = {}
        if len(body) <= READ_LIMIT and method == "POST" and self.kind in ("events", "transactions", "profiles"):
            self._parse()
        self.salts = [_text_at(record, "eventSalt") for record in self.records]
        self.order_ids = [_text_at(record, "orderId") for record in self.records]
        self.identifiers = [_identifier_type(record) for record in self.records]

    def _parse(self) -> None:
        try:
            self.raws = [bytes(raw) for raw in _RAWS.decode(self.body)] if self.is_batch else [self.body]
            self.records = [orjson.loads(raw) for raw in self.raws]
        except (msgspec.DecodeError, orjson.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            self.raws, self.records = [], []
            self.parse_error = str(error)


class Request(msgspec.Struct, frozen=True):
    """One request as it was seen; the control endpoints under ``/fake/`` are not listed."""

    method: str
    path: str
    status: int
    """What was answered; 0 when a fault cut the connection, or the client left in the middle of its body."""
    answered: bool
    """Whether the client was still there for the answer."""
    records: int
    size: int
    """Bytes of body."""
    digest: str
    """Of the body: equal digests, equal bytes."""
    identifiers: frozenset[str]
    """Identifier types of the records, for example ``email+uuid``."""
    salts: tuple[str | None, ...]
    received_at: float
    """``time.monotonic()`` when the body was complete."""
    answered_at: float
    authorization: str
    """The scheme alone: ``Bearer``, ``Basic`` or empty."""
    headers: dict[str, str]
    """Names in lower case; without Authorization."""
    faults: tuple[str, ...] = ()
    """Names of the scripted faults that struck it."""
    body: bytes | None = None
    """Only with ``keep_bodies=True``."""


def remembered(
    call: Call, status: int, *, answered: bool, received_at: float, faults: list[str], keep_body: bool
) -> Request:
    """The call as `FakeUpstream.requests` shows it, without its secret."""
    scheme = call.headers.get("authorization", "").partition(" ")[0]
    return Request(
        method=call.method,
        path=call.path,
        status=status,
        answered=answered,
        records=len(call.raws),
        size=len(call.body),
        digest=hashlib.blake2b(call.body, digest_size=16).hexdigest(),
        identifiers=frozenset(call.identifiers),
        salts=tuple(call.salts),
        received_at=received_at,
        answered_at=time.monotonic(),
        authorization=scheme if scheme in ("Bearer", "Basic") else "other" if scheme else "",
        headers={name: value for name, value in call.headers.items() if name != "authorization"},
        faults=tuple(faults),
        body=call.body if keep_body else None,
    )


def _route(path: str) -> tuple[str, bool, str | None]:
    """Kind of call, whether the body is a batch, and the event type of a single-event path (API.md 3)."""
    match path:
        case "/v4/events/batch":
            return "events", True, None
        case "/v4/transactions/batch":
            return "transactions", True, None
        case "/v4/transactions":
            return "transactions", False, None
        case "/v4/clients/batch":
            return "profiles", True, None
        case "/uauth/v2/auth/login/profile" | "/v4/auth/login/profile":
            return "login", False, None
        case "/v4/auth/refresh/profile":
            return "refresh", False, None
        case "/v4/server/time":
            return "time", False, None
        case "/uauth/api-key/permission-check":
            return "permissions", False, None
    if path.startswith("/v4/events/by-client/"):
        return "read", False, None
    type_ = path.removeprefix("/v4/events/")
    if type_ != path and (type_ == "custom" or type_ in EVENT_TYPES):
        return "events", False, type_
    if path.startswith("/v4/clients/") and path.endswith("/linked-devices"):
        return "devices", False, None
    return "other", False, None


def _text_at(record: Any, key: str) -> str | None:
    value = record.get(key) if type(record) is dict else None
    # Interned, because a resend brings the same salts again and every request keeps its list.
    return sys.intern(value) if type(value) is str else None


def _identifier_type(record: Any) -> str:
    client = record.get("client") if type(record) is dict else None
    if type(client) is not dict:
        return ""
    return "+".join(key for key in ("customId", "email", "id", "uuid") if client.get(key) is not None)
