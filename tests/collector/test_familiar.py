"""The short way for heads seen before, and requests read together: nobody can tell but by the cost."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from collector.admission import Full
from collector.buffer import Unknown
from collector.config import Config
from collector.familiar import Known
from collector.ingest import Ingest
from collector.secret import Secret
from collector.server import Server
from collector.together import Asked, Together
from collector.tokens import AdminToken, Tokens
from tests.collector.surface import FixedClock, Memory, config, serving
from tests.collector.test_server import EVENT, until


class Sender:
    """A keep-alive connection that sends bytes as it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head without its date, body."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None
            body = await self.reader.readexactly(int(length[1]))
        return int(head.split()[1]), re.sub(rb"Date: [^\r]+", b"", head), re.sub(rb"\d{4}-[^\"]+Z", b"", body)

    async def ask(self, *records: Any, **headers: str) -> tuple[int, bytes, bytes]:
        self.writer.write(request(*records, **headers))
        return await self.answer()


def request(*records: Any, path: str = "/v4/events/batch", **headers: str) -> bytes:
    body = json.dumps(records).encode()
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{lines}"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body  # fmt: skip


@asynccontextmanager
async def sender(server: Server) -> AsyncIterator[Sender]:
    host, _, port = server.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Sender(reader, writer)
    finally:
        writer.transport.abort()


def parsed(server: Server) -> int | None:
    """Requests that aiohttp had."""
    return sum(door.requests_count for door in server._doors)


async def some_turns() -> None:
    """What is on its way gets as far as it can without an answer."""
    for _ in range(20):
        await asyncio.sleep(0)


async def held(server: Server, memory: Memory, one: Sender, number: int) -> None:
    """A request that the buffer is busy with until `memory.hold` is set."""
    memory.hold = asyncio.Event()
    one.writer.write(request(salted(number)))
    await until(lambda: server.in_progress)


def salted(number: int) -> dict[str, Any]:
    return EVENT | {"eventSalt": f"s{number:03}"}


async def test_a_head_is_parsed_once_and_the_answers_are_the_same() -> None:
    async with serving() as (server, memory, _):
        async with sender(server) as one, sender(server) as other:
            first = await one.ask(salted(0))
            assert first[0] == 202
            assert [await one.ask(salted(1)), await other.ask(salted(2))] == [first, first]
            assert parsed(server) == 1
            # as long as the known one, and bad: told in the same words
            bad = salted(3) | {"type": "logged-if"}
            told = await one.ask(bad)
            assert told[0] == 400
            assert parsed(server) == 1
            assert await other.ask(bad, connection="keep-alive") == told
            assert parsed(server) == 2
        assert [record["eventSalt"] for record in memory.records] == ["s000", "s001", "s002"]
        assert (server.in_progress, server.bytes_in_flight) == (0, 0)


async def test_bodies_of_any_length_share_a_head() -> None:
    async with serving(config(max_body=5000)) as (server, memory, _), sender(server) as one:
        assert (await one.ask(salted(0)))[0] == 202
        for count in (2, 9, 10, 20):
            assert (await one.ask(*map(salted, range(count))))[0] == 202
        assert (await one.ask(EVENT | {"eventSalt": "x", "params": {"y": "z" * 3000}}))[0] == 202
        assert (parsed(server), len(memory.records)) == (1, 1 + 2 + 9 + 10 + 20 + 1)
        status, _, told = await one.ask(EVENT | {"params": {"y": "z" * 5000}})
        assert (status, parsed(server)) == (413, 2)
        assert b"5000 bytes" in told


ODD_LENGTHS = [
    "Content-Length: 0{0}", "Content-Length: +{0}", "Content-Length: {0} ", "Content-Length: {0}, {0}",
    "Content-Length: {0}\r\nContent-Length: {0}", "Content-Length: 1\r\nContent-Length: {0}",
    "Content-Length: {0}\r\ncontent-length: 1", "Content-Length: 0", "Content-Length: -{0}", "Content-Length: 0x{0}",
    "Content-Length: ", "Content-Length: {0}\n", "X-Content-Length: {0}", "Content-Length:{0}", "CONTENT-LENGTH: {0}",
    "Content-Length: {0}\r\nTransfer-Encoding: chunked", "Content-Length: \u0661",
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD_LENGTHS)
async def test_a_length_that_is_written_oddly_means_what_it_always_meant(odd: str) -> None:
    """Whatever aiohttp thinks of it, a server that knows the head otherwise thinks the same."""
    heard = []
    for known in (True, False):
        async with serving(body_timeout_s=0.05) as (server, memory, _), sender(server) as one:
            if known:
                assert (await one.ask(salted(0)))[0] == 202
            plain = request(salted(1))
            head, body = plain.split(b"\r\n\r\n")
            length = odd.format(len(body)).encode()
            one.writer.write(re.sub(rb"Content-Length: \d+", length, head) + b"\r\n\r\n" + body)
            status, *_ = await one.answer()
            heard.append((status, [record["eventSalt"] for record in memory.records][known:]))
    assert heard[0] == heard[1]


