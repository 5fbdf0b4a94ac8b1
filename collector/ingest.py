"""Ingest: a request's body becomes parcels, or an answer that says what is wrong with it. No I/O.

Two ways lead through here. Nearly every request takes the first: one typed decode of the
whole array, one split into the records' bytes, a few passes over columns and bytes. Where
anything is unusual the second takes the request record by record, completes what may be
completed and names every record that cannot be accepted. Both keep the bytes as they came.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import chain, groupby
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET

from collector.config import Config, KindBatchConfig
from collector.elements import LONE_SURROGATE, elements, split
from collector.kinds import EVENTS, TRANSACTIONS, Kind, Lane, Parcel, Priority, Run
from collector.refusals import MAX_ERRORS, Refused, entry, fault_of, invalid
from collector.repair import (
    ESCAPED_LETTER,
    Changes,
    new_salts,
    null_in,
    repeated_key,
    with_type,
    without_nulls,
    without_unset,
)
from collector.shapes import (
    CUSTOM,
    EVENT_SHAPES,
    Client,
    Columns,
    Event,
    Fault,
    Record,
    all_like,
    decode_event,
    decode_events,
    decode_transaction,
    decode_transactions,
    fault,
    sound,
)
from tracker.time import Clock, format_ms, parse_ms
from tracker.wire import CLOCK_HEADER, EVENTS_BATCH, PRIORITY_HEADER, TRANSACTIONS_BATCH, ClockHeader

Origin = tuple[str | None, int]
"""Boot and offset of a record's time; ``(None, 0)``: the application gave it."""
_GIVEN: Final[Origin] = (None, 0)


class Intake(msgspec.Struct, frozen=True):
    """What a request brought."""

    parcels: list[Parcel]
    count: int
    clock: ClockHeader | None
    """The sender's clock, when it told us."""


class Route(NamedTuple):
    """What a path takes."""

    kind: Kind
    single: bool = False
    event_type: str | None = None
    """The type a single-event path gives its record."""


ROUTES: Final[dict[str, Route]] = {
    EVENTS_BATCH: Route(EVENTS),
    TRANSACTIONS_BATCH: Route(TRANSACTIONS),
    "/v4/transactions": Route(TRANSACTIONS, single=True),
    **{f"/v4/events/{name}": Route(EVENTS, single=True, event_type=name) for name in EVENT_SHAPES},
}


class _Rules(NamedTuple):
    """What differs between kinds."""

    keys: tuple[str, ...]
    """Keys that must not stand twice."""
    decode: Callable[[bytes], Record]
    decode_all: Callable[[bytes], Sequence[Record]]


_RULES: Final[dict[str, _Rules]] = {
    "events": _Rules(("client", "eventSalt", "time", "type"), decode_event, decode_events),
    "transactions": _Rules(("client", "eventSalt", "recordedAt"), decode_transaction, decode_transactions),
}

_decode_any = msgspec.json.Decoder().decode
_decode_instants = msgspec.json.Decoder(list[datetime]).decode
_DIGITS: Final = bytes.maketrans(b"123456789", b"0" * 9)
_CANONICAL: Final = "0000-00-00T00:00:00.000Z"


class Found(NamedTuple):
    """Accepted records: their bytes, what was read from them, and that by column."""

    raw: Sequence[bytes]
    known: Sequence[Record]
    columns: Columns
    times: "Times | None" = None
    """None: not all are there, or not all are read yet."""


class Times(NamedTuple):
    """The records' times in their order: as text where all are in our own form, which sorts as it reads, else as ms."""

    values: Sequence[Any]

    @classmethod
    def read(cls, texts: Sequence[str]) -> "Times":
        """Raises ValueError where one is no time."""
        if all_like(texts, _CANONICAL, _DIGITS):
            try:
                _decode_instants(b'["%s"]' % '","'.join(texts).encode() if texts else b"[]")  # the 30th of February
            except msgspec.ValidationError as error:
                raise ValueError(str(error)) from None
            return cls(texts)
        return cls([parse_ms(text) for text in texts])

    @staticmethod
    def ms(value: Any) -> int:
        return value if isinstance(value, int) else parse_ms(value)


