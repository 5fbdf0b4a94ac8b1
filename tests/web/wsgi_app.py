"""An application that tracks at import, before any fork, and in every request. Run by test_servers."""

import os
from urllib.parse import parse_qs

from tracker import Client, Tracker

tracker = Tracker(close_timeout=25)  # a loaded machine is slow
made = tracker.custom(Client(custom_id="parent"), action=os.environ["RUN"], params={"n": -1})
made.wait(10)  # the thread and the connection exist when the workers are forked


def app(environ, start_response):
    n = int(parse_qs(environ["QUERY_STRING"])["n"][0])
    receipt = tracker.custom(Client(custom_id=f"C-{n % 3}"), action=os.environ["RUN"], params={"n": n})
    durable = receipt.wait(10) if n % 10 == 0 else receipt.durable
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {n} {int(durable)}".encode()]


async def asgi(scope, receive, send):
    """The same without the help of any integration but the one that flushes at shutdown."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await tracker.aflush()
        await send({"type": "lifespan.shutdown.complete"})
        return
    n = int(parse_qs(scope["query_string"].decode())["n"][0])
    receipt = tracker.custom(Client(custom_id=f"C-{n % 3}"), action=os.environ["RUN"], params={"n": n})
    durable = await receipt.durably(10) if n % 10 == 0 else receipt.durable
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{os.getpid()} {n} {int(durable)}".encode()})
