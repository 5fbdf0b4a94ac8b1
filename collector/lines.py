"""A line of a JSON Lines file as a record: which kind it is, and what must be added to its bytes."""

from hashlib import blake2b
from typing import Final, Literal

import msgspec

RecordKind = Literal["events", "transactions"]

_TIME_FIELDS: Final[dict[RecordKind, str]] = {"events": "time", "transactions": "recordedAt"}


class Record(msgspec.Struct, frozen=True):
    """A record ready to be sent; its bytes are the line's own, but for what was missing."""

    kind: RecordKind
    body: bytes


class Rejected(Exception):
    """A line that is no record; the message says why, without repeating its values."""


class _Fields(msgspec.Struct, rename="camel"):
    type: msgspec.Raw = msgspec.Raw()
    order_id: msgspec.Raw = msgspec.Raw()
    time: msgspec.Raw = msgspec.Raw()
    recorded_at: msgspec.Raw = msgspec.Raw()
    event_salt: msgspec.Raw = msgspec.Raw()


_FIELDS: Final = msgspec.json.Decoder(_Fields)
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Lines:
    """Reads the lines of one file in order; give it every line, also those that were sent before.

    A line without salt gets one made from its bytes and its n-th occurrence in the file, so that the
    same file always gives the same salts and equal lines stay two records.
    """

    def __init__(self, default_time: str | None = None) -> None:
        self._default_time = default_time
        self._seen: set[int] = set()
        self._repeated: dict[int, int] = {}

    def read(self, line: bytes) -> Record:
        """The record of a line without its line end. Raises Rejected."""
        try:
            fields = _FIELDS.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Rejected(_why(error)) from None
        except RecursionError:
            raise Rejected("nested too deeply") from None
        # A salt is drawn before anything is refused, so that what --default-time lets through
        # does not change how often a line has occurred.
        salt = self._salt(line) if _absent(fields.event_salt) else None
        kind: RecordKind
        if not _absent(fields.type):
            kind, time = "events", fields.time
        elif not _absent(fields.order_id):
            kind, time = "transactions", fields.recorded_at
        else:
            raise Rejected("neither an event (it has no type) nor a transaction (it has no orderId)")
        added = {}
        nulls = set()
        if _absent(time):
            name = _TIME_FIELDS[kind]
            if self._default_time is None:
                raise Rejected(f"has no {name}; give one in the line, or --default-time for all such lines")
            added[name] = self._default_time
            nulls |= {name} if bytes(time) else set()
        if salt is not None:
            added["eventSalt"] = salt
            nulls |= {"eventSalt"} if bytes(fields.event_salt) else set()
        return Record(kind, _with(line, added, nulls))

    def _salt(self, line: bytes) -> str:
        hashed = blake2b(line, digest_size=16, person=b"tillpost line")
        key = int.from_bytes(hashed.digest()[:8], "big")
        if key in self._seen:
            self._repeated[key] = self._repeated.get(key, 1) + 1
            hashed.update(b"\n%d" % self._repeated[key])
        else:
            self._seen.add(key)
        return f"line-{hashed.hexdigest()}"


def _absent(value: msgspec.Raw) -> bool:
    return bytes(value) in (b"", b"null")  # as for ingest, null means "not given"


def _with(line: bytes, added: dict[str, str], nulls: set[str]) -> bytes:
    """The line with fields added; every byte of its other values stays as it is."""
    if not added:
        return line
    if nulls:  # a null stands where the value belongs, and a key must not come twice
        values = {key: bytes(raw) for key, raw in _OBJECT.decode(line).items() if key not in nulls}
        line = b"{" + b",".join(msgspec.json.encode(key) + b":" + value for key, value in values.items()) + b"}"
    members = msgspec.json.encode(added)[1:-1]
    start = line.index(b"{") + 1
    return b"%b%b,%b" % (line[:start], members, line[start:])


def _why(error: Exception) -> str:
    if isinstance(error, msgspec.ValidationError):
        return "not a JSON object"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    return f"not JSON: {error}"
