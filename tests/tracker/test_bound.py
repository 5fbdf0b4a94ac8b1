"""The client of a request: bound by context, looked up late, merged at the login."""

import asyncio
import contextvars
import logging
import threading
from decimal import Decimal

import pytest

from tracker import BoundTracker, Client, InvalidRecord, MissingArgument, Money, Tracker, bound_client, testing
from tracker.bound import Binding, anonymous_uuid, bound

UUID = "57a1b2c3-0000-4000-8000-00000000abcd"
ANNA = Client(email="anna@example.com")
AWAY = "http://127.0.0.1:9"


@pytest.fixture
def tracker():
    tracker = BoundTracker(AWAY, close_timeout=0)
    yield tracker
    tracker.close()


def test_a_client_left_out_is_the_bound_one_and_a_given_one_wins(tracker):
    ola = Client(custom_id="C-2")
    with testing.capture_events() as tracked, bound_client(ANNA):
        tracker.product_view(product_id="A-1")
        tracker.product_view(None, product_id="A-1")
        tracker.product_view(client=None, product_id="A-1")
        tracker.product_view(ola, product_id="A-1")
        tracker.product_view(client=ola, product_id="A-1")
        with bound_client(ola):
            tracker.searched()
        tracker.searched()
    owners = [next(iter(record["client"].values())) for record in tracked]
    assert owners == ["anna@example.com"] * 3 + ["C-2"] * 3 + ["anna@example.com"]


def test_where_nothing_is_bound_a_missing_client_is_a_mistake_and_says_what_to_do(tracker):
    with pytest.raises(MissingArgument, match=r"^client: is required: nothing is bound here; .*bound_client"):
        tracker.searched()
    with pytest.raises(MissingArgument, match=r"^client: is required$"):
        Tracker(AWAY).searched()
    with pytest.raises(MissingArgument), bound_client(ANNA):
        thread_error = []

        def elsewhere():
            try:
                tracker.searched()
            except MissingArgument as error:
                thread_error.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        raise thread_error[0]


def test_a_missing_argument_is_still_named(tracker):
    with bound_client(ANNA), pytest.raises(MissingArgument, match=r"^sku: is required$"):
        tracker.added_to_cart(quantity=1, final_unit_price=Money("1", "PLN"))


def test_a_visitor_nobody_knows_costs_the_record_and_not_the_page(eventually):
    failures = []
    tracker = BoundTracker(AWAY, on_error=failures.append, close_timeout=0)
    with bound(Binding()):
        assert tracker.client is None
        price = Money(Decimal("1234567890.12345678901234567890"), "PLN")
        receipt = tracker.added_to_cart(sku="A-1", quantity=2, final_unit_price=price)
        with pytest.raises(InvalidRecord, match=r"^quantity: "):
            tracker.added_to_cart(sku="A-1", quantity="many", final_unit_price=price)
    assert receipt.error.reason == "refused"
    counted = tracker.counters()
    assert (counted.tracked, counted.refused, counted.waiting) == (1, 1, 0)
    eventually(lambda: failures)
    [failure] = failures
    assert "no _snrs_uuid cookie" in failure.message
    assert "client" not in failure.record
    assert b"1234567890.12345678901234567890" in failure.body
    tracker.close()


def test_the_client_is_looked_up_once_and_only_when_something_is_tracked(tracker):
    asked = []

    def find():
        asked.append(1)
        return ANNA

    with testing.capture_events() as tracked, bound(Binding(find, UUID)):
        assert asked == []
        tracker.searched()
        tracker.searched()
    assert asked == [1]
    assert [record["client"] for record in tracked] == [{"email": "anna@example.com"}] * 2


def test_a_function_that_fails_is_logged_without_what_it_said_and_the_page_goes_on(tracker, caplog):
    def find():
        raise KeyError("anna@example.com")

    with caplog.at_level(logging.ERROR), bound(Binding(find, UUID)):
        receipt = tracker.searched()
        assert tracker.searched().error is not None
    assert receipt.error.message == "the function that tells the client failed with KeyError"
    assert "anna" not in caplog.text
    assert len(caplog.records) == 1


def test_a_login_carries_both_identifiers_and_what_follows_is_the_customers(tracker):
    with testing.capture_events() as tracked, bound(Binding(None, UUID)):
        tracker.searched()
        tracker.login(ANNA, source="WEB_DESKTOP", params={"method": "password"})
        tracker.searched()
    assert [record["client"] for record in tracked] == [
        {"uuid": UUID},
        {"uuid": UUID, "email": "anna@example.com"},
        {"email": "anna@example.com"},
    ]
    assert tracked[1]["type"] == "logged-in"
    assert tracked[1]["params"] == {"source": "WEB_DESKTOP", "method": "password"}


def test_a_login_without_a_cookie_is_a_login(tracker):
    with testing.capture_events() as tracked, bound(Binding()):
        tracker.login(ANNA)
        assert tracker.client == ANNA
    assert [record["client"] for record in tracked] == [{"email": "anna@example.com"}]


def test_merging_needs_a_uuid_and_somebody_known():
    assert Client(custom_id="C", email="a@b.pl").merged(UUID) == Client(custom_id="C", email="a@b.pl", uuid=UUID)
    assert ANNA.merged(Client(uuid=UUID)).uuid == UUID
    with pytest.raises(InvalidRecord, match=r"^anonymous: must have a uuid"):
        ANNA.merged(ANNA)
    with pytest.raises(InvalidRecord, match=r"^client: must have email"):
        Client(uuid=UUID).merged(UUID)
    with pytest.raises(InvalidRecord, match=r"^uuid: "):
        ANNA.merged("no")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (f"_snrs_uuid={UUID}", UUID),
        (f"a=b; _snrs_uuid={UUID}; c=d", UUID),
        (f"a=b;_snrs_uuid={UUID}", UUID),
        (f"x_snrs_uuid={UUID}", None),
        (f"_snrs_uuid={UUID}0", None),
        (f"_snrs_uuid={UUID.upper()}", None),
        ("_snrs_uuid=' OR 1=1", None),
        ("", None),
        (None, None),
    ],
)
def test_a_cookie_the_api_would_refuse_is_no_cookie(header, found):
    assert anonymous_uuid(header) == found


async def test_tasks_and_threads_of_a_request_share_its_client_and_other_requests_do_not(tracker):
    async def request(n):
        with bound_client(Client(custom_id=f"C-{n}")):
            await asyncio.sleep(0)
            await asyncio.gather(asyncio.create_task(part(n)), asyncio.to_thread(tracker.custom, action="thread"))

    async def part(n):
        tracker.bind(Client(custom_id=f"D-{n}"))
        tracker.custom(action="task")

    with testing.capture_events() as tracked:
        await asyncio.gather(*(request(n) for n in range(50)))
    tasks = sorted(record["client"]["customId"] for record in tracked if record["action"] == "task")
    assert tasks == sorted(f"D-{n}" for n in range(50))
    assert sum(record["action"] == "thread" for record in tracked) == 50
    with pytest.raises(MissingArgument):
        contextvars.Context().run(tracker.bind, ANNA)
