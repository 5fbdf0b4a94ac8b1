"""The buffer's file on disk: who may hold it, who may read it, and what a forked child must not touch."""

import ctypes
import importlib
import os
import sqlite3
import weakref
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None


class BufferInUse(Exception):
    """Another process holds the buffer."""

    def __init__(self, path: Path, pid: int | None) -> None:
        whom = f"process {pid}" if pid else "another process"
        super().__init__(
            f"the buffer {path} is in use by {whom}: one process owns a buffer. "
            "Stop that process, name another file, or send to the collector it runs: use the sidecar."
        )
        self.path = path
        self.pid = pid


class BufferUnusable(Exception):
    """The buffer cannot be opened, and trying again will not help."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"the buffer {path} cannot be used: {why}")
        self.path = path


@lru_cache(maxsize=64)  # with every commit, and making a path costs more than asking for its file
def beside(path: Path, suffix: str) -> Path:
    """The file of that suffix that lies beside the buffer: ``tillpost.db`` -> ``tillpost.db.lock``."""
    return path.with_name(path.name + suffix)


def _make_folder(folder: Path) -> None:
    """Make a folder, and those above it, for its owner alone; it is there after a power cut too."""
    if folder.exists():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)  # SQLite syncs the names of its files, not the name of the folder they lie in


def sync_folder(folder: Path) -> None:
    """Bring to the disk which names the folder holds, where the system can."""
    with suppress(OSError):  # Windows opens no folders
        fd = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class FileLock:
    """An exclusive lock on ``<buffer>.lock``, which the system lets go of when the process ends, however it ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        _descriptors.add(fd)

    @classmethod
    def acquire(cls, buffer: Path) -> "FileLock":
        """Raises BufferInUse, naming the holder, or BufferUnusable where the folder cannot be used."""
        try:
            _make_folder(buffer.parent)
            fd = os.open(beside(buffer, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BufferUnusable(
                buffer, f"{error.strerror} ({error.filename}). Check the folder and its owner."
            ) from error
        if not _try_lock(fd):
            holder = _holder(fd)
            os.close(fd)
            raise BufferInUse(buffer, holder)
        with suppress(OSError):  # on a full disk the lock holds all the same, it just cannot say who
            os.ftruncate(fd, os.write(fd, f"{os.getpid()}\n".encode()))
        return cls(fd)

    @classmethod
    def probe(cls, buffer: Path) -> None:
        """Raises BufferInUse if somebody holds it now: a quick look before costly preparations, no promise."""
        with suppress(OSError):  # `acquire` says what is wrong
            fd = os.open(beside(buffer, ".lock"), os.O_RDONLY | os.O_CLOEXEC)
            try:
                if fcntl is not None and not _try_lock(fd, shared=True):
                    raise BufferInUse(buffer, _holder(fd))
            finally:
                os.close(fd)

    def release(self) -> None:
        if self._fd in _descriptors:
            _descriptors.discard(self._fd)
            os.close(self._fd)


def _holder(fd: int) -> int | None:
    """The process that says it holds the lock."""
    said = os.pread(fd, 32, 0).decode("ascii", "replace").strip() if hasattr(os, "pread") else ""
    return int(said) if said.isdigit() else None


def _try_lock(fd: int, *, shared: bool = False) -> bool:
    if fcntl is None:  # pragma: no cover - Windows
        msvcrt = importlib.import_module("msvcrt")
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def create_private(path: Path) -> None:
    """Make the file readable by its owner alone, whatever the umask; SQLite gives its WAL the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise BufferUnusable(path, f"{error.strerror}. Check the path and its owner.") from error


class Moved(Exception):
    """The buffer's files are not where they were opened: deleted, renamed, or replaced."""


def identity(path: Path) -> tuple[int, int]:
    """Which file the path names. Raises Moved where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  with every commit, and Path.stat costs twice as much
    except OSError as error:
        raise Moved(f"{path.name} is gone") from error
    return found.st_dev, found.st_ino


def footing(path: Path) -> tuple[tuple[int, int], ...]:
    """Which files the buffer is: what is written while that stays the same is there after a restart.

    SQLite goes on writing to files that were deleted. Raises Moved where one is gone.
    """
    return identity(path), identity(beside(path, "-wal"))


# A forked child that ends normally would finalise the inherited connection, and SQLite would
# then delete the parent's WAL with everything committed in it (tried: 100 of 150 rows lost).
# One reference too many, for ever, keeps the finaliser from running; a list would not do,
# the interpreter clears it at exit.
_connections: Final["weakref.WeakSet[sqlite3.Connection]"] = weakref.WeakSet()
_descriptors: Final[set[int]] = set()


def inherit_nothing(connection: sqlite3.Connection) -> None:
    """See to it that a forked child never closes this connection."""
    _connections.add(connection)


def close_in_child(fd: int) -> None:
    """See to it that a forked child closes this descriptor at once: a lock or socket of its parent's."""
    _descriptors.add(fd)


def keep_in_child(fd: int) -> None:
    """Undo `close_in_child`, before the descriptor is closed and its number used again."""
    _descriptors.discard(fd)


def _after_fork_in_child() -> None:
    for connection in list(_connections):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
    for fd in list(_descriptors):
        with suppress(OSError):
            os.close(fd)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
