"""``status.json``: the same facts for the page, the command line and the metrics."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from typing import Any, Literal, Protocol

import msgspec

from collector.buffer import Buffer, Unknown
from collector.files import beside
from collector.kinds import Lane
from collector.work import SEQ_BITS, Work

State = Literal["starting", "running", "draining", "stopping", "failed", "stopped"]
BESIDE = ("-wal", ".lock", ".mark", ".ballast")
"""What counts towards `buffer.disk_bytes` besides the database."""

VERSION = metadata.version("tillpost")


class LaneActivity(Protocol):
    """What a lane is doing, as far as delivery knows."""

    @property
    def state(self) -> str: ...
    @property
    def attempts(self) -> int: ...
    @property
    def last_error(self) -> str | None: ...


class LaneStatus(msgspec.Struct):
    """One lane's line."""

    kind: str
    identifier: str
    priority: str
    pending: int
    aside: int
    oldest_age_s: float | None
    state: str = "idle"
    attempts: int = 0
    last_error: str | None = None


async def status_of(
    buffer: Buffer,
    *,
    state: State,
    activity: Mapping[Lane, LaneActivity] | None = None,
    clock: Mapping[str, Any] | None = None,
    upstream: Mapping[str, Any] | None = None,
    listening: Iterable[str] = (),
) -> dict[str, Any]:
    """The body of ``status.json``. Everything in it was true at one moment of the buffer.

    Of a buffer that failed it says what was known last.
    """
    oldest: Mapping[int, int] = {}
    with suppress(Unknown):
        oldest = await buffer.run(_oldest)
    now_ms = buffer.now_ms()
    lanes = []
    for row in buffer.lanes():
        line = LaneStatus(row.lane.kind, row.lane.identifier, row.lane.priority, row.pending, row.aside, None)
        if (accepted_ms := oldest.get(row.id)) is not None:
            # a clock set back must not show an age below zero
            line.oldest_age_s = round(max(0, now_ms - accepted_ms) / 1000, 1)
        if (doing := (activity or {}).get(row.lane)) is not None:
            line.state, line.attempts, line.last_error = doing.state, doing.attempts, doing.last_error
        lanes.append(msgspec.structs.asdict(line))
    return {
        "version": VERSION,
        "state": state,
        "ledger": buffer.ledger(),
        "lanes": lanes,
        "buffer": {
            "path": str(buffer.path),
            "bytes": buffer.used_bytes,
            "disk_bytes": disk_bytes(buffer),
            "max_bytes": buffer.sizes.max_size,
            "usable_bytes": buffer.sizes.usable,
            "dead_bytes": buffer.dead_bytes,
            "full": buffer.is_full,
            "disk_full": buffer.is_tight,
        },
        "damage": buffer.damage and buffer.damage.facts(),
        "clock": dict(clock or {"offset_ms": None, "synchronised": False}),
        "upstream": dict(upstream or {"url": None, "auth": None}),
        "listening": list(listening),
    }


def disk_bytes(buffer: Buffer) -> int:
    """Bytes of the buffer's files together."""
    total = 0
    for file in (buffer.path, *(beside(buffer.path, suffix) for suffix in BESIDE)):
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _oldest(work: Work) -> dict[int, int]:
    """When the oldest pending record of each lane was accepted, wall clock ms, by lane id."""
    oldest: dict[int, int] = {}
    for state in work.all_lanes():
        if not state.pending:
            continue
        rows = [
            work.conn.execute(
                "SELECT accepted_ms FROM chunks WHERE id >= ? AND id < ? ORDER BY id LIMIT 1",
                (state.id << SEQ_BITS, (state.id + 1) << SEQ_BITS),
            ).fetchone()
        ]
        if state.aside:
            rows.append(work.conn.execute("SELECT min(accepted_ms) FROM aside WHERE lane = ?", (state.id,)).fetchone())
        known = [row[0] for row in rows if row is not None and row[0] is not None]
        if known:
            oldest[state.id] = min(known)
    return oldest
