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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import aiosqlite
import msgspec

from collector import schema, watermark
from collector.admission import EVERYTHING, Admission, Full, Policy, Sizes
from collector.batcher import Delivered, Fate, Gate, Limits, Wait
from collector.chunks import Batch, salts_in
from collector.crashpoints import reach
from collector.database import Synchronous, connect, hop, prepare, require_sqlite
from collector.files import BufferInUse, BufferUnusable, FileLock, Moved, create_private, footing, identity, sync_folder
from collector.kinds import Lane, Parcel
from collector.logs import logger
from collector.parked import Parked
from collector.quarantine import Quarantine, damage_in, lacks_log, look
from collector.reserve import Reserve
from collector.salvage import Damage, Salvage, read_damage
from collector.taking import Ahead, take
from collector.turns import Turns
from collector.watermark import Watermark
from collector.work import Damaged, DeadLettersFull, LaneState, Work
from tracker.time import Clock, SystemClock

__all__ = ["Buffer", "BufferInUse", "BufferUnusable", "DeadLettersFull", "Full", "LaneState", "Unknown"]

log = logger("buffer")
T = TypeVar("T")

FAILURES_MAX: Final = 3
FAILURE_WINDOW_MS: Final = 60_000
SALVAGE_FIRST_S: Final = 5.0
"""How long a start waits for what is salvaged from a damaged file; what takes longer goes on in the background."""
SALVAGE_RETRY_S: Final = 5.0
LIGHT: Final = 32 * 1024
"""Bytes of pages that an ordinary unit changes, such as a settle that deletes."""


class Unknown(Exception):
    """The commit failed: what it held may or may not be on disk. Send it again; the salt makes that safe."""


@dataclass
class _Op:
    """Somebody waiting for the next commit."""

    future: "asyncio.Future[Any]"
    result: Any = None
    error: BaseException | None = None
    slow: bool = False
    """It takes milliseconds, and what else is queued need not wait for it."""

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
    weight: int = LIGHT
    """Bytes it may write, about."""
    erase: bool = False
    scrub: bool = False
    touch: bool = False
    """Commit, also when nothing was written."""


@dataclass
class _Append(_Op):
    """Parcels of one request."""

    parcels: Sequence[Parcel] = field(default=(), repr=False)
    bytes: int = 0

    @property
    def weight(self) -> int:
        return self.bytes