class Ingest:
    """Reads requests under one configuration."""

    def __init__(self, config: Config, clock: Clock, upstream_now_ms: Callable[[], int | None]) -> None:
        """`upstream_now_ms` is the upstream's estimated clock, None while it is not known."""
        self._clock = clock
        self._upstream_now_ms = upstream_now_ms
        self._hold_max_ms = int(config.clock.hold_max * 1000)
        self._drop_nulls = config.ingest.nulls == "drop"
        first = config.upstream.identifiers == "first"
        self._changes = {
            kind.name: Changes(kind, config.upstream.types, first_identifier=first) for kind in (EVENTS, TRANSACTIONS)
        }
        self._max_record = {
            "events": _max_record(config, config.batch.events),
            "transactions": _max_record(config, config.batch.transactions),
        }

    def read(self, path: str, body: bytes, headers: Mapping[str, str]) -> Intake:
        """The records of one request, complete and sorted into parcels. Raises Refused; then nothing counts."""
        route = ROUTES.get(path)
        if route is None:
            raise Refused(501, "this collector takes events and transactions: send other requests to the API")
        priority, header = _priority(headers), _clock_header(headers)
        kind = route.kind
        read = None if route.single else self._all_at_once(kind, [body])
        found = self._one_by_one(route, body) if read is None else read[0]
        return self._completed(route, priority, header, found)

    def is_batch(self, path: str) -> bool:
        """Whether a path takes arrays of records."""
        route = ROUTES.get(path)
        return route is not None and not route.single

    def read_alike(
        self, path: str, bodies: Sequence[bytes], headers: Mapping[str, str]
    ) -> tuple[Intake, list[int]] | None:
        """What several requests of the same path and headers brought, as one, and how many records each.

        None where anything about any of them asks for a closer look: then read them one by one.
        """
        route = ROUTES[path]
        try:
            read = self._all_at_once(route.kind, bodies)
            if read is None:
                return None
            found, counts = read
            return self._completed(route, _priority(headers), None, found), counts
        except Refused:
            return None

    def _completed(self, route: Route, priority: Priority, header: ClockHeader | None, found: Found) -> Intake:
        now = self._upstream_now_ms()
        latest = None if now is None else now + self._hold_max_ms
        raw, times, origins = self._complete(route.kind, found, header, latest, indexed=not route.single)
        return Intake(_parcels(route.kind, priority, raw, found.columns.lanes(), times, origins), len(raw), header)

    def _all_at_once(self, kind: Kind, bodies: Sequence[bytes]) -> tuple[Found, list[int]] | None:
        """The records of batches and how many are in each, or None if anything about them asks for a closer look."""
        rules = _RULES[kind.name]
        try:
            decoded = list(map(rules.decode_all, bodies))  # each by itself: a record ends with its request
            known = list(chain.from_iterable(decoded)) if len(bodies) > 1 else decoded[0]
            raw = [bytes(record) for body in bodies for record in split(body)]
            body = b",".join(bodies)
            columns = Columns(known)
            if not (_is_ordinary(body, kind, rules, raw, columns) and sound(known, columns)) or "" in columns.lanes():
                return None
            times = Times.read([text for text in columns.times if text is not UNSET])
        except (msgspec.DecodeError, ValueError, RecursionError):
            return None
        return Found(raw, known, columns, times if len(times.values) == len(known) else None), list(map(len, decoded))

    def _one_by_one(self, route: Route, body: bytes) -> Found:
        """The same, record by record. Raises Refused, naming every bad record up to `MAX_ERRORS`."""
        raw: list[bytes] = []
        known: list[Record] = []
        errors: list[dict[str, Any]] = []
        for i, element in enumerate([body] if route.single else elements(body)):
            result = element if isinstance(element, Fault) else self._examine(route, element)
            if isinstance(result, Fault):
                errors.append(entry(result, None if route.single else i))
                if len(errors) == MAX_ERRORS:
                    break
            else:
                raw.append(result[0])
                known.append(result[1])
        if errors:
            raise invalid(errors)
        return Found(raw, known, Columns(known))

    def _examine(self, route: Route, record: bytes) -> tuple[bytes, Record] | Fault:
        """One record, without nulls and with its type, and what is known of it; or what is wrong with it."""
        rules = _RULES[route.kind.name]
        try:
            record.decode()
            value = _decode_any(record)
            if not isinstance(value, dict):
                return Fault("", "a record is a JSON object", value)
            repeated = repeated_key(record, rules.keys)
        except UnicodeDecodeError as error:
            return Fault("", f"not UTF-8: {error.reason} at byte {error.start} of the record")
        except RecursionError:
            return Fault("", "nested too deeply")
        except (msgspec.DecodeError, ValueError) as error:
            half = LONE_SURROGATE.search(record)
            why = f"{half[0].decode()} is half a character (a lone surrogate)" if half else str(error)
            return Fault("", f"not JSON this collector can pass on: {why}")
        if repeated is not None:
            return repeated
        if route.event_type is not None:
            record = with_type(record, route.event_type)
        if b"null" in record and null_in(value) is not None:
            record = without_nulls(without_unset(record)) if self._drop_nulls else without_unset(record)
            value = _decode_any(record)
            null = null_in(value)
            if null is not None:
                return Fault(null, 'null is not allowed: leave the key out, or set ingest.nulls = "drop"')
        try:
            known = rules.decode(record)
            if known.time is not UNSET:
                parse_ms(known.time)
        except msgspec.ValidationError as error:
            return fault_of(error, value)
        except ValueError as error:
            return Fault(route.kind.time_field, str(error), value[route.kind.time_field])
        wrong = fault(known)
        return (record, known) if wrong is None else wrong

    def _complete(
        self, kind: Kind, found: Found, header: ClockHeader | None, latest_ms: int | None, *, indexed: bool
    ) -> tuple[Sequence[bytes], Times, Sequence[Origin]]:
        """Fills in times and salts, applies the configuration, refuses what can never leave."""
        raw, known, columns = found.raw, found.known, found.columns
        origins = _origins(header, len(known))
        changes = self._changes[kind.name]
        texts: list[Any] = columns.times
        if unfinished := _unfinished(changes, known, columns):
            raw, texts = list(raw), list(texts)
            wall_ms = self._clock.wall_ms()
            stamp = format_ms(wall_ms)
            ours = (self._clock.boot_id(), wall_ms - self._clock.boot_ms())
            for i, salt in zip(unfinished, new_salts(len(unfinished), wall_ms), strict=True):
                record = known[i]
                if record.time is UNSET:
                    texts[i], origins[i] = stamp, ours
                raw[i] = changes.apply(
                    raw[i],
                    time=stamp if record.time is UNSET else None,
                    salt=salt if record.salt is UNSET else None,
                    event_type=record.event_type if isinstance(record, Event) else None,
                )
            if changes.first_identifier:
                columns.identify([_first(record.client) for record in known])
        times = found.times or Times.read(texts)
        limit = self._max_record[kind.name]
        if max(map(len, raw), default=0) > limit:
            message = f"larger than the {limit} bytes that fit into a request to the API"
            large = [i for i, record in enumerate(raw) if len(record) > limit]
            raise invalid([entry(Fault("", message), i if indexed else None) for i in large])
        if latest_ms is not None and raw:
            self._refuse_future(kind, times, origins, latest_ms, indexed=indexed)
        return raw, times, origins

    def _refuse_future(
        self, kind: Kind, times: Times, origins: Sequence[Origin], latest_ms: int, *, indexed: bool
    ) -> None:
        """Only times the application gave: a stamp is repaired once its clock is known."""
        if Times.ms(max(times.values)) <= latest_ms:
            return
        late = [
            i
            for i, (value, origin) in enumerate(zip(times.values, origins, strict=True))
            if origin == _GIVEN and Times.ms(value) > latest_ms
        ]
        message = f"more than {self._hold_max_ms // 1000} seconds (clock.hold_max) in the future"
        faults = [Fault(kind.time_field, message, format_ms(Times.ms(times.values[i]))) for i in late[:MAX_ERRORS]]
        if faults:
            raise invalid([entry(found, i if indexed else None) for found, i in zip(faults, late, strict=False)])


