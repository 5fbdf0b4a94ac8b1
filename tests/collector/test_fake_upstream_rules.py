"""What the stand-in accepts as a record (API reference notes, 4 to 6, 9.3, 9.7)."""

from collections import Counter
from copy import deepcopy
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.testing.profiles import check_profile
from collector.testing.rules import EVENT_TYPES, check_event, check_transaction, null_in, parse_time
from collector.testing.switches import Switches
from tests.collector.fake_upstream_client import cart, event, transaction

REQUIRED = {
    "application-started": {"applicationName": "till", "version": "1"},
    "added-to-cart": cart()["params"],
    "removed-from-cart": cart()["params"],
    "assigned-to-company": {"companyId": 7},
    "appeared-in-location": {"lat": 52.2, "lon": 21},
    "recommendation-view": {"items": ["A-1"]},
    "item-search-click": {"item": "A-1"},
}
GONE = object()


def fields(record: Any, **switches: Any) -> list[str]:
    return [problem.field for problem in check_event(record, None, Switches.of(switches), Counter())]


def changed(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    record = deepcopy(record)
    target: Any = record
    *parents, last = path.split(".")
    for name in parents:
        target = target[int(name)] if name.isdigit() else target[name]
    if value is GONE:
        del target[last]
    else:
        target[last] = value
    return record


@pytest.mark.parametrize("type_", sorted(EVENT_TYPES))
def test_every_event_type_is_known_and_good_with_what_it_requires(type_: str) -> None:
    record = event(type=type_, action=None, params=REQUIRED.get(type_, {}))
    assert check_event(record, type_, Switches(), Counter()) == []
    assert fields(record, push_type="segment") == []


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("label", "", "label"),
        ("label", GONE, "label"),
        ("label", 7, "label"),
        ("type", "bought", "type"),
        ("type", GONE, "type"),
        ("action", GONE, "action"),
        ("action", "", "action"),
        ("action", "a" * 33, "action"),
        ("action", "receipt printed", "action"),
        ("action", "receipt\n", "action"),
        ("action", "zażółć", "action"),
        ("params", [], "params"),
        ("client", GONE, "client"),
        ("client", "anna", "client"),
        ("client", {}, "client"),
        ("client", {"phone": "+48123456789"}, "client"),
        ("client", {"id": "7"}, "client.id"),
        ("client", {"id": True}, "client.id"),
        ("client", {"id": 2**63}, "client.id"),
        ("client", {"email": "anna"}, "client.email"),
        ("client", {"email": "anna@example.com\n"}, "client.email"),
        ("client", {"email": "an\ufeffna@example.com"}, "client.email"),
        ("client", {"customId": ""}, "client.customId"),
        ("client", {"customId": "a\u00adb"}, "client.customId"),
        ("client", {"customId": "\U0001f600"}, "client.customId"),
        ("client", {"uuid": "0D5F3B8E-1C2D-4E5F-8A9B-0C1D2E3F4A5B"}, "client.uuid"),
        ("time", 1_777_888_999, "time"),
        ("time", "2026-05-04T09:53:56.999", "time"),
        ("time", "2022-10-14T15:00:000+01:00", "time"),
        ("time", "2026-13-04T09:53:56Z", "time"),
        ("time", "2026-05-04T09:53:56Z\n", "time"),
        ("eventSalt", 7, "eventSalt"),
    ],
)
def test_a_bad_event_is_refused_by_its_field(path: str, value: Any, field: str) -> None:
    assert fields(changed(event(), path, value)) == [field]


@pytest.mark.parametrize("client", [{"id": 7}, {"email": "a@b.pl"}, {"email": "anna@[10.0.0.1]"}, {"customId": "ż"}])
def test_every_identifier_is_enough_alone(client: dict[str, Any]) -> None:
    assert fields(event(client=client)) == []


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("params", GONE, "params"),
        ("params.sku", GONE, "params.sku"),
        ("params.sku", 7, "params.sku"),
        ("params.quantity", "2", "params.quantity"),
        ("params.quantity", True, "params.quantity"),
        ("params.finalUnitPrice", 12.5, "params.finalUnitPrice"),
        ("params.finalUnitPrice.amount", -1, "params.finalUnitPrice.amount"),
        ("params.finalUnitPrice.currency", GONE, "params.finalUnitPrice.currency"),
        ("params.finalUnitPrice.currency", "zł", "params.finalUnitPrice.currency"),
        ("action", "product.addToCart", "action"),
    ],
)
def test_a_bad_cart_event_is_refused_by_its_field(path: str, value: Any, field: str) -> None:
    assert fields(changed(cart(), path, value)) == [field]


def test_recommended_keys_are_only_noted() -> None:
    notes: Counter[str] = Counter()
    record = changed(changed(cart(), "params.source", GONE), "params.name", GONE)
    assert check_event(record, None, Switches(), notes) == []
    assert notes == {"added-to-cart without source": 1, "added-to-cart without name": 1}


