"""`FakeUpstream` as a server: access, limits, violations, endpoints, life (API reference notes, 2, 3, 9)."""

import ast
import base64
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import collector.testing
from collector.testing import FakeUpstream
from tests.collector.fake_upstream_client import RawClient, cart, event, transaction


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream(api_key="k") as fake:
        yield fake


def listening(**switches: Any) -> FakeUpstream:
    return FakeUpstream(api_key="k", **switches)


# What is taken in


def test_records_are_stored_as_sent_and_a_resend_overwrites(fake: FakeUpstream) -> None:
    client = RawClient(fake.url)
    assert client.events(event("s-1"), cart(eventSalt="s-2"))[:2] == (202, b"")
    assert client.transactions(transaction())[:2] == (202, b"")
    assert client.events(event("s-1")).status == 202
    assert fake.stored == [event("s-1"), cart(eventSalt="s-2"), transaction()]
    assert fake.overwritten == 1
    assert [entry.action for entry in fake.entries] == ["receipt.printed", "product.addToCart", "transaction.charge"]
    assert [buy.product["sku"] for buy in fake.buys] == ["A-1", "B-9"]
    assert fake.violations == []


def test_single_events_take_their_type_from_the_path(fake: FakeUpstream) -> None:
    client = RawClient(fake.url)
    push = {"label": "seen", "client": {"id": 7}, "eventSalt": "p-1"}
    assert client.request("POST", "/v4/events/push/viewed", push).status == 202
    assert client.request("POST", "/v4/events/custom", event(type=None)).status == 202
    assert client.request("POST", "/v4/transactions", transaction()).status == 202
    assert [entry.type for entry in fake.entries] == ["push/viewed", "custom", "transaction"]
    assert fake.entries[0].action == "push.view"
    assert fake.violations == []


def test_a_bad_record_refuses_its_batch_and_is_named(fake: FakeUpstream) -> None:
    reply = RawClient(fake.url).events(event("s-1"), event("s-2", label=""))
    assert reply.status == 400
    assert reply.json["path"] == "/events/batch"
    assert reply.json["message"] == "Some fields did not pass validation"
    [error] = reply.json["errors"]
    assert (error["field"], error["rejectedValue"]) == ("[1].label", "")
    assert fake.stored == []
    assert fake.violations == ["POST /v4/events/batch: [1] label: must not be empty"]


def test_a_missing_currency_is_answered_in_the_words_of_the_sample(fake: FakeUpstream) -> None:
    reply = RawClient(fake.url).transactions(transaction(revenue={"amount": 1}))
    assert reply.status == 400
    assert reply.json["message"].startswith("JSON parse error: Missing property: 'currency'; nested exception")
    assert "errors" not in reply.json


@pytest.mark.parametrize("body", [b"", b"{}", b"[1", b'[{"a":NaN}]', b'[{"a":"\xff"}]', b"[" * 100_000, b"[[]]", b"[]"])
def test_a_body_that_is_no_array_of_objects_is_refused(fake: FakeUpstream, body: bytes) -> None:
    reply = RawClient(fake.url).request("POST", "/v4/events/batch", body)
    assert reply.status == 400
    assert len(fake.violations) == 1


def test_a_null_is_refused_or_ignored_and_a_violation_either_way() -> None:
    record = event(params={"terminal": {"id": None}})
    for position, status in (("refuse", 400), ("ignore", 202)):
        with listening(nulls=position) as fake:
            assert RawClient(fake.url).events(record).status == status
            assert len(fake.violations) == 1
            assert "params.terminal.id" in fake.violations[0]


def test_what_the_api_accepts_and_a_legal_client_never_sends_is_a_violation() -> None:
    with listening(params_email="accept", wall_ms=lambda: 1000) as fake:
        client = RawClient(fake.url)
        client.events(event("s-1", time=None, action="transaction.charge"))
        client.events(event("s-2", time=None, client={"email": "a@b.pl"}, params={"email": "c@d.pl"}))
        client.events(event("s-3"))
        assert len(fake.violations) == 3
        assert "transaction.charge" in fake.violations[0]
        assert "params.email" in fake.violations[1]
        assert "future" in fake.violations[2]
        assert fake.stored_count == 3


