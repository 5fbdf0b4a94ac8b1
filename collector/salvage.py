"""What a quarantined file still holds, carried over into the fresh buffer that took its place.

Every row that can be read and whose checksum is right comes over under its old id, so that order
and what is in hand stay as they were. The *reference*, the latest trustworthy account of what the
file held, says which of them had been settled already, and how many there must be: the mark, or
the file's own ledger where that is the later one. What it names and nobody finds is lost.

While this goes on the records not yet carried over count as pending. Each step is one transaction
together with the note how far it came; after a crash it goes on there. docs/decisions/0005 has the
reasoning behind the numbers.
"""

import asyncio
import sqlite3
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final, Literal, Protocol, TypeVar

import msgspec

from collector.admission import EVERYTHING, Sizes
from collector.chunks import Chunk, crc_of, encode_runs, salts_in
from collector.crashpoints import reach
from collector.image import ROWID_MAX, Image
from collector.logs import logger
from collector.quarantine import Quarantine, own_salts
from collector.watermark import Facts, introduce, is_current, read
from collector.work import SEQ_BITS, Work
from tracker.time import format_ms

log = logger("buffer")
T = TypeVar("T")

GAP: Final = 1 << 20
"""New ids begin so far above the old ones: nothing carried over can meet them."""
COMMIT_MAX: Final = 1024
"""Hardly more rows come with one commit."""
SMALL_PAGES: Final = 1024
"""The tables that are read before the fresh buffer starts begin on the first few pages, and hardly grow."""
RETRY_S: Final = 5.0
"""How often a salvage that found no room looks again."""
_SEQ_MASK: Final = (1 << SEQ_BITS) - 1


class Damage(msgspec.Struct, frozen=True):
    """What became of a damaged buffer, for people."""

    at_ms: int
    what: str
    salvaged: int = 0
    lost: int = 0
    lost_at_most: int = 0
    done: bool = False

    def facts(self) -> dict[str, Any]:
        """For ``status.json``."""
        numbers = {"salvaged": self.salvaged, "lost": self.lost, "lost_at_most": self.lost_at_most}
        return {"at": format_ms(self.at_ms), "what": self.what, **numbers, "done": self.done, "text": str(self)}

    def __str__(self) -> str:
        day = format_ms(self.at_ms)[:10]
        if not self.done:
            return f"the file was damaged on {day} ({self.what}); its records are still being carried over"
        most = f" (at most {self.lost_at_most})" if self.lost_at_most > self.lost else ""
        return f"{self.lost} records lost{most} after damage on {day}: {self.what}; {self.salvaged} were salvaged"


class Progress(msgspec.Struct):
    """How far a salvage came; kept in the fresh buffer, changed in the same transactions as the rows."""

    waiting: int
    """Records the reference names that were not found yet; they count as pending."""
    exact: bool
    """Whether nothing can have happened after the reference."""
    accepted_max: int
    """How many may have been accepted after the reference, at most."""
    settled_max: int
    missing: list[int] = []
    """Checksums of records aside or dead that the reference names and nobody found yet."""
    unlisted: dict[str, int] = {}
    """How many more of them there are, by table, than the reference names one by one."""
    sweep: Literal["rows", "chunks"] = "rows"
    page: int = 0
    salvaged: int = 0
    new: int = 0
    """Found, but accepted after the reference."""
    unsure: int = 0
    """Found, and perhaps settled before."""

    def claim(self, work: Work, count: int) -> None:
        """So many records the reference knows were found: they are pending as before.

        More than it knows are copies, accepted once more.
        """
        known = min(count, self.waiting)
        self.waiting -= known
        self.salvaged += count
        work.ledger["accepted"] += count - known
        work.ledger["pending"] += count - known

    def discover(self, work: Work, count: int) -> None:
        """So many records were found that were accepted after the reference."""
        self.new += count
        self.salvaged += count
        work.ledger["accepted"] += count
        work.ledger["pending"] += count


