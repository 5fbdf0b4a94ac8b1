"""Scripted faults (API reference notes, 9.9): each does what it says, to whom it says, as often as it says."""

import http.client
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from collector.testing import FAULTS, FakeUpstream
from tests.collector.fake_upstream_client import RawClient, event, transaction


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream(api_key="k") as fake:
        yield fake


@pytest.fixture
def client(fake: FakeUpstream) -> RawClient:
    return RawClient(fake.url)


def test_a_status_strikes_as_often_as_it_says_and_stores_nothing(fake: FakeUpstream, client: RawClient) -> None:
    fault = fake.fault(503, times=2, retry_after=7)
    replies = [client.events(event()) for _ in range(3)]
    assert [reply.status for reply in replies] == [503, 503, 202]
    assert replies[0].headers["Retry-After"] == "7"
    assert replies[0].json["status"] == 503
    assert (fault.hits, fault.left, fake.stored_count, fake.overwritten) == (2, 0, 1, 0)
    assert fake.requests[1].faults == ("503",)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 415, 422, 425, 429, 500, 502, 504, 520])
def test_every_status_can_be_scripted(fake: FakeUpstream, client: RawClient, status: int) -> None:
    fake.fault(str(status))
    reply = client.events(event())
    assert (reply.status, reply.json["status"]) == (status, status)
    assert "Retry-After" not in reply.headers
    assert fake.violations == []