# Access


def test_login_gives_a_token_and_refresh_another(fake: FakeUpstream) -> None:
    client = RawClient(fake.url)
    old = client.request("POST", "/v4/auth/login/profile", {"apiKey": "k"})
    assert old.status == 200
    assert client.events(event(), Authorization="Bearer " + old.json["token"]).status == 202
    renewed = client.request("GET", "/v4/auth/refresh/profile").json["token"]
    assert renewed not in (client.token, old.json["token"])
    assert client.events(event(), Authorization=f"Bearer {renewed}").status == 202


def test_a_wrong_key_gets_the_switchs_status_and_no_violation() -> None:
    for status in (400, 401, 403):
        with listening(wrong_key_status=status) as fake:
            client = RawClient(fake.url, token="-")
            reply = client.request("POST", "/uauth/v2/auth/login/profile", {"apiKey": "x"})
            assert reply.status == status
            assert {"path", "timestamp", "errorCode", "status", "message", "traceId"} == reply.json.keys()
            assert fake.violations == []
            assert client.request("POST", "/uauth/v2/auth/login/profile", {}).status == 400
            assert len(fake.violations) == 1


def test_any_key_is_accepted_when_none_is_set() -> None:
    with FakeUpstream(api_key=None) as fake:
        assert RawClient(fake.url, "whatever").events(event()).status == 202


def test_a_token_expires_and_says_so() -> None:
    now = 100.0
    with listening(token_life_s=60, monotonic=lambda: now) as fake:
        client = RawClient(fake.url)
        now += 59.9
        assert client.events(event()).status == 202
        now += 0.2
        reply = client.events(event())
        assert (reply.status, reply.json["error"]) == (401, "Token expired.")
        client.token = client.login("k")
        assert client.events(event()).status == 202
        fake.expire_tokens()
        assert client.events(event()).status == 401
        assert fake.violations == []


def test_a_jwt_shows_when_it_expires() -> None:
    with listening(jwt=True, token_life_s=60, wall_ms=lambda: 1_000_000) as fake:
        payload = RawClient(fake.url).token.split(".")[1]
        assert json.loads(base64.urlsafe_b64decode(payload + "=="))["exp"] == 1060


def test_a_missing_token_is_a_violation_an_unknown_one_is_not(fake: FakeUpstream) -> None:
    client = RawClient(fake.url)
    assert client.events(event(), Authorization="Bearer unknown").status == 401
    assert fake.violations == []
    assert client.events(event(), Authorization=None).status == 401
    assert client.events(event(), Authorization="Digest x").status == 401
    assert len(fake.violations) == 2


def test_basic_authorization_needs_key_workspace_and_the_switch() -> None:
    basic = "Basic " + base64.b64encode(b"guid-1:k").decode()
    for switches, status in (({}, 202), ({"workspace_guid": "guid-1"}, 202), ({"workspace_guid": "2"}, 401)):
        with listening(**switches) as fake:
            assert RawClient(fake.url, token="-").events(event(), Authorization=basic).status == status
    with listening(basic=False) as fake:
        assert RawClient(fake.url, token="-").events(event(), Authorization=basic).status == 401
        assert fake.violations == []


def test_a_missing_permission_is_403_and_the_self_check_says_which() -> None:
    with listening(permissions={"API_BATCH_EVENTS_CREATE", "API_PUSH_RECIVED_EVENTS_CREATE"}) as fake:
        client = RawClient(fake.url)
        assert client.events(event()).status == 202
        assert client.transactions(transaction()).status == 403
        push = {"label": "x", "client": {"id": 1}}
        assert client.request("POST", "/v4/events/push/received", push).status == 202
        assert client.request("POST", "/v4/events/push/viewed", push).status == 403
        names = ["API_BATCH_EVENTS_CREATE", "API_BATCH_TRANSACTION_CREATE"]
        reply = client.request("POST", "/uauth/api-key/permission-check", names)
        assert list(reply.json["permissions"].values()) == [True, False]
        assert fake.violations == []
        basic = "Basic " + base64.b64encode(b"guid:k").decode()
        path = "/uauth/api-key/permission-check"
        assert client.request("POST", path, names, headers={"Authorization": basic}).status == 401
        assert len(fake.violations) == 1  # API.md 2.3: with a Bearer token


