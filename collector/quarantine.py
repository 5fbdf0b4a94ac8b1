"""A damaged buffer is put aside whole, and a fresh one takes its place (guarantee G10).

``<buffer>.quarantine/`` holds the database and its log, moved together, and the mark as it was. One
such set at most: the next damage replaces it. The move can be interrupted anywhere: a file ``moving``
says that it is to be finished before anything is opened.

What is not ours is never touched: another application's database, a text file, a newer Tillpost's buffer.
"""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from collector import schema
from collector.crashpoints import reach
from collector.files import BufferUnusable, beside, sync_folder
from collector.image import Image
from collector.logs import logger
from collector.watermark import Facts
from collector.work import Damaged

log = logger("buffer")

_MAGIC: Final = b"SQLite format 3\0"
_LOG_MAGIC: Final = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
_APPLICATION: Final = slice(68, 72)
_FIXED: Final = (
    # what never changes in the header of a buffer ("Database File Format" of SQLite, section 1.3)
    (16, b"\x10\x00\x02\x02\x00\x40\x20\x20"),
    (44, b"\x00\x00\x00\x04"),
    (56, b"\x00\x00\x00\x01"),
    (64, b"\x00\x00\x00\x01"),
    (72, bytes(20)),
)
_RESTARTS_MAX: Final = 100_000
"""How often a log can have begun anew since the mark was written; each time its first salt rises by one."""
_OUR_PAGES: Final = 64
"""A ledger row stands on one of so many first pages of a buffer."""


def look(path: Path, mark: Facts | None) -> str | None:
    """What damage shows before a buffer is opened; None where none does, or where there is no file yet.

    Raises BufferUnusable for what is not ours.
    """
    if path.is_dir():
        raise BufferUnusable(path, "it is a folder. Name a file with --buffer.")
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        header = b""
    except OSError as error:
        raise BufferUnusable(path, f"{error.strerror}. Check the path and its owner.") from error
    if not header:
        return "the file is gone or empty" if mark is not None and mark.may_have_accepted else None
    if header[:16] != _MAGIC:
        if is_ours(path):
            return "its header is damaged"
        raise BufferUnusable(path, "it is not a database. Name another file with --buffer.")
    if _is_marked(header) and any(header[at : at + len(fixed)] != fixed for at, fixed in _FIXED):
        return "its header is damaged"
    if mark is not None and (salt := _salt_of(path)) is not None and not own_salts(mark)(salt):
        return "its write-ahead log belongs to another database"
    return None


def lacks_log(path: Path, mark: Facts | None) -> bool:
    """Whether the mark knows of a write-ahead log that is gone, or that SQLite will not read.

    It took with it what was not in the database yet, perhaps half a checkpoint. Or there was nothing
    left in it: a start that came to nothing closes the database too, which takes the log away.
    """
    return mark is not None and mark.wal is not None and _salt_of(path) is None


def _salt_of(path: Path) -> int | None:
    """The first salt of a database's write-ahead log; None where there is none."""
    header = b""
    with suppress(FileNotFoundError), beside(path, "-wal").open("rb") as file:
        header = file.read(32)
    return int.from_bytes(header[16:20], "big") if header[:4] in _LOG_MAGIC else None


def damage_in(error: BaseException, path: Path, *, opening: bool) -> str | None:
    """What an error says of the buffer's file; None where it is no damage, or the file is not ours."""
    if isinstance(error, Damaged):
        return str(error)
    if isinstance(error, BufferUnusable):
        # a damaged header can make our own file look like another application's
        return "its header is damaged" if not _shows_our_mark(path) and _holds_our_rows(path) else None
    if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.ProgrammingError):
        return None
    code = getattr(error, "sqlite_errorcode", None)
    if code is None and "decode to UTF-8" in str(error):  # Python's module says it, not SQLite
        code = sqlite3.SQLITE_CORRUPT
    damage: set[int | None] = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
    if opening:  # a table that is missing, a text that is none
        damage |= {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH, None}
    elif str(error).startswith(("no such column", "no such table")):  # our statements do not change: the schema did
        damage.add(sqlite3.SQLITE_ERROR)
    if (code if code is None else code & 0xFF) in damage and is_ours(path):
        return str(error)
    return None


