"""A till with the whole collector inside: no service, no network needed to sell, nothing lost in a power cut.

TILLPOST_API_KEY=... python examples/till/till.py --terminal T-07
scan A-1 2
card C-1001
pay CASH
status
quit
"""

import argparse
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path

from collector import Collector
from tracker import Client, CustomEvent, Failure, Money, Product, Tracker, derive_salt

PRICES = {"A-1": ("Tea", Decimal("12.50")), "B-2": ("Coffee", Decimal("24.90")), "C-3": ("Cup", Decimal("8.00"))}


class ReceiptPrinted(CustomEvent, action="receipt.printed"):
    """A receipt left the printer of a till."""

    terminal: str
    number: int
    """Of the receipt, counted per terminal."""
    lines: int = 0


class Till:
    """One terminal: scans, takes the money, numbers its receipts, and says what it sold."""

    def __init__(self, terminal: str, receipts: sqlite3.Connection, tracker: Tracker) -> None:
        self.terminal = terminal
        self._receipts = receipts
        self._tracker = tracker
        self._basket: list[Product] = []
        self._client = Client(custom_id=f"walk-in-{terminal}")
        receipts.execute("CREATE TABLE IF NOT EXISTS receipts (number INTEGER PRIMARY KEY, total TEXT NOT NULL)")

    def scan(self, sku: str, quantity: str = "1") -> str:
        name, price = PRICES[sku]
        line = Product(sku=sku, name=name, quantity=quantity, final_unit_price=Money(price, "PLN"))
        self._basket.append(line)
        self._tracker.added_to_cart(
            self._client, sku=sku, name=name, quantity=quantity, final_unit_price=line.final_unit_price, source="POS",
            offline=True,
        )  # fmt: skip
        return f"{quantity} x {name} {price}"

    def card(self, number: str) -> str:
        self._client = Client(custom_id=number)
        return f"card {number}"

    def pay(self, method: str) -> str:
        total = sum(line.final_unit_price.amount * Decimal(line.quantity) for line in self._basket)
        with self._receipts:
            number = self._receipts.execute("INSERT INTO receipts (total) VALUES (?)", (str(total),)).lastrowid
        assert number is not None
        order = f"{self.terminal}/{number:06}"
        sale = self._tracker.transaction(
            self._client, order_id=order, payment_method=method, source="POS", products=self._basket,
            salt=derive_salt("sale", self.terminal, number, prefix=order),
        )  # fmt: skip
        printed = ReceiptPrinted(self._client, terminal=self.terminal, number=number, lines=len(self._basket))
        self._tracker.track(printed)
        self._basket, self._client = [], Client(custom_id=f"walk-in-{self.terminal}")
        # The customer waits for this line, so it waits a second at most. Later than that the sale is on its way all
        # the same; a till that must know asks `sale.durable` again, or uses an outbox.
        return f"receipt {order} {total} PLN {'kept' if sale.wait(1.0) else 'not yet kept'}"


def orders(till: Till, collector: Collector) -> Iterator[str]:
    """What the till answers to each line of standard input."""
    for words in (line.split() for line in sys.stdin):
        match words:
            case ["scan", sku, *quantity] if sku in PRICES and len(quantity) < 2:
                yield till.scan(sku, *quantity)
            case ["card", number]:
                yield till.card(number)
            case ["pay", method]:
                yield till.pay(method)
            case ["status"]:
                ledger = collector.status()["ledger"]
                yield f"{ledger['delivered']} delivered, {ledger['pending']} waiting, {ledger['dead']} refused"
            case ["quit"]:
                return
            case _:
                yield f"scan {'|'.join(PRICES)} [quantity], card NUMBER, pay METHOD, status or quit"


def complain(failure: Failure) -> None:
    """What could not be kept: on the operator's screen, without the customer's data."""
    print(f"tracking: {failure}", file=sys.stderr)


def main() -> None:
    options = argparse.ArgumentParser(description="A till with an embedded collector.")
    options.add_argument("--terminal", default="T-01")
    options.add_argument("--folder", type=Path, default=Path("till-data"), help="where receipts and events are kept")
    options.add_argument("--upstream", help="default: the API")
    given = options.parse_args()
    given.folder.mkdir(exist_ok=True)
    with (
        closing(sqlite3.connect(given.folder / "receipts.db")) as receipts,
        Collector(given.folder / "tillpost.db", upstream=given.upstream) as collector,
        Tracker(collector, on_error=complain) as tracker,
    ):
        for answer in orders(Till(given.terminal, receipts, tracker), collector):
            print(answer, flush=True)


if __name__ == "__main__":
    main()
