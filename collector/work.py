"""One transaction of the buffer: rows, and what they change in the lanes and the ledger.

Everything that moves a record from one table to another is here, so that the ledger's sum
is changed in the same place as the rows it counts.
"""

import sqlite3
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from collector.batcher import Aside, Dead, Delivered, Fate
from collector.chunks import Batch, Chunk, crc_of, encode_runs, ends_of, salts_in
from collector.crashpoints import reach
from collector.kinds import KINDS, Lane, Run

PAGE: Final = 4096
LANE_BITS: Final = 22
SEQ_BITS: Final = 40
"""A chunk's id is its lane's id and its number within the lane: ``lane << 40 | seq``."""


class Damaged(sqlite3.DatabaseError):
    """What the file holds contradicts itself, though SQLite found nothing wrong; the text says how."""


def unsoundness(conn: sqlite3.Connection) -> str | None:
    """What SQLite's own check finds wrong; None where nothing is. Reads the whole file."""
    (sound,) = conn.execute("PRAGMA quick_check(1)").fetchone()
    return None if sound == "ok" else f"it is not sound ({sound.splitlines()[-1]})"


def pages_of(conn: sqlite3.Connection) -> tuple[int, int]:
    """How many pages the file has, and how many of them are free."""
    (pages,) = conn.execute("PRAGMA page_count").fetchone()
    (free,) = conn.execute("PRAGMA freelist_count").fetchone()
    return pages, free


class DeadLettersFull(Exception):
    """`dead.max_size` is reached: nothing was buried."""


class LaneState(msgspec.Struct):
    """One lane's numbers as last committed."""

    lane: Lane
    id: int
    last_seq: int = 0
    pending: int = 0
    """Records, those aside and in flight included."""
    aside: int = 0
    bytes: int = 0
    revision: int = 0
    """Rises with every change of its chunks but records at its end; counted anew whenever the file is opened."""

    @property
    def body_size(self) -> int:
        """Bytes of a body that holds all of its records: between brackets, with commas."""
        return self.bytes + self.pending + 1


def in_steps(sizes: Mapping[int, int], max_bytes: int) -> Iterator[list[int]]:
    """The ids of rows, given with their sizes in bytes, in parts that one commit can rewrite.

    However small, each may lie in a page of its own.
    """
    ids: list[int] = []
    total = 0
    for row_id, size in sizes.items():
        if ids and total + size + PAGE > max_bytes:
            yield ids
            ids, total = [], 0
        ids.append(row_id)
        total += size + PAGE
    if ids:
        yield ids


