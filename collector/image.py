"""The rows of a damaged buffer, read page by page, without SQLite.

SQLite refuses a database whose header is damaged and stops at the first damaged page of a table,
and of a write-ahead log it ignores everything behind the first damaged frame. Here every page and
every frame stands for itself: what cannot be read is passed over. (The formats: "Database File
Format" of SQLite, sections 1.3 to 1.6, 2 and 4.)

Rows are told apart by their columns, which is sound as long as no two tables of `schema` look
alike; whether a row is what was once written is the business of its checksum.
"""

import os
import sqlite3
import struct
import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from collector import schema
from collector.watermark import LEDGER
from collector.work import LANE_BITS, PAGE, SEQ_BITS

_MAP_SPAN: Final = PAGE // 5 + 1
"""A pointer-map page and the pages it describes."""
_FREE_PAGES: Final = (2, 3, 4)
"""Free, and the two sorts of overflow page: no rows of their own."""
ROWID_MAX: Final = 1 << (LANE_BITS + SEQ_BITS)
"""What is above is damage: ids begin at 1, and a chunk's has room for so many lanes."""
_PAYLOAD_MAX: Final = 32 * 1024 * 1024
_DAMAGED: Final = (IndexError, ValueError, struct.error, UnicodeDecodeError)

Row = tuple[Any, ...]


