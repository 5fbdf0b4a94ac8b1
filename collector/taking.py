"""What leaves the buffer next: reads chunks lane by lane, verifies them, asks the batcher."""

import sqlite3
from array import array
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Final

from collector.batcher import Aside, Dead, Gate, Limits, Wait, assemble
from collector.chunks import Batch, Chunk, Span, count_gone
from collector.kinds import KINDS, Lane, Run
from collector.logs import logger
from collector.parked import Parked
from collector.work import SEQ_BITS, Damaged, LaneState, Work, unsoundness

log = logger("buffer")

Row = tuple[Any, ...]
_UNTIMED: Final = (
    "SELECT id, accepted_ms, crc, runs, body, reason FROM aside a INDEXED BY aside_by_due "
    "WHERE lane = ?1 AND due_ms IS NULL AND id > ?2 AND NOT EXISTS "
    "(SELECT 1 FROM aside b WHERE b.lane = ?1 AND b.order_key = a.order_key AND b.id < a.id) ORDER BY id"
)
"""Parked, denied, or behind one that was."""
_TIMED: Final = (
    "SELECT id, accepted_ms, crc, runs, body, reason FROM aside a INDEXED BY aside_by_due "
    "WHERE lane = ?1 AND due_ms <= ?2 AND NOT EXISTS "
    "(SELECT 1 FROM aside b WHERE b.lane = ?1 AND b.order_key = a.order_key AND b.id < a.id) ORDER BY due_ms, id"
)
"""Those whose time has come."""
DAMAGED: Final = Dead("its stored bytes fail their checksum")


def take(
    work: Work,
    lane: Lane,
    limits: Limits,
    gate: Gate,
    parked: Parked,
    boot_ms: int,
    ahead: "Ahead",
    max_aside: int = 1 << 62,
) -> Batch | Wait | None:
    """The next batch of a lane: what waited aside and may leave now, else the head of the lane.

    `parked` says when the parked records may be tried again, by the boot clock `boot_ms`.
    About `max_aside` bytes may be set aside at once; where there is more to do, Wait says to come back now.
    Where there is no room for it at all the lane waits instead. What is in `ahead` is not read again.
    """
    state = work.peek(lane)
    if state is None or not state.pending:
        return None
    wait: int | None = None
    if state.aside:
        batch, wait = _take_aside(work, state, limits, gate, parked, boot_ms)
        if batch is not None:
            return batch

    lane_id = state.id
    due: int | None = None  # of what is set aside here

    def is_busy(key: bytes) -> bool:
        waiting = "SELECT 1 FROM aside WHERE lane = ? AND order_key = ? LIMIT 1"
        return work.conn.execute(waiting, (lane_id, key)).fetchone() is not None

    while True:
        state = work.peek(lane) or state
        damaged: list[Row] = []
        # closed before anything is written: an open cursor would pin the WAL
        with closing(ahead.chunks(work, state, damaged)) as chunks:
            done = assemble(lane, chunks, limits, gate, is_busy if state.aside else None, max_aside)
        if damaged:
            _check_the_rest(work, [row[3:6] for row in damaged])
        for row in damaged:
            _bury_damaged(work, lane, row)
        work.settle(done.fates)
        if done.batch is not None:
            first = done.batch.spans[0].chunk.id
            if work.conn.execute("SELECT 1 FROM chunks WHERE id = ?", (first,)).fetchone() is None:
                raise Damaged("a row cannot be found where it was read")  # nor deleted: it would be sent for ever
            return done.batch
        if not done.fates:
            break
        dues = [fate.due_ms + gate.margin_ms for _, fate in done.fates if isinstance(fate, Aside) and fate.due_ms]
        due = min((ms for ms in (due, *dues) if ms is not None), default=None)
        max_aside -= sum(len(part.body) for part, _ in done.fates)
        if max_aside <= 0:
            return Wait(gate.now_ms)
    if not (work.peek(lane) or state).pending:
        return None
    waits = [ms for ms in (wait, due, done.wait_until_ms) if ms is not None]
    if not waits and not damaged and not (work.peek(lane) or state).aside:
        raise Damaged("a lane counts records that are not in it")
    return Wait(min(waits, default=None))


