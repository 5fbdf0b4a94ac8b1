"""A shop: what its customers do, and a journal of it, written before anything is tracked."""

import hashlib
import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal

from tracker import Client, Money, Product, Source, Tracker

Sabotage = Literal["drop", "duplicate", "alter"]

BASKETS: Final = 400
BAD_SKU: Final = "SKU-CURSED"


@dataclass
class Journal:
    """What the shop did, written before it was tracked: an entry's number, and the digest of its content."""

    path: Path
    entries: dict[str, str] = field(default_factory=dict)

    def note(self, content: Mapping[str, Any]) -> str:
        """Write an entry to the disk and return its number."""
        number = f"{len(self.entries):06d}"
        self.entries[number] = digest({**content, "journal": number})
        with self.path.open("a") as file:
            file.write(f"{number} {self.entries[number]}\n")
            file.flush()
            os.fsync(file.fileno())
        return number


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of what a record says; numbers by value, so that 12.50 and 12.5 are the same amount."""
    text = json.dumps(_plain(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {key: _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case bool() | None | str():
            return value
        case _:
            return f"{Decimal(value).normalize():f}"


def content_of(record: Mapping[str, Any]) -> tuple[str, str]:
    """The journal number and the digest of a record as the upstream stored it."""
    if "orderId" in record:
        said = {
            key: record[key] for key in ("client", "orderId", "products", "revenue", "value", "source", "paymentInfo")
        }
        return record["metadata"]["journal"], digest({"kind": "sale", **said, "journal": record["metadata"]["journal"]})
    params = dict(record["params"])
    number = str(params.pop("journal"))
    effect = record["action"] if record["type"] == "custom" else record["type"]
    return number, digest({"kind": effect, "client": record["client"], "params": params, "journal": number})


class Shop:
    """Customers come, look, fill baskets and pay; seeded, so every day is the same."""

    def __init__(self, tracker: Tracker, journal: Journal, sabotage: Sabotage | None, baskets: int) -> None:
        self.tracker = tracker
        self.journal = journal
        self.sabotage = sabotage
        self.baskets = baskets
        self.victim = 3 * baskets
        self.chance = random.Random(2026)  # noqa: S311 - a shop's day, not a secret
        self.clients = [
            *(Client(email=f"customer{i}@example.com") for i in range(40)),
            *(Client(custom_id=f"LOYAL-{i:04d}") for i in range(40)),
            *(Client(uuid=f"00000000-0000-4000-8000-{i:012x}") for i in range(40)),
            *(
                Client(email=f"member{i}@example.com", uuid=f"00000000-0000-4000-8000-{4096 + i:012x}")
                for i in range(40)
            ),
        ]
        self.goods = [
            (f"SKU-{i:03d}", name, Money(Decimal(self.chance.randrange(99, 9_999)) / 100, "PLN"))
            for i, name in enumerate(["Tea", "Mug", "Kettle", "Honey", "Biscuits", "Żurawina", "Sugar", "Lemon"] * 5)
        ]

    def basket(self, number: int) -> None:
        """One customer: a login, a push message, a few views, a cart, a sale."""
        client = self.chance.choice(self.clients)
        wire = _wire(client)
        bought = self.chance.sample(self.goods, self.chance.randrange(2, 7))
        if number % 3 == 0:
            self._event("logged-in", wire, {}, lambda n: self.tracker.logged_in(client, params={"journal": n}))
        if number % 4 == 0:
            said = {"campaignName": "Autumn", "id": f"push-{number}"}
            self._event("push.view", wire, said, lambda n: self.tracker.push_viewed(
                client, campaign_name="Autumn", id=f"push-{number}", params={"journal": n}))  # fmt: skip
        for sku, name, price in bought:
            self._event("product-view", wire, {"productId": sku, "name": name, "source": "POS"},
                        lambda n, sku=sku, name=name: self.tracker.product_view(  # type: ignore[misc]
                            client, product_id=sku, name=name, source=Source.POS, params={"journal": n}))  # fmt: skip
            quantity = self.chance.randrange(1, 5)
            self._cart(
                client,
                wire,
                BAD_SKU if (number, sku) == (self.baskets // 2, bought[0][0]) else sku,
                name,
                price,
                quantity,
            )
        self._sale(client, wire, number, bought)

    def _cart(self, client: Client, wire: dict[str, Any], sku: str, name: str, price: Money, quantity: int) -> None:
        said = {"sku": sku, "name": name, "quantity": quantity, "source": "POS", "finalUnitPrice": _money(price)}
        altered = self.sabotage == "alter" and self._now()

        def track(number: str) -> object:
            return self.tracker.added_to_cart(
                client, sku=sku, name=name, quantity=quantity + altered, final_unit_price=price, source=Source.POS,
                params={"journal": number},
            )  # fmt: skip

        self._event("added-to-cart", wire, said, track)

    def _sale(self, client: Client, wire: dict[str, Any], number: int, bought: list[tuple[str, str, Money]]) -> None:
        lines = [(sku, name, self.chance.randrange(1, 4), price) for sku, name, price in bought]
        total = {"amount": sum((price.amount * n for _, _, n, price in lines), Decimal(0)), "currency": "PLN"}
        products = [
            {"sku": sku, "name": name, "quantity": n, "finalUnitPrice": _money(price)} for sku, name, n, price in lines
        ]
        said = {"kind": "sale", "client": wire, "orderId": f"T-07/{number:06d}", "products": products, "revenue": total,
                "value": total, "source": "POS", "paymentInfo": {"method": "CASH"}}  # fmt: skip
        entry = self.journal.note(said)
        self.tracker.transaction(
            client, order_id=f"T-07/{number:06d}", payment_method="CASH", source=Source.POS,
            metadata={"journal": entry},
            products=[Product(sku=sku, name=name, quantity=n, final_unit_price=price) for sku, name, n, price in lines],
        )  # fmt: skip

    def _event(self, kind: str, wire: dict[str, Any], said: dict[str, Any], track: Callable[[str], object]) -> None:
        number = self.journal.note({"kind": kind, "client": wire, "params": said})
        if kind == "product-view" and self.sabotage == "drop" and self._now():
            return
        track(number)
        if kind == "product-view" and self.sabotage == "duplicate" and self._now():
            track(number)

    def _now(self) -> bool:
        """Once, somewhere in the middle of the day."""
        if len(self.journal.entries) < self.victim:
            return False
        self.victim = sys.maxsize
        return True


def _wire(client: Client) -> dict[str, Any]:
    keys = {"email": client.email, "uuid": client.uuid, "customId": client.custom_id, "id": client.id}
    return {key: value for key, value in keys.items() if value is not None}


def _money(money: Money) -> dict[str, Any]:
    return {"amount": money.amount, "currency": money.currency}
