"""The short way for requests whose head was seen before: it is not parsed again.

A client that keeps its connection sends the same head with every request, byte for byte but the length of the body. The
first time aiohttp parses it and everything is checked; where that ended well the head is remembered with what it says.
Of the next request that begins with the same bytes only the length and the body are new, and what aiohttp does for
every request, which is most of what a small one costs, is left out. Whatever is not plain, not complete within about a
second or not the next thing on a connection at rest takes the ordinary way, with the bytes that have come so far.
"""

import asyncio
import re
import time
from collections.abc import Callable, Container, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from aiohttp import web
from aiohttp.http import SERVER_SOFTWARE, HttpVersion11

HEADS_MAX: Final = 512
HEAD_MAX_BYTES: Final = 2048
_HELD_MAX: Final = 64 * 1024
"""Bytes of the next requests that are held while one is answered; beyond it the sender waits."""
_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([1-9][0-9]{0,9})\r\n", re.IGNORECASE)


Done = Callable[[bytes], None]
"""Sends an answer."""


class Known(NamedTuple):
    """What a head says."""

    path: str
    headers: Mapping[str, str]
    """As they were when it was parsed: the length stands apart."""
    length: int
    """Bytes of the body."""


class Heads:
    """The heads of one listener that are known.

    Args:
        receive: takes a request and sees to it that its answer is sent, now or later; must not raise.
        paths: of the requests that `receive` takes.
        max_body: bytes; a longer one is refused elsewhere.
        take_room: whether so many bytes may be held; `free_room` gives them back.
    """

    def __init__(
        self,
        receive: Callable[[Known, bytes, Done], None],
        paths: Container[str],
        max_body: int,
        take_room: Callable[[int], bool],
        free_room: Callable[[int], None],
    ) -> None:
        self.receive = receive
        self._paths = paths
        self._max_body = max_body
        self.take_room = take_room
        self.free_room = free_room
        self._known: dict[bytes, Known] = {}

    def get(self, head: bytes) -> Known | None:
        if (found := _LENGTH.search(head)) is None or (known := self._known.get(_without(found))) is None:
            return None
        length = int(found[1])
        return Known(known.path, known.headers, length) if length <= self._max_body else None

    def learn(self, head: bytes, request: web.BaseRequest) -> None:
        """Remember the head of a request that was answered well; one that asks for anything special is not."""
        headers, length = request.headers, request.content_length
        special = {"transfer-encoding", "content-encoding", "expect", "upgrade", "connection"}
        if (
            request.path not in self._paths
            or not length
            or len(head) > HEAD_MAX_BYTES
            or request.version != HttpVersion11
        ):
            return
        if (found := _LENGTH.search(head)) is None:  # the only one: aiohttp refuses a head with two
            return
        if any(name.lower() in special for name in headers):
            return
        if len(self._known) >= HEADS_MAX:
            self._known.clear()
        self._known[_without(found)] = Known(request.path, headers, length)


def _without(length: re.Match[bytes]) -> bytes:
    """A head without the digits of its length."""
    start, stop = length.span(1)
    return length.string[:start] + length.string[stop:]


class Familiar(web.RequestHandler):
    """A connection that knows the short way."""

    __slots__ = (
        "_answering", "_heads", "_held", "_known", "_missing", "_parts", "_rest", "at_rest", "head",
        "is_new",
    )  # fmt: skip

    def __init__(self, manager: web.Server, heads: Heads, **options: Any) -> None:
        super().__init__(manager, **options)
        self._heads = heads
        self._known: Known | None = None
        """Of the request under way."""
        self._parts: list[bytes] = []
        self._missing = 0
        self._answering = False
        """Whether it is whole, and its answer on the way."""
        self._rest: asyncio.Future[None] | None = None
        """Somebody waits for that answer."""
        self._held = b""
        self.is_new = False
        """Whether a request began on the short way since somebody reset this."""
        self.at_rest = True
        """Whether the next byte is the first of a request, and nothing else is to be answered before."""
        self.head = b""
        """Of the request that aiohttp has, if it came in one piece."""

    def is_familiar(self, data: bytes) -> bool:
        """Take what was received; False where it has to go the ordinary way."""
        if self._known is not None:
            self._take(data)
            return True
        if not (self.at_rest and data):
            return False
        self.at_rest = False
        end = data.find(_END) + len(_END)
        self.head = data[:end] if end >= len(_END) else b""
        known = self._heads.get(self.head)
        if (
            known is None
            or len(data) > end + known.length
            or self.transport is None
            or self.transport.get_write_buffer_size()  # who does not fetch answers must not add to them
            or not self._heads.take_room(known.length)
        ):
            return False
        self._known, self._missing, self.is_new = known, known.length, True
        self._take(data[end:])
        return True

    def _take(self, data: bytes) -> None:
        if not self._answering:
            self._parts.append(data if len(data) <= self._missing else data[: self._missing])
            data = data[self._missing :]
            self._missing -= len(self._parts[-1])
            if not self._missing and self._known is not None:
                self._answering = True
                body, self._parts = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts), []
                self._heads.receive(self._known, body, self._answer)
        if data:
            self._held += data
            if len(self._held) > _HELD_MAX and self.transport is not None:
                self.transport.pause_reading()

    def _answer(self, answer: bytes) -> None:
        assert self._known is not None
        if self.transport is not None:
            self.transport.write(answer)
        self._heads.free_room(self._known.length)
        self._known, self._answering = None, False
        if self._rest is not None and not self._rest.done():
            self._rest.set_result(None)
        self.answered()

    def answered(self) -> None:
        """The request under way has its answer: on with the next."""
        self.at_rest = True
        if self._held:
            held, self._held = self._held, b""
            if len(held) > _HELD_MAX and self.transport is not None:
                self.transport.resume_reading()
            self.data_received(held)

    def give_up(self) -> bytes:
        """What has come of a request that is not complete, for the ordinary way; empty where there is none."""
        if self._known is None or self._answering:
            return b""
        come, self._parts = self.head + b"".join(self._parts), []
        self._heads.free_room(self._known.length)
        self._known = None
        return come

    def connection_lost(self, exc: BaseException | None) -> None:
        self.give_up()
        super().connection_lost(exc)

    def close(self) -> None:
        if come := self.give_up():
            super().data_received(come)
        super().close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        if self._answering:
            self._rest = self._loop.create_future()
            await asyncio.wait((self._rest,), timeout=timeout)
        await super().shutdown(timeout)


_dated: tuple[int, str] = (0, "")


def encode(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """An answer as it goes over the wire, with the headers aiohttp would add."""
    global _dated
    second = int(time.time())
    if _dated[0] != second:
        _dated = (second, f"Date: {formatdate(second, usegmt=True)}\r\nServer: {SERVER_SOFTWARE}\r\n\r\n")
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}Content-Length: {len(body)}\r\n{_dated[1]}"
    return head.encode() + body
