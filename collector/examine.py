"""A buffer's file examined whole, without changing a byte, while a collector writes to it too.

SQLite cannot do that: opening the file would lock it, recover its log and write to it. So its bytes
are read beside whoever holds it, the log is laid over them as SQLite would lay it, and SQLite gets
the result in memory. That is one moment's truth as long as the log did not begin anew meanwhile: a
page that a checkpoint changed under our eyes stands in the log, which is read after the database.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, Literal

import msgspec

from collector import schema, watermark
from collector.chunks import is_sound
from collector.database import recognise
from collector.files import BufferUnusable, beside
from collector.image import LOG_FRAME, LOG_HEADER, checksum
from collector.quarantine import Quarantine, is_ours, look
from collector.salvage import read_damage
from collector.work import PAGE, Damaged

_TRIES: Final = 20
_COPIES: Final = 2.2
"""Times its size is what examining a file takes of memory: our copy, and SQLite's."""

Verdict = Literal["sound", "absent", "damaged", "unusable", "unexamined"]


class Examination(msgspec.Struct, frozen=True):
    """What was found at a buffer's path."""

    verdict: Verdict
    text: str
    advice: str = ""


class Unexamined(Exception):
    """The file could not be looked into; the message says why."""


def examine(path: Path) -> Examination:
    """Look at everything: header, log, pages, indexes, the ledger, every checksum, and the watermark beside it."""
    mark = watermark.read(path)
    try:
        wrong = look(path, mark)
        if wrong is None and (not path.exists() or not path.stat().st_size):
            return Examination("absent", f"{path} is not there yet: the first start makes it")
        if Quarantine(path).interrupted:
            wrong = "it was being put into quarantine"
        if wrong is not None:
            raise Damaged(wrong)
        with closing(_in_memory(path)) as conn:
            return _examined(conn, path, mark)
    except BufferUnusable as error:
        return Examination("unusable", str(error))
    except Unexamined as error:
        return Examination("unexamined", str(error), "stop the collector and run this again")
    except (Damaged, sqlite3.DatabaseError) as error:
        if not is_ours(path):
            return Examination("unusable", f"{path} is no buffer: {error}", "name another file with --buffer")
        advice = f"copy it if it matters; the next start puts it into {Quarantine(path).folder.name}/ and carries over "
        return Examination("damaged", f"{path}: {error}", f"{advice}what can be read")


def _examined(conn: sqlite3.Connection, path: Path, mark: watermark.Facts | None) -> Examination:
    recognise(conn, path)
    schema.migrate(conn)  # of an older release; in memory only
    (sound,) = conn.execute("PRAGMA integrity_check(1)").fetchone()
    if sound != "ok":
        raise Damaged(f"it is not sound ({' '.join(str(sound).split())})")
    facts = watermark.facts_in(conn)
    note = ""
    if mark is not None and facts.instance is not None and facts.instance != mark.instance:
        note, mark = "; the watermark beside it belongs to another file", None
    wrong = watermark.compare(facts, mark) or watermark.gap_in(conn)
    if wrong is None and (spoilt := sum(_spoilt(conn))):
        wrong = f"{spoilt} of its records fail their checksum"
    if wrong is not None:
        raise Damaged(wrong)
    if (earlier := read_damage(conn)) is not None:
        note += f"; {earlier}"
    counts = facts.ledger
    return Examination("sound", f"{path} is sound: {counts['pending']} pending, {counts['dead']} dead{note}")


def _spoilt(conn: sqlite3.Connection) -> Iterator[int]:
    """How many records the rows hold that are not what was once written."""
    for n, crc, runs, ends, body in conn.execute("SELECT n, crc, runs, ends, body FROM chunks"):
        if not is_sound(crc, runs, ends, body):
            yield n
    for table in ("aside", "dead"):
        for crc, runs, body in conn.execute(f"SELECT crc, runs, body FROM {table}"):  # noqa: S608
            if not is_sound(crc, runs, b"", body):
                yield 1


# -- the copy


def _in_memory(path: Path) -> sqlite3.Connection:
    """The database as SQLite would open it now. Raises Unexamined."""
    need, free = int(path.stat().st_size * _COPIES), _memory_available()
    if free is not None and need > free:
        raise Unexamined(f"{path} takes {need >> 20} MiB of memory to examine, of which {free >> 20} MiB are available")
    image = _snapshot(path)
    image[18:20] = b"\x01\x01"  # no log any more: it is laid over already
    conn = sqlite3.connect(":memory:")
    try:
        if not hasattr(conn, "deserialize"):
            raise Unexamined("this Python's SQLite cannot examine a file in memory")
        conn.deserialize(bytes(image))
        conn.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        conn.close()
        raise
    return conn


def _snapshot(path: Path) -> bytearray:
    log = beside(path, "-wal")
    for _ in range(_TRIES):
        before = _bytes_of(log, LOG_HEADER.size)
        database, frames = bytearray(path.read_bytes()), _bytes_of(log)
        if frames[: LOG_HEADER.size] == before == _bytes_of(log, LOG_HEADER.size):
            _lay_over(database, frames)
            return database
    raise Unexamined(f"{path} changes too fast to be examined")


def _bytes_of(file: Path, size: int = -1) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(size)
    except FileNotFoundError:
        return b""


def _lay_over(database: bytearray, log: bytes) -> None:
    """Put the committed pages of a log where they belong, as SQLite does: up to the first frame that is not sound."""
    if len(log) < LOG_HEADER.size:
        return
    magic, *_, salt, other, sum1, sum2 = LOG_HEADER.unpack_from(log)
    big = magic & 1 == 1
    if checksum(log[:24], 0, 0, big) != (sum1, sum2):
        return
    pending: dict[int, int] = {}
    for at in range(LOG_HEADER.size, len(log) - LOG_FRAME.size - PAGE + 1, LOG_FRAME.size + PAGE):
        number, committed, *salts, said1, said2 = LOG_FRAME.unpack_from(log, at)
        start = at + LOG_FRAME.size
        sum1, sum2 = checksum(log[start : start + PAGE], *checksum(log[at : at + 8], sum1, sum2, big), big)
        if salts != [salt, other] or (sum1, sum2) != (said1, said2):
            return
        pending[number] = start
        if not committed:
            continue
        del database[committed * PAGE :]
        database.extend(bytes(committed * PAGE - len(database)))
        for page, where in pending.items():
            if page <= committed:
                database[(page - 1) * PAGE : page * PAGE] = log[where : where + PAGE]
        pending.clear()


def _memory_available() -> int | None:
    """Bytes that can be had without swapping; None where the system does not tell."""
    for line in _bytes_of(Path("/proc/meminfo")).decode("ascii", "replace").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
