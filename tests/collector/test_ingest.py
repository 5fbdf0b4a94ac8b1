"""Requests in, parcels or refusals out."""

import json
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.config import Config
from collector.ingest import Ingest, Intake
from collector.kinds import KINDS, Run
from collector.refusals import Refused
from tests.collector.surface import NOW_MS, FixedClock
from tracker.time import format_ms
from tracker.wire import EVENT_ACTIONS, EVENTS_BATCH, TRANSACTIONS_BATCH

TIME = "2026-05-04T09:53:56.999Z"
TIME_MS = 1_777_888_436_999
UUID = "07243772-008a-42e1-ba37-c3807cebde8f"
PRICE = {"amount": 12.5, "currency": "PLN"}
EVENT: dict[str, Any] = {
    "type": "logged-in",
    "label": "in",
    "client": {"customId": "C-1"},
    "time": TIME,
    "eventSalt": "s",
}
CART = EVENT | {"type": "added-to-cart", "params": {"sku": "A", "quantity": 1.5, "finalUnitPrice": PRICE}}
CUSTOM = EVENT | {"type": "custom", "action": "receipt.printed"}
SALE: dict[str, Any] = {
    "client": {"email": "anna@example.com"},
    "orderId": "T-07/000123",
    "recordedAt": TIME,
    "eventSalt": "pos-1",
    "source": "POS",
    "paymentInfo": {"method": "CASH"},
    "revenue": PRICE,
    "value": PRICE,
    "products": [{"sku": "A", "name": "Tea", "quantity": 2, "finalUnitPrice": PRICE}],
}


def ingest(now_ms: int | None = NOW_MS, **sections: Any) -> Ingest:
    return Ingest(msgspec.convert(sections, Config), FixedClock(), lambda: now_ms)


def read(body: Any, path: str = EVENTS_BATCH, headers: dict[str, str] | None = None, **sections: Any) -> Intake:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ingest(**sections).read(path, data, headers or {})


def stored(*args: Any, **kwargs: Any) -> list[bytes]:
    return [record for parcel in read(*args, **kwargs).parcels for record in parcel.records]


def one(*args: Any, **kwargs: Any) -> Any:
    [record] = stored(*args, **kwargs)
    return json.loads(record)


def refused(*args: Any, status: int = 400, **kwargs: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        read(*args, **kwargs)
    assert caught.value.status == status
    return caught.value


def fields(*args: Any, **kwargs: Any) -> list[str]:
    return [error["field"] for error in refused(*args, **kwargs).errors]


# What is accepted, and that it stays as it is

scalars = st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)
clients = st.fixed_dictionaries(
    {},
    optional={
        "id": st.integers(-(2**63), 2**63 - 1),
        "uuid": st.uuids().map(str),
        "customId": st.from_regex(r"[ -~ą-ž]+", fullmatch=True).filter(str.strip),
        "email": st.from_regex(r"[a-z%ü]{1,9}(\.[a-z+_-]{1,5})?@[a-z]{1,9}\.[a-z]{2,5}", fullmatch=True),
        "phone": st.text(),
    },
).filter(lambda client: set(client) - {"phone"})
times = st.sampled_from(["", ".1", ".999", ".123456789"]).flatmap(
    lambda fraction: st.sampled_from(["Z", "z", "+02:00", "-11:30"]).map(
        lambda zone: f"2026-05-01T23:59:07{fraction}{zone}"
    )
)
kinds_of_event = st.sampled_from(
    sorted(set(EVENT_ACTIONS) - {"push/received", "push/viewed", "push/clicked", "push/cancelled"})
)


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    params = draw(st.dictionaries(st.text().filter(lambda key: key != "email"), values, max_size=3))
    params |= {
        "sku": "A",
        "quantity": 1,
        "finalUnitPrice": PRICE,
        "applicationName": "a",
        "version": "1",
        "lat": 1,
        "lon": 2,
    }
    event = {
        "client": draw(clients),
        "label": draw(st.text(min_size=1)),
        "params": params,
        "type": draw(kinds_of_event),
    }
    if draw(st.booleans()):
        event |= {"type": "custom", "action": draw(st.from_regex(r"[a-z._-]{1,32}", fullmatch=True))}
    event |= {"time": draw(times), "eventSalt": draw(st.text(min_size=1, max_size=50))}
    extra = draw(st.dictionaries(st.text().filter(lambda key: key not in {*event, "action"}), values, max_size=2))
    return extra | event


