"""A road with holes: a TCP proxy before an upstream that does what bad roads do to requests.

`Hole` says at which stage a request's journey ends and how. Without holes everything passes. `Road` runs
in a thread of its own, so that tests can be plain functions.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

T = TypeVar("T")
Stage = Literal["connect", "body", "request", "answer"]
"""Accepted and nothing read; the head and some of the body read; all read and nothing passed on; answered upstream."""
End = Literal["reset", "close", "half-close", "hang", "drip", "endless", "pass"]


@dataclass
class Hole:
    """What happens to requests, `times` of them (None: to all). Strikes only batches, unless `path` says so."""

    at: Stage
    end: End | bytes
    """Bytes: an answer of ours, after which the connection is kept."""
    times: int | None = 1
    path: str = "/batch"
    over: int = 0
    """Only bodies larger than this."""
    keep: int = 0
    """Bytes that still pass: of the request's body at "body", of the answer at "answer"."""
    say: bytes = b""
    """Sent before the end."""
    wait_s: float = 0.0
    """Before the end; between the bytes of a drip."""
    hits: int = 0


@dataclass
class Passed:
    """A request that was read whole."""

    path: str
    head: bytes
    body: bytes
    at: float
    """By the loop's clock, as `answered_at`."""
    answered_at: float = 0.0


class Road:
    """``with Road(fake.url) as road``: give `road.url` to the collector."""

    def __init__(self, upstream: str, *, tls: ssl.SSLContext | None = None) -> None:
        host, _, port = upstream.removeprefix("http://").partition(":")
        self._upstream = host, int(port)
        self.tls = tls
        self.port = 0
        self.seen: list[Passed] = []
        self.connections = 0
        self._holes: list[Hole] = []
        self._listening: asyncio.Task[None] | None = None
        self._fill: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    # -- from the test

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def hole(self, at: Stage, end: End | bytes, **detail: Any) -> Hole:
        """Strike the next requests."""
        hole = Hole(at, end, **detail)
        self._holes.append(hole)
        return hole

    def mend(self) -> None:
        """No more holes; what hangs is cut."""
        self._holes.clear()
        self._do(self._cut())

    def hang_up(self) -> None:
        """Every connection is cut: what comes next comes over a new one."""
        self._do(self._cut())

    def refuse(self) -> None:
        """Nobody listens from now on, and every connection is reset."""
        self._do(self._closed())

    def black_hole(self) -> None:
        """Connections to be made get no answer at all: the queue of a listener that accepts nothing is full."""
        self._do(self._closed())
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(0)
        self._fill = [listener]
        for _ in range(4):
            waiting = socket.socket()
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(("127.0.0.1", self.port))
            self._fill.append(waiting)

    def open(self) -> None:
        """Listen, again on the same port."""
        self._do(self._opened())

    @property
    def batches(self) -> list[Passed]:
        return [each for each in self.seen if each.path.endswith("/batch")]

    # -- life

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="road", daemon=True)
        self._thread.start()
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._closed())
        self._do(self._hung_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _hung_up(self) -> None:
        """Nobody is told of a connection whose handshake never ended; only the loop knows it."""
        for transport in list(self._loop._transports.values()):  # type: ignore[attr-defined]
            transport.abort()
        await asyncio.sleep(0)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _opened(self) -> None:
        await self._closed()
        listener = socket.create_server(("127.0.0.1", self.port))
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listening = asyncio.create_task(self._listen(listener))

    async def _listen(self, listener: socket.socket) -> None:
        """Not `asyncio.start_server`: Python 3.11's forgets a connection that it accepts as it is closed."""
        with listener:
            while True:
                taken, _ = await self._loop.sock_accept(listener)
                task = asyncio.create_task(self._accepted(taken))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                task.add_done_callback(lambda _, taken=taken: taken.close())  # type: ignore[misc]

    async def _closed(self) -> None:
        while self._fill:
            self._fill.pop().close()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None
        await self._cut()

    async def _cut(self) -> None:
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- one connection

    async def _accepted(self, taken: socket.socket) -> None:
        self.connections += 1
        reader = asyncio.StreamReader(limit=1 << 20)
        protocol = asyncio.StreamReaderProtocol(reader)
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError, asyncio.LimitOverrunError):
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, taken, ssl=self.tls)
            writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
            try:
                await self._ride(reader, writer)
            finally:
                transport.abort()

    async def _ride(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if hole := self._strikes("connect"):
            await self._end(hole, reader, writer)
            return
        onward: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path, length = head.split(b" ", 2)[1].decode(), _length(head)
                if hole := self._strikes("body", path, length):
                    await reader.readexactly(min(hole.keep, length))
                    await self._end(hole, reader, writer)
                    return
                now = self._loop.time()
                passed = Passed(path, head, await reader.readexactly(length), now, now)
                self.seen.append(passed)
                hole = self._strikes("request", path, length)
                if hole is not None and hole.end != "pass":
                    passed.answered_at = self._loop.time()
                    if await self._end(hole, reader, writer):
                        continue
                    return
                if hole is not None:
                    await asyncio.sleep(hole.wait_s)
                onward = onward or await asyncio.open_connection(*self._upstream)
                onward[1].write(head + passed.body)
                answer = await onward[0].readuntil(b"\r\n\r\n")
                answer += await onward[0].readexactly(_length(answer))
                if hole := self._strikes("answer", path, length):
                    if hole.end == "drip":
                        hole.say, hole.keep = answer, len(answer)
                    writer.write(b"" if hole.end == "drip" else answer[: hole.keep])
                    await self._end(hole, reader, writer)
                    return
                passed.answered_at = self._loop.time()
                writer.write(answer)
                await writer.drain()
        finally:
            if onward is not None:
                onward[1].transport.abort()

    def _strikes(self, stage: Stage, path: str = "", size: int = 0) -> Hole | None:
        for hole in self._holes:
            meant = stage == "connect" or (hole.path in path and size >= hole.over)
            if hole.at == stage and hole.times != 0 and meant:
                hole.times = None if hole.times is None else hole.times - 1
                hole.hits += 1
                return hole
        return None

    async def _end(self, hole: Hole, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Do what the hole does; True when the connection can go on."""
        if hole.end == "drip":
            for byte in hole.say:
                writer.write(bytes((byte,)))
                await asyncio.sleep(hole.wait_s)
            return False
        writer.write(hole.say)
        await writer.drain()
        await asyncio.sleep(hole.wait_s)
        if isinstance(hole.end, bytes):
            writer.write(hole.end)
            await writer.drain()
            return True
        if hole.end == "reset":
            abort(writer)
        elif hole.end == "close":
            writer.close()
        elif hole.end == "half-close":
            writer.write_eof()
            while await reader.read(65536):
                continue
        elif hole.end == "endless":
            while not writer.is_closing():
                writer.write(b"[" * 8192)
                await writer.drain()
        elif hole.at == "body":
            await asyncio.get_running_loop().create_future()  # nothing is read any more: until it is cut
        else:
            while await reader.read(65536):
                continue
        return False


def abort(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset instead of a good-bye."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0
