"""The HTTP surface, on real sockets."""

import asyncio
import base64
import gzip
import json
import os
import re
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from collector import page
from collector.admission import Full
from collector.buffer import Unknown
from collector.config import Config, ConfigError
from collector.ingest import ROUTES
from collector.listeners import ListenError
from collector.server import Check, Server
from collector.tokens import Tokens
from tests.collector.logged import capture_logs
from tests.collector.surface import NOW_MS, Memory, config, secret, serving

EVENT = {"type": "logged-in", "label": "in", "client": {"customId": "C-1"}, "time": "2026-05-04T09:53:56.999Z",
         "eventSalt": "s"}  # fmt: skip


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


async def post(http: aiohttp.ClientSession, url: str, body: Any = None, **kwargs: Any) -> tuple[int, Any, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | kwargs.pop("headers", {})
    async with http.post(url, data=data, headers=headers, **kwargs) as answer:
        content = await answer.read()
        return answer.status, answer.headers, json.loads(content) if content else None


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_a_batch_is_202_without_a_body_once_it_is_durable(http: aiohttp.ClientSession) -> None:
    async with serving() as (server, memory, url):
        memory.hold = asyncio.Event()
        request = asyncio.create_task(post(http, url + "/v4/events/batch", [EVENT, EVENT | {"client": {"id": 1}}]))
        await until(lambda: server.in_progress)
        assert not request.done()
        memory.hold.set()
        status, headers, body = await request
        assert (status, headers["Tillpost-Accepted"], body) == (202, "2", None)
        assert memory.records == [EVENT, EVENT | {"client": {"id": 1}}]
        assert server.in_progress == 0


async def test_an_empty_batch_is_accepted_without_asking_the_buffer(http: aiohttp.ClientSession) -> None:
    async with serving() as (_, memory, url):
        status, headers, _ = await post(http, url + "/v4/transactions/batch", [])
        assert (status, headers["Tillpost-Accepted"], memory.clocks) == (202, "0", [])


@pytest.mark.parametrize("path", [path for path, route in ROUTES.items() if route.event_type])
async def test_every_single_event_path_gives_its_record_the_type(http: aiohttp.ClientSession, path: str) -> None:
    price = {"amount": 1, "currency": "PLN"}
    params = {
        "sku": "A",
        "quantity": 1,
        "finalUnitPrice": price,
        "applicationName": "a",
        "version": "1",
        "lat": 1,
        "lon": 2,
    }
    event = {"label": "x", "client": {"id": 1}, "params": params}
    if path.endswith("/custom"):
        event["action"] = "a.b"
    async with serving() as (_, memory, url):
        status, headers, _ = await post(http, url + path, event)
        assert (status, headers["Tillpost-Accepted"]) == (202, "1")
        [record] = memory.records
        expected = "custom" if "/push/" in path else path.removeprefix("/v4/events/")
        assert record["type"] == expected
        assert record["params"] == params


async def test_a_refused_request_answers_in_the_shape_of_the_api(http: aiohttp.ClientSession) -> None:
    async with serving() as (_, memory, url):
        status, _, body = await post(http, url + "/v4/events/batch", [EVENT, EVENT | {"label": ""}])
        assert status == 400 and not memory.parcels
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body.pop("timestamp"))
        assert body == {
            "status": 400,
            "error": "Bad Request",
            "message": "Some fields did not pass validation",
            "path": "/events/batch",
            "errors": [
                {"code": 1001, "field": "[1].label", "message": "Expected str of length >= 1", "rejectedValue": ""}
            ],
        }


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v4/clients"), ("POST", "/v4/clients/batch"), ("POST", "/v4/events/nope"), ("GET", "/v4/events"),
     ("POST", "/uauth/api-key/permission-check")],
)  # fmt: skip
async def test_other_paths_of_the_api_are_501(http: aiohttp.ClientSession, method: str, path: str) -> None:
    async with serving() as (_, _, url), http.request(method, url + path) as answer:
        body = await answer.json()
        assert (answer.status, body["status"], body["error"]) == (501, 501, "Not Implemented")


