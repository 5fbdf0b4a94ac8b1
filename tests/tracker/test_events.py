"""Every event type against the table of the API reference, Event kinds, written down here a second time."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from uuid import UUID

import msgspec
import pytest

from tracker import Client, InvalidRecord, MissingArgument, Money, Product, Source, Tracker, events, wire
from tracker.testing import FrozenClock, capture_events, numbered_salts

ANNA = Client(email="anna@example.com")
PRICE = Money("12.50", "PLN")
ON_WIRE = {"amount": 12.5, "currency": "PLN"}
TEA = Product(sku="A-1", name="Tea", quantity=2, final_unit_price=PRICE)

CART = {
    "sku": ("sku", "A-1"),
    "quantity": ("quantity", 2),
    "final_unit_price": ("finalUnitPrice", PRICE),
    "source": ("source", "POS"),
    "name": ("name", "Tea"),
    "regular_unit_price": ("regularUnitPrice", PRICE),
    "discounted_unit_price": ("discountedUnitPrice", PRICE),
    "category": ("category", "Drinks"),
    "categories": ("categories", ["Drinks", "Drinks > Tea"]),
    "producer": ("producer", "ACME"),
    "offline": ("offline", True),
    "url": ("ItemUrlAddress", "https://shop.example/tea"),
}
SOURCE = {"source": ("source", "WEB_MOBILE")}
PUSH = {
    "id": ("id", "1"),
    "campaign_name": ("campaignName", "Spring"),
    "variant_id": ("variantId", "2"),
    "variant_name": ("variantName", "B"),
    "title": ("title", "Hello"),
    "os": ("os", "android"),
    "journey_id": ("journeyId", "3"),
    **SOURCE,
}
RECOMMENDATION = {
    "product_id": ("productId", "A-1"),
    "name": ("name", "Tea"),
    "source": ("source", "WEB_DESKTOP"),
    "campaign_hash": ("campaignHash", "abc"),
    "campaign_id": ("campaignId", "7"),
    "category": ("category", "Drinks"),
    "url": ("url", "https://shop.example/tea"),
}
TABLE = {
    "application-started": {
        "application_name": ("applicationName", "till"),
        "version": ("version", "1.2"),
        "sdk_version": ("sdkVersion", "3"),
        "sdk_version_code": ("sdkVersionCode", "30"),
        "app_version_code": ("appVersionCode", "12"),
        "device_id": ("deviceID", "T-07"),
        "device_model": ("deviceModel", "M"),
        "device_manufacturer": ("deviceManufacturer", "N"),
        "device_resolution": ("deviceResolution", "1x1"),
        "device_type": ("deviceType", "till"),
        "os": ("os", "windows"),
        "os_version": ("osVersion", "11"),
        "os_language": ("osLanguage", "pl"),
    },
    "registered": SOURCE,
    "logged-in": SOURCE,
    "logged-out": SOURCE,
    "added-to-cart": CART,
    "removed-from-cart": CART,
    "added-to-favorites": {
        "sku": ("sku", "A-1"),
        "name": ("name", "Tea"),
        "final_unit_price": ("finalUnitPrice", PRICE),
        **SOURCE,
    },
    "product-view": {
        "product_id": ("productId", "A-1"),
        "name": ("name", "Tea"),
        "category": ("category", "Drinks"),
        "url": ("url", "https://shop.example/tea"),
        "campaign_hash": ("campaignHash", "abc"),
        "from_recommendation": ("fromRecommendation", True),
        **SOURCE,
    },
    "assigned-to-company": {"company_id": ("companyId", 17)},
    "appeared-in-location": {"lat": ("lat", 52.25), "lon": ("lon", 21), "application_id": ("applicationId", "a")},
    "push/received": {**PUSH, "message_id": ("messageId", "m")},
    "push/viewed": PUSH,
    "push/clicked": PUSH,
    "push/cancelled": PUSH,
    "cancelled-transaction": {
        "order_id": ("orderId", "T-07/1"),
        "order_status": ("orderStatus", "returned"),
        "discount_amount": ("discountAmount", PRICE),
        "discount_percent": ("discountPercent", 10),
        "discount_code": ("discountCode", "SPRING"),
        "value": ("value", PRICE),
        "revenue": ("revenue", PRICE),
        "products": ("products", [TEA]),
        "payment_method": ("paymentInfo", "CASH"),
        **SOURCE,
    },
    "hit-timer": {},
    "searched": SOURCE,
    "shared": SOURCE,
    "visited-screen": {"screen_name": ("screenName", "cart"), **SOURCE},
    "recommendation-view": {
        "items": ("items", ["A-1", "B-9"]),
        "campaign_id": ("campaignId", "7"),
        "correlation_id": ("correlationId", "c"),
    },
    "item-search-click": {
        "correlation_id": ("correlationId", "c"),
        "item": ("item", "A-1"),
        "position": ("position", 1),
        "search_type": ("searchType", "full-text-search"),
    },
    "recommendation-seen": RECOMMENDATION,
    "recommendation-click": RECOMMENDATION,
    "custom": {},
}
REQUIRED = {
    "application-started": {"application_name", "version"},
    "added-to-cart": {"sku", "quantity", "final_unit_price"},
    "removed-from-cart": {"sku", "quantity", "final_unit_price"},
    "appeared-in-location": {"lat", "lon"},
    "custom": {"action"},
}
DEPRECATED = {"recommendation-seen", "recommendation-click"}
CLASSES = {cls.type: cls for cls in events.ALL}


def arguments(event_type: str, names: set[str] | None = None) -> dict[str, object]:
    given = {name: value for name, (_, value) in TABLE[event_type].items() if names is None or name in names}
    return given | ({"action": "receipt.printed"} if event_type == "custom" else {})


def method(event_type: str) -> str:
    return re.sub("[-/]", "_", event_type)


def track(event_type: str, **more: object) -> dict[str, object]:
    """One record as it would be sent."""
    with capture_events(clock=FrozenClock(), salts=numbered_salts()) as tracked:
        if event_type in DEPRECATED:
            tracked.tracker.track(CLASSES[event_type](ANNA, **more))
        else:
            getattr(tracked.tracker, method(event_type))(ANNA, **more)
    return tracked[0]


def test_there_is_a_class_for_every_type_of_the_api_and_for_no_other():
    assert set(CLASSES) == set(TABLE) == {*wire.EVENT_ACTIONS, "custom"}


@pytest.mark.parametrize("event_type", TABLE)
def test_every_known_key_reaches_the_wire(event_type):
    record = track(event_type, **arguments(event_type))
    expected = {}
    for key, value in TABLE[event_type].values():
        expected[key] = ON_WIRE if value is PRICE else value
    if event_type == "application-started":
        expected["appVersion"] = "1.2"
    if event_type == "cancelled-transaction":
        expected["paymentInfo"] = {"method": "CASH"}
        expected["products"] = [{"sku": "A-1", "name": "Tea", "quantity": 2, "finalUnitPrice": ON_WIRE}]
    assert record.pop("params") == expected
    assert record.pop("label")
    if event_type == "custom":
        assert record.pop("action") == "receipt.printed"
    assert record == {
        "type": event_type,
        "time": "2026-05-04T09:53:56.999Z",
        "eventSalt": "salt-1",
        "client": {"email": "anna@example.com"},
    }


@pytest.mark.parametrize("event_type", TABLE)
def test_nothing_but_the_required_keys_is_sent_unless_given(event_type):
    required = REQUIRED.get(event_type, set())
    params = track(event_type, **arguments(event_type, required))["params"]
    assert set(params) == {TABLE[event_type][name][0] for name in required - {"action"}} | (
        {"appVersion"} if event_type == "application-started" else set()
    )


FREE = [
    None,
    {},
    {"terminal": "T-07"},
    {"a": {}, "b": "{}}", "c": [], "zażółć 🫖": 'quote " and \\ and \u2028', "d": {"e": [1, 2.5, {"f": True}]}},
    {"price": PRICE, "decimal": Decimal("0.10"), "uuid": UUID(int=1), "big": 2**63 - 1, "last": {"x": {}}},
]


@pytest.mark.parametrize("free", FREE)
@pytest.mark.parametrize("label", [None, 'Label "7" ☕'])
@pytest.mark.parametrize("event_type", TABLE)
def test_the_short_way_to_bytes_says_exactly_what_the_long_way_says(event_type, label, free):
    """Events whose fields are sent as they are go without the dict that hooks and assertions see."""
    long_way = msgspec.json.Encoder(decimal_format="number").encode
    for names in (REQUIRED.get(event_type, set()), None):
        event = CLASSES[event_type](ANNA, label=label, params=free, **arguments(event_type, names))
        assert event._encoded("2026-05-04T09:53:56.999Z", "s") == long_way(event.wire("2026-05-04T09:53:56.999Z", "s"))


def test_a_large_record_leaves_nothing_behind_in_the_next_ones():
    def said(filling: str) -> dict[str, object]:
        return track("searched", params={"filling": filling, "more": {}})["params"]

    for filling in ("x" * 900_000, "ą" * 5_000, "", "x" * 700, "{}"):
        assert said(filling) == {"filling": filling, "more": {}}


@pytest.mark.parametrize("event_type", TABLE)
def test_none_means_not_given(event_type):
    optional = dict.fromkeys(set(TABLE[event_type]) - REQUIRED.get(event_type, set()))
    more = {"label": None, "params": None, "time": None, "salt": None}
    required = arguments(event_type, REQUIRED.get(event_type, set()))
    assert "null" not in json.dumps(track(event_type, **required, **optional, **more))


@pytest.mark.parametrize(
    ("event_type", "name"), [(kind, name) for kind, names in REQUIRED.items() for name in sorted(names)]
)
def test_a_required_argument_left_out_or_none_is_refused(event_type, name):
    given = arguments(event_type)
    with pytest.raises(InvalidRecord, match=f"^{name}: is required$"):
        CLASSES[event_type](ANNA, **{**given, name: None})
    del given[name]
    with pytest.raises(MissingArgument, match=f"^{name}: is required$"):
        getattr(Tracker(), method(event_type))(ANNA, **given)
    with pytest.raises(TypeError, match=name):
        CLASSES[event_type](ANNA, **given)


@pytest.mark.parametrize(
    ("event_type", "name"), [(kind, name) for kind, names in TABLE.items() for name in names if name != "company_id"]
)
def test_a_value_of_another_type_is_refused_by_name(event_type, name):
    with pytest.raises(InvalidRecord, match=f"^{name}: must ") as refused:
        CLASSES[event_type](ANNA, **{**arguments(event_type), name: object()})
    assert refused.value.field == name


@pytest.mark.parametrize("event_type", sorted(set(TABLE) - DEPRECATED))
def test_the_methods_show_the_arguments_of_their_class(event_type):
    import inspect

    shown = list(inspect.signature(getattr(Tracker, method(event_type))).parameters)
    assert shown == ["self", *CLASSES[event_type].__struct_fields__]
    assert getattr(Tracker, method(event_type)).__doc__


def test_an_unknown_argument_is_a_type_error():
    with pytest.raises(TypeError, match=r"colour"):
        Tracker().searched(ANNA, colour="red")


def test_labels_are_sensible_unless_given():
    assert track("added-to-cart", **arguments("added-to-cart"))["label"] == "Added to cart"
    assert track("push/viewed")["label"] == "Push viewed"
    assert track("custom", action="receipt.printed")["label"] == "receipt.printed"
    assert track("custom", action="receipt.printed", label="Printed")["label"] == "Printed"


@pytest.mark.parametrize("label", ["", 7, "\ud800"])
def test_a_label_has_at_least_one_character(label):
    with pytest.raises(InvalidRecord, match=r"^label: "):
        events.Searched(ANNA, label=label)


@pytest.mark.parametrize("action", ["", "a b", "x" * 33, "zażółć", "a/b", "a\n", None, 7])
def test_an_action_keeps_to_the_pattern(action):
    with pytest.raises(InvalidRecord, match=r"^action: (must be 1 to 32 of the characters|is required)"):
        events.Custom(ANNA, action=action)


@pytest.mark.parametrize("action", ["a", "x" * 32, "A.b-c_9"])
def test_an_action_within_the_pattern_is_taken(action):
    assert track("custom", action=action)["action"] == action


def test_a_charge_is_no_custom_event():
    with pytest.raises(InvalidRecord, match=r"no product.buy events; use transaction"):
        events.Custom(ANNA, action="transaction.charge")


@pytest.mark.parametrize("name", ["modifiedBy", "apiKey", "eventUUID", "ip", "time", "businessProfileId"])
def test_reserved_names_are_refused(name):
    with pytest.raises(InvalidRecord, match=rf"^params\.{name}: is reserved"):
        events.HitTimer(ANNA, params={name: "x"})


def test_a_reserved_name_deeper_down_is_free():
    assert track("hit-timer", params={"trip": {"time": 5}})["params"] == {"trip": {"time": 5}}


@pytest.mark.parametrize(
    ("event_type", "key", "argument"),
    [
        ("added-to-cart", "finalUnitPrice", "final_unit_price"),
        ("added-to-cart", "ItemUrlAddress", "url"),
        ("product-view", "url", "url"),
        ("application-started", "appVersion", "version"),
        ("cancelled-transaction", "paymentInfo", "payment_method"),
    ],
)
def test_a_known_key_among_the_free_ones_is_refused_and_its_argument_named(event_type, key, argument):
    with pytest.raises(InvalidRecord, match=rf"^params\.{key}: has an argument of its own: give {argument}="):
        CLASSES[event_type](ANNA, **arguments(event_type), params={key: "x"})


def test_an_email_among_the_params_equals_the_clients():
    with pytest.raises(InvalidRecord, match=r"^params\.email: must equal the client's email") as refused:
        events.Searched(ANNA, params={"email": "bob@example.com"})
    assert "bob" not in str(refused.value)
    assert track("searched", params={"email": "anna@example.com"})["params"] == {"email": "anna@example.com"}
    assert events.Searched(Client(id=7), params={"email": "bob@example.com"})


class Colour(Enum):
    RED = "red"


def test_params_take_what_json_can_say_and_the_types_people_have():
    params = {
        "text": "zażółć 🫖",
        "int": 7,
        "float": 1.5,
        "bool": True,
        "list": [1, ["a", {"b": False}]],
        "decimal": Decimal("0.10"),
        "big": Decimal("1E+3"),
        "money": PRICE,
        "when": datetime(2026, 5, 4, 11, 53, 56, 999_499, timezone(timedelta(hours=2))),
        "uuid": UUID(int=1),
        "colour": Colour.RED,
        "source": Source.POS,
        "empty": {},
    }
    assert track("custom", action="a", params=params)["params"] == {
        **params,
        "decimal": 0.1,
        "big": 1000,
        "money": ON_WIRE,
        "when": "2026-05-04T09:53:56.999Z",
        "uuid": "00000000-0000-0000-0000-000000000001",
        "colour": "red",
        "source": "POS",
    }


deep: list[object] = []
for _ in range(40):
    deep = [deep]
cyclic: dict[str, object] = {}
cyclic["again"] = cyclic


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"a": None}, "params.a"),
        ({"a": [1, None]}, "params.a[1]"),
        ({"a": {"b": None}}, "params.a.b"),
        ({"a": float("nan")}, "params.a"),
        ({"a": float("inf")}, "params.a"),
        ({"a": Decimal("NaN")}, "params.a"),
        ({"a": 2**63}, "params.a"),
        ({"a": datetime(2026, 5, 4)}, "params.a"),
        ({"a": object()}, "params.a"),
        ({"a": {1, 2}}, "params.a"),
        ({"a": b"x"}, "params.a"),
        ({"a": "\ud800"}, "params.a"),
        ({7: "a"}, "params"),
        ({"\ud800": "a"}, "params (a key)"),
        ([("a", 1)], "params"),
    ],
)
def test_params_json_cannot_say_are_refused_by_place(params, field):
    with pytest.raises(InvalidRecord) as refused:
        events.Custom(ANNA, action="a", params=params)
    assert refused.value.field == field


@pytest.mark.parametrize("params", [{"a": deep}, cyclic])
def test_what_is_nested_without_end_is_refused(params):
    with pytest.raises(InvalidRecord, match=r"nested deeper than 32 levels"):
        events.Custom(ANNA, action="a", params=params)


def test_what_happens_to_the_params_after_the_call_changes_nothing():
    params = {"a": [1]}
    event = events.Custom(ANNA, action="a", params=params)
    params["a"].append(None)
    assert event.params == {"a": [1]}


@pytest.mark.parametrize("quantity", [1.0, True, None, "two", Decimal("NaN"), -1, "-0.5"])
def test_a_quantity_is_exact_and_not_negative(quantity):
    with pytest.raises(InvalidRecord, match=r"^quantity: "):
        events.AddedToCart(ANNA, sku="A", quantity=quantity, final_unit_price=PRICE)


def test_quantities_are_numbers_on_the_wire():
    for given, sent in [("1.250", 1.25), (Decimal("0.5"), 0.5), (3, 3)]:
        record = track("added-to-cart", sku="A", quantity=given, final_unit_price=PRICE)
        assert record["params"]["quantity"] == sent


def test_one_event_has_one_currency():
    with pytest.raises(InvalidRecord, match=r"^regular_unit_price\.currency: must be PLN"):
        events.AddedToCart(ANNA, sku="A", quantity=1, final_unit_price=PRICE, regular_unit_price=Money(1, "EUR"))
    with pytest.raises(InvalidRecord, match=r"^revenue\.currency: must be PLN"):
        events.CancelledTransaction(ANNA, products=[TEA], revenue=Money(1, "EUR"))


def test_a_discount_is_more_than_nothing():
    with pytest.raises(InvalidRecord, match=r"^discount_amount: must be more than 0, or be left out"):
        events.CancelledTransaction(ANNA, discount_amount=Money(0, "PLN"))


@pytest.mark.parametrize("position", [0, -1, 1.0, "1"])
def test_positions_count_from_one(position):
    with pytest.raises(InvalidRecord, match=r"^position: must be"):
        events.ItemSearchClick(ANNA, position=position)


def test_a_source_is_one_of_the_apis():
    assert events.Searched(ANNA, source=Source.POS) == events.Searched(ANNA, source="POS")
    with pytest.raises(InvalidRecord, match=r"WEB_DESKTOP, WEB_MOBILE, MOBILE_APP, POS, MOBILE, DESKTOP"):
        events.Searched(ANNA, source="TILL")


def test_the_time_given_is_kept_in_utc_with_milliseconds():
    when = datetime(2026, 5, 4, 11, 53, 56, 999_999, timezone(timedelta(hours=2)))
    assert track("searched", time=when)["time"] == "2026-05-04T09:53:56.999Z"


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        (datetime(2026, 5, 4), "a naive datetime does not say which hour it means"),
        ("2026-05-04T09:53:56.999Z", "must be an aware datetime, not str"),
        (1777888436, "must be an aware datetime, not int"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))), "must lie in the years 1 to 9999"),
    ],
)
def test_other_times_are_refused(when, reason):
    with pytest.raises(InvalidRecord, match=f"^time: {reason}"):
        events.Searched(ANNA, time=when)


@pytest.mark.parametrize("salt", ["", "x" * 129, "żółć", "a\nb", "a\x00", 7])
def test_a_salt_is_short_ascii(salt):
    with pytest.raises(InvalidRecord, match=r"^salt: must be 1 to 128 printable ASCII characters"):
        events.Searched(ANNA, salt=salt)


@pytest.mark.parametrize("salt", ["a", "T-07/000123", "x" * 128])
def test_your_own_salt_is_kept(salt):
    assert track("searched", salt=salt)["eventSalt"] == salt


def test_the_client_must_be_a_client():
    with pytest.raises(InvalidRecord, match=r"^client: must be a Client"):
        events.Searched("anna@example.com")


def test_two_events_of_one_client_and_millisecond_have_two_salts():
    with capture_events(clock=FrozenClock()) as tracked:
        for _ in range(1000):
            tracked.tracker.searched(ANNA)
    assert len({record["time"] for record in tracked}) == 1
    assert len({record["eventSalt"] for record in tracked}) == 1000


def test_a_record_no_request_could_hold_is_refused():
    with capture_events() as tracked, pytest.raises(InvalidRecord, match=r"at most 999998 bytes"):
        tracked.tracker.custom(ANNA, action="a", params={"a": "x" * 1_000_000})


def test_track_refuses_what_is_no_record():
    with pytest.raises(InvalidRecord, match=r"^record: must be an event or a Transaction, not dict"):
        Tracker().track({"type": "searched"})


def test_track_takes_a_time_and_a_salt_too():
    with capture_events() as tracked:
        tracked.tracker.track(events.Searched(ANNA), time=datetime(2026, 5, 4, tzinfo=UTC), salt="mine")
    assert tracked[0]["time"] == "2026-05-04T00:00:00.000Z"
    assert tracked[0]["eventSalt"] == "mine"


def test_events_show_their_fields_and_no_values():
    event = events.AddedToCart(ANNA, sku="secret", quantity=1, final_unit_price=PRICE, params={"secret": 1})
    assert "secret" not in repr(event) + str(event) + repr(event.__rich_repr__())
    assert repr(event).startswith("AddedToCart(client=…, params=…, sku=…")


def test_events_are_values():
    one, other = (events.Searched(ANNA, source="POS") for _ in range(2))
    assert one == other
    with pytest.raises(AttributeError):
        one.source = "WEB_MOBILE"
    assert msgspec.structs.replace(one, source="MOBILE").source is Source.MOBILE
