"""The watermark: ``<buffer>.mark``, which remembers outside the buffer what the buffer held.

A database that lost the end of its log opens without complaint: SQLite finds a sound, older
state. Only something outside the file can tell that acknowledged records are gone, and how many.

Three checksummed slots. Every commit writes the facts into the working slot, into the page cache
only; about once a second while there is traffic that slot is synced and the next one becomes the
working one. So at any moment one slot is on the disk whole, one may be on its way and one is being
written: no power cut can tear them all. Nobody who waits for an acknowledgement waits for a sync
here, but for the rare commit that would pass the ceilings below.

What the mark says is *current* after a clean close, and after any end of the process alone (the
page cache outlives it; the boot id tells). After a power cut it may be behind by what one period
accepted and settled; how much that can be at most it promises beforehand, in `accepted_max` and
`settled_max`. A missing or damaged mark is no error: then the file's own ledger is all there is.
"""

import os
import sqlite3
import threading
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from collector.files import beside, close_in_child, keep_in_child
from collector.kinds import KINDS
from collector.logs import logger
from collector.work import LANE_BITS, SEQ_BITS, Damaged, LaneState, Work, unsoundness

log = logger("buffer")

SLOTS: Final = 3
SLOT_BYTES: Final = 16_384
SYNC_EVERY_S: Final = 1.0
GONE_MAX, ROWS_MAX = 32, 128
"""How many partly settled chunks, and how many records aside and dead letters, are listed one by one."""
PROMISE: Final = 1000
"""The least a period may accept or settle without another sync."""

_MAGIC: Final = b"TPMARK1\n"
_SEQ_MASK: Final = (1 << SEQ_BITS) - 1
LEDGER: Final = ("accepted", "delivered", "pending", "dead", "discarded", "superseded", "lost", "lost_at_most")


class LaneFacts(msgspec.Struct, frozen=True, array_like=True):
    """One lane as committed."""

    id: int
    kind: str
    identifier: str
    priority: str
    last_seq: int
    head: int
    """Every chunk of a lower number has left the lane."""
    pending: int
    aside: int
    bytes: int


class Facts(msgspec.Struct, kw_only=True):
    """What a buffer holds, in short: read from the file itself, or remembered in the mark."""

    instance: str | None = None
    """Names the file; another one after a fresh start."""
    serial: int = 0
    """Commits so far: which of two states is the later one."""
    ledger: dict[str, int] = {}
    lanes: list[LaneFacts] = []
    gone: dict[int, bytes] | None = None
    """The table ``gone``; None where it has more rows than are remembered."""
    aside: list[tuple[int, int]] = []
    """The latest rows of ``aside``: id and checksum of the record, which is the same in whatever table it stands."""
    dead: list[tuple[int, int]] = []
    last_aside: int = 0
    last_dead: int = 0
    salvaging: int = 0
    """Pending records that still wait in a quarantined file."""
    boot: str = ""
    clean: bool = False
    wal: int | None = None
    """The first salt of the file's write-ahead log: tells it from another file's. None: there need not be any."""
    accepted_max: int = 0
    settled_max: int = 0

    @property
    def settled(self) -> int:
        return self.ledger["delivered"] + self.ledger["discarded"]

    @property
    def kept(self) -> int:
        """Records the buffer still holds, whatever their state."""
        return self.ledger["pending"] + self.ledger["dead"] + self.ledger["superseded"]

    @property
    def may_have_accepted(self) -> bool:
        """Whether the buffer ever took a record, as far as a mark can know."""
        return bool(self.ledger["accepted"]) or not self.clean

    def contradiction(self) -> str | None:
        """What in these facts cannot be; None where they fit together."""
        counts = self.ledger
        if any(name not in counts or counts[name] < 0 for name in LEDGER):
            return "its ledger is not readable"
        if counts["accepted"] != self.settled + self.kept + counts["lost"]:
            return "its ledger does not add up"
        if counts["pending"] != sum(lane.pending for lane in self.lanes) + self.salvaging:
            return "its lanes and its ledger disagree"
        if any(
            lane.kind not in KINDS or lane.priority not in ("live", "bulk")
            or not (0 < lane.id < 1 << LANE_BITS and 0 <= lane.last_seq < 1 << SEQ_BITS)
            for lane in self.lanes
        ):  # fmt: skip
            return "a lane is none of ours"
        if any(
            not 0 <= lane.aside <= lane.pending or (lane.head <= lane.last_seq) != (lane.pending > lane.aside)
            for lane in self.lanes
        ):
            return "a lane's counts and its records disagree"
        return None