layouts = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])


@settings(max_examples=60)
@given(st.lists(events(), max_size=6), layouts)
def test_complete_records_are_stored_byte_for_byte(batch: list[dict[str, Any]], layout: dict[str, Any]) -> None:
    texts = [json.dumps(event, **layout) for event in batch]
    intake = read(("[" + " ,\n".join(texts) + "]\n").encode())
    assert intake.count == len(batch)
    assert sorted(record for parcel in intake.parcels for record in parcel.records) == sorted(t.encode() for t in texts)
    for parcel in intake.parcels:
        order = [texts.index(record.decode()) for record in parcel.records]
        assert order == sorted(order) or len(set(texts)) < len(texts)
        names = {"+".join(sorted(set(json.loads(r)["client"]) - {"phone"})) for r in parcel.records}
        assert names == {parcel.lane.identifier}
        assert sum(run.count for run in parcel.runs) == len(parcel.records)
        latest = max(map(KINDS["events"].time_ms, parcel.records))
        assert parcel.runs == [Run(len(parcel.records), latest, None, 0)]


@settings(max_examples=60)
@given(events(), st.sampled_from(["left out", "null", "given"]), st.sampled_from(["left out", "null", "given"]))
def test_completing_adds_what_is_missing_and_changes_nothing_else(event: dict[str, Any], time: str, salt: str) -> None:
    state = {"time": time, "eventSalt": salt}
    missing = {key for key, how in state.items() if how != "given"}
    sent = {key: None if key in missing else value for key, value in event.items() if state.get(key) != "left out"}
    record = one([sent])
    added = {key: record.pop(key) for key in missing}
    assert record == {key: value for key, value in event.items() if key not in missing}
    assert added.get("time", format_ms(NOW_MS)) == format_ms(NOW_MS)
    assert "eventSalt" not in added or uuid.UUID(added["eventSalt"]).version == 7


def test_values_nobody_asked_to_change_keep_their_spelling() -> None:
    params = b'"params":{"n":1.10,"big":123456789012345678901234567890,"e":1E2, "t" : [ ]}'
    start = rb'{"label":"\u0041","type":"custom","action":"a.b","client":{"id":7},' + params
    [record] = stored(b"[" + start + b"}]")
    assert record.startswith(start + b',"time":"')


def test_salts_we_make_are_different_and_time_ordered_uuids() -> None:
    records = [json.loads(r) for r in stored([{k: v for k, v in CUSTOM.items() if k != "eventSalt"}] * 50)]
    salts = [uuid.UUID(record["eventSalt"]) for record in records]
    assert len(set(salts)) == 50
    assert {(salt.version, salt.int >> 80) for salt in salts} == {(7, NOW_MS)}


def test_an_empty_batch_is_no_parcel() -> None:
    assert read([]) == Intake([], 0, None)
    assert read(b" [ ] ", TRANSACTIONS_BATCH) == Intake([], 0, None)


def test_more_than_a_thousand_records_of_mixed_clients_are_sorted_into_lanes() -> None:
    batch = [CUSTOM | {"client": c} for c in ({"id": 1}, {"email": "a@b.pl"}, {"uuid": UUID, "email": "a@b.pl"})] * 700
    parcels = read(batch).parcels
    assert {str(parcel.lane): len(parcel.records) for parcel in parcels} == {
        "events/id/live": 700,
        "events/email/live": 700,
        "events/email+uuid/live": 700,
    }


def test_the_priority_comes_from_the_header() -> None:
    assert (
        str(read([SALE], TRANSACTIONS_BATCH, {"Tillpost-Priority": "bulk"}).parcels[0].lane)
        == "transactions/email/bulk"
    )
    assert "Tillpost-Priority" in refused([SALE], TRANSACTIONS_BATCH, {"Tillpost-Priority": "urgent"}).message


