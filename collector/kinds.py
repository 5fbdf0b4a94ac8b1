"""Kinds of records: what the buffer and the lanes need to know about the bytes they carry.

A kind is an upstream endpoint. Everything here works on a record's bytes as ingest left
them: complete (type, time and salt are there) and checked, so decoding cannot fail.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, Final, Literal, TypeAlias

import msgspec

from tracker.time import format_ms
from tracker.wire import CLIENT_KEYS, EVENT_ACTIONS, EVENTS_BATCH, TRANSACTIONS_BATCH

Priority: TypeAlias = Literal["live", "bulk"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


class Lane(msgspec.Struct, frozen=True, order=True):
    """Records that may share a request; ``str(lane)`` is ``events/email+uuid/live``."""

    kind: str
    identifier: str
    """Identifying keys of ``client`` in alphabetical order, joined by ``+``."""
    priority: Priority

    def __str__(self) -> str:
        return f"{self.kind}/{self.identifier}/{self.priority}"

    @classmethod
    def parse(cls, text: str) -> "Lane":
        """The lane that `str` wrote. Raises ValueError, saying what a lane looks like."""
        kind, _, rest = text.partition("/")
        identifier, _, priority = rest.partition("/")
        keys = identifier.split("+")
        known = kind in KINDS and priority in ("live", "bulk")
        if not known or keys != sorted(set(keys)) or not set(keys) <= set(CLIENT_KEYS):
            raise ValueError(f"{text!r} is not a lane: it looks like events/email+uuid/live")
        return cls(kind, identifier, "live" if priority == "live" else "bulk")


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive records whose times were made the same way."""

    count: int
    latest_ms: int
    """The greatest time among them as it stands in the bytes, milliseconds since 1970."""
    boot: str | None
    """The boot whose clock stamped them; None: the application gave the times, never changed."""
    offset_ms: int
    """Wall clock minus time since boot of the stamping machine; 0 without a boot."""


class Parcel(msgspec.Struct, frozen=True):
    """Records of one lane from one request, in order."""

    lane: Lane
    records: list[bytes]
    """One JSON object each, the bytes as they came unless something was missing."""
    runs: list[Run]
    """How their times were made; the counts sum to the number of records."""

    def __repr__(self) -> str:
        return f"<Parcel of {len(self.records)} for {self.lane}>"


class Identity(msgspec.Struct, frozen=True):
    """What a person asks after when looking for a record."""

    order_id: str | None
    salt: str
    client: dict[str, Any]

    def __repr__(self) -> str:
        return "<Identity>"  # it is all about a person


class _ClientKeys(msgspec.Struct, frozen=True, omit_defaults=True):
    customId: str | None = None  # noqa: N815 - the API's name
    email: str | None = None
    id: int | None = None
    uuid: str | None = None


class _Event(msgspec.Struct, frozen=True):
    client: _ClientKeys
    time: datetime
    type: str
    salt: str = msgspec.field(name="eventSalt")
    action: str = ""

    def effect(self) -> str:
        """The action under which the upstream stores the event."""
        return EVENT_ACTIONS.get(self.type) or self.action or self.type


class _Transaction(msgspec.Struct, frozen=True):
    client: _ClientKeys
    time: datetime = msgspec.field(name="recordedAt")
    salt: str = msgspec.field(name="eventSalt")

    def effect(self) -> str:
        """The action of the event every transaction becomes (API reference, Transactions)."""
        return "transaction.charge"


class _EventIdentity(msgspec.Struct, frozen=True):
    client: dict[str, Any]
    salt: str = msgspec.field(name="eventSalt")


class _TransactionIdentity(msgspec.Struct, frozen=True):
    client: dict[str, Any]
    salt: str = msgspec.field(name="eventSalt")
    order_id: str = msgspec.field(name="orderId")


class Kind:
    """One upstream endpoint: where its records go and how their bytes are read."""

    def __init__(
        self,
        name: str,
        path: str,
        time_field: str,
        record: type[_Event] | type[_Transaction],
        identity: type[_EventIdentity] | type[_TransactionIdentity],
    ) -> None:
        self.name: Final = name
        self.path: Final = path
        self.time_field: Final = time_field
        # Decoders are made once; msgspec builds one from the type in a few microseconds.
        self._decode = msgspec.json.Decoder(record).decode
        self._decode_identity = msgspec.json.Decoder(identity).decode
        self._encode_key = msgspec.msgpack.Encoder().encode
        self._decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

    def __repr__(self) -> str:
        return f"Kind({self.name!r})"

    def order_key(self, record: bytes | memoryview) -> bytes:
        """16 bytes that are equal for two records of one lane when the later would overwrite the earlier.

        Same client as given, action, instant and salt (API reference, eventSalt). The
        same in every process and on every machine.
        """
        known = self._decode(record)
        ms = (known.time - _EPOCH) // _MILLISECOND
        return blake2b(self._encode_key((known.client, known.effect(), ms, known.salt)), digest_size=16).digest()

    def time_ms(self, record: bytes | memoryview) -> int:
        """The record's time, milliseconds since 1970 UTC; finer fractions are cut off."""
        return (self._decode(record).time - _EPOCH) // _MILLISECOND

    def retimed(self, record: bytes, time_ms: int) -> bytes:
        """The record with another time in the API's form; no other byte changes."""
        values = self._decode_raw(record)
        token = b'"%s"' % format_ms(time_ms).encode("ascii")
        old = bytes(values[self.time_field])
        if record.count(old) == 1:
            return record.replace(old, token)
        values[self.time_field] = msgspec.Raw(token)
        return assemble(values)

    def identity(self, record: bytes | memoryview) -> Identity:
        """What `find` and `forget` compare: order id (transactions only), salt, the whole client."""
        known = self._decode_identity(record)
        order_id = known.order_id if isinstance(known, _TransactionIdentity) else None
        return Identity(order_id, known.salt, known.client)

    def render(self, records: Iterable[bytes | memoryview]) -> bytes:
        """One request body: the records' bytes as they are, in order."""
        return b"[" + b",".join(records) + b"]"


def assemble(values: dict[str, msgspec.Raw]) -> bytes:
    """A JSON object from its values' bytes, which stay as they are."""
    encode = msgspec.json.encode
    return b"{" + b",".join(encode(key) + b":" + bytes(value) for key, value in values.items()) + b"}"


EVENTS: Final = Kind("events", EVENTS_BATCH, "time", _Event, _EventIdentity)
TRANSACTIONS: Final = Kind("transactions", TRANSACTIONS_BATCH, "recordedAt", _Transaction, _TransactionIdentity)
KINDS: Final[dict[str, Kind]] = {kind.name: kind for kind in (EVENTS, TRANSACTIONS)}