def introduce(conn: sqlite3.Connection) -> None:
    """Give a new file its name, and begin to count its commits."""
    conn.execute("INSERT INTO meta (name, value) VALUES ('instance', ?), ('serial', 0)", (uuid.uuid4().hex,))


def touch(conn: sqlite3.Connection) -> None:
    """Commit, and thereby sync the log and everything in it; a log that was empty gets its header."""
    # an UPDATE that changes nothing writes nothing: SQLite compares first. The header it writes as it is told
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    conn.execute(f"PRAGMA user_version = {version}")


def facts_in(conn: sqlite3.Connection) -> Facts:
    """The facts of an open buffer. Raises Damaged where what is stored cannot be."""
    try:
        return _facts_in(conn)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise Damaged(f"its counts are not readable ({error})") from error


def _facts_in(conn: sqlite3.Connection) -> Facts:
    meta = dict(conn.execute("SELECT name, value FROM meta WHERE name IN ('instance', 'serial', 'salvage')").fetchall())
    lanes = []
    rows = conn.execute("SELECT id, kind, identifier, priority, last_seq, pending, aside, bytes FROM lanes ORDER BY id")
    for lane_id, kind, identifier, priority, last_seq, *numbers in rows.fetchall():
        if _end(conn, lane_id, "DESC", 0) > last_seq:
            raise ValueError("a lane holds more than it ever took")
        head = _end(conn, lane_id, "ASC", last_seq + 1)
        lanes.append(LaneFacts(lane_id, kind, identifier, priority, last_seq, head, *numbers))
    facts = Facts(
        instance=meta.get("instance"),
        serial=meta.get("serial", 0),
        ledger=dict(conn.execute("SELECT name, n FROM ledger").fetchall()),
        lanes=lanes,
        salvaging=msgspec.json.decode(meta["salvage"])["waiting"] if "salvage" in meta else 0,
    )
    _list_rows(conn, facts, aside=True, dead=True)
    return msgspec.convert(msgspec.to_builtins(facts, builtin_types=(bytes,)), Facts)


def gap_in(conn: sqlite3.Connection) -> str | None:
    """What an open buffer lacks of the rows it counts; None where all are there. Reads the whole file."""
    if (wrong := unsoundness(conn)) is not None:
        return wrong
    held: Counter[int] = Counter()
    for chunk, n, bits in conn.execute("SELECT id, n, bits FROM chunks LEFT JOIN gone ON chunk = id"):
        held[chunk >> SEQ_BITS] += n - int.from_bytes(bits or b"", "little").bit_count()
    aside = Counter(dict(conn.execute("SELECT lane, count(*) FROM aside GROUP BY lane").fetchall()))
    for lane, pending, n in conn.execute("SELECT id, pending, aside FROM lanes").fetchall():
        if (held[lane] + n, aside[lane]) != (pending, n):
            return "records that it counts are not in it"
    kept = dict(conn.execute("SELECT superseded, count(*) FROM dead GROUP BY superseded").fetchall())
    counts = dict(conn.execute("SELECT name, n FROM ledger WHERE name IN ('dead', 'superseded')").fetchall())
    if (kept.get(0, 0), kept.get(1, 0)) != (counts["dead"], counts["superseded"]):
        return "dead letters that it counts are not in it"
    return None


def _end(conn: sqlite3.Connection, lane_id: int, order: str, none: int) -> int:
    """The number of a lane's first or last chunk."""
    row = conn.execute(
        f"SELECT id FROM chunks WHERE id >= ? AND id < ? ORDER BY id {order} LIMIT 1",  # noqa: S608
        (lane_id << SEQ_BITS, (lane_id + 1) << SEQ_BITS),
    ).fetchone()
    return row[0] & _SEQ_MASK if row else none


