"""What the API has taken in: profiles, events, transactions, and the overwrite rule.

An event is overwritten when salt, stored instant, resolved profile and action are all the
same (API.md 5 and 9.6). Identifiers seen together in one client belong to one profile
from then on, so the profile is compared as it resolves now, not by the key that was used.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import msgspec
import orjson

from collector.testing.rules import CHARGE, CLIENT_KEYS, RESERVED_PARAMS, Record, parse_time

Identifier = tuple[str, str | int]
_FIRST_PROFILE_ID = 5_000_000_000


class Profile:
    """A profile: its identifiers and attributes. May turn out to be another one and be merged into it."""

    __slots__ = ("attributes", "id", "identifiers", "merged_into")

    def __init__(self, id_: int) -> None:
        self.id = id_
        self.identifiers: list[Identifier] = []
        self.attributes: dict[str, Any] = {}
        self.merged_into: Profile | None = None

    def resolved(self) -> "Profile":
        """The profile this one is now."""
        profile = self
        while profile.merged_into is not None:
            profile = profile.merged_into
        return profile

    def __repr__(self) -> str:
        return f"<Profile {self.id}>"


class Entry(msgspec.Struct, eq=False):
    """One stored event or transaction."""

    number: int
    """Position among everything stored, from 0; an overwrite keeps it."""
    kind: str
    """``events`` or ``transactions``."""
    type: str
    """Event type: ``added-to-cart``, ``custom``, ...; ``transaction`` for a transaction."""
    action: str
    owner: Profile
    instant_ms: int
    """The stored time: as sent, or the receive time where none or a future one was sent."""
    original_time: str | None
    """The time exactly as sent, the API's ``snr-original-time``."""
    salt: str | None
    raw: bytes
    """The record's bytes as received."""
    received_ms: int
    overwritten: int = 0
    """How often this entry was overwritten."""
    stale: tuple[Record, ...] = ()
    """Products of an earlier version beyond the last position of the newer one (API.md 6, order rule)."""

    @property
    def record(self) -> Record:
        """The record as sent, decoded anew at each call."""
        decoded: Record = orjson.loads(self.raw)
        return decoded

    @property
    def profile(self) -> Profile:
        """The profile it belongs to, merges considered."""
        return self.owner.resolved()

    @property
    def uuid(self) -> str:
        """The ``eventUUID`` a server would give it."""
        return str(uuid5(NAMESPACE_OID, str(self.number)))


class Buy(msgspec.Struct, frozen=True):
    """A ``product.buy`` event, derived from one item of a transaction."""

    charge: Entry
    position: int
    """The item's place; with the charge it is this event's identity (API.md 6)."""
    product: Record
    stale: bool = False
    """Left over: a later version of the transaction has fewer items."""


