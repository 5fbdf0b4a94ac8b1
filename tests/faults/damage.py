"""Damages buffers in every way and judges what comes of it. Long form: ``python -m tests.faults.damage 1000 [seed]``.

The truth is known from outside: which records were acknowledged, and which an upstream has. What
the opened buffer then gives up, record by record, must agree with what it reports. Half of the buffers
belonged to processes killed under load. Ends with 1 when anything was not as it should be.
"""

import asyncio
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import msgspec

from collector import schema, watermark
from collector.batcher import Batch, Delivered
from collector.buffer import Buffer, BufferUnusable, Unknown
from collector.chunks import is_sound
from collector.work import PAGE, Work
from tests.collector.buffers import ANYTIME, LIMITS, adds_up
from tests.faults.loaded_buffer import MAX_SIZE

FRAME = PAGE + 24
BASES = 8
START_S = 10.0
"""A start takes no longer, whatever the file (guarantee G10)."""


@dataclass
class Base:
    """The files of a buffer, and what is true of its records."""

    name: str
    files: dict[str, bytes] = field(default_factory=dict)
    appended: set[bytes] = field(default_factory=set)
    """Every record ever handed over, acknowledged or not."""
    acknowledged: set[bytes] = field(default_factory=set)
    settled: set[bytes] = field(default_factory=set)
    """Delivered or discarded, and noted so."""
    perhaps: set[bytes] = field(default_factory=set)
    """Under way when the process was killed."""


@cache
def made_base(seed: int, rounds: int, *, killed: bool) -> Base:
    """The buffer of a process that worked on it; killed in the middle, or closed well. Made once; change copies."""
    base = Base(f"{'killed' if killed else 'closed'}-{seed}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.db")
        command = [sys.executable, "-m", "tests.faults.loaded_buffer", str(path), str(seed)]
        command.append(str(rounds * 10 if killed else rounds))
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            open_line: tuple[str, set[bytes]] = ("", set())
            for number, line in enumerate(process.stdout):
                sign, *records = line.rstrip(b"\n").split(b"\t")
                if sign == b"A":
                    base.appended.update(records)
                if sign in (b"A", b"D"):
                    open_line = (sign.decode(), set(records))
                elif sign in (b"a", b"d"):
                    (base.acknowledged if sign == b"a" else base.settled).update(open_line[1])
                    open_line = ("", set())
                if killed and number == rounds * 2:
                    process.send_signal(signal.SIGKILL)
            base.perhaps = open_line[1]
        assert process.returncode == (-signal.SIGKILL if killed else 0)
        base.files = {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.name.startswith("t.db")}
    base.files = {name: base.files[name] for name in ("t.db", "t.db-wal", "t.db.mark") if name in base.files}
    return base


# -- mutations: each changes the files

Files = dict[str, bytes]


def _flip(files: Files, chance: random.Random, name: str, low: int = 0, high: int | None = None) -> None:
    data = bytearray(files[name])
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        at = chance.randrange(low, min(len(data), high or len(data)))
        data[at] ^= 1 << chance.randrange(8)
    files[name] = bytes(data)


def _swap(files: Files, chance: random.Random, name: str, start: int, size: int) -> None:
    data = bytearray(files[name])
    pages = max(1, (_used(files, name) - start) // size)
    one, other = (start + size * chance.randrange(pages) for _ in range(2))
    data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]
    files[name] = bytes(data)


def _used(files: Files, name: str) -> int:
    """Without the blocks the write-ahead log only keeps in reserve."""
    return max(len(files[name].rstrip(b"\0")), min(len(files[name]), 64))


def _zero(files: Files, chance: random.Random, name: str) -> None:
    data = bytearray(files[name])
    start = chance.randrange(_used(files, name))
    size = min(chance.choice((16, 512, PAGE, 64 * 1024)), len(data) - start)
    data[start : start + size] = bytes(size)
    files[name] = bytes(data)


