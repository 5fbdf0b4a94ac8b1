"""What tracking costs a web backend: imports, the time a request takes longer, the end of a process.

    python benchmarks/web.py [--requests 4000]

The collector is the shipped command on a Unix socket with its upstream away. Requests are calls of the application as
a server makes them, in this process, alternately to a view that tracks and to one that does not, so that a noisy
machine spoils both alike. Medians. CPU is this thread's; the rest is the sender's and shows in the process's CPU.
"""

import argparse
import asyncio
import io
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COOKIE = "_snrs_uuid=57a1b2c3-0000-4000-8000-00000000abcd"
VIEW = {"product_id": "A-1", "name": "Earl Grey tea, 100 g", "source": "WEB_DESKTOP", "url": "https://shop/A-1"}


def collector(folder: Path) -> subprocess.Popen[bytes]:
    path = folder / "c.sock"
    command = [sys.executable, "-m", "collector", "run", "--buffer", folder / "t.db", "--listen", f"unix:{path}",
               "--upstream", "http://127.0.0.1:9", "--set", "log.level=error"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TILLPOST_API_KEY": "bench"})
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                return process
        time.sleep(0.02)
    raise SystemExit("the collector does not start")


# -- imports and exits ---------------------------------------------------------------------------


def cpu_of(program: str, runs: int = 15) -> float:
    """Median CPU seconds of a Python process."""
    spent = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(spent)


EXIT = """
from tracker import Client, Tracker
tracker, anna = Tracker({url!r}), Client(email="anna@example.com")
for n in range(500):
    tracker.custom(anna, action="a.b", params={{"n": n}})
print(flush=True)
"""


def exit_of(url: str, runs: int) -> float:
    """Median seconds from the 500th record to the end of the process, nothing flushed or closed."""
    took = []
    for _ in range(runs):
        with subprocess.Popen(
            [sys.executable, "-c", EXIT.format(url=url)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            started = time.monotonic()
            process.wait()
            took.append(time.monotonic() - started)
    return statistics.median(took)


# -- requests --------------------------------------------------------------------------------------


def wsgi(app: Any) -> Callable[[str], None]:
    def call(path: str) -> None:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "shop", "SERVER_PORT": "80",
                   "HTTP_COOKIE": COOKIE, "wsgi.input": io.BytesIO(), "wsgi.url_scheme": "http"}  # fmt: skip
        said = []
        b"".join(app(environ, lambda *answer: said.append(answer[0])))
        assert said == ["200 OK"]

    return call


def asgi(app: Any) -> Callable[[str], None]:
    loop = asyncio.new_event_loop()

    async def ask(path: str) -> None:
        said: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        async def send(message: dict[str, Any]) -> None:
            said.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
                 "http_version": "1.1", "scheme": "http", "headers": [(b"cookie", COOKIE.encode())]}  # fmt: skip
        await app(scope, receive, send)
        assert said[0]["status"] == 200

    return lambda path: loop.run_until_complete(ask(path))


def flask(url: str) -> tuple[Any, Callable[[str], None]]:
    from flask import Flask

    from tracker.integrations.flask import FlaskTracker

    app, tracker = Flask("shop"), FlaskTracker()
    app.config |= {"TILLPOST_URL": url, "TILLPOST_MAX_RECORDS": 1_000_000, "TILLPOST_MAX_BYTES": "1GiB"}
    tracker.init_app(app)
    app.add_url_rule("/plain", "plain", lambda: "ok")
    app.add_url_rule("/tracked", "tracked", lambda: (tracker.product_view(**VIEW), "ok")[1])
    return tracker, wsgi(app)


def django(url: str) -> tuple[Any, Callable[[str], None]]:
    import django as framework
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.urls import path

    urls: list[Any] = []
    settings.configure(
        ROOT_URLCONF=tuple(urls) or type("Urls", (), {"urlpatterns": urls}), ALLOWED_HOSTS=["*"], SECRET_KEY="k",
        INSTALLED_APPS=["tracker.integrations.django"], MIDDLEWARE=["tracker.integrations.django.ClientMiddleware"],
        TILLPOST={"URL": url, "MAX_RECORDS": 1_000_000, "MAX_BYTES": "1GiB"},
    )  # fmt: skip
    framework.setup()
    from tracker.integrations.django import tracker

    urls.append(path("plain", lambda _: HttpResponse("ok")))
    urls.append(path("tracked", lambda _: (tracker.product_view(**VIEW), HttpResponse("ok"))[1]))
    return tracker, wsgi(get_wsgi_application())


def fastapi(url: str) -> tuple[Any, Callable[[str], None]]:
    from fastapi import FastAPI

    from tracker import BoundTracker
    from tracker.integrations.fastapi import ClientMiddleware, Tracked

    app, tracker = FastAPI(), BoundTracker(url, max_records=1_000_000, max_bytes="1GiB")
    app.add_middleware(ClientMiddleware, tracker=tracker)

    @app.get("/plain")
    async def plain(_: Tracked) -> str:
        return "ok"

    @app.get("/tracked")
    async def tracked(tracker: Tracked) -> str:
        tracker.product_view(**VIEW)
        return "ok"

    return tracker, asgi(app)


def requests(name: str, make: Callable[[str], tuple[Any, Callable[[str], None]]], url: str, count: int) -> None:
    tracker, call = make(url)
    spent: dict[str, list[float]] = {"/plain": [], "/tracked": []}
    cpu: dict[str, list[float]] = {"/plain": [], "/tracked": []}
    for n in range(count + 200):
        for path in spent:
            started, thread = time.perf_counter(), time.thread_time()
            call(path)
            if n >= 200:
                spent[path].append(time.perf_counter() - started)
                cpu[path].append(time.thread_time() - thread)
    assert tracker.flush(60), tracker.counters()
    plain, tracked = (statistics.median(spent[path]) * 1e6 for path in spent)
    more = (statistics.median(cpu["/tracked"]) - statistics.median(cpu["/plain"])) * 1e6
    p99 = [statistics.quantiles(spent[path], n=100)[98] * 1e6 for path in spent]
    print(f"{name:8} request {plain:6.1f} us, with track() {tracked:6.1f} us: {tracked - plain:+5.1f} us wall, "
          f"{more:+5.1f} us CPU; p99 {p99[0]:.0f} and {p99[1]:.0f} us; durable {tracker.counters().durable}, "
          f"refused {tracker.counters().refused}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000, help="of each kind")
    count = parser.parse_args().requests
    sys.path.insert(0, str(ROOT))
    nothing = cpu_of("pass")
    for module in ("tracker", "http.client"):
        print(f"import {module:12} {(cpu_of(f'import {module}') - nothing) * 1000:5.0f} ms CPU")
    with tempfile.TemporaryDirectory() as folder:
        process = collector(Path(folder))
        url = f"unix://{folder}/c.sock"
        try:
            for name, make in (("Flask", flask), ("Django", django), ("FastAPI", fastapi)):
                requests(name, make, url, count)
            print(f"exit after 500 records, nothing flushed: {exit_of(url, 9) * 1000:.0f} ms")
        finally:
            process.terminate()
            process.wait()
        print(f"the same with the collector away, close_timeout 5 s: {exit_of(url, 3):.2f} s")


if __name__ == "__main__":
    main()
