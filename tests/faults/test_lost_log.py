"""The write-ahead log taken away, wiped, begun anew: what is there is trusted, what is not is counted (G2, G10)."""

import re
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from collector import database, schema, watermark
from collector.batcher import Aside, Batch, Dead, Delivered, Limits
from collector.buffer import Buffer, BufferUnusable
from collector.image import Image
from collector.quarantine import lacks_log
from collector.reserve import Reserve
from collector.search import Query, forget
from collector.watermark import GONE_MAX, ROWS_MAX, Watermark
from collector.work import PAGE
from tests.collector.buffers import ANYTIME, EMAIL, LIMITS, adds_up, parcel, record
from tests.collector.test_cli_run import AWAY, Sidecar, tillpost
from tests.faults.damage import Base, judge, made_base
from tests.faults.test_damage import held, killed, log, mark
from tests.faults.test_process import ask, status
from tests.faults.test_sqlite import shell_inside


@pytest.fixture
def base() -> Base:
    """What a process leaves behind that was killed while it worked."""
    return made_base(2, 30, killed=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.db"


def laid_down(base: Base, path: Path) -> None:
    for name, data in base.files.items():
        path.with_name(name).write_bytes(data)


def picked_up(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (path, log(path), mark(path)) if file.exists()}


def quarantine(path: Path) -> Path:
    return path.with_name(path.name + ".quarantine")


async def of_an_earlier_run(path: Path, count: int = 20) -> list[bytes]:
    """Some records, and the files of a process that was killed; the database holds half of them."""
    records = [record(f"s{i}") for i in range(count)]
    buffer = await Buffer.open(path.with_name("origin.db"))
    await buffer.append([parcel(records[: count // 2])])
    await buffer.close()
    buffer = await Buffer.open(path.with_name("origin.db"))
    await buffer.append([parcel(records[count // 2 :])])
    for file in (buffer.path, log(buffer.path), mark(buffer.path)):
        path.with_name(file.name.replace("origin", "t")).write_bytes(file.read_bytes())
    await buffer.close()
    return records


async def is_whole(path: Path, records: list[bytes]) -> None:
    """It starts as after any other kill."""
    buffer = await Buffer.open(path)
    try:
        assert buffer.damage is None
        assert not quarantine(path).exists()
        assert await held(buffer) == records
        assert buffer.ledger()["lost_at_most"] == 0
        assert adds_up(buffer.ledger())
    finally:
        await buffer.close()


# -- other programs and starts that came to nothing ------------------------------------------------


async def test_after_a_kill_another_program_opens_and_closes_the_file_and_nothing_is_amiss(
    base: Base, tmp_path: Path, path: Path
) -> None:
    laid_down(base, path)
    with closing(sqlite3.connect(path)) as shell:
        assert shell.execute("SELECT n FROM ledger WHERE name = 'accepted'").fetchone()[0] > 0
    assert not log(path).exists(), "it brings what is in the log into the database, and deletes it"
    (tmp_path / "again").mkdir()
    outcome = await judge(base, picked_up(path), tmp_path / "again", "current")
    assert not outcome.quarantined
    assert (outcome.lost, outcome.gone, outcome.again) == (0, 0, 0)


async def a_newer_release_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BufferUnusable, match="newer Tillpost"):
        await Buffer.open(path)


async def another_program_was_in(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    with shell_inside(path), pytest.raises(BufferUnusable, match="Another program"):
        await Buffer.open(path)


async def it_failed_half_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the mark was taken up and the log brought to the disk."""

    def fails(*_: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Reserve, "after_open", fails)
        with pytest.raises(BufferUnusable, match="disk I/O error"):
            await Buffer.open(path)


@pytest.mark.parametrize("fails", [a_newer_release_was_there, another_program_was_in, it_failed_half_way])
async def test_a_start_that_fails_leaves_a_file_that_the_right_one_starts_with_everything(
    path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[[Path, pytest.MonkeyPatch], Awaitable[None]]
) -> None:
    known = schema.versions()
    newer = [*known, (known[-1][0] + 1, "CREATE TABLE more (x);\n")]
    with monkeypatch.context() as patch:
        if fails is a_newer_release_was_there:
            patch.setattr(schema, "versions", lambda: newer)
        records = await of_an_earlier_run(path)
    await fails(path, monkeypatch)
    assert not log(path).exists(), "closing the database took it away"
    assert not quarantine(path).exists()
    if fails is a_newer_release_was_there:
        monkeypatch.setattr(schema, "versions", lambda: newer)
    await is_whole(path, records)


@pytest.mark.parametrize("without_log", [False, True])
async def test_a_kill_between_recovery_and_the_first_commit_makes_no_foreign_log(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_log: bool
) -> None:
    """A log that was empty gets salts at random, and the mark still speaks of the old ones."""
    records = await of_an_earlier_run(path)
    if without_log:
        with closing(sqlite3.connect(path)) as shell:
            shell.execute("SELECT * FROM ledger").fetchall()
        assert not log(path).exists()
    before = log(path).read_bytes() if log(path).exists() else bytes(32)
    copies: list[Path] = []
    start = Watermark.start

    def dies(self: Watermark, *args: Any) -> None:
        copies.append(killed(path, tmp_path / f"copy-{len(copies)}"))
        start(self, *args)

    monkeypatch.setattr(Watermark, "start", dies)
    await (await Buffer.open(path)).close()
    monkeypatch.undo()
    (copy,) = copies
    after = log(copy).read_bytes()
    assert after.rstrip(b"\0") != before.rstrip(b"\0"), "a start that commits nothing syncs nothing it found"
    assert (after[16:20] != before[16:20]) == without_log, "it did not happen what this is about"
    await is_whole(copy, records)


# -- an erase wipes the log --------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before the wipe", "after it", "later"])
async def test_a_log_wiped_by_an_erase_is_not_a_lost_one(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    buffer = await Buffer.open(path)
    await buffer.append([parcel([record("a"), record("erased"), record("b")])])
    wipe, copies = Reserve._wipe_log, []

    def wiping(self: Reserve) -> None:
        if when != "before the wipe":
            wipe(self)
        copies.append(killed(path, tmp_path / "wiped"))  # the mark as it was when the log was wiped
        wipe(self)

    monkeypatch.setattr(Reserve, "_wipe_log", wiping)
    assert await forget(buffer, Query(salt="erased")) == {"count": 1}
    if when == "later":
        await buffer.append([parcel([record("c")])])
        copies.append(killed(path, tmp_path / "later"))
    await buffer.close()
    if when == "after it":
        assert not any(log(copies[0]).read_bytes()), "it was not wiped"
        assert not lacks_log(copies[0], watermark.read(copies[0])), "the mark did not know of it: all is read to count"
        assert b'"erased"' not in copies[0].read_bytes()
    await is_whole(copies[-1], [record(salt) for salt in ("a", "b", "c")[: 3 if when == "later" else 2]])


# -- gone, and rows with it --------------------------------------------------------------------------


@pytest.mark.parametrize("part", [1, 2, 3])
async def test_a_log_that_goes_in_the_middle_of_a_checkpoint_is_counted_to_the_record(
    base: Base, tmp_path: Path, path: Path, part: int
) -> None:
    """A part of its pages is in the database: counts without rows, rows without counts."""
    laid_down(base, path)
    with closing(Image(path, log(path))) as image, path.open("r+b") as file:
        file.truncate(max(image.pages * PAGE, path.stat().st_size))
        for page in image.changed[: len(image.changed) * part // 4]:
            file.seek((page - 1) * PAGE)
            file.write(image.page(page))
    log(path).unlink()
    (tmp_path / "again").mkdir()
    outcome = await judge(base, picked_up(path), tmp_path / "again", "current")
    assert outcome.quarantined
    assert outcome.exact and outcome.gone > 0


MANY = ROWS_MAX + 2
LACKING = {
    "records": "DELETE FROM chunks WHERE id = (SELECT id FROM chunks ORDER BY id LIMIT 1 OFFSET 1)",
    "records aside": "DELETE FROM aside WHERE id = (SELECT min(id) FROM aside)",
    "dead letters": "DELETE FROM dead WHERE id = (SELECT min(id) FROM dead)",
}


@pytest.mark.parametrize("what", LACKING)
async def test_rows_that_went_with_the_log_are_missed_although_every_count_is_right(path: Path, what: str) -> None:
    buffer = await Buffer.open(path.with_name("origin.db"))
    fate = Dead("no") if what == "dead letters" else Aside("parked")
    for some in (range(MANY), range(MANY, MANY + 3), range(MANY + 3, MANY + 9)):
        await buffer.append([parcel([record(f"s{i}") for i in some])])
    batch = await buffer.take(EMAIL, Limits(MANY, 1_000_000), ANYTIME)
    assert isinstance(batch, Batch)
    if what != "records":
        await buffer.settle([(batch, fate)])
    for file in (buffer.path, log(buffer.path), mark(buffer.path)):
        path.with_name(file.name.replace("origin", "t")).write_bytes(file.read_bytes())
    await buffer.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        assert shell.execute(LACKING[what]).rowcount == 1
    buffer = await Buffer.open(path)
    try:
        assert buffer.damage is not None
        assert "that it counts are not in it" in buffer.damage.what
        ledger = buffer.ledger()
        gone = 3 if what == "records" else 1
        # of what stands aside and of dead letters the mark names the latest: the oldest may also have been settled
        assert ledger["lost"] <= gone <= ledger["lost_at_most"]
        assert ledger["lost"] == (gone if what == "records" else ledger["lost"])
        assert adds_up(ledger)
    finally:
        await buffer.close()


async def test_what_left_before_its_elders_is_not_sent_again_when_the_log_is_gone(path: Path) -> None:
    """The database shows an older state, with records in the middle of a lane that were delivered since."""
    buffer = await Buffer.open(path.with_name("origin.db"))
    for name in "abc":
        await buffer.append([parcel([record(f"{name}{i}") for i in range(2)])])
    await buffer.close()
    buffer = await Buffer.open(buffer.path)
    batch = await buffer.take(EMAIL, LIMITS, ANYTIME)
    assert isinstance(batch, Batch)
    await buffer.settle([(batch.part(2, 4), Delivered())])
    for file in (buffer.path, mark(buffer.path)):
        path.with_name(file.name.replace("origin", "t")).write_bytes(file.read_bytes())
    await buffer.settle([(batch.part(0, 2), Delivered())])
    orphans = await buffer.run(lambda work: work.conn.execute("SELECT count(*) FROM gone").fetchone()[0])
    assert orphans == 0, "nothing is remembered of what lies behind the head"
    await buffer.close()
    buffer = await Buffer.open(path)
    try:
        assert buffer.damage is not None
        assert await held(buffer) == [record(salt) for salt in ("a0", "a1", "c0", "c1")]
        ledger = buffer.ledger()
        assert (ledger["accepted"], ledger["delivered"], ledger["lost_at_most"]) == (6, 6, 0)
    finally:
        await buffer.close()


async def test_more_gaps_than_the_mark_has_room_to_name_make_a_range(path: Path) -> None:
    """What was delivered since hides what is lost: the upper bound allows for it."""
    chunks = GONE_MAX + 8
    buffer = await Buffer.open(path.with_name("origin.db"))
    for i in range(chunks):
        await buffer.append([parcel([record(f"a{i}"), record(f"b{i}")])])
    await buffer.close()
    buffer = await Buffer.open(buffer.path)
    batch = await buffer.take(EMAIL, LIMITS, ANYTIME)
    assert isinstance(batch, Batch)
    await buffer.settle([(batch.pick(range(1, 2 * chunks, 2)), Delivered())])
    await buffer.append([parcel([record(f"late{i}") for i in range(5)])])
    for file in (buffer.path, mark(buffer.path)):
        path.with_name(file.name.replace("origin", "t")).write_bytes(file.read_bytes())
    await buffer.close()
    buffer = await Buffer.open(path)
    try:
        ledger = buffer.ledger()
        assert ledger["lost"] <= 5 <= ledger["lost_at_most"] <= 2 * chunks + 5
        assert adds_up(ledger)
        assert len(await held(buffer)) == 2 * chunks, "nothing that is there is dropped"
    finally:
        await buffer.close()


# -- what people see ---------------------------------------------------------------------------------


async def test_what_is_lost_is_said_wherever_somebody_looks(tmp_path: Path, path: Path) -> None:
    records = await of_an_earlier_run(path, 10)
    log(path).unlink()
    sidecar = Sidecar(path, *AWAY)
    try:
        assert sidecar.logged("buffer_damaged")["moved_to"] == str(quarantine(path))
        told = sidecar.logged("buffer_salvaged")
        assert (told["salvaged"], told["lost"], told["lost_at_most"]) == (5, 5, 5)
        sidecar.listen()
        facts = status(sidecar)
        assert facts["ledger"]["accepted"] == len(records)
        assert (facts["ledger"]["lost"], facts["ledger"]["lost_at_most"]) == (5, 5)
        assert (facts["damage"]["lost"], facts["damage"]["done"]) == (5, True)
        ready, checks = ask(sidecar, "/readyz?verbose")
        assert ready == 200, "a restart would not bring them back"
        assert b"5 records lost after damage" in checks
        assert re.search(rb"^tillpost_\w*lost_total 5\.0$", ask(sidecar, "/metrics")[1], re.MULTILINE)
        assert "5 records lost after damage" in " ".join(tillpost("status", "--buffer", path).output.split())
    finally:
        sidecar.end(signal.SIGKILL)
