"""FastAPI and Starlette: the middleware, the lifespan, and a dependency.

    tracker = BoundTracker()
    app = FastAPI()
    app.add_middleware(ClientMiddleware, tracker=tracker, client_of=signed_in)

    @app.get("/products/{product_id}")
    async def product(product_id: str, tracker: Tracked):
        tracker.product_view(product_id=product_id)

`client_of` gets the connection: a Starlette ``HTTPConnection``, with its session and user where your
application has these.
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from tracker.bound import BoundTracker
from tracker.clients import Client
from tracker.integrations import asgi
from tracker.integrations.asgi import lifespan

__all__ = ["ClientMiddleware", "Tracked", "current_tracker", "lifespan"]


class ClientMiddleware(asgi.ClientMiddleware):
    """`asgi.ClientMiddleware` whose `client_of` gets an ``HTTPConnection``."""

    def __init__(
        self,
        app: asgi.App,
        tracker: BoundTracker | None = None,
        client_of: Callable[[HTTPConnection], Client | None] | None = None,
    ) -> None:
        super().__init__(app, tracker, None if client_of is None else lambda scope: client_of(HTTPConnection(scope)))


async def current_tracker(connection: HTTPConnection) -> BoundTracker:
    """The middleware's tracker, as a dependency; replaceable by ``app.dependency_overrides`` as any other."""
    tracker = connection.scope.get(asgi.TRACKER_KEY)
    if not isinstance(tracker, BoundTracker):
        raise RuntimeError("no tracker in this request: app.add_middleware(ClientMiddleware, tracker=...)")
    return tracker


Tracked = Annotated[BoundTracker, Depends(current_tracker)]
"""A parameter of this type is the tracker, with the client of the request bound."""
