"""`tracker.testing` is part of the product and tested like it."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest

from tracker import Client, InvalidRecord, Money, Product, Tracker
from tracker.testing import FrozenClock, capture_events, numbered_salts

ANNA = Client(email="anna@example.com")


def shop_code():
    """Knows nothing of tests."""
    with Tracker("http://127.0.0.1:9") as tracker:
        tracker.searched(ANNA, params={"query": "tea"})
        tracker.transaction(
            ANNA,
            order_id="1",
            payment_method="CASH",
            source="POS",
            products=[Product(sku="A", name="Tea", quantity=1, final_unit_price=Money("12.50", "PLN"))],
        )


def test_code_with_a_tracker_of_its_own_is_captured():
    with capture_events() as tracked:
        shop_code()
    assert [record["params"]["query"] for record in tracked.of_type("searched")] == ["tea"]
    assert [record["orderId"] for record in tracked.transactions] == ["1"]
    assert len(tracked) == 2


def test_captured_receipts_are_durable_at_once():
    with capture_events() as tracked:
        receipt = tracked.tracker.searched(ANNA)
        assert receipt.wait(0)
        assert asyncio.run(receipt.durably(0))


def test_a_frozen_clock_and_numbered_salts_make_records_predictable():
    clock = FrozenClock(datetime(2026, 5, 4, 9, 53, 56, 999_000, UTC))
    with capture_events(clock=clock, salts=numbered_salts("T-")) as tracked:
        tracked.tracker.searched(ANNA)
        clock.advance(timedelta(seconds=1))
        tracked.tracker.searched(ANNA)
    assert [(record["time"], record["eventSalt"]) for record in tracked] == [
        ("2026-05-04T09:53:56.999Z", "T-1"),
        ("2026-05-04T09:53:57.999Z", "T-2"),
    ]


def test_a_frozen_clock_moves_only_when_told():
    clock = FrozenClock()
    wall, boot = clock.wall_ms(), clock.boot_ms()
    clock.advance(timedelta(seconds=2))
    assert (clock.wall_ms() - wall, clock.boot_ms() - boot) == (2000, 2000)
    clock.set(datetime(2020, 1, 1, tzinfo=UTC))
    assert (clock.wall_ms(), clock.boot_ms() - boot) == (1_577_836_800_000, 2000)


def test_arguments_are_checked_while_capturing():
    with capture_events() as tracked, pytest.raises(InvalidRecord):
        tracked.tracker.custom(ANNA, action="not allowed")
    assert tracked == []


def test_other_threads_are_captured_too():
    with capture_events() as tracked:
        worker = threading.Thread(target=shop_code)
        worker.start()
        worker.join()
    assert len(tracked) == 2


def test_captures_nest_and_end():
    with capture_events() as outer:
        with capture_events() as inner:
            inner.tracker.searched(ANNA)
        outer.tracker.searched(ANNA)
    assert (len(inner), len(outer)) == (1, 1)
    with Tracker("http://127.0.0.1:9", close_timeout=0) as tracker:
        tracker.searched(ANNA)
    assert (len(inner), len(outer)) == (1, 1)


def test_disabled_trackers_are_captured(monkeypatch):
    """Test runs often set TILLPOST_DISABLED for everything."""
    monkeypatch.setenv("TILLPOST_DISABLED", "1")
    with capture_events() as tracked:
        shop_code()
    assert len(tracked) == 2
