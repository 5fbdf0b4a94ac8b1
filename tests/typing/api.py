"""How `tracker` is used, for the type checkers only; never run.

Lines marked as errors must be errors: mypy (`warn_unused_ignores`) and pyright (`reportUnnecessaryTypeIgnoreComment`)
complain when one is not. `.ci/run` runs both.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

import sqlite3
import threading
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal, assert_type

from msgspec import Meta, field

from tracker import BoundTracker, Client, CustomEvent, Money, Product, Receipt, Source, Tracker
from tracker.events import AddedToCart
from tracker.integrations.outbox import Drained, Outbox
from tracker.record import Record
from tracker.testing import assert_tracked, capture_events

anna = Client(email="anna@example.com")
price = Money("12.50", "PLN")


class ReceiptPrinted(CustomEvent, action="receipt.printed"):
    """A receipt left the printer."""

    terminal: str
    copies: Annotated[int, Meta(ge=1)] = 1
    how: Literal["paper", "mail"] | None = None
    printed_at: datetime | None = None
    mail_address: str | None = field(name="mail", default=None)


class ReprintRequested(ReceiptPrinted, action="receipt.reprint"):
    """Somebody asked for it again."""

    by: str


def declared_events(tracker: Tracker) -> None:
    printed = ReceiptPrinted(anna, terminal="T-07", how="mail", label="Printed", params={"more": 1})
    assert_type(printed.copies, int)
    assert_type(tracker.track(printed), Receipt)
    assert_type(printed.replace(copies=2), ReceiptPrinted)
    ReprintRequested(anna, terminal="T-07", by="Ola")
    ReceiptPrinted(anna)  # type: ignore[call-arg]
    ReceiptPrinted(anna, terminal=7)  # type: ignore[arg-type]
    ReceiptPrinted(anna, terminal="T-07", how="fax")  # type: ignore[arg-type]
    ReceiptPrinted(anna, terminal="T-07", mail="x")  # type: ignore[call-arg]
    ReceiptPrinted(anna, "T-07")  # type: ignore[call-arg, arg-type]
    printed.copies = 3  # type: ignore[misc]


def built_in_events(tracker: Tracker) -> None:
    assert_type(tracker.added_to_cart(anna, sku="A", quantity=Decimal(1), final_unit_price=price), Receipt)
    tracker.added_to_cart(anna, sku="A", quantity=1.5, final_unit_price=price)  # type: ignore[arg-type]
    tracker.added_to_cart(anna, sku="A", quantity=1)  # type: ignore[call-arg]
    tea = Product(sku="A", name="Tea", quantity="1", final_unit_price=price)
    tracker.transaction(anna, order_id="1", payment_method="CASH", source=Source.POS, products=[tea])


def the_client(plain: Tracker, bound: BoundTracker) -> None:
    anything: Tracker = bound
    anything.custom(anna, action="a")
    assert_type(plain.custom(client=anna, action="a"), Receipt)
    plain.custom(action="a")  # type: ignore[call-arg]
    plain.custom(anna, action="a", colour="red")  # type: ignore[call-arg]
    assert_type(bound.custom(action="a"), Receipt)
    bound.custom(anna, action="a")
    bound.custom(action=1)  # type: ignore[arg-type]
    bound.custom()  # type: ignore[call-arg]
    assert_type(bound.login(anna), Receipt)


def drop_staff(record: Record) -> Record | None:
    return None if record.client.custom_id == "staff" else record.replace(label="x")


def privacy() -> None:
    Tracker(before_record=drop_staff, redact=["phone"], debug=True)
    Tracker(before_record=lambda record: 7)  # type: ignore[arg-type, return-value]


def outbox(tracker: Tracker, connection: sqlite3.Connection) -> None:
    box = Outbox(tracker, paramstyle="qmark")
    assert_type(box.add(connection, ReceiptPrinted(anna, terminal="T-07")), str | None)
    assert_type(box.drain(connection), Drained)
    box.run(lambda: sqlite3.connect("shop.db"), threading.Event())
    Outbox(tracker, paramstyle="question mark")  # type: ignore[arg-type]


def tests() -> None:
    with capture_events() as tracked:
        tracked.tracker.track(ReceiptPrinted(anna, terminal="T-07"))
    assert_tracked(tracked, ReceiptPrinted, terminal="T-07", times=1)
    assert_tracked(tracked, AddedToCart(anna, sku="A", quantity=1, final_unit_price=price))
    assert_tracked(tracked, 7)  # type: ignore[arg-type]
