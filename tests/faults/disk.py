"""What a power cut leaves of the files a process wrote.

A *recording* is what ``record_disk.c`` wrote down of a run: every write, truncate, create,
rename, unlink and sync of the files below one folder, in order, and among them the marks
the run itself made. `Disk` replays it and tells, at any point, what is certain: contents
that were synced, names whose folder was synced. All the rest is at the mercy of the cut: a
write is there, or is not, or is torn into sectors of 512 bytes, whatever came before or
after it; a name is there or not. That is all that POSIX promises, and less than most file
systems do.
"""

import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

SECTOR: Final = 512
SOURCE: Final = Path(__file__).with_name("record_disk.c")
_HEAD: Final = struct.Struct("<cQqI")


class Entry(NamedTuple):
    """One thing that happened; see ``record_disk.c`` for the kinds. ``k`` is a mark of the run."""

    kind: str
    inode: int
    number: int
    payload: bytes


def mark(log: int, payload: bytes) -> None:
    """Add a mark to a recording under way: `log` is its file, opened for appending."""
    os.write(log, _HEAD.pack(b"k", 0, 0, len(payload)) + payload)


def read(log: Path) -> list[Entry]:
    """A recording, from its file."""
    return list(_entries(log.read_bytes()))


def _entries(data: bytes) -> Iterator[Entry]:
    at = 0
    while at < len(data):
        kind, inode, number, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        yield Entry(kind.decode(), inode, number, data[at : at + length])
        at += length


@dataclass(eq=False)
class Inode:
    """A file's contents: what is synced, and what was done to it since."""

    synced: bytearray = field(default_factory=bytearray)
    unsynced: list[Entry] = field(default_factory=list)


class Named(NamedTuple):
    """A change of names that is not synced yet."""

    entry: Entry
    file: Inode | None
    folders: tuple[str, ...]
    """Syncing any of them makes it certain."""


@dataclass(frozen=True)
class Mercy:
    """What one power cut spares of the things that were not synced."""

    chance: random.Random
    spares: float
    """How likely a write, a truncate or a change of names is to be there."""
    tears: float
    """How likely a write that is spared is only there in part."""

    @classmethod
    def drawn(cls, chance: random.Random) -> "Mercy":
        """Now and then everything or nothing is spared; mostly something between."""
        match chance.randrange(12):
            case 0:
                return cls(chance, 0.0, 0.0)
            case 1:
                return cls(chance, 1.0, 0.0)
        return cls(chance, chance.random(), chance.choice((0.0, 0.1, 0.5)))

    def spared(self) -> bool:
        return self.chance.random() < self.spares

    def torn(self) -> bool:
        return self.chance.random() < self.tears


class Disk:
    """A recording replayed up to some point."""

    def __init__(self) -> None:
        self.inodes: dict[int, Inode] = {}
        self.files: dict[str, Inode] = {}
        """Names that are certain."""
        self.folders: set[str] = set()
        self.named: list[Named] = []
        self.in_use: dict[str, Inode] = {}
        """Names as the running process sees them."""

    def apply(self, entry: Entry) -> None:
        """The next thing that happened."""
        match entry.kind:
            case "w" | "t" | "a":
                self.inodes[entry.inode].unsynced.append(entry)
            case "s":
                inode = self.inodes[entry.inode]
                for each in inode.unsynced:
                    _change(inode.synced, each)
                inode.unsynced.clear()
            case "c":
                self.inodes[entry.inode] = self.in_use[_name(entry)] = Inode()
                self._note(entry, self.inodes[entry.inode], _parent(_name(entry)))
            case "u":
                self._note(entry, self.in_use.pop(_name(entry), None), _parent(_name(entry)))
            case "m":
                self._note(entry, None, _parent(_name(entry)))
            case "r":
                old, new = _name(entry).split("\0")
                file = self.in_use[new] = self.in_use.pop(old)
                self._note(entry, file, _parent(old), _parent(new))
            case "d":
                for change in [change for change in self.named if _name(entry) in change.folders]:
                    _rename(self.files, self.folders, change)
                    self.named.remove(change)

    def _note(self, entry: Entry, file: Inode | None, *folders: str) -> None:
        self.named.append(Named(entry, file, folders))

    @property
    def at_risk(self) -> int:
        """How many things the cut could take."""
        return len(self.named) + sum(len(inode.unsynced) for inode in self.in_use.values())

    def write(self, target: Path, mercy: Mercy) -> None:
        """Lay down in `target` what a power cut now might leave."""
        files, folders = dict(self.files), set(self.folders)
        for change in self.named:
            if mercy.spared():
                _rename(files, folders, change)
        target.mkdir()
        for folder in sorted(folders):
            if (target / folder).parent.exists():
                (target / folder).mkdir()
        for name, inode in files.items():
            if (target / name).parent.exists():
                (target / name).write_bytes(_contents(inode, mercy))


def _name(entry: Entry) -> str:
    return entry.payload.decode()


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _rename(files: dict[str, Inode], folders: set[str], change: Named) -> None:
    name = _name(change.entry)
    match change.entry.kind:
        case "c" if change.file is not None:
            files[name] = change.file
        case "u":
            # a name may have been given to another file since
            if files.get(name) is change.file:
                del files[name]
        case "m":
            folders.add(name)
        case "r" if change.file is not None:
            old, new = name.split("\0")
            if files.get(old) is change.file:
                del files[old]
            files[new] = change.file


def _contents(inode: Inode, mercy: Mercy) -> bytearray:
    data = bytearray(inode.synced)
    for entry in inode.unsynced:
        if not mercy.spared():
            # the file may have grown all the same, over zeros
            if entry.kind == "w" and mercy.torn():
                _grow(data, entry.number + len(entry.payload))
        elif entry.kind == "w" and mercy.torn():
            _tear(data, entry, mercy.chance)
        else:
            _change(data, entry)
    return data


def _change(data: bytearray, entry: Entry) -> None:
    match entry.kind:
        case "w":
            _grow(data, entry.number)
            data[entry.number : entry.number + len(entry.payload)] = entry.payload
        case "t":
            del data[entry.number :]
            _grow(data, entry.number)
        case "a":
            _grow(data, entry.number)


def _tear(data: bytearray, entry: Entry, chance: random.Random) -> None:
    """Some of the sectors that the write touched, each as a whole."""
    start, stop = entry.number, entry.number + len(entry.payload)
    for sector in range(start // SECTOR * SECTOR, stop, SECTOR):
        if chance.random() < 0.5:
            low, high = max(start, sector), min(stop, sector + SECTOR)
            _grow(data, low)
            data[low:high] = entry.payload[low - start : high - start]


def _grow(data: bytearray, size: int) -> None:
    if len(data) < size:
        data.extend(bytes(size - len(data)))
