"""The buffer's contract, for every implementation of it."""

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from collector import deadletters, schema, search
from collector.admission import Sizes
from collector.batcher import Aside, Batch, Dead, Delivered, Gate, Limits, Wait
from collector.buffer import Buffer, BufferInUse, BufferUnusable, DeadLettersFull, Full, Unknown
from collector.chunks import Chunk
from collector.kinds import Lane, Run
from collector.work import Work
from tests.collector.buffers import ANYTIME, BULK, EMAIL, LIMITS, SALES, T0, UUID, adds_up, parcel, record

Opener = Callable[..., "asyncio._AsyncGeneratorContextManager[Buffer]"]


@asynccontextmanager
async def sqlite_buffer(path: Path, **options: object) -> AsyncIterator[Buffer]:
    buffer = await Buffer.open(path, **options)  # type: ignore[arg-type]
    try:
        yield buffer
    finally:
        await buffer.close()


@pytest.fixture(params=[sqlite_buffer], ids=["sqlite"])
def opened(request: pytest.FixtureRequest) -> Opener:
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tillpost.db"


async def take(buffer: Buffer, lane: Lane = EMAIL, limits: Limits = LIMITS, gate: Gate = ANYTIME) -> Batch:
    batch = await buffer.take(lane, limits, gate)
    assert isinstance(batch, Batch)
    return batch


async def everything(buffer: Buffer, lane: Lane = EMAIL) -> list[bytes]:
    """All records of a lane in the order they leave, delivered on the way."""
    out: list[bytes] = []
    while isinstance(batch := await buffer.take(lane, LIMITS, ANYTIME), Batch):
        out += [batch.record(i) for i in range(batch.count)]
        await buffer.settle([(batch, Delivered())])
    return out


async def test_records_come_out_in_order_with_the_bytes_they_went_in_with(opened: Opener, path: Path) -> None:
    records = [record(f"s{i}") for i in range(2500)]
    async with opened(path) as buffer:
        for start in range(0, 2500, 10):
            await buffer.append([parcel(records[start : start + 10])])
    async with opened(path) as buffer:
        assert await everything(buffer) == records
        assert buffer.ledger()["delivered"] == 2500


async def test_what_is_not_settled_is_pending_again_after_a_restart(opened: Opener, path: Path) -> None:
    records = [record(f"s{i}") for i in range(10)]
    async with opened(path) as buffer:
        await buffer.append([parcel(records)])
        batch = await take(buffer)
        await buffer.settle([(batch.part(2, 5), Delivered())])
    async with opened(path) as buffer:
        assert await everything(buffer) == records[:2] + records[5:]
        assert adds_up(buffer.ledger())


