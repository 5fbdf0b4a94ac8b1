"""Requests against real sockets: what arrives, and what becomes of every kind of trouble."""

import asyncio
import gzip
import re
import socket
import ssl
import threading
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from collector.chunks import Batch, Chunk, ends_of
from collector.config import UpstreamConfig
from collector.credentials import Given
from collector.delivery import Http, HttpUpstream, OwnThreadResolver, base_url, is_loopback
from collector.kinds import Lane, Run
from collector.outcomes import BODY_MAX, Answer, Delivered, Forbidden, Later, Outcome, Paused, Rejected, TooLarge
from tests.collector.scripted import Scripted, Step, answer, close, cut, endless, hang, reset
from tracker.time import SystemClock

JSON = "Content-Type: application/json"
SECRET = "s3cr3t-key"
TLS = Path(__file__).parent / "tls"
"""Certificates made for these tests, valid from 2020 to 2120 where their name does not say otherwise."""


def serving(certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{certificate}.pem", TLS / "key.pem")
    return context


def batch_of(count: int = 2, lane: str = "events/email/live", pad: int = 0) -> Batch:
    records = [
        orjson.dumps({"type": "custom", "action": "a.b", "label": "x", "time": "2026-05-04T09:53:56.999Z",
                      "eventSalt": f"s{i}", "client": {"email": "a@example.com"}, "params": {"pad": "p" * pad}})
        for i in range(count)
    ]  # fmt: skip
    body = b",".join(records)
    chunk = Chunk(1, Lane.parse(lane), body, array("I", ends_of(records)), (Run(count, 0, None, 0),), 0)
    return Batch.of(chunk.lane, chunk.spans())


@asynccontextmanager
async def upstream_at(url: str, **config: Any) -> AsyncIterator[HttpUpstream]:
    http = Http(UpstreamConfig(url=url, **config), SystemClock())
    try:
        yield HttpUpstream(http, Given(lambda: SECRET, lambda token: f"Bearer {token}"))
    finally:
        await http.close()


async def outcome_of(*steps: Step, count: int = 2, timeout: float = 5.0) -> Outcome:
    async with Scripted(*steps) as server, upstream_at(server.url, timeout=timeout) as upstream:
        return await upstream.deliver(batch_of(count))


async def test_a_batch_arrives_as_the_api_wants_it() -> None:
    async with Scripted(answer(202)) as server, upstream_at(server.url + "/base/") as upstream:
        batch = batch_of(3)
        assert await upstream.deliver(batch) == Delivered()
        assert await upstream.deliver(batch_of(1, "transactions/email/live")) == Delivered()
    first, second = server.seen
    assert (first.method, first.path, first.body) == ("POST", "/base/v4/events/batch", batch.body)
    assert second.path == "/base/v4/transactions/batch"
    wanted = {
        "Api-Version": "4.4",
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Authorization": f"Bearer {SECRET}",
        "Content-Length": str(len(batch.body)),
    }
    assert wanted.items() <= first.headers.items()
    assert server.connections == 1, "the connection is kept"


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([answer(202)], Delivered),
        ([answer(200, b"{}", JSON)], Delivered),
        ([answer(200, gzip.compress(b"{}"), JSON, "Content-Encoding: gzip")], Delivered),
        ([answer(200, b"<html>hotel</html>", "Content-Type: text/html")], Later),
        ([cut(answer(202, b'{"a":1}', JSON, length=900))], Later),
        ([answer(200, gzip.compress(b"{}" + b" " * 10_000_000), JSON, "Content-Encoding: gzip")], Later),
        ([answer(302, b"", "Location: http://127.0.0.1:1/login")], Paused),
        ([answer(404)], Paused),
        ([answer(413, b"<html>too large</html>", "Content-Type: text/html")], TooLarge),
        ([answer(400, b'{"message":"bad"}', JSON)], Rejected),
        ([answer(503, b"", "Retry-After: 7")], Later),
        ([cut(b"220 mail.example.com ESMTP\r\n\r\n")], Later),
        ([reset], Later),
        ([close], Later),
        ([endless], Later),
    ],
)
async def test_every_kind_of_answer(steps: list[Step], kind: type) -> None:
    found = await outcome_of(*steps)
    assert isinstance(found, kind), found
    assert not (isinstance(found, Later) and found.offline)


async def test_an_answer_that_never_comes_ends_with_the_timeout() -> None:
    found = await outcome_of(hang, timeout=0.2)
    assert isinstance(found, Later)
    assert not found.offline
    assert found.sticks


