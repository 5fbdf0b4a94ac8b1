"""Between the collector and the upstream lies a road with holes. Nothing is lost on it, nothing counted twice."""

import asyncio
import re
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from collector.testing import FakeUpstream
from tests.collector.scripted import answer
from tests.faults.road import End, Passed, Road, Stage
from tests.faults.scene import carried, moment, scene, until

STAGES: dict[str, tuple[Stage, int]] = {
    "before anything is read": ("connect", 0),
    "when the head was read": ("body", 0),
    "in the middle of the body": ("body", 1000),
    "before the answer": ("request", 0),
    "after it was stored": ("answer", 0),
    "in the middle of the answer": ("answer", 20),
}
ENDS: tuple[End, ...] = ("reset", "close", "half-close", "hang")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("end", ENDS)
def test_a_connection_that_ends_anywhere_costs_nothing_but_time(tmp_path: Path, stage: str, end: End) -> None:
    at, keep = STAGES[stage]
    # where nobody says that it is over only time tells, and on a busy machine some answers are late of themselves
    by_time = end == "hang"
    with scene(tmp_path, upstream={"timeout": "400ms" if by_time else "10s"}) as now:
        hole = now.road.hole(at, end, keep=keep, times=3)
        now.road.hang_up()  # a connection that was kept would never meet one at "connect"
        now.accept()
        now.arrived()
        assert hole.hits >= 1
        lost = now.fake.overwritten > 0
        assert lost or at != "answer", "a lost answer makes a resend of what was stored"
        assert not lost or at == "answer" or by_time, "nothing else does"


@pytest.mark.parametrize("how", ["refuse", "black_hole"])
def test_where_no_connection_can_be_made_nothing_counts_as_an_attempt(tmp_path: Path, how: str) -> None:
    with scene(tmp_path, upstream={"timeout": "1s"}) as now:
        now.accept()
        now.arrived()
        getattr(now.road, how)()
        now.accept()
        now.all_have_been("backing-off")
        moment(0.2)
        assert [lane["attempts"] for lane in now.lanes] == [0, 0, 0]
        now.kept(25)
        now.road.open()
        now.arrived()


def test_a_kept_connection_that_a_router_forgot_ends_with_the_timeout(tmp_path: Path) -> None:
    with scene(tmp_path) as now:
        now.accept()
        now.arrived()
        connections = now.road.connections
        hole = now.road.hole("body", "hang", times=3)
        now.accept()
        now.arrived()
        assert hole.hits >= 1
        assert now.road.connections > connections, "never the same connection again"


@pytest.mark.parametrize("end", ["drip", "endless"])
def test_an_answer_that_does_not_end_is_given_up_within_the_timeout(tmp_path: Path, end: End) -> None:
    with scene(tmp_path) as now:
        stage: Stage = "answer" if end == "drip" else "request"
        head = b"" if end == "drip" else b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\n\r\n"
        hole = now.road.hole(stage, end, times=3, wait_s=0.01, say=head)
        now.accept()
        now.arrived()
        assert hole.hits == 3


@pytest.mark.parametrize("status", [400, 500])
def test_of_an_error_of_a_gigabyte_only_the_beginning_is_read(tmp_path: Path, status: int) -> None:
    with scene(tmp_path) as now:
        head = f"HTTP/1.1 {status} No\r\nContent-Length: 1000000000\r\nContent-Type: text/html\r\n\r\n<html>"
        hole = now.road.hole("request", "endless", times=3, say=head.encode())
        now.accept()
        now.arrived()
        assert hole.hits == 3


def test_a_slow_road_is_a_road(tmp_path: Path) -> None:
    with scene(tmp_path, upstream={"timeout": "10s"}) as now:
        now.road.hole("request", "pass", times=None, wait_s=0.05, path="")
        for _ in range(3):
            now.accept()
        now.arrived()
        assert now.fake.overwritten == 0


def test_a_link_that_flaps_lets_everything_through_bit_by_bit(tmp_path: Path) -> None:
    with scene(tmp_path, batch={"linger": 0, "max_records": 10, "transactions": {"max_records": 10}}) as now:
        now.road.hole("request", "pass", times=None, wait_s=0.01, path="")
        ups, settled = 0, 0
        for _ in range(20):
            now.accept(20, 10)
        while (left := now.ledger["pending"]) and ups < 200:
            now.road.open()
            ups += 1
            moment(0.06)
            now.road.refuse()
            settled = now.ledger["delivered"]
            moment(0.06)
            assert now.ledger["delivered"] >= settled
            assert all(lane["attempts"] <= 2 for lane in now.lanes), "being offline is no attempt"
        assert ups >= 3
        assert not left
        now.road.open()
        now.arrived()


# -- names --------------------------------------------------------------------------------------