async def test_what_does_not_exist_is_404_and_a_wrong_method_405(http: aiohttp.ClientSession) -> None:
    async with serving() as (_, _, url):
        async with http.get(url + "/nothing") as answer:
            assert answer.status == 404
        async with http.get(url + "/v4/events/batch") as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "POST")


async def test_the_server_time_is_our_estimate_or_503(http: aiohttp.ClientSession) -> None:
    async with serving() as (_, memory, url):
        async with http.get(url + "/v4/server/time") as answer:
            assert await answer.json() == {"serverTime": "2026-05-04T09:55:00.000Z"}
        memory.now_ms = None
        async with http.get(url + "/v4/server/time") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")


async def test_full_is_507_and_unknown_is_503_with_retry_after(http: aiohttp.ClientSession) -> None:
    async with serving() as (_, memory, url):
        memory.error = Full("the buffer is full", 4.2)
        status, headers, body = await post(http, url + "/v4/events/batch", [EVENT])
        assert (status, headers["Retry-After"], body["message"]) == (507, "5", "the buffer is full")
        memory.error = Unknown()
        status, headers, _ = await post(http, url + "/v4/events/batch", [EVENT])
        assert (status, headers["Retry-After"]) == (503, "1")


async def test_a_failure_of_ours_is_500_and_its_text_stays_inside(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as (server, memory, url):
        memory.error = RuntimeError("anna@example.com")
        status, _, body = await post(http, url + "/v4/events/batch", [EVENT])
        assert status == 500 and "anna" not in json.dumps(body)
        assert "RuntimeError" in caplog.text and "anna" not in caplog.text
        assert server.in_progress == 0


# Bodies


async def test_gzip_is_unpacked(http: aiohttp.ClientSession) -> None:
    async with serving() as (_, memory, url):
        body = gzip.compress(json.dumps([EVENT]).encode())
        status, _, _ = await post(http, url + "/v4/events/batch", body, headers={"Content-Encoding": "gzip"})
        assert status == 202 and memory.records == [EVENT]


@pytest.mark.parametrize("spoil", ["truncated", "trailing", "two members", "not gzip", "empty"])
async def test_damaged_gzip_is_refused_and_nothing_stored(http: aiohttp.ClientSession, spoil: str) -> None:
    good = gzip.compress(json.dumps([EVENT]).encode())
    body = {
        "truncated": good[:-9],
        "trailing": good + b"x",
        "two members": good + good,
        "not gzip": b"[]",
        "empty": b"",
    }
    async with serving() as (server, memory, url):
        status, _, _ = await post(http, url + "/v4/events/batch", body[spoil], headers={"Content-Encoding": "gzip"})
        assert status == 400 and not memory.parcels
        assert server.bytes_in_flight == 0


async def test_the_size_counts_unpacked(http: aiohttp.ClientSession) -> None:
    async with serving(config(max_body=2000)) as (_, memory, url):
        bomb = gzip.compress(b"[" + b" " * 2000 + b"]")
        assert len(bomb) < 100
        status, _, _ = await post(http, url + "/v4/events/batch", bomb, headers={"Content-Encoding": "gzip"})
        assert status == 413 and not memory.parcels
        exact = gzip.compress(b"[" + b" " * 1998 + b"]")
        status, _, _ = await post(http, url + "/v4/events/batch", exact, headers={"Content-Encoding": "gzip"})
        assert status == 202


async def test_too_large_is_413_declared_or_streamed(http: aiohttp.ClientSession) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 100

    async with serving(config(max_body=2000)) as (server, _, url):
        status, _, body = await post(http, url + "/v4/events/batch", b" " * 2001)
        assert status == 413 and "2000" in body["message"]
        headers = {"Content-Type": "application/json"}
        async with http.post(url + "/v4/events/batch", data=stream(), headers=headers) as answer:
            assert answer.status == 413
        assert server.bytes_in_flight == 0


def test_a_body_never_exceeds_half_the_log_of_a_small_buffer() -> None:
    small = msgspec.convert({"buffer": {"max_size": 4 << 20}}, Config)
    memory: Any = Memory()
    server = Server(small, memory, memory, memory, tokens=Tokens(None), admin_token=memory)
    assert server.max_body == 512 * 1024


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "br"}, 415),
        ({"Content-Type": "application/json; charset=UTF-8", "Content-Encoding": "identity"}, 202),
    ],
)
async def test_only_json_in_utf_8_plain_or_gzip(
    http: aiohttp.ClientSession, headers: dict[str, str], status: int
) -> None:
    async with serving() as (_, _, url):
        assert (await post(http, url + "/v4/events/batch", [EVENT], headers=headers))[0] == status


