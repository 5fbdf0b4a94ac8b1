"""What do the bare parts cost? The denominators: aiohttp, typed decoding, SQLite, on this machine, in this run.

    python -m benchmarks.ceilings [--quick]

Each part does the least that the job needs and nothing that makes it ours: no checks beyond the types, no ledger,
no checksums, no retries. Layout and sizes are those of the design: one row per identifier type and commit, two
requests of 500 records in a commit, 1,000 records in a row that is read and in a request that is sent.
"""

import asyncio
import functools
import sqlite3
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from aiohttp import ClientSession, web  # here: a server that first had to import it would count that as receiving

from benchmarks import report
from benchmarks.lab import Feeder, Listening, Sink, bodies, cpu_s, scratch
from benchmarks.machine import LIKE_US, Work, slowness
from benchmarks.report import Denominator, Figure, Result, Table

LIKE = {"receive": 0.31, "decode": 1.06, "insert": 0.69, "read": 0.10, "post": 0.24, "delete": 0.19}
"""What they were on a like machine, us CPU a record, when the goals were set."""


# -- aiohttp --------------------------------------------------------------------------------------


async def _answer(request: web.BaseRequest) -> web.Response:
    await request.read()
    return web.Response(status=202)


@functools.cache
def _server() -> "web.Server[web.BaseRequest]":
    return web.Server(_answer, access_log=None)


def _bare() -> asyncio.BaseProtocol:
    return _server()()


class BareServer(Listening):
    """aiohttp's server that reads a body, drops it and answers 202: in a process of its own."""

    def __init__(self) -> None:
        super().__init__(_bare)

    def request_us(self, load: Sequence[bytes], connections: int) -> float:
        """CPU us a request."""
        feeder, before = Feeder(self.address, load, connections), cpu_s(self.pid)
        feeder.run()
        return (cpu_s(self.pid) - before) / len(load) * 1e6


def post_us(load: Sequence[bytes]) -> float:
    """CPU us a request of aiohttp's client, one request at a time in each of three connections."""

    async def post(url: str) -> float:
        rest = iter(load)

        async def lane(session: ClientSession) -> None:
            for body in rest:
                async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
                    await answer.read()

        async with ClientSession() as session:
            await lane_warm(session, url, load[0])
            begun = time.process_time()
            await asyncio.gather(*(lane(session) for _ in range(3)))
            return time.process_time() - begun

    async def lane_warm(session: ClientSession, url: str, body: bytes) -> None:
        async with session.post(url, data=body) as answer:
            await answer.read()

    with Sink() as sink:
        return asyncio.run(post(sink.url + "/v4/events/batch")) / len(load) * 1e6


# -- decoding -------------------------------------------------------------------------------------


def decode_us(load: Sequence[bytes], per_request: int) -> float:
    """CPU us a record: typed decode of the whole array, its records' bytes, grouped by identifier and joined."""
    from collector.shapes import decode_events

    split = msgspec.json.Decoder(list[msgspec.Raw]).decode
    begun = time.process_time()
    for body in load:
        groups: dict[tuple[bool, bool], list[bytes]] = {}
        for event, raw in zip(decode_events(body), split(body), strict=True):
            client = event.client
            key = client.email is msgspec.UNSET, client.customId is msgspec.UNSET
            try:
                groups[key].append(bytes(raw))
            except KeyError:
                groups[key] = [bytes(raw)]
        for group in groups.values():
            b",".join(group)
    return (time.process_time() - begun) / (len(load) * per_request) * 1e6


# -- SQLite ---------------------------------------------------------------------------------------


def connect(file: Path, synchronous: str = "FULL") -> sqlite3.Connection:
    conn = sqlite3.connect(file, isolation_level=None)
    conn.execute("PRAGMA locking_mode = EXCLUSIVE")
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute(f"PRAGMA synchronous = {synchronous}")
    conn.execute("PRAGMA secure_delete = OFF")
    conn.execute("CREATE TABLE IF NOT EXISTS chunks (id INTEGER PRIMARY KEY, n INTEGER, ends BLOB, body BLOB)")
    return conn