def test_denied_events_are_403_or_vanish() -> None:
    batch = event("s-1"), cart(eventSalt="s-2")
    with listening(denied={"added-to-cart"}) as fake:
        assert RawClient(fake.url).events(*batch).status == 403
        assert fake.stored == []
    with listening(denied={"receipt.printed"}, denied_events="drop") as fake:
        assert RawClient(fake.url).events(*batch).status == 202
        assert (fake.stored, fake.dropped) == ([batch[1]], 1)
        assert fake.violations == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Api-Version": None}, 400),
        ({"Api-Version": "4.3"}, 400),
        ({"Content-Type": None}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Type": 'application/json; charset="UTF-8"'}, 202),
    ],
)
def test_headers_are_checked(fake: FakeUpstream, headers: dict[str, str | None], status: int) -> None:
    reply = RawClient(fake.url).request("POST", "/v4/events/batch", [event()], headers=headers)
    assert reply.status == status
    assert len(fake.violations) == (status != 202)
    if status == 400:
        assert reply.json["message"] == "Version header content is invalid"


def test_unknown_paths_and_methods_are_answered_in_the_apis_shape(fake: FakeUpstream) -> None:
    client = RawClient(fake.url)
    for method, path, status in (("POST", "/v4/clients", 404), ("GET", "/v4/events/batch", 405)):
        reply = client.request(method, path)
        assert (reply.status, reply.json["status"], reply.json["path"]) == (status, status, path.removeprefix("/v4"))
    assert len(fake.violations) == 2


# Limits


def test_more_than_a_thousand_items_are_refused(fake: FakeUpstream) -> None:
    client = RawClient(fake.url)
    assert client.events(*(event(f"s-{n}") for n in range(1000))).status == 202
    assert fake.violations == []
    assert client.events(*(event(f"s-{n}") for n in range(1001))).status == 400
    assert fake.violations == ["POST /v4/events/batch: 1001 items, 1000 are allowed"]


def padded(size: int) -> bytes:
    body = json.dumps([event(params={"x": ""})]).encode()
    return body.replace(b'"x": ""', b'"x": "' + b"x" * (size - len(body)) + b'"')


@pytest.mark.parametrize(
    ("switches", "size", "status", "violations"),
    [
        ({}, 1_000_000, 202, 0),
        ({}, 1_000_001, 413, 1),
        ({"over_size_status": 400}, 1_000_001, 400, 1),
        ({"one_mb": 1_048_576}, 1_048_576, 202, 1),
        ({"one_mb": 1_048_576}, 1_048_577, 413, 1),
        ({"one_mb": 5_000}, 5_001, 413, 0),
    ],
)
def test_bodies_are_limited_in_bytes(switches: dict[str, int], size: int, status: int, violations: int) -> None:
    with listening(**switches) as fake:
        body = padded(size)
        assert len(body) == size
        assert RawClient(fake.url).request("POST", "/v4/events/batch", body).status == status
        assert len(fake.violations) == violations


def test_a_body_of_any_size_is_answered(fake: FakeUpstream) -> None:
    assert RawClient(fake.url).request("POST", "/v4/events/batch", bytes(33 * 1024 * 1024)).status == 413
    assert fake.violations == ["POST /v4/events/batch: body of more than 33554432 bytes, 1000000 are allowed"]


def test_transactions_have_limits_of_their_own() -> None:
    with listening(transactions_max_records=2, over_count_status=413) as fake:
        client = RawClient(fake.url)
        assert client.transactions(*(transaction(f"t-{n}") for n in range(3))).status == 413
        assert client.transactions(*(transaction(f"t-{n}") for n in range(2))).status == 202
        assert fake.violations == []
    with listening(transactions_max_bytes=400) as fake:
        assert RawClient(fake.url).transactions(transaction()).status == 413


