"""Free-form keys: what the caller may add to the known ones.

Everything JSON can say, and `Decimal`, `Money`, `UUID`, enums and aware datetimes. No nulls: leave
unknown values out (API reference, Events: `params` rules).
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final
from uuid import UUID

from tracker import checks
from tracker import time as _time
from tracker.errors import InvalidRecord
from tracker.money import Money

RESERVED: Final = frozenset({"modifiedBy", "apiKey", "eventUUID", "ip", "time", "businessProfileId"})
"""The backend ignores or overwrites these names in `params`."""
_MAX_DEPTH: Final = 32  # far beyond any event, and far below what a recursive decoder refuses


def json_object(value: Any, field: str, depth: int = _MAX_DEPTH) -> dict[str, object]:
    """A copy that holds nothing but what JSON can say."""
    if type(value) is not dict and not isinstance(value, Mapping):
        raise InvalidRecord(field, f"must be a mapping, not {checks.kind_of(value)}", value)
    copy: dict[str, Any] = dict(value)
    for key, item in copy.items():
        if type(key) is not str or not key.isascii():
            _check_key(key, field)
        kind = type(item)
        # Most params are one of these: spare them the call.
        if (kind is str and item.isascii()) or kind is bool or kind is Money:
            continue
        if kind is int and -(1 << 63) <= item < 1 << 63:
            continue
        copy[key] = json_value(item, f"{field}.{key}", depth)
    return copy


def _check_key(key: object, field: str) -> None:
    if not isinstance(key, str):
        raise InvalidRecord(field, f"must have strings for keys, not {checks.kind_of(key)}", key)
    checks.text(key, f"{field} (a key)")


def json_value(value: Any, field: str, depth: int = _MAX_DEPTH) -> object:
    """A copy of anything JSON can say."""
    if value is None:
        raise InvalidRecord(field, "must not be null: leave the key out", value)
    if isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return json_value(value.value, field, depth)
    if isinstance(value, str):
        return checks.text(str(value), field)
    if isinstance(value, (int, float, Decimal)):
        return checks.number(value, field)
    if isinstance(value, datetime):
        return _time.format_ms(_time.datetime_ms(checks.moment(value, field)))
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Money):
        return value
    if depth == 0:
        raise InvalidRecord(field, f"must not be nested deeper than {_MAX_DEPTH} levels", value)
    if isinstance(value, Mapping):
        return json_object(value, field, depth - 1)
    if isinstance(value, (list, tuple)):
        return [json_value(item, f"{field}[{index}]", depth - 1) for index, item in enumerate(value)]
    raise InvalidRecord(
        field,
        "must be something JSON can say (string, number, bool, list, mapping), Decimal, Money, UUID "
        f"or an aware datetime, not {checks.kind_of(value)}",
        value,
    )


def not_reserved(params: Mapping[str, object], field: str) -> None:
    """Raises `InvalidRecord` for a name the backend takes for itself."""
    if not RESERVED.isdisjoint(params):
        name = min(RESERVED & params.keys())
        raise InvalidRecord(f"{field}.{name}", "is reserved: the API would ignore or overwrite it; use another name")


Extra = Annotated[Mapping[str, object], json_object]