def test_the_other_url_key_of_a_cart_is_noted_either_way() -> None:
    record = changed(cart(), "params.url", "https://example.com/a-1")
    for position, noted in (("ItemUrlAddress", 1), ("url", 0)):
        notes: Counter[str] = Counter()
        assert check_event(record, None, Switches.of({"cart_url": position}), notes) == []
        assert len(notes) == noted


def test_params_email_must_be_the_clients_unless_the_switch_says_otherwise() -> None:
    record = event(client={"email": "anna@example.com"}, params={"email": "ola@example.com"})
    assert fields(record) == ["params.email"]
    assert fields(record, params_email="accept") == []
    assert fields(event(client={"customId": "C"}, params={"email": "ola@example.com"})) == []


def test_open_types_follow_their_switches() -> None:
    push = event(type="push/viewed", action=None)
    assert (fields(push), fields(push, push_type="segment")) == (["type"], [])
    view = event(type="recommendation-view", action=None)
    assert (fields(view), fields(view, recommendation_view_type="custom")) == ([], ["type"])


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("orderId", GONE, "orderId"),
        ("orderId", 7, "orderId"),
        ("paymentInfo", GONE, "paymentInfo"),
        ("paymentInfo", {}, "paymentInfo.method"),
        ("source", "SHOP", "source"),
        ("source", GONE, "source"),
        ("revenue", GONE, "revenue"),
        ("value", 3, "value"),
        ("revenue.amount", -0.01, "revenue.amount"),
        ("revenue.currency", "EUR", "revenue.currency"),
        ("discountAmount", {"amount": 0, "currency": "PLN"}, "discountAmount.amount"),
        ("discountAmount", {"amount": 1}, "discountAmount.currency"),
        ("metadata", [], "metadata"),
        ("recordedAt", "yesterday", "recordedAt"),
        ("products", GONE, "products"),
        ("products", [], "products"),
        ("products", [7], "products[0]"),
        ("products.1.sku", GONE, "products[1].sku"),
        ("products.0.name", 7, "products[0].name"),
        ("products.0.quantity", GONE, "products[0].quantity"),
        ("products.1.finalUnitPrice", GONE, "products[1].finalUnitPrice"),
        ("products.0.regularPrice", {"amount": 1}, "products[0].regularPrice.currency"),
        ("products.0.categories", "Drinks", "products[0].categories"),
        ("products.0.tax", "23", "products[0].tax"),
    ],
)
def test_a_bad_transaction_is_refused_by_its_field(path: str, value: Any, field: str) -> None:
    assert [problem.field for problem in check_transaction(changed(transaction(), path, value))] == [field]


def test_free_keys_and_a_null_discount_are_welcome_in_a_transaction() -> None:
    record = changed(transaction(), "products.0.shelf", {"row": 7})
    record["discountAmount"] = None
    assert check_transaction(record) == []
    assert null_in(record, "discountAmount") is None
    assert null_in(record) == "discountAmount"


def test_a_null_is_found_wherever_it_hides() -> None:
    assert null_in({"params": {"tags": ["a", {"b": None}]}}) == "params.tags[1].b"
    assert null_in({"params": {"discountAmount": None}}, "discountAmount") == "params.discountAmount"
    assert null_in({"label": "null"}) is None


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({}, ""),
        ({"email": "anna"}, "email"),
        ({"phone": "12345"}, "phone"),
        ({"customId": "C", "firstName": ""}, "firstName"),
        ({"customId": "C", "sex": "female"}, "sex"),
        ({"customId": "C", "birthDate": "1990-2-1"}, "birthDate"),
        ({"customId": "C", "birthDate": "1899-12-31"}, "birthDate"),
        ({"customId": "C", "agreements": {"email": "yes"}}, "agreements.email"),
        ({"customId": "C", "agreements": {"post": True}}, "agreements.post"),
        ({"customId": "C", "attributes": {"a\n": 1}}, "attributes"),
        ({"customId": "C", "attributes": {"a": ""}}, "attributes.a"),
        ({"customId": "C", "tags": "vip"}, "tags"),
        ({"clientId": "7"}, "clientId"),
    ],
)
def test_a_bad_profile_is_refused_by_its_field(record: dict[str, Any], field: str) -> None:
    assert [problem.field for problem in check_profile(record)] == [field]


def test_a_profile_may_reset_fields_with_null() -> None:
    assert check_profile({"customId": "C", "city": None, "agreements": {"sms": 1}, "attributes": {"shoe": None}}) == []


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2100, 1, 1), timezones=zones))
def test_times_are_compared_as_instants_cut_to_milliseconds(moment: datetime) -> None:
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert parse_time(moment.isoformat()) == expected
    assert parse_time(moment.astimezone(UTC).isoformat().replace("+00:00", "z")) == expected
