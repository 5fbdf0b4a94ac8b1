"""What everybody sends: an item put into a cart, eleven properties, about 443 bytes as JSON; or a basket."""

import math
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final

import msgspec

from tracker import Client, Money, Product, Transaction, events

NAME: Final = "product.addedToCart"
BASKET: Final = "order.completed"
MARK: Final = "line-"
"""Before an event's number, wherever the library puts its properties: so the sink knows each event."""


def user(number: int) -> str:
    return f"C-{number % 5000:06d}"


def properties(number: int) -> dict[str, Any]:
    """The event as an application hands it to a library that takes a dict."""
    return {
        "sku": f"SKU-{number % 900:05d}",
        "name": "Earl Grey loose leaf tea, tin, 100 g",
        "category": "Groceries > Tea and coffee > Tea",
        "producer": "Northern Tea Company Ltd.",
        "quantity": 2,
        "finalUnitPrice": {"amount": 12.5, "currency": "PLN"},
        "source": "POS",
        "offline": False,
        "terminal": "T-07",
        "receiptLine": f"{MARK}{number:07d}",
        "url": "https://shop.example/groceries/tea-and-coffee/earl-grey-loose-leaf-100-g",
    }


SIZE: Final = len(msgspec.json.encode({"event": NAME, "userId": user(0), "properties": properties(0)}))


def bad_properties(number: int) -> dict[str, Any]:
    """The event with a value that JSON cannot say."""
    return properties(number) | {"discountShare": math.nan}


def typed(number: int, **further: Any) -> events.AddedToCart:
    """The same event, with a type for everything the API has one for."""
    return events.AddedToCart(
        Client(custom_id=user(number)),
        sku=f"SKU-{number % 900:05d}",
        name="Earl Grey loose leaf tea, tin, 100 g",
        category="Groceries > Tea and coffee > Tea",
        producer="Northern Tea Company Ltd.",
        quantity=2,
        final_unit_price=Money("12.50", "PLN"),
        source="POS",
        offline=False,
        params={
            "terminal": "T-07",
            "receiptLine": f"{MARK}{number:07d}",
            "url": "https://shop.example/groceries/tea-and-coffee/earl-grey-loose-leaf-100-g",
            **further,
        },
    )


# -- baskets ----------------------------------------------------------------------------------------


def numbered(baskets: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Baskets that carry their number beside their store's."""
    return [
        basket | {"metadata": basket["metadata"] | {"receiptLine": f"{MARK}{number:07d}"}}
        for number, basket in enumerate(baskets)
    ]


def with_floats(value: Any) -> Any:
    """A basket as the libraries take it that know no decimals."""
    if isinstance(value, dict):
        return {key: with_floats(each) for key, each in value.items()}
    if isinstance(value, list):
        return [with_floats(each) for each in value]
    return float(value) if isinstance(value, Decimal) else value


def typed_basket(basket: dict[str, Any]) -> Transaction:
    """A basket as a transaction: its revenue is computed, in decimals."""
    return Transaction(
        Client(custom_id=basket["client"]["customId"]),
        order_id=basket["orderId"],
        payment_method=basket["paymentInfo"]["method"],
        source="POS",
        metadata=basket["metadata"],
        products=[
            Product(
                sku=item["sku"],
                name=item["name"],
                quantity=item["quantity"],
                final_unit_price=Money(**item["finalUnitPrice"]),
                categories=item.get("categories"),
                extra={"realQuantity": item["realQuantity"]},
            )
            for item in basket["products"]
        ],
    )