@dataclass(repr=False)  # what waits in it is nobody's business
class Buffer:
    """See the module. Made by `Buffer.open`; every method belongs to the loop that opened it."""

    path: Path
    sizes: Sizes
    dead_max: int
    clock: Clock
    _door: Admission
    _reserve: Reserve
    _synchronous: Synchronous
    _lock: FileLock
    _mark: Watermark
    _quarantine: Quarantine
    _db: aiosqlite.Connection = field(init=False)
    _lanes: dict[Lane, LaneState] = field(default_factory=dict)
    _ledger: dict[str, int] = field(default_factory=dict)
    _queue: Turns[_Unit | _Append] = field(init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _closing: bool = False
    _in_hand: dict[Lane, Batch] = field(default_factory=dict)
    _ahead: dict[Lane, Ahead] = field(default_factory=dict)
    _parked: Parked = field(default_factory=Parked)
    _dead_salts: set[int] = field(default_factory=set)
    _dead_bytes: int = 0
    _used: int = 0
    _listeners: list[Callable[[Lane], None]] = field(default_factory=list)
    _failures: list[int] = field(default_factory=list)
    _footing: tuple[tuple[int, int], ...] = ()
    """Which files the paths named when they were opened."""
    _writer: "asyncio.Task[None] | None" = None
    _syncer: "asyncio.Task[None] | None" = None
    """Brings the watermark to the disk, a second after a commit."""
    _salvager: "asyncio.Task[None] | None" = None
    damage: Damage | None = None
    """What became of the file's last damage; None: it was never damaged."""
    _hops: int = 0
    _hopping: bool = False
    erasures: int = 0
    """Rises with every `erase`: a batch in hand from before may hold what was erased and must be taken again."""
    failed: str | None = None
    """Why the buffer takes nothing more; None while it works."""
    tell_time: Callable[[], int] | None = None
    """What knows the time better than our wall clock, ms since 1970."""
    on_commit: Callable[[float], None] | None = None
    """Told, on the connection's thread, how many seconds each COMMIT took."""
    moved: bool = False
    """Its files were deleted, renamed or replaced: it failed for good, unless they come back."""

    def __post_init__(self) -> None:
        self._queue = Turns(self.sizes.max_body)

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
        require_sqlite(path)
        sizes = Sizes(max_size)
        reserve = Reserve(path, sizes)
        clock = clock or SystemClock()
        lock = FileLock.acquire(path)
        door, mark = Admission(sizes, when_full), Watermark(path, clock.boot_id())
        buffer = cls(path, sizes, dead_max, clock, door, reserve, synchronous, lock, mark, Quarantine(path))
        try:
            await buffer._connect()
        except BaseException as error:
            await buffer._disconnect()
            lock.release()
            if isinstance(error, sqlite3.DatabaseError):
                remedy = "Free some space" if reserve.is_refused() else "Move it away to start afresh"
                if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                    remedy = "Another program has it open, a shell or a backup tool: end that"
                raise BufferUnusable(path, f"{error}. {remedy}.") from error
            raise
        buffer._idle.set()
        buffer._writer = asyncio.create_task(buffer._write(), name="tillpost-writer")
        if buffer._salvager is not None:
            await asyncio.wait((buffer._salvager,), timeout=SALVAGE_FIRST_S)
        return buffer

    async def close(self) -> None:
        """Commit what is queued, then let go of the file."""
        self._closing = True
        self._wake.set()
        await asyncio.wait((self.writer,))
        for task in (self._salvager, self._syncer):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))
        try:
            await asyncio.to_thread(self._mark.release)
            await self._db.close()
            await asyncio.to_thread(self._end)
        finally:
            self._lock.release()

    def _end(self) -> None:
        # closing took the log away: were it back after a power cut, a mark that says "clean" would call it another's
        sync_folder(self.path.parent)
        self._mark.close(clean=self.failed is None)

    async def _connect(self, damage: str | None = None) -> None:
        """A connection to a file that can be trusted.

        One that cannot goes into quarantine, and a fresh one carries on with what can be salvaged.
        """
        mark = watermark.read(self.path)
        if self._quarantine.interrupted:
            damage = "it was being put into quarantine"
        damage = damage or look(self.path, mark)
        if damage is None:
            try:
                without_log = lacks_log(self.path, mark)
                await self._open_file(partial(self._trust, mark=mark, without_log=without_log))
                return
            except (sqlite3.Error, BufferUnusable) as error:
                damage = damage_in(error, self.path, opening=True)
                if damage is None:
                    raise
        log.error("buffer_damaged", path=str(self.path), what=damage, moved_to=str(self._quarantine.folder))
        self._quarantine.take_in()
        await self._disconnect()
        salvage = await asyncio.to_thread(Salvage, self._quarantine, self.clock.boot_id(), damage)
        await self._open_file(partial(self._carry_on, salvage=salvage))
        reach("quarantine-opened")
        self._quarantine.moved()

    async def _open_file(self, introduce: Callable[[sqlite3.Connection], None]) -> None:
        create_private(self.path)
        self._reserve.before_open()
        self._db = await connect(self.path)
        await self._hop(partial(self._get_ready, introduce=introduce))
        if self._salvager is not None:
            self._salvager.cancel()
        self._salvager = None
        if self.damage is not None and not self.damage.done:
            self._salvager = asyncio.create_task(self._carry_over(), name="tillpost-salvage")

    async def _disconnect(self) -> None:
        self._mark.release()
        with suppress(sqlite3.Error, AttributeError):  # there may be no connection yet
            await self._db.close()

    def _get_ready(self, conn: sqlite3.Connection, introduce: Callable[[sqlite3.Connection], None]) -> None:
        prepare(conn, self.sizes, self._synchronous)
        introduce(conn)
        # what a killed process had written is in the page cache perhaps: on the disk before anybody counts on it
        watermark.touch(conn)
        try:
            self._load(conn)
        except (ValueError, TypeError, OverflowError) as error:
            raise Damaged(f"its rows are not readable ({error})") from error
        self._reserve.after_open(conn)
        self._footing = footing(self.path)
        self._mark.start(watermark.facts_in(conn))

    def _trust(self, conn: sqlite3.Connection, mark: watermark.Facts | None, *, without_log: bool) -> None:
        """Raises Damaged for a file that contradicts itself, or the mark beside it."""
        if mark is not None:
            self._mark.take_up(mark)
        schema.migrate(conn)
        facts = watermark.facts_in(conn)
        wrong = watermark.compare(facts, mark)
        if wrong is None and without_log:
            wrong = watermark.gap_in(conn)
        if wrong is not None:
            raise Damaged(wrong)
        if facts.instance is None:
            watermark.introduce(conn)

    def _carry_on(self, conn: sqlite3.Connection, salvage: Salvage) -> None:
        schema.migrate(conn)
        salvage.begin(conn, self.clock.wall_ms())

    async def _carry_over(self) -> None:
        """What can be salvaged of the damaged file, in the background."""
        salvage = await asyncio.to_thread(Salvage, self._quarantine, self.clock.boot_id())
        while self.damage is None or not self.damage.done:
            try:
                self.damage = await salvage.run(self)
            except Unknown:
                await asyncio.sleep(SALVAGE_RETRY_S)

    async def _sync_mark(self) -> None:
        await asyncio.sleep(watermark.SYNC_EVERY_S)
        await asyncio.to_thread(self._mark.sync)

    def _load(self, conn: sqlite3.Connection) -> None:
        self._lanes, self._ahead = {}, {}
        self.damage = read_damage(conn)
        self._ledger = dict(conn.execute("SELECT name, n FROM ledger").fetchall())
        rows = conn.execute("SELECT id, kind, identifier, priority, last_seq, pending, aside, bytes FROM lanes")
        for lane_id, kind, identifier, priority, *numbers in rows.fetchall():
            lane = Lane(kind, identifier, priority)
            self._lanes[lane] = LaneState(lane, lane_id, *numbers)
        row = conn.execute("SELECT value FROM meta WHERE name = 'dead_bytes'").fetchone()
        self._dead_bytes = msgspec.convert(row[0] if row else 0, int)
        self._dead_salts = set()
        for (body,) in conn.execute("SELECT body FROM dead WHERE NOT superseded"):
            self._dead_salts.update(map(hash, salts_in(body)))
        self._used = Work(conn, {}, 0).used_bytes()

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
        size = sum(len(parcel.records) + sum(map(len, parcel.records)) for parcel in parcels)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._submit(_Append(future, parcels=parcels, bytes=size))
        await future

    async def take(self, lane: Lane, limits: Limits, gate: Gate) -> Batch | Wait | None:
        """The next batch of a lane, read from its head: what was settled is gone, what was not is in it again.

        None: the lane is empty. Wait: what it holds may not leave yet. The batch is in hand,
        safe from the policy that discards, until the next `take` or `release`.
        """
        boot_ms = self.clock.boot_ms()
        most = self.sizes.max_step // 2

        def unit(work: Work) -> Batch | Wait | Ahead | None:
            if ahead.step(work, limits):
                return ahead
            # what goes aside takes room of its own until the rest of its chunk has left
            room = (self.sizes.usable - work.used_bytes()) // 4
            self._in_hand.pop(lane, None)
            found = take(work, lane, limits, gate, self._parked, boot_ms, ahead, min(most, room))
            if isinstance(found, Batch):
                self._in_hand[lane] = found  # before anything else can be asked of the file
            return found

        ahead = self._ahead_of(lane)
        while isinstance(found := await self.run(unit, weight=3 * most, slow=True), Ahead):
            pass
        return found

    async def settle(self, fates: Sequence[tuple[Batch, Fate]]) -> None:
        """Give records their fate; on disk when it returns. Records aside, or that go there, may take several commits.

        Raises DeadLettersFull, and then settled nothing; Unknown when the commit failed.
        """
        for some in _in_steps(fates, self.sizes.max_step):
            weight = sum(3 * len(part.body) for part, fate in some if _is_heavy(part, fate))
            await self.run(partial(Work.settle, fates=some), weight=LIGHT + weight)

    def release(self, batch: Batch) -> None:
        """Nobody works on this batch any more; what of it has no fate stays pending."""
        if self._in_hand.get(batch.lane) is batch:
            del self._in_hand[batch.lane]

    async def run(self, unit: Callable[[Work], T], *, weight: int = LIGHT, slow: bool = False) -> T:
        """Any other work, inside the next group commit; durable when it returns.

        An exception of the unit undoes that unit alone and is raised here. `weight`: bytes it may write, about;
        what goes into one commit weighs no more than `Sizes.max_body`. `slow`: it takes about a millisecond or
        more, and what else is queued need not wait for it.
        """
        return cast(T, await self._do(_Unit(_future(), body=unit, weight=weight, slow=slow)))

    async def erase(self, unit: Callable[[Work], T]) -> T:
        """Like `run`, but what the unit deletes is overwritten in the file; `scrub` does the rest."""
        return cast(T, await self._do(_Unit(_future(), body=unit, weight=self.sizes.max_body, erase=True)))

    async def scrub(self) -> None:
        """Leave nothing of what was erased in free pages and in the write-ahead log."""
        await self._do(_Unit(_future(), scrub=True))

    async def look(self) -> None:
        """See how things stand on the disk, as every commit does: for when there are none. Returns when it is done."""
        with suppress(Unknown):
            await self._do(_Unit(_future(), touch=True))

    async def _do(self, op: _Unit) -> Any:
        self._submit(op)
        return await op.future

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

    @property
    def transactions(self) -> int:
        """How many the disk was asked for since the start."""
        return self._hops

    def now_ms(self) -> int:
        """The time that is stored with what comes in and what dies, for people and for `dead.keep`."""
        return self.clock.wall_ms() if self.tell_time is None else self.tell_time()

    def lanes(self) -> list[LaneState]:
        """Every lane ever used, as last committed."""
        return sorted(self._lanes.values(), key=lambda state: state.lane)

    def lane(self, lane: Lane) -> LaneState | None:
        return self._lanes.get(lane)

    def head(self, lane: Lane) -> int | None:
        """The id of the lane's first row, where it is known without asking the file."""
        return self._ahead_of(lane).head

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
        return self._reserve.tight or self._used > EVERYTHING * self.sizes.usable

    @property
    def is_tight(self) -> bool:
        """Whether the disk, not the bound, is what refuses records."""
        return self._reserve.tight

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
        self._queue.add(op)
        self._idle.clear()
        self._wake.set()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                group = self._queue.next()
                try:
                    await self._commit(group)
                except BaseException as error:
                    # nobody is left to answer: who waits is told now, who comes later at once
                    for op in group:
                        op.fail(Unknown(f"the writer died ({type(error).__name__})"))
                    self._fail(f"its writer died ({type(error).__name__})")
                    raise
            if self._reserve.over and self.failed is None:
                await self._hop(self._reserve.shrink)
                self._wake.set()
                continue
            self._queue.rest()
            self._idle.set()
            if self._closing:
                return

    async def _commit(self, group: list[_Unit | _Append], *, last_try: bool = False) -> None:
        units = [op for op in group if isinstance(op, _Unit)]
        appends = [op for op in group if isinstance(op, _Append)]
        erase = any(unit.erase for unit in units)
        scrub = any(unit.scrub for unit in units)
        touch = appends or any(unit.erase or unit.scrub or unit.touch for unit in units)
        work: Work | None = None

        def transaction(conn: sqlite3.Connection) -> None:
            nonlocal work
            used = self._reserve.look(conn, sum(append.bytes for append in appends))
            if erase:
                conn.execute("PRAGMA secure_delete = ON")
            work = Work(conn, self._lanes, self.now_ms(), self._dead_bytes, self.dead_max)
            work.only_adds = not units
            changes = conn.total_changes
            conn.execute("BEGIN IMMEDIATE")
            try:
                # settles first: they make the room that appends then find
                for unit in units:
                    _run_unit(work, unit)
                if self._reserve.tight:
                    for append in appends:
                        append.error = Full("the disk is full")
                elif appends:
                    in_hand = list(self._in_hand.values())
                    self._door.admit(work, appends, self._dead_salts, in_hand, work.used_bytes() if units else used)
                    reach("inserted")
                if conn.total_changes == changes and not touch:
                    conn.execute("COMMIT")  # it only read: there is nothing to write, to sync or to remember
                    return
                work.finish()
                self._used = self._reserve.count(conn)
                self._mark.promise(self._ledger, work.ledger)
                begun = time.perf_counter()
                conn.execute("COMMIT")
                if self.on_commit is not None:
                    self.on_commit(time.perf_counter() - begun)
            except BaseException:
                self._reserve.forget()
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
                raise
            finally:
                if erase:
                    conn.execute("PRAGMA secure_delete = FAST")
            self._check_footing()  # what was just written is where it will be looked for
            if appends:
                reach("committed")
            self._reserve.after_commit(conn)
            self.erasures += erase
            if scrub:
                # free pages may hold what was delivered of that person, the log what was just erased
                reach("erasing")
                self._reserve.scrub(conn, self._mark.part_with_log)
                self._mark.expect_log()
            self._mark.note(work, self._ledger)

        try:
            await self._hop(transaction)
        except (sqlite3.Error, OSError) as error:
            await self._after_failure(units, appends, error, last_try)
        except Moved as error:
            self.moved = True
            self._fail(f"its files were deleted, renamed or replaced while it was running ({error})")
            for op in (*units, *appends):
                op.fail(Unknown(str(self.failed)))
        except Exception as error:
            log.exception("buffer_transaction_failed")
            for op in (*units, *appends):
                op.fail(Unknown(f"a fault in the transaction ({type(error).__name__}); nothing was stored"))
        else:
            assert work is not None
            self._publish(work)
            if self._syncer is None or self._syncer.done():
                self._syncer = asyncio.create_task(self._sync_mark(), name="tillpost-watermark")
            for op in (*units, *appends):
                op.resolve()
            for lane, state in work.lanes.items():
                if state.pending:
                    for listener in self._listeners:
                        listener(lane)

    def _ahead_of(self, lane: Lane) -> Ahead:
        if (ahead := self._ahead.get(lane)) is None:
            ahead = self._ahead[lane] = Ahead(lane)
        return ahead

    def _publish(self, work: Work) -> None:
        for lane, state in work.lanes.items():
            self._ahead_of(lane).follow(work, self._lanes.get(lane) or LaneState(lane, state.id))
        self._lanes.update(work.lanes)
        for name, change in work.ledger.items():
            self._ledger[name] = self._ledger.get(name, 0) + change
        self._dead_bytes = work.dead_bytes
        self._dead_salts |= work.new_dead_salts
        self._parked.note(work.parked, self.clock.boot_ms())

    async def _after_failure(
        self, units: list[_Unit], appends: list[_Append], error: sqlite3.Error | OSError, last_try: bool
    ) -> None:
        if self._says_full(error):
            # certainly not committed. It undid the settles too: commit them alone, they free what is needed
            for append in appends:
                append.fail(Full("the disk or the buffer file is full"))
            if last_try:
                for unit in units:
                    unit.fail(Unknown("the disk or the buffer file is full: nothing was noted"))
                return
            await self._hop(self._reserve.make_room)
            for unit in units:
                await self._commit([unit], last_try=True)
            return
        log.error("buffer_commit_failed", error=str(error), errorname=getattr(error, "sqlite_errorname", None))
        for op in (*units, *appends):
            op.fail(Unknown(f"the commit failed ({error}); whether it is on disk is not known"))
        await self._reopen(damage_in(error, self.path, opening=False))

    def _check_footing(self) -> None:
        if footing(self.path) != self._footing:
            raise Moved("other files have their names")

    def _says_full(self, error: sqlite3.Error | OSError) -> bool:
        code = getattr(error, "sqlite_errorcode", None)
        # SQLite knows a full disk, but not a quota that is used up
        return code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR_WRITE and self._reserve.is_refused())

    async def _reopen(self, damage: str | None = None) -> None:
        """After an errored COMMIT only a fresh connection knows what is on disk (fsync may have failed half-way)."""
        now = self.clock.boot_ms()
        self._failures = [at for at in self._failures if now - at < FAILURE_WINDOW_MS] + [now]
        try:
            if damage is None:
                self._mark.release()
                await self._db.close()  # a damaged file is moved first: closing would write to it
        except sqlite3.Error as error:
            log.error("buffer_close_failed", error=str(error))
        try:
            if identity(self.path) != self._footing[0]:
                raise Moved("another file has its name")
            await self._connect(damage)  # which commits: SQLite opens what it may not write, too, and says so only then
            # after a failed sync the log's pages count as written, and no later sync brings them to the disk:
            # write them once more, into the database
            await self._hop(self._reserve.relieve)
        except (sqlite3.Error, OSError, BufferUnusable, Moved) as error:
            self.moved = isinstance(error, Moved)
            self.failed = f"it cannot be opened again: {error}"
        else:
            self.moved = False
            self.failed = "three commits failed within a minute" if len(self._failures) >= FAILURES_MAX else None
        if self.failed is not None:
            self._fail(self.failed)

    def _fail(self, why: str) -> None:
        self.failed = why
        log.critical("buffer_failed", path=str(self.path), why=why)
        for op in self._queue.clear():
            op.fail(Unknown(why))

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


def _future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


def _is_heavy(part: Batch, fate: Fate) -> bool:
    """Whether each record of the batch has, or gets, a row of its own."""
    return part.from_aside or not isinstance(fate, Delivered)


def _in_steps(fates: Sequence[tuple[Batch, Fate]], max_bytes: int) -> Iterator[Sequence[tuple[Batch, Fate]]]:
    """The fates as given; what concerns rows of single records in parts that one commit can write."""
    if not any(_is_heavy(part, fate) and part.count > 1 and len(part.body) > max_bytes for part, fate in fates):
        yield fates
        return
    for part, fate in fates:
        start = size = 0
        for i in range(part.count):
            length = len(part.record(i))
            if i > start and size + length > max_bytes and _is_heavy(part, fate):
                yield [(part.part(start, i), fate)]
                start, size = i, 0
            size += length
        yield [(part.part(start, part.count), fate)]