class Store:
    """Profiles and entries. Not thread-safe: the server's loop owns it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.overwritten = 0
        self.altered = 0
        """Overwrites that brought other bytes than those stored."""
        self._by_salt: dict[str, list[Entry]] = {}
        self._profiles: dict[Identifier, Profile] = {}
        self._next_profile_id = _FIRST_PROFILE_ID

    def put(
        self,
        kind: str,
        type_: str,
        action: str,
        record: Record,
        raw: bytes,
        identifiers: Iterable[Identifier],
        now_ms: int,
    ) -> list[str]:
        """Stores a checked record, or overwrites the one it names. Returns what a legal client would not have sent."""
        complaints: list[str] = []
        owner = self.resolve(identifiers)
        sent: str | None = record.get("time" if kind == "events" else "recordedAt")
        instant = now_ms if sent is None else parse_time(sent)
        if instant > now_ms:
            complaints.append(f"time is {instant - now_ms} ms in the future; stored under the receive time")
            instant = now_ms
        salt: str | None = record.get("eventSalt")
        if salt is not None:
            for entry in self._by_salt.get(salt, ()):
                if entry.profile is not owner:
                    complaints.append("same salt with another profile")
                elif entry.action != action:
                    complaints.append("same salt with another action")
                elif entry.instant_ms == instant:
                    self._overwrite(entry, raw, sent, now_ms)
                    return complaints
        entry = Entry(len(self.entries), kind, type_, action, owner, instant, sent, salt, raw, now_ms)
        self.entries.append(entry)
        if salt is not None:
            self._by_salt.setdefault(salt, []).append(entry)
        return complaints

    def _overwrite(self, entry: Entry, raw: bytes, sent: str | None, now_ms: int) -> None:
        if raw != entry.raw:
            self.altered += 1
            if entry.kind == "transactions":
                kept = len(orjson.loads(raw)["products"])
                entry.stale = (*entry.record["products"], *entry.stale)[kept:]
        entry.raw, entry.original_time, entry.received_ms = raw, sent, now_ms
        entry.overwritten += 1
        self.overwritten += 1

    def resolve(self, identifiers: Iterable[Identifier]) -> Profile:
        """The one profile behind these identifiers; made when new, merged when they belonged to several."""
        profile: Profile | None = None
        new = []
        for identifier in identifiers:
            known = self._profiles.get(identifier)
            if known is None:
                new.append(identifier)
                continue
            known = known.resolved()
            if profile is None:
                profile = known
            elif known is not profile:
                known.merged_into = profile
                profile.identifiers += known.identifiers
                profile.attributes = {**known.attributes, **profile.attributes}
        if profile is None:
            own = next((value for key, value in new if key == "id"), None)
            profile = Profile(own if isinstance(own, int) else self._unused_id())
            if own is None:
                new.append(("id", profile.id))
        for identifier in new:
            self._profiles[identifier] = profile
            profile.identifiers.append(identifier)
        return profile

    def find(self, identifier: Identifier) -> Profile | None:
        """The profile an identifier belongs to, if it is known."""
        profile = self._profiles.get(identifier)
        return profile.resolved() if profile else None

    def _unused_id(self) -> int:
        while True:
            self._next_profile_id += 1
            if ("id", self._next_profile_id) not in self._profiles:
                return self._next_profile_id

    @property
    def profiles(self) -> list[Profile]:
        """Every profile once."""
        return list({id(p): p for p in (known.resolved() for known in self._profiles.values())}.values())


def buys_of(entry: Entry) -> Iterator[Buy]:
    """The ``product.buy`` events of a transaction; nothing for an event, a custom ``transaction.charge`` included."""
    if entry.kind != "transactions" or entry.action != CHARGE:
        return
    products = entry.record["products"]
    for position, product in enumerate(products):
        yield Buy(entry, position, product)
    for position, product in enumerate(entry.stale, len(products)):
        yield Buy(entry, position, product, stale=True)


def identifiers_of(client: Record, *, first_only: bool) -> list[Identifier]:
    """What names the profile in a checked ``client``: every key, or only the first of id, uuid, customId, email."""
    found: list[Identifier] = []
    for key in CLIENT_KEYS:
        value = client.get(key)
        if value is not None:
            found.append((key, value.strip() if type(value) is str else value))
            if first_only:
                break
    return found


def read_back(entry: Entry, business_profile_id: int = 1) -> list[Record]:
    """The entry as ``events/by-client`` shows it: the event, and the buy events of a transaction (API.md 3, 9.4)."""
    record = entry.record
    profile = entry.profile
    client = {"id": profile.id, **{key: value for key, value in profile.identifiers if key != "id"}}
    time = datetime.fromtimestamp(entry.instant_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    common = {"time": f"{time}.{entry.instant_ms % 1000:03d}Z", "client": client}
    if entry.kind == "events":
        params = dict(record.get("params") or {})
    else:
        params = {key: value for key, value in record.items() if key not in ("client", "eventSalt", "recordedAt")}
    for name in RESERVED_PARAMS:
        params.pop(name, None)
    server = {"businessProfileId": business_profile_id, "ip": "127.0.0.1"}
    if entry.original_time is not None:
        server["snr-original-time"] = entry.original_time
    events = [
        {"uuid": entry.uuid, "action": entry.action, "label": entry.action, **common}
        | {"params": {**params, **server, "eventUUID": entry.uuid}}
    ]
    for buy in buys_of(entry):
        own = str(uuid5(NAMESPACE_OID, f"{entry.number}/{buy.position}"))
        events.append(
            {"uuid": own, "action": "product.buy", "label": "product.buy", **common}
            | {"params": {**buy.product, **server, "eventUUID": own, "orderId": record["orderId"]}}
        )
    return events