def _max_record(config: Config, kind: KindBatchConfig) -> int:
    """Bytes of a record that still fits a request alone, brackets included."""
    return (config.batch.max_bytes if kind.max_bytes is None else kind.max_bytes) - 2


def _priority(headers: Mapping[str, str]) -> Priority:
    match headers.get(PRIORITY_HEADER, "live"):
        case "live":
            return "live"
        case "bulk":
            return "bulk"
    raise Refused(400, f"{PRIORITY_HEADER} must be live or bulk")


def _clock_header(headers: Mapping[str, str]) -> ClockHeader | None:
    text = headers.get(CLOCK_HEADER)
    try:
        return None if text is None else ClockHeader.decode(text)
    except ValueError as error:
        raise Refused(400, str(error)) from None


# A body is folded once, so that one short pass each can ask what would else take seven: digits, signs and
# space go; what stands around values becomes a comma; letters fall into classes in which "client", "type",
# "time", "eventSalt" and "recordedAt" all end alike. Then an exponent outside a string is a lone ``t``
# between commas, and null is ``nunn``. Other text may look like that too, hence only a suspicion.
_FOLD: Final = bytes.maketrans(b"itSeyadEnpmlA:[]}", b"ttttttttnnnnn,,,,")
_NOISE: Final = b"0123456789.+- \t\r\n{"
_KEY, _EXPONENT, _NULL = b'ttnt"', b",t,", b",nunn,"