@pytest.mark.parametrize(
    "extra",
    [{"discountAmount": None}, {"metadata": {"x": 1}}, {"discountAmount": {"amount": 0.01, "currency": "PLN"}},
     {"type": "sale", "action": 5}, {"eventSalt": None, "recordedAt": None}],
)  # fmt: skip
def test_a_transaction_may_have_these(extra: dict[str, Any]) -> None:
    record = one([SALE | extra], TRANSACTIONS_BATCH)
    given_ = {key: value for key, value in (SALE | extra).items() if value is not None}
    assert record == {"eventSalt": record["eventSalt"], "recordedAt": record["recordedAt"]} | given_


def test_keys_only_the_vendors_validator_wants_are_not_asked_for() -> None:
    bare = [{"type": t, "label": "x", "client": {"id": 1}, "params": {}} for t in EVENT_ACTIONS]
    needy = {"application-started", "added-to-cart", "removed-from-cart", "appeared-in-location"}
    assert read([event for event in bare if event["type"] not in needy]).count == len(bare) - len(needy)
    assert read([{"type": "appeared-in-location", "label": "x", "client": {"id": 1}}]).count == 1


# Nulls


def test_nulls_that_mean_not_given_are_taken_out() -> None:
    client = {"id": None, "uuid": None, "customId": "C", "email": None, "phone": None}
    record = one([CUSTOM | {"time": None, "eventSalt": None, "params": None, "client": client}])
    assert record["client"] == {"customId": "C"}
    assert "params" not in record and record["time"] == format_ms(NOW_MS)


@pytest.mark.parametrize("spoiled", [{"params": {"a": {"b": [1, None]}}}, {"extra": None}, {"label": None}])
def test_other_nulls_are_refused_with_the_way_out(spoiled: dict[str, Any]) -> None:
    [error] = refused([CUSTOM, CUSTOM | spoiled]).errors
    assert error["field"] in ("[1].params.a.b[1]", "[1].extra", "[1].label")
    assert 'ingest.nulls = "drop"' in error["message"]


def test_nulls_are_dropped_when_configured() -> None:
    params = {"a": {"b": [1, None, {"c": None}], "text": "null"}, "d": None, "n": 1.10}
    record = one([CUSTOM | {"params": params, "x": None}], ingest={"nulls": "drop"})
    assert record["params"] == {"a": {"b": [1, {}], "text": "null"}, "n": 1.1}
    assert "x" not in record
    assert fields([CUSTOM | {"label": None}], ingest={"nulls": "drop"}) == ["[0].label"]


def test_the_word_null_in_a_text_is_no_null() -> None:
    assert one([CUSTOM | {"label": "null"}])["label"] == "null"


# Types, actions, identifiers


@pytest.mark.parametrize("given_action", [{}, {"action": "push.view"}])
def test_push_events_travel_as_custom_with_the_official_action(given_action: dict[str, Any]) -> None:
    for path, event in ((EVENTS_BATCH, [EVENT | {"type": "push/viewed"} | given_action]),
                        ("/v4/events/push/viewed", EVENT | given_action)):  # fmt: skip
        record = one(event, path)
        assert record == EVENT | {"type": "custom", "action": "push.view"}


def test_types_are_mapped_as_configured() -> None:
    types = {"push/viewed": "push/viewed", "recommendation-view": "recommendation.view", "searched": "custom:a.b"}

    def mapped(event_type: str) -> Any:
        record = one([EVENT | {"type": event_type, "params": {}}], upstream={"types": types})
        return record["type"], record.get("action")

    assert mapped("push/viewed") == ("push/viewed", None)
    assert mapped("push/clicked") == ("custom", "push.click")
    assert mapped("recommendation-view") == ("recommendation.view", None)
    assert mapped("searched") == ("custom", "a.b")
    assert mapped("shared") == ("shared", None)