async def test_a_redirect_is_not_followed_and_the_credentials_go_nowhere_else() -> None:
    async with (
        Scripted(answer(202)) as elsewhere,
        Scripted(answer(307, b"", f"Location: {elsewhere.url}/v4/events/batch")) as server,
        upstream_at(server.url) as upstream,
    ):
        assert isinstance(await upstream.deliver(batch_of()), Paused)
    assert not elsewhere.seen


async def test_of_a_refusal_without_end_enough_is_read_to_judge_it() -> None:
    async def refusal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\n\r\n{"errors":[{"field":"[1].label"},')
        while not writer.is_closing():
            writer.write(b" " * 8192)
            await writer.drain()

    found = await outcome_of(refusal)
    assert isinstance(found, Rejected)
    assert found.hints == (1,)
    assert len(found.answer) <= BODY_MAX


async def test_the_status_of_an_error_counts_although_its_body_breaks_off() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 No\r\nContent-Length: 100\r\n\r\n{")
        await reader.read()

    assert isinstance(await outcome_of(drip, timeout=0.2), Paused)


async def test_refused_connections_and_unknown_names_are_offline() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with upstream_at(f"http://127.0.0.1:{unused.getsockname()[1]}") as upstream:
            found = await upstream.deliver(batch_of())
    assert isinstance(found, Later)
    assert found.offline


async def test_a_lookup_that_hangs_blocks_nothing_and_is_not_started_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    release, lookups = threading.Event(), []

    def slow(host: str, *args: Any, **kwargs: Any) -> Any:
        lookups.append((host, threading.current_thread().name, threading.current_thread().daemon))
        release.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        async with upstream_at("http://upstream.test", timeout=0.1, allow_http=True) as upstream:
            for _ in range(3):
                found = await upstream.deliver(batch_of())
                assert isinstance(found, Later)
                assert found.offline
    finally:
        release.set()
    assert lookups == [("upstream.test", "tillpost-dns", True)]


async def test_names_are_resolved_and_failures_are_os_errors() -> None:
    resolver = OwnThreadResolver()
    found = await resolver.resolve("127.0.0.1", 80, socket.AF_INET)
    assert [(r["host"], r["port"]) for r in found] == [("127.0.0.1", 80)]
    with pytest.raises(OSError, match="host"):
        await resolver.resolve("a" * 70 + ".example", 80, socket.AF_INET)
    await resolver.close()


async def test_in_a_chain_bulk_stays_bulk_and_the_count_must_agree() -> None:
    accepted = answer(202, b"", "Tillpost-Accepted: 2")
    async with Scripted(accepted, accepted, answer(202)) as server, upstream_at(server.url) as upstream:
        assert await upstream.deliver(batch_of(2, "events/email/bulk")) == Delivered()
        assert await upstream.deliver(batch_of(2, "events/email/bulk")) == Delivered()
        assert isinstance(await upstream.deliver(batch_of(2)), Later)
    assert "Tillpost-Priority" not in server.seen[0].headers, "not before it is known to be a collector"
    assert server.seen[1].headers["Tillpost-Priority"] == "bulk"
    assert "Tillpost-Priority" not in server.seen[2].headers


@pytest.mark.parametrize("status", [401, 403])
async def test_a_static_token_read_again_is_tried_once_more(status: int) -> None:
    tokens = ["old", "new"]
    async with Scripted(answer(status), answer(202)) as server:
        http = Http(UpstreamConfig(url=server.url), SystemClock())
        upstream = HttpUpstream(http, Given(lambda: tokens.pop(0), lambda token: f"Bearer {token}"))
        assert await upstream.deliver(batch_of()) == Delivered()
        await http.close()
    assert [seen.headers["Authorization"] for seen in server.seen] == ["Bearer old", "Bearer new"]


@pytest.mark.parametrize(("status", "kind"), [(401, Paused), (403, Forbidden)])
async def test_the_same_static_token_is_not_tried_twice(status: int, kind: type) -> None:
    async with Scripted(answer(status)) as server, upstream_at(server.url) as upstream:
        assert isinstance(await upstream.deliver(batch_of()), kind)
    assert len(server.seen) == 1


async def test_every_answer_is_shown_with_the_times_around_it() -> None:
    seen: list[Answer] = []
    async with Scripted(answer(202, b"", "Date: Mon, 04 May 2026 09:53:56 GMT")) as server:
        http = Http(UpstreamConfig(url=server.url), SystemClock())
        http.on_answer = seen.append
        await http.request("GET", "/v4/server/time")
        await http.close()
    (found,) = seen
    assert found.headers["date"] == "Mon, 04 May 2026 09:53:56 GMT"
    assert 0 < found.sent_boot_ms <= found.received_boot_ms


# -- certificates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("certificate", "says"),
    [
        ("expired", "has expired, or this machine's clock .* is fast"),
        ("early", "not valid yet: this machine's clock .* slow"),
        ("other", "is not for 127.0.0.1"),
    ],
)
async def test_a_wrong_certificate_pauses_and_says_what_is_wrong_with_it(certificate: str, says: str) -> None:
    async with (
        Scripted(answer(202), tls=serving(certificate)) as server,
        upstream_at(server.url, ca_file=str(TLS / "authority.pem")) as upstream,
    ):
        found = await upstream.deliver(batch_of())
    assert isinstance(found, Paused)
    assert re.search(says, found.reason), found.reason
    assert not server.seen, "nothing was sent"


async def test_a_certificate_of_a_known_authority_is_good_and_of_an_unknown_one_is_not() -> None:
    async with Scripted(answer(202), tls=serving("good")) as server:
        async with upstream_at(server.url, ca_file=str(TLS / "authority.pem")) as upstream:
            assert await upstream.deliver(batch_of()) == Delivered()
        async with upstream_at(server.url) as upstream:
            found = await upstream.deliver(batch_of())
    assert isinstance(found, Paused)
    assert "ca_file" in found.reason


async def test_plain_http_where_tls_is_expected_pauses_and_a_broken_handshake_waits() -> None:
    async def not_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.close()

    for behaviour, kind in ((not_tls, Paused), (hangs_up, Later)):
        server = await asyncio.start_server(behaviour, "127.0.0.1", 0)
        async with upstream_at(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}") as upstream:
            assert isinstance(await upstream.deliver(batch_of()), kind)
        server.close()


# -- proxies ------------------------------------------------------------------------------------


async def test_loopback_is_never_proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert await outcome_of(answer(202)) == Delivered()


async def test_a_proxy_of_the_environment_is_used_with_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Scripted(answer(202)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:pass@127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with upstream_at("http://upstream.test", allow_http=True) as upstream:
            assert await upstream.deliver(batch_of()) == Delivered()
    assert proxy.seen[0].path == "http://upstream.test/v4/events/batch"
    assert proxy.seen[0].headers["Proxy-Authorization"] == "Basic dXNlcjpwYXNz"


@pytest.mark.parametrize(("status", "kind", "offline"), [(407, Paused, None), (502, Later, True), (403, Later, True)])
async def test_a_proxy_that_makes_no_tunnel(
    monkeypatch: pytest.MonkeyPatch, status: int, kind: type, offline: bool | None
) -> None:
    async with Scripted(answer(status)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        async with upstream_at("https://upstream.test") as upstream:
            found = await upstream.deliver(batch_of())
    assert isinstance(found, kind)
    assert getattr(found, "offline", None) == offline
    assert proxy.seen[0].method == "CONNECT"
    assert "Authorization" not in proxy.seen[0].headers


# -- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://api.synerise.com", "https"),
        ("ftp://api.synerise.com", "look like"),
        ("api.synerise.com", "look like"),
        ("", "look like"),
        ("https://", "look like|not a URL"),
        ("https://user:pw@api.synerise.com", "user"),
        ("https://api.synerise.com/?a=1", "path"),
        ("https://api.synerise.com:99999", "not a URL|port"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_with_what_to_do(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        base_url(UpstreamConfig(url=url))


@pytest.mark.parametrize(
    "url", ["https://api.synerise.com", "http://localhost:1", "http://127.0.0.5:8787", "http://[::1]:1/x"]
)
def test_https_or_loopback_is_taken(url: str) -> None:
    assert str(base_url(UpstreamConfig(url=url))).startswith(url)
    assert base_url(UpstreamConfig(url="http://shop-server:8787", allow_http=True)).host == "shop-server"


def test_loopback_is_the_machine_and_nothing_else() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "::1", "127.9.9.9", "a.localhost")))
    assert not any(map(is_loopback, ("localhost.example.com", "10.0.0.1", "128.0.0.1", "example.com")))


def test_a_file_of_authorities_that_is_none_is_refused(tmp_path: Any) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "absent.pem"):
        with pytest.raises(ValueError, match=r"upstream\.ca_file .*pem"):
            Http(UpstreamConfig(ca_file=str(tmp_path / name)), SystemClock())


def test_no_object_shows_a_secret() -> None:
    given = Given(lambda: SECRET, lambda token: f"Bearer {token}")
    http = Http(UpstreamConfig(), SystemClock())
    shown: Callable[[object], str] = lambda thing: repr(thing) + str(thing)  # noqa: E731
    assert SECRET not in shown(given) + shown(http) + shown(HttpUpstream(http, given))
