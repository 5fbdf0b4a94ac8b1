"""`before_record`, `redact` and `debug`: what an application does to records before anybody sees them."""

import logging
from collections.abc import Callable

import pytest

from collector.pytest_plugin import RunningCollector
from tracker import Client, Failure, InvalidRecord, Money, Product, Tracker
from tracker.events import Registered
from tracker.record import Record
from tracker.testing import Captured

ANNA = Client(email="anna@example.com")
PRICE = Money("12.50", "PLN")
NOBODY_LISTENS = "http://127.0.0.1:9"


def hashed(record: Record) -> Record | None:
    """An application's own hook: no staff, and no e-mail addresses."""
    if record.client.email == "staff@example.com":
        return None
    return record.replace(client=Client(custom_id="hash-of-it"))


def test_a_hook_changes_what_is_sent_and_the_collector_never_sees_the_original(
    tillpost_collector: RunningCollector,
) -> None:
    with tillpost_collector.tracker(before_record=hashed) as tracker:
        tracker.registered(ANNA)
    [record] = tillpost_collector.delivered(at_least=1)
    assert record["client"] == {"customId": "hash-of-it"}


def test_a_hook_drops_a_record_without_a_failure_and_it_is_counted(tracked_events: Captured) -> None:
    failures: list[Failure] = []
    with Tracker(NOBODY_LISTENS, before_record=hashed, on_error=failures.append) as tracker:
        receipt = tracker.registered(Client(email="staff@example.com"))
        assert (receipt.durable, receipt.wait(0)) == (False, False)
        assert receipt.error is not None
        assert receipt.error.reason == "before_record"
        counters = tracker.counters()
    assert (counters.tracked, counters.dropped, tracked_events, failures) == (1, 1, [], [])


def fails(_: Record) -> Record:
    raise LookupError("anna@example.com")


def returns_a_dict(_: Record) -> Record:
    return {}  # type: ignore[return-value]


def makes_it_too_large(record: Record) -> Record:
    return record.replace(params={"text": "x" * 1_000_000})


def makes_it_invalid(record: Record) -> Record:
    return record.replace(label="")


@pytest.mark.parametrize("hook", [fails, returns_a_dict, makes_it_too_large, makes_it_invalid])
def test_a_failing_hook_never_reaches_the_sale_and_nothing_leaves_unchanged(
    hook: Callable[[Record], Record], tracked_events: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[Failure] = []
    with Tracker(NOBODY_LISTENS, before_record=hook, on_error=failures.append) as tracker:
        for _ in range(3):
            assert tracker.registered(ANNA).error is not None
        counters = tracker.counters()
    assert (counters.tracked, counters.dropped, tracked_events) == (3, 3, [])
    assert [failure.reason for failure in failures] == ["before_record"] * 3
    assert failures[0].record["client"] == {"email": "anna@example.com"}
    assert len(caplog.messages) == 1, "one line, however often it fails"
    assert "anna" not in caplog.text


def test_redacted_names_are_left_out_wherever_they_stand(tracked_events: Captured) -> None:
    tea = Product(sku="A", name="Tea", quantity=1, final_unit_price=PRICE, extra={"note": "x", "shelf": 3})
    with Tracker(NOBODY_LISTENS, redact=["phone", "note", "name"]) as tracker:
        tracker.custom(ANNA, action="a.b", params={"phone": "1", "deep": [{"phone": "2", "kept": True}], "kept": 1})
        tracker.added_to_cart(ANNA, sku="A", name="Tea", quantity=1, final_unit_price=PRICE)
        tracker.transaction(
            ANNA, order_id="1", payment_method="CASH", source="POS", products=[tea], metadata={"note": "x", "till": 7}
        )
        tracker.cancelled_transaction(ANNA, products=[tea])
    custom, cart, sale, cancelled = tracked_events
    assert custom["params"] == {"deep": [{"kept": True}], "kept": 1}
    assert set(cart["params"]) == {"sku", "quantity", "finalUnitPrice"}
    assert sale["metadata"] == {"till": 7}
    kept = {"sku", "name", "quantity", "finalUnitPrice", "shelf"}
    assert (set(sale["products"][0]), set(cancelled["params"]["products"][0])) == (kept, kept)


@pytest.mark.parametrize(
    ("names", "rule"),
    [("phone", "not one string"), (["sku"], "requires it of"), ([7], "strings"), (["lat"], "requires")],
)
def test_a_redaction_that_could_not_be_kept_is_refused_at_once(names: list[str], rule: str) -> None:
    with pytest.raises(InvalidRecord, match=f"redact: .*{rule}"):
        Tracker(NOBODY_LISTENS, redact=names)


def test_debug_shows_each_record_exactly_as_it_is_sent_and_only_when_asked(
    tillpost_collector: RunningCollector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with tillpost_collector.tracker(debug=True, redact=["phone"]) as tracker:
        receipt = tracker.registered(ANNA, params={"phone": "1", "till": 7})
    [entry] = tillpost_collector.upstream.entries if tillpost_collector.delivered(at_least=1) else []
    [shown] = [record for record in caplog.records if record.name == "tracker.debug"]
    assert shown.levelno == logging.DEBUG
    assert shown.getMessage() == f"POST /v4/events/batch {entry.raw.decode()}"
    assert receipt.salt in shown.getMessage()
    caplog.clear()
    with tillpost_collector.tracker() as tracker:
        tracker.registered(ANNA)
    assert "anna" not in caplog.text


def test_debug_that_nobody_would_see_says_how_to_see_it(caplog: pytest.LogCaptureFixture) -> None:
    Tracker(NOBODY_LISTENS, debug=True)
    assert "tracker.debug" in caplog.text


def test_replace_checks_anew_and_takes_optional_fields_out() -> None:
    record = Registered(ANNA, label="x", params={"a": 1})
    assert record.replace(label=None, params={"b": 2}) == Registered(ANNA, params={"b": 2})
    with pytest.raises(InvalidRecord, match="label"):
        record.replace(label="")