def test_an_action_equal_to_the_types_own_is_taken_out_and_another_refused() -> None:
    assert one([EVENT | {"action": "client.login"}]) == EVENT
    assert fields([EVENT | {"action": "client.logout"}, EVENT | {"action": ""}]) == ["[0].action", "[1].action"]


def test_a_single_path_overrules_the_type_in_the_body() -> None:
    assert one(EVENT | {"type": "nonsense"}, "/v4/events/logged-out") == EVENT | {"type": "logged-out"}


def test_a_single_fault_has_no_index() -> None:
    assert fields(EVENT | {"label": ""}, "/v4/events/logged-in") == ["label"]
    assert fields(SALE | {"source": "SHOP"}, "/v4/transactions") == ["source"]
    assert refused(b"{", "/v4/transactions").errors[0]["field"] == ""


@pytest.mark.parametrize(
    ("client", "kept", "lane"),
    [
        ({"email": "a@b.pl", "customId": "C", "uuid": UUID, "id": 1, "phone": "5"}, {"id": 1, "phone": "5"}, "id"),
        ({"email": "a@b.pl", "customId": "C", "uuid": UUID}, {"uuid": UUID}, "uuid"),
        ({"email": "a@b.pl", "customId": "C"}, {"customId": "C"}, "customId"),
        ({"email": "a@b.pl"}, {"email": "a@b.pl"}, "email"),
    ],
)
def test_only_the_first_identifier_stays_when_configured(client: Any, kept: Any, lane: str) -> None:
    [parcel] = read([CUSTOM | {"client": client}], upstream={"identifiers": "first"}).parcels
    assert json.loads(parcel.records[0]) == CUSTOM | {"client": kept}
    assert parcel.lane.identifier == lane


# Times


def test_times_without_a_header_are_given_and_ours_are_stamped() -> None:
    untimed = {key: value for key, value in CUSTOM.items() if key != "time"}
    later = CUSTOM | {"time": "2026-05-04T11:53:57.5+02:00"}
    [parcel] = read([CUSTOM, later, untimed, untimed, CUSTOM]).parcels
    ours = NOW_MS - 1_000_000
    assert parcel.runs == [
        Run(2, TIME_MS + 501, None, 0),
        Run(2, NOW_MS, "our-boot", ours),
        Run(1, TIME_MS, None, 0),
    ]


def test_the_header_says_which_times_the_sender_stamped() -> None:
    headers = {"Tillpost-Clock": "boot=b-1; offset=77; now=99; given=0-1,3"}
    untimed = {key: value for key, value in CUSTOM.items() if key != "time"}
    intake = read([CUSTOM, CUSTOM, CUSTOM, CUSTOM, untimed], EVENTS_BATCH, headers)
    assert intake.clock is not None and (intake.clock.boot, intake.clock.now_ms) == ("b-1", 99)
    assert intake.parcels[0].runs == [
        Run(2, TIME_MS, None, 0),
        Run(1, TIME_MS, "b-1", 77),
        Run(1, TIME_MS, None, 0),
        Run(1, NOW_MS, "our-boot", NOW_MS - 1_000_000),
    ]


@pytest.mark.parametrize(
    "header", ["", "boot=b", "boot=b; offset=1; now=2; given=x", "boot=b; offset=1; now=2; given=1"]
)
def test_a_clock_header_that_cannot_be_meant_is_refused(header: str) -> None:
    assert "Tillpost-Clock" in refused([CUSTOM], EVENTS_BATCH, {"Tillpost-Clock": header}).message


@pytest.mark.parametrize(
    "time",
    [
        "2026-05-04T09:53:56",
        "2026-05-04 09:53:56Z",
        "2026-05-04T09:53Z",
        "2026-05-04T09:53:56+0100",
        "2026-05-04T09:53:56+01",
        "2026-05-04",
        "2026-13-04T09:53:56Z",
        "2026-02-30T09:53:56.000Z",
        "2026-05-04T24:00:00Z",
        "2022-10-14T15:00:000+01:00",
        "2026-05-04T09:53:56.999Z\n",
        "２０26-05-04T09:53:56Z",
        "yesterday",
        "",
        1777888436999,
        True,
    ],
)
def test_what_is_no_time_of_the_api_is_refused(time: Any) -> None:
    assert fields([CUSTOM, CUSTOM | {"time": time}, CUSTOM]) == ["[1].time"]
    assert fields([SALE | {"recordedAt": time}], TRANSACTIONS_BATCH) == ["[0].recordedAt"]