async def raw(url: str, request: bytes) -> bytes:
    """What the server answers to these bytes, until it closes or has nothing more to say."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        length = re.search(rb"Content-Length: (\d+)", head)
        return head + await asyncio.wait_for(reader.readexactly(int(length[1]) if length else 0), 10)
    finally:
        writer.close()


HEAD = b"POST /v4/events/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


async def test_a_slow_sender_gets_408() -> None:
    async with serving(body_timeout_s=0.05) as (server, _, url):
        answer = await raw(url, HEAD + b"Content-Length: 100\r\n\r\n[")
        assert answer.startswith(b"HTTP/1.1 408 ") and b"Connection: close" in answer
        assert server.bytes_in_flight == 0


async def test_a_client_that_waits_for_100_continue_is_told_to_go_on() -> None:
    async with serving() as (_, _, url):
        answer = await raw(url, HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")


async def test_a_broken_chunk_is_refused_and_not_quoted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (_, memory, url):
        answer = await raw(url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\nnonsense\r\n\r\n")
        assert re.match(rb"HTTP/1\.\d 400 ", answer) and not memory.parcels
        assert caplog.text == ""  # aiohttp would log a traceback that quotes what was sent


async def test_a_client_that_hangs_up_leaves_nothing_behind() -> None:
    async with serving() as (server, memory, url):
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(HEAD + b"Content-Length: 1000\r\n\r\n[" + b" " * 100)
        await until(lambda: server.bytes_in_flight)
        writer.close()
        await until(lambda: not server.bytes_in_flight)
        assert not memory.parcels


async def test_a_saturated_server_asks_to_come_back(http: aiohttp.ClientSession) -> None:
    async with serving(config(max_body=5000), max_in_flight=10_000) as (server, memory, url):
        memory.hold = asyncio.Event()
        big = json.dumps([EVENT | {"params": {"x": "y" * 4500}}]).encode()
        waiting = [asyncio.create_task(post(http, url + "/v4/events/batch", big)) for _ in range(2)]
        await until(lambda: server.in_progress == 2)
        status, headers, _ = await post(http, url + "/v4/events/batch", big)
        assert (status, headers["Retry-After"]) == (503, "1")
        memory.hold.set()
        assert [(await task)[0] for task in waiting] == [202, 202]
        assert (await post(http, url + "/v4/events/batch", big))[0] == 202


# Who may


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8787", "[::1]", "[::1]:9", "pos.shop"]
)
async def test_own_hosts_are_served_on_loopback(http: aiohttp.ClientSession, host: str) -> None:
    async with serving(config(allowed_hosts=["pos.shop"])) as (_, _, url):
        assert (await post(http, url + "/v4/events/batch", [], headers={"Host": host}))[0] == 202


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8787", "[", ""])
async def test_a_rebound_name_is_not_served_on_loopback(http: aiohttp.ClientSession, host: str) -> None:
    async with serving() as (_, memory, url):
        for path in ("/v4/events/batch", "/"):
            assert (await post(http, url + path, [EVENT], headers={"Host": host}))[0] == 421
        assert not memory.parcels


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
        ("http://localhost:1", 403),
        ("http://localhost", 202),
    ],
)
async def test_a_page_of_another_origin_cannot_post(http: aiohttp.ClientSession, origin: str, status: int) -> None:
    async with serving() as (_, _, url):
        headers = {"Host": "localhost", "Origin": origin}
        assert (await post(http, url + "/v4/events/batch", [], headers=headers))[0] == status


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(b"whoever:" + password.encode()).decode()


async def test_an_ingest_token_is_asked_for_in_three_forms(http: aiohttp.ClientSession) -> None:
    async with serving(token="s3cret") as (_, memory, url):
        login = await post(http, url + "/uauth/v2/auth/login/profile", {"apiKey": "s3cret"})
        assert login[0] == 200
        for credentials in ("Bearer s3cret", "bearer s3cret", "Bearer " + login[2]["token"], basic("s3cret")):
            headers = {"Authorization": credentials}
            assert (await post(http, url + "/v4/events/batch", [EVENT], headers=headers))[0] == 202
        wrong = ["", "Bearer", "Bearer x", "Basic x", "Basic !", basic("x"), basic(""), "Token s3cret", "Bearer ü",
                 basic(login[2]["token"])]  # fmt: skip
        for credentials in wrong:
            headers = {"Authorization": credentials}
            status, _, body = await post(http, url + "/v4/events/batch", [EVENT], headers=headers)
            assert (status, "s3cret" in json.dumps(body)) == (401, False)
        assert len(memory.records) == 4


@pytest.mark.parametrize("path", ["/uauth/v2/auth/login/profile", "/v4/auth/login/profile"])
async def test_login_wants_the_ingest_token_as_api_key(http: aiohttp.ClientSession, path: str) -> None:
    async with serving(token="s3cret") as (_, _, url):
        status, _, body = await post(http, url + path, {"apiKey": "other"})
        assert (status, body["status"], "other" in json.dumps(body)) == (401, 401, False)
        assert (await post(http, url + path, {}))[0] == 400
        assert (await post(http, url + path, b"{"))[0] == 400


async def test_without_an_ingest_token_every_key_and_authorization_will_do(http: aiohttp.ClientSession) -> None:
    async with serving() as (_, _, url):
        status, _, body = await post(http, url + "/uauth/v2/auth/login/profile", {"apiKey": "anything"})
        assert status == 200 and "anything" not in body["token"]
        for credentials in ("Bearer " + body["token"], "Bearer x", "nonsense"):
            headers = {"Authorization": credentials}
            assert (await post(http, url + "/v4/events/batch", [], headers=headers))[0] == 202


async def test_a_local_token_survives_a_restart_and_refresh_gives_one(http: aiohttp.ClientSession) -> None:
    async with serving(token="s3cret") as (_, _, url):
        token = (await post(http, url + "/v4/auth/login/profile", {"apiKey": "s3cret"}))[2]["token"]
    async with serving(token="s3cret") as (_, _, url):
        headers = {"Authorization": f"Bearer {token}"}
        async with http.get(url + "/v4/auth/refresh/profile", headers=headers) as answer:
            fresh = (await answer.json())["token"]
        headers = {"Authorization": f"Bearer {fresh}"}
        assert (await post(http, url + "/v4/events/batch", [], headers=headers))[0] == 202
        async with http.get(url + "/v4/auth/refresh/profile") as answer:
            assert answer.status == 401
    async with serving(token="replaced") as (_, _, url):
        assert (await post(http, url + "/v4/events/batch", [], headers=headers))[0] == 401


def test_a_replaced_token_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    from collector.secret import Secret

    tokens = Tokens(Secret("token", file=str(file), source="the test"))
    assert tokens.admits("Bearer one") and not tokens.admits("Bearer two")
    file.write_text("two\n")
    assert tokens.admits("Bearer two") and not tokens.admits("Bearer one")


async def test_an_unreadable_token_is_503_not_an_open_door(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    from collector.secret import Secret

    async with serving(token="s") as (server, _, url):
        server._tokens = Tokens(Secret("token", file=str(tmp_path / "gone"), source="the test"))
        headers = {"Authorization": "Bearer s"}
        assert (await post(http, url + "/v4/events/batch", [], headers=headers))[0] == 503


async def test_an_open_address_without_a_token_is_refused_at_the_start() -> None:
    for address in ("0.0.0.0:0", "[::]:0"):
        with pytest.raises(ConfigError, match="without a token"):
            async with serving(config(listen=[address])):
                pass
    async with serving(config(listen=["0.0.0.0:0"]), token="s3cret") as (server, _, _):
        assert server.addresses[0].startswith("0.0.0.0:")


# The log


async def test_refusals_are_a_line_now_and_then_that_quotes_nothing(http: aiohttp.ClientSession) -> None:
    with capture_logs() as lines:
        async with serving(token="s3cret") as (server, _, url):
            for _ in range(5):
                assert (await post(http, url + "/v4/events/batch", [EVENT]))[0] == 401
            server._tokens = Tokens(None)
            assert (await post(http, url + "/v4/events/batch", [{"type": "anna@example.com"}]))[0] == 400
    told = [line for line in lines if line["event"] == "ingest.refused"]
    assert [(line["status"], line["requests"]) for line in told] == [(401, 1), (400, 1)]
    assert "anna" not in str(lines)


# Health and pages


async def test_readiness_has_a_line_per_check_and_liveness_only_what_is_vital(http: aiohttp.ClientSession) -> None:
    async with serving() as (server, memory, url):
        async with http.get(url + "/readyz") as answer:
            assert (answer.status, await answer.text()) == (200, "[+] server\n[+] buffer: 12 of 512 MiB\n")
        server.accepting = False
        memory.failing = [Check("lanes", False, "failed")]
        async with http.get(url + "/readyz?verbose") as answer:
            assert answer.status == 503
            told = "[-] server: stopping\n[+] buffer: 12 of 512 MiB\n[-] lanes: failed\n"
            assert await answer.text() == told + "[+] lane events/email/live: sending\n"
        async with http.get(url + "/livez") as answer:
            assert answer.status == 200
        assert (await post(http, url + "/v4/events/batch", [EVENT]))[0] == 202


async def test_metrics_status_and_head(http: aiohttp.ClientSession) -> None:
    async with serving(token="s3cret") as (_, _, url):
        async with http.get(url + "/metrics") as answer:
            assert answer.status == 200 and answer.content_type == "text/plain"
        async with http.get(url + "/status.json") as answer:
            assert (await answer.json())["state"] == "running"
        async with http.head(url + "/status.json") as answer:
            assert answer.status == 200


async def test_the_page_escapes_what_it_shows_and_allows_only_scripts_of_its_own(http: aiohttp.ClientSession) -> None:
    async with serving() as (_, _, url), http.get(url + "/") as answer:
        text = await answer.text()
        policy = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not re.search(r'<script(?! src="/page/[a-z]+\.js" defer></script>)|<style|\sstyle=|\son[a-z]+=', text)
    assert policy["default-src"] == "'none'" and policy["form-action"] == "'none'"
    assert all(policy[kind] == "'self'" for kind in ("script-src", "style-src", "img-src", "connect-src"))


async def test_what_the_page_needs_is_served_beside_it(http: aiohttp.ClientSession) -> None:
    async with serving() as (_, _, url):
        async with http.get(url + "/") as answer:
            wanted = re.findall(r'(?:src|href)="(/page/[^"]+)"', await answer.text())
        assert sorted(wanted) == sorted(page.ASSETS)
        for path in wanted:
            async with http.get(url + path) as answer:
                assert (answer.status, answer.headers["Content-Type"]) == (200, page.ASSETS[path])
                assert answer.headers["X-Content-Type-Options"] == "nosniff" and await answer.read()
            async with http.head(url + path) as answer:
                assert (answer.status, await answer.read()) == (200, b"")
            async with http.get(url + path, headers={"Host": "evil.example"}) as answer:
                assert answer.status == 421
            async with http.get(url + path, headers={"Origin": "http://evil.example"}) as answer:
                assert answer.status == 403
        async with http.get(url + "/page/uplot.LICENSE") as answer:
            assert answer.status == 404


@pytest.mark.parametrize(("query", "minutes"), [("", 60), ("?minutes=1", 1), ("?minutes=1440", 1440)])
async def test_the_history_goes_back_as_far_as_it_is_asked_to(
    http: aiohttp.ClientSession, query: str, minutes: int
) -> None:
    async with serving() as (_, _, url), http.get(url + "/history.json" + query) as answer:
        assert (await answer.json())["accepted"] == [minutes]


@pytest.mark.parametrize("asked", ["0", "1441", "x", "²", "-1", ""])
async def test_a_history_of_no_length_or_of_days_is_refused(http: aiohttp.ClientSession, asked: str) -> None:
    async with serving() as (_, _, url), http.get(url + "/history.json", params={"minutes": asked}) as answer:
        assert answer.status == 400
        assert (await answer.json())["message"] == "minutes must be 1 to 1440"


async def test_the_openapi_document_names_exactly_what_is_served(http: aiohttp.ClientSession) -> None:
    async with serving() as (server, _, url), http.get(url + "/openapi.json") as answer:
        document = await answer.json(content_type="application/json")
    served = {(path, method) for path, methods in server._table.items() for method in methods}
    assert document["openapi"].startswith("3.1")
    assert {(path, method.upper()) for path, item in document["paths"].items() for method in item} == served
    for found in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)):
        target = document
        for part in found.split("/"):
            target = target[part]


# Operations


async def test_operations_need_the_admin_token_over_tcp(http: aiohttp.ClientSession) -> None:
    async with serving(token="s3cret", admin="boss") as (_, memory, url):
        for credentials in ("", "Bearer s3cret", "Bearer x"):
            status, _, _ = await post(http, url + "/v1/drain", headers={"Authorization": credentials})
            assert status == 403
        assert (await post(http, url + "/v1/drain", headers={"Authorization": "Bearer boss"}))[0] == 202
        assert memory.calls == [("drain",)]
    async with serving() as (_, _, url):
        assert (await post(http, url + "/v1/drain"))[0] == 403


@pytest.mark.parametrize("wanted", [2**63, -(2**63) - 1, 10**30])
async def test_a_number_no_dead_letter_can_have_is_no_fault_of_the_collector(
    http: aiohttp.ClientSession, wanted: int
) -> None:
    boss = {"Authorization": "Bearer boss"}
    async with serving(admin="boss") as (_, memory, url):
        for operation in ("retry", "discard"):
            status, _, body = await post(http, f"{url}/v1/dead-letters/{operation}", {"ids": [wanted]}, headers=boss)
            assert status == 400
            assert "$.ids[0]" in body["message"]
        assert memory.calls == []
        async with http.get(f"{url}/v1/dead-letters?after={wanted}", headers=boss) as answer:
            assert answer.status == 200
            assert abs((await answer.json())["asked"][1]) < 2**63


async def test_the_admin_socket_is_private_and_needs_no_token(tmp_path: Path) -> None:
    path = tmp_path / "tillpost.db.sock"
    async with serving(config(listen=[]), admin_socket=path) as (_, memory, _):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http:
            base = "http://localhost/v1"
            assert (await post(http, base + "/dead-letters/retry", {"ids": [1, 2], "force": True}))[2] == {"count": 1}
            assert (await post(http, base + "/dead-letters/retry", {"all": True}))[0] == 200
            assert (await post(http, base + "/dead-letters/discard", {"ids": [3]}))[0] == 200
            assert (await post(http, base + "/lanes/resume", {"lane": "events/email/live"}))[0] == 200
            assert (await post(http, base + "/lanes/resume", b""))[0] == 200
            assert (await post(http, base + "/find", {"order_id": "T-1"}))[0] == 200
            assert (await post(http, base + "/forget", {"client": {"email": "a@b.pl"}}))[0] == 200
            async with http.get(base + "/dead-letters?limit=5&after=7") as answer:
                assert (await answer.json())["asked"] == [5, 7]
            wrong: list[tuple[str, Any]] = [
                ("/dead-letters/retry", {}),
                ("/dead-letters/retry", {"ids": [1], "all": True}),
                ("/dead-letters/discard", b"["),
                ("/find", {}),
                ("/find", []),
                ("/lanes/resume", {"x": 1}),
            ]
            for path_, body in wrong:
                assert (await post(http, base + path_, body))[0] == 400
            async with http.get(base + "/dead-letters?limit=x") as answer:
                assert answer.status == 400
            async with http.get(base + "/nothing") as answer:
                assert answer.status == 404
        assert memory.calls == [
            ("retry", [1, 2], True),
            ("retry", None, False),
            ("discard", [3]),
            ("resume", "events/email/live"),
            ("resume", None),
            ("find", {"order_id": "T-1"}),
            ("forget", {"client": {"email": "a@b.pl"}}),
        ]
    assert not path.exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc/self/fd")
async def test_an_admin_socket_whose_path_is_too_long_works_too(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    path = folder / "tillpost.db.sock"
    async with serving(config(listen=[]), admin_socket=path):
        assert stat.S_ISSOCK(path.stat().st_mode)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            connector = aiohttp.UnixConnector(f"/proc/self/fd/{descriptor}/{path.name}")
            async with aiohttp.ClientSession(connector=connector) as http:
                assert (await post(http, "http://localhost/v1/drain"))[0] == 202
        finally:
            os.close(descriptor)
    assert not path.exists()


# Sockets


@pytest.fixture
def folder() -> Any:
    with tempfile.TemporaryDirectory(prefix="tp") as name:
        yield Path(name)


async def test_a_unix_listener_has_the_mode_it_was_given(folder: Path) -> None:
    path = folder / "in.sock"
    async with serving(config(listen=[f"unix:{path}"], socket_mode="0660")) as (server, memory, _):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert server.addresses == [f"unix:{path}"]
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http:
            assert (await post(http, "http://whatever/v4/events/batch", [EVENT]))[0] == 202
            assert (await post(http, "http://whatever/v1/drain"))[0] == 403
        assert len(memory.records) == 1


async def test_a_stale_socket_is_replaced(folder: Path) -> None:
    path = folder / "in.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with serving(config(listen=[f"unix:{path}"])):
        pass


async def test_a_live_socket_stays_with_its_owner(folder: Path) -> None:
    path = folder / "in.sock"
    settings = config(listen=[f"unix:{path}"])
    async with serving(settings) as (_, memory, _):
        with pytest.raises(ListenError, match="another process listens there"):
            async with serving(settings):
                pass
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http:
            assert (await post(http, "http://x/v4/events/batch", [EVENT]))[0] == 202
        assert len(memory.records) == 1


async def test_a_file_that_is_no_socket_is_never_removed(folder: Path) -> None:
    path = folder / "precious"
    path.write_text("data")
    with pytest.raises(ListenError, match="no socket"):
        async with serving(config(listen=[f"unix:{path}"])):
            pass
    assert path.read_text() == "data"


async def test_an_address_in_use_is_named_and_nothing_stays_open(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = folder / "in.sock"
        with pytest.raises(ListenError, match=f"127.0.0.1:{port}.*in use"):
            async with serving(config(listen=[f"unix:{path}", f"127.0.0.1:{port}"])):
                pass
        assert not path.exists()


# Embedded


async def test_the_embedded_tracker_is_served_by_the_same_function() -> None:
    async with serving(config(listen=[])) as (server, memory, _):
        before = server.last_ingest
        body = json.dumps([{"type": "logged-in", "label": "x", "client": {"id": 1}}]).encode()
        headers = {"Tillpost-Clock": "boot=b-1; offset=5; now=7; given=0", "Tillpost-Priority": "bulk"}
        status, answered, content = await server.receive("/v4/events/batch", body, headers)
        assert (status, answered, content) == (202, {"Tillpost-Accepted": "1"}, b"")
        assert str(memory.parcels[0].lane) == "events/id/bulk"
        assert memory.clocks[0] is not None and memory.clocks[0].boot == "b-1"
        assert memory.records[0]["time"] == "2026-05-04T09:55:00.000Z" and memory.parcels[0].runs[0].latest_ms == NOW_MS
        assert server.last_ingest >= before
        assert (await server.receive("/v4/events/batch", b" " * (server.max_body + 1), {}))[0] == 413


def test_secrets_do_not_show() -> None:
    tokens = Tokens(secret("s3cret"))
    assert "s3cret" not in repr(tokens) + str(vars(tokens)) + repr(secret("s3cret"))