def test_one_request_holds_one_identifier_type() -> None:
    both = event("s-1", client={"uuid": "0d5f3b8e-1c2d-4e5f-8a9b-0c1d2e3f4a5b", "email": "a@b.pl"})
    uuid = event("s-2", client={"uuid": "0d5f3b8e-1c2d-4e5f-8a9b-0c1d2e3f4a5b"})
    email = event("s-3", client={"email": "a@b.pl"})
    with listening() as fake:
        client = RawClient(fake.url)
        assert client.events(both, uuid).status == 400
        assert fake.violations == ["POST /v4/events/batch: mixed identifier types: email+uuid, uuid"]
        assert client.transactions(transaction(), transaction("t-2", client={"id": 7})).status == 202
        client.events(both)
        client.events(uuid)
        client.events(email)
        assert len({entry.profile.id for entry in fake.entries[2:]}) == 1
    with listening(identifiers="first-key") as fake:
        client = RawClient(fake.url)
        assert client.events(both, uuid).status == 202
        assert fake.violations == []
        assert client.events(both, email).status == 400
        assert client.events(email).status == 202
        assert len({entry.profile.id for entry in fake.entries}) == 2


def test_a_throttle_answers_429() -> None:
    now = 0.0
    with listening(max_rate=10, monotonic=lambda: now) as fake:
        client = RawClient(fake.url)
        assert client.events(*(event(f"s-{n}") for n in range(20))).status == 202
        reply = client.events(event())
        assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
        now = 2.0
        assert client.events(event()).status == 202
        assert fake.violations == []


# Other endpoints


def test_the_server_clock_can_be_off_and_shows_in_time_and_date() -> None:
    with listening(wall_ms=lambda: 1_777_888_999_123, clock_offset_s=-86_400) as fake:
        client = RawClient(fake.url)
        reply = client.request("GET", "/v4/server/time", headers={"Authorization": None})
        assert reply.json == {"serverTime": "2026-05-03T10:03:19Z"}
        assert reply.headers["Date"] == "Sun, 03 May 2026 10:03:19 GMT"
        fault = fake.fault("clock_offset", seconds=86_400)
        assert client.request("GET", "/v4/server/time").json == {"serverTime": "2026-05-04T10:03:19Z"}
        assert fault.left is None
        fake.clear_faults()
        assert client.request("GET", "/v4/server/time").json == {"serverTime": "2026-05-03T10:03:19Z"}
        assert client.request("GET", "/v4/server/time", headers={"Api-Version": None}).status == 400
    with listening(wall_ms=lambda: 1_777_888_999_123, server_time="milliseconds", date_header=False) as fake:
        reply = RawClient(fake.url).request("GET", "/v4/server/time")
        assert reply.json == {"serverTime": "2026-05-04T10:03:19.123Z"}
        assert reply.headers["Date"] == ""


def test_events_are_read_back_by_profile_action_and_time(fake: FakeUpstream) -> None:
    client = RawClient(fake.url)
    client.events(event("s-1", client={"id": 7}), event("s-2", client={"id": 8}))
    client.transactions(transaction(client={"id": 7}))
    shown = client.request("GET", "/v4/events/by-client/7").json
    assert sorted(e["action"] for e in shown) == ["product.buy", "product.buy", "receipt.printed", "transaction.charge"]
    assert {"uuid", "time", "action", "label", "client", "params"} == shown[0].keys()
    assert len(client.request("GET", "/v4/events/by-client/7?action=product.buy&limit=1").json) == 1
    assert client.request("GET", "/v4/events/by-client/7?time[from]=2026-05-05T00:00:00Z").json == []
    assert client.request("GET", "/v4/events/by-client/9").json == []
    assert fake.violations == []
    assert client.request("GET", "/v4/events/by-client/7?limit=501").status == 400


def test_bad_profiles_are_named_by_207_and_the_good_are_kept(fake: FakeUpstream) -> None:
    reply = RawClient(fake.url).request(
        "POST", "/v4/clients/batch", [{"email": "a@b.pl"}, {"email": "a"}, {"sex": "?"}]
    )
    assert reply.status == 207
    assert [entry["field"] for entry in reply.json] == ["[1].email", "[2]"]
    assert [profile.attributes for profile in fake.profiles] == [{"email": "a@b.pl"}]


