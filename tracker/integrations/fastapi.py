"""FastAPI: what `tracker.integrations.starlette` has, and a dependency.

tracker = BoundTracker()
app = FastAPI()
app.add_middleware(ClientMiddleware, tracker=tracker, client_of=signed_in)

@app.get("/products/{product_id}")
async def product(product_id: str, tracker: Tracked):
    tracker.product_view(product_id=product_id)
"""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from tracker.bound import BoundTracker
from tracker.integrations import asgi
from tracker.integrations.starlette import ClientMiddleware, lifespan

__all__ = ["ClientMiddleware", "Tracked", "current_tracker", "lifespan"]


async def current_tracker(connection: HTTPConnection) -> BoundTracker:
    """The middleware's tracker, as a dependency; replaceable by ``app.dependency_overrides`` as any other."""
    tracker = connection.scope.get(asgi.TRACKER_KEY)
    if not isinstance(tracker, BoundTracker):
        raise RuntimeError("no tracker in this request: app.add_middleware(ClientMiddleware, tracker=...)")
    return tracker


Tracked = Annotated[BoundTracker, Depends(current_tracker)]
"""A parameter of this type is the tracker, with the client of the request bound."""
