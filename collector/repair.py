"""Completing and correcting single records without touching what is not meant.

A record is taken apart into its top-level values' bytes and put together again; a value
nobody asked to change keeps every byte. The only conversions are the ones DESIGN 5.2
names: nulls that mean "not given" go, the type of a single-event path comes in, a missing
time or salt is filled, and `upstream.types` and `upstream.identifiers` are applied.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw

from collector.kinds import Kind, assemble
from collector.shapes import Fault

PUSH_TYPES: Final = {
    "push/received": "custom:push.receiveInBackground",
    "push/viewed": "custom:push.view",
    "push/clicked": "custom:push.click",
    "push/cancelled": "custom:push.cancel",
}
"""The batch `type` of push events is an open point (API reference, 11): sent as custom unless configured."""

_IDENTIFIER_ORDER: Final = ("id", "uuid", "customId", "email")
"""Which one `upstream.identifiers = "first"` keeps (API reference, 4.2)."""
_NOT_GIVEN: Final = ("time", "recordedAt", "eventSalt", "params", "discountAmount")
"""Top-level keys whose null means "not given" (`discountAmount`: API reference, 9.7)."""
ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")
"""A JSON escape for a letter: a key could be written with it."""

_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_array = msgspec.json.Decoder(list[Raw]).decode
_encode = msgspec.json.encode


def without_unset(record: bytes) -> bytes:
    """The record without the nulls that mean "not given": some top-level keys and any key of ``client``."""
    values = _decode_object(record)
    for key in _NOT_GIVEN:
        if key in values and bytes(values[key]) == b"null":
            del values[key]
    client = bytes(values.get("client", b""))
    if client.startswith(b"{") and b"null" in client:
        kept = {key: value for key, value in _decode_object(client).items() if bytes(value) != b"null"}
        values["client"] = Raw(assemble(kept))
    return assemble(values)


def without_nulls(value: bytes) -> bytes:
    """The JSON value without any null inside objects and arrays, at any depth."""
    if b"null" not in value:
        return value
    if value.startswith(b"{"):
        members = {key: bytes(raw) for key, raw in _decode_object(value).items()}
        return assemble({key: Raw(without_nulls(raw)) for key, raw in members.items() if raw != b"null"})
    if value.startswith(b"["):
        items = map(bytes, _decode_array(value))
        return b"[" + b",".join(without_nulls(item) for item in items if item != b"null") + b"]"
    return value


def null_in(value: Any, at: str = "") -> str | None:
    """Where the first null is in a decoded value, for example ``params.colour``; None: nowhere."""
    if value is None:
        return at
    members: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        members = ((f"{at}.{key}" if at else key, item) for key, item in value.items())
    elif isinstance(value, list):
        members = ((f"{at}[{i}]", item) for i, item in enumerate(value))
    for path, item in members:
        found = null_in(item, path)
        if found is not None:
            return found
    return None


def with_type(record: bytes, event_type: str) -> bytes:
    """The record as a batch takes it: ``type`` first, whatever it said before."""
    values = _decode_object(record)
    values.pop("type", None)
    return assemble({"type": Raw(_encode(event_type))} | values)


def repeated_key(record: bytes, keys: Iterable[str]) -> Fault | None:
    """Which of `keys` stands twice at the record's top level.

    JSON leaves open which of the two counts, so the record could be one thing here and
    another at the upstream.
    """
    values = _decode_object(record)
    inside = b" ".join(values.values())
    tokens = ((key, b'"%s"' % key.encode()) for key in keys)
    if not ESCAPED_LETTER.search(record) and all(
        record.count(token) - inside.count(token) <= (key in values) for key, token in tokens
    ):
        return None
    # Something is odd, perhaps only a value. The standard library is the parser at hand that shows every pair.
    pairs: list[tuple[str, Any]] = []

    def keep(found: list[tuple[str, Any]]) -> None:
        pairs[:] = found  # objects close from the inside out: what remains is the record's own

    json.loads(record, object_pairs_hook=keep, parse_int=str, parse_float=str)
    names = [name for name, _ in pairs]
    for key in keys:
        if names.count(key) > 1:
            return Fault(key, "stands twice in the record, which leaves open what is meant: give it once")
    return None


class Changes:
    """What this collector's configuration does to records of one kind, and filling what is missing."""

    def __init__(self, kind: Kind, types: Mapping[str, str], *, first_identifier: bool) -> None:
        self._time_field = kind.time_field
        self.types: Final = {name: target for name, target in (PUSH_TYPES | dict(types)).items() if name != target}
        self.first_identifier: Final = first_identifier

    def apply(self, record: bytes, *, time: str | None, salt: str | None, event_type: str | None) -> bytes:
        """The record with `time` and `salt` where given, its type mapped and its own action left out.

        `event_type` is None for a transaction, whose ``type`` and ``action`` mean nothing.
        """
        values = _decode_object(record)
        if event_type is not None and event_type != "custom":
            values.pop("action", None)
            target = self.types.get(event_type, event_type)
            name, _, action = target.partition(":")
            values["type"] = Raw(_encode(name))
            if action:
                values["action"] = Raw(_encode(action))
        if time is not None:
            values[self._time_field] = Raw(_encode(time))
        if salt is not None:
            values["eventSalt"] = Raw(_encode(salt))
        if self.first_identifier:
            client = _decode_object(values["client"])
            for key in [key for key in _IDENTIFIER_ORDER if key in client][1:]:
                del client[key]
            values["client"] = Raw(assemble(client))
        return assemble(values)


def new_salts(count: int, wall_ms: int) -> list[str]:
    """Salts nobody else has, ordered by time: UUID version 7 (RFC 9562).

    Randomness comes from the system at every call, so that a fork cannot repeat any.
    """
    entropy = os.urandom(10 * count)
    return [_uuid7(wall_ms, entropy[at : at + 10]) for at in range(0, 10 * count, 10)]


def _uuid7(wall_ms: int, entropy: bytes) -> str:
    low = int.from_bytes(entropy)
    number = (wall_ms & (1 << 48) - 1) << 80 | low & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
