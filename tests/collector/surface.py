"""A server on a free port with the buffer and the operations replaced by lists."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from collector.config import Config
from collector.ingest import Ingest
from collector.kinds import Parcel
from collector.secret import Secret
from collector.server import Check, Server
from collector.tokens import AdminToken, Tokens
from tracker.wire import ClockHeader

NOW_MS = 1_777_888_500_000  # 2026-05-04T09:55:00Z


class FixedClock:
    """A machine that started 1000 s ago and whose clock stands still."""

    def __init__(self, wall_ms: int = NOW_MS, boot_ms: int = 1_000_000) -> None:
        self.wall, self.boot = wall_ms, boot_ms

    def wall_ms(self) -> int:
        return self.wall

    def boot_ms(self) -> int:
        return self.boot

    def boot_id(self) -> str:
        return "our-boot"


class Memory:
    """Stands in for the collector behind the server."""

    def __init__(self) -> None:
        self.parcels: list[Parcel] = []
        self.clocks: list[ClockHeader | None] = []
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.now_ms: int | None = NOW_MS
        self.failing: list[Check] = []
        self.calls: list[tuple[Any, ...]] = []

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(record) for parcel in self.parcels for record in parcel.records]

    async def append(self, parcels: Sequence[Parcel], clock: ClockHeader | None) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        self.parcels += parcels
        self.clocks.append(clock)

    def server_time_ms(self) -> int | None:
        return self.now_ms

    def checks(self) -> list[Check]:
        return [Check("buffer", True, "12 of 512 MiB", vital=True), *self.failing]

    def details(self) -> list[Check]:
        return [Check("lane events/email/live", True, "sending")]

    async def status(self) -> dict[str, Any]:
        return {"version": "0", "state": "running", "ledger": {"accepted": len(self.records)}, "lanes": [],
                "upstream": {"url": "<script>alert(1)</script>"}}  # fmt: skip

    async def metrics(self) -> bytes:
        return b"tillpost_records_accepted_total 0\n"

    def minutes(self, count: int) -> dict[str, Any]:
        return {"at": [NOW_MS // 1000], "accepted": [count], "delivered": [0], "pending": [0]}

    async def dead_letters(self, limit: int, after: int) -> Any:
        return {"dead_letters": [], "next": None, "asked": [limit, after]}

    async def retry(self, ids: Sequence[int] | None, force: bool) -> Any:
        return self._called("retry", ids, force)

    async def discard(self, ids: Sequence[int] | None) -> Any:
        return self._called("discard", ids)

    async def find(self, what: Mapping[str, Any]) -> Any:
        if not what:
            raise ValueError("name an order id, a salt or a client")
        return self._called("find", dict(what))

    async def forget(self, what: Mapping[str, Any]) -> Any:
        return self._called("forget", dict(what))

    async def drain(self) -> None:
        self._called("drain")

    async def resume(self, lane: str | None) -> Any:
        return self._called("resume", lane)

    def _called(self, *call: Any) -> Any:
        self.calls.append(call)
        return {"count": 1}


def config(**ingest: Any) -> Config:
    """The defaults on a free port; `ingest` keys as in the file."""
    return msgspec.convert({"ingest": {"listen": ["127.0.0.1:0"], **ingest}}, Config)


@asynccontextmanager
async def serving(
    settings: Config | None = None,
    *,
    token: str | None = None,
    admin: str | None = None,
    admin_socket: Path | None = None,
    **limits: Any,
) -> AsyncIterator[tuple[Server, Memory, str]]:
    """Server, what stands behind it, and its first address as a URL."""
    settings = settings or config()
    memory = Memory()
    server = Server(
        settings,
        Ingest(settings, FixedClock(), memory.server_time_ms),
        memory,
        memory,
        tokens=Tokens(secret(token)),
        admin_token=AdminToken(secret(admin)),
        **limits,
    )
    await server.start(admin_socket)
    try:
        yield server, memory, f"http://{server.addresses[0]}" if server.addresses else ""
    finally:
        await server.close()


def secret(value: str | None) -> Secret | None:
    return None if value is None else Secret("token", value=value, source="the test")
