"""The buffer: the SQLite file that holds every accepted record that is not yet settled.

Four verbs in the order a record lives: `append`, `take`, `settle`, and `run` for any other
work. Invariants, each with a test that goes red without it:

- One connection, one owner. SQLite before 3.51.3 can lose commits when two connections
  write and checkpoint; most tills ship older ones. ``locking_mode=EXCLUSIVE`` also keeps
  shells and backup tools out, and makes a ``-shm`` file unnecessary.
- Only the writer task touches the connection, and it is never cancelled: a cancelled await
  would leave a transaction open. Callers wait on futures of their own.
- Group commit: what arrived while the last fsync ran goes into one transaction, inserts,
  settles and ledger together. ``synchronous=FULL``: a future resolves after the fsync.
- Chunks are never updated. What leaves a chunk piecemeal is noted in ``gone``.
- accepted = delivered + pending + dead + discarded + superseded + lost, changed in the
  same transactions as the records.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import aiosqlite

from collector.admission import EVERYTHING, Admission, Full, Policy, Sizes
from collector.batcher import Aside, Fate, Gate, Limits, Wait
from collector.chunks import Batch, salts_in
from collector.database import Synchronous, connect, hop, prepare
from collector.files import BufferInUse, BufferUnusable, FileLock, create_private
from collector.kinds import Lane, Parcel
from collector.logs import logger
from collector.reserve import Reserve
from collector.taking import take
from collector.work import DeadLettersFull, LaneState, Work
from tracker.time import Clock, SystemClock

__all__ = ["Buffer", "BufferInUse", "BufferUnusable", "DeadLettersFull", "Full", "LaneState", "Unknown"]

log = logger("buffer")
T = TypeVar("T")

FAILURES_MAX: Final = 3
FAILURE_WINDOW_MS: Final = 60_000


class Unknown(Exception):
    """The commit failed: what it held may or may not be on disk. Send it again; the salt makes that safe."""


@dataclass
class _Op:
    """Somebody waiting for the next commit."""

    future: "asyncio.Future[Any]"
    result: Any = None
    error: BaseException | None = None

    def resolve(self) -> None:
        if self.error is not None:
            self.fail(self.error)
        elif not self.future.done():
            self.future.set_result(self.result)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass
class _Unit(_Op):
    """A function of the transaction; its caller gets what it returned."""

    body: Callable[[Work], Any] = lambda _: None
    erase: bool = False


@dataclass
class _Append(_Op):
    """Parcels of one request."""

    parcels: Sequence[Parcel] = ()
    bytes: int = 0


@dataclass
class Buffer:
    """See the module. Made by `Buffer.open`; every method belongs to the loop that opened it."""

    path: Path
    sizes: Sizes
    dead_max: int
    clock: Clock
    _door: Admission
    _reserve: Reserve
    _synchronous: Synchronous
    _db: aiosqlite.Connection
    _lock: FileLock
    _lanes: dict[Lane, LaneState] = field(default_factory=dict)
    _ledger: dict[str, int] = field(default_factory=dict)
    _queue: deque[_Unit | _Append] = field(default_factory=deque)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _closing: bool = False
    _in_hand: dict[Lane, Batch] = field(default_factory=dict)
    _parked: dict[int, int] = field(default_factory=dict)
    _dead_salts: set[int] = field(default_factory=set)
    _dead_bytes: int = 0
    _used: int = 0
    _listeners: list[Callable[[Lane], None]] = field(default_factory=list)
    _failures: list[int] = field(default_factory=list)
    _tight: bool = False
    """The disk is full: only settling goes on, out of the reserve."""
    _looked_ms: int = 0
    _writer: "asyncio.Task[None] | None" = None
    _hops: int = 0
    _hopping: bool = False
    erasures: int = 0
    """Rises with every `erase`: a batch in hand from before may hold what was erased and must be taken again."""
    failed: str | None = None
    """Why the buffer takes nothing more; None while it works."""

    # -- opening and closing ------------------------------------------------------------------

    @classmethod
    async def open(
        cls,
        path: str | Path,
        *,
        max_size: int = 512 * 1024 * 1024,
        when_full: Policy = "refuse",
        dead_max: int = 64 * 1024 * 1024,
        clock: Clock | None = None,
        synchronous: Synchronous = "FULL",
    ) -> "Buffer":
        """Open or create the file, alone.

        Raises BufferInUse when another process holds it, BufferUnusable when it cannot be
        read or is not ours. `synchronous` is for the controls of tests and benchmarks.
        """
        path = Path(path).absolute()  # noqa: ASYNC240 - touches no disk beyond the working folder's name
        sizes = Sizes(max_size)
        reserve = Reserve(path, sizes.wal_cap)
        lock = FileLock.acquire(path)
        try:
            tight = reserve.make_room_before_open()
            create_private(path)
            db = await connect(path)
        except BaseException:
            lock.release()
            raise
        door = Admission(sizes, when_full)
        buffer = cls(path, sizes, dead_max, clock or SystemClock(), door, reserve, synchronous, db, lock)
        buffer._tight = tight
        try:
            await buffer._hop(lambda conn: prepare(conn, sizes, synchronous))
            await buffer._hop(buffer._load)
            if not tight:
                await buffer._hop(buffer._build_reserve)
        except BaseException as error:
            with suppress(sqlite3.Error):
                await db.close()
            lock.release()
            if isinstance(error, sqlite3.DatabaseError):
                raise BufferUnusable(path, f"{error}. Move it away to start afresh.") from error
            raise
        buffer._idle.set()
        buffer._writer = asyncio.create_task(buffer._write(), name="tillpost-writer")
        return buffer

    async def close(self) -> None:
        """Commit what is queued, then let go of the file."""
        self._closing = True
        self._wake.set()
        await asyncio.wait((self.writer,))
        try:
            await self._db.close()
        finally:
            self._lock.release()

    def _load(self, conn: sqlite3.Connection) -> None:
        self._ledger = dict(conn.execute("SELECT name, n FROM ledger").fetchall())
        rows = conn.execute("SELECT id, kind, identifier, priority, last_seq, pending, aside, bytes FROM lanes")
        for lane_id, kind, identifier, priority, *numbers in rows.fetchall():
            lane = Lane(kind, identifier, priority)
            self._lanes[lane] = LaneState(lane, lane_id, *numbers)
        row = conn.execute("SELECT value FROM meta WHERE name = 'dead_bytes'").fetchone()
        self._dead_bytes = row[0] if row else 0
        self._dead_salts = set()
        for (body,) in conn.execute("SELECT body FROM dead WHERE NOT superseded"):
            self._dead_salts.update(map(hash, salts_in(body)))
        self._used = Work(conn, {}, 0).used_bytes()

    def _build_reserve(self, _: sqlite3.Connection) -> None:
        if self._reserve.build():
            with suppress(OSError):  # without blocks of its own the log grows as any file does
                self._reserve.grow_log()

    async def _hop(self, unit: Callable[[sqlite3.Connection], Any]) -> None:
        self._hops += 1
        self._hopping = True
        try:
            await hop(self._db, unit)
        finally:
            self._hopping = False

    # -- the four verbs -----------------------------------------------------------------------

    async def append(self, parcels: Sequence[Parcel]) -> None:
        """Store records; returns when they are on disk.

        Raises Full (nothing was stored) or Unknown (the commit failed).
        """
        size = sum(len(record) + 1 for parcel in parcels for record in parcel.records)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._submit(_Append(future, parcels=parcels, bytes=size))
        await future

    async def take(self, lane: Lane, limits: Limits, gate: Gate) -> Batch | Wait | None:
        """The next batch of a lane, read from its head: what was settled is gone, what was not is in it again.

        None: the lane is empty. Wait: what it holds may not leave yet. The batch is in hand,
        safe from the policy that discards, until the next `take` or `release`.
        """
        boot_ms = self.clock.boot_ms()
        found = await self.run(lambda work: take(work, lane, limits, gate, self._parked, boot_ms))
        self._in_hand.pop(lane, None)
        if isinstance(found, Batch):
            self._in_hand[lane] = found
        return found

    async def settle(self, fates: Sequence[tuple[Batch, Fate]]) -> None:
        """Give records their fate, all in one transaction; on disk when it returns.

        Raises DeadLettersFull, and then settled nothing; Unknown when the commit failed.
        """
        await self.run(lambda work: work.settle(fates))
        for part, fate in fates:
            if not isinstance(fate, Aside):
                for span in part.spans:
                    if span.chunk.from_aside:
                        self._parked.pop(span.chunk.id, None)

    def release(self, batch: Batch) -> None:
        """Nobody works on this batch any more; what of it has no fate stays pending."""
        if self._in_hand.get(batch.lane) is batch:
            del self._in_hand[batch.lane]

    async def run(self, unit: Callable[[Work], T]) -> T:
        """Any other work, inside the next group commit; durable when it returns.

        An exception of the unit undoes that unit alone and is raised here.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._submit(_Unit(future, body=unit))
        return await future

    async def erase(self, unit: Callable[[Work], T]) -> T:
        """Like `run`, but what the unit deletes is overwritten, in the file and in the write-ahead log."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._submit(_Unit(future, body=unit, erase=True))
        return await future

    # -- what is known without asking the file ------------------------------------------------

    @property
    def writer(self) -> "asyncio.Task[None]":
        """The task that alone touches the file; it ends with `close` and at no other time."""
        assert self._writer is not None
        return self._writer

    @property
    def under_way(self) -> int | None:
        """The number of the transaction the disk is busy with; None while it rests."""
        return self._hops if self._hopping else None

    def lanes(self) -> list[LaneState]:
        """Every lane ever used, as last committed."""
        return sorted(self._lanes.values(), key=lambda state: state.lane)

    def lane(self, lane: Lane) -> LaneState | None:
        return self._lanes.get(lane)

    def ledger(self) -> dict[str, int]:
        """The counters as last committed; they always add up."""
        return dict(self._ledger)

    @property
    def used_bytes(self) -> int:
        """Bytes of pages in use."""
        return self._used

    @property
    def is_full(self) -> bool:
        """Whether an ordinary record would be refused now."""
        return self._tight or self._used > EVERYTHING * self.sizes.usable

    @property
    def dead_bytes(self) -> int:
        return self._dead_bytes

    def on_records(self, listener: Callable[[Lane], None]) -> None:
        """Call `listener` on the loop whenever a commit brought records to a lane."""
        self._listeners.append(listener)

    async def quiet(self) -> None:
        """Return when nothing is queued."""
        await self._idle.wait()

    # -- the writer ---------------------------------------------------------------------------

    def _submit(self, op: _Unit | _Append) -> None:
        if self._closing or self.failed is not None:
            op.fail(Unknown(self.failed or "the buffer is closing"))
            return
        self._queue.append(op)
        self._idle.clear()
        self._wake.set()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                group = self._next_group()
                try:
                    await self._commit(group)
                except BaseException as error:
                    # nobody is left to answer: who waits is told now, who comes later at once
                    for op in group:
                        op.fail(Unknown(f"the writer died ({type(error).__name__})"))
                    self._fail(f"its writer died ({type(error).__name__})")
                    raise
            self._idle.set()
            if self._closing:
                return

    def _next_group(self) -> list[_Unit | _Append]:
        """What goes into one transaction: everything queued, within what the WAL's cap can take."""
        group: list[_Unit | _Append] = []
        room = self.sizes.max_body
        while self._queue:
            op = self._queue[0]
            size = op.bytes if isinstance(op, _Append) else 0
            if group and size > room:
                break
            room -= size
            group.append(self._queue.popleft())
        return group

    async def _commit(self, group: list[_Unit | _Append], *, last_try: bool = False) -> None:
        units = [op for op in group if isinstance(op, _Unit)]
        appends = [op for op in group if isinstance(op, _Append)]
        if self._tight and not last_try:
            await self._look_for_room()
            if self._tight:
                for append in appends:
                    append.fail(Full("the disk is full"))
                appends = []
                if not units:
                    return
        erase = any(unit.erase for unit in units)
        work: Work | None = None

        def transaction(conn: sqlite3.Connection) -> None:
            nonlocal work
            if erase:
                conn.execute("PRAGMA secure_delete = ON")
            work = Work(conn, self._lanes, self.clock.wall_ms(), self._dead_bytes, self.dead_max)
            conn.execute("BEGIN IMMEDIATE")
            try:
                # settles first: they make the room that appends then find
                for unit in units:
                    _run_unit(work, unit)
                if appends:
                    in_hand = {span.chunk.id for batch in self._in_hand.values() for span in batch.spans}
                    self._door.admit(work, appends, self._dead_salts, in_hand)
                work.finish()
                self._used = work.used_bytes()
                conn.execute("COMMIT")
            except BaseException:
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
                raise
            if self._tight:
                # every page given back counts, and the log must not grow beyond its blocks
                conn.execute("PRAGMA wal_checkpoint(PASSIVE)")
            if erase:
                # free pages may hold what was delivered of that person, the log what was just erased
                conn.executescript("PRAGMA incremental_vacuum")
                conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                conn.execute("PRAGMA secure_delete = FAST")
                self.erasures += 1

        try:
            await self._hop(transaction)
        except sqlite3.Error as error:
            await self._after_failure(units, appends, error, last_try)
        except Exception as error:
            log.exception("buffer_transaction_failed")
            for op in (*units, *appends):
                op.fail(Unknown(f"a fault in the transaction ({type(error).__name__}); nothing was stored"))
        else:
            assert work is not None
            self._publish(work)
            for op in (*units, *appends):
                op.resolve()
            for lane, state in work.lanes.items():
                if state.pending:
                    for listener in self._listeners:
                        listener(lane)

    def _publish(self, work: Work) -> None:
        self._lanes.update(work.lanes)
        for name, change in work.ledger.items():
            self._ledger[name] = self._ledger.get(name, 0) + change
        self._dead_bytes = work.dead_bytes
        self._dead_salts |= work.new_dead_salts
        self._parked.update(work.parked)

    async def _after_failure(
        self, units: list[_Unit], appends: list[_Append], error: sqlite3.Error, last_try: bool
    ) -> None:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL and not last_try:
            # it undid the settles too: commit them alone, out of the reserve; they free what is needed
            for append in appends:
                append.fail(Full("the disk or the buffer file is full"))
            await self._tighten()
            if units:
                await self._commit(list(units), last_try=True)
            return
        log.error("buffer_commit_failed", error=str(error), errorname=getattr(error, "sqlite_errorname", None))
        for op in (*units, *appends):
            op.fail(Unknown(f"the commit failed ({error}); whether it is on disk is not known"))
        await self._reopen()

    async def _tighten(self) -> None:
        """The disk is full, or the file at its cap: nothing more comes in until there is room."""
        if self._reserve.free_bytes() < self._reserve.size:
            self._reserve.release()
        self._tight = True
        self._looked_ms = self.clock.boot_ms()
        with suppress(sqlite3.Error):
            await self._hop(lambda conn: conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall())

    async def _look_for_room(self) -> None:
        """Once a second: is there room for the reserve again? Then ingest may go on."""
        now = self.clock.boot_ms()
        if now - self._looked_ms < 1000:
            return
        self._looked_ms = now
        if self._reserve.build():
            await self._hop(self._build_reserve)
            self._tight = False
            log.info("reserve_rebuilt")

    async def _reopen(self) -> None:
        """After an errored COMMIT only a fresh connection knows what is on disk (fsync may have failed half-way)."""
        now = self.clock.boot_ms()
        self._failures = [at for at in self._failures if now - at < FAILURE_WINDOW_MS] + [now]
        try:
            await self._db.close()
        except sqlite3.Error as error:
            log.error("buffer_close_failed", error=str(error))
        try:
            self._db = await connect(self.path)
            await self._hop(lambda conn: prepare(conn, self.sizes, self._synchronous))
            await self._hop(self._load)
        except (sqlite3.Error, BufferUnusable) as error:
            self.failed = f"it cannot be opened again: {error}"
        else:
            self.failed = "three commits failed within a minute" if len(self._failures) >= FAILURES_MAX else None
        if self.failed is not None:
            self._fail(self.failed)

    def _fail(self, why: str) -> None:
        self.failed = why
        log.critical("buffer_failed", path=str(self.path), why=why)
        while self._queue:
            self._queue.popleft().fail(Unknown(why))

    async def revive(self) -> bool:
        """Try a failed buffer again; True when it works."""
        if self.failed is not None and not self.writer.done():
            self._failures = []
            await self._reopen()
        return self.failed is None


def _run_unit(work: Work, unit: _Unit) -> None:
    """A unit's own exception undoes that unit alone; SQLite's undoes the transaction."""
    undo = work.undoable()
    unit.error = None
    work.conn.execute("SAVEPOINT unit")
    try:
        unit.result = unit.body(work)
    except sqlite3.Error:
        raise
    except Exception as error:
        work.conn.execute("ROLLBACK TO unit")
        undo()
        unit.error = error
    work.conn.execute("RELEASE unit")