class Ahead:
    """The head of a lane in memory, so that a take need not read it.

    What comes into an empty lane stays here from its commit on; the rest is read in steps, because others need the
    connection meanwhile: some hundreds of rows of a record or two, as small requests leave them, take milliseconds.
    """

    STEP: Final = 64
    """Rows read at a stretch."""
    RECORDS: Final = 1000
    BYTES: Final = 512 * 1024
    """So much is kept of what comes: about a request's worth."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._valid: tuple[sqlite3.Connection, int] | None = None
        """The connection all this is true for, and the lane's revision then."""
        self._last = 0
        """The row up to which the lane's rows are here, or gone."""
        self._chunks: list[Chunk] = []
        self._records = self._bytes = 0

    @property
    def head(self) -> int | None:
        """The lane's first row, where it is here."""
        return self._chunks[0].id if self._chunks else None

    def follow(self, work: Work, before: LaneState) -> None:
        """A transaction was committed, and the lane was like this before it."""
        after, conn = work.lanes[self._lane], work.conn
        if before.pending == before.aside:
            self._begin((conn, before.revision), before.id << SEQ_BITS | before.last_seq)
        passed = work.passed.get(self._lane)
        if self._valid != (conn, before.revision) or after.revision != before.revision + (passed is not None):
            self._begin(None, 0)
            return
        self._valid = conn, after.revision
        if passed is not None and self._chunks and self._chunks[0].id <= passed:
            # hundreds may go at once: what stays is counted, which is little
            self._keep([chunk for chunk in self._chunks if chunk.id > passed])
        for chunk in work.added.get(self._lane, ()):
            if chunk.id == self._last + 1 and not self._holds(self.RECORDS, self.BYTES):
                self._add(chunk)

    def step(self, work: Work, limits: Limits) -> bool:
        """Read some more rows. True: a batch needs more than these yet; False: it may be taken."""
        state = work.peek(self._lane)
        if state is None or state.aside or not state.pending:
            return False
        damaged: list[Row] = []
        with closing(self._rest(work, state, damaged)) as rest:
            rows = 0
            while not (enough := self._holds(limits.max_records, limits.max_bytes)) and rows < self.STEP:
                if (chunk := next(rest, None)) is None:
                    break
                self._add(chunk)
                rows += 1
        if damaged:  # the take buries it
            self._begin(None, 0)
        return rows == self.STEP and not enough and not damaged

    def chunks(self, work: Work, state: LaneState, damaged: list[Row]) -> Generator[Chunk, None, None]:
        """The lane's chunks in order; those that fail their checksum go to `damaged` instead."""
        rest = self._rest(work, state, damaged)
        yield from self._chunks
        yield from rest

    def _rest(self, work: Work, state: LaneState, damaged: list[Row]) -> Generator[Chunk, None, None]:
        """What is not here; all of it, where what is here is no longer what is there."""
        valid = work.conn, state.revision
        if valid != self._valid:
            self._begin(valid, (state.id << SEQ_BITS) - 1)
        return _read(work, state, damaged, self._last, self._records)

    def _begin(self, valid: tuple[sqlite3.Connection, int] | None, last: int) -> None:
        self._valid, self._last = valid, last
        self._keep([])

    def _keep(self, chunks: list[Chunk]) -> None:
        self._chunks = chunks
        self._records = sum([chunk.left for chunk in chunks])
        self._bytes = sum([len(chunk.body) for chunk in chunks])

    def _holds(self, records: int, size: int) -> bool:
        return self._records >= records or self._bytes >= size

    def _add(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        self._last = chunk.id
        self._records += chunk.left
        self._bytes += len(chunk.body)


def _read(work: Work, state: LaneState, damaged: list[Row], last: int, seen: int) -> Generator[Chunk, None, None]:
    """The lane's chunks after the one that is `last`, in order; `seen` records are in those up to it."""
    rows = work.conn.execute(
        "SELECT c.id, c.accepted_ms, c.crc, c.runs, c.ends, c.body, g.bits, c.n FROM chunks c "
        "LEFT JOIN gone g ON g.chunk = c.id WHERE c.id > ? AND c.id < ? ORDER BY c.id",
        (last, end := (state.id + 1) << SEQ_BITS),
    )
    with closing(rows):
        for row in rows:
            chunk_id, *_, bits, n = row
            if not last < chunk_id < end:  # SQLite trusts the order of its pages: another lane's would come along
                raise Damaged("its rows are out of order")
            if not (isinstance(n, int) and isinstance(bits or b"", bytes)):
                raise Damaged("a row holds what it never held")
            last = chunk_id
            seen += n - count_gone(bits) if bits else n
            chunk = Chunk.load(row[:-1], state.lane)
            if chunk is None:
                damaged.append(row[:-1])
            elif len(chunk) != n:
                raise Damaged("a chunk holds another number of records than it says")
            else:
                yield chunk
        if seen != state.pending - state.aside:
            raise Damaged("a lane counts records that are not in it")


def _bury_damaged(work: Work, lane: Lane, row: Row) -> None:
    """Stored bytes that fail their checksum are never sent; each record becomes a dead letter (G5)."""
    chunk_id, accepted_ms, _, _, ends, body, bits = row
    n = work.conn.execute("SELECT n FROM chunks WHERE id = ?", (chunk_id,)).fetchone()[0]
    cuts = array("I", ends) if len(ends) == 4 * n else array("I", [len(body)] * n)
    if list(cuts) != sorted(cuts) or (n and cuts[-1] != len(body)):
        cuts = array("I", [len(body)] * n)
    chunk = Chunk(chunk_id, lane, body, cuts, (Run(n, 0, None, 0),), accepted_ms, bits or b"")
    buried = 0
    for _, left in work.remove(Batch.of(lane, chunk.spans())):
        for i in left:
            work.bury(lane, chunk, i, DAMAGED, damaged=True)
        buried += len(left)
    log.error("buffer_damaged", lane=str(lane), records=buried)


def _check_the_rest(work: Work, damaged: Sequence[Row]) -> None:
    """Where bytes of a record are damaged others may be: SQLite would write into pages that hold something else.

    Raises Damaged. Reads the whole file, which only a damaged one costs.
    """
    if not all(isinstance(value, bytes) for row in damaged for value in row):
        raise Damaged("a row holds what it never held")
    if (wrong := unsoundness(work.conn)) is not None:
        raise Damaged(wrong)


def _take_aside(
    work: Work, state: LaneState, limits: Limits, gate: Gate, parked: Parked, boot_ms: int
) -> tuple[Batch | None, int | None]:
    """Records whose wait is over; else when the next one's is, in ms of the upstream's clock."""
    horizon = gate.horizon_ms
    (next_due,) = work.conn.execute(
        "SELECT min(due_ms) FROM aside WHERE lane = ? AND due_ms > ?", (state.id, horizon)
    ).fetchone()
    waits = [] if next_due is None else [next_due + gate.margin_ms]
    spans: list[Span] = []
    size = 2
    damaged: list[Row] = []
    with closing(_aside(work, state, horizon, parked, boot_ms)) as rows:
        for row in rows:
            if isinstance(row, int):
                waits.append(gate.now_ms + row - boot_ms)
                continue
            reason = row[5]
            chunk = Chunk.load_aside(row, state.lane)
            if chunk is None:
                damaged.append(row)
                continue
            chunk = chunk.retimed(gate.corrections)
            if (due := KINDS[state.lane.kind].time_ms(chunk.body)) > horizon:  # it waited for another reason so far
                waits.append(due + gate.margin_ms)
                continue
            span = Span(chunk, 0, 1)
            # a parked record goes alone: it is suspected of spoiling its batch; denied ones go with their like
            alone = reason == "parked" or (bool(spans) and (reason == "denied") != (spans[0].chunk.reason == "denied"))
            if spans and (size + 1 + span.size > limits.max_bytes or alone):
                break
            spans.append(span)
            size += span.size + 1
            if len(spans) >= limits.max_records or alone:
                break
    if damaged:
        _check_the_rest(work, [row[3:5] for row in damaged])
    for row in damaged:
        _bury_damaged_aside(work, state.lane, row)
    return (Batch.of(state.lane, spans) if spans else None), min(waits, default=None)


def _aside(
    work: Work, state: LaneState, horizon: int, parked: Parked, boot_ms: int
) -> Generator[Row | int, None, None]:
    """Records whose wait may be over, none behind another of its order key; for a run that waits, until when.

    Each query follows an index and is read only as far as needed: a million may stand aside.
    """
    after, previous, jumped = 0, None, True
    while jumped:
        jumped = False
        with closing(work.conn.execute(_UNTIMED, (state.id, after))) as rows:
            for row in rows:
                run = parked.run_at(state.id, row[0], boot_ms) if row[5] in ("parked", "denied") else None
                if run is None:
                    previous = None
                    yield row
                    continue
                yield run.due_ms
                previous = run if previous is None else parked.join(state.id, previous, run, boot_ms)
                after, jumped = run.last, True
                break
    with closing(work.conn.execute(_TIMED, (state.id, horizon))) as rows:
        yield from rows


def _bury_damaged_aside(work: Work, lane: Lane, row: Row) -> None:
    row_id, accepted_ms, _, _, body, _ = row
    chunk = Chunk(row_id, lane, body, array("I", [len(body)]), (Run(1, 0, None, 0),), accepted_ms, b"", True)
    if work.remove(Batch.of(lane, chunk.spans()))[0][1]:
        work.bury(lane, chunk, 0, DAMAGED, damaged=True)
    log.error("buffer_damaged", lane=str(lane), records=1)
