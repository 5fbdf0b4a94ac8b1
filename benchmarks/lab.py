"""What every measurement needs: processes and their CPU time, the shipped collector, a load, a sink.

CPU is user and system time of a whole process, by the scheduler's own count in nanoseconds: ticks of 10 ms would
be as long as a short run. What feeds it and what it feeds are processes of their own, so that neither is counted.
"""

import asyncio
import contextlib
import functools
import http.client
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar, cast

ROOT: Final = Path(__file__).parents[1]
KEY: Final = "bench"
BATCH_PATH: Final = "/v4/events/batch"
T = TypeVar("T")
SETTLED_S: Final = 0.3
"""When the upstream has the last batch, the collector still has to delete it; to ask it would be part of its CPU."""
_spawn = multiprocessing.get_context("spawn")


# -- CPU and memory of a process ------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """CPU seconds used by all threads a process has now; the collector's live as long as it does."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


def memory_mib(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process: ``VmRSS`` now, ``VmHWM`` at most so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Wait for a condition. Exits, saying what never happened."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder on the disk, not in memory: what a sync costs is part of the question."""
    with tempfile.TemporaryDirectory(prefix="tillpost-bench-", dir="/var/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def apart(work: Callable[..., T], *arguments: Any) -> T:
    """What a function returns in a process of its own, which ends at once and whose messages are nobody's concern."""
    process, results = begin_apart(work, *arguments)
    try:
        result, trouble = results.recv()
    except EOFError:
        result, trouble = None, "ended without a result"
    process.join()
    if trouble:
        sys.exit(f"{work.__name__}{arguments}: {trouble}")
    return cast(T, result)


def begin_apart(work: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    """The process, and the end of the pipe from which its result comes with what went wrong."""
    results, result = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=_apart, args=(work, arguments, result), daemon=True)
    process.start()
    result.close()
    return process, results


def _apart(work: Callable[..., Any], arguments: tuple[Any, ...], results: Any) -> None:
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        results.send((work(*arguments), ""))
    except BaseException as error:
        results.send((None, f"{type(error).__name__}: {error}"))
    os._exit(0)  # whatever threads a library has left behind, waiting for an answer


# -- the load -------------------------------------------------------------------------------------


def event(number: int, rng: random.Random) -> bytes:
    """About 340 bytes, three identifier types evenly mixed."""
    clients = ({"email": f"p{number % 5000}@example.com"}, {"customId": f"C-{number % 5000}"},
               {"uuid": f"00000000-0000-4000-8000-{number % 5000:012x}"})  # fmt: skip
    return json.dumps(
        {"type": "added-to-cart", "label": "Item added to cart", "time": "2026-05-04T09:53:56.999Z",
         "eventSalt": f"{rng.getrandbits(128):032x}", "client": clients[number % 3],
         "params": {"sku": f"SKU-{number % 900}", "name": "Earl Grey tea, 100 g", "quantity": 2, "source": "POS",
                    "finalUnitPrice": {"amount": 12.5, "currency": "PLN"}, "terminal": "T-07"}},
        separators=(",", ":"),
    ).encode()  # fmt: skip


def bodies(records: int, per_request: int, seed: int = 1) -> list[bytes]:
    """Request bodies of that many records altogether, each with a salt of its own."""
    rng = random.Random(seed)
    return [
        b"[" + b",".join(event(start + i, rng) for i in range(min(per_request, records - start))) + b"]"
        for start in range(0, records, per_request)
    ]


class _Client(asyncio.Protocol):
    """One keep-alive connection in a closed loop: the next request when the answer is there."""

    def __init__(self, requests: Iterator[bytes], done: asyncio.Future[None]) -> None:
        self.requests, self.done, self.answer = requests, done, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.next()

    def next(self) -> None:
        request = next(self.requests, None)
        if request is not None:
            self.transport.write(request)
        elif not self.done.done():
            self.done.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.answer += data
        if b"\r\n\r\n" in self.answer:
            if b" 202 " not in self.answer[:20] and not self.done.done():
                self.done.set_exception(RuntimeError(self.answer[:300].decode()))
                return
            self.answer = b""
            self.next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("hung up"))


def request_of(address: str, body: bytes, path: str = BATCH_PATH) -> bytes:
    return (f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body  # fmt: skip


def _feed(address: str, load: Sequence[bytes], connections: int) -> None:
    async def run() -> None:
        host, _, port = address.rpartition(":")
        made = {body: request_of(address, body) for body in load}  # a load may hold a body many times
        requests = iter([made[body] for body in load])
        ends: list[asyncio.Future[None]] = []
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            ends.append(loop.create_future())
            end = ends[-1]
            await loop.create_connection(lambda end=end: _Client(requests, end), host, int(port))  # type: ignore[misc]
        await asyncio.gather(*ends)

    asyncio.run(run())


class Feeder:
    """A process that posts bodies. The bodies are made and sent to it before the clock starts."""

    def __init__(self, address: str, load: Sequence[bytes], connections: int = 8) -> None:
        self._go, self._ready = _spawn.Event(), _spawn.Event()
        self._process = _spawn.Process(target=_feeder, args=(address, load, connections, self._go, self._ready))
        self._process.start()
        until(self._ready.is_set, "the feeder is ready")

    def run(self) -> float:
        """Post everything; the seconds it took."""
        begun = time.monotonic()
        self._go.set()
        self._process.join()
        if self._process.exitcode:
            sys.exit("the feeder failed")
        return time.monotonic() - begun


def _feeder(address: str, load: Sequence[bytes], connections: int, go: Any, ready: Any) -> None:
    ready.set()
    go.wait()
    _feed(address, load, connections)


# -- a sink: answers 202 and counts ---------------------------------------------------------------


class _Sink(asyncio.Protocol):
    def __init__(self, records: Any, requests: Any) -> None:
        self.records, self.requests, self.data, self.wanted = records, requests, bytearray(), -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        while True:
            if self.wanted < 0:
                end = self.data.find(b"\r\n\r\n")
                if end < 0:
                    return
                self.head = bytes(self.data[:end]).lower()
                _, _, rest = self.head.partition(b"content-length:")
                self.wanted = int(rest.split(b"\r\n")[0]) if rest else 0
                del self.data[: end + 4]
                if b"expect: 100" in self.head:
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if len(self.data) < self.wanted:
                return
            body = bytes(self.data[: self.wanted])
            del self.data[: self.wanted]
            self.wanted = -1
            self.transport.write(self.answer(body))

    def answer(self, body: bytes) -> bytes:
        if b"/server/time" in self.head:
            return answer_json(json.dumps({"serverTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}).encode())
        if b"/login/" in self.head:
            return answer_json(b'{"token": "t"}')
        return self.take(body)

    def take(self, body: bytes) -> bytes:
        """Count a body; the answer to it."""
        self.records.value += body.count(b'"eventSalt"')
        self.requests.value += 1
        return b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"


def answer_json(text: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    return head.encode() + text


def _listen(port: int, protocol: Callable[[], asyncio.BaseProtocol], listening: Any) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", port)
        listening.set()
        await server.serve_forever()

    asyncio.run(serve())


class Listening:
    """A process that listens on a port; `protocol` is called there, for each connection."""

    def __init__(self, protocol: Callable[[], asyncio.BaseProtocol], port: int | None = None) -> None:
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._protocol = protocol

    def __enter__(self) -> Self:
        listening = _spawn.Event()
        self._process = _spawn.Process(target=_listen, args=(self.port, self._protocol, listening), daemon=True)
        self._process.start()
        until(listening.is_set, f"something listens on port {self.port}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    @property
    def pid(self) -> int:
        return self._process.pid or 0


class Sink(Listening):
    """Stands in for the API: answers 202 at once, counts records and requests."""

    def __init__(self, protocol: Callable[..., asyncio.Protocol] = _Sink, port: int | None = None) -> None:
        self._records, self._requests = _spawn.RawValue("q"), _spawn.RawValue("q")
        super().__init__(functools.partial(protocol, self._records, self._requests), port)
        self.url = f"http://{self.address}"

    @property
    def records(self) -> int:
        return int(self._records.value)

    @property
    def requests(self) -> int:
        return int(self._requests.value)


# -- the collector --------------------------------------------------------------------------------


class Collector:
    """The shipped command in its default configuration, plus what `settings` says (``name=value``)."""

    def __init__(self, folder: Path, upstream: str = "http://127.0.0.1:9", *, settings: Sequence[str] = (),
                 listen: str | None = None, program: Sequence[str] = ("-m", "collector")) -> None:  # fmt: skip
        self.folder = folder
        self.file = folder / "tillpost.db"
        self.address = listen or f"127.0.0.1:{free_port()}"
        extra = [part for setting in ("log.level=error", *settings) for part in ("--set", setting)]
        self._command = [sys.executable, *program, "run", "--buffer", str(self.file), "--listen", self.address,
                         "--upstream", upstream, *extra]  # fmt: skip

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> float:
        """Start it; the seconds until it takes records."""
        begun = time.monotonic()
        self._process = subprocess.Popen(self._command, cwd=ROOT, env={**os.environ, "TILLPOST_API_KEY": KEY})
        until(self._ready, "the collector is ready", 300)
        return time.monotonic() - begun

    def _ready(self) -> bool:
        if self._process.poll() is not None:
            sys.exit("the collector ended")
        try:
            connection = http.client.HTTPConnection(self.address, timeout=30)
            connection.request("POST", BATCH_PATH, b"[]", {"Content-Type": "application/json"})
            return connection.getresponse().status == 202
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    def status(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            connection.request("GET", "/status.json")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()

    @property
    def pending(self) -> int:
        return int(self.status()["ledger"]["pending"])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(120)
