"""Dead letters: what the upstream refused for what it is, until someone decides."""

from collections.abc import Sequence
from typing import Any

import msgspec

from collector.buffer import Buffer
from collector.chunks import crc_of
from collector.kinds import Run
from collector.work import Work
from tracker.time import format_ms

_RUNS = msgspec.msgpack.Decoder(tuple[Run, ...])
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
PAGE_MAX = 1000


async def page(buffer: Buffer, limit: int = 100, after: int = 0) -> dict[str, Any]:
    """``{"dead_letters": [...], "next": id or None}``, oldest first, those after the id `after`."""
    limit = min(max(limit, 1), PAGE_MAX)

    def read(work: Work) -> list[tuple[Any, ...]]:
        return work.conn.execute(
            "SELECT d.id, l.kind, l.identifier, d.reason, d.status, d.answer, d.died_ms, d.superseded, d.body "
            "FROM dead d JOIN lanes l ON l.id = d.lane WHERE d.id > ? ORDER BY d.id LIMIT ?",
            (after, limit + 1),
        ).fetchall()

    rows = await buffer.run(read)
    letters = [
        {
            "id": letter_id,
            "kind": kind,
            "identifier": identifier,
            "reason": reason,
            "status": status,
            "answer": answer,
            "died_at": format_ms(died_ms),
            "superseded": bool(superseded),
            "record": _as_json(body),
        }
        for letter_id, kind, identifier, reason, status, answer, died_ms, superseded, body in rows[:limit]
    ]
    return {"dead_letters": letters, "next": rows[limit - 1][0] if len(rows) > limit else None}


def _as_json(body: bytes) -> msgspec.Raw:
    """The record as it was accepted, number for number."""
    try:
        body.decode()
        _FIELDS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # stored bytes that failed their checksum: shown as far as they can be read
        return msgspec.Raw(msgspec.json.encode(body.decode("utf-8", "replace")))
    return msgspec.Raw(body)


async def retry(buffer: Buffer, ids: Sequence[int] | None, *, force: bool = False) -> int:
    """Put dead letters back at the end of their lanes; how many.

    `ids` None means all. Superseded ones only with `force`: a newer record of their order
    key was accepted since, and they would overwrite it. Damaged ones never.
    """

    def revive(work: Work) -> int:
        count = 0
        for row in _chosen(work, ids):
            letter_id, lane_id, superseded, accepted_ms, crc, runs, body = row
            if (superseded and not force) or crc_of(runs, b"", body) != crc:
                continue
            work.insert_chunk(work.lane_by_id(lane_id).lane, [body], _RUNS.decode(runs), accepted_ms)
            _remove(work, letter_id, superseded, body)
            count += 1
        return count

    return await buffer.run(revive)


async def discard(buffer: Buffer, ids: Sequence[int] | None) -> int:
    """Give dead letters up for good; how many. The ledger counts them as discarded."""

    def drop(work: Work) -> int:
        count = 0
        for letter_id, _, superseded, _, _, _, body in _chosen(work, ids):
            _remove(work, letter_id, superseded, body)
            work.ledger["discarded"] += 1
            count += 1
        return count

    return await buffer.run(drop)


async def expire(buffer: Buffer, keep_s: float) -> int:
    """Discard dead letters older than `dead.keep`; how many."""

    def drop(work: Work) -> int:
        old = work.conn.execute("SELECT id FROM dead WHERE died_ms < ?", (work.now_ms - int(keep_s * 1000),)).fetchall()
        count = 0
        for letter_id, _, superseded, _, _, _, body in _chosen(work, [letter_id for (letter_id,) in old]):
            _remove(work, letter_id, superseded, body)
            work.ledger["discarded"] += 1
            count += 1
        return count

    return await buffer.run(drop)


def _chosen(work: Work, ids: Sequence[int] | None) -> list[tuple[Any, ...]]:
    columns = "SELECT id, lane, superseded, accepted_ms, crc, runs, body FROM dead"
    if ids is None:
        return work.conn.execute(f"{columns} ORDER BY id").fetchall()
    return [
        row
        for letter_id in sorted(set(ids))
        for row in work.conn.execute(f"{columns} WHERE id = ?", (letter_id,)).fetchall()
    ]


def _remove(work: Work, letter_id: int, superseded: int, body: bytes) -> None:
    work.conn.execute("DELETE FROM dead WHERE id = ?", (letter_id,))
    work.ledger["superseded" if superseded else "dead"] -= 1
    work.dead_bytes -= len(body)
