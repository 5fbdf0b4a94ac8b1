"""The example shop under a real server, and the middleware's rules."""

import asyncio
import signal

import pytest

from tracker import BoundTracker, Client, testing

from .conftest import needs
from .servers import EXAMPLES, UUID, Browser, eventually, listens, of

needs("fastapi")
needs("uvicorn")
needs("itsdangerous")


def test_a_visitor_browses_signs_in_and_buys_and_the_server_ends_with_events_in_memory(run, sidecar, api, tmp_path):
    path = tmp_path / "f.sock"
    server = run(
        "-m", "uvicorn", "--uds", path, "--log-level", "warning", "shop:app",
        env={"TILLPOST_URL": sidecar.url}, cwd=EXAMPLES / "fastapi_shop",
    ).until(lambda: listens(path))  # fmt: skip
    ola, nobody = Browser(path, _snrs_uuid=UUID), Browser(path)
    assert nobody.get("/products/A-1").status == 200
    assert ola.get("/products/A-1").status == 200
    assert ola.post_json("/login", email="ola@example.com").status == 200
    assert ola.post_json("/cart", sku="A-1", quantity=2).status == 200
    assert ola.post_json("/checkout", number="f-1", sku="B-9").json()["number"] == "f-1"
    with sidecar.frozen():
        for _ in range(3):  # the first is sent at once; the others wait in memory for its answer
            assert ola.get("/products/B-9").status == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.is_waiting(), "for the collector"
    server.end()
    assert server.process.returncode == -signal.SIGTERM, "no atexit: what is in memory left at the lifespan's end"
    eventually(lambda: len(of(api, "ola@example.com", UUID)) >= 7)
    entries = of(api, "ola@example.com", UUID)
    types = [entry.type for entry in entries]
    types.remove("added-to-cart")  # a background task's: some time after the answer
    assert types == ["product-view", "logged-in", "transaction", *["product-view"] * 3]
    assert len({entry.profile.id for entry in entries}) == 1


@pytest.fixture
def site():
    """An application whose view tells whom it saw, before and after other requests have run."""
    from fastapi import FastAPI
    from starlette.requests import HTTPConnection

    from tracker.integrations.fastapi import ClientMiddleware, Tracked

    together = asyncio.Barrier(20)

    def client_of(connection: HTTPConnection) -> Client | None:
        name = connection.headers.get("x-user")
        return Client(custom_id=name) if name else None

    app = FastAPI()
    app.add_middleware(ClientMiddleware, tracker=BoundTracker("http://127.0.0.1:9"), client_of=client_of)

    @app.get("/async")
    async def in_a_task(tracker: Tracked) -> str:
        tracker.custom(action="before")
        await together.wait()
        tracker.custom(action="after")
        await asyncio.gather(asyncio.to_thread(lambda: tracker.custom(action="thread")))
        return tracker.client.custom_id

    @app.get("/sync")
    def in_a_thread(tracker: Tracked) -> str:
        tracker.custom(action="sync")
        return tracker.client.custom_id

    return app


async def test_twenty_requests_at_once_each_see_their_own_client_in_tasks_and_threads(site):
    import httpx

    async with httpx.AsyncClient(transport=httpx.ASGITransport(site), base_url="http://shop") as http:
        with testing.capture_events() as tracked:
            for path, count in (("/async", 20), ("/sync", 20)):
                users = [f"u{n}" for n in range(count)]
                answers = await asyncio.gather(*(http.get(path, headers={"x-user": user}) for user in users))
                assert [answer.json() for answer in answers] == users
    for n in range(20):
        mine = [record["action"] for record in tracked if record["client"] == {"customId": f"u{n}"}]
        assert mine == ["before", "after", "thread", "sync"]


async def test_the_dependency_says_what_is_missing_and_can_be_replaced(site):
    import httpx
    from fastapi import FastAPI

    from tracker.integrations.fastapi import Tracked, current_tracker

    app, mine = FastAPI(), BoundTracker("http://127.0.0.1:9")

    @app.get("/")
    async def view(tracker: Tracked) -> bool:
        return tracker is mine

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as http:
        with pytest.raises(RuntimeError, match=r"app\.add_middleware\(ClientMiddleware, tracker="):
            await http.get("/")
        app.dependency_overrides[current_tracker] = lambda: mine
        assert (await http.get("/")).json() is True


async def test_starlette_alone_has_the_middleware_and_a_lifespan_that_flushes(tillpost_collector):
    import httpx
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from tracker.integrations.starlette import ClientMiddleware, lifespan

    tracker = BoundTracker(tillpost_collector.url)

    async def view(request):
        tracker.searched()
        return PlainTextResponse("")

    app = Starlette(routes=[Route("/", view)], lifespan=lifespan(tracker))
    app.add_middleware(ClientMiddleware, client_of=lambda connection: Client(custom_id=connection.query_params["user"]))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as http,
    ):
        assert (await http.get("/?user=ola")).status_code == 200
    assert tracker.counters().durable == 1
    [record] = await asyncio.to_thread(tillpost_collector.delivered)
    assert record["client"] == {"customId": "ola"}