def _garbage(files: Files, chance: random.Random, name: str) -> None:
    data = bytearray(files[name])
    at = chance.randrange(max(1, _used(files, name) // PAGE)) * PAGE
    data[at : at + PAGE] = chance.randbytes(len(data[at : at + PAGE]))
    files[name] = bytes(data)


def _cut(files: Files, chance: random.Random, name: str) -> None:
    files[name] = files[name][: chance.randrange(_used(files, name))]


def _database(statements: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        conn = sqlite3.connect(Path(folder, "other.db"))
        for statement in statements:
            conn.execute(statement)
        conn.commit()
        conn.close()
        return Path(folder, "other.db").read_bytes()


def _newer(files: Files) -> None:
    data = bytearray(files["t.db"])
    data[60:64] = (schema.newest() + 1).to_bytes(4, "big")
    files["t.db"] = bytes(data)
    files.pop("t.db-wal", None)


@dataclass(frozen=True)
class Mutation:
    name: str
    change: Callable[[Files, random.Random, Base], None]
    of_log: bool = False
    """Needs a write-ahead log, which only who was killed leaves behind."""
    needs_mark: bool = False
    """Only the mark tells that the log is another buffer's."""
    refused: bool = False
    """A buffer that is not ours is refused and stays as it is."""


def _another_application(files: Files) -> None:
    files["t.db"] = _database(("PRAGMA application_id = 7", "CREATE TABLE theirs (x)"))
    files.pop("t.db-wal", None)


def _both(files: Files, chance: random.Random) -> None:
    _zero(files, chance, "t.db")
    _flip(files, chance, "t.db-wal", 0, _used(files, "t.db-wal"))


MUTATIONS = (
    Mutation("flip in the database", lambda f, c, _: _flip(f, c, "t.db")),
    Mutation("flip in the small tables", lambda f, c, _: _flip(f, c, "t.db", 0, 24 * PAGE)),
    Mutation("flip in the database header", lambda f, c, _: _flip(f, c, "t.db", 0, 100)),
    Mutation("cut database", lambda f, c, _: _cut(f, c, "t.db")),
    Mutation("zeroes in the database", lambda f, c, _: _zero(f, c, "t.db")),
    Mutation("swapped pages", lambda f, c, _: _swap(f, c, "t.db", 0, PAGE)),
    Mutation("garbage page", lambda f, c, _: _garbage(f, c, "t.db")),
    Mutation("empty database", lambda f, c, _: f.update({"t.db": b""})),
    Mutation("deleted database", lambda f, c, _: f.__delitem__("t.db")),
    Mutation("a text file", lambda f, c, _: f.update({"t.db": b"tillpost\n" * c.randrange(1, 900)})),
    Mutation("another application", lambda f, c, _: _another_application(f), refused=True),
    Mutation("a newer schema", lambda f, c, _: _newer(f), refused=True),
    Mutation("another buffer's log", lambda f, c, o: f.update({"t.db-wal": o.files["t.db-wal"]}), needs_mark=True),
    Mutation("flip in the log", lambda f, c, _: _flip(f, c, "t.db-wal", 0, _used(f, "t.db-wal")), of_log=True),
    Mutation("flip in the log", lambda f, c, _: _flip(f, c, "t.db-wal", 0, _used(f, "t.db-wal")), of_log=True),
    Mutation("cut log", lambda f, c, _: _cut(f, c, "t.db-wal"), of_log=True),
    Mutation("cut log", lambda f, c, _: _cut(f, c, "t.db-wal"), of_log=True),
    Mutation("zeroes in the log", lambda f, c, _: _zero(f, c, "t.db-wal"), of_log=True),
    Mutation("swapped frames", lambda f, c, _: _swap(f, c, "t.db-wal", 32, FRAME), of_log=True),
    Mutation("garbage in the log", lambda f, c, _: _garbage(f, c, "t.db-wal"), of_log=True),
    Mutation("empty log", lambda f, c, _: f.update({"t.db-wal": b""}), of_log=True),
    Mutation("deleted log", lambda f, c, _: f.__delitem__("t.db-wal"), of_log=True),
    Mutation("both damaged", lambda f, c, _: _both(f, c), of_log=True),
)


# -- what the mark is, by the time somebody looks

Mark = Literal["current", "behind", "torn", "gone"]
MARKS: tuple[Mark, ...] = get_args(Mark)


def _slots(files: Files) -> list[tuple[bytes, int, watermark.Facts | None]]:
    """The slots of the mark with their generation, the latest first."""
    parts = [files["t.db.mark"][i * watermark.SLOT_BYTES :][: watermark.SLOT_BYTES] for i in range(watermark.SLOTS)]
    known = [(part, *(watermark._decode(part) or (0, None))) for part in parts]
    return sorted(known, key=lambda slot: -slot[1])


def _set_mark(files: Files, mark: Mark) -> None:
    latest, before, *_ = _slots(files)
    if mark == "behind":  # a power cut: what was not synced is gone, and the machine has started anew
        assert before[2] is not None
        facts = msgspec.structs.replace(before[2], boot="an earlier boot")
        files["t.db.mark"] = watermark._encode(before[1], facts).ljust(watermark.SLOT_BYTES, b"\0")
    elif mark == "torn":  # killed while it wrote; or the damage struck here too
        files["t.db.mark"] = files["t.db.mark"].replace(latest[0], latest[0][:40] + latest[0][:-40])
    elif mark == "gone":
        files["t.db.mark"] = b""


# -- the judgement


@dataclass
class Outcome:
    refused: str | None = None
    start_s: float = 0.0
    quarantined: bool = False
    salvaged: int = 0
    lost: int = 0
    exact: bool = True
    judged: bool = False
    """Whether the reported range was held against the truth."""
    gone: int = 0
    """Acknowledged records that are not there, at least."""
    again: int = 0
    """Records sent again that an upstream had."""


async def judge(base: Base, files: Files, folder: Path, mark: Mark) -> Outcome:
    """Open damaged files, take everything out, and compare with what is true."""
    path = folder / "t.db"
    for name, data in files.items():
        (folder / name).write_bytes(data)
    known = watermark.read(path)
    outcome = Outcome()
    began = time.monotonic()
    try:
        buffer = await Buffer.open(path, max_size=MAX_SIZE)
    except BufferUnusable as error:
        outcome.refused, outcome.start_s = str(error), time.monotonic() - began
        assert "\n" not in outcome.refused
        assert outcome.start_s < START_S
        for name, data in files.items():
            assert (folder / name).read_bytes() == data, "what is refused stays as it is"
        return outcome
    try:
        outcome.start_s = time.monotonic() - began
        assert outcome.start_s < START_S
        seen_at_once = buffer.damage is not None
        taken, dead, unreadable = await _everything(buffer)
        ledger = buffer.ledger()
        if buffer.damage is not None:
            outcome.quarantined, outcome.salvaged = True, buffer.damage.salvaged
    finally:
        await buffer.close()
    buffer = await Buffer.open(path, max_size=MAX_SIZE)
    try:
        if buffer.damage is not None and not outcome.quarantined:  # damage that showed to nobody so far
            outcome.quarantined, outcome.salvaged = True, buffer.damage.salvaged
            more, dead, unreadable = await _everything(buffer)
            taken |= more
            ledger = buffer.ledger()
        assert buffer.ledger() == ledger, "it does not hold what it held"
    finally:
        await buffer.close()
    assert taken | dead <= base.appended, "a damaged record was sent, or kept as if it were whole"
    assert adds_up(ledger), ledger
    assert ledger["pending"] == 0, ledger
    assert ledger["dead"] + ledger["superseded"] == len(dead) + unreadable, ledger
    there = taken | dead
    gone = base.acknowledged - base.settled - there
    # a damaged dead letter stands for a record that is here and can no longer be read
    least, most = len(gone - base.perhaps) - unreadable, len(gone | (base.perhaps - base.settled - there))
    outcome.lost, outcome.exact = ledger["lost"], ledger["lost"] == ledger["lost_at_most"]
    outcome.gone, outcome.again = max(0, least), len(taken & base.settled)
    # what a log lost of the last second before a power cut nothing can tell, unless there is more damage to be seen
    outcome.judged = mark == "current" or (mark != "gone" and seen_at_once)
    if outcome.judged:
        truth = f"{least} to {most} are gone, {outcome.again} were sent again"
        assert ledger["lost"] <= most, (ledger, truth)
        assert ledger["lost_at_most"] >= least, (ledger, truth)
    if mark == "current" and known is not None and _names_all(known):
        assert outcome.exact, ledger
    return outcome


def _names_all(mark: watermark.Facts) -> bool:
    """Whether the mark had room to name every record that stands aside, every dead letter and every gap in a chunk."""
    aside, dead = sum(lane.aside for lane in mark.lanes), mark.ledger["dead"] + mark.ledger["superseded"]
    return mark.gone is not None and (len(mark.aside), len(mark.dead)) == (aside, dead)


async def _everything(buffer: Buffer) -> tuple[set[bytes], set[bytes], int]:
    """All records that leave, those that are dead letters, and how many of these are damaged."""
    taken: set[bytes] = set()
    found = True
    while found:
        found = False
        for state in buffer.lanes():
            try:
                while isinstance(batch := await buffer.take(state.lane, LIMITS, ANYTIME), Batch):
                    records = [batch.record(i) for i in range(batch.count)]
                    await buffer.settle([(batch, Delivered())])
                    taken.update(records)
                    found = True
            except Unknown:  # damage that shows only now
                assert buffer.failed is None, buffer.failed
                found = True
        if buffer._salvager is not None and not buffer._salvager.done():
            await asyncio.wait((buffer._salvager,), timeout=START_S)
            found = True

    def dead(work: Work) -> list[tuple[int, bytes, bytes]]:
        return work.conn.execute("SELECT crc, runs, body FROM dead").fetchall()

    letters = await buffer.run(dead)
    whole = {body for crc, runs, body in letters if is_sound(crc, runs, b"", body)}
    return taken, whole, len(letters) - len(whole)


@dataclass
class Tally:
    """What came of many trials."""

    counts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.counts["refused"] += outcome.refused is not None
        self.counts["started"] += outcome.refused is None
        self.counts["quarantined"] += outcome.quarantined
        self.counts["range judged"] += outcome.judged
        self.counts["range exact"] += outcome.judged and outcome.exact
        self.counts["with records gone"] += outcome.judged and outcome.gone > 0
        self.counts["salvaged"] += outcome.salvaged
        self.counts["lost"] += outcome.lost
        self.counts["sent again"] += outcome.again
        self.slowest_s = max(self.slowest_s, outcome.start_s)

    def update(self, other: "Tally") -> None:
        self.counts.update(other.counts)
        self.kinds.update(other.kinds)
        self.faults += other.faults
        self.slowest_s = max(self.slowest_s, other.slowest_s)

    def __str__(self) -> str:
        kinds = (f"{number:7} {name}" for name, number in sorted(self.kinds.items()))
        counts = (f"{number:7} {name}" for name, number in self.counts.items())
        return "\n".join(
            (*kinds, "", *counts, f"{self.slowest_s:7.2f} s, the slowest start", f"{len(self.faults):7} faults")
        )


async def trials(bases: list[Base], base: Base, seeds: range) -> Tally:
    """Damage copies of a base in turn; what came of it. A fault ends nothing, and is in the tally."""
    tally = Tally()
    others = [other for other in bases if other is not base and "t.db-wal" in other.files]
    shelf = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    fitting = [one for one in MUTATIONS if "t.db-wal" in base.files or not one.of_log]
    for seed in seeds:
        chance = random.Random(seed)
        mutation = fitting[seed % len(fitting)]
        files = dict(base.files)
        mark: Mark = "current" if mutation.needs_mark else chance.choices(MARKS, (80, 10, 7, 3))[0]
        _set_mark(files, mark)
        mutation.change(files, chance, chance.choice(others) if others else base)
        tally.kinds[mutation.name] += 1
        tally.counts[f"on {base.name.split('-')[0]} files"] += 1
        tally.counts[f"with the mark {mark}"] += 1
        with tempfile.TemporaryDirectory(dir=shelf) as folder:
            try:
                outcome = await judge(base, files, Path(folder), mark)
                if mutation.refused:
                    assert outcome.refused is not None, "what is not ours was not refused"
                elif outcome.refused is not None:  # it says that it is newer, or nothing is left that says it is ours
                    assert mark == "gone" or files["t.db"][60:64] != base.files["t.db"][60:64], outcome.refused
                tally.add(outcome)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                tally.faults.append(
                    f"{base.name}, seed {seed}: {mutation.name}, mark {mark}: "
                    f"{type(error).__name__}: {error} ({where.name}: {where.line})"
                )
    return tally


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    logging.disable(logging.CRITICAL)  # what it says of damage would fill the screen
    bases = [made_base(first + i, 40 * (1 + i % 3), killed=i % 2 == 0) for i in range(BASES)]
    total = Tally()
    began = time.monotonic()
    for i, base in enumerate(bases):
        total.update(
            asyncio.run(trials(bases, base, range(first + i * count // BASES, first + (i + 1) * count // BASES)))
        )
    print(f"{count} mutations of {BASES} buffers in {time.monotonic() - began:.0f} s\n\n{total}")
    print(*total.faults, sep="\n")
    sys.exit(bool(total.faults))


if __name__ == "__main__":
    main()