@pytest.mark.parametrize(
    "special", [{"connection": "keep-alive"}, {"expect": "100-continue"}, {"content_encoding": "identity"}]
)
async def test_what_asks_for_anything_special_always_goes_the_ordinary_way(special: dict[str, str]) -> None:
    async with serving() as (server, _, _), sender(server) as one:
        for number in range(3):
            one.writer.write(request(salted(number), **special))
            if "expect" in special:
                assert (await one.reader.readline(), await one.reader.readline()) == (
                    b"HTTP/1.1 100 Continue\r\n",
                    b"\r\n",
                )
            assert (await one.answer())[0] == 202
        assert parsed(server) == 3


async def test_a_request_in_pieces_is_whole_in_the_end() -> None:
    async with serving() as (server, memory, _), sender(server) as one:
        await one.ask(salted(0))
        for cut in (10, len(request(salted(1))) - 200, len(request(salted(1))) - 1):
            whole = request(salted(1))
            one.writer.write(whole[:cut])
            await one.writer.drain()
            await some_turns()
            one.writer.write(whole[cut:])
            assert (await one.answer())[0] == 202
        assert len(memory.records) == 4


async def test_a_body_that_does_not_come_is_408_as_it_always_was() -> None:
    async with serving(head_timeout_s=0.05, body_timeout_s=0.05) as (server, memory, _), sender(server) as one:
        await one.ask(salted(0))
        one.writer.write(request(salted(1))[:-5])
        assert (await one.answer())[0] == 408
        assert await one.reader.read() == b""
        assert (server.bytes_in_flight, len(memory.records)) == (0, 1)


async def test_requests_sent_ahead_are_answered_in_their_order() -> None:
    async with serving() as (server, memory, _), sender(server) as one:
        await one.ask(salted(0))
        await held(server, memory, one, 1)
        one.writer.write(b"".join(request(salted(number)) for number in range(2, 6)) + request({"type": "nonsense"}))
        await some_turns()
        memory.hold.set()
        assert [(await one.answer())[0] for _ in range(6)] == [202] * 5 + [400]
        assert [record["eventSalt"] for record in memory.records] == [f"s00{number}" for number in range(6)]


async def test_a_sender_that_goes_away_leaves_nothing_behind() -> None:
    async with serving() as (server, memory, _):
        async with sender(server) as one:
            await one.ask(salted(0))
            one.writer.write(request(salted(1))[:-5])
            await until(lambda: server.bytes_in_flight)
        await until(lambda: not server.bytes_in_flight)
        async with sender(server) as one:
            await held(server, memory, one, 2)
        memory.hold.set()
        await until(lambda: not server.in_progress)
        assert [record["eventSalt"] for record in memory.records] == ["s000", "s002"]


async def test_a_stop_waits_for_an_answer_on_the_short_way() -> None:
    async with serving() as (server, memory, _), sender(server) as one:
        await one.ask(salted(0))
        await held(server, memory, one, 1)
        closing = asyncio.create_task(server.close())
        await some_turns()
        memory.hold.set()
        assert (await one.answer())[0] == 202
        await closing
        assert await one.reader.read() == b""


async def test_a_token_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    settings, memory = config(), Memory()
    server = Server(
        settings, Ingest(settings, FixedClock(), memory.server_time_ms), memory, memory,
        tokens=Tokens(Secret("token", file=file, source="the test")), admin_token=AdminToken(None),
    )  # fmt: skip
    await server.start()
    try:
        async with sender(server) as one:
            bearer = {"authorization": "Bearer old"}
            assert [(await one.ask(salted(n), **bearer))[0] for n in range(2)] == [202, 202]
            assert parsed(server) == 1
            server._tokens = Tokens(Secret("token", value="new", source="the test"))
            assert (await one.ask(salted(2), **bearer))[0] == 401
            assert parsed(server) == 1
            assert (await one.ask(salted(2), authorization="Bearer new"))[0] == 202
    finally:
        await server.close()


async def test_no_room_sends_it_the_ordinary_way_which_asks_to_come_back() -> None:
    async with serving(config(max_body=5000), max_in_flight=10_000) as (server, memory, _):
        big = EVENT | {"params": {"x": "y" * 4500}}
        async with sender(server) as one, sender(server) as two, sender(server) as three:
            assert (await one.ask(big))[0] == 202
            memory.hold = asyncio.Event()
            for busy in (one, two):
                busy.writer.write(request(big))
            await until(lambda: server.in_progress == 2)
            assert (await three.ask(big))[0] == 503
            memory.hold.set()
            assert [(await busy.answer())[0] for busy in (one, two)] == [202, 202]
        assert (server.in_progress, server.bytes_in_flight) == (0, 0)


# -- requests of the same moment ----------------------------------------------------------------


@asynccontextmanager
async def senders(server: Server, count: int) -> AsyncIterator[list[Sender]]:
    """Connections that are known, so that what they send next is read together."""
    host, _, port = server.addresses[0].rpartition(":")
    made = [Sender(*await asyncio.open_connection(host, int(port))) for _ in range(count)]
    try:
        for one in made:
            assert (await one.ask(salted(0)))[0] == 202
        yield made
    finally:
        for one in made:
            one.writer.transport.abort()


