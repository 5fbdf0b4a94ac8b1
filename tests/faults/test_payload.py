"""Hostile and broken requests over raw sockets (catalogue 57, 58): a clear 4xx, nothing stored, nothing left."""

import asyncio
import gzip
import json
import random
import re
import resource
import struct
import zlib

import pytest

from tests.collector.surface import config, serving
from tests.faults.raw import EVENT, GOOD, HEAD, post, say

BOTH = b"[" + GOOD + b",%s]"


def spoiled(value: bytes) -> bytes:
    """A good record, then one that holds this value."""
    return BOTH % (EVENT % value)


@pytest.mark.parametrize(
    ("body", "where", "why"),
    [
        (spoiled(b'"\xff\xfe"'), "[1]", "not UTF-8"),
        (spoiled(b'"\xed\xa0\x80"'), "[1]", "not UTF-8"),
        (spoiled(rb'"\ud800"'), "[1]", "half a character"),
        (spoiled(rb'"\udc00\ud800"'), "[1]", "half a character"),
        (spoiled(b"NaN"), "[1]", "malformed"),
        (spoiled(b"-Infinity"), "[1]", "malformed"),
        (spoiled(b"1e999"), "[1]", "out of range"),
        (spoiled(b"01"), "[1]", "JSON parse error"),
        (spoiled(b"[" * 100_000 + b"]" * 100_000), "[1]", "nested too deeply"),
        (spoiled(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "[1]", "nested too deeply"),
        (b"[" * 100_000 + b"]" * 100_000, "[0]", "nested too deeply"),
        (spoiled(b"1" * 1_000_000), "[1]", "larger than"),
        (spoiled(b'"a\0b"'), "[1]", "malformed"),
        (BOTH % GOOD.replace(b"C-1", rb"C\u0000"), "[1].client.customId", "NUL"),
        (BOTH % GOOD.replace(b'"customId":"C-1"', b'"id":9223372036854775808'), "[1].client.id", "9223372036854775807"),
        (BOTH % (GOOD[:-1] + b',"eventSalt":"t"}'), "[1].eventSalt", "stands twice"),
        (BOTH % (GOOD[:-1] + rb',"event\u0053alt":"t"}'), "[1].eventSalt", "stands twice"),
        (BOTH % b"7", "[1]", "JSON object"),
        (BOTH[:-1] % GOOD, "[2]", "expected , or ]"),
        (BOTH[:-4] % () + GOOD[:-9], "[1]", "JSON parse error"),
        (BOTH % GOOD + b"\0", "[2]", "expected , or ]"),
        (b"[" + b",".join([b"{}"] * 1_000_000) + b"]", "[0].type", "missing"),
    ],
    ids=lambda value: value[:60].decode("latin-1") if isinstance(value, bytes) else None,
)
async def test_what_cannot_be_passed_on_is_named_by_index_and_nothing_is_stored(
    body: bytes, where: str, why: str
) -> None:
    async with serving() as (server, memory, url):
        ((status, answer),) = (await say(url, post(body))).answers
        assert status == 400
        errors = json.loads(answer)["errors"]
        assert (errors[0]["field"], why in errors[0]["message"]) == (where, True), errors[0]
        assert len(errors) <= 100
        assert memory.parcels == []
        assert server.bytes_in_flight == 0


@pytest.mark.parametrize(
    "body", [b"", b" ", b"null", b"{}", b'"x"', b"\xef\xbb\xbf[]", GOOD + b"\n" + GOOD, b"\x1f\x8b"]
)
async def test_what_is_no_array_is_refused_as_a_whole(body: bytes) -> None:
    async with serving() as (_, memory, url):
        assert (await say(url, post(body))).statuses == [400]
        assert memory.parcels == []


@pytest.mark.parametrize(
    "value",
    [
        b"9223372036854775808",
        b"1" * 400,
        b"-" + b"9" * 5000,
        b"0.1" + b"0" * 900,
        rb'"\u0000\ud83d\ude00"',
        b"[" * 400 + b"]" * 400,
    ],
    ids=lambda value: value[:20].decode(),
)
async def test_odd_but_legal_values_are_stored_byte_for_byte(value: bytes) -> None:
    async with serving() as (_, memory, url):
        assert (await say(url, post(spoiled(value)))).statuses == [202]
        assert [bytes(record) for parcel in memory.parcels for record in parcel.records] == [GOOD, EVENT % value]


async def test_forty_thousand_events_in_a_request_are_welcome_and_none_are_too() -> None:
    async with serving() as (_, memory, url):
        many = b"[" + b",".join([GOOD] * 40_000) + b"]"
        assert (await say(url, post(many), post(b"[]"))).statuses[:1] == [202]
        assert sum(len(parcel.records) for parcel in memory.parcels) == 40_000


# Framing


def bomb(megabytes: int) -> bytes:
    """Spaces, packed: this process must never have held what it unpacks to."""
    some = b" " * 1_000_000
    pack = zlib.compressobj(9, wbits=-15)
    piece = pack.compress(some) + pack.flush(zlib.Z_FULL_FLUSH)  # after it the next piece may be the same
    checksum = 0
    for _ in range(megabytes):
        checksum = zlib.crc32(some, checksum)
    head, end = b"\x1f\x8b\x08" + bytes(6) + b"\xff", zlib.compressobj(9, wbits=-15).flush()
    return head + piece * megabytes + end + struct.pack("<II", checksum, megabytes * len(some))


BOMB = bomb(200)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (gzip.compress(b"[" + GOOD + b"]"), 202),
        (BOMB, 413),
        (gzip.compress(gzip.compress(b"[" + GOOD + b"]")), 400),
        (gzip.compress(BOMB), 400),
        (gzip.compress(b"[" + GOOD) + gzip.compress(b"]"), 400),
        (gzip.compress(b"[]") + b"trailing", 400),
        (gzip.compress(b"[" + GOOD + b"]")[:-4], 400),
        (b"[]", 400),
        (b"", 400),
        (gzip.compress(b"[" + b"1" * 100)[:10] + b"\xff" * 50, 400),
    ],
    ids=["plain", "bomb", "nested", "bomb in a bomb", "members", "trailing", "short", "none", "empty", "damaged"],
)  # fmt: skip
async def test_gzip_is_one_member_of_bounded_size(content: bytes, status: int) -> None:
    async with serving() as (server, memory, url):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert (await say(url, post(content, b"Content-Encoding: gzip"))).statuses == [status]
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB: never the 200 MB it holds
        assert server.bytes_in_flight == 0
        assert len(memory.parcels) == (status == 202)


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        # what is said and what is meant differ: both lengths, two lengths, no number, one beyond every limit
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /livez HTTP/1.1\r\n\r\n", {400}),
        (HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", {400}),
        (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", {400}),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]", {400}),
        (HEAD + b"Content-Length: +2\r\n\r\n[]", {400}),
        (HEAD + b"Content-Length: 2, 2\r\n\r\n[]", {400}),
        (HEAD + b"Content-Length: -1\r\n\r\n", {400}),
        (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n[", {400, 413}),
        (HEAD + b"Content-Length : 2\r\n\r\n[]", {400}),
        # bare LF, folded lines, control characters
        (HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n[]", {400}),
        (HEAD + b"X-Folded: a\r\n b\r\nContent-Length: 2\r\n\r\n[]", {400}),
        (HEAD + b"X-Nul: a\0b\r\nContent-Length: 2\r\n\r\n[]", {400}),
        (HEAD + b"X-Cr: a\rb\r\nContent-Length: 2\r\n\r\n[]", {400}),
        (b"\0" * 100 + b"\r\n\r\n", {400}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"A" * 500, {400}),  # TLS to a plain port
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n[]", {400, 413}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n[]\r\n0\r\n\r\n", {400}),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 414}),
        (HEAD + b"X-Long: " + b"a" * 20_000 + b"\r\n\r\n", {400, 431}),
        (HEAD + b"".join(b"X-%d: a\r\n" % i for i in range(100_000)) + b"\r\n", {400, 431}),
    ],
    ids=lambda value: repr(value[-50:]) if isinstance(value, bytes) else None,
)  # fmt: skip
async def test_requests_that_could_mean_two_things_are_refused_and_the_connection_ends(
    request_bytes: bytes, statuses: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as (_, memory, url):
        answered = await say(url, request_bytes, until_closed=True)
        assert answered.closed
        assert set(answered.statuses) <= statuses and len(answered.statuses) <= 1, answered
        assert memory.parcels == []
        assert (await say(url, post(b"[]"))).statuses == [202]
    assert caplog.text == ""


async def test_a_chunked_body_without_end_is_cut_at_the_limit() -> None:
    async with serving(config(max_body=100_000)) as (server, _, url):
        endless = [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"4000\r\n" + b" " * 0x4000 + b"\r\n"] * 50]
        assert (await say(url, *endless)).statuses in ([413], [])  # a reset may overtake the answer
        assert (await say(url, HEAD + b"Content-Length: 1000000000\r\n\r\n[")).statuses == [413]
        assert server.bytes_in_flight == 0


