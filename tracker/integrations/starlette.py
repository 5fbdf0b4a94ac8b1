"""Starlette: the middleware and the lifespan; FastAPI has a dependency besides.

    app = Starlette(routes=routes)
    app.add_middleware(ClientMiddleware, tracker=tracker, client_of=signed_in)

`client_of` gets the connection: a Starlette ``HTTPConnection``, with its session and user where your
application has these.
"""

from collections.abc import Callable

from starlette.requests import HTTPConnection

from tracker.bound import BoundTracker
from tracker.clients import Client
from tracker.integrations import asgi
from tracker.integrations.asgi import lifespan

__all__ = ["ClientMiddleware", "lifespan"]


class ClientMiddleware(asgi.ClientMiddleware):
    """`asgi.ClientMiddleware` whose `client_of` gets an ``HTTPConnection``."""

    def __init__(
        self,
        app: asgi.App,
        tracker: BoundTracker | None = None,
        client_of: Callable[[HTTPConnection], Client | None] | None = None,
    ) -> None:
        super().__init__(app, tracker, None if client_of is None else lambda scope: client_of(HTTPConnection(scope)))
