"""Is receipt 000123 still waiting? And erasure: forgetting a person."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from collector.batcher import Batch
from collector.buffer import Buffer
from collector.chunks import Chunk, Span, crc_of, encode_runs, ends_of
from collector.kinds import KINDS, Identity
from collector.work import SEQ_BITS, LaneState, Work, in_steps
from tracker.time import format_ms

CHUNKS_PER_STEP = 200
"""How many chunks one step reads: commits of others go in between."""


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to look for: exactly one of an order id, a salt, or one key of a client."""

    order_id: str | None = None
    salt: str | None = None
    client: dict[str, str | int] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("order_id", "salt", "client") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError('give exactly one of "order_id", "salt" and "client"')
        if self.client is not None and (
            len(self.client) != 1 or not set(self.client) <= {"id", "uuid", "customId", "email"}
        ):
            raise ValueError('"client" takes one of id, uuid, customId and email with its value')

    def matches(self, identity: Identity) -> bool:
        if self.order_id is not None:
            return identity.order_id == self.order_id
        if self.salt is not None:
            return identity.salt == self.salt
        return all(str(identity.client.get(key)) == str(value) for key, value in (self.client or {}).items())

    def lanes(self, states: list[LaneState]) -> list[LaneState]:
        """The lanes that can hold it at all."""
        if self.order_id is not None:
            return [state for state in states if state.lane.kind == "transactions"]
        if self.client is not None:
            return [state for state in states if set(self.client) <= set(state.lane.identifier.split("+"))]
        return states

    def token(self) -> bytes:
        """What the bytes of a match must contain, as long as nothing in them is escaped."""
        wanted = self.order_id or self.salt or str(next(iter((self.client or {"": ""}).values())))
        return msgspec.json.encode(wanted)[1:-1]


async def find(buffer: Buffer, query: Query) -> list[dict[str, Any]]:
    """Every record here that matches, with its state: pending, aside, dead or superseded."""
    found: list[dict[str, Any]] = []

    def seen(chunk: Chunk) -> None:
        identity = KINDS[chunk.lane.kind].identity
        where = "aside" if chunk.from_aside else "pending"
        for span in chunk.spans():
            for i in range(span.start, span.stop):
                if query.matches(known := identity(chunk.record(i))):
                    found.append(_entry(chunk, known, where))

    for state in query.lanes(buffer.lanes()):
        await _each_chunk(buffer, state, query, seen)
        for chunk in await buffer.run(partial(_aside, state=state, query=query)):
            seen(chunk)
    return found + await buffer.run(lambda work: _dead(work, query))


def _entry(chunk: Chunk, identity: Identity, where: str) -> dict[str, Any]:
    return {
        "state": where,
        "kind": chunk.lane.kind,
        "identifier": chunk.lane.identifier,
        "priority": chunk.lane.priority,
        "order_id": identity.order_id,
        "salt": identity.salt,
        "accepted_at": format_ms(chunk.accepted_ms),
    }


async def _each_chunk(buffer: Buffer, state: LaneState, query: Query, visit: Callable[[Chunk], None]) -> None:
    """Call `visit` with every chunk of a lane that may hold matches, gone ones included."""
    after = (state.id << SEQ_BITS) - 1
    token = query.token()

    def step(work: Work) -> int | None:
        last = None
        for row in work.conn.execute(
            "SELECT c.id, c.accepted_ms, c.crc, c.runs, c.ends, c.body, g.bits FROM chunks c "
            "LEFT JOIN gone g ON g.chunk = c.id WHERE c.id > ? AND c.id < ? ORDER BY c.id LIMIT ?",
            (after, (state.id + 1) << SEQ_BITS, CHUNKS_PER_STEP),
        ):
            last = int(row[0])
            chunk = Chunk.load(row, state.lane)
            if chunk is not None and (token in chunk.body or b"\\" in chunk.body):
                visit(chunk)
        return last

    while True:
        last = await buffer.run(step)
        if last is None:
            return
        after = last


def _aside(work: Work, state: LaneState, query: Query) -> list[Chunk]:
    matching = []
    for row in work.conn.execute(
        "SELECT id, accepted_ms, crc, runs, body, reason FROM aside WHERE lane = ? ORDER BY id", (state.id,)
    ):
        chunk = Chunk.load_aside(row, state.lane)
        if chunk is not None and query.matches(KINDS[state.lane.kind].identity(chunk.record(0))):
            matching.append(chunk)
    return matching


def _dead(work: Work, query: Query) -> list[dict[str, Any]]:
    found = []
    for letter_id, _, superseded, reason, chunk in _dead_matches(work, query):
        entry = _entry(chunk, KINDS[chunk.lane.kind].identity(chunk.record(0)), "superseded" if superseded else "dead")
        found.append(entry | {"id": letter_id, "reason": reason})
    return found


