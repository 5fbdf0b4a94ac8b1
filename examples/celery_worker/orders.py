"""Tasks of a shop."""

import os

from celery import Celery

from tracker import BoundTracker, Client, bound_client
from tracker.integrations import celery as tillpost

app = Celery("orders")
app.config_from_object("celeryconfig", silent=True)  # broker, pool, limits: yours
tillpost.connect()
tracker = BoundTracker()  # one for all tasks, made before the pool forks; TILLPOST_URL says where to


@app.task  # type: ignore[untyped-decorator]
def ship(order_id: str, customer_id: str) -> int:
    """Ships an order, and tracks it for the customer. Returns the pid of the child that did it."""
    with bound_client(Client(custom_id=customer_id)):
        pack(order_id)
        tracker.custom(action="order.shipped", params={"orderId": order_id})
    return os.getpid()


def pack(order_id: str) -> None:
    """Deep inside, and still for the right customer."""
    tracker.custom(action="order.packed", params={"orderId": order_id, "worker": os.getpid()})
