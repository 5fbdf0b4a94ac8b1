"""The rules for single values, each as a type that carries its check.

A check takes a value and the name of its field and returns the value as we keep it, or raises
`InvalidRecord`. `Checked` classes find the check of a field in its annotation, so that the
field list of a class is also its list of rules. The rules are those of the API reference
(Events: envelope, client, params; Time and eventSalt; Transactions).
"""

import math
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Final, TypeVar

from tracker import time as _time
from tracker.errors import InvalidRecord

Check = Callable[[Any, str], Any]
_Any = TypeVar("_Any", bound=Check)


def passes(kind: type, least: int = -(1 << 63)) -> Callable[[_Any], _Any]:
    """Marks the one type whose instances need no check, which saves most fields a call.

    Of `str` these are the ASCII ones, of `int` those of 64 bits that are not below `least`.
    """
    good = {str: "value.isascii()", int: f"{least} <= value < {1 << 63}"}.get(kind)

    def mark(check: _Any) -> _Any:
        check.passes, check.good = kind, good  # type: ignore[attr-defined]
        return check

    return mark


_is_action: Final = lru_cache(1024)(re.compile(r"[a-zA-Z0-9.\-_]{1,32}", re.ASCII).fullmatch)
_SALT: Final = re.compile(r"[\x20-\x7e]{1,128}", re.ASCII)
_DECIMAL: Final = re.compile(r"-?\d{1,100}(\.\d{1,100})?", re.ASCII)
_MAX_DIGITS: Final = 100  # on either side of the point: far beyond any price, and sums stay exact and small


class Source(StrEnum):
    """Where an event or a sale happened (API reference, Event kinds: ``source``)."""

    WEB_DESKTOP = "WEB_DESKTOP"
    WEB_MOBILE = "WEB_MOBILE"
    MOBILE_APP = "MOBILE_APP"
    POS = "POS"
    MOBILE = "MOBILE"
    DESKTOP = "DESKTOP"


_SOURCES: Final[dict[object, Source]] = {source.value: source for source in Source}