async def test_requests_of_one_moment_are_stored_as_one_and_each_hears_its_own_count() -> None:
    async with serving() as (server, memory, _), senders(server, 8) as made:
        memory.records.clear()
        stored = len(memory.clocks)
        for number, one in enumerate(made):
            one.writer.write(request(*[salted(number)] * (number % 3)))
        answers = [await one.answer() for one in made]
        assert [(status, int(head.split(b"Accepted: ")[1][:1])) for status, head, _ in answers] == [
            (202, number % 3) for number in range(8)
        ]
        assert len(memory.clocks) - stored < 8
        assert {parcel.lane.priority for parcel in memory.parcels} == {"live"}


@pytest.mark.parametrize(("waiting", "patience_s"), [(1, 0.0015), (2, 0.0015), (3, 0), (50, 0)])
async def test_few_that_waited_wait_for_more_until_the_first_has_waited_enough_and_many_do_not(
    waiting: int, patience_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, answered = asyncio.Event(), list[Asked]()

    async def store(_: object) -> None:
        await stored.wait()

    def never(*_: object) -> None:
        raise AssertionError

    ingest = Ingest(Config(), FixedClock(), lambda: None)
    together = Together(ingest, store, lambda asked, _: answered.append(asked), alone=never, failed=never)
    loop, turns, came = asyncio.get_running_loop(), list[float](), list[float]()
    at = loop.call_at

    def noted(when: float, *call: Any, **context: Any) -> asyncio.TimerHandle:
        if call[0] == together._turn:
            turns.append(when)
        return at(when, *call, **context)

    monkeypatch.setattr(loop, "call_at", noted)
    bodies = [json.dumps([salted(i)]).encode() for i in range(1 + waiting)]
    for body in bodies:
        came.append(loop.time())
        assert together.takes(Asked(Known("/v4/events/batch", {}, len(body)), body, never))
        await some_turns()  # the first is being stored
    came.append(loop.time())
    assert not turns
    stored.set()
    await until(lambda: len(answered) == len(bodies))
    (turn,) = turns
    assert came[1] + patience_s <= turn <= came[2] + patience_s


async def test_a_bad_request_among_them_is_refused_alone() -> None:
    async with serving() as (server, memory, _), senders(server, 6) as made:
        for number, one in enumerate(made):
            one.writer.write(request(salted(number + 1) | ({"type": "logged-if"} if number == 3 else {})))
        assert [(await one.answer())[0] for one in made] == [202, 202, 202, 400, 202, 202]
        kept = sorted(record["eventSalt"] for record in memory.records if record["eventSalt"] != "s000")
        assert kept == ["s001", "s002", "s003", "s005", "s006"]
        assert server.in_progress == 0


async def test_half_records_of_two_requests_never_make_a_whole_one() -> None:
    async with serving() as (server, memory, _), senders(server, 2) as made:
        whole = json.dumps([salted(1) | {"params": {"a": [1, 2]}}]).encode()
        cut = whole.index(b"[1,") + 2
        halves = whole[:cut] + b"]", b"[" + whole[cut + 2 :]
        known = len(json.dumps([salted(0)]).encode())
        for one, half in zip(made, halves, strict=True):
            body = half.ljust(known)
            assert len(body) >= known
            one.writer.write(request(salted(0)).partition(b"\r\n\r\n")[0].replace(b"%d" % known, b"%d" % len(body))
                             + b"\r\n\r\n" + body)  # fmt: skip
        assert [(await one.answer())[0] for one in made] == [400, 400]
        assert {record["eventSalt"] for record in memory.records} == {"s000"}


@pytest.mark.parametrize(
    ("error", "status"), [(Full("the buffer is full"), 507), (Unknown("the commit failed"), 503), (KeyError("x"), 500)]
)
async def test_what_could_not_be_kept_is_told_to_each(error: Exception, status: int) -> None:
    async with serving() as (server, memory, _), senders(server, 4) as made:
        memory.error = error
        for one in made:
            one.writer.write(request(salted(1)))
        assert [(await one.answer())[0] for one in made] == [status] * 4
        memory.error = None
        assert [(await one.ask(salted(2)))[0] for one in made] == [202] * 4
        assert (server.in_progress, server.bytes_in_flight) == (0, 0)


def test_bodies_read_together_are_what_they_are_alone() -> None:
    ingest = Ingest(Config(), FixedClock(), lambda: None)
    path = "/v4/events/batch"
    bodies = [
        json.dumps([salted(n), salted(n + 50) | {"client": {"email": f"p{n}@example.com"}}]).encode() for n in range(9)
    ]
    read = ingest.read_alike(path, bodies, {})
    assert read is not None
    intake, counts = read
    alone = [ingest.read(path, body, {}) for body in bodies]
    assert counts == [each.count for each in alone]
    for parcel in intake.parcels:
        same = [one for each in alone for one in each.parcels if one.lane == parcel.lane]
        assert parcel.records == [record for one in same for record in one.records]