def test_a_time_too_far_ahead_is_refused_once_our_clock_is_known() -> None:
    edge, beyond = format_ms(NOW_MS + 86_400_000), format_ms(NOW_MS + 86_400_001)
    assert read([CUSTOM | {"time": edge}]).count == 1
    assert fields([CUSTOM, CUSTOM | {"time": beyond}, CUSTOM | {"time": "2027-01-01T00:00:00+01:00"}]) == [
        "[1].time",
        "[2].time",
    ]
    assert ingest(None).read(EVENTS_BATCH, json.dumps([CUSTOM | {"time": beyond}]).encode(), {}).count == 1


def test_a_stamp_from_a_wrong_clock_is_not_refused_for_it() -> None:
    headers = {"Tillpost-Clock": "boot=b-1; offset=77; now=99"}
    assert read([CUSTOM | {"time": "2031-01-01T00:00:00.000Z"}], EVENTS_BATCH, headers).count == 1


# What is refused


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"client": {}}, "client"),
        ({"client": {"phone": "5"}}, "client"),
        ({"client": "C-1"}, "client"),
        ({"client": {"id": "1"}}, "client.id"),
        ({"client": {"id": 2**63}}, "client.id"),
        ({"client": {"id": True}}, "client.id"),
        ({"client": {"email": "x"}}, "client.email"),
        ({"client": {"email": "a@b.pl\n"}}, "client.email"),
        ({"client": {"email": "a\ufeff@b.pl"}}, "client.email"),
        ({"client": {"uuid": UUID.upper()}}, "client.uuid"),
        ({"client": {"uuid": UUID[1:]}}, "client.uuid"),
        ({"client": {"customId": ""}}, "client.customId"),
        ({"client": {"customId": " "}}, "client.customId"),
        ({"client": {"customId": "a\nb"}}, "client.customId"),
        ({"client": {"customId": "a\u2028b"}}, "client.customId"),
        ({"client": {"customId": "\U0001f600"}}, "client.customId"),
        ({"client": {"customId": 5}}, "client.customId"),
        ({"label": ""}, "label"),
        ({"label": 5}, "label"),
        ({"type": "nope"}, "type"),
        ({"type": "completed-transaction"}, "type"),
        ({"type": 5}, "type"),
        ({"eventSalt": ""}, "eventSalt"),
        ({"eventSalt": 5}, "eventSalt"),
        ({"eventSalt": "x" * 2000}, "eventSalt"),
        ({"params": []}, "params"),
        ({"type": "custom", "action": "a b"}, "action"),
        ({"type": "custom", "action": "x" * 33}, "action"),
        ({"type": "custom", "action": "a.b\n"}, "action"),
        ({"type": "custom"}, "action"),
        ({"type": "recommendation-view"}, "params"),
        ({"type": "added-to-cart"}, "params"),
        ({"type": "added-to-cart", "params": CART["params"] | {"quantity": "2"}}, "params.quantity"),
        ({"type": "added-to-cart", "params": {"sku": "A", "quantity": 1}}, "params.finalUnitPrice"),
        ({"type": "added-to-cart", "params": CART["params"] | {"finalUnitPrice": PRICE | {"amount": -1}}},
         "params.finalUnitPrice.amount"),
        ({"type": "added-to-cart", "params": CART["params"] | {"finalUnitPrice": PRICE | {"currency": "P1N"}}},
         "params.finalUnitPrice.currency"),
        ({"type": "appeared-in-location", "params": {"lat": 1}}, "params.lon"),
        ({"type": "application-started", "params": {"applicationName": "a"}}, "params.version"),
        ({"client": {"email": "a@b.pl"}, "params": {"email": "b@b.pl"}}, "params.email"),
        ({"client": {"email": "a@b.pl"}, "params": {"email": 5}}, "params.email"),
    ],
)  # fmt: skip
def test_a_bad_event_is_named_by_index_and_field(change: dict[str, Any], field: str) -> None:
    [error] = refused([EVENT, EVENT | change, CART]).errors
    assert error["field"] == f"[1].{field}"
    assert error["code"] and error["message"]