def sqlite_us(folder: Path, load: Sequence[bytes], per_request: int) -> dict[str, float]:
    """CPU us a record: insert with commit, read, delete with commit."""
    split = msgspec.json.Decoder(list[msgspec.Raw]).decode
    commits = []
    for first, second in zip(load[::2], load[1::2], strict=True):
        raw = [*split(first), *split(second)]
        commits.append([b",".join(map(bytes, raw[i::3])) for i in range(3)])
    records = 2 * per_request * len(commits)
    found = {}
    conn = connect(folder / "rows.db")
    ends = bytes(4 * 334)
    begun = time.process_time()
    for number, rows in enumerate(commits):
        conn.execute("BEGIN IMMEDIATE")
        for lane, row in enumerate(rows):
            conn.execute("INSERT INTO chunks VALUES (?, ?, ?, ?)", (lane << 40 | number, 334, ends, row))
        conn.execute("COMMIT")
    found["insert"] = (time.process_time() - begun) / records * 1e6
    conn.close()
    # full rows: what a drain at its best would find
    conn = connect(folder / "full.db")
    conn.execute("BEGIN")
    for i, rows in enumerate(commits):
        conn.execute("INSERT INTO chunks VALUES (?, ?, ?, ?)", (i, 1000, ends * 3, b",".join(rows)))
    conn.execute("COMMIT")
    begun = time.process_time()
    for i in range(len(commits)):
        conn.execute("SELECT id, n, ends, body FROM chunks WHERE id = ?", (i,)).fetchone()
    found["read"] = (time.process_time() - begun) / records * 1e6
    begun = time.process_time()
    for i in range(len(commits)):
        conn.execute("BEGIN IMMEDIATE")
        conn.execute("DELETE FROM chunks WHERE id = ?", (i,))
        conn.execute("COMMIT")
    found["delete"] = (time.process_time() - begun) / records * 1e6
    conn.close()
    return found


# -- all of them ----------------------------------------------------------------------------------


class Parts(NamedTuple):
    """One round of all parts, us CPU a record."""

    us: dict[str, float]
    weighed: dict[str, float]
    """Over how slow the machine was meanwhile."""

    @property
    def ingest_us(self) -> float:
        return self.us["receive"] + self.us["decode"] + self.us["insert"]

    @property
    def drain_us(self) -> float:
        return self.us["read"] + self.us["post"] + self.us["delete"]


def measure(records: int = 60_000, per_request: int = 500) -> Parts:
    load = bodies(records, per_request)
    with BareServer() as bare:
        found = {"receive": bare.request_us(load, 8) / per_request}
    found["decode"] = decode_us(load, per_request)
    with scratch() as folder:
        found |= sqlite_us(folder, load, per_request)
    thousands = bodies(records, 1000, seed=2)
    found["post"] = post_us(thousands) / 1000
    slow: dict[Work, float] = {work: slowness(work) for work in LIKE_US}
    return Parts(found, {part: us / slow[BOUND_BY[part]] for part, us in found.items()})


BOUND_BY: dict[str, Work] = {
    "receive": "network", "decode": "interpreter", "insert": "disk", "read": "disk", "post": "network",
    "delete": "disk",
}  # fmt: skip


def denominator(part: str, rounds: Sequence[Parts]) -> Denominator:
    return Denominator(f"{part}, CPU us a record", Figure.of([one.weighed[part] for one in rounds]), LIKE[part])


def commit_ms(folder: Path, commits: int = 400) -> float:
    """Median wall ms of a commit of a single small row, FULL."""
    conn, took = connect(folder / "single.db"), []
    for i in range(commits):
        begun = time.perf_counter()
        conn.execute("INSERT INTO chunks VALUES (?, 1, x'00000000', ?)", (i, bytes(340)))
        took.append(time.perf_counter() - begun)
    conn.close()
    return statistics.median(took) * 1e3


def run(quick: bool) -> Result:
    rounds = [measure(20_000 if quick else 60_000) for _ in range(2 if quick else 5)]
    table = Table("", ("Part", "CPU us a record", "on a like machine"))
    result = Result("What do the bare parts cost?", [table])
    for name, like in LIKE.items():
        table.rows.append((name, Figure.of([one.us[name] for one in rounds]), like))
        result.denominators.append(denominator(name, rounds))
    table.rows.append(("ingest, the sum", Figure.of([one.ingest_us for one in rounds]), ""))
    table.rows.append(("drain, the sum", Figure.of([one.drain_us for one in rounds]), ""))
    return result


if __name__ == "__main__":
    report.main(run, __doc__)