class Image:
    """A database file with what its write-ahead log holds, however damaged. Closed with the object, or by `close`.

    `is_own_log` says by its first salt whether a log belongs to this database.
    """

    def __init__(self, database: Path, log: Path | None, is_own_log: Callable[[int], bool] = lambda _: True) -> None:
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._closing: list[weakref.finalize[..., Image]] = []
        self._database = self._open(database, flags)
        self._log: int | None = None
        self._frames: dict[int, int] = {}
        """Page number to where in the log its latest version stands."""
        self.pages = os.fstat(self._database).st_size // PAGE
        if log is not None:
            with suppress(FileNotFoundError):
                self._log = self._open(log, flags)
        if self._log is not None:
            self._frames, pages = _frames(self._log, is_own_log)
            self.pages = pages or self.pages
        self._map: tuple[int, bytes] = (0, b"")

    def _open(self, path: Path, flags: int) -> int:
        fd = os.open(path, flags)
        self._closing.append(weakref.finalize(self, os.close, fd))
        return fd

    def close(self) -> None:
        for close in self._closing:
            close()

    @property
    def changed(self) -> list[int]:
        """The pages that stand in the log."""
        return sorted(self._frames)

    def page(self, number: int) -> bytes:
        """The latest version of a page; empty where there is none."""
        at = self._frames.get(number)
        if at is not None and self._log is not None:
            return _read(self._log, PAGE, at)
        found = _read(self._database, PAGE, (number - 1) * PAGE)
        return found if len(found) == PAGE else b""

    def rows(self, pages: Collection[int] | range, tables: Collection[str]) -> Iterator[tuple[int, str, Row]]:
        """(page, table, row) of every row of these tables on these pages; a row as SELECT * gives it."""
        for number in pages:
            page = self.page(number)
            at = 100 if number == 1 else 0
            kind = page[at] if page else 0
            # leaves of tables, and both sorts of page of what has no rowid
            if kind not in (0x0D, 0x0A, 0x02) or not self._holds_rows(number):
                continue
            first = at + (12 if kind == 0x02 else 8)
            count = min(int.from_bytes(page[at + 3 : at + 5], "big"), (PAGE - first) // 2)
            for (cell,) in struct.iter_unpack(">H", page[first : first + 2 * count]):
                with suppress(*_DAMAGED):
                    found = self._row(page, kind, cell, tables)
                    if found is not None:
                        yield number, *found

    def _holds_rows(self, number: int) -> bool:
        """Free pages keep what once stood on them: the pointer map tells them from those in use."""
        if number < 3:
            return number == 1
        at = (number - 2) // _MAP_SPAN * _MAP_SPAN + 2
        if self._map[0] != at:
            self._map = at, self.page(at)
        entry = self._map[1][5 * (number - at - 1) :][:1]
        return number != at and (not entry or entry[0] not in _FREE_PAGES)

    def _row(self, page: bytes, kind: int, at: int, tables: Collection[str]) -> tuple[str, Row] | None:
        if kind == 0x02:
            at += 4
        size, at = _varint(page, at)
        rowid: int | None = None
        if kind == 0x0D:
            rowid, at = _varint(page, at)
            if not 0 < rowid < ROWID_MAX:
                raise ValueError("no row of ours has such a number")
        local, spilled = _local(size, kind)
        head, types, start = _types(page, at)
        if start - at != head or head > local:
            raise ValueError("a row's header is not where it should be")
        table = _table(types, rowid is not None, page, start)
        if table is None or table not in tables:
            return None
        payload = page[at : at + local]
        if spilled:
            payload += self._overflow(int.from_bytes(page[at + local : at + local + 4], "big"), size - local)
        values = list(_values(types, payload, head))
        if values[0] is None:
            values[0] = rowid
        return table, tuple(values)

    def _overflow(self, number: int, left: int) -> bytes:
        parts: list[bytes] = []
        while left:
            page = self.page(number) if number else b""
            if not page:
                raise ValueError("a row's end is missing")
            number = int.from_bytes(page[:4], "big")
            parts.append(page[4 : 4 + left])
            left -= len(parts[-1])
        return b"".join(parts)


def _local(size: int, kind: int) -> tuple[int, bool]:
    """How many bytes of a row stand on its own page, and whether there are more."""
    if size > _PAYLOAD_MAX:
        raise ValueError("no row is that large")
    most = PAGE - 35 if kind == 0x0D else (PAGE - 12) * 64 // 255 - 23
    if size <= most:
        return size, False
    least = (PAGE - 12) * 32 // 255 - 23
    local = least + (size - least) % (PAGE - 4)
    return (local if local <= most else least), True


def _types(page: bytes, at: int) -> tuple[int, list[int], int]:
    """A row's header: its length, the serial type of each column, and where the values begin."""
    start = at
    head, at = _varint(page, at)
    if not 0 < head < 100:
        raise ValueError("no row of ours has such a header")
    types: list[int] = []
    while at < start + head:
        kind, at = _varint(page, at)
        types.append(kind)
    return head, types, at


@cache
def _shapes() -> dict[tuple[bool, str], str]:
    """Tables by whether they have a rowid and by their columns: i for integer or null, t for text, b for blob."""
    with closing(sqlite3.connect(":memory:")) as conn:
        schema.migrate(conn)
        found = {(True, "ti"): "sqlite_sequence"}
        for table, sql in conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = conn.execute(f"PRAGMA table_info({table})").fetchall()
            shape = "".join({"TEXT": "t", "BLOB": "b"}.get(column[2], "i") for column in columns)
            found["WITHOUT ROWID" not in sql, shape] = table
        return found


def _table(types: list[int], has_rowid: bool, page: bytes, at: int) -> str | None:
    """Which table has such columns."""
    shape = "".join(map(_letter, types))
    if not has_rowid and len(shape) == 2 and shape[0] == "t":
        return "ledger" if page[at : at + _length(types[0])].decode("ascii", "replace") in LEDGER else "meta"
    return _shapes().get((has_rowid, shape))


def _letter(kind: int) -> str:
    if kind < 12:
        return "i"
    return "b" if kind % 2 == 0 else "t"


def _length(kind: int) -> int:
    return (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[kind] if kind < 10 else (kind - 12) // 2


def _values(types: list[int], payload: bytes, at: int) -> Iterator[Any]:
    for kind in types:
        size = _length(kind)
        value = payload[at : at + size]
        at += size
        if len(value) != size:
            raise ValueError("a row is cut short")
        if kind == 0:
            yield None
        elif kind == 7:
            yield struct.unpack(">d", value)[0]
        elif kind in (8, 9):
            yield kind - 8
        elif kind < 12:
            yield int.from_bytes(value, "big", signed=True)
        else:
            yield value if kind % 2 == 0 else value.decode("utf-8")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = data[at + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    return value << 8 | data[at + 8], at + 9


def _read(fd: int, size: int, at: int) -> bytes:
    os.lseek(fd, at, os.SEEK_SET)
    return os.read(fd, size)


# -- the write-ahead log

LOG_HEADER: Final = struct.Struct(">8I")
LOG_FRAME: Final = struct.Struct(">6I")


def _frames(fd: int, is_own: Callable[[int], bool]) -> tuple[dict[int, int], int]:
    """Where the latest committed version of each page stands, and how many pages the database has; 0: unknown.

    Each frame carries the running checksum of all before it. Judged against the one its
    predecessor *says*, a damaged frame spoils itself and at most the next one, not the rest.
    """
    header = _read(fd, LOG_HEADER.size, 0)
    if len(header) < LOG_HEADER.size:
        return {}, 0
    magic, *_, salt, other, sum1, sum2 = LOG_HEADER.unpack(header)
    big = magic & 1 == 1
    if checksum(header[:24], 0, 0, big) != (sum1, sum2) or not is_own(salt):
        salt, other = _salts(fd, is_own)
    latest: dict[int, int] = {}
    transaction: dict[int, int] = {}
    pages = 0
    at = LOG_HEADER.size
    while len(frame := _read(fd, LOG_FRAME.size + PAGE, at)) == LOG_FRAME.size + PAGE:
        number, committed, *salts, said1, said2 = LOG_FRAME.unpack_from(frame)
        if salts == [salt, other]:
            sums = checksum(frame[:8], sum1, sum2, big)
            if checksum(frame[LOG_FRAME.size :], *sums, big) == (said1, said2):
                transaction[number] = at + LOG_FRAME.size
            if committed:
                latest |= transaction
                transaction = {}
                pages = committed
        sum1, sum2 = said1, said2
        at += LOG_FRAME.size + PAGE
    return latest, pages


def _salts(fd: int, is_own: Callable[[int], bool]) -> tuple[int, int]:
    """The log's salts by what most of its first frames say; a salt no frame has where there are none."""
    seen: Counter[tuple[int, int]] = Counter()
    for i in range(64):
        frame = _read(fd, LOG_FRAME.size, LOG_HEADER.size + i * (LOG_FRAME.size + PAGE))
        if len(frame) == LOG_FRAME.size:
            salts = LOG_FRAME.unpack(frame)[2:4]
            if salts != (0, 0) and is_own(salts[0]):
                seen[salts[0], salts[1]] += 1
    return seen.most_common(1)[0][0] if seen else (-1, -1)


def checksum(data: bytes, first: int, second: int, big: bool) -> tuple[int, int]:
    """SQLite's running checksum of a write-ahead log, carried on over `data`."""
    words = array("I", data)
    if big != (struct.pack("=H", 1) == struct.pack(">H", 1)):
        words.byteswap()
    pairs = iter(words)
    for one, two in zip(pairs, pairs, strict=True):
        first = first + one + second & 0xFFFFFFFF
        second = second + two + first & 0xFFFFFFFF
    return first, second