class Store(Protocol):
    """The part of the buffer that salvage needs."""

    sizes: Sizes

    @property
    def used_bytes(self) -> int: ...
    async def run(self, unit: Callable[[Work], T], /, *, weight: int) -> T: ...


class _Step(msgspec.Struct, frozen=True):
    sweep: Literal["rows", "chunks"]
    page: int
    """The last page that is in it."""
    rows: list[tuple[str, tuple[Any, ...]]]
    bytes: int


class Salvage:
    """From a quarantined file into the fresh buffer: `begin` once, then `run` until it is done."""

    def __init__(self, quarantine: Quarantine, boot: str, what: str = "") -> None:
        self._what = what
        mark = read(quarantine.database)
        quarantine.folder.mkdir(mode=0o700, exist_ok=True)
        quarantine.database.touch(0o600)  # somebody took it away: then nothing more will be found
        log_file = quarantine.database.with_name(quarantine.database.name + "-wal")
        self._image = Image(quarantine.database, log_file, own_salts(mark))
        self._small: list[tuple[str, tuple[Any, ...]]] = [
            (table, row)
            for _, table, row in self._image.rows(
                sorted({*range(1, min(self._image.pages, SMALL_PAGES) + 1), *self._image.changed}),
                {"ledger", "lanes", "meta", "clock", "boots", "sqlite_sequence"},
            )
        ]
        own = self._facts_in_image()
        self._reference, self._exact = own, True
        self._from_mark = False
        if mark is not None and (own is None or own.instance == mark.instance):
            self._exact = is_current(mark, boot)
            self._from_mark = own is None or not _is_later(own, mark)
            if self._from_mark:
                self._reference = mark
        self._ceilings = (mark.accepted_max, mark.settled_max) if mark is not None and not self._exact else (0, 0)
        self._lanes = {lane.id: lane for facts in (own, mark, self._reference) if facts for lane in facts.lanes}
        # what has left a chunk has left it for good: what the mark says of that holds for a later state too
        said = mark.gone if mark is not None and (own is None or own.instance == mark.instance) else None
        self._gone = {chunk: int.from_bytes(bits, "little") for chunk, bits in (said or {}).items()}

    def _facts_in_image(self) -> Facts | None:
        """The file's own account, where it can be read and adds up."""
        tables: dict[str, list[tuple[Any, ...]]] = {}
        for table, row in self._small:
            tables.setdefault(table, []).append(row)
        meta = dict(tables.get("meta", []))
        last = dict(tables.get("sqlite_sequence", []))
        with suppress(msgspec.MsgspecError, TypeError, ValueError, KeyError):
            lanes = []
            for lane_id, kind, identifier, priority, last_seq, pending, aside, size in tables.get("lanes", []):
                # which chunks are left shows in the file itself
                head = 0 if pending > aside else last_seq + 1
                lanes.append((lane_id, kind, identifier, priority, last_seq, head, pending, aside, size))
            progress = msgspec.json.decode(meta["salvage"], type=Progress) if "salvage" in meta else None
            facts = msgspec.convert(
                {
                    "instance": meta["instance"],
                    "serial": meta["serial"],
                    "ledger": dict(tables.get("ledger", [])),
                    "lanes": lanes,
                    "last_aside": last.get("aside", 0),
                    "last_dead": last.get("dead", 0),
                    "salvaging": progress.waiting if progress else 0,
                },
                Facts,
            )
            if facts.contradiction() is None:
                return facts
        return None

    # -- the fresh buffer -----------------------------------------------------------------------

    def begin(self, conn: sqlite3.Connection, now_ms: int) -> None:
        """Let a fresh database carry on where the damaged one stopped: its ledger, its lanes, its clocks."""
        known = self._reference
        ledger = dict(known.ledger) if known is not None else {}
        waiting = known.kept if known is not None else 0
        ledger |= {"pending": waiting, "dead": 0, "superseded": 0}
        conn.execute("BEGIN IMMEDIATE")
        try:
            for name, n in ledger.items():
                conn.execute("UPDATE ledger SET n = ? WHERE name = ?", (n, name))
            for lane in self._lanes.values():
                conn.execute(
                    "INSERT OR IGNORE INTO lanes (id, kind, identifier, priority, last_seq) VALUES (?, ?, ?, ?, ?)",
                    (lane.id, lane.kind, lane.identifier, lane.priority, lane.last_seq + GAP),
                )
            sequences = [
                row for table, row in self._small
                if table == "sqlite_sequence" and isinstance(row[1], int) and row[1] < ROWID_MAX
            ]  # fmt: skip
            if known is not None:
                sequences += [("aside", known.last_aside), ("dead", known.last_dead)]
            for name in ("aside", "dead"):
                last = max((seq for table, seq in sequences if table == name), default=0)
                conn.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (name, last + GAP))
            for table, row in self._small:
                if table in ("clock", "boots") or (table == "meta" and row[0] not in _OWN_META):
                    marks = ",".join("?" * len(row))
                    conn.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)  # noqa: S608
            progress = Progress(waiting, self._exact, *self._slack())
            if known is not None and self._from_mark:
                # named one by one, as far as the mark had room
                progress.missing = [crc for _, crc in (*known.aside, *known.dead)]
                unlisted = {
                    "aside": sum(lane.aside for lane in known.lanes) - len(known.aside),
                    "dead": known.ledger["dead"] + known.ledger["superseded"] - len(known.dead),
                }
                progress.unlisted = {table: n for table, n in unlisted.items() if n}
            _write(conn, "salvage", progress)
            _write(conn, "damage", Damage(now_ms, self._what))
            introduce(conn)
            conn.execute("COMMIT")
        except BaseException:
            conn.execute("ROLLBACK")
            raise

    def _slack(self) -> tuple[int, int]:
        """How many more the mark allowed to be accepted and settled than the reference counts."""
        if self._reference is None or self._exact:
            return 0, 0
        accepted, settled = self._ceilings
        return max(0, accepted - self._reference.ledger["accepted"]), max(0, settled - self._reference.settled)

    # -- carrying over --------------------------------------------------------------------------

    async def run(self, buffer: Store) -> Damage:
        """Carry over what can be; what it came to."""
        progress = await buffer.run(lambda work: _read(work.conn), weight=0)
        if progress is not None:
            steps = self._steps(progress, buffer.sizes.max_step)
            while (step := await asyncio.to_thread(next, steps, None)) is not None:
                # settling makes room, and rings no bell
                while buffer.used_bytes + 2 * step.bytes > EVERYTHING * buffer.sizes.usable:  # noqa: ASYNC110
                    await asyncio.sleep(RETRY_S)
                await buffer.run(partial(self._restore, step=step), weight=buffer.sizes.max_body)
        damage = await buffer.run(self._finish, weight=0)
        say = log.error if damage.lost_at_most else log.warning
        say("buffer_salvaged", salvaged=damage.salvaged, lost=damage.lost, lost_at_most=damage.lost_at_most)
        return damage

    def _steps(self, progress: Progress, max_bytes: int) -> Iterator[_Step]:
        """The rows of every page, in parts one commit can take; two sweeps, as chunks need the table ``gone``."""
        pages = range(1, self._image.pages + 1)
        done = _order((progress.sweep, progress.page))
        for sweep in ("rows", "chunks"):
            rows: list[tuple[str, tuple[Any, ...]]] = []
            size = last = 0
            tables = {"chunks"} if sweep == "chunks" else {"gone", "aside", "dead"}
            for page, table, row in self._image.rows(pages, tables):
                if table == "gone":
                    self._gone[row[0]] = self._gone.get(row[0], 0) | int.from_bytes(row[1], "little")
                    continue
                if _order((sweep, page)) <= done:
                    continue
                if page != last and size > max_bytes:
                    yield _Step(sweep, last, rows, size)
                    rows, size = [], 0
                rows.append((table, row))
                size += sum(len(value) for value in row if isinstance(value, bytes))
                last = page
            yield _Step(sweep, self._image.pages, rows, size)

    def _restore(self, work: Work, step: _Step) -> None:
        progress = _read(work.conn)
        if progress is None or _order((step.sweep, step.page)) <= _order((progress.sweep, progress.page)):
            return  # an earlier commit, whose outcome was not known, had it
        for table, row in step.rows:
            with suppress(KeyError, ValueError, TypeError, msgspec.MsgspecError):
                if table == "chunks":
                    self._restore_chunk(work, progress, row)
                else:
                    self._restore_row(work, progress, table, row)
        reach("salvaging")
        progress.sweep, progress.page = step.sweep, step.page
        _write(work.conn, "salvage", progress)

    def _restore_row(self, work: Work, progress: Progress, table: str, row: tuple[Any, ...]) -> None:
        """A record that stood aside, or a dead letter."""
        row_id, lane_id = row[:2]
        crc, runs, body = row[-3:]
        true_crc = crc_of(runs, b"", body)
        # the inverted checksum marks a dead letter whose bytes were found damaged
        if true_crc != crc and (table == "aside" or true_crc ^ 0xFFFFFFFF != crc):
            return
        state = work.lane_by_id(lane_id)
        stands = self._stands(table, row_id, progress)
        if stands == "settled":
            return
        marks = ",".join("?" * len(row))
        if not work.conn.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row).rowcount:  # noqa: S608
            return
        if crc in progress.missing:
            progress.missing.remove(crc)
        if stands == "new":
            progress.discover(work, 1)
        else:
            progress.claim(work, 1)
        if table == "aside":
            state.pending += 1
            state.aside += 1
            state.bytes += len(body)
        else:
            work.ledger["pending"] -= 1
            work.ledger["superseded" if row[7] else "dead"] += 1
            work.dead_bytes += len(body)
            if not row[7]:
                work.new_dead_salts.update(map(hash, salts_in(body)))

    def _stands(self, table: str, row_id: int, progress: Progress) -> Literal["kept", "settled", "new"]:
        """What the reference says of a row."""
        known = self._reference
        if known is None or not self._from_mark:
            return "kept" if known is not None else "new"
        listed, last = (known.aside, known.last_aside) if table == "aside" else (known.dead, known.last_dead)
        if any(row_id == one for one, _ in listed):
            return "kept"
        if row_id > last:
            return self._beyond(row_id - last)
        if table in progress.unlisted and (not listed or row_id < listed[-1][0]):
            # one of those there was no room for in the mark; or settled since the file was in this state
            progress.unlisted[table] -= 1
            progress.unsure += 1
            return "kept"
        return "settled"

    def _beyond(self, by: int) -> Literal["kept", "new"]:
        """What a row is whose number is so much higher than the reference knows."""
        # the commit of which nobody was told when the process ended: else nothing can be new, and the number is damaged
        return "kept" if self._exact and by > COMMIT_MAX else "new"

    def _restore_chunk(self, work: Work, progress: Progress, row: tuple[Any, ...]) -> None:
        chunk_id, _, accepted_ms, crc, runs, ends, body = row
        state = work.lane_by_id(chunk_id >> SEQ_BITS)
        chunk = Chunk.load((chunk_id, accepted_ms, crc, runs, ends, body, None), state.lane)
        if chunk is None or not _is_whole(chunk):
            return
        left, is_new = self._left(chunk)
        kept = [i for i in range(len(chunk)) if not left >> i & 1 and chunk.record(i)]
        back = [] if is_new else self._back(chunk, left, progress)
        stay = sum(1 << i for i in {*kept, *back})
        if not stay:
            return
        n = len(chunk)
        if not work.conn.execute(
            "INSERT OR IGNORE INTO chunks (id, n, accepted_ms, crc, runs, ends, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (chunk_id, n, accepted_ms, crc, runs, ends, body),
        ).rowcount:
            return
        if gone := ((1 << n) - 1) & ~stay:
            work.conn.execute(
                "INSERT OR REPLACE INTO gone (chunk, bits) VALUES (?, ?)",
                (chunk_id, gone.to_bytes((n + 7) // 8, "little")),
            )
        state.revision += 1
        state.pending += stay.bit_count()
        state.bytes += sum(len(chunk.record(i)) for i in range(n) if stay >> i & 1)
        if is_new:
            progress.discover(work, len(kept))
        else:
            progress.claim(work, stay.bit_count())
            if self._from_mark and self._reference is not None and self._reference.gone is None:
                progress.unsure += len(kept)  # more chunks were partly settled than the mark has room for

    def _left(self, chunk: Chunk) -> tuple[int, bool]:
        """Which records had left the chunk, as bits, and whether the reference does not know the chunk at all."""
        known, gone = self._reference, self._gone.get(chunk.id, 0)
        lane = next((one for one in known.lanes if one.id == chunk.id >> SEQ_BITS), None) if known else None
        if known is None or lane is None:
            return gone, True
        if (by := (chunk.id & _SEQ_MASK) - lane.last_seq) > 0:
            return gone, self._beyond(by) == "new"
        if chunk.id & _SEQ_MASK < lane.head:
            return (1 << len(chunk)) - 1, False
        return gone, False

    def _back(self, chunk: Chunk, left: int, progress: Progress) -> list[int]:
        """Records that had left the chunk for a place that is lost: aside, or among the dead letters."""
        back: list[int] = []
        unlisted = any(n > 0 for n in progress.unlisted.values())
        if not progress.missing and not unlisted:
            return back
        for i in range(len(chunk)):
            if not left >> i & 1 or not chunk.record(i):
                continue
            crc = crc_of(encode_runs((chunk.run(i),)), b"", chunk.record(i))
            if crc in progress.missing:
                progress.missing.remove(crc)
                back.append(i)
            elif unlisted:
                progress.unsure += 1
                back.append(i)
        return back

    def _finish(self, work: Work) -> Damage:
        """What was not found is lost."""
        damage = read_damage(work.conn) or Damage(work.now_ms, self._what)
        progress = _read(work.conn)
        if progress is None:
            return damage
        missing = progress.waiting
        lost = max(0, missing - progress.settled_max)
        at_most = missing + progress.unsure + max(0, progress.accepted_max - progress.new)
        work.ledger["pending"] -= missing
        work.ledger["delivered"] += missing - lost  # they may have been: a lower bound counts no loss that may be none
        work.ledger["lost"] += lost
        work.ledger["lost_at_most"] += at_most
        damage = msgspec.structs.replace(damage, salvaged=progress.salvaged, lost=lost, lost_at_most=at_most, done=True)
        work.conn.execute("DELETE FROM meta WHERE name = 'salvage'")
        _write(work.conn, "damage", damage)
        return damage


_OWN_META: Final = ("instance", "serial", "salvage", "damage", "dead_bytes")


def _is_later(own: Facts, mark: Facts) -> bool:
    return (
        own.serial > mark.serial and own.ledger["accepted"] >= mark.ledger["accepted"] and own.settled >= mark.settled
    )


def _order(position: tuple[str, int]) -> tuple[bool, int]:
    return position[0] == "chunks", position[1]


def _is_whole(chunk: Chunk) -> bool:
    cuts: array[int] = chunk.ends
    return len(cuts) > 0 and list(cuts) == sorted(cuts) and cuts[-1] == len(chunk.body)


def _read(conn: sqlite3.Connection) -> Progress | None:
    row = conn.execute("SELECT value FROM meta WHERE name = 'salvage'").fetchone()
    return msgspec.json.decode(row[0], type=Progress) if row else None


def read_damage(conn: sqlite3.Connection) -> Damage | None:
    row = conn.execute("SELECT value FROM meta WHERE name = 'damage'").fetchone()
    return msgspec.json.decode(row[0], type=Damage) if row else None


def _write(conn: sqlite3.Connection, name: str, value: msgspec.Struct) -> None:
    conn.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, msgspec.json.encode(value).decode()))