class Work:
    """One transaction: the connection, and what it will change in the ledger and the lanes."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        lanes: dict[Lane, LaneState],
        now_ms: int,
        dead_bytes: int = 0,
        dead_max: int = 1 << 62,
    ) -> None:
        self.conn = conn
        self.now_ms = now_ms
        """Wall clock, milliseconds since 1970: for what is shown, never for what is decided."""
        self.ledger: Counter[str] = Counter()
        """What changes in the ledger."""
        self.dead_bytes = self._dead_bytes_before = dead_bytes
        self.dead_max = dead_max
        self.new_dead_salts: set[int] = set()
        self.parked: list[tuple[int, int, int]] = []
        """Records newly parked: lane, row of `aside`, when they may be tried again, time since boot in ms."""
        self.only_adds = False
        """Whether this transaction does nothing but put records at the end of lanes."""
        self.added: dict[Lane, list[Chunk]] = {}
        """Chunks put at the end of each lane, in order."""
        self.passed: dict[Lane, int] = {}
        """The last of the rows that were removed from the head of a lane, all of them and whole."""
        self._committed = lanes
        self.lanes: dict[Lane, LaneState] = {}
        """The lanes this transaction touched, as they will be."""

    def undoable(self) -> Callable[[], None]:
        """A function that puts the counts back as they are now; the rows are the savepoint's business."""
        ledger, lanes = Counter(self.ledger), {lane: msgspec.structs.replace(s) for lane, s in self.lanes.items()}
        dead_bytes, salts, parked = self.dead_bytes, set(self.new_dead_salts), list(self.parked)
        added, passed = {lane: list(chunks) for lane, chunks in self.added.items()}, dict(self.passed)

        def undo() -> None:
            self.ledger, self.lanes, self.added, self.passed = ledger, lanes, added, passed
            self.dead_bytes, self.new_dead_salts, self.parked = dead_bytes, salts, parked

        return undo

    def lane(self, lane: Lane) -> LaneState:
        """The lane's numbers, to be changed in place; a new lane gets its row."""
        state = self.lanes.get(lane)
        if state is None:
            known = self._committed.get(lane)
            if known is None:
                row = self.conn.execute(
                    "INSERT INTO lanes (kind, identifier, priority) VALUES (?, ?, ?) RETURNING id",
                    (lane.kind, lane.identifier, lane.priority),
                ).fetchone()
                known = LaneState(lane, row[0])
            state = self.lanes[lane] = msgspec.structs.replace(known)
        return state

    def lane_by_id(self, lane_id: int) -> LaneState:
        for state in (*self.lanes.values(), *self._committed.values()):
            if state.id == lane_id:
                return self.lane(state.lane)
        raise KeyError(lane_id)

    def all_lanes(self) -> list[LaneState]:
        return [self.lanes.get(lane, state) for lane, state in self._committed.items()] + [
            state for lane, state in self.lanes.items() if lane not in self._committed
        ]

    def used_bytes(self) -> int:
        """Bytes of pages in use, as `buffer.bytes` counts them."""
        pages, free = pages_of(self.conn)
        return (pages - free) * PAGE

    def insert_chunk(
        self,
        lane: Lane,
        records: Sequence[bytes],
        runs: Sequence[Run],
        accepted_ms: int,
        ends: "array[int] | None" = None,
    ) -> None:
        """Put records at the end of a lane; they count as pending. `ends` where it is known what `ends_of` gives."""
        state = self.lane(lane)
        state.last_seq += 1
        ends = ends or ends_of(records)
        chunk = Chunk(state.id << SEQ_BITS | state.last_seq, lane, b",".join(records), ends, tuple(runs), accepted_ms)
        packed, cuts = encode_runs(runs), ends.tobytes()
        self.conn.execute(
            "INSERT INTO chunks (id, n, accepted_ms, crc, runs, ends, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (chunk.id, len(records), accepted_ms, crc_of(packed, cuts, chunk.body), packed, cuts, chunk.body),
        )
        self.added.setdefault(lane, []).append(chunk)
        state.pending += len(records)
        state.bytes += len(chunk.body) + 1 - len(records)
        self.ledger["pending"] += len(records)

    def peek(self, lane: Lane) -> LaneState | None:
        """The lane's numbers, not to be changed; None for a lane never used."""
        return self.lanes.get(lane) or self._committed.get(lane)

    def _remove_whole(self, part: Batch) -> int:
        """`remove` for what is delivered nearly always: every record of the lane's first rows. 0: it is something else.

        Some hundreds of rows that hold a record or two are counted and deleted by SQLite at once.
        """
        if part.from_aside:
            return 0
        lane, last = part.spans[0].chunk.id >> SEQ_BITS, part.spans[-1].chunk.id
        begin, end = lane << SEQ_BITS, (lane + 1) << SEQ_BITS
        # whatever leaves a lane elsewhere than at its head is noted in `gone` until the head has passed it; so as many
        # rows, with as many records, are these very rows
        found = self.conn.execute(
            "SELECT count(*), total(n), EXISTS (SELECT 1 FROM gone WHERE chunk >= ?1 AND chunk < ?2) "
            "FROM chunks WHERE id BETWEEN ?1 AND ?3",
            (begin, end, last),
        ).fetchone()
        if found != (len(part.spans), part.count, 0):
            return 0
        self.only_adds = False
        self.conn.execute("DELETE FROM chunks WHERE id BETWEEN ? AND ?", (begin, last))
        self.passed[part.lane] = last
        state = self.lane(part.lane)
        state.revision += 1
        state.pending -= part.count
        state.bytes -= sum([len(span.chunk.as_stored.body) + 1 for span in part.spans]) - part.count
        self.ledger["pending"] -= part.count
        reach("removing")
        return part.count

    def remove(self, part: Batch) -> list[tuple[Chunk, Sequence[int]]]:
        """Take records out of their chunks: those that were still there, which is what the ledger may count."""
        self.only_adds = False
        chunk_ids = [span.chunk.id for span in part.spans if not span.chunk.from_aside]
        rows: dict[int, tuple[int, bytes | None]] = {}
        if chunk_ids:
            found = self.conn.execute(
                "SELECT c.id, c.n, g.bits FROM chunks c LEFT JOIN gone g ON g.chunk = c.id WHERE c.id BETWEEN ? AND ?",
                (min(chunk_ids), max(chunk_ids)),
            )
            rows = {chunk_id: (n, bits) for chunk_id, n, bits in found}
        gone: dict[int, int] = {}
        removed: list[tuple[Chunk, Sequence[int]]] = []
        state = self.lane(part.lane)
        state.revision += 1
        for span in part.spans:
            chunk = span.chunk
            left: Sequence[int] = ()
            if chunk.from_aside:
                if self.conn.execute("DELETE FROM aside WHERE id = ?", (chunk.id,)).rowcount:
                    state.aside -= 1
                    left = (0,)
            elif chunk.id in rows:
                already = gone.get(chunk.id)
                if already is None:
                    already = int.from_bytes(rows[chunk.id][1] or b"", "little")
                left = (
                    [i for i in range(span.start, span.stop) if not already >> i & 1]
                    if already
                    else range(span.start, span.stop)
                )
                gone[chunk.id] = already | ((1 << len(span)) - 1) << span.start
            removed.append((chunk, left))
            stored = chunk.as_stored
            state.pending -= len(left)
            state.bytes -= (
                stored.ends[left[-1]] - stored.start(left[0]) - len(left) + 1
                if left and left[-1] - left[0] + 1 == len(left)
                else sum(stored.ends[i] - stored.start(i) for i in left)
            )
            self.ledger["pending"] -= len(left)
        self._note_gone(rows, gone)
        reach("removing")
        return removed

    def _note_gone(self, rows: dict[int, tuple[int, bytes | None]], gone: dict[int, int]) -> None:
        empty = [chunk_id for chunk_id, bits in gone.items() if bits.bit_count() == rows[chunk_id][0]]
        if len(empty) == len(rows):
            # the usual case, everything in the range is done: one statement instead of one each
            self.conn.execute(
                "DELETE FROM chunks WHERE id BETWEEN ? AND ?", (min(empty), max(empty))
            ) if empty else None
        else:
            self.conn.executemany("DELETE FROM chunks WHERE id = ?", [(chunk_id,) for chunk_id in empty])
        left = {chunk_id: bits for chunk_id, bits in gone.items() if bits.bit_count() < rows[chunk_id][0]}
        if empty:
            lane = empty[0] >> SEQ_BITS << SEQ_BITS
            end = lane + (1 << SEQ_BITS)
            head = self.conn.execute("SELECT min(id) FROM chunks WHERE id >= ? AND id < ?", (lane, end)).fetchone()[0]
            head = end if head is None else head
            self.conn.execute("DELETE FROM gone WHERE chunk >= ? AND chunk < ?", (lane, head))
            # noted until the head has passed it: a damaged file may show it as it was before
            left |= {chunk_id: gone[chunk_id] for chunk_id in empty if chunk_id > head}
        self.conn.executemany(
            "INSERT OR REPLACE INTO gone (chunk, bits) VALUES (?, ?)",
            [(chunk_id, bits.to_bytes((rows[chunk_id][0] + 7) // 8, "little")) for chunk_id, bits in left.items()],
        )

    def bury(self, lane: Lane, chunk: Chunk, i: int, fate: Dead, *, damaged: bool = False) -> None:
        """Keep a record, already taken out of its chunk, as a dead letter."""
        stored = chunk.as_stored
        record, runs = stored.record(i), encode_runs((stored.run(i),))
        crc = crc_of(runs, b"", record)
        if damaged:
            crc ^= 0xFFFFFFFF  # stays recognisable as damaged: a retry must not send it
        self.conn.execute(
            "INSERT INTO dead (lane, order_key, reason, status, answer, died_ms, accepted_ms, crc, runs, body) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self.lane(lane).id, b"" if damaged else KINDS[lane.kind].order_key(record), fate.reason, fate.status,
             fate.answer, self.now_ms, chunk.accepted_ms, crc, runs, record),
        )  # fmt: skip
        reach("burying")
        self.ledger["dead"] += 1
        self.dead_bytes += len(record)
        self.new_dead_salts.update(map(hash, salts_in(record)))

    def settle(self, fates: Sequence[tuple[Batch, Fate]]) -> None:
        """Give records their fate. Raises DeadLettersFull before anything is buried."""
        for part, fate in fates:
            match fate:
                case Delivered():
                    self.ledger["delivered"] += self._remove_whole(part) or sum(
                        len(left) for _, left in self.remove(part)
                    )
                case Dead():
                    if self.dead_bytes + len(part.body) > self.dead_max:
                        raise DeadLettersFull(f"dead letters fill dead.max_size ({self.dead_max} bytes)")
                    for chunk, left in self.remove(part):
                        for i in left:
                            self.bury(part.lane, chunk, i, fate)
                case Aside():
                    self._set_aside(part, fate)

    def _set_aside(self, part: Batch, fate: Aside) -> None:
        due_ms = fate.due_ms if fate.reason == "ahead" else None
        state = self.lane(part.lane)
        for span in part.spans:
            if span.chunk.from_aside:
                if fate.reason != span.chunk.reason or due_ms is not None:
                    self.conn.execute(
                        "UPDATE aside SET reason = ?, due_ms = ? WHERE id = ?", (fate.reason, due_ms, span.chunk.id)
                    )
                self._park(state, span.chunk.id, fate)
        order_key = KINDS[part.lane.kind].order_key
        for chunk, left in self.remove(Batch.of(part.lane, (s for s in part.spans if not s.chunk.from_aside))):
            stored = chunk.as_stored
            for i in left:
                record, runs = stored.record(i), encode_runs((stored.run(i),))
                row_id = self.conn.execute(
                    "INSERT INTO aside (lane, order_key, reason, due_ms, accepted_ms, crc, runs, body) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
                    (state.id, order_key(record), fate.reason, due_ms, chunk.accepted_ms, crc_of(runs, b"", record),
                     runs, record),
                ).fetchone()[0]  # fmt: skip
                reach("setting-aside")
                self._park(state, row_id, fate)
                state.pending += 1
                state.aside += 1
                state.bytes += len(record)
                self.ledger["pending"] += 1

    def _park(self, state: LaneState, row_id: int, fate: Aside) -> None:
        if fate.reason in ("parked", "denied") and fate.due_ms is not None:
            self.parked.append((state.id, row_id, fate.due_ms))

    def finish(self) -> None:
        """Write what changed in the lanes and the ledger. Raises Damaged where the counts cannot be."""
        for state in self.lanes.values():
            if not 0 <= state.aside <= state.pending:
                raise Damaged("a lane holds more records than it counts")
            self.conn.execute(
                "UPDATE lanes SET last_seq = ?, pending = ?, aside = ?, bytes = ? WHERE id = ?",
                (state.last_seq, state.pending, state.aside, state.bytes, state.id),
            )
        for name, change in self.ledger.items():
            if change:
                self.conn.execute("UPDATE ledger SET n = n + ? WHERE name = ?", (change, name))
        self.conn.execute("UPDATE meta SET value = value + 1 WHERE name = 'serial'")
        if self.dead_bytes != self._dead_bytes_before:
            self.conn.execute(
                "INSERT INTO meta (name, value) VALUES ('dead_bytes', ?) "
                "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (self.dead_bytes,),
            )
