"""The pytest plugin, as a suite of somebody else's uses it: in a pytest of its own, warnings as errors."""

import pytest

from collector.pytest_plugin import RunningCollector
from tracker import Client, CustomEvent, Money, Product, Tracker, Transaction
from tracker.events import AddedToCart, Registered
from tracker.testing import assert_not_tracked, assert_tracked, capture_events

pytest_plugins = ["pytester"]

ANNA = Client(email="anna@example.com")
PRICE = Money("12.50", "PLN")

SHOP = """
import threading
from tracker import Client, Tracker

tracker = Tracker("http://127.0.0.1:9", close_timeout=0)

def register():
    return tracker.registered(Client(email="anna@example.com"), params={"shop": 7})
"""


def run(pytester: pytest.Pytester, *options: str, **files: str) -> pytest.RunResult:
    pytester.makepyfile(**files)
    others = ("cacheprovider", "xdist", "asyncio", "timeout", "anyio", "hypothesispytest")
    without = [option for other in others for option in ("-p", f"no:{other}")]
    return pytester.runpytest_subprocess("-W", "error", "--strict-markers", *without, *options)


def test_a_suite_that_does_not_use_it_loads_nothing_of_us(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        test_alone="""
import sys

def test_nothing_is_loaded():
    assert not {"tracker", "aiohttp", "msgspec", "aiosqlite"} & set(sys.modules)

def test_capturing_loads_no_collector(tracked_events):
    assert "tracker" in sys.modules
    assert not {"aiohttp", "aiosqlite", "collector.app"} & set(sys.modules)
""",
    )
    result.assert_outcomes(passed=2)


