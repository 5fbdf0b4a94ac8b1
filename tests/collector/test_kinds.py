"""What the buffer asks of a record's bytes."""

import json
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.kinds import EVENTS, KINDS, TRANSACTIONS, Lane, Run
from tracker.time import format_ms

EVENT = {
    "type": "added-to-cart",
    "label": "Tea",
    "time": "2026-05-04T09:53:56.999Z",
    "eventSalt": "s-1",
    "client": {"email": "anna@example.com", "uuid": "07243772-008a-42e1-ba37-c3807cebde8f"},
    "params": {"sku": "A-1", "time": "2020-01-01T00:00:00.000Z"},
}
TRANSACTION = {
    "client": {"customId": "C-1", "phone": "+48 500 600 700"},
    "orderId": "T-07/000123",
    "recordedAt": "2026-05-04T09:53:56.999Z",
    "eventSalt": "pos-T-07-000123",
}


def encoded(record: dict, **changes: object) -> bytes:
    return json.dumps(record | changes).encode()


def test_a_lane_is_written_and_read_back() -> None:
    lane = Lane("events", "email+uuid", "live")
    assert str(lane) == "events/email+uuid/live"
    assert Lane.parse(str(lane)) == lane


@pytest.mark.parametrize(
    "text",
    [
        "events",
        "events/email",
        "events//live",
        "events/uuid+email/live",
        "events/phone/live",
        "x/email/live",
        "events/email/now",
        "events/email/live/",
        "events/email+email/bulk",
    ],
)
def test_what_is_not_a_lane_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"events/email\+uuid/live"):
        Lane.parse(text)


def test_the_order_key_holds_whatever_the_spelling() -> None:
    same = [
        encoded(EVENT),
        json.dumps(EVENT, indent=2).encode(),
        encoded(dict(reversed(EVENT.items()))),
        encoded(EVENT, client=dict(reversed(EVENT["client"].items()))),
        encoded(EVENT, client=EVENT["client"] | {"phone": "+48 1"}),
        encoded(EVENT, time="2026-05-04T11:53:56.999+02:00"),
        encoded(EVENT, time="2026-05-04T09:53:56.99900Z"),
        encoded(EVENT, label="Coffee", params={"sku": "B"}),
        encoded(EVENT, type="custom", action="product.addToCart"),
        encoded(EVENT).replace(b"eventSalt", rb"\u0065ventSalt"),
    ]
    assert {EVENTS.order_key(record) for record in same} == {EVENTS.order_key(same[0])}


def test_the_order_key_tells_records_apart_that_do_not_overwrite_each_other() -> None:
    different = [
        encoded(EVENT),
        encoded(EVENT, time="2026-05-04T09:53:56.998Z"),
        encoded(EVENT, eventSalt="s-2"),
        encoded(EVENT, type="removed-from-cart"),
        encoded(EVENT, type="custom", action="a.b"),
        encoded(EVENT, client={"email": "anna@example.com"}),
        encoded(EVENT, client={"customId": "anna@example.com"}),
        encoded(EVENT, client={"customId": "1"}),
        encoded(EVENT, client={"id": 1}),
    ]
    keys = {EVENTS.order_key(record) for record in different}
    assert len(keys) == len(different)
    assert all(len(key) == 16 for key in keys)


def test_the_order_key_is_the_same_in_another_process() -> None:
    script = (
        "import sys; from collector.kinds import TRANSACTIONS as k; print(k.order_key(sys.stdin.buffer.read()).hex())"
    )
    other = subprocess.run(
        [sys.executable, "-c", script], input=encoded(TRANSACTION), capture_output=True, check=True, timeout=30
    )
    assert other.stdout.decode().strip() == TRANSACTIONS.order_key(encoded(TRANSACTION)).hex()


def test_the_time_is_read_in_any_accepted_spelling() -> None:
    assert EVENTS.time_ms(encoded(EVENT)) == 1777888436999
    assert EVENTS.time_ms(encoded(EVENT, time="2026-05-04t11:53:56.9994+02:00")) == 1777888436999
    assert TRANSACTIONS.time_ms(encoded(TRANSACTION)) == 1777888436999


def test_a_retimed_record_differs_in_its_time_alone() -> None:
    record = encoded(EVENT)
    moved = EVENTS.retimed(record, 1777888440001)
    assert moved == record.replace(b"2026-05-04T09:53:56.999Z", b"2026-05-04T09:54:00.001Z")
    assert TRANSACTIONS.time_ms(TRANSACTIONS.retimed(encoded(TRANSACTION), 5)) == 5


def test_only_the_records_own_time_moves_when_params_hold_the_same_text() -> None:
    record = encoded(EVENT, params={"seen": EVENT["time"], "price": 1.10, "n": 10**20})
    moved = json.loads(EVENTS.retimed(record, 0))
    assert moved == json.loads(record) | {"time": "1970-01-01T00:00:00.000Z"}
    assert b'"seen": "2026-05-04T09:53:56.999Z"' in EVENTS.retimed(record, 0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4), st.integers(0, 4_102_444_800_000), st.booleans())
def test_retiming_keeps_every_other_value(extra: dict, ms: int, ascii_only: bool) -> None:
    record = json.dumps(extra | EVENT, ensure_ascii=ascii_only).encode()
    moved = EVENTS.retimed(record, ms)
    assert json.loads(moved) == extra | EVENT | {"time": format_ms(ms)}
    assert EVENTS.time_ms(moved) == ms
    assert EVENTS.retimed(moved, ms) == moved


def test_a_record_says_whose_it_is() -> None:
    event, transaction = EVENTS.identity(encoded(EVENT)), TRANSACTIONS.identity(encoded(TRANSACTION))
    assert (event.order_id, event.salt, event.client) == (None, "s-1", EVENT["client"])
    assert (transaction.order_id, transaction.salt) == ("T-07/000123", "pos-T-07-000123")
    assert transaction.client == TRANSACTION["client"]


def test_rendering_joins_the_bytes_as_they_are() -> None:
    assert EVENTS.render([b'{"a": 1}', memoryview(b"{}")]) == b'[{"a": 1},{}]'
    assert EVENTS.render([]) == b"[]"


def test_kinds_know_their_endpoint() -> None:
    assert {name: (kind.path, kind.time_field) for name, kind in KINDS.items()} == {
        "events": ("/v4/events/batch", "time"),
        "transactions": ("/v4/transactions/batch", "recordedAt"),
    }


def test_a_run_is_an_array_on_disk() -> None:
    run = Run(3, 1777888436999, "boot-1", 5)
    assert msgspec.json.encode(run) == b'[3,1777888436999,"boot-1",5]'
    assert msgspec.json.decode(msgspec.json.encode(run), type=Run) == run