def is_ours(path: Path) -> bool:
    """Whether what lies at the path is, or was, a buffer of ours: by its header, its mark or its rows."""
    return beside(path, ".mark").exists() or _shows_our_mark(path) or _holds_our_rows(path)


def _is_marked(header: bytes) -> bool:
    return header[_APPLICATION] == schema.APPLICATION_ID.to_bytes(4, "big")


def _shows_our_mark(path: Path) -> bool:
    with suppress(OSError), closing(Image(path, beside(path, "-wal"))) as image:
        return _is_marked(image.page(1))
    return False


def _holds_our_rows(path: Path) -> bool:
    with suppress(OSError), closing(Image(path, beside(path, "-wal"))) as image:
        pages = [*range(1, min(image.pages, _OUR_PAGES) + 1), *image.changed]
        return any(row[0] == "accepted" for _, _, row in image.rows(pages, {"ledger"}))
    return False


def own_salts(mark: Facts | None) -> Callable[[int], bool]:
    """Tells by its first salt whether a write-ahead log belongs to the buffer of this mark.

    SQLite itself does not: the log of another database, put beside ours, would be played into it.
    """
    if mark is None or (mark.wal is None and not mark.clean):
        return lambda _: True
    if mark.wal is None:  # a clean close leaves no log
        return lambda _: False
    known = mark.wal
    return lambda salt: (salt - known) % (1 << 32) <= _RESTARTS_MAX


class Quarantine:
    """The folder beside a buffer for what was damaged."""

    def __init__(self, buffer: Path) -> None:
        self._buffer = buffer
        self.folder = beside(buffer, ".quarantine")
        self.database = self.folder / buffer.name
        """Where the damaged database lies; its log and its mark beside it."""
        self._moving = self.folder / "moving"

    @property
    def interrupted(self) -> bool:
        """Whether a move was begun and not finished."""
        return self._moving.exists()

    def files(self) -> list[Path]:
        """What lies here that may hold records."""
        return [file for suffix in ("", "-wal", "-journal") if (file := beside(self.database, suffix)).exists()]

    def take_in(self) -> None:
        """Move the buffer's files here, or finish doing so. Then nothing lies at its path. Raises OSError.

        An open connection to them may be closed afterwards: SQLite leaves a database alone that was moved.
        """
        if not self.interrupted:
            self._begin()
        reach("quarantine-begun")
        if not self.database.exists():
            if self._buffer.exists():
                self._buffer.replace(self.database)
            else:
                self.database.touch(0o600)
        elif self._buffer.exists():
            # interrupted later: this is the fresh file, which nobody has used yet
            for file in (self._buffer, beside(self._buffer, "-wal"), beside(self._buffer, "-journal")):
                file.unlink(missing_ok=True)
        reach("quarantine-moving")
        for suffix in ("-wal", "-journal"):
            if (file := beside(self._buffer, suffix)).exists():
                file.replace(beside(self.database, suffix))
        self._sync()
        reach("quarantine-moved")

    def _begin(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for old in self.folder.iterdir():
            old.unlink()
        with suppress(FileNotFoundError):
            shutil.copyfile(beside(self._buffer, ".mark"), beside(self.database, ".mark"))
        self._moving.touch(0o600)
        self._sync()

    def moved(self) -> None:
        """The fresh buffer is on the disk, and so is its mark: from now on it counts."""
        self._moving.unlink(missing_ok=True)
        self._sync()

    def _sync(self) -> None:
        for folder in (self.folder, self._buffer.parent):
            sync_folder(folder)