def test_names_that_cannot_be_looked_up_or_only_slowly_hold_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lookups = socket.getaddrinfo, 0
    answer_now, way = threading.Event(), "fails"

    def look_up(host: str, *args: Any, **more: Any) -> Any:
        nonlocal lookups
        if host != "upstream.test":
            return real(host, *args, **more)
        lookups += 1
        if way == "fails":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if way == "hangs":
            answer_now.wait(30)
        return real("127.0.0.1", *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with scene(tmp_path, url="http://upstream.test:{port}", upstream={"allow_http": True}) as now:
        now.accept()
        now.all_have_been("backing-off")
        until("it to be tried again", lambda: lookups > 3)
        assert [lane["attempts"] for lane in now.lanes] == [0, 0, 0]
        way = "hangs"
        before = lookups
        until("a lookup to hang", lambda: lookups > before)
        for _ in range(20):
            begun = time.monotonic()
            now.accept()
            assert time.monotonic() - begun < 2, "ingest does not wait for the resolver"
        assert sum(thread.name == "tillpost-dns" for thread in threading.enumerate()) <= 1
        now.kept()
        way = "works"
        answer_now.set()
        now.arrived()


# -- certificates -------------------------------------------------------------------------------

TLS = Path(__file__).parents[1] / "collector" / "tls"


def serving(certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{certificate}.pem", TLS / "key.pem")
    return context


@pytest.mark.parametrize(
    ("certificate", "authority", "says"),
    [
        ("expired", "authority", "has expired, or this machine's clock .* is fast"),
        ("early", "authority", "not valid yet: this machine's clock .* slow"),
        ("other", "authority", "is not for 127.0.0.1"),
        ("good", "good", "not signed by an authority we trust"),
    ],
)
def test_a_wrong_certificate_pauses_with_an_alarm_and_nothing_is_sent_until_it_is_right(
    tmp_path: Path, certificate: str, authority: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    # an authority that signed nothing here: the certificate of another server
    ca_file = str(TLS / ("authority.pem" if authority == "authority" else "other.pem"))
    with scene(tmp_path, tls=serving(certificate), upstream={"ca_file": ca_file}) as now:
        now.accept()
        now.all_are("paused")
        assert all(re.search(says, lane["last_error"]) for lane in now.lanes), now.lanes
        now.kept()
        assert now.road.seen == [], "not a byte unverified, no token, no key"
        if authority == "authority":
            now.road.tls = serving("good")
            now.road.open()
            now.arrived()


def test_where_tls_is_gone_nothing_is_sent_in_the_clear(tmp_path: Path) -> None:
    with scene(tmp_path, tls=serving("good"), upstream={"ca_file": str(TLS / "authority.pem")}) as now:
        now.accept()
        now.arrived()
        sent = len(now.road.seen)
        now.road.tls = None
        now.road.hole("connect", "close", times=None, say=answer(400))
        now.road.open()
        now.accept()
        now.all_are("paused")
        assert len(now.road.seen) == sent
        now.kept(25)
        now.road.tls = serving("good")
        now.road.mend()
        now.road.open()
        now.arrived()


# -- proxies ------------------------------------------------------------------------------------


class ConnectProxy(Road):
    """A proxy that makes tunnels; only for `user:pass` if it is `guarded`."""

    guarded = False
    status = 200
    """What it answers; 0: it drops the connection."""

    async def _ride(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.seen.append(Passed(head.split(b" ", 2)[1].decode(), head, b"", 0))
        allowed = not self.guarded or b"Proxy-Authorization: Basic dXNlcjpwYXNz" in head
        status = self.status if allowed else 407
        if status:
            writer.write(answer(status))
        if status != 200:
            return
        onward = await asyncio.open_connection(*self._upstream)
        try:
            await asyncio.gather(_pump(reader, onward[1]), _pump(onward[0], writer))
        finally:
            onward[1].transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """``elsewhere.example`` is this machine, though not by its name."""
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **more: real("127.0.0.1" if host == "elsewhere.example" else host, *args, **more),
    )
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


ELSEWHERE = {"ca_file": str(TLS / "authority.pem")}


def test_through_a_proxy_of_the_environment_and_its_moods(
    tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        FakeUpstream(api_key="k") as fake,
        Road(fake.url, tls=serving("other")) as road,
        ConnectProxy(road.host) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass@127.0.0.1:{proxy.port}")
        proxy.guarded = True
        with carried(tmp_path, fake, road, "https://elsewhere.example", upstream=ELSEWHERE) as now:
            now.accept()
            now.arrived()
            assert {each.path for each in proxy.seen} == {"elsewhere.example:443"}
            assert not any(b"authorization: bearer" in each.head.lower() for each in proxy.seen)
            for status, state in ((0, "backing-off"), (502, "backing-off"), (403, "backing-off"), (407, "paused")):
                proxy.status = status
                proxy.mend()  # the tunnels
                pending = now.ledger["pending"]
                now.accept()
                now.all_are(state)
                now.kept(pending + 25)
            proxy.status = 200
            now.arrived()


def test_what_no_proxy_names_is_reached_directly(
    tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "other.example,.example")
    with scene(tmp_path, url="https://elsewhere.example:{port}", tls=serving("other"), upstream=ELSEWHERE) as now:
        now.accept()
        now.arrived()


def test_loopback_is_never_proxied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with scene(tmp_path) as now:
        now.accept()
        now.arrived()