async def test_one_commit_holds_all_that_waits_and_lays_it_down_as_one_chunk(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        await asyncio.gather(*(buffer.append([parcel([record(f"s{i}")])]) for i in range(500)))
        rows = await buffer.run(lambda work: work.conn.execute("SELECT n FROM chunks").fetchall())
        assert sum(n for (n,) in rows) == 500
        assert len(rows) <= 3, "group commit merges what waited"


async def test_a_batch_is_filled_across_chunks_up_to_count_and_bytes(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        for i in range(30):
            await buffer.append([parcel([record(f"s{i}-{j}") for j in range(7)])])
        assert (await take(buffer, limits=Limits(100, 1_000_000))).count == 100
        small = await take(buffer, limits=Limits(1000, 5_000))
        assert 4_800 < len(small.body) <= 5_000


async def test_records_of_one_order_key_are_never_in_one_batch(opened: Opener, path: Path) -> None:
    first, other, again = record("same"), record("other"), record("same")
    async with opened(path) as buffer:
        await buffer.append([parcel([first, other, again])])
        batch = await take(buffer)
        assert [batch.record(i) for i in range(batch.count)] == [first, other]
        await buffer.settle([(batch, Delivered())])
        assert (await take(buffer)).record(0) == again


async def test_the_same_salt_of_another_person_may_share_a_batch(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        await buffer.append([parcel([record("same", email="a@b.pl"), record("same", email="c@d.pl")])])
        assert (await take(buffer)).count == 2


async def test_a_record_behind_a_parked_one_of_its_key_waits_aside_and_the_lane_flows_on(
    opened: Opener, path: Path
) -> None:
    async with opened(path) as buffer:
        await buffer.append([parcel([record("k")])])
        parked = await take(buffer)
        far = buffer.clock.boot_ms() + 10**9
        await buffer.settle([(parked, Aside("parked", far))])
        await buffer.append([parcel([record("k"), record("free")])])
        batch = await take(buffer)
        assert [batch.record(i) for i in range(batch.count)] == [record("free")]
        await buffer.settle([(batch, Delivered())])
        assert isinstance(await buffer.take(EMAIL, LIMITS, ANYTIME), Wait)
        assert buffer.lane(EMAIL).aside == 2  # type: ignore[union-attr]
    async with opened(path) as buffer:  # parked until a restart at most
        first = await take(buffer)
        assert (first.count, first.parked) == (1, True)
        await buffer.settle([(first, Delivered())])
        assert (await take(buffer)).record(0) == record("k")


async def test_a_record_of_about_now_waits_in_its_lane(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        await buffer.append([parcel([record("s", time="2026-01-01T00:00:00.000Z")])])
        assert await buffer.take(EMAIL, LIMITS, Gate(now_ms=T0 + 1999, margin_ms=2000)) == Wait(T0 + 2000)
        assert (await take(buffer, gate=Gate(now_ms=T0 + 2000, margin_ms=2000))).count == 1
        assert buffer.lane(EMAIL).aside == 0  # type: ignore[union-attr]


async def test_a_record_further_ahead_waits_aside_until_its_time(opened: Opener, path: Path) -> None:
    ahead = record("ahead", time="2026-01-01T01:00:00.000Z")
    async with opened(path) as buffer:
        await buffer.append([parcel([record("a"), ahead, record("b")])])
        gate = Gate(now_ms=T0 + 60_000, margin_ms=2000)
        batch = await take(buffer, gate=gate)
        assert [batch.record(i) for i in range(batch.count)] == [record("a"), record("b")]
        await buffer.settle([(batch, Delivered())])
        assert await buffer.take(EMAIL, LIMITS, gate) == Wait(T0 + 3_602_000)
    async with opened(path) as buffer:
        assert (await take(buffer, gate=Gate(now_ms=T0 + 3_602_000, margin_ms=2000))).record(0) == ahead


async def test_a_record_too_far_ahead_becomes_a_dead_letter(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        await buffer.append([parcel([record("s", time="2026-01-03T00:00:00.000Z")])])
        assert await buffer.take(EMAIL, LIMITS, Gate(now_ms=T0, margin_ms=2000)) is None
        assert buffer.ledger()["dead"] == 1


async def test_a_dead_letter_is_superseded_when_its_key_is_accepted_again(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        await buffer.append([parcel([record("k")])])
        await buffer.settle([(await take(buffer), Dead("no", 400, "because"))])
        await buffer.append([parcel([record("k", pad=1)])])
        assert (buffer.ledger()["dead"], buffer.ledger()["superseded"]) == (0, 1)
        assert await deadletters.retry(buffer, None) == 0
        assert await everything(buffer) == [record("k", pad=1)]
        assert await deadletters.retry(buffer, None, force=True) == 1
        assert await everything(buffer) == [record("k")]
        assert adds_up(buffer.ledger())


async def test_dead_letters_are_superseded_after_a_restart_too(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        await buffer.append([parcel([record("k")])])
        await buffer.settle([(await take(buffer), Dead("no"))])
    async with opened(path) as buffer:
        await buffer.append([parcel([record("k")])])
        assert buffer.ledger()["superseded"] == 1


async def test_dead_letters_have_a_bound_and_nothing_is_buried_beyond_it(opened: Opener, path: Path) -> None:
    async with opened(path, dead_max=500) as buffer:
        await buffer.append([parcel([record(f"s{i}") for i in range(10)])])
        batch = await take(buffer)
        await buffer.settle([(batch.part(0, 1), Dead("no"))])
        with pytest.raises(DeadLettersFull):
            await buffer.settle([(batch.part(1, 2), Delivered()), (batch.part(2, 10), Dead("no"))])
        assert (buffer.ledger()["dead"], buffer.ledger()["delivered"], buffer.ledger()["pending"]) == (1, 0, 9)


async def test_settling_twice_counts_once(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        await buffer.append([parcel([record(f"s{i}") for i in range(5)])])
        batch = await take(buffer)
        await buffer.settle([(batch, Delivered())])
        await buffer.settle([(batch, Delivered())])
        assert buffer.ledger()["delivered"] == 5
        assert adds_up(buffer.ledger())


async def test_what_only_reads_writes_nothing(opened: Opener, path: Path) -> None:
    def serial(work: Work) -> int:
        return int(work.conn.execute("SELECT value FROM meta WHERE name = 'serial'").fetchone()[0])

    async with opened(path) as buffer:
        commits: list[float] = []
        buffer.on_commit = commits.append
        await buffer.append([parcel([record("a"), record("b")])])
        before = await buffer.run(serial)
        for _ in range(3):
            batch = await buffer.take(EMAIL, LIMITS, ANYTIME)
            assert isinstance(batch, Batch)
        assert (await buffer.run(serial), len(commits)) == (before, 1)
        await buffer.look()
        assert (await buffer.run(serial), len(commits)) == (before + 1, 2), "a look at the disk does write"
        await buffer.settle([(batch, Delivered())])
        assert (await buffer.run(serial), len(commits)) == (before + 2, 3)


def small(count: int) -> list[str]:
    return [f"s{i:04}" for i in range(count)]


async def trickle(buffer: Buffer, salts: list[str]) -> None:
    """Records that come one by one: each is a row of its own."""
    for salt in salts:
        await buffer.append([parcel([record(salt)])])


async def test_a_record_does_not_wait_until_hundreds_of_rows_are_taken(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        await trickle(buffer, small(300))
    async with opened(path) as buffer:  # nothing of it is in memory any more
        order: list[str] = []
        taking = asyncio.create_task(take(buffer))
        taking.add_done_callback(lambda _: order.append("taken"))
        await asyncio.sleep(0)  # it is queued
        await buffer.append([parcel([record("new", email="b@example.com")])])
        order.append("stored")
        batch = await taking
        assert order == ["stored", "taken"]
        assert [batch.record(i) for i in range(batch.count)][:300] == [record(salt) for salt in small(300)]
        assert await everything(buffer) == [*map(record, small(300)), record("new", email="b@example.com")]


@pytest.mark.parametrize("erased", [0, 10, 63, 64, 150, 299])
@pytest.mark.parametrize("in_memory", [True, False])
async def test_what_leaves_a_lane_while_its_rows_are_read_is_not_in_the_batch(
    opened: Opener, path: Path, rows_read: list[int], in_memory: bool, erased: int
) -> None:
    async with AsyncExitStack() as stack:
        salts = small(300)
        buffer = await stack.enter_async_context(opened(path))
        await trickle(buffer, salts)
        if not in_memory:
            await stack.aclose()
            buffer = await stack.enter_async_context(opened(path))
        forgetting = asyncio.create_task(search.forget(buffer, search.Query(salt=salts[erased])))
        rounds = 0
        while not forgetting.done():  # so that one of the takes is under way when it happens
            buffer.release(await take(buffer))
            rounds += 1
        # some take came after it, or the one from the file began anew: `forget` reads each row once, too
        assert rounds > 1 if in_memory else len(rows_read) > 2 * len(salts)
        await forgetting
        assert await everything(buffer) == [record(salt) for i, salt in enumerate(salts) if i != erased]
        assert buffer.ledger()["discarded"] == 1


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of the rows whose bytes were read from the file."""
    load, ids = Chunk.load, list[int]()

    def counted(row: Any, lane: Lane) -> Chunk | None:
        ids.append(row[0])
        return load(row, lane)

    monkeypatch.setattr(Chunk, "load", counted)
    return ids


async def test_what_leaves_as_it_comes_is_not_read_from_the_file(
    opened: Opener, path: Path, rows_read: list[int]
) -> None:
    async with opened(path) as buffer:
        salts, sent = iter(small(100)), []
        for _ in range(5):
            await trickle(buffer, list(islice(salts, 7)))
            batch = await take(buffer)
            await trickle(buffer, list(islice(salts, 3)))  # while it is on its way
            await buffer.settle([(batch, Delivered())])
            sent += [batch.record(i) for i in range(batch.count)]
        assert sent + await everything(buffer) == [record(salt) for salt in small(50)]
        assert not rows_read
        await trickle(buffer, ["kept"])
    async with opened(path) as buffer:
        assert await everything(buffer) == [record("kept")]
        assert len(rows_read) == 1


async def test_the_head_of_a_lane_is_named_only_where_it_is_known(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        assert buffer.head(EMAIL) is None
        await trickle(buffer, small(3))
        first = buffer.head(EMAIL)
        batch = await take(buffer, limits=Limits(2, 10_000))
        assert first == batch.spans[0].chunk.id
        await buffer.settle([(batch, Delivered())])
        assert buffer.head(EMAIL) == batch.spans[-1].chunk.id + 1
        await search.forget(buffer, search.Query(salt="s0002"))
        assert buffer.head(EMAIL) is None
        await trickle(buffer, ["t"])
    async with opened(path) as buffer:
        assert buffer.head(EMAIL) is None  # it is in the file: a take finds out
        await trickle(buffer, ["u"])
        assert buffer.head(EMAIL) is None
        await take(buffer)
        assert buffer.head(EMAIL) is not None


async def test_of_a_backlog_a_request_s_worth_is_kept_in_memory(
    opened: Opener, path: Path, rows_read: list[int]
) -> None:
    salts = small(1500)
    async with opened(path) as buffer:
        for start in range(0, 1500, 50):
            await buffer.append([parcel([record(salt) for salt in salts[start : start + 50]])])
        await buffer.settle([((batch := await take(buffer)), Delivered())])
        await trickle(buffer, ["new"])  # there is room for it, but not for what stands before it
        sent = [batch.record(i) for i in range(batch.count)] + await everything(buffer)
        assert sent == [record(salt) for salt in [*salts, "new"]]
        assert len(set(rows_read)) == 11


@pytest.mark.parametrize("new", [[], ["new"]])
async def test_what_an_errored_commit_removed_is_not_sent_from_memory(
    opened: Opener, path: Path, new: list[str]
) -> None:
    async with opened(path) as buffer:
        await trickle(buffer, ["old", "kept"])
        batch = await take(buffer, limits=Limits(1, 10_000))

        def fails(_: float) -> None:
            buffer.on_commit = None
            raise sqlite3.OperationalError("disk I/O error")

        buffer.on_commit = fails  # told when the rows are gone already
        with pytest.raises(Unknown):
            await buffer.settle([(batch, Delivered())])
        await trickle(buffer, new)
        await buffer.quiet()
        assert buffer.head(EMAIL) is None
        assert await everything(buffer) == [record(salt) for salt in ["kept", *new]]
        assert adds_up(buffer.ledger())


async def test_what_left_the_middle_of_a_lane_is_not_sent_from_memory(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        lanes = {EMAIL: "a@example.com", UUID: "b@example.com"}
        for lane, email in lanes.items():
            await buffer.append([parcel([record(f"{lane}{i}", email=email)], lane) for i in range(3)])
            await buffer.append([parcel([record(f"{lane}{i}", email=email)], lane) for i in range(3, 6)])
        for lane in lanes:
            batch = await take(buffer, lane)
            await buffer.settle([(batch.pick([1]), Delivered()), (batch.pick([4]), Dead("refused"))])
            buffer.release(batch)
        for lane, email in lanes.items():
            await buffer.append([parcel([record(f"{lane}6", email=email)], lane)])
        for lane, email in reversed(lanes.items()):
            assert await everything(buffer, lane) == [record(f"{lane}{i}", email=email) for i in (0, 2, 3, 5, 6)]


@pytest.mark.parametrize("missing", [(), (0,), (3,), (4,), (9,), (0, 1), (3, 7)])
async def test_rows_are_deleted_for_what_was_sent_and_nothing_else(
    opened: Opener, path: Path, missing: tuple[int, ...]
) -> None:
    """What leaves a lane at once and what leaves it row by row is told apart."""
    async with opened(path) as buffer:
        await trickle(buffer, small(10))
        batch = await take(buffer)
        sent = [i for i in range(10) if i not in missing]
        await buffer.settle([(batch.pick(sent), Delivered())])
        assert (buffer.ledger()["delivered"], buffer.ledger()["pending"]) == (len(sent), len(missing))
        await buffer.settle([(batch, Delivered())])
        assert (buffer.ledger()["delivered"], buffer.ledger()["pending"]) == (10, 0)
        notes = await buffer.run(lambda work: work.conn.execute("SELECT count(*) FROM gone").fetchone())
        assert notes == (0,), "nothing is noted of rows that the head has passed"
        state = buffer.lane(EMAIL)
        assert state is not None and (state.pending, state.bytes) == (0, 0)


async def test_a_row_that_took_the_place_of_a_sent_one_is_not_deleted_for_it(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        await trickle(buffer, small(4))
        batch = await take(buffer)
        await buffer.settle([(batch.pick([1]), Delivered())])
        # as many rows, and as many records in them, as the part that is settled now
        await buffer.settle([(batch.pick([0, 1, 3]), Delivered())])
        assert (buffer.ledger()["delivered"], buffer.ledger()["pending"]) == (3, 1)
        assert await everything(buffer) == [record("s0002")]


async def test_an_exception_in_a_unit_undoes_that_unit_alone(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:

        def works(work: Work) -> None:
            work.ledger["accepted"] += 1
            work.insert_chunk(EMAIL, [record("done")], [Run(1, T0, None, 0)], T0)

        def fails(work: Work) -> None:
            work.ledger["lost"] += 7
            work.conn.execute("INSERT INTO meta VALUES ('x', 1)")
            work.insert_chunk(EMAIL, [record("undone")], [Run(1, T0, None, 0)], T0)
            raise RuntimeError("mine")

        results = await asyncio.gather(
            buffer.run(fails),
            buffer.append([parcel([record("s")])]),
            buffer.run(works),
            buffer.run(fails),
            return_exceptions=True,
        )
        assert isinstance(results[0], RuntimeError)
        assert isinstance(results[3], RuntimeError)
        assert results[1] is None
        assert buffer.ledger()["lost"] == 0
        assert await buffer.run(
            lambda work: work.conn.execute("SELECT count(*) FROM meta WHERE name = 'x'").fetchone()
        ) == (0,)
        assert await everything(buffer) == [record("done"), record("s")]
        assert adds_up(buffer.ledger())


# -- bounds -------------------------------------------------------------------------------------


async def fill(buffer: Buffer, lane: Lane, pad: int = 3000) -> int:
    """Append until refused; how many went in."""
    for count in range(100_000):
        try:
            await buffer.append([parcel([record(f"{lane}{count}-{i}", pad=pad) for i in range(20)], lane)])
        except Full as full:
            assert full.retry_after_s > 0
            return count * 20
    raise AssertionError("never full")


async def test_a_full_buffer_refuses_and_accepts_again_once_drained(opened: Opener, path: Path) -> None:
    async with opened(path, max_size=4 * 1024 * 1024) as buffer:
        accepted = await fill(buffer, EMAIL)
        assert buffer.used_bytes <= 0.95 * Sizes(4 * 1024 * 1024).usable
        assert sum(file.stat().st_size for file in path.parent.iterdir()) <= 4 * 1024 * 1024
        assert buffer.ledger()["accepted"] == accepted
        assert len(await everything(buffer)) == accepted
        await buffer.append([parcel([record("again")])])


async def test_bulk_and_single_lanes_leave_room_for_the_others(opened: Opener, path: Path) -> None:
    async with opened(path, max_size=8 * 1024 * 1024) as buffer:
        usable = Sizes(8 * 1024 * 1024).usable
        await fill(buffer, BULK)
        assert buffer.used_bytes <= 0.70 * usable
        await buffer.append([parcel([record("live")], EMAIL)])
        await fill(buffer, UUID)
        await fill(buffer, EMAIL)
        assert buffer.used_bytes <= 0.95 * usable
        assert adds_up(buffer.ledger())


async def test_one_lane_may_not_take_the_whole_buffer_while_others_hold_records(opened: Opener, path: Path) -> None:
    async with opened(path, max_size=8 * 1024 * 1024) as buffer:
        await buffer.append([parcel([record("other")], UUID)])
        await fill(buffer, EMAIL)
        state = buffer.lane(EMAIL)
        assert state is not None
        assert state.bytes <= 0.80 * Sizes(8 * 1024 * 1024).usable
        await buffer.append([parcel([record("more", pad=3000)], UUID)])


async def test_discard_oldest_makes_room_and_counts_what_it_dropped(opened: Opener, path: Path) -> None:
    async with opened(path, max_size=4 * 1024 * 1024, when_full="discard-oldest") as buffer:
        for i in range(120):
            await buffer.append([parcel([record(f"s{i}-{j}", pad=3000) for j in range(20)])])
        ledger = buffer.ledger()
        assert ledger["accepted"] == 2400
        assert ledger["discarded"] > 0
        assert adds_up(ledger)
        left = await everything(buffer)
        assert left[-1] == record("s119-19", pad=3000)
        assert len(left) == 2400 - ledger["discarded"]


async def test_what_is_in_hand_is_not_discarded(opened: Opener, path: Path) -> None:
    async with opened(path, max_size=4 * 1024 * 1024, when_full="discard-oldest") as buffer:
        await buffer.append([parcel([record(f"first{j}", pad=3000) for j in range(20)])])
        batch = await take(buffer)
        for i in range(120):
            await buffer.append([parcel([record(f"s{i}-{j}", pad=3000) for j in range(20)])])
        await buffer.settle([(batch, Delivered())])
        assert buffer.ledger()["delivered"] == 20


# -- the file -----------------------------------------------------------------------------------


async def test_a_second_owner_is_refused_and_told_who_the_first_is(opened: Opener, path: Path) -> None:
    async with opened(path):
        with pytest.raises(BufferInUse, match=f"process {os.getpid()}"):
            await Buffer.open(path)
    async with opened(path) as buffer:
        assert buffer.ledger()["accepted"] == 0


async def test_a_shell_cannot_open_the_file_meanwhile(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        await buffer.append([parcel([record("s")])])
        other = sqlite3.connect(path, timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("SELECT * FROM chunks")
        other.close()
        assert not path.with_name("tillpost.db-shm").exists()


async def test_files_are_private_whatever_the_umask(path: Path) -> None:
    old = os.umask(0)
    try:
        async with sqlite_buffer(path.parent / "new" / "tillpost.db") as buffer:
            await buffer.append([parcel([record("s")])])
            folder = buffer.path.parent
            assert folder.stat().st_mode & 0o777 == 0o700
            assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    finally:
        os.umask(old)


async def test_another_applications_database_is_refused_untouched(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(BufferUnusable, match="another application"):
        await Buffer.open(path)
    assert path.read_bytes() == before


async def test_a_newer_schema_is_refused_untouched(path: Path) -> None:
    async with sqlite_buffer(path):
        pass
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {schema.newest() + 1}")
    newer.close()
    before = path.read_bytes()
    with pytest.raises(BufferUnusable, match="newer Tillpost"):
        await Buffer.open(path)
    assert path.read_bytes() == before


async def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BufferUnusable, match="Check"):
        await Buffer.open(tmp_path / "file" / "tillpost.db")


async def test_a_damaged_chunk_is_buried_and_the_others_flow(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        await buffer.append([parcel([record("bad1"), record("bad2")])])
        await buffer.append([parcel([record("good")])])

        def damage(work: object) -> None:
            work.conn.execute("UPDATE chunks SET body = CAST(replace(body, 'bad1', 'BAD1') AS BLOB) WHERE n = 2")  # type: ignore[attr-defined]

        await buffer.run(damage)
    async with opened(path) as buffer:  # what came in lately is in memory, unharmed
        assert await everything(buffer) == [record("good")]
        assert buffer.ledger()["dead"] == 2
        assert await deadletters.retry(buffer, None, force=True) == 0, "damaged bytes are never sent"
        assert adds_up(buffer.ledger())


async def test_a_failed_commit_is_unknown_and_the_buffer_goes_on(opened: Opener, path: Path) -> None:
    async with opened(path) as buffer:
        await buffer.append([parcel([record("before")])])

        def breaks(work: object) -> None:
            work.conn.execute("ROLLBACK")  # type: ignore[attr-defined]  # the COMMIT that follows fails

        with pytest.raises(Unknown):
            await buffer.run(breaks)
        await buffer.append([parcel([record("after")])])
        assert await everything(buffer) == [record("before"), record("after")]


async def test_three_failed_commits_in_a_minute_fail_the_buffer_until_it_is_revived(path: Path) -> None:
    async with sqlite_buffer(path) as buffer:
        for _ in range(3):
            with pytest.raises(Unknown):
                await buffer.run(lambda work: work.conn.execute("ROLLBACK") and None)
            await buffer.quiet()
        assert buffer.failed is not None
        with pytest.raises(Unknown):
            await buffer.append([parcel([record("s")])])
        assert await buffer.revive()
        await buffer.append([parcel([record("s")])])


async def test_every_setting_that_durability_rests_on_is_in_force(path: Path) -> None:
    async with sqlite_buffer(path) as buffer:

        def pragmas(work: object) -> dict[str, object]:
            names = ("journal_mode", "synchronous", "locking_mode", "auto_vacuum", "secure_delete", "application_id")
            return {n: work.conn.execute(f"PRAGMA {n}").fetchone()[0] for n in names}  # type: ignore[attr-defined]

        assert await buffer.run(pragmas) == {
            "journal_mode": "wal",
            "synchronous": 2,
            "locking_mode": "exclusive",
            "auto_vacuum": 2,
            "secure_delete": 2,
            "application_id": schema.APPLICATION_ID,
        }


def test_only_public_names_of_aiosqlite_are_used() -> None:
    sources = "\n".join(file.read_text() for file in (Path(__file__).parents[2] / "collector").rglob("*.py"))
    used = set(re.findall(r"\b_?db\.(?!lock|sock)(\w+)", sources)) | set(re.findall(r"aiosqlite\.(\w+)", sources))
    assert used, "the expression no longer finds what it is meant to watch"
    public = {name for name in dir(aiosqlite.Connection) if not name.startswith("_")} | set(aiosqlite.__all__)
    assert used <= public
    for name in ("_conn", "_execute", "_tx", "_thread", "_connection"):
        assert not re.search(rf"_db\.{name}\b", sources)


async def test_the_lanes_are_kept_apart(opened: Opener, path: Path) -> None:
    sale = (
        b'{"orderId":"1","recordedAt":"2026-01-01T00:00:00.000Z","eventSalt":"o1","client":{"customId":"c"},'
        b'"paymentInfo":{"method":"CASH"}}'
    )
    async with opened(path) as buffer:
        await buffer.append([parcel([record("a")]), parcel([record("b")], BULK), parcel([sale], SALES)])
        assert [str(state.lane) for state in buffer.lanes()] == [
            "events/email/bulk",
            "events/email/live",
            "transactions/customId/live",
        ]
        assert (await take(buffer, SALES)).body == b"[" + sale + b"]"


FORKING = """
import asyncio, gc, os, sys, threading
from pathlib import Path
from collector.buffer import Buffer
from tests.collector.buffers import parcel, record

path, ending = Path(sys.argv[1]), sys.argv[2]
loop = asyncio.new_event_loop()  # as the collector does: its loop in a daemon thread, the application forks elsewhere
threading.Thread(target=loop.run_forever, daemon=True).start()

def on_loop(work):
    return asyncio.run_coroutine_threadsafe(work, loop).result(30)

buffer = on_loop(Buffer.open(path))
for i in range(50):
    on_loop(buffer.append([parcel([record(f"before{i}")])]))
child = os.fork()
if child == 0:
    if ending == "exit":
        sys.exit(0)
    if ending == "_exit":
        os._exit(0)
    if ending == "exception":
        raise RuntimeError("the child's own trouble")
    if ending == "collected":
        del buffer, loop
        gc.collect()
        sys.exit(0)
os.waitpid(child, 0)
for i in range(50):
    on_loop(buffer.append([parcel([record(f"after{i}")])]))
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("ending", ["exit", "_exit", "exception", "collected"])
async def test_a_forked_child_that_ends_takes_nothing_with_it(path: Path, ending: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, str(path), ending], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == -9, done.stderr.decode()
    async with sqlite_buffer(path) as buffer:
        assert len(await everything(buffer)) == 100
