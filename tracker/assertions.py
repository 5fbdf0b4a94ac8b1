"""`assert_tracked`: what a test expects to have been tracked, said in the tracker's own classes."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from tracker import events
from tracker.custom import as_sent
from tracker.errors import InvalidRecord
from tracker.events import Custom, Event
from tracker.record import Record, plans
from tracker.time import datetime_ms, format_ms
from tracker.transactions import Transaction

Sent = Mapping[str, Any]
"""A record as it is sent, decoded."""
Expected = Record | type[Record] | str

_BY_TYPE: Final[dict[str, type[Record]]] = {event.type: event for event in events.ALL} | {"transaction": Transaction}
_ENVELOPE: Final = {"client": "client", "label": "label", "action": "action", "salt": "eventSalt", "params": "params"}
_PARTIAL: Final = frozenset({"", "params", "metadata"})
"""Where only the keys named must be equal."""
_NEAREST: Final = 3
_encode: Final = msgspec.json.Encoder(decimal_format="number").encode


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


_NOTHING: Final = _Nothing()


class _Difference(NamedTuple):
    path: str
    expected: object
    tracked: object


def assert_tracked(
    tracked: Sequence[Sent], expected: Expected, /, *, times: int | None = None, **fields: object
) -> dict[str, Any]:
    """Fails unless a record like `expected` was tracked; returns the first, as it is sent.

    Args:
        tracked: what `capture_events` or the fixture ``tracked_events`` gives, or ``stored`` of a fake upstream.
        expected: a class, such as ``AddedToCart``, with the fields that matter as keywords; or a whole record,
            ``AddedToCart(anna, sku="A-1", ...)``, which must be equal but for a time and salt it leaves open; or a
            text: an event type, the action of a custom event, or ``transaction``.
        times: so many such records exactly; without it, at least one.
        fields: arguments of the class, in Python's words. Of `params` and `metadata` only the keys named must be
            equal. Values may be matchers that define ``==``, such as ``unittest.mock.ANY``.

    A field that the class does not have raises TypeError: no record could ever meet it.
    """
    __tracebackhide__ = True
    exact = isinstance(expected, Record)
    if exact and fields:
        raise TypeError("give a whole record, or a class and fields, not both")
    wanted = _whole(expected) if isinstance(expected, Record) else _partial(expected, fields)
    like = [record for record in tracked if _same_kind(wanted, record)]
    differences = [list(_differences(wanted, record, "", exact)) for record in like]
    found = [record for record, differing in zip(like, differences, strict=True) if not differing]
    if times is None and not found:
        raise AssertionError(_explain(f"no {_name(wanted)} like this was tracked", wanted, tracked, like, differences))
    if times is not None and len(found) != times:
        headline = f"{times} {_name(wanted)} like this expected, {len(found)} tracked"
        raise AssertionError(_explain(headline, wanted, tracked, like, differences))
    return dict(found[0]) if found else {}


def assert_not_tracked(tracked: Sequence[Sent], expected: Expected, /, **fields: object) -> None:
    """Fails when a record like `expected` was tracked; see `assert_tracked`."""
    __tracebackhide__ = True
    assert_tracked(tracked, expected, times=0, **fields)


def _whole(record: Record) -> dict[str, Any]:
    """A record as it is sent, without the time and salt it leaves open."""
    time = "" if record.time is None else format_ms(datetime_ms(record.time))
    body: dict[str, Any] = msgspec.json.decode(_encode(record.wire(time, record.salt or "")))
    return {key: value for key, value in body.items() if value or key not in ("time", "recordedAt", "eventSalt")}


def _partial(expected: type[Record] | str, fields: Mapping[str, object]) -> dict[str, Any]:
    """The keys that matter, where they are when a record is sent."""
    kind = _BY_TYPE.get(expected, Custom) if isinstance(expected, str) else expected
    is_event, free = issubclass(kind, Event), isinstance(expected, str) and expected not in _BY_TYPE
    action = expected if free else getattr(kind, "action", None)
    wanted: dict[str, Any] = {"type": kind.type} if issubclass(kind, Event) else {}
    if isinstance(action, str):
        wanted["action"] = action
    plan = plans[kind]
    checks = plan.checks
    sent_as = {argument: key for key, argument in plan.arguments.items()}
    for name, value in fields.items():
        if name not in checks and not free:
            raise TypeError(f"{kind.__name__} has no field {name}: it has {', '.join(checks)}")
        kept = value
        if name in checks:
            try:
                kept = checks[name](value, name)
            except InvalidRecord:
                kept = value  # a matcher; or the test's own mistake, which the difference then shows
        sent = _json(kept)
        if name in ("params", "metadata") and isinstance(sent, dict):
            wanted.setdefault(name, {}).update(sent)
        elif name == "time":
            wanted["time" if is_event else "recordedAt"] = sent
        elif name in _ENVELOPE:
            wanted[_ENVELOPE[name]] = sent
        else:
            place = wanted.setdefault("params", {}) if is_event else wanted
            if name == "payment_method":
                place["paymentInfo"] = {"method": sent}
            else:
                place[sent_as.get(name, name)] = sent
    return wanted


def _json(value: Any) -> Any:
    """A value as it comes out at the other end; matchers as they are."""
    value = as_sent(value)
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json(item) for item in value]
    try:
        return msgspec.json.decode(_encode(value))
    except TypeError:
        return value


def _same_kind(wanted: Sent, record: Sent) -> bool:
    if "type" not in wanted:
        return "orderId" in record
    return all(record.get(key) == wanted[key] for key in ("type", "action") if key in wanted)


def _differences(expected: Any, actual: Any, path: str, exact: bool) -> Iterator[_Difference]:
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        keys = [*expected, *(key for key in actual if key not in expected and (exact or path not in _PARTIAL))]
        for key in keys:
            below = f"{path}.{key}" if path else str(key)
            if below in ("time", "recordedAt", "eventSalt") and key not in expected:
                continue
            yield from _differences(expected.get(key, _NOTHING), actual.get(key, _NOTHING), below, exact)
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for at, (one, other) in enumerate(zip(expected, actual, strict=True)):
            yield from _differences(one, other, f"{path}[{at}]", exact)
    elif not expected == actual:  # noqa: SIM201  a matcher's ==
        yield _Difference(path, expected, actual)


def _explain(
    headline: str, wanted: Sent, tracked: Sequence[Sent], like: list[Sent], differences: list[list[_Difference]]
) -> str:
    lines = [headline, *(f"    {path}: {value!r}" for path, value in _flat(wanted))]
    counts = Counter(_name(record) for record in tracked)
    lines.append("tracked: " + (", ".join(f"{name} ({count})" for name, count in counts.items()) or "nothing"))
    by_nearness = sorted(zip(like, differences, strict=True), key=lambda pair: len(pair[1]))
    for record, differing in by_nearness[:_NEAREST]:
        lines.append(f"  {_name(record)}" + (":" if differing else ": just like this"))
        lines += [f"    {path}: {want!r} expected, {got!r} tracked" for path, want, got in differing]
    if len(like) > _NEAREST:
        lines.append(f"  and {len(like) - _NEAREST} more of the kind")
    return "\n".join(lines)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _name(record: Sent) -> str:
    return str(record.get("action") or record.get("type") or "transaction")