async def test_a_length_that_promises_more_than_comes_is_408_and_one_that_promises_less_is_cut() -> None:
    async with serving(body_timeout_s=0.05) as (_, memory, url):
        assert (await say(url, HEAD + b"Content-Length: 100\r\n\r\n[]")).statuses == [408]
        answered = await say(url, HEAD + b"Content-Length: 2\r\n\r\n[]garbage\r\n\r\n", until_closed=True)
        assert answered.statuses in ([202, 400], [400])
        assert memory.parcels == []


# Time and number


async def test_who_never_ends_the_head_of_a_request_is_hung_up_on() -> None:
    async with serving(head_timeout_s=0.1) as (_, _, url):
        answered = await say(url, b"POST /v4/events", until_closed=True)
        assert (answered.statuses, answered.closed) == ([408], True)
        assert (await say(url, until_closed=True)).closed  # nor who says nothing at all


async def test_dripping_headers_win_no_time() -> None:
    async with serving(head_timeout_s=0.3) as (_, _, url):
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        loop = asyncio.get_running_loop()
        begun = loop.time()
        writer.write(HEAD)
        answer = asyncio.create_task(reader.read())
        while not answer.done() and loop.time() < begun + 20:
            writer.write(b"X-Drip: a\r\n")
            await asyncio.wait((answer,), timeout=0.05)
        assert answer.done() and b" 408 " in answer.result()
        writer.close()


