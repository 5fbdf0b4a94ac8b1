"""What SQLite can do to a queue: strangers in the file, stale snapshots, an endless log, ids used again, bad rows."""

import asyncio
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from collector import database, deadletters
from collector.admission import Sizes
from collector.batcher import Aside, Batch, Dead, Delivered, Limits
from collector.buffer import Buffer, BufferUnusable
from collector.search import Query, forget
from collector.work import Work
from tests.collector.buffers import ANYTIME, EMAIL, LIMITS, adds_up, parcel, record

SHELL = """
import sqlite3, sys
shell = sqlite3.connect(sys.argv[1], isolation_level=None)
shell.execute("BEGIN EXCLUSIVE")
print("in", flush=True)
sys.stdin.read()
"""


@contextmanager
def shell_inside(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another program that has the file open, and locked, until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", SHELL, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "in\n"
        yield shell


async def used_before(path: Path) -> list[bytes]:
    """A buffer that holds records, closed."""
    records = [record(f"s{i}") for i in range(5)]
    buffer = await Buffer.open(path)
    await buffer.append([parcel(records)])
    await buffer.close()
    return records


async def take(buffer: Buffer, limits: Limits = LIMITS) -> Batch:
    batch = await buffer.take(EMAIL, limits, ANYTIME)
    assert isinstance(batch, Batch)
    return batch


# -- other programs -----------------------------------------------------------------------------


async def test_a_program_that_was_there_first_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    records = await used_before(path)
    with shell_inside(path) as shell:
        opening = asyncio.create_task(Buffer.open(path))
        done, _ = await asyncio.wait((opening,), timeout=0.1)
        assert not done, "it went in beside another program"
        assert shell.stdin is not None
        shell.stdin.close()
        buffer = await opening
    assert (await take(buffer)).body == b"[" + b",".join(records) + b"]"
    await buffer.close()


async def test_a_program_that_stays_is_named_as_the_reason_and_nothing_is_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    path = tmp_path / "t.db"
    records = await used_before(path)
    with shell_inside(path) as shell:
        with pytest.raises(BufferUnusable, match="Another program has it open"):
            await Buffer.open(path)
        assert shell.stdin is not None
        shell.stdin.close()
    buffer = await Buffer.open(path)
    assert (await take(buffer)).count == len(records)
    assert not path.with_name("t.db.quarantine").exists()
    await buffer.close()


async def test_every_write_is_inside_a_transaction_that_began_as_a_writer(tmp_path: Path) -> None:
    """A transaction that reads first and writes later fails at once when another wrote in between."""
    buffer = await Buffer.open(tmp_path / "t.db")
    said: list[str] = []
    await buffer.run(lambda work: work.conn.set_trace_callback(said.append))
    await buffer.append([parcel([record(f"s{i}") for i in range(6)])])
    batch = await take(buffer)
    await buffer.settle(
        [(batch.pick([0]), Delivered()), (batch.pick([1]), Dead("no")), (batch.pick([2]), Aside("busy"))]
    )
    await deadletters.retry(buffer, None)
    await forget(buffer, Query(salt="s5"))
    await buffer.run(lambda work: work.conn.set_trace_callback(None))
    await buffer.close()

    writing = False
    for statement in said[1:]:  # the first are of the transaction that began to listen
        verb = statement.split()[0].upper()
        if verb == "BEGIN":
            assert statement == "BEGIN IMMEDIATE"
        writing = {"BEGIN": True, "COMMIT": False, "ROLLBACK": False}.get(verb, writing)
        if verb in ("INSERT", "UPDATE", "DELETE", "REPLACE") and said.index(statement) > said.index("BEGIN IMMEDIATE"):
            assert writing, statement
    assert said.count("BEGIN IMMEDIATE") >= 5
    sources = "\n".join(file.read_text() for file in Path(database.__file__).parent.rglob("*.py"))
    assert set(re.findall(r'execute\("(BEGIN[^"]*)"', sources)) == {"BEGIN IMMEDIATE"}


# -- the log ------------------------------------------------------------------------------------


async def test_no_reader_pins_the_log_and_it_stays_within_its_cap(tmp_path: Path) -> None:
    sizes = Sizes(4 * 1024 * 1024)
    buffer = await Buffer.open(tmp_path / "t.db", max_size=sizes.max_size)
    log = tmp_path / "t.db-wal"
    written = 0
    for turn in range(120):
        records = [record(f"{turn}-{i}", pad=500) for i in range(60)]
        written += sum(map(len, records))
        await buffer.append([parcel(records)])
        few = await take(buffer, Limits(7, 1_000_000))  # leaves its cursor in the middle of the lane
        await buffer.settle([(few, Delivered())])
        while isinstance(batch := await buffer.take(EMAIL, LIMITS, ANYTIME), Batch):
            await buffer.settle([(batch, Delivered())])
        assert log.stat().st_size <= sizes.wal_cap

        def checkpoint(work: Work) -> None:
            work.conn.execute("COMMIT")
            busy, in_log, done = work.conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            work.conn.execute("BEGIN IMMEDIATE")
            work.conn.execute("SAVEPOINT unit")
            assert (busy, in_log) == (0, done), "somebody still reads an old state"

        if turn % 40 == 0:
            await buffer.run(checkpoint)
    assert written > 3 * sizes.wal_cap, "the log never had to begin anew"
    await buffer.close()


# -- ids ----------------------------------------------------------------------------------------


async def test_a_late_settle_never_hits_a_record_that_came_after_the_queue_was_empty(tmp_path: Path) -> None:
    """SQLite gives the ids of an emptied table out again unless it is kept from it."""
    path = tmp_path / "t.db"
    buffer = await Buffer.open(path)
    await buffer.append([parcel([record("old1"), record("old2")])])
    late = await take(buffer)
    aside = late.pick([1])
    await buffer.settle([(late.pick([0]), Delivered()), (aside, Aside("parked", 0))])
    late_aside = await take(buffer)
    await buffer.settle([(late_aside, Dead("no"))])
    (letter,) = (await deadletters.page(buffer))["dead_letters"]
    await deadletters.discard(buffer, None)
    assert buffer.ledger()["pending"] == 0
    await buffer.close()

    buffer = await Buffer.open(path)  # nothing in memory remembers which ids were used
    await buffer.append([parcel([record("new1"), record("new2"), record("new3")])])
    new = await take(buffer)
    await buffer.settle([(new.pick([0]), Dead("no")), (new.pick([1]), Aside("parked", 0))])
    before = buffer.ledger()
    await buffer.settle([(late, Delivered())])
    await buffer.settle([(late_aside, Delivered())])
    assert await deadletters.retry(buffer, [letter["id"]]) == 0
    assert await deadletters.discard(buffer, [letter["id"]]) == 0
    assert buffer.ledger() == before
    await buffer.close()


# -- rows that cannot be read -------------------------------------------------------------------

FLIP = "CAST(replace({0}, 'bad', 'BAD') AS BLOB)"
SPOILED = [
    ("chunks", "body", FLIP),
    ("chunks", "body", "x''"),
    ("chunks", "ends", "x'00'"),
    ("chunks", "ends", "zeroblob(length({0}))"),
    ("chunks", "runs", "x'c1'"),
    ("chunks", "crc", "{0} + 1"),
    ("aside", "body", FLIP),
    ("aside", "runs", "x'c1'"),
    ("aside", "crc", "{0} + 1"),
]


@pytest.mark.parametrize(("table", "column", "spoil"), SPOILED)
async def test_a_row_that_cannot_be_read_becomes_a_dead_letter_and_the_others_flow(
    tmp_path: Path, table: str, column: str, spoil: str
) -> None:
    buffer = await Buffer.open(tmp_path / "t.db")
    await buffer.append([parcel([record("bad1")])])
    if table == "aside":
        await buffer.settle([(await take(buffer), Aside("parked", 0))])
    await buffer.append([parcel([record("good1"), record("good2")])])
    where = f"UPDATE {table} SET {column} = {spoil.format(column)} WHERE instr(body, CAST('bad1' AS BLOB))"

    def by_hand(work: Work) -> None:
        assert work.conn.execute(where).rowcount == 1

    await buffer.run(by_hand)
    await buffer.close()  # what came in lately is in memory, unharmed
    buffer = await Buffer.open(tmp_path / "t.db")
    sent = []
    while isinstance(batch := await buffer.take(EMAIL, LIMITS, ANYTIME), Batch):
        sent += [batch.record(i) for i in range(batch.count)]
        await buffer.settle([(batch, Delivered())])
    assert sent == [record("good1"), record("good2")]
    (letter,) = (await deadletters.page(buffer))["dead_letters"]
    assert "checksum" in letter["reason"]
    assert await deadletters.retry(buffer, None, force=True) == 0, "damaged bytes are never sent"
    ledger = buffer.ledger()
    assert (ledger["dead"], ledger["delivered"], ledger["pending"]) == (1, 2, 0)
    assert adds_up(ledger)
    await buffer.close()


async def test_a_sqlite_that_is_too_old_is_refused_before_anything_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(BufferUnusable, match=r"3\.35\.0 is needed"):
        await Buffer.open(tmp_path / "new" / "t.db")
    assert list(tmp_path.iterdir()) == []


def test_the_snapshot_that_goes_stale_is_real(tmp_path: Path) -> None:
    """What a plain BEGIN would risk: no waiting helps, the write fails at once."""
    path = tmp_path / "t.db"
    ours, theirs = (sqlite3.connect(path, isolation_level=None, timeout=5) for _ in range(2))
    ours.execute("PRAGMA journal_mode = WAL")
    ours.execute("CREATE TABLE t (x)")
    ours.execute("BEGIN")
    ours.execute("SELECT * FROM t").fetchall()
    theirs.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(sqlite3.OperationalError) as caught:
        ours.execute("INSERT INTO t VALUES (2)")
    assert caught.value.sqlite_errorname == "SQLITE_BUSY_SNAPSHOT"
    ours.close()
    theirs.close()