def test_a_params_email_may_stand_where_the_client_has_none_or_the_same() -> None:
    same = {"client": {"email": "a@b.pl"}, "params": {"email": "a@b.pl"}}
    assert read([EVENT | same, EVENT | {"params": {"email": "x@b.pl"}}]).count == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"orderId": 5}, "orderId"),
        ({"paymentInfo": {}}, "paymentInfo.method"),
        ({"products": []}, "products"),
        ({"source": "SHOP"}, "source"),
        ({"metadata": []}, "metadata"),
        ({"revenue": {"amount": -1, "currency": "PLN"}}, "revenue.amount"),
        ({"revenue": {"amount": 1}}, "revenue.currency"),
        ({"revenue": {"amount": 1, "currency": "PL"}}, "revenue.currency"),
        ({"value": {"amount": 1, "currency": "EUR"}}, "value.currency"),
        ({"discountAmount": {"amount": 0, "currency": "PLN"}}, "discountAmount.amount"),
        ({"discountAmount": {"amount": 1, "currency": "EUR"}}, "discountAmount.currency"),
        ({"products": [SALE["products"][0] | {"sku": 5}]}, "products[0].sku"),
        ({"products": [SALE["products"][0], {"sku": "B"}]}, "products[1].name"),
        ({"products": [SALE["products"][0] | {"regularPrice": {"amount": 1, "currency": "EUR"}}]},
         "products[0].regularPrice.currency"),
        ({"products": [SALE["products"][0] | {"categories": "Drinks"}]}, "products[0].categories"),
    ],
)  # fmt: skip
def test_a_bad_transaction_is_named_by_index_and_field(change: dict[str, Any], field: str) -> None:
    assert fields([SALE, SALE | change], TRANSACTIONS_BATCH) == [f"[1].{field}"]


@pytest.mark.parametrize("key", ["orderId", "paymentInfo", "products", "revenue", "value", "source", "client"])
def test_a_transaction_needs_its_required_keys(key: str) -> None:
    [error] = refused([{k: v for k, v in SALE.items() if k != key}], TRANSACTIONS_BATCH).errors
    assert (error["field"], error["message"]) == (f"[0].{key}", "is required and missing: add it")


def test_every_bad_record_is_named_up_to_a_hundred() -> None:
    bad = [EVENT | {"label": ""}, EVENT, EVENT | {"client": {"email": "x"}}, EVENT | {"time": "now"}, 5]
    assert fields(bad) == ["[0].label", "[2].client.email", "[3].time", "[4]"]
    assert len(refused([EVENT | {"label": ""}] * 150).errors) == 100
    assert len(refused([EVENT | {"time": "2031-01-01T00:00:00Z"}] * 150).errors) == 100


def test_a_rejected_value_is_shown_unless_it_is_long_or_has_parts() -> None:
    def shown(label: Any) -> Any:
        return refused([EVENT | {"label": label}]).errors[0]["rejectedValue"]

    assert (shown(5), shown(""), shown({"a": 1})) == (5, "", None)
    assert refused([EVENT | {"client": {"email": "x" * 300}}]).errors[0]["rejectedValue"] is None


