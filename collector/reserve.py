"""Room kept for settling on a full disk.

Deleting rows needs room too: a store-and-forward buffer that fills the disk could not even
drain. So a write-ahead log at its cap and a ballast file as large lie ready (guarantee G7).
Under pressure the ballast is let go; when space returns it is built again. Does not hold on
copy-on-write file systems, where overwriting needs new blocks.
"""

import os
from contextlib import suppress
from pathlib import Path

from collector.files import beside
from collector.logs import logger

log = logger("buffer")


class Reserve:
    """The ballast beside a buffer, and the blocks of its write-ahead log."""

    def __init__(self, buffer: Path, size: int) -> None:
        self._path = beside(buffer, ".ballast")
        self._wal = beside(buffer, "-wal")
        self.size = size
        """Bytes of the ballast, and of the write-ahead log at its cap."""

    @property
    def held(self) -> bool:
        """Whether the ballast is there, whole."""
        with suppress(FileNotFoundError):
            return self._path.stat().st_size >= self.size
        return False

    def free_bytes(self) -> int:
        """What the file system still has for us."""
        if not hasattr(os, "statvfs"):
            return 1 << 62
        found = os.statvfs(self._path.parent)
        return found.f_bavail * found.f_frsize

    def make_room_before_open(self) -> bool:
        """A clean stop deletes the log, and opening must write one: on a full disk the ballast goes first."""
        if self.held and self.free_bytes() < self.size:
            self.release()
            return True
        return self.free_bytes() < self.size

    def grow_log(self) -> None:
        """Give the open write-ahead log all the blocks it may ever need; SQLite ignores what it did not write."""
        # never done to the database itself: closing a descriptor of it would drop SQLite's locks
        if self._wal.exists():
            _allocate(self._wal, self.size)

    def build(self) -> bool:
        """Lay the ballast down if there is room for it twice over; True if it is there."""
        if self.held:
            return True
        if self.free_bytes() < 2 * self.size:
            return False
        try:
            _allocate(self._path, self.size)
        except OSError as error:
            log.warning("reserve_not_built", error=error.strerror)
            self.release()
            return False
        return True

    def release(self) -> None:
        """Let the ballast go."""
        with suppress(FileNotFoundError):
            self._path.unlink()
            log.warning("reserve_released", why="the disk is full: settling goes on, ingest refuses")


def _allocate(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size >= size:
            return
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            start = os.fstat(fd).st_size
            os.lseek(fd, start, os.SEEK_SET)
            for at in range(start, size, 1 << 20):
                os.write(fd, bytes(min(1 << 20, size - at)))
    finally:
        os.close(fd)