def test_devices_are_linked(fake: FakeUpstream) -> None:
    client = RawClient(fake.url)
    device = {"deviceId": "d", "registrationId": "r", "type": "android"}
    assert client.request("POST", "/v4/clients/by-uuid/x/linked-devices", device).status == 202
    assert client.request("POST", "/v4/clients/7/linked-devices", {"deviceId": "d"}).status == 400


@pytest.mark.parametrize(
    ("shape", "keys", "field"),
    [
        ("index", {"code", "field", "message", "rejectedValue"}, "[1].orderId"),
        ("bare", {"code", "field", "message", "rejectedValue"}, "orderId"),
        ("2022", {"path", "timestamp", "errorCode", "status", "message", "traceId"}, None),
    ],
)
def test_a_transactions_batch_may_answer_207_in_three_shapes(shape: str, keys: set[str], field: str | None) -> None:
    with listening(bad_transactions=207, error_shape=shape) as fake:
        reply = RawClient(fake.url).transactions(transaction("t-1"), transaction("t-2", orderId=7))
        assert reply.status == 207
        [entry] = reply.json
        assert (entry.keys(), entry.get("field")) == (keys, field)
        assert fake.stored == [transaction("t-1")]


# What it shows


def test_requests_are_noted_without_secrets(fake: FakeUpstream) -> None:
    client = RawClient(fake.url)
    client.events(event("s-1"), event("s-2"))
    client.events(event("s-1"), event("s-2"))
    login, first, second = fake.requests
    assert (login.path, login.authorization) == ("/uauth/v2/auth/login/profile", "")
    assert (first.method, first.path, first.status, first.records) == ("POST", "/v4/events/batch", 202, 2)
    assert (first.salts, first.identifiers, first.authorization) == (("s-1", "s-2"), {"customId"}, "Bearer")
    assert first.answered
    assert first.digest == second.digest
    assert first.received_at <= first.answered_at <= second.received_at
    assert client.token not in repr(fake.requests) + json.dumps(fake.report()) + repr(fake)
    assert first.body is None


def test_bodies_are_kept_on_demand() -> None:
    with listening(keep_bodies=True) as fake:
        RawClient(fake.url).events(event())
        body = fake.requests[-1].body
        assert body is not None
        assert json.loads(body) == [event()]


def test_the_control_endpoints_show_the_same_to_another_process(fake: FakeUpstream) -> None:
    client = RawClient(fake.url)
    client.events(*(event(f"s-{n}") for n in range(5)))
    client.events(event("s-0"))
    report = client.request("GET", "/fake/report").json
    assert report == json.loads(json.dumps(fake.report()))
    assert (report["stored"], report["overwritten"], report["violations"]) == (5, 1, [])
    assert report["by_path"]["/v4/events/batch"] == {"202": 2}
    assert [(batch["records"], batch["fill"]) for batch in report["batches"]] == [(5, 0.005), (1, 0.001)]
    assert report["lanes"][0]["records"] == 6
    page = client.request("GET", "/fake/stored").json
    assert page == {"stored": fake.stored, "next": None}
    first = client.request("GET", "/fake/stored?limit=3").json
    rest = client.request("GET", f"/fake/stored?limit=3&after={first['next']}").json
    assert first["stored"] + rest["stored"] == fake.stored
    assert rest["next"] is None
    assert client.request("GET", "/fake/stored?after=x").status == 400
    assert client.request("GET", "/fake/nothing").status == 404
    assert len(fake.requests) == 3


def test_a_torn_request_is_noted_as_unanswered(fake: FakeUpstream) -> None:
    with socket.create_connection(fake.url.removeprefix("http://").split(":")) as connection:  # type: ignore[arg-type]
        connection.sendall(b"POST /v4/events/batch HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n[{")
        fake.wait_until(lambda: fake.in_progress == 1)
    fake.wait_until(lambda: fake.requests)
    [request] = fake.requests
    assert (request.status, request.answered, fake.in_progress) == (0, False, 0)
    assert fake.violations == []