def _list_rows(conn: sqlite3.Connection, facts: Facts, *, aside: bool, dead: bool) -> None:
    gone = conn.execute("SELECT chunk, bits FROM gone ORDER BY chunk LIMIT ?", (GONE_MAX + 1,)).fetchall()
    facts.gone = dict(gone) if len(gone) <= GONE_MAX else None
    facts.aside = _latest(conn, "aside") if aside else []
    facts.dead = _latest(conn, "dead") if dead else []
    if aside or dead:
        last = dict(conn.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
        facts.last_aside, facts.last_dead = last.get("aside", 0), last.get("dead", 0)


def _latest(conn: sqlite3.Connection, table: str) -> list[tuple[int, int]]:
    return conn.execute(f"SELECT id, crc FROM {table} ORDER BY id DESC LIMIT ?", (ROWS_MAX,)).fetchall()  # noqa: S608


def read(buffer: Path) -> Facts | None:
    """What the mark beside a buffer remembers; None where there is none, or none that can be read."""
    return _best(beside(buffer, ".mark"))[2]


def _best(mark: Path) -> tuple[int, int, Facts | None]:
    """The latest generation, the slot it stands in and its facts."""
    try:
        content = mark.read_bytes()
    except OSError:
        return 0, 0, None
    slots = [content[i * SLOT_BYTES : (i + 1) * SLOT_BYTES] for i in range(SLOTS)]
    found = [(i, _decode(slot)) for i, slot in enumerate(slots)]
    whole = [(one[0], i, one[1]) for i, one in found if one is not None]
    generation, at, facts = max(whole, key=lambda one: one[0], default=(0, 0, None))
    if facts is not None and any(one is None and any(slots[i]) for i, one in found):
        # torn by a kill, or damaged: it may have been the latest, and this one is not current then
        facts = msgspec.structs.replace(facts, clean=False, boot="")
    return generation, at, facts


def _encode(generation: int, facts: Facts) -> bytes:
    body = msgspec.msgpack.encode((generation, facts))
    return _MAGIC + len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


def _decode(slot: bytes) -> tuple[int, Facts] | None:
    size, crc = int.from_bytes(slot[8:12], "little"), int.from_bytes(slot[12:16], "little")
    body = slot[16 : 16 + size]
    if slot[:8] != _MAGIC or len(body) != size or zlib.crc32(body) != crc:
        return None
    try:
        return msgspec.msgpack.decode(body, type=tuple[int, Facts])
    except msgspec.MsgspecError:
        return None


class Watermark:
    """The mark of an open buffer. `note` and `promise` belong to the connection's thread, `sync` to any."""

    def __init__(self, buffer: Path, boot: str) -> None:
        self._path = beside(buffer, ".mark")
        self._wal_path = beside(buffer, "-wal")
        self._expects_no_log = False
        self._boot = boot
        self._facts = Facts()
        self._heads: dict[int, int] = {}
        self._generation = 0
        self._working = 0
        self._synced = (0, 0)
        self._fd: int | None = None
        self._wal: int | None = None
        self._noted = threading.Lock()
        self._syncing = threading.Lock()
        self.unsynced = False
        """Whether there is anything to sync."""

    @property
    def facts(self) -> Facts:
        """As last noted."""
        return self._facts

    def take_up(self, facts: Facts) -> None:
        """Carry on the mark of an earlier run, synced, before anything is written: the log may begin anew now.

        It says no more than it said: what was found of that run may yet be in the page cache only.
        """
        self._begin(msgspec.structs.replace(facts, clean=False), expects_no_log=True)

    def start(self, facts: Facts) -> None:
        """Remember an open buffer, synced: whatever ends without a close is not called clean."""
        facts.boot = self._boot
        self._begin(facts, expects_no_log=False)

    def _begin(self, facts: Facts, *, expects_no_log: bool) -> None:
        self._expects_no_log = expects_no_log
        self._facts = facts
        self._heads = {lane.id: lane.head for lane in facts.lanes}
        self._synced = (facts.ledger["accepted"], facts.settled)
        self._generation, slot, _ = _best(self._path)
        self._working = (slot + 1) % SLOTS
        self.unsynced = True
        self.sync()

    def note(self, work: Work, ledger: Mapping[str, int]) -> None:
        """Remember what a commit left behind; `ledger` as it was before."""
        before = self._facts
        held = {lane.id for lane in before.lanes if lane.head <= lane.last_seq}
        lanes = []
        for state in sorted(work.all_lanes(), key=lambda state: state.id):
            # what only grew begins where it began
            if state.lane in work.lanes and not (work.only_adds and state.id in held):
                self._heads[state.id] = _end(work.conn, state.id, "ASC", state.last_seq + 1)
            lanes.append(_lane_facts(state, self._heads.get(state.id, state.last_seq + 1)))
        counts = {name: n + work.ledger.get(name, 0) for name, n in ledger.items()}
        facts = Facts(
            instance=before.instance,
            serial=before.serial + 1,
            ledger=counts,
            lanes=lanes,
            salvaging=counts["pending"] - sum(lane.pending for lane in lanes),
            last_aside=before.last_aside,
            last_dead=before.last_dead,
            boot=self._boot,
        )
        if work.only_adds:
            facts.gone, facts.aside, facts.dead = before.gone, before.aside, before.dead
        else:
            _list_rows(
                work.conn, facts, aside=any(lane.aside for lane in lanes),
                dead=bool(counts["dead"] + counts["superseded"]),
            )  # fmt: skip
        self._remember(facts)

    def promise(self, ledger: Mapping[str, int], changes: Mapping[str, int]) -> None:
        """Call before a commit: sees to it that the mark on the disk allows for what the commit accepts and settles."""
        accepted = ledger["accepted"] + changes.get("accepted", 0)
        settled = sum(ledger[name] + changes.get(name, 0) for name in ("delivered", "discarded"))
        if accepted > self._facts.accepted_max or settled > self._facts.settled_max:
            self._raise_ceilings(accepted, settled)
            self._remember(self._facts)
            self.sync()

    def sync(self) -> None:
        """Bring what was noted to the disk; nothing when it is there."""
        with self._syncing:
            if not self.unsynced or (self._fd is None and not self._create()):
                return
            with self._noted:
                facts, fd = self._facts, self._fd
                self._raise_ceilings(facts.ledger["accepted"], facts.settled)
                self._synced = (facts.ledger["accepted"], facts.settled)
                self._write()
                self._working = (self._working + 1) % SLOTS
                self.unsynced = False
            if fd is not None:
                self._guard(lambda: os.fdatasync(fd) if hasattr(os, "fdatasync") else os.fsync(fd))

    def close(self, *, clean: bool) -> None:
        """Let go of the mark; `clean`: the buffer was closed and holds exactly what was noted."""
        self._expects_no_log = False
        with self._noted:
            self._facts.clean = clean
            self._drop_log()
        self.unsynced = True
        self.sync()
        self._drop()

    def release(self) -> None:
        """Let go of the mark, until the next `start`. Before the database is closed, which takes the log away."""
        if self._fd is not None:
            self.part_with_log()
        with self._syncing:
            self._drop()

    def part_with_log(self) -> None:
        """Say, synced, that there need not be a log: call before it is taken away or wiped."""
        with self._noted:
            self._expects_no_log = True
            self.unsynced = True
        self.sync()

    def expect_log(self) -> None:
        """From now on the log is what it says it is."""
        self._expects_no_log = False

    # -- slots

    def _raise_ceilings(self, accepted: int, settled: int) -> None:
        """Room for four times what came since the last sync: traffic that grows gets room that grows."""
        facts = self._facts
        facts.accepted_max = max(facts.accepted_max, accepted + max(PROMISE, 4 * (accepted - self._synced[0])))
        facts.settled_max = max(facts.settled_max, settled + max(PROMISE, 4 * (settled - self._synced[1])))

    def _remember(self, facts: Facts) -> None:
        with self._noted:
            facts.accepted_max = max(facts.accepted_max, self._facts.accepted_max)
            facts.settled_max = max(facts.settled_max, self._facts.settled_max)
            self._facts = facts
            self._write()
            self.unsynced = True

    def _write(self) -> None:
        fd = self._fd
        if fd is None:
            return
        facts = self._facts
        facts.wal = self._salt()
        self._generation += 1
        slot = _encode(self._generation, facts)
        if len(slot) > SLOT_BYTES:
            slot = _encode(self._generation, msgspec.structs.replace(facts, gone=None, aside=[], dead=[]))
        self._guard(lambda: _write_at(fd, slot, self._working * SLOT_BYTES))

    def _guard(self, write: Callable[[], object]) -> None:
        """A mark that cannot be written is taken away: none is better than one that is behind unawares."""
        try:
            write()
        except OSError as error:
            log.warning("mark_not_written", error=error.strerror)
            self._drop()
            with suppress(OSError):
                self._path.unlink()

    def _create(self) -> bool:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            fd = os.open(self._path, flags, 0o600)
        except OSError as error:
            log.warning("mark_not_written", error=error.strerror)
            return False
        try:
            missing = SLOTS * SLOT_BYTES - os.fstat(fd).st_size
            if missing > 0:  # blocks of its own, so that a full disk does not stop it
                _write_at(fd, bytes(missing), SLOTS * SLOT_BYTES - missing)
        except OSError as error:
            log.warning("mark_not_written", error=error.strerror)
            os.close(fd)
            return False
        self._fd = fd
        close_in_child(fd)
        return True

    def _salt(self) -> int | None:
        """The first salt of the write-ahead log; None while there is none."""
        if self._expects_no_log:
            return None
        if self._wal is None:
            try:
                self._wal = os.open(self._wal_path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError:
                return None
            close_in_child(self._wal)
        try:
            return int.from_bytes(_read_at(self._wal, 4, 16), "big") or None
        except OSError:
            return None

    def _drop_log(self) -> None:
        if self._wal is not None:
            keep_in_child(self._wal)
            os.close(self._wal)
            self._wal = None

    def _drop(self) -> None:
        self._drop_log()
        if self._fd is not None:
            keep_in_child(self._fd)
            os.close(self._fd)
            self._fd = None


def _write_at(fd: int, data: bytes, at: int) -> None:
    if hasattr(os, "pwrite"):
        os.pwrite(fd, data, at)
    else:
        os.lseek(fd, at, os.SEEK_SET)
        os.write(fd, data)


def _read_at(fd: int, size: int, at: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, size, at)
    os.lseek(fd, at, os.SEEK_SET)
    return os.read(fd, size)


def _lane_facts(state: LaneState, head: int) -> LaneFacts:
    lane = state.lane
    return LaneFacts(
        state.id, lane.kind, lane.identifier, lane.priority, state.last_seq, head, state.pending, state.aside,
        state.bytes,
    )  # fmt: skip


def is_current(mark: Facts, boot: str) -> bool:
    """Whether nothing can have happened to the buffer after the mark was written."""
    return mark.clean or mark.boot == boot


def compare(facts: Facts, mark: Facts | None) -> str | None:
    """What is wrong with an open buffer, by itself and beside its mark; None where it may be trusted."""
    wrong = facts.contradiction()
    if wrong is not None or mark is None:
        return wrong
    if facts.instance is None:
        return "what was acknowledged is not in it" if mark.may_have_accepted else None
    if facts.instance != mark.instance:
        log.warning("mark_of_another_buffer", what="the file beside it was replaced: the mark is not used")
        return None
    if facts.serial < mark.serial:
        return f"it is {mark.serial - facts.serial} commits behind what was acknowledged"
    if facts.serial == mark.serial and any(
        getattr(facts, name) != getattr(mark, name) for name in ("ledger", "lanes", "gone", "aside", "dead")
    ):
        return "its counts differ from those acknowledged"
    return None
