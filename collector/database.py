"""The one SQLite connection: how it is opened, and the settings that durability rests on."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import aiosqlite

from collector import schema
from collector.admission import Sizes
from collector.files import BufferUnusable, inherit_nothing
from collector.reserve import SLACK, most_pages
from collector.work import PAGE

Synchronous = Literal["FULL", "NORMAL", "OFF"]

OLDEST = (3, 35, 0)
"""The first SQLite that knows RETURNING. One of the releases that can lose commits to a second connection is no
danger here: there is none."""
_INCREMENTAL = 2
BUSY_TIMEOUT_MS = 5000
"""How long a start waits for a shell or a backup tool that was there first; once we are in, nobody else is."""


class _Connection(sqlite3.Connection):
    """A connection whose `execute` also takes a function, to run it in one hop on aiosqlite's thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        inherit_nothing(self)

    def execute(self, sql: Any, parameters: Any = (), /) -> Any:
        if callable(sql):
            return sql(self)
        return super().execute(sql, parameters)


def require_sqlite(path: Path) -> None:
    """Raises BufferUnusable where the SQLite that Python was built with is too old, before anything is touched."""
    if sqlite3.sqlite_version_info < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BufferUnusable(
            path, f"this Python has SQLite {sqlite3.sqlite_version}, {oldest} is needed. Use a Python with a newer one."
        )


async def connect(path: Path) -> aiosqlite.Connection:
    """A connection on a thread of its own, which takes functions too: see `hop`."""
    return await aiosqlite.connect(path, factory=_Connection, isolation_level=None, cached_statements=256)


async def hop(db: aiosqlite.Connection, unit: Callable[[sqlite3.Connection], Any]) -> None:
    """Run a function on the connection's thread: one hop for a whole transaction, where statements cost one each."""
    await db.execute(cast(str, unit))


def prepare(conn: sqlite3.Connection, sizes: Sizes, synchronous: Synchronous) -> None:
    """Settings in the one order that works. Raises BufferUnusable for a file that is not ours, untouched."""
    conn.execute("PRAGMA locking_mode = EXCLUSIVE")  # before anything touches the WAL: no -shm file, ever
    conn.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    recognise(conn, _path_of(conn))
    if conn.execute("PRAGMA auto_vacuum").fetchone()[0] != _INCREMENTAL:  # a new file: later it is a write, and ignored
        conn.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
    if (mode := conn.execute("PRAGMA journal_mode = WAL").fetchone()[0]) != "wal":
        raise BufferUnusable(_path_of(conn), f"the file system does not allow a write-ahead log (got {mode})")
    conn.execute(f"PRAGMA synchronous = {synchronous}")  # not stored in the file: every start must say it
    wanted = {"OFF": 0, "NORMAL": 1, "FULL": 2}[synchronous]
    if conn.execute("PRAGMA synchronous").fetchone()[0] != wanted:
        raise BufferUnusable(_path_of(conn), f"SQLite did not accept synchronous={synchronous}")
    conn.execute("PRAGMA secure_delete = FAST")  # as cheap as OFF; Debian's ON makes deleting a chunk four times dearer
    conn.execute("PRAGMA temp_store = MEMORY")
    conn.execute("PRAGMA trusted_schema = OFF")
    conn.execute("PRAGMA cell_size_check = ON")
    # three eighths of the cap for what waits to be checkpointed, the rest for one commit: half of it in records
    conn.execute(f"PRAGMA wal_autocheckpoint = {sizes.wal_cap * 3 // 8 // PAGE}")
    conn.execute(f"PRAGMA journal_size_limit = {sizes.wal_cap}")  # a log of a larger cap gets shorter, never below
    pages = conn.execute("PRAGMA page_count").fetchone()[0]
    conn.execute(f"PRAGMA max_page_count = {most_pages(sizes.usable - SLACK, pages)}")


def _path_of(conn: sqlite3.Connection) -> Path:
    return Path(conn.execute("PRAGMA database_list").fetchone()[2])


def recognise(conn: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that is another application's, or a newer release's, with BufferUnusable; touch neither."""
    tables = conn.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    application = conn.execute("PRAGMA application_id").fetchone()[0]
    version = conn.execute("PRAGMA user_version").fetchone()[0]
    if application != schema.APPLICATION_ID and (tables or application or version):
        raise BufferUnusable(path, "it belongs to another application. Name another file with --buffer.")
    if version > schema.newest():
        raise BufferUnusable(
            path,
            f"a newer Tillpost wrote it (schema {version}, this one knows {schema.newest()}). Upgrade Tillpost.",
        )
