"""Amounts of money, exact from the till to the API."""

import re
from collections.abc import Iterable
from decimal import Context, Decimal, Inexact
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec.structs import force_setattr

from tracker import checks
from tracker.checks import passes
from tracker.errors import InvalidRecord

# Python's default context rounds to 28 digits. Every number here has at most 100 digits on either
# side of the point (checks.exact): products and sums fit with room to spare, or we would hear of it.
_EXACT: Final = Context(prec=1000, traps=[Inexact])
_CURRENCY: Final = re.compile(r"[A-Z]{3}", re.ASCII)


class Money(msgspec.Struct, frozen=True, gc=False):
    """An amount and its currency: ``Money("12.50", "PLN")``.

    The amount is a `Decimal`, an `int` or a `str`; a float is refused, because it cannot hold most
    prices exactly. It is 0 or more: a return is a cancelled transaction. The currency is a
    three-letter ISO 4217 code (API reference, Transactions: money rules).
    """

    amount: Decimal
    currency: str

    if TYPE_CHECKING:  # more is taken than is kept

        def __init__(self, amount: Decimal | int | str, currency: str) -> None: ...

    def __post_init__(self) -> None:
        given: object = self.amount
        amount = checks.read(given) if type(given) is str else None
        if amount is None or amount.is_signed():
            amount = _amount(given)
        if self.currency not in _seen:
            _seen.add(currency(self.currency, "currency"))
        force_setattr(self, "amount", amount)


def _amount(given: object) -> Decimal:
    amount = checks.exact(given, "amount")
    if amount < 0:
        raise InvalidRecord(
            "amount", "must be 0 or more: a return is a cancelled transaction, not an amount below 0", amount
        )
    return amount if type(amount) is Decimal else Decimal(amount)


_seen: Final[set[str]] = set()
"""Currencies found good: at most a few, and each checked once."""


def currency(value: Any, field: str) -> str:
    if not isinstance(value, str) or not _CURRENCY.fullmatch(value):
        raise InvalidRecord(field, "must be a three-letter ISO 4217 code in capitals, such as PLN", value)
    return value


@passes(Money)
def money(value: Any, field: str) -> Money:
    if not isinstance(value, Money):
        raise InvalidRecord(field, f'must be Money, such as Money("12.50", "PLN"), not {checks.kind_of(value)}', value)
    return value


def discount(value: Any, field: str) -> Money:
    if money(value, field).amount == 0:
        raise InvalidRecord(field, "must be more than 0, or be left out", value)
    return value  # type: ignore[no-any-return]


def total(lines: Iterable[tuple[Money, Decimal | int]], currency: str) -> Money:
    """The exact, unrounded sum of price times quantity."""
    amount = Decimal(0)
    for price, quantity in lines:
        amount = _EXACT.add(amount, _EXACT.multiply(price.amount, quantity))
    return Money(amount, currency)


Price = Annotated[Money, money]
Discount = Annotated[Money, discount]
