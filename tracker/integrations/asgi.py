"""A pure ASGI middleware that binds the client of each request, for Starlette, FastAPI, Quart, Litestar, ..."""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Final

from tracker.bound import Binding, BoundTracker, anonymous_uuid, bound
from tracker.clients import Client
from tracker.tracker import Tracker

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
ClientOf = Callable[[Scope], Client | None]

TRACKER_KEY: Final = "tillpost.tracker"
"""Where the tracker is in the scope of a request."""


class ClientMiddleware:
    """Binds the client of a request or WebSocket for `BoundTracker`, and flushes when the server shuts down.

    Args:
        app: the application.
        tracker: flushed after the application's own shutdown, for at most its `close_timeout`; servers end by a
            signal then, and nothing registered with `atexit` runs. Code finds it as ``scope["tillpost.tracker"]``.
        client_of: tells the signed-in client from the scope, or None; called at the first record of a request, if
            there is one. Without it, and where it says None, the client is the anonymous profile of the
            ``_snrs_uuid`` cookie.
    """

    def __init__(self, app: App, tracker: BoundTracker | None = None, client_of: ClientOf | None = None) -> None:
        self.app = app
        self.tracker = tracker
        self.client_of = client_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, self._flushing(send))
            return
        scope[TRACKER_KEY] = self.tracker
        find = self.client_of
        with bound(Binding(find and (lambda: find(scope)), anonymous_uuid(_cookies(scope)))):
            await self.app(scope, receive, send)

    def _flushing(self, send: Send) -> Send:
        async def flush_first(message: Message) -> None:
            if self.tracker is not None and message["type"].startswith("lifespan.shutdown."):
                await self.tracker.aflush()
            await send(message)

        return flush_first


class FlushAtShutdown:
    """Around an application that knows no lifespan, as Django's: flushes the tracker when the server shuts down.

    Args:
        app: the application; it gets everything but the lifespan.
        tracker: flushed for at most its `close_timeout`.
    """

    def __init__(self, app: App, tracker: Tracker) -> None:
        self.app = app
        self.tracker = tracker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        await receive()  # lifespan.startup
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        await self.tracker.aflush()
        await send({"type": "lifespan.shutdown.complete"})


def _cookies(scope: Scope) -> str:
    """The ``Cookie`` headers; HTTP/2 clients may send several."""
    return ";".join(value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"cookie")


def lifespan(tracker: BoundTracker) -> Callable[[Any], Any]:
    """A lifespan that flushes the tracker at shutdown, for applications without `ClientMiddleware`.

    Within one of your own: ``async with lifespan(tracker)(app): ...``.
    """

    @asynccontextmanager
    async def flushed(app: Any) -> AsyncIterator[None]:  # noqa: ARG001  the signature of a lifespan
        try:
            yield
        finally:
            await tracker.aflush()

    return flushed
