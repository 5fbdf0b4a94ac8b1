"""The door of one listener: how many may come in, how long each may take, and a short way for those it knows.

A sender that opens connections and says nothing, or says it a byte at a time, would else hold a descriptor for as
long as it likes: `Door` hangs up. Bodies that aiohttp reads have a deadline of their own, see `bodies.read_body`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, Final

from aiohttp import web

from collector.familiar import Familiar, Heads

HEAD_S: Final = 10.0
"""From its first byte, or from connecting, until the last header of a request."""
IDLE_S: Final = 75.0
"""Between an answer and the next request."""
_SWEEP_S: Final = 1.0
_NEVER_S: Final = 10.0**9
_ANSWER: Final = b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_BUSY: Final = _ANSWER % b"503 Service Unavailable\r\nRetry-After: 1"
_LATE: Final = _ANSWER % b"408 Request Timeout"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Door(web.Server):
    """A protocol factory for ``loop.create_server``: aiohttp's, with a bound on connections and on waiting.

    Args:
        handle: answers a request.
        heads: the requests that need not be parsed again.
        max_connections: one more is told 503 and hung up on.
        head_s, idle_s: see `HEAD_S` and `IDLE_S`; seconds.
        options: of aiohttp's connections.
    """

    def __init__(
        self, handle: Handler, heads: Heads, *, max_connections: int, head_s: float = HEAD_S, idle_s: float = IDLE_S,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(self._attend, **options)
        self._handle = handle
        self._max = max_connections
        self._options = options | {"keepalive_timeout": _NEVER_S}  # `_sweep` knows better who is idle
        self._sweeping: asyncio.TimerHandle | None = None
        self.heads = heads
        self.head_s = head_s
        self.idle_s = idle_s
        self._sweep_s = min(_SWEEP_S, head_s, idle_s)

    def __call__(self) -> "_Visitor":
        return _Visitor(self, loop=asyncio.get_running_loop(), **self._options)

    @property
    def full(self) -> bool:
        return len(self.connections) >= self._max

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    async def shutdown(self, timeout: float | None = None) -> None:
        """Let requests under way have their answers for that long, then hang up."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        await super().shutdown(timeout)

    async def _attend(self, request: web.BaseRequest) -> web.StreamResponse:
        visitor = request.protocol
        assert isinstance(visitor, _Visitor)
        visitor.since, visitor.asked = inf, True
        head, visitor.head = visitor.head, b""
        try:
            response = await self._handle(request)
            if head and response.status == 202:
                self.heads.learn(head, request)
            return response
        finally:
            visitor.expect(self.idle_s)
            visitor.at_rest = request.content.at_eof()

    def _sweep(self) -> None:
        """Hang up on who takes too long. Once a second for all: a timer per request would cost more."""
        now = time.monotonic()
        visitors = self.connections
        for visitor in visitors:
            assert isinstance(visitor, _Visitor)
            if now - visitor.since > visitor.patience_s:
                visitor.hang_up()
            visitor.go_on()
        self._sweeping = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep) if visitors else None


class _Visitor(Familiar):
    """One connection, and since when we wait for its next request."""

    __slots__ = ("_door", "asked", "heard", "patience_s", "since")

    def __init__(self, door: Door, **options: Any) -> None:
        super().__init__(door, door.heads, **options)
        self._door = door
        self.asked = False
        """Whether there was a request; what comes after may be the rest of its body."""
        self.expect(door.head_s)

    def expect(self, patience_s: float) -> None:
        """Wait for so long, from now."""
        self.since, self.patience_s, self.heard = time.monotonic(), patience_s, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._door.full:
            super().connection_made(transport)
            return
        assert isinstance(transport, asyncio.Transport)
        transport.write(_BUSY)
        transport.close()

    def data_received(self, data: bytes) -> None:
        if self.is_familiar(data):
            self.since, self.asked = inf, True
        else:
            self._go_the_ordinary_way(data)

    def _go_the_ordinary_way(self, data: bytes) -> None:
        if not self.heard:
            if self.since != inf:
                self.expect(self._door.head_s)
            self.heard = True
        super().data_received(data)

    def go_on(self) -> None:
        """Called about once a second: a request that has begun on the short way and is still not whole leaves it."""
        if self.is_new:
            self.is_new = False
        elif come := self.give_up():
            self.expect(self._door.head_s)
            self._go_the_ordinary_way(come)

    def answered(self) -> None:
        self.expect(self._door.idle_s)
        super().answered()

    def hang_up(self) -> None:
        if self.heard and not self.asked and isinstance(self.transport, asyncio.Transport):
            self.transport.write(_LATE)
        self.force_close()
