"""A small real server that answers as told, over TCP or a Unix socket."""

import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytest

import tracker
from tracker import Client, Money


class Request(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def records(self) -> list[dict[str, Any]]:
        return json.loads(self.body)


class Answer(NamedTuple):
    status: int = 202
    headers: dict[str, str] = {}  # noqa: RUF012
    body: bytes = b""


def accepted(request: Request) -> Answer:
    return Answer(202, {"Tillpost-Accepted": str(len(request.records))})


def lost(request: Request) -> None:
    """Reads the request and hangs up without an answer."""


def error_400(*errors: tuple[str, str]) -> Callable[[Request], Answer]:
    body = {
        "timestamp": "2026-05-04T09:53:56.999Z",
        "status": 400,
        "error": "Bad Request",
        "message": "Some fields did not pass validation",
        "path": "/events/batch",
        "errors": [{"code": 1001, "field": f, "message": m, "rejectedValue": "x"} for f, m in errors],
    }
    return lambda _: Answer(400, {"Content-Type": "application/json"}, json.dumps(body).encode())


class FakeCollector:
    """Answers by `script`, one entry per request, then by `default`."""

    def __init__(self, path: Path | None = None) -> None:
        self.requests: list[Request] = []
        self.script: deque[Callable[[Request], Answer | None]] = deque()
        self.default: Callable[[Request], Answer | None] = accepted
        self._path = path
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._open: set[socket.socket] = set()
        self._seen = threading.Condition()
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self._path}" if self._path else f"http://127.0.0.1:{self._port}"

    @property
    def records(self) -> list[dict[str, Any]]:
        return [record for request in self.requests for record in request.records]

    def wait_for(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """Waits until a condition about the requests holds."""
        with self._seen:
            assert self._seen.wait_for(condition, timeout), f"{len(self.requests)} requests only"

    def start(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer._open.add(self.connection)

            def address_string(self) -> str:
                return "local"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = Request(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                with outer._seen:
                    answer_with = outer.script.popleft() if outer.script else outer.default
                answer = answer_with(request)
                with outer._seen:
                    outer.requests.append(request)
                    outer._seen.notify_all()
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *args: object) -> None:
                """Quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            address_family = socket.AF_UNIX if self._path else socket.AF_INET

            def server_bind(self) -> None:
                if outer._path:
                    outer._path.unlink(missing_ok=True)
                    self.socket.bind(str(outer._path))
                    self.server_name, self.server_port = "local", 0
                else:
                    super().server_bind()

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that hangs up is part of the tests."""

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Stops listening and hangs up on everybody."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
            finally:
                connection.close()
        self._open.clear()


@pytest.fixture(params=["tcp", "unix"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeCollector]:
    """A collector over TCP, and one over a Unix socket."""
    fake = FakeCollector(tmp_path / "c.sock" if request.param == "unix" else None)
    yield fake
    fake.stop()


@pytest.fixture
def fake() -> Iterator[FakeCollector]:
    """A collector over TCP."""
    fake = FakeCollector()
    yield fake
    fake.stop()


@pytest.fixture
def make_tracker() -> Iterator[Callable[..., tracker.Tracker]]:
    """Makes trackers that are closed after the test."""
    made: list[tracker.Tracker] = []

    def make(*args: Any, **options: Any) -> tracker.Tracker:
        options.setdefault("close_timeout", 2.0)
        made.append(tracker.Tracker(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one._account.close_timeout = 0.0  # what a test leaves waiting is no reason to wait
        one.close()


@pytest.fixture
def anna() -> Client:
    return Client(email="anna@example.com")


@pytest.fixture
def price() -> Money:
    return Money("12.50", "PLN")


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until something outside our reach holds, or fails."""

    def wait(condition: Callable[[], object], timeout: float = 10.0) -> None:
        deadline, pause = monotonic() + timeout, threading.Event()
        while not condition():
            assert monotonic() < deadline, "did not happen in time"
            pause.wait(0.005)

    return wait
