"""A sale: the transaction and its products (API reference, Transactions)."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, ClassVar, cast

from msgspec.structs import force_setattr

from tracker import rules, wire
from tracker.checks import AnySource, Percent, Quantity, Text, Texts, kind_of
from tracker.errors import InvalidRecord
from tracker.money import Discount, Money, Price, total
from tracker.params import Extra
from tracker.record import Checked, Record, no_known_keys, plans


class Product(Checked, frozen=True, kw_only=True):
    """One line of a receipt. The price is per unit, with tax and after discounts."""

    sku: Text
    name: Text
    quantity: Quantity
    final_unit_price: Price
    regular_price: Price | None = None
    net_unit_price: Price | None = None
    discount_price: Price | None = None
    discount_percent: Percent | None = None
    tax: Percent | None = None
    url: Text | None = None
    image: Text | None = None
    categories: Texts | None = None
    extra: Extra | None = None
    """Any other keys of yours."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.regular_price or self.net_unit_price or self.discount_price:
            one_currency(
                self.final_unit_price.currency,
                regular_price=self.regular_price,
                net_unit_price=self.net_unit_price,
                discount_price=self.discount_price,
            )
        if self.extra is not None:
            no_known_keys(self.extra, "extra", plans[Product].arguments)

    def wire(self) -> "Product | dict[str, object]":
        """This product in the API's words."""
        if self.extra is None:
            return self  # encodes as it stands
        return self.known() | dict(self.extra)


rules.parts.add(Product)


def products(value: Any, field: str) -> tuple[Product, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidRecord(field, f"must be a list of Product, not {kind_of(value)}", value)
    lines = tuple(value)
    if not lines:
        raise InvalidRecord(field, "must hold at least one Product", value)
    for index, line in enumerate(lines):
        if not isinstance(line, Product):
            raise InvalidRecord(f"{field}[{index}]", f"must be a Product, not {kind_of(line)}", line)
    currency = lines[0].final_unit_price.currency
    prices = {f"{field}[{at}].final_unit_price": line.final_unit_price for at, line in enumerate(lines)}
    one_currency(currency, **prices)
    return lines


def one_currency(expected: str, **amounts: Money | None) -> None:
    """Raises `InvalidRecord` for the first amount in another currency."""
    for field, amount in amounts.items():
        if amount is not None and amount.currency != expected:
            raise InvalidRecord(
                f"{field}.currency", f"must be {expected} as in the rest: all amounts share one currency", amount
            )


Products = Annotated[Sequence[Product], products]


class Transaction(Record, frozen=True, kw_only=True):
    """A completed sale. The API makes one ``transaction.charge`` of it and a ``product.buy`` per product.

    `revenue` is the exact sum of price times quantity when not given, and `value` equals `revenue`.
    A return is a `CancelledTransaction`, never a negative amount.
    """

    path: ClassVar[str] = wire.TRANSACTIONS_BATCH

    order_id: Text
    """Yours. Not a key: the same order sent twice is two transactions unless time and salt match."""
    payment_method: Text
    source: AnySource
    products: Products
    revenue: Price | None = None
    """After tax."""
    value: Price | None = None
    """Before tax, or equal to `revenue`."""
    discount_amount: Discount | None = None
    metadata: Extra | None = None

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        currency = self.products[0].final_unit_price.currency
        if self.revenue is None:
            lines = ((line.final_unit_price, cast(Decimal | int, line.quantity)) for line in self.products)
            force_setattr(self, "revenue", total(lines, currency))
        if self.value is None:
            force_setattr(self, "value", self.revenue)
        one_currency(currency, revenue=self.revenue, value=self.value, discount_amount=self.discount_amount)

    def wire(self, time: str, salt: str) -> dict[str, object]:
        """This transaction in the API's words."""
        body: dict[str, object] = {
            "client": self.client,
            "orderId": self.order_id,
            "recordedAt": time,
            "eventSalt": salt,
            "source": self.source,
            "paymentInfo": {"method": self.payment_method},
            "revenue": self.revenue,
            "value": self.value,
            "products": [line.wire() for line in self.products],
        }
        if self.discount_amount is not None:
            body["discountAmount"] = self.discount_amount
        if self.metadata is not None:
            body["metadata"] = self.metadata
        return body