@pytest.mark.parametrize(
    "spoiled",
    [b'"\xff"', b'"\xed\xa0\x80"', rb'"\ud800"', rb'"\ude00"', b"NaN", b"-Infinity", b"1e999", b"-1E+999", b"[1,2e400]",
     b'{"\xff":1}', b'"\x01"', rb'"\x"', b"01", b"[" * 100_000 + b"]" * 100_000],
)  # fmt: skip
@pytest.mark.parametrize("layout", [b'"params":{"x":%s}', b'"extra": %s', b'"params" : {"a" : [ %s ] }'])
def test_what_is_no_json_to_pass_on_is_refused_by_index(spoiled: bytes, layout: bytes) -> None:
    start = json.dumps(CUSTOM).encode()
    bad = start[:-1] + b"," + layout.replace(b"%s", spoiled) + b"}"
    assert fields(b"[" + start + b" , " + bad + b"]") == ["[1]"]


def test_half_a_character_is_called_what_it_is() -> None:
    pair, lone, nan = rb'{"a":"\ud83d\ude00"}', rb'{"a":"\ud83d"}', rb'{"a":"\ud83d\ude00","b":NaN}'
    messages = [error["message"] for error in refused(b"[%s,%s,%s]" % (pair, lone, nan)).errors]
    assert ["lone surrogate" in message for message in messages] == [False, True, False]


def test_surrogate_pairs_and_large_numbers_are_fine() -> None:
    extra = rb'"a":"\ud83d\ude00","b":1e300,"c":-1E-999,"d":[1e5, 1e-7],"e":"x, e5 [e9 :e"'
    record = json.dumps(CUSTOM).encode()[:-1] + b"," + extra + b"}"
    assert stored(b"[" + record + b"]") == [record]


@pytest.mark.parametrize("key", ["client", "type", "time", "eventSalt"])
@pytest.mark.parametrize("escaped", [False, True])
def test_a_key_that_stands_twice_is_refused_by_index(key: str, escaped: bool) -> None:
    name = f"\\u{ord(key[0]):04x}{key[1:]}" if escaped else key
    twice = json.dumps(CUSTOM)[:-1] + f', "{name}": {json.dumps(CUSTOM[key])}}}'
    assert fields(f"[{json.dumps(CUSTOM)},{twice}]".encode()) == [f"[1].{key}"]
    if key == "time":
        sale = json.dumps(SALE)[:-1] + ', "recordedAt": "2026-05-04T09:53:56.000Z"}'
        assert fields(f"[{sale}]".encode(), TRANSACTIONS_BATCH) == ["[0].recordedAt"]


def test_the_same_words_further_inside_or_as_values_are_fine() -> None:
    tricky = CUSTOM | {
        "label": "client",
        "params": {"client": {"type": "time"}, "type": 'a "time" b', "time": 1, "eventSalt": "client"},
    }
    batch = [CUSTOM, tricky, CUSTOM]
    assert [json.loads(record) for record in stored(batch)] == batch
    doubled = json.dumps(CUSTOM)[:-1] + ', "params": {"client": 1, "client": 2}}'
    assert len(stored(f"[{doubled}]".encode())) == 1


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"", None),
        (b"{}", None),
        (b"null", None),
        (b'"x"', None),
        (b"\xef\xbb\xbf[]", None),
        (b"[", ["[0]"]),
        (b"[{}", ["[0].type", "[1]"]),
        (b"[] x", ["[0]"]),
        (b"[{},]", ["[0].type", "[1]"]),
    ],
)
def test_a_body_that_is_no_array_is_refused(body: bytes, names: list[str] | None) -> None:
    error = refused(body)
    assert error.message
    if names:
        assert [entry["field"] for entry in error.errors] == names


def test_a_record_that_could_never_fit_a_batch_is_refused() -> None:
    def padded(size: int) -> bytes:
        record = json.dumps(CUSTOM | {"params": {"x": ""}}).encode()
        return record.replace(b'"x": ""', b'"x": "%s"' % (b"y" * (size - len(record))))

    batch = {"max_bytes": 2000}
    assert len(stored(b"[" + padded(1998) + b"]", batch=batch)) == 1
    assert fields(b"[" + padded(100) + b"," + padded(1999) + b"]", batch=batch) == ["[1]"]


def test_an_unknown_path_is_not_implemented() -> None:
    refused(EVENT, "/v4/events/nope", status=501)
    refused([], "/v4/clients/batch", status=501)