@passes(str)
def text(value: Any, field: str) -> str:
    """Any string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise InvalidRecord(field, f"must be a string, not {kind_of(value)}", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidRecord(field, "holds a lone surrogate, which UTF-8 cannot carry", value) from None
    return value


def label(value: Any, field: str) -> str:
    if value == "":
        raise InvalidRecord(field, "must have at least one character, or be left out", value)
    return text(value, field)


def action(value: Any, field: str) -> str:
    if not isinstance(value, str) or not _is_action(value):
        raise InvalidRecord(field, "must be 1 to 32 of the characters a-z A-Z 0-9 . - _", value)
    if value == "transaction.charge":
        raise InvalidRecord(
            field, "must not be transaction.charge: the API then makes no product.buy events; use transaction()", value
        )
    return value


def salt(value: Any, field: str) -> str:
    if not isinstance(value, str) or not _SALT.fullmatch(value):
        raise InvalidRecord(field, "must be 1 to 128 printable ASCII characters", value)
    return value


def moment(value: Any, field: str) -> datetime:
    """An aware datetime."""
    if not isinstance(value, datetime):
        raise InvalidRecord(field, f"must be an aware datetime, not {kind_of(value)}", value)
    try:
        _time.format_ms(_time.datetime_ms(value))
    except ValueError as error:
        raise InvalidRecord(field, str(error), value) from None
    except OverflowError:
        raise InvalidRecord(field, "must lie in the years 1 to 9999 of UTC", value) from None
    return value


@passes(bool)
def flag(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidRecord(field, f"must be True or False, not {kind_of(value)}", value)
    return value


@passes(Source)
def source(value: Any, field: str) -> Source:
    try:
        return _SOURCES[value]
    except (KeyError, TypeError):
        raise InvalidRecord(field, f"must be one of {', '.join(Source)}", value) from None


@passes(int)
def whole(value: Any, field: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRecord(field, f"must be a whole number (int), not {kind_of(value)}", value)
    return integer(value, field)


@passes(int, least=1)
def position(value: Any, field: str) -> int:
    if whole(value, field) < 1:
        raise InvalidRecord(field, "must be 1 or more: positions count from 1", value)
    return int(value)


def search_type(value: Any, field: str) -> str:
    if value not in ("full-text-search", "autocomplete"):
        raise InvalidRecord(field, "must be full-text-search or autocomplete", value)
    return str(value)


def integer(value: int, field: str) -> int:
    if not -(2**63) <= value < 2**63:
        raise InvalidRecord(field, "must fit a signed integer of 64 bits; send longer ones as text", value)
    return value


@passes(int)
def number(value: Any, field: str) -> Decimal | int | float:
    """A measure: any finite number."""
    if isinstance(value, bool) or not isinstance(value, (Decimal, int, float)):
        raise InvalidRecord(field, f"must be a number (Decimal, int or float), not {kind_of(value)}", value)
    if isinstance(value, int):
        return integer(value, field)
    if isinstance(value, Decimal):
        return _bounded(value, field)
    if not math.isfinite(value):
        raise InvalidRecord(field, "must be finite: JSON has no NaN and no infinity", value)
    return value


@passes(int, least=0)
def percent(value: Any, field: str) -> Decimal | int | float:
    if number(value, field) < 0:
        raise InvalidRecord(field, "must be 0 or more", value)
    return value  # type: ignore[no-any-return]


@passes(int)
def exact(value: Any, field: str) -> Decimal | int:
    """A number that must not be rounded on its way: `Decimal`, `int` or the text of one."""
    kind = type(value)
    if kind is int:
        return integer(value, field)
    if kind is str:
        number = read(value)
        if number is None:
            raise InvalidRecord(field, "must read like 12.50: digits, a point, no spaces or thousands marks", value)
        return number
    if isinstance(value, float):
        raise InvalidRecord(
            field,
            "must not be a float, which cannot hold most decimals exactly (0.1 + 0.2 is not 0.3): "
            'give a Decimal, an int or a string such as "12.50"',
            value,
        )
    if not isinstance(value, Decimal):
        raise InvalidRecord(field, f"must be a Decimal, int or str, not {kind_of(value)}", value)
    return _bounded(value, field)


@lru_cache(4096)  # a shop has far fewer prices than sales
def read(text: str) -> Decimal | None:
    """The number a text says; None when it says none as we take them."""
    if not _DECIMAL.fullmatch(text):
        return None
    number = Decimal(text)
    return number if number else number.copy_abs()  # -0 is a JSON number, but not every parser was tried with it


@passes(int, least=0)
def quantity(value: Any, field: str) -> Decimal | int:
    found = exact(value, field)
    if found < 0:
        raise InvalidRecord(field, "must be 0 or more: a return is a cancelled transaction, not a sale below 0", value)
    return found


def _bounded(value: Decimal, field: str) -> Decimal:
    if not value.is_finite():
        raise InvalidRecord(field, "must be finite: JSON has no NaN and no infinity", value)
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)  # only NaN and infinity have letters
    if value.adjusted() >= _MAX_DIGITS or exponent < -_MAX_DIGITS:
        raise InvalidRecord(field, f"must have at most {_MAX_DIGITS} digits before and after the point", value)
    if exponent > 0 or not value:
        # 1E+3 and -0 are JSON numbers, but not every parser on the way was tried with them.
        # (Unlike abs and +, neither copy_abs nor format rounds to 28 digits.)
        return Decimal(format(value if value else value.copy_abs(), "f"))
    return value


def texts(value: Any, field: str) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InvalidRecord(field, f"must be a list of strings, not {kind_of(value)}", value)
    return tuple(text(item, f"{field}[{index}]") for index, item in enumerate(value))


def kind_of(value: object) -> str:
    """The type's name, which may stand in a message where the value may not."""
    return "None" if value is None else type(value).__name__


Text = Annotated[str, text]
Texts = Annotated[Sequence[str], texts]
Label = Annotated[str, label]
Action = Annotated[str, action]
Salt = Annotated[str, salt]
Moment = Annotated[datetime, moment]
Flag = Annotated[bool, flag]
Whole = Annotated[int, whole]
Position = Annotated[int, position]
SearchType = Annotated[str, search_type]
Number = Annotated[Decimal | int | float, number]
Percent = Annotated[Decimal | int | float, percent]
Quantity = Annotated[Decimal | int | str, quantity]
AnySource = Annotated[Source | str, source]
