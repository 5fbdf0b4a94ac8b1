"""Dead letters: what the upstream refused for what it is, until someone decides."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from collector.buffer import Buffer
from collector.chunks import Chunk, is_sound
from collector.corrections import Corrections, load_corrections
from collector.crashpoints import reach
from collector.kinds import Run
from collector.work import Work, in_steps
from tracker.time import format_ms

_RUNS = msgspec.msgpack.Decoder(tuple[Run, ...])
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
PAGE_MAX = 1000


async def page(buffer: Buffer, limit: int = 100, after: int = 0) -> dict[str, Any]:
    """``{"dead_letters": [...], "next": id or None}``, oldest first, those after the id `after`.

    Records are as they were sent: with the times we stamped under a wrong clock put right.
    """
    limit = min(max(limit, 1), PAGE_MAX)

    def read(work: Work) -> tuple[list[tuple[Any, ...]], Corrections]:
        rows = work.conn.execute(
            "SELECT d.id, l.kind, l.identifier, d.reason, d.status, d.answer, d.died_ms, d.superseded, "
            "d.lane, d.accepted_ms, d.crc, d.runs, d.body "
            "FROM dead d JOIN lanes l ON l.id = d.lane WHERE d.id > ? ORDER BY d.id LIMIT ?",
            (after, limit + 1),
        ).fetchall()
        return rows, load_corrections(work.conn)

    rows, corrections = await buffer.run(read)
    lanes = {state.id: state.lane for state in buffer.lanes()}

    def as_sent(letter_id: int, lane_id: int, accepted_ms: int, crc: int, runs: bytes, body: bytes) -> bytes:
        chunk = Chunk.load_aside((letter_id, accepted_ms, crc, runs, body, ""), lanes[lane_id])
        return body if chunk is None else chunk.retimed(corrections).body

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
            "record": _as_json(as_sent(letter_id, *stored)),
        }
        for letter_id, kind, identifier, reason, status, answer, died_ms, superseded, *stored in rows[:limit]
    ]
    return {"dead_letters": letters, "next": rows[limit - 1][0] if len(rows) > limit else None}


async def latest(buffer: Buffer, limit: int = 10) -> list[dict[str, Any]]:
    """The newest dead letters, without the record and what the upstream said of it: both may name a person (G12)."""

    def read(work: Work) -> list[tuple[Any, ...]]:
        return work.conn.execute(
            "SELECT d.id, l.kind, l.identifier, d.status, CASE WHEN d.status IS NULL THEN d.reason END, d.died_ms, "
            "d.superseded FROM dead d JOIN lanes l ON l.id = d.lane ORDER BY d.id DESC LIMIT ?",
            (limit,),
        ).fetchall()

    return [
        {
            "id": letter_id,
            "kind": kind,
            "identifier": identifier,
            "status": status,
            "reason": reason,
            "died_at": format_ms(died_ms),
            "superseded": bool(superseded),
        }
        for letter_id, kind, identifier, status, reason, died_ms, superseded in await buffer.run(read)
    ]


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

    def revive(work: Work, row: tuple[Any, ...]) -> bool:
        letter_id, lane_id, superseded, accepted_ms, crc, runs, body = row
        if (superseded and not force) or not is_sound(crc, runs, b"", body):
            return False
        work.insert_chunk(work.lane_by_id(lane_id).lane, [body], _RUNS.decode(runs), accepted_ms)
        reach("reviving")
        _remove(work, letter_id, superseded, body)
        return True

    return await _each(buffer, ids, revive)


async def discard(buffer: Buffer, ids: Sequence[int] | None) -> int:
    """Give dead letters up for good; how many. The ledger counts them as discarded."""
    return await _each(buffer, ids, _discard)


async def expire(buffer: Buffer, keep_s: float) -> int:
    """Discard dead letters older than `dead.keep`; how many."""

    def old(work: Work) -> list[int]:
        rows = work.conn.execute("SELECT id FROM dead WHERE died_ms < ?", (work.now_ms - int(keep_s * 1000),))
        return [letter_id for (letter_id,) in rows]

    return await _each(buffer, await buffer.run(old), _discard)


def _discard(work: Work, row: tuple[Any, ...]) -> bool:
    letter_id, _, superseded, _, _, _, body = row
    _remove(work, letter_id, superseded, body)
    work.ledger["discarded"] += 1
    return True


async def _each(buffer: Buffer, ids: Sequence[int] | None, act: Callable[[Work, tuple[Any, ...]], bool]) -> int:
    """Do something to the letters chosen, oldest first; to how many it was done.

    As many in one transaction as the write-ahead log has room for. Letters that die meanwhile are left alone.
    """
    chosen = await buffer.run(lambda work: _chosen(work, ids))

    def step(work: Work, some: Sequence[int]) -> int:
        return sum(act(work, row) for letter_id in some for row in _row(work, letter_id))

    count = 0
    for some in in_steps(chosen, buffer.sizes.max_step):
        count += await buffer.run(partial(step, some=some), weight=buffer.sizes.max_body)
    return count


def _chosen(work: Work, ids: Sequence[int] | None) -> dict[int, int]:
    """The ids of letters with the sizes of their records."""
    sizes = "SELECT id, length(body) FROM dead"
    if ids is None:
        return dict(work.conn.execute(f"{sizes} ORDER BY id").fetchall())
    return dict(
        row
        for letter_id in sorted(set(ids))
        for row in work.conn.execute(f"{sizes} WHERE id = ?", (letter_id,)).fetchall()
    )


def _row(work: Work, letter_id: int) -> list[tuple[Any, ...]]:
    return work.conn.execute(
        "SELECT id, lane, superseded, accepted_ms, crc, runs, body FROM dead WHERE id = ?", (letter_id,)
    ).fetchall()


def _remove(work: Work, letter_id: int, superseded: int, body: bytes) -> None:
    work.conn.execute("DELETE FROM dead WHERE id = ?", (letter_id,))
    work.ledger["superseded" if superseded else "dead"] -= 1
    work.dead_bytes -= len(body)