def test_a_client_that_left_before_the_answer_is_noted(fake: FakeUpstream) -> None:
    client = RawClient(fake.url)
    body = json.dumps([event()]).encode()
    head = f"POST /v4/events/batch HTTP/1.1\r\nHost: x\r\nApi-Version: 4.4\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Type: application/json\r\nAuthorization: Bearer {client.token}\r\n\r\n"
    fault = fake.fault("delay", seconds=0.2)
    with socket.create_connection(fake.url.removeprefix("http://").split(":")) as connection:  # type: ignore[arg-type]
        connection.sendall(head.encode() + body)
        fake.wait_until(lambda: fault.hits)
    fake.wait_until(lambda: fake.stored_count)
    fake.wait_until(lambda: len(fake.requests) == 2)
    assert (fake.requests[-1].status, fake.requests[-1].answered) == (202, False)


# Life


def test_it_shares_no_code_with_what_it_tests() -> None:
    folder = Path(collector.testing.__file__).parent
    for source in folder.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(name.split(".")[0] != "tracker" for name in names), source
            assert all(name.startswith("collector.testing") for name in names if name.startswith("collector")), source


async def test_it_runs_in_the_current_loop() -> None:
    async with FakeUpstream(api_key="k") as fake, aiohttp.ClientSession() as session:
        headers = {"Api-Version": "4.4"}
        async with session.post(fake.url + "/uauth/v2/auth/login/profile", json={"apiKey": "k"}) as reply:
            headers["Authorization"] = "Bearer " + (await reply.json())["token"]
        async with session.post(fake.url + "/v4/events/batch", json=[event()], headers=headers) as reply:
            assert reply.status == 202
        await fake.until(lambda: fake.stored_count == 1)
    assert fake.stored == [event()]


def test_entered_again_it_listens_on_the_same_port_with_the_same_memory() -> None:
    fake = FakeUpstream(api_key="k")
    with fake:
        url = fake.url
        client = RawClient(url)
        client.events(event())
    with pytest.raises(ConnectionRefusedError):
        client.events(event())
    with fake:
        assert fake.url == url
        assert client.events(event()).status == 202
    assert (fake.stored_count, fake.overwritten) == (1, 1)


def test_an_address_in_use_is_an_error_at_once(fake: FakeUpstream) -> None:
    with pytest.raises(OSError, match="in use"), FakeUpstream(listen=fake.url):
        pass


def test_a_bad_address_is_refused() -> None:
    with pytest.raises(ValueError, match="give host:port"):
        FakeUpstream(listen="8788")


def test_waiting_has_an_end(fake: FakeUpstream) -> None:
    with pytest.raises(TimeoutError, match="stored=0"):
        fake.wait_until(lambda: False, timeout=0.01)


RUN = """
from collector.testing import Switches, run_fake_upstream
run_fake_upstream("127.0.0.1:0", "k", Switches.from_strings({"nulls": "ignore"}))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_as_a_process_it_prints_its_url_and_ends_cleanly(number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 30)[0], "no URL within 30 s"
        url = process.stdout.readline().decode().strip()
        client = RawClient(url)
        assert client.events(event()).status == 202
        posted = client.request("POST", "/fake/faults", {"name": "503", "times": 2, "retry_after": 7})
        assert posted.json == {"name": "503", "left": 2}
        assert client.events(event()).headers["Retry-After"] == "7"
        assert client.request("DELETE", "/fake/faults").status == 204
        assert client.events(event()).status == 202
        wrong = client.request("POST", "/fake/faults", {"name": "rejct", "salt": "s-1"})
        assert (wrong.status, wrong.json["message"]) == (400, "unknown fault 'rejct'; did you mean reject?")
        assert client.request("GET", "/fake/report").json["overwritten"] == 1
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (0, b"", b"")
    finally:
        process.kill()
        process.wait()


def test_a_stop_does_not_wait_for_requests_that_hang(fake: FakeUpstream) -> None:
    fake.fault("hang")
    with socket.create_connection(fake.url.removeprefix("http://").split(":")) as connection:  # type: ignore[arg-type]
        connection.sendall(b"POST /v4/events/batch HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]")
        fake.wait_until(lambda: fake.in_progress == 1)
        begun = time.monotonic()
        fake.__exit__(None, None, None)
        assert time.monotonic() - begun < 1.0
        fake.__enter__()