async def test_who_asked_once_and_then_says_nothing_is_hung_up_on_later() -> None:
    async with serving(head_timeout_s=0.05, idle_timeout_s=0.3) as (_, _, url):
        loop = asyncio.get_running_loop()
        begun = loop.time()
        answered = await say(url, post(b"[]"), until_closed=True)
        assert (answered.statuses, answered.closed) == ([202], True)
        assert loop.time() - begun > 0.25


async def test_a_request_that_takes_long_to_store_is_not_hung_up_on() -> None:
    async with serving(head_timeout_s=0.05, idle_timeout_s=0.05) as (_, memory, url):
        memory.hold = asyncio.Event()
        asyncio.get_running_loop().call_later(0.3, memory.hold.set)  # past several looks at who takes too long
        assert (await say(url, post(b"[" + GOOD + b"]"))).statuses == [202]


async def test_one_connection_too_many_is_told_503_and_places_become_free_again() -> None:
    async with serving(max_connections=3) as (_, _, url):
        host, port = url.removeprefix("http://").split(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
        for reader, writer in held:
            writer.write(post(b"[]"))
            assert b" 202 " in await reader.readuntil(b"\r\n")
        refused = await say(url, until_closed=True)
        assert (refused.statuses, refused.closed) == ([503], True)
        for _, writer in held:
            writer.close()
        async with asyncio.timeout(10):
            while (await say(url, post(b"[]"), until_closed=False)).statuses != [202]:
                await asyncio.sleep(0.01)


async def test_operators_get_in_while_every_place_is_taken(tmp_path) -> None:  # type: ignore[no-untyped-def]
    socket = tmp_path / "s"
    async with serving(max_connections=1, admin_socket=socket) as (_, _, url):
        host, port = url.removeprefix("http://").split(":")
        _, holding = await asyncio.open_connection(host, int(port))
        assert (await say(url, until_closed=True)).statuses == [503]
        reader, writer = await asyncio.open_unix_connection(str(socket))
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await reader.readuntil(b"\r\n")
        writer.close()
        holding.close()


async def test_random_bytes_neither_stop_the_server_nor_reach_the_buffer() -> None:
    chance = random.Random(20261123)
    async with serving(head_timeout_s=0.1) as (server, memory, url):
        alphabet = [b"POST ", b"/v4/events/batch", b" HTTP/1.1", b"\r\n", b"\n", b"\0", b"Host: localhost", b":",
                    b"[]", b"Transfer-Encoding: chunked", b"Content-Length: 7", b"\xff\xfe", b"5\r\n",
                    b"0\r\n\r\n"]  # fmt: skip
        talks = [b"".join(chance.choices(alphabet, k=chance.randrange(1, 30))) + b"\r\n\r\n" for _ in range(300)]
        answers = await asyncio.gather(*(say(url, talk, until_closed=True) for talk in talks))
        assert all(answered.closed for answered in answers)
        assert {status for answered in answers for status in answered.statuses} <= {202, 400, 404, 405, 408, 415, 421}
        assert memory.parcels == []
        assert server.bytes_in_flight == 0
        assert (await say(url, post(b"[]"))).statuses == [202]


def test_the_parser_of_answers_here_reads_what_it_must() -> None:
    """The tests above would prove little if `say` saw nothing."""
    from tests.faults.raw import parse

    assert parse(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 1\r\n\r\nxHTTP") == [
        (202, b"x")
    ]
    assert re.match(b"POST", HEAD)
