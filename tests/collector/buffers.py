"""What the buffer's tests share: records, parcels, and a gate that lets everything pass."""

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from collector.batcher import Gate, Limits
from collector.buffer import Buffer
from collector.kinds import KINDS, Lane, Parcel, Run

EMAIL = Lane("events", "email", "live")
UUID = Lane("events", "uuid", "live")
BULK = Lane("events", "email", "bulk")
SALES = Lane("transactions", "customId", "live")
ANYTIME = Gate(now_ms=4_000_000_000_000)
LIMITS = Limits(1000, 1_000_000)
T0 = 1_767_225_600_000  # 2026-01-01T00:00:00Z


def record(salt: str, *, email: str = "a@example.com", time: str = "2026-01-01T00:00:00.000Z", pad: int = 0) -> bytes:
    event = {
        "type": "custom",
        "action": "a.b",
        "label": "x" * (1 + pad),
        "time": time,
        "eventSalt": salt,
        "client": {"email": email},
    }
    return json.dumps(event, separators=(",", ":")).encode()


def parcel(records: Iterable[bytes], lane: Lane = EMAIL, *, boot: str | None = None, offset_ms: int = 0) -> Parcel:
    held = list(records)
    latest = max((KINDS[lane.kind].time_ms(one) for one in held), default=0)
    return Parcel(lane, held, [Run(len(held), latest, boot, offset_ms)])


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[Buffer]:
    """A buffer that is closed also when the test fails: its thread would keep the interpreter from ending."""
    buffer = await Buffer.open(path, **options)
    try:
        yield buffer
    finally:
        await buffer.close()


def adds_up(ledger: dict[str, int]) -> bool:
    return ledger["accepted"] == sum(
        ledger[name] for name in ("delivered", "pending", "dead", "discarded", "superseded", "lost")
    )