def _is_ordinary(body: bytes, kind: Kind, rules: _Rules, raw: Sequence[bytes], columns: Columns) -> bool:
    """Whether what typed decoding skips is harmless too. Raises where it is not UTF-8 or no number.

    Decoding passes over values nobody asked for: broken UTF-8, nulls and ``1e999`` go unseen
    there, and of two equal keys the last wins. Each test is a pass over the whole body that may
    suspect too much but never too little; only a suspicion is looked into.
    """
    body.decode()
    folded = body.translate(_FOLD, _NOISE)
    if _NULL in folded and b"null" in body:
        return False
    if _EXPONENT in folded:
        _decode_any(body)
    present = {
        "client": len(raw),
        "type": len(raw),
        kind.time_field: len(raw) - columns.times.count(UNSET),
        "eventSalt": len(raw) - columns.salts.count(UNSET),
    }
    if b"\\" not in body or not ESCAPED_LETTER.search(body):
        if folded.count(_KEY) == sum(present[key] for key in rules.keys):
            return True
        if all(body.count(b'"%s"' % key.encode()) == present[key] for key in rules.keys):
            return True
    return not any(repeated_key(record, rules.keys) for record in raw)


def _origins(header: ClockHeader | None, count: int) -> list[Origin]:
    """How each record's time was made, before we stamp any. Raises Refused for positions that are not there."""
    if header is None:
        return [_GIVEN] * count
    origins: list[Origin] = [(header.boot, header.offset_ms)] * count
    for span in header.given:
        if span.stop > count:
            raise Refused(400, f"{CLOCK_HEADER}: given names position {span.stop - 1} of {count} records")
        origins[span.start : span.stop] = [_GIVEN] * len(span)
    return origins


def _unfinished(changes: Changes, known: Sequence[Record], columns: Columns) -> list[int]:
    """Positions of records that lack a time or salt, or that this configuration changes."""
    found = set[int]()
    for column in (columns.times, columns.salts):
        if UNSET in column:
            found.update(i for i, value in enumerate(column) if value is UNSET)
    mapped = {shape for shape in columns.shapes if issubclass(shape, Event) and shape.event_type in changes.types}
    if mapped:
        found.update(i for i, record in enumerate(known) if type(record) in mapped)
    if columns.actions.count(UNSET) < len(columns.actions):
        given = enumerate(columns.actions)
        found.update(i for i, action in given if action is not UNSET and type(known[i]) is not CUSTOM)
    if changes.first_identifier:
        found.update(i for i, record in enumerate(known) if record.client != _first(record.client))
    return sorted(found)


def _first(client: Client) -> Client:
    """The client as `upstream.identifiers = "first"` leaves it (API reference, 4.2)."""
    if client.id is not UNSET:
        return Client(id=client.id)
    if client.uuid is not UNSET:
        return Client(uuid=client.uuid)
    return Client(customId=client.customId) if client.customId is not UNSET else client


def _parcels(
    kind: Kind,
    priority: Priority,
    raw: Sequence[bytes],
    lanes: Mapping[str, Sequence[int]],
    times: Times,
    origins: Sequence[Origin],
) -> list[Parcel]:
    """The records by lane, each lane in order, neighbours whose times were made alike in one run."""
    alike = not origins or origins.count(origins[0]) == len(origins)
    parcels = []
    for identifier, at in lanes.items():
        runs = []
        for origin, group in [(origins[0], at)] if alike else groupby(at, key=origins.__getitem__):
            values = [times.values[i] for i in group]
            runs.append(Run(len(values), Times.ms(max(values)), *origin))
        parcels.append(Parcel(Lane(kind.name, identifier, priority), [raw[i] for i in at], runs))
    return parcels
