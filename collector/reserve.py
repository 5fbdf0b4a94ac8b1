"""Room kept for settling on a full disk.

Deleting rows needs room too: a store-and-forward buffer that fills the disk could not even
drain. So a write-ahead log at its cap and a ballast file as large lie ready (guarantee G7).

- Ingest is refused by arithmetic: what the log holds must fit into the database file, or the
  log could not be emptied and used again.
- Where somebody else takes the last byte all the same, the ballast is let go for what the log
  holds, which is never more. Settling then goes round in the blocks of the log.
- A clean stop deletes the log. On a full disk the ballast becomes the log of the next start:
  renamed, so that nobody else can have its blocks in between.
- When space returns the ballast is laid down first, then ingest goes on.

Does not hold on copy-on-write file systems, where overwriting needs new blocks.
"""

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from collector.admission import Sizes
from collector.files import beside
from collector.logs import logger
from collector.work import PAGE, pages_of

log = logger("buffer")

SLACK: Final = 64 * 1024
"""For the small files beside the buffer, and for what counting in pages misses."""
RETURN: Final = 0.8
"""The ballast's share, once lent to the file, is taken back when no more than this of the file's own is used."""
_REFUSED: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Reserve:
    """The ballast beside a buffer, and the blocks of its write-ahead log. Knows how things stand on the disk."""

    def __init__(self, buffer: Path, sizes: Sizes) -> None:
        self._buffer = buffer
        self._folder = buffer.parent
        self._ballast = beside(buffer, ".ballast")
        self._log = beside(buffer, "-wal")
        self._share = sizes.usable - SLACK
        """Bytes the database file may have."""
        self.size = sizes.wal_cap
        """Bytes of the ballast, and of the write-ahead log at its cap."""
        self.tight = False
        """The disk is full: only settling goes on."""
        self.over = False
        """The file is larger than its share, and can be made shorter."""
        self._low = False
        """There is so little room that the log must be emptied after every commit."""
        self._is_held = _size_of(self._ballast) >= self.size
        """The ballast is there, whole."""
        self._is_grown = False
        """The log has all its blocks."""
        self._spent = False
        """The ballast was let go and is not laid down again yet."""
        self._is_lent = False
        """The file may grow into the ballast's share."""
        self._counted: tuple[int, int] | None = None
        """Pages of the file and free ones among them, as the last transaction left them; None: not known."""
        self._errno: int | None = None
        """Why the ballast could not be laid down the last time."""

    # -- opening ------------------------------------------------------------------------------

    def before_open(self) -> None:
        """On a full disk, or one without inodes, let the ballast be the log that opening would have to write."""
        if self._log.exists() or not _size_of(self._buffer) or not self._is_held:
            return
        if free_bytes(self._buffer.parent) < self.size or _free_inodes(self._buffer.parent) < 2:
            with suppress(OSError):
                self._ballast.rename(self._log)
                self._give_up("the disk is full: the ballast is the write-ahead log now")

    def after_open(self, conn: sqlite3.Connection) -> None:
        """Give the log all the blocks it may ever need, then lay down the ballast: as far as there is room."""
        # never done to the database itself: closing a descriptor of it would drop SQLite's locks
        with suppress(OSError):  # without blocks of its own the log grows as any file does
            _allocate(self._log, self.size)
        self._is_grown = _size_of(self._log) >= self.size
        self.forget()
        if _size_of(self._ballast) > self.size:  # of a larger cap
            with suppress(OSError):
                os.truncate(self._ballast, self.size)
        self.look(conn)

    # -- with every commit --------------------------------------------------------------------

    def look(self, conn: sqlite3.Connection, size: int = 0) -> int:
        """See whether so many bytes of records may come in, with room left for what the log holds already.

        Returns how many bytes of pages are in use.
        """
        if self._counted is None:
            self.count(conn)
        pages, free = self._counted or (0, 0)
        if not self._is_held or self._spent:
            self._build(conn, pages, pages - free)
        cost = size + size // 16 if self._is_grown else 3 * size
        room = free_bytes(self._folder) - SLACK - (self.size if self._spent else 0)
        if room - pages * PAGE < self.size + cost:  # else it does not matter how much of the file is there yet
            room -= max(0, pages * PAGE - _size_of(self._buffer))
        was_tight, self.tight = self.tight, room < cost
        self._low = room < self.size + cost
        self.over = pages * PAGE > self._share and free > 0
        if self.tight != was_tight:
            log.warning("disk_full" if self.tight else "disk_has_room", room=room)
        return int((pages - free) * PAGE)

    def count(self, conn: sqlite3.Connection) -> int:
        """Count the file's pages, as a transaction leaves them; how many bytes of them are in use."""
        self._counted = pages, free = pages_of(conn)
        return (pages - free) * PAGE

    def forget(self) -> None:
        """The file is, or may be, another length than it was counted."""
        self._counted = None

    def after_commit(self, conn: sqlite3.Connection) -> None:
        """Where room is short see to it that the log can be used again; shorten a file that is too long."""
        if self._low:
            self.relieve(conn)
        if self.over:
            self.shrink(conn)

    def relieve(self, conn: sqlite3.Connection) -> None:
        """Empty the log into the file, so that its blocks serve again; for that alone the ballast is let go."""
        self.forget()
        if checkpoint(conn):
            return
        if self._is_held:
            self._let_go()
            if checkpoint(conn):
                return
        # somebody else has those blocks already: make do with the ones the file has
        _shorten(conn, _size_of(self._buffer))
        checkpoint(conn)

    def make_room(self, conn: sqlite3.Connection) -> None:
        """After SQLITE_FULL: for settling, whether it is the disk that has no room or the file within its bound."""
        self.relieve(conn)
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
        if free_bytes(self._buffer.parent) > SLACK and not self._is_lent:
            # what is set aside or buried may need more than the last percents: the ballast's share
            self._let_go()
            self._is_lent = True
            conn.execute(f"PRAGMA max_page_count = {most_pages(self._share, pages) + self.size // PAGE}")
        self.tight = True

    def shrink(self, conn: sqlite3.Connection) -> None:
        """One step towards the file's share of `max_size`; `over` says whether there is more to do."""
        self.forget()
        self.over = False
        cut = _shorten(conn, self._share, self.size // 8)
        checkpoint(conn)
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
        self.over = cut > 0 and pages * PAGE > self._share
        if not self._is_lent:
            conn.execute(f"PRAGMA max_page_count = {most_pages(self._share, pages)}")

    def scrub(self, conn: sqlite3.Connection, before_wiping: Callable[[], None]) -> None:
        """Leave nothing of what was deleted: neither in free pages nor in the log."""
        self.forget()
        while _shorten(conn, 0, self.size // 8) and checkpoint(conn):
            pass
        if checkpoint(conn):
            before_wiping()
            self._wipe_log()
        else:
            log.warning("log_not_wiped", why="the disk is full; it will be overwritten in time")

    # -- the ballast --------------------------------------------------------------------------

    def _give_up(self, why: str) -> None:
        if not self._spent:
            log.warning("reserve_released", why=why)
        self._spent, self._is_held = True, False

    def _let_go(self) -> None:
        with suppress(OSError):
            self._ballast.unlink()
        self._give_up("room is needed for settling")

    def _build(self, conn: sqlite3.Connection, pages: int, used: int) -> None:
        """Lay the ballast down, if that leaves the disk some room and the file does not need its share."""
        if pages * PAGE > self._share or (self._is_lent and used * PAGE > RETURN * self._share):
            return
        if not self._is_held:
            if free_bytes(self._buffer.parent) < self.size + self.size // 4 + SLACK:
                return
            try:
                _allocate(self._ballast, self.size)
            except OSError as error:
                if error.errno != self._errno:
                    log.warning("reserve_not_built", error=error.strerror)
                    self._errno = error.errno
                with suppress(OSError):
                    self._ballast.unlink()
                return
            self._is_held = True
        if self._is_lent:
            conn.execute(f"PRAGMA max_page_count = {most_pages(self._share, pages)}")
        self._spent = self._is_lent = False
        self._errno = None

    def is_refused(self) -> bool:
        """Whether the disk has nothing more for us. Asked by trying: a quota shows in no figure."""
        try:
            fd = os.open(self._ballast, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            return error.errno in _REFUSED
        before = os.fstat(fd).st_size
        try:
            _extend(fd, before + SLACK)
        except OSError as error:
            return error.errno in _REFUSED
        finally:
            with suppress(OSError):
                os.ftruncate(fd, before)
            os.close(fd)
            if not before:
                with suppress(OSError):
                    self._ballast.unlink()
        return False

    def _wipe_log(self) -> None:
        """Overwrite the log, whose content is in the file by now. Truncating it would give its blocks away."""
        with suppress(FileNotFoundError), self._log.open("r+b") as file:
            for at in range(0, _size_of(self._log), 1 << 20):
                file.write(bytes(min(1 << 20, _size_of(self._log) - at)))
            file.flush()
            os.fsync(file.fileno())


def checkpoint(conn: sqlite3.Connection) -> bool:
    """Bring what the log holds into the database file; True if all of it is there."""
    try:
        _, logged, done = conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except sqlite3.Error:
        return False
    return bool(logged == done)


def _shorten(conn: sqlite3.Connection, size: int, at_most: int = 1 << 62) -> int:
    """Cut free pages off the file towards `size` bytes, `at_most` bytes of them; how many pages went.

    Outside a transaction, and through `executescript`: `execute` steps only once, which frees a single page.
    """
    (pages,) = conn.execute("PRAGMA page_count").fetchone()
    wanted = min(pages - size // PAGE, max(1, at_most // PAGE))
    if wanted <= 0:
        return 0
    with suppress(sqlite3.Error):  # a full disk: what could not be cut off stays
        conn.executescript(f"PRAGMA incremental_vacuum({wanted})")
    return int(pages - conn.execute("PRAGMA page_count").fetchone()[0])


def most_pages(share: int, pages: int) -> int:
    """The file's bound. Where the cap was lowered below what the file holds, settles must still get through."""
    return share // PAGE if pages * PAGE <= share else pages + 64


def free_bytes(folder: Path) -> int:
    """What the file system still has for us."""
    if not hasattr(os, "statvfs"):
        return 1 << 62
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _size_of(path: Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116  with every commit, and Path.stat costs twice as much
    except (FileNotFoundError, NotADirectoryError):  # the lock that is taken next says what is in the way
        return 0


def _free_inodes(folder: Path) -> int:
    if not hasattr(os, "statvfs"):
        return 1 << 62
    found = os.statvfs(folder)
    return found.f_favail if found.f_files else 1 << 62  # some file systems make them as needed and count none


def _allocate(path: Path, size: int) -> None:
    """Make the file at least `size` bytes long, every block its own. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size < size:
            _extend(fd, size)
    finally:
        os.close(fd)


def _extend(fd: int, size: int) -> None:
    start = os.fstat(fd).st_size
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, start, size - start)
        return
    os.lseek(fd, start, os.SEEK_SET)
    for at in range(start, size, 1 << 20):
        os.write(fd, bytes(min(1 << 20, size - at)))