def _dead_matches(work: Work, query: Query) -> list[tuple[int, int, int, str, Chunk]]:
    matching = []
    for letter_id, lane_id, superseded, reason, *row in work.conn.execute(
        "SELECT id, lane, superseded, reason, accepted_ms, crc, runs, body FROM dead ORDER BY id"
    ):
        lane = work.lane_by_id(lane_id).lane
        accepted_ms, crc, runs, body = row
        chunk = Chunk.load_aside((letter_id, accepted_ms, crc, runs, body, ""), lane)
        if chunk is not None and query.matches(KINDS[lane.kind].identity(chunk.record(0))):
            matching.append((letter_id, lane_id, superseded, reason, chunk))
    return matching


async def forget(buffer: Buffer, query: Query) -> Mapping[str, int]:
    """Erase a person's pending and dead records: ``{"count": n}``, counted as discarded.

    What is touched is rewritten with ``secure_delete=ON`` and the write-ahead log is
    overwritten, so that the bytes are not on the disk any more. One transaction for
    everything would need a log without bounds: what comes in meanwhile stays.
    """
    count, most = 0, buffer.sizes.max_step
    # in the order in which a record may move on meanwhile
    for state in query.lanes(buffer.lanes()):
        sizes: dict[int, int] = {}
        await _each_chunk(buffer, state, query, partial(_note_size, sizes))
        for ids in in_steps(sizes, most):
            count += await buffer.erase(partial(_forget_in_chunks, state=state, query=query, ids=ids))
        chunks = await buffer.run(partial(_aside, state=state, query=query))
        for ids in in_steps({chunk.id: len(chunk.body) for chunk in chunks}, most):
            some = [chunk for chunk in chunks if chunk.id in ids]
            count += await buffer.erase(partial(_forget_aside, state=state, chunks=some))
    letters = await buffer.run(lambda work: _dead_matches(work, query))
    for ids in in_steps({letter[0]: len(letter[-1].body) for letter in letters}, most):
        count += await buffer.erase(partial(_forget_dead, ids=ids))
    await buffer.scrub()
    return {"count": count}


def _note_size(sizes: dict[int, int], chunk: Chunk) -> None:
    sizes[chunk.id] = len(chunk.body)


def _forget_in_chunks(work: Work, state: LaneState, query: Query, ids: list[int]) -> int:
    identity = KINDS[state.lane.kind].identity
    count = 0
    for chunk_id in ids:
        row = work.conn.execute(
            "SELECT c.id, c.accepted_ms, c.crc, c.runs, c.ends, c.body, g.bits FROM chunks c "
            "LEFT JOIN gone g ON g.chunk = c.id WHERE c.id = ?",
            (chunk_id,),
        ).fetchone()
        chunk = None if row is None else Chunk.load(row, state.lane)
        if chunk is None:
            continue
        every = [i for i in range(len(chunk)) if chunk.record(i) and query.matches(identity(chunk.record(i)))]
        pieces = [Span(chunk, i, i + 1) for i in every if not chunk.is_gone(i)]
        count += sum(len(left) for _, left in work.remove(Batch.of(state.lane, pieces)))
        _blank(work, chunk, set(every))
    work.ledger["discarded"] += count
    return count


def _forget_aside(work: Work, state: LaneState, chunks: list[Chunk]) -> int:
    count = sum(len(left) for chunk in chunks for _, left in work.remove(Batch.of(state.lane, chunk.spans())))
    work.ledger["discarded"] += count
    return count


def _blank(work: Work, chunk: Chunk, indices: set[int]) -> None:
    """Rewrite a chunk, if it is still there, without the bytes of some of its gone records.

    The records keep their positions, so a batch in hand still means what it meant.
    """
    records = [b"" if i in indices else chunk.record(i) for i in range(len(chunk))]
    runs, body = encode_runs(chunk.runs), b",".join(records)
    ends = ends_of(records).tobytes()
    found = work.conn.execute("DELETE FROM chunks WHERE id = ? RETURNING n, accepted_ms", (chunk.id,)).fetchone()
    if found is not None:
        work.conn.execute(
            "INSERT INTO chunks (id, n, accepted_ms, crc, runs, ends, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (chunk.id, *found, crc_of(runs, ends, body), runs, ends, body),
        )


def _forget_dead(work: Work, ids: list[int]) -> int:
    count = 0
    for letter_id in ids:
        gone = work.conn.execute("DELETE FROM dead WHERE id = ? RETURNING superseded, body", (letter_id,)).fetchone()
        if gone is not None:
            work.ledger["superseded" if gone[0] else "dead"] -= 1
            work.dead_bytes -= len(gone[1])
            count += 1
    work.ledger["discarded"] += count
    return count