def test_a_status_may_carry_message_errors_and_another_body(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault(400, message="Version header content is invalid")
    fake.fault(400, errors=[{"field": "[0].label"}], error="Odd")
    fake.fault(413, body="<html>too large</html>", content_type="text/html")
    fake.fault(401)
    assert client.events(event()).json["message"] == "Version header content is invalid"
    second = client.events(event()).json
    assert (second["errors"], second["error"]) == ([{"field": "[0].label"}], "Odd")
    third = client.events(event())
    assert (third.body, third.headers["Content-Type"]) == (b"<html>too large</html>", "text/html")
    assert client.events(event()).json["error"] == "Token expired."


def test_only_writes_are_struck_unless_path_or_kind_say_otherwise(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault(503, times=None)
    assert client.request("GET", "/v4/server/time").status == 200
    assert client.login("k")
    fake.fault(500, times=None, kind="time")
    assert client.request("GET", "/v4/server/time").status == 500
    fake.clear_faults()
    fake.fault(502, times=2, path="*")
    assert client.request("GET", "/v4/server/time").status == 502
    assert client.request("POST", "/uauth/v2/auth/login/profile", {"apiKey": "k"}).status == 502
    assert client.events(event()).status == 202


def test_faults_may_be_limited_to_kind_path_identifier_size_and_count(fake: FakeUpstream, client: RawClient) -> None:
    mail = {"email": "a@b.pl"}
    fake.fault(503, kind="transactions")
    assert (client.events(event()).status, client.transactions(transaction()).status) == (202, 503)
    fake.fault(503, path="/v4/events/")
    assert (client.transactions(transaction()).status, client.events(event()).status) == (202, 503)
    fake.fault(503, identifier="email")
    assert (client.events(event()).status, client.events(event(client=mail)).status) == (202, 503)
    fake.fault(413, max_bytes=300)
    assert (client.events(event("s-7")).status, client.events(event("s-7"), event("s-8")).status) == (202, 413)
    fake.fault(413, max_records=1)
    assert (client.events(event("s-7")).status, client.events(event("s-7"), event("s-8")).status) == (202, 413)
    fake.fault(503, after=1)
    assert (client.events(event()).status, client.events(event()).status, client.events(event()).status) == (
        202,
        503,
        202,
    )


def test_a_rejected_record_makes_its_batch_a_400_for_ever(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault("reject", salt="s-2", message="no such shop")
    for _ in range(2):
        reply = client.events(event("s-1"), event("s-2"))
        assert (reply.status, reply.json["errors"][0]["field"]) == (400, "[1].eventSalt")
        assert reply.json["errors"][0]["message"] == "no such shop"
    assert client.events(event("s-1")).status == 202
    assert client.events(event("s-2")).status == 400
    assert fake.stored == [event("s-1")]
    assert fake.violations == []
    fake.clear_faults()
    assert client.events(event("s-2")).status == 202


def test_records_may_be_rejected_by_order_id_text_or_without_a_hint(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault("reject", order_id=["T-07/000123", "other"])
    fake.fault("reject", contains="kapusta")
    fake.fault("reject", salt="s-9", hint=False)
    assert client.transactions(transaction()).status == 400
    assert client.transactions(transaction(orderId="good")).status == 202
    assert client.events(event(params={"x": "kapusta"})).status == 400
    assert "errors" not in client.events(event("s-9")).json
    assert fake.violations == []


def test_a_rejected_transaction_is_named_by_207_where_the_switch_says_so() -> None:
    with FakeUpstream(api_key="k", bad_transactions=207) as fake:
        fake.fault("reject", salt="t-2")
        reply = RawClient(fake.url).transactions(transaction("t-1"), transaction("t-2"))
        assert (reply.status, [entry["rejectedValue"] for entry in reply.json]) == (207, ["t-2"])
        assert fake.stored == [transaction("t-1")]


def test_a_bad_record_stays_bad_whatever_else_happens_to_its_request(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault("drop_answer", times=2)
    fake.fault("reject", salt="s-2")
    fake.fault("reject", salt="s-3")
    with pytest.raises(http.client.RemoteDisconnected):
        client.events(event("s-1"), event("s-2"))
    assert fake.stored_count == 0
    fake.fault("poison", salt="s-1")
    assert client.events(event("s-1")).status == 500
    with pytest.raises(http.client.RemoteDisconnected):
        client.events(event("s-4"))
    assert fake.stored == [event("s-4")]
    reply = client.events(event("s-2"), event("s-3"))
    assert [error["field"] for error in reply.json["errors"]] == ["[0].eventSalt", "[1].eventSalt"]
    assert fake.requests[-1].faults == ("reject", "reject")


def test_207_refuses_the_chosen_records_and_stores_the_others(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault("207", indexes=[0, 7], salt="s-3")
    reply = client.events(event("s-1"), event("s-2"), event("s-3"))
    assert reply.status == 207
    assert [(entry["field"], entry["rejectedValue"]) for entry in reply.json] == [
        ("[0].eventSalt", "s-1"),
        ("[2].eventSalt", "s-3"),
    ]
    assert fake.stored == [event("s-2")]


def test_a_poisonous_record_makes_its_batch_a_500_for_ever(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault("poison", salt="s-2", status=502)
    assert [client.events(event("s-1"), event("s-2")).status for _ in range(2)] == [502, 502]
    assert client.events(event("s-1")).status == 202


@pytest.mark.parametrize(
    ("name", "stored"), [("reset", 0), ("reset_after_store", 1), ("drop_answer", 1), ("truncated", 1), ("garbage", 0)]
)
def test_connections_break_before_or_after_storing(
    fake: FakeUpstream, client: RawClient, name: str, stored: int
) -> None:
    fake.fault(name)
    with pytest.raises((ConnectionError, http.client.HTTPException)) as caught:
        client.events(event())
    assert (caught.type is ConnectionResetError) == name.startswith("reset")
    fake.wait_until(lambda: len(fake.requests) == 2)
    assert (fake.stored_count, fake.requests[-1].status, fake.requests[-1].answered) == (stored, 0, False)
    assert client.events(event()).status == 202
    assert (fake.stored_count, fake.overwritten) == (1, stored)


def test_a_delay_is_felt_and_the_request_goes_on_to_the_next_fault(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault("delay", seconds=0.05)
    fake.fault(503)
    assert client.events(event()).status == 503
    seen = fake.requests[-1]
    assert seen.faults == ("delay", "503")
    assert seen.answered_at - seen.received_at >= 0.05


def test_a_hanging_request_is_cut_when_the_faults_are_cleared(fake: FakeUpstream, client: RawClient) -> None:
    fault = fake.fault("hang")
    seen: list[type[BaseException]] = []

    def send() -> None:
        try:
            client.events(event())
        except OSError as error:
            seen.append(type(error))

    thread = threading.Thread(target=send)
    thread.start()
    fake.wait_until(lambda: fault.hits == 1)
    assert (fake.in_progress, thread.is_alive()) == (1, True)
    fake.clear_faults()
    thread.join(5)
    assert (seen, fake.stored_count) == ([ConnectionResetError], 0)


def test_a_captive_portal_answers_html_or_redirects(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault("html")
    fake.fault("redirect", location="http://portal.example/login", status=307)
    reply = client.events(event())
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/html")
    reply = client.events(event())
    assert (reply.status, reply.headers["Location"]) == (307, "http://portal.example/login")
    assert fake.stored_count == 0


def test_odd_bodies_come_with_or_without_storing(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault("odd_body", body="thanks")
    fake.fault("odd_body", size=100_000, status=200, store=False)
    reply = client.events(event("s-1"))
    assert (reply.status, reply.body, reply.headers["Content-Type"]) == (202, b"thanks", "text/plain")
    reply = client.events(event("s-2"))
    assert (reply.status, len(reply.body), fake.stored_count) == (200, 100_000, 1)


def test_an_answer_can_drip_without_end(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault("drip", seconds=0.001)
    ended = threading.Event()

    def send() -> None:
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            client.events(event())
        ended.set()

    thread = threading.Thread(target=send)
    thread.start()
    fake.wait_until(lambda: fake.in_progress == 1)
    assert not ended.wait(0.05)
    fake.clear_faults()
    thread.join(5)
    assert ended.is_set()


def test_tokens_expire_at_once(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault("expire_tokens")
    assert client.events(event()).status == 401
    client.token = client.login("k")
    assert client.events(event()).status == 202


def test_a_delay_does_not_count_down_the_faults_behind_it_twice(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault("delay", seconds=0.0, times=None)
    fake.fault(503, after=1)
    assert [client.events(event()).status for _ in range(3)] == [202, 503, 202]


def test_what_is_illegal_is_a_violation_also_behind_a_fault(fake: FakeUpstream, client: RawClient) -> None:
    fake.fault(503)
    assert client.events(event(label="")).status == 503
    assert len(fake.violations) == 1


@pytest.mark.parametrize(
    ("name", "detail", "message"),
    [
        ("rejct", {}, "did you mean reject?"),
        ("200", {}, "unknown fault '200'"),
        ("status", {}, "unknown fault"),
        ("reject", {}, "needs contains or order_id or salt"),
        ("207", {}, "needs indexes"),
        ("delay", {"second": 1}, "did you mean seconds?"),
        ("delay", {"seconds": "long"}, "fault delay"),
        ("503", {"location": "/"}, "unknown detail of fault 503 'location'"),
        ("reset", {"times": 0}, "whole number from 1"),
        ("reset", {"kind": "event"}, "fault reset: Invalid enum value 'event'"),
    ],
)
def test_a_fault_that_does_not_exist_is_refused_by_name(name: str, detail: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        FakeUpstream().fault(name, **detail)
    assert message in str(caught.value)


def test_every_fault_in_the_table_can_be_made() -> None:
    fake = FakeUpstream()
    for name, row in FAULTS.items():
        detail: dict[str, Any] = {"salt": "s"} if "salt" in row.needs else {"seconds": 1} if row.needs else {}
        fake.fault("503" if name == "status" else name, **(detail | ({"indexes": [0]} if name == "207" else {})))
    assert len(fake.report()["faults"]) == len(FAULTS) - 1  # expire_tokens is over at once