def test_the_fixtures_capture_assert_and_run_the_real_thing(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        shop=SHOP,
        test_shop="""
import shop, threading, urllib.error, urllib.request
import pytest
from tracker import Client, Tracker
from tracker.events import Registered
from tracker.testing import assert_tracked

ANNA = Client(email="anna@example.com")

def test_captured(tracked_events):
    shop.register()
    worker = threading.Thread(target=shop.register)
    worker.start()
    worker.join()
    record = assert_tracked(tracked_events, Registered, client=ANNA, params={"shop": 7}, times=2)
    assert record["params"] == {"shop": 7}

def test_that_fails(tracked_events):
    shop.register()
    assert_tracked(tracked_events, Registered, client=ANNA, params={"shop": 8})

def test_end_to_end(tillpost_collector):
    with Tracker() as tracker:  # TILLPOST_URL is set
        tracker.registered(ANNA)
    [stored] = tillpost_collector.delivered()
    assert_tracked([stored], Registered, client=ANNA)
    with pytest.raises(TimeoutError, match="1 records stored"):
        tillpost_collector.delivered(at_least=2, timeout=0.05)

def test_sends_the_api_something_illegal(fake_upstream):
    request = urllib.request.Request(fake_upstream.url + "/v4/events/batch", b"[]", method="POST")
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request)
""",
    )
    result.assert_outcomes(passed=3, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*params.shop: 8 expected, 7 tracked*"])
    result.stdout.fnmatch_lines(["the API would not have taken this:"])


GUARDED = """
import shop, pytest, threading

@pytest.fixture
def registered():
    shop.register()

def test_sends_and_hides_every_error():
    try:
        shop.register()
    except BaseException:
        pass

def test_sends_from_a_thread():
    worker = threading.Thread(target=shop.register)
    worker.start()
    worker.join()

def test_sends_in_a_fixture(registered):
    pass

def test_that_fails_anyway():
    shop.register()
    assert False

def test_sends_nothing_and_does_not_answer_for_the_one_before():
    pass

def test_captured(tracked_events):
    shop.register()

@pytest.mark.tillpost_sends
def test_may_send():
    assert shop.register().error is None

def test_end_to_end(tillpost_collector):
    with tillpost_collector.tracker() as tracker:
        tracker.registered(shop.Client(email="anna@example.com"))
    assert len(tillpost_collector.delivered()) == 1
"""


def test_the_guard_fails_tests_that_would_really_send(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--tillpost-guard", shop=SHOP, test_guarded=GUARDED)
    result.assert_outcomes(passed=4, failed=3, errors=1)
    result.stdout.fnmatch_lines(["this would really have been sent:", "*registered at *shop.py:7"])


@pytest.mark.parametrize(("ini", "outcome"), [("true", "failed"), ("false", "passed")])
def test_the_guard_is_switched_on_in_the_configuration_and_off_without(
    pytester: pytest.Pytester, ini: str, outcome: str
) -> None:
    pytester.makeini(f"[pytest]\ntillpost_guard = {ini}")
    result = run(pytester, shop=SHOP, test_sends="import shop\n\ndef test_sends():\n    shop.register()")
    result.assert_outcomes(**{outcome: 1})


# The assertions by themselves


class ReceiptPrinted(CustomEvent, action="receipt.printed"):
    """A receipt left the printer."""

    terminal: str
    copies: int = 1


def tea(**changes: object) -> Product:
    return Product(**({"sku": "A", "name": "Tea", "quantity": 2, "final_unit_price": PRICE} | changes))  # type: ignore[arg-type]


@pytest.fixture
def day() -> list[dict[str, object]]:
    """A shop's day."""
    with capture_events() as tracked, Tracker("http://127.0.0.1:9") as tracker:
        tracker.added_to_cart(ANNA, sku="A-1", quantity="2.0", final_unit_price=PRICE, source="POS")
        tracker.added_to_cart(ANNA, sku="A-2", quantity=1, final_unit_price=PRICE)
        tracker.track(ReceiptPrinted(ANNA, terminal="T-07"))
        tracker.custom(ANNA, action="till.opened", params={"float": 100, "by": "Ola"})
        tracker.transaction(ANNA, order_id="1", payment_method="CASH", source="POS", products=[tea()])
    return tracked


class Anything:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


def test_values_are_compared_as_they_are_sent(day: list[dict[str, object]]) -> None:
    """2 and "2.0", 12.5 and 12.50, a text and its enum, a list and a tuple are the same on the wire."""
    assert_tracked(day, AddedToCart, sku="A-1", quantity=2, final_unit_price=Money("12.5", "PLN"), source="POS")
    assert_tracked(day, Transaction, products=[tea(quantity="2")], revenue=Money(25, "PLN"), payment_method="CASH")


@pytest.mark.parametrize(
    ("expected", "fields", "times"),
    [
        (AddedToCart, {}, 2),
        (AddedToCart, {"client": ANNA, "sku": "A-2"}, 1),
        (AddedToCart(ANNA, sku="A-2", quantity=1, final_unit_price=PRICE), {}, 1),
        (AddedToCart(ANNA, sku="A-1", quantity=2, final_unit_price=PRICE), {}, 0),
        ("added-to-cart", {"sku": "A-1"}, 1),
        (ReceiptPrinted, {"terminal": "T-07", "copies": 1}, 1),
        ("receipt.printed", {"terminal": "T-07"}, 1),
        ("till.opened", {"params": {"by": "Ola"}}, 1),
        ("till.opened", {"params": {"by": Anything()}}, 1),
        (ReceiptPrinted, {"terminal": Anything()}, 1),
        ("transaction", {"order_id": "1"}, 1),
        (Transaction, {"products": [tea(name="Coffee")]}, 0),
        (Registered, {}, 0),
    ],
)
def test_records_are_found_by_class_by_example_and_by_name(
    day: list[dict[str, object]], expected: object, fields: dict[str, object], times: int
) -> None:
    assert_tracked(day, expected, times=times, **fields)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        assert_tracked(day, expected, times=times + 1, **fields)  # type: ignore[arg-type]
    if times:
        assert assert_tracked(day, expected, **fields) in day  # type: ignore[arg-type]
        with pytest.raises(AssertionError):
            assert_not_tracked(day, expected, **fields)  # type: ignore[arg-type]
    else:
        assert_not_tracked(day, expected, **fields)  # type: ignore[arg-type]


def test_a_difference_names_the_field_and_both_values_nearest_record_first(day: list[dict[str, object]]) -> None:
    with pytest.raises(AssertionError) as failed:
        assert_tracked(day, AddedToCart, sku="A-2", quantity=3, source="POS")
    assert str(failed.value).splitlines() == [
        "no added-to-cart like this was tracked",
        "    type: 'added-to-cart'",
        "    params.sku: 'A-2'",
        "    params.quantity: 3",
        "    params.source: 'POS'",
        "tracked: added-to-cart (2), receipt.printed (1), till.opened (1), transaction (1)",
        "  added-to-cart:",
        "    params.sku: 'A-2' expected, 'A-1' tracked",
        "    params.quantity: 3 expected, 2.0 tracked",
        "  added-to-cart:",
        "    params.quantity: 3 expected, 1 tracked",
        "    params.source: 'POS' expected, nothing tracked",
    ]


def test_a_field_the_class_does_not_have_is_the_tests_mistake(day: list[dict[str, object]]) -> None:
    with pytest.raises(TypeError, match="AddedToCart has no field skew: it has client, "):
        assert_tracked(day, AddedToCart, skew="A-1")
    with pytest.raises(TypeError, match="not both"):
        assert_tracked(day, Registered(ANNA), label="x")


def test_assertions_read_what_the_api_has_stored_too(tillpost_collector: RunningCollector) -> None:
    with tillpost_collector.tracker() as tracker:
        tracker.transaction(ANNA, order_id="1", payment_method="CASH", source="POS", products=[tea()])
        tracker.track(ReceiptPrinted(ANNA, terminal="T-07"))
        stored = tillpost_collector.delivered()
    assert_tracked(stored, Transaction, order_id="1", products=[tea()], times=1)
    assert_tracked(stored, ReceiptPrinted(ANNA, terminal="T-07"), times=1)
