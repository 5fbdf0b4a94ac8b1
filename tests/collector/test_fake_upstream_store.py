"""The overwrite rule and profiles (API reference notes, 5, 6, 8, 9.6)."""

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.testing.profiles import upsert
from collector.testing.store import Store, buys_of, identifiers_of, read_back
from tests.collector.fake_upstream_client import event, transaction

NOW = 1_900_000_000_000
TIMES = ("2026-05-04T09:53:56.999Z", "2026-05-04T11:53:56.9991+02:00", "2026-05-04T09:53:57Z")
INSTANTS = (0, 0, 1)
"""The first two are the same instant."""


def put(store: Store, record: dict[str, Any], kind: str = "events", now_ms: int = NOW) -> list[str]:
    action = record.get("action", "transaction.charge")
    identifiers = identifiers_of(record["client"], first_only=False)
    return store.put(kind, record.get("type", "transaction"), action, record, orjson.dumps(record), identifiers, now_ms)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("s-1", "s-2", None)), st.integers(0, 2), st.sampled_from("ab"), st.sampled_from("xy")
        ),
        max_size=25,
    )
)
def test_only_the_same_four_overwrite(sent: list[tuple[str | None, int, str, str]]) -> None:
    """A dictionary keyed by the four is the whole rule; records without salt never overwrite."""
    store, model = Store(), {}
    for number, (salt, time, client, action) in enumerate(sent):
        record = event(salt, time=TIMES[time], client={"customId": client}, action=action, params={"n": number})
        put(store, record)
        key = (salt, INSTANTS[time], client, action) if salt else number
        model[key] = record
    assert [entry.record for entry in store.entries] == list(model.values())
    assert store.overwritten == len(sent) - len(model) == sum(entry.overwritten for entry in store.entries)


def test_a_salt_used_for_another_profile_or_action_is_complained_about_and_overwrites_nothing() -> None:
    store = Store()
    assert put(store, event()) == []
    assert put(store, event(client={"customId": "C-2"})) == ["same salt with another profile"]
    assert put(store, event(action="receipt.voided")) != []
    assert put(store, event(time=TIMES[2])) == ["same salt with another profile", "same salt with another action"]
    assert (len(store.entries), store.overwritten) == (4, 0)


def test_the_resolved_profile_counts_not_the_key_used() -> None:
    store = Store()
    put(store, event(client={"email": "anna@example.com"}))
    put(store, event("s-2", client={"customId": "C-7"}))
    assert store.entries[0].profile is not store.entries[1].profile
    put(store, event("s-3", client={"email": "anna@example.com", "customId": "C-7"}))
    assert len({id(entry.profile) for entry in store.entries}) == 1
    assert put(store, event(client={"customId": "C-7"})) == []
    assert (len(store.entries), store.overwritten) == (3, 1)
    assert len(store.profiles) == 1
    system_id = store.profiles[0].id
    assert put(store, event(client={"id": system_id})) == []
    assert store.overwritten == 2


def test_a_future_time_is_replaced_and_makes_a_second_event_when_sent_again() -> None:
    store = Store()
    assert "future" in put(store, event(), now_ms=1000)[0]
    put(store, event(), now_ms=2000)
    assert [entry.instant_ms for entry in store.entries] == [1000, 2000]
    assert {entry.original_time for entry in store.entries} == {TIMES[0]}


def test_a_record_without_time_gets_the_receive_time() -> None:
    store = Store()
    assert put(store, event(time=None)) == []
    assert (store.entries[0].instant_ms, store.entries[0].original_time) == (NOW, None)


def test_a_transaction_makes_one_buy_per_product_and_a_custom_charge_none() -> None:
    store = Store()
    put(store, transaction(), "transactions")
    put(store, event(action="transaction.charge"))
    assert [[buy.product["sku"] for buy in buys_of(entry)] for entry in store.entries] == [["A-1", "B-9"], []]


def test_overwriting_a_transaction_with_fewer_products_leaves_the_old_ones_behind() -> None:
    store = Store()
    put(store, transaction(), "transactions")
    put(store, transaction(products=transaction()["products"][:1]), "transactions")
    assert [(buy.product["sku"], buy.stale) for buy in buys_of(store.entries[0])] == [("A-1", False), ("B-9", True)]
    put(store, transaction(), "transactions")
    assert [buy.stale for buy in buys_of(store.entries[0])] == [False, False]
    assert store.altered == 2


def test_events_read_back_hold_the_servers_values_instead_of_reserved_params() -> None:
    store = Store()
    put(store, event(params={"terminal": "T-07", "ip": "6.6.6.6", "modifiedBy": "me"}, time=TIMES[1]))
    [shown] = read_back(store.entries[0])
    assert shown["time"] == "2026-05-04T09:53:56.999Z"
    assert shown["params"]["snr-original-time"] == TIMES[1]
    assert shown["params"]["terminal"] == "T-07"
    assert shown["params"]["ip"] == "127.0.0.1"
    assert "modifiedBy" not in shown["params"]


def test_profiles_keep_what_is_left_out_and_reset_what_is_null() -> None:
    store = Store()
    upsert(
        store, {"email": "a@b.pl", "city": "Łódź", "agreements": {"sms": True}, "attributes": {"shoe": 42, "ip": "x"}}
    )
    upsert(store, {"email": "a@b.pl", "city": None, "firstName": "Anna", "agreements": {"email": True}})
    [profile] = store.profiles
    assert profile.attributes == {
        "email": "a@b.pl",
        "firstName": "Anna",
        "agreements": {"sms": True, "email": True},
        "shoe": 42,
    }
    upsert(store, {"clientId": 12345})
    assert len(store.profiles) == 1
