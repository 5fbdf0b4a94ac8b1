"""How fast, and at what cost: ingest and drain of the shipped command in its default configuration.

    python benchmarks/throughput.py [--records 200000] [--per-request 500]

Ingest alone (the upstream is away), then a restart and drain alone (a bare sink answers 202).
CPU is the collector process's own, user and system, from /proc; the ceilings beside it are
measured in the same run, so that a noisy machine spoils the figures but not the ratios.
"""

import argparse
import asyncio
import http.client
import json
import multiprocessing
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import ClassVar

import msgspec

KEY = "bench"
CLIENTS = 8
TICK = os.sysconf("SC_CLK_TCK")


def event(number: int) -> bytes:
    """About 340 bytes, three identifier types evenly mixed."""
    clients = ({"email": f"p{number % 5000}@example.com"}, {"customId": f"C-{number % 5000}"},
               {"uuid": f"00000000-0000-4000-8000-{number % 5000:012x}"})  # fmt: skip
    return json.dumps(
        {"type": "added-to-cart", "label": "Item added to cart", "time": "2026-05-04T09:53:56.999Z",
         "eventSalt": f"{random.getrandbits(128):032x}", "client": clients[number % 3],
         "params": {"sku": f"SKU-{number % 900}", "name": "Earl Grey tea, 100 g", "quantity": 2, "source": "POS",
                    "finalUnitPrice": {"amount": 12.5, "currency": "PLN"}, "terminal": "T-07"}},
        separators=(",", ":"),
    ).encode()  # fmt: skip


# -- a sink that does nothing but answer --------------------------------------------------------


class Sink(asyncio.Protocol):
    records = 0
    sizes: ClassVar[list[int]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.data = transport, bytearray()

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.data[:end]).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
            if len(self.data) < end + 4 + length:
                return
            body = bytes(self.data[end + 4 : end + 4 + length])
            del self.data[: end + 4 + length]
            self.transport.write(self.answer(head, body))

    def answer(self, head: bytes, body: bytes) -> bytes:
        if b"/server/time" in head:
            text = json.dumps({"serverTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}).encode()
        elif b"/login/" in head:
            text = b'{"token": "t"}'
        else:
            count = body.count(b'"eventSalt"')
            Sink.records += count
            Sink.sizes.append(count)
            return b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)


def sink(port: int, stop: "multiprocessing.synchronize.Event", out: "multiprocessing.Queue[list[int]]") -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Sink, "127.0.0.1", port)
        while not stop.is_set():
            await asyncio.sleep(0.05)
        server.close()

    asyncio.run(serve())
    out.put(Sink.sizes)


# -- the collector ------------------------------------------------------------------------------


class Collector:
    def __init__(self, folder: Path, address: str, upstream: str) -> None:
        self.address = address
        self.process = subprocess.Popen(
            [sys.executable, "-m", "collector", "run", "--buffer", str(folder / "tillpost.db"), "--listen", address,
             "--upstream", upstream, "--set", "log.level=error"],
            env={**os.environ, "TILLPOST_API_KEY": KEY},
        )  # fmt: skip
        wait(self.ready)

    def ready(self) -> bool:
        try:
            return bool(self.status()["state"] == "running")
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def status(self) -> dict:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            connection.request("GET", "/status.json")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory_mb(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def wait(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("it never happened")
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def post_all(address: str, bodies: list[bytes], clients: int) -> None:
    lock, position = threading.Lock(), iter(bodies)

    def run() -> None:
        connection = http.client.HTTPConnection(address, timeout=60)
        while True:
            with lock:
                body = next(position, None)
            if body is None:
                return
            connection.request("POST", "/v4/events/batch", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 202:
                sys.exit(f"refused: {answer.status}")

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- ceilings -----------------------------------------------------------------------------------


def ceilings(bodies: list[bytes], per_request: int) -> dict[str, float]:
    """CPU us per record of the bare parts: typed decode, insert and commit with FULL, read and delete."""
    from collector.shapes import decode_events

    found = {}
    some = bodies[: max(1, 60_000 // per_request)]
    n = len(some) * per_request
    split = msgspec.json.Decoder(list[msgspec.Raw]).decode
    begun = time.process_time()
    for body in some:
        decode_events(body)
        [bytes(raw) for raw in split(body)]
    found["decode + split"] = (time.process_time() - begun) / n * 1e6
    with tempfile.TemporaryDirectory() as folder:
        db = sqlite3.connect(f"{folder}/c.db", isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE c (id INTEGER PRIMARY KEY, body BLOB)")
        begun = time.process_time()
        for number, body in enumerate(some):
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT INTO c VALUES (?, ?)", (number, body))
            db.execute("COMMIT")
        found["insert + commit"] = (time.process_time() - begun) / n * 1e6
        begun = time.process_time()
        for number in range(len(some)):
            db.execute("SELECT body FROM c WHERE id = ?", (number,)).fetchone()
            db.execute("DELETE FROM c WHERE id = ?", (number,))
        found["read + delete"] = (time.process_time() - begun) / n * 1e6
        db.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--per-request", type=int, default=500)
    arguments = parser.parse_args()
    n, per_request = arguments.records, arguments.per_request
    random.seed(1)
    bodies = [
        b"[" + b",".join(event(start + i) for i in range(per_request)) + b"]" for start in range(0, n, per_request)
    ]
    n = len(bodies) * per_request
    print(f"{n} records of {sum(map(len, bodies)) / n:.0f} bytes, {per_request} a request, {CLIENTS} clients")
    folder = Path(tempfile.mkdtemp(prefix="tillpost-throughput-"))
    port, address = free_port(), f"127.0.0.1:{free_port()}"
    for name, cost in ceilings(bodies, per_request).items():
        print(f"  ceiling, {name}: {cost:.2f} us CPU a record")

    collector = Collector(folder, address, f"http://127.0.0.1:{port}")
    empty_mb, cpu, begun = collector.memory_mb(), collector.cpu_s(), time.monotonic()
    post_all(address, bodies, CLIENTS)
    seconds, cost = time.monotonic() - begun, collector.cpu_s() - cpu
    print(f"ingest: {n / seconds:,.0f} records/s, {cost / n * 1e6:.2f} us CPU a record; memory {empty_mb:.0f} -> "
          f"{collector.memory_mb():.0f} MiB; file {(folder / 'tillpost.db').stat().st_size / sum(map(len, bodies)):.3f}"
          " of the payload")  # fmt: skip
    collector.stop()

    stop, out = multiprocessing.Event(), multiprocessing.Queue()
    sinking = multiprocessing.Process(target=sink, args=(port, stop, out))
    sinking.start()
    begun = time.monotonic()
    collector = Collector(folder, address, f"http://127.0.0.1:{port}")
    started, cpu, drained = time.monotonic() - begun, collector.cpu_s(), time.monotonic()
    pending = collector.status()["ledger"]["pending"]
    wait(lambda: collector.status()["ledger"]["pending"] == 0)
    seconds, cost = time.monotonic() - drained, collector.cpu_s() - cpu
    print(f"restart with the backlog: accepts after {started:.2f} s")
    print(f"drain: {pending / seconds:,.0f} records/s, {cost / max(pending, 1) * 1e6:.2f} us CPU a record; "
          f"memory {collector.memory_mb():.0f} MiB")  # fmt: skip
    collector.stop()
    stop.set()
    sizes = out.get()
    sinking.join()
    print(f"batches: {len(sizes)}, {sum(sizes) / max(len(sizes), 1):.0f} records on average")


if __name__ == "__main__":
    main()
