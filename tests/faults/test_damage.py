"""Damaged buffers (guarantees G2 and G10): it starts, sends nothing damaged, and says what is lost.

The long form is ``python -m tests.faults.damage 1000``; ``docs/guarantees.md`` has its result.
"""

import asyncio
import gc
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import pytest

from collector import schema, watermark
from collector.batcher import Batch, Dead, Delivered, Limits
from collector.buffer import Buffer, BufferUnusable, Unknown
from collector.image import Image, _shapes
from collector.kinds import Lane
from collector.work import PAGE, Work
from tests.collector.buffers import ANYTIME, EMAIL, LIMITS, UUID, adds_up, parcel, record
from tests.faults.damage import made_base, trials

TRIALS = 40
"""Of each of the two buffers below; any number over eight of them in the long form."""


@pytest.mark.parametrize(("seed", "killed"), [(1, True), (3, False)])
async def test_whatever_happens_to_its_files_it_starts_and_tells_the_truth(seed: int, killed: bool) -> None:
    base = made_base(seed, 30, killed=killed)
    other = made_base(2, 30, killed=True)
    told = await trials([base, other], base, range(seed * TRIALS, (seed + 1) * TRIALS))
    assert told.faults == []
    assert told.counts["started"] + told.counts["refused"] == TRIALS
    assert told.counts["quarantined"] > TRIALS // 4, "the damage is not felt"
    assert told.counts["with records gone"] > TRIALS // 8, "nothing was ever lost: nothing was proven"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tillpost.db"


def killed(path: Path, folder: Path) -> Path:
    """The files as they are at this moment, which is how SIGKILL leaves them."""
    folder.mkdir()
    for file in (path, log(path), mark(path)):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / path.name


def log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def mark(path: Path) -> Path:
    return path.with_name(path.name + ".mark")


async def held(buffer: Buffer) -> list[bytes]:
    found: list[bytes] = []
    while isinstance(batch := await buffer.take(EMAIL, LIMITS, ANYTIME), Batch):
        found += [batch.record(i) for i in range(batch.count)]
        await buffer.settle([(batch, Delivered())])
    return found


async def held_in_the_end(buffer: Buffer) -> set[bytes]:
    """Every record that leaves, although damage shows meanwhile and what can be salvaged comes later."""
    taken: set[bytes] = set()
    for _ in range(100):
        try:
            taken |= set(await held(buffer))
        except Unknown:
            continue
        if buffer.damage is None or buffer.damage.done:
            return taken | set(await held(buffer))
        assert buffer._salvager is not None
        await asyncio.wait((buffer._salvager,), timeout=10)
    raise AssertionError("it never came to an end")


async def test_a_log_that_is_gone_is_told_record_by_record(path: Path, tmp_path: Path) -> None:
    buffer = await Buffer.open(path)
    await buffer.append([parcel([record("early")])])
    await buffer.close()
    buffer = await Buffer.open(path)
    await buffer.append([parcel([record(f"late-{i}") for i in range(30)])])
    batch = await buffer.take(EMAIL, Limits(11, 100_000), ANYTIME)  # the early one and ten late ones
    assert isinstance(batch, Batch)
    await buffer.settle([(batch.part(0, 10), Delivered()), (batch.part(10, 11), Dead("bad"))])
    copy = killed(path, tmp_path / "copy")
    await buffer.close()
    log(copy).unlink()
    buffer = await Buffer.open(copy)
    try:
        ledger = buffer.ledger()
        assert (ledger["accepted"], ledger["delivered"], ledger["pending"], ledger["dead"]) == (31, 10, 0, 0)
        assert (ledger["lost"], ledger["lost_at_most"]) == (21, 21), "20 were pending, one was a dead letter"
        assert adds_up(ledger)
        assert await held(buffer) == [], "what was delivered is not sent again"
        await buffer.append([parcel([record("new")])])
        assert await held(buffer) == [record("new")]
    finally:
        await buffer.close()


async def test_a_schema_that_lost_a_letter_is_damage_also_where_only_a_take_meets_it(path: Path) -> None:
    records = [record(f"s{i}") for i in range(20)]
    buffer = await Buffer.open(path)
    await buffer.append([parcel(records)])
    await buffer.close()
    content = path.read_bytes()
    assert b"\n    runs " in content
    path.write_bytes(content.replace(b"\n    runs ", b"\n    rujs "))
    buffer = await Buffer.open(path)
    try:
        assert await held_in_the_end(buffer) == set(records)
        assert buffer.damage is not None
        assert buffer.failed is None
        assert (buffer.ledger()["pending"], buffer.ledger()["lost_at_most"]) == (0, 0)
    finally:
        await buffer.close()


async def test_one_damaged_frame_costs_none_of_the_frames_behind_it(path: Path, tmp_path: Path) -> None:
    """SQLite ignores everything behind it, and calls the rest sound."""
    buffer = await Buffer.open(path)
    for i in range(40):
        await buffer.append([parcel([record(f"s{i}")])])
    copy = killed(path, tmp_path / "copy")
    await buffer.close()
    data = bytearray(log(copy).read_bytes())
    data[32 + 60 * (PAGE + 24) + 2000] ^= 1
    log(copy).write_bytes(data)
    buffer = await Buffer.open(copy)
    try:
        assert buffer.damage is not None
        assert len(await held(buffer)) == 40
        assert buffer.ledger()["lost_at_most"] == 0
    finally:
        await buffer.close()


async def test_after_a_power_cut_the_truth_lies_between_two_bounds(path: Path, tmp_path: Path) -> None:
    buffer = await Buffer.open(path)
    await buffer.append([parcel([record(f"s{i}") for i in range(100)])])
    buffer._mark.sync()
    synced = mark(path).read_bytes()
    await buffer.append([parcel([record(f"t{i}") for i in range(50)])])
    copy = killed(path, tmp_path / "copy")
    await buffer.close()
    facts = watermark.read(copy)
    assert facts is not None
    mark(copy).write_bytes(synced)
    older = watermark.read(copy)
    assert older is not None
    older = msgspec.structs.replace(older, boot="before the power cut")
    mark(copy).write_bytes(watermark._encode(1, older))
    copy.write_bytes(b"")
    log(copy).unlink()
    buffer = await Buffer.open(copy)
    try:
        ledger = buffer.ledger()
        assert ledger["lost"] <= 150 <= ledger["lost_at_most"]
        assert ledger["lost_at_most"] == older.accepted_max, "no more than was promised"
        assert adds_up(ledger)
    finally:
        await buffer.close()


async def test_no_more_is_accepted_than_the_mark_on_the_disk_allows(path: Path) -> None:
    buffer = await Buffer.open(path)
    try:
        for burst in (10, 900, 5000, 10_000):
            for start in range(0, burst, 1000):
                some = [record(f"{burst}-{start + i}") for i in range(min(1000, burst - start))]
                await buffer.append([parcel(some)])
                facts = watermark.read(path)
                assert facts is not None
                assert facts.ledger == buffer.ledger(), "every commit is noted before it is acknowledged"
                assert facts.ledger["accepted"] <= facts.accepted_max
    finally:
        await buffer.close()


@pytest.mark.parametrize("slot", range(watermark.SLOTS))
async def test_a_torn_slot_of_the_mark_leaves_the_others(path: Path, slot: int) -> None:
    buffer = await Buffer.open(path)
    for i in range(watermark.SLOTS + 1):
        await buffer.append([parcel([record(f"s{i}")])])
        buffer._mark.sync()
    await buffer.close()
    data = bytearray(mark(path).read_bytes())
    data[slot * watermark.SLOT_BYTES + 40] ^= 1
    mark(path).write_bytes(data)
    facts = watermark.read(path)
    assert facts is not None
    assert facts.ledger["accepted"] >= watermark.SLOTS - 1
    assert not watermark.is_current(facts, buffer.clock.boot_id()), "the one that is torn may have been the latest"


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 9000])
async def test_a_missing_or_damaged_mark_is_no_error(path: Path, content: bytes | None) -> None:
    buffer = await Buffer.open(path)
    await buffer.append([parcel([record("s")])])
    await buffer.close()
    mark(path).unlink() if content is None else mark(path).write_bytes(content)
    buffer = await Buffer.open(path)
    try:
        assert buffer.damage is None
        assert await held(buffer) == [record("s")]
    finally:
        await buffer.close()
    facts = watermark.read(path)
    assert facts is not None
    assert facts.clean


def folder(path: Path) -> None:
    path.mkdir()


def text(path: Path) -> None:
    path.write_text("ours? no: a shopping list\n")


def theirs(path: Path) -> None:
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE theirs (x)")
        conn.execute("PRAGMA application_id = 7")
    conn.close()


@pytest.mark.parametrize("what", [folder, text, theirs])
async def test_what_is_not_ours_is_refused_in_one_line_and_left_alone(path: Path, what: Callable[[Path], None]) -> None:
    what(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(BufferUnusable) as refused:
        await Buffer.open(path)
    assert "\n" not in str(refused.value)
    assert "--buffer" in str(refused.value)
    assert before is None or path.read_bytes() == before
    assert not path.with_name(path.name + ".quarantine").exists()
    gc.collect()  # nothing was left open


async def test_damage_that_shows_while_it_runs_costs_only_what_is_damaged(path: Path) -> None:
    buffer = await Buffer.open(path)
    records = [record(f"s{i}", pad=3000) for i in range(400)]
    for i in range(0, 400, 20):
        await buffer.append([parcel(records[i : i + 20])])
    await buffer.close()
    buffer = await Buffer.open(path)
    try:
        with path.open("r+b") as file:  # behind SQLite's back, on pages it has not read yet
            for page in range(100, 110):
                file.seek(page * PAGE)
                file.write(random.Random(page).randbytes(PAGE))
        taken = await held_in_the_end(buffer)
        ledger = buffer.ledger()
        assert buffer.failed is None
        assert taken <= set(records), "nothing damaged is sent"
        assert len(taken) >= 300
        assert 400 - len(taken) == ledger["lost"] + ledger["dead"], ledger
        assert ledger["lost"] == ledger["lost_at_most"]
        assert adds_up(ledger)
    finally:
        await buffer.close()


async def test_behind_a_damaged_record_the_rest_is_looked_at_before_anything_is_written(path: Path) -> None:
    """A list of free pages that names pages in use: SQLite would write into them, and find nothing wrong."""
    buffer = await Buffer.open(path)
    records = [record(f"s{i}", pad=3000) for i in range(100)]
    for i in range(0, 100, 10):
        await buffer.append([parcel(records[i : i + 10])])
    batch = await buffer.take(EMAIL, Limits(50, 1_000_000), ANYTIME)
    assert isinstance(batch, Batch)
    await buffer.settle([(batch, Delivered())])
    await buffer.close()
    data = bytearray(path.read_bytes())
    at = data.index(b'"eventSalt":"s75"')
    data[at + 14] ^= 1
    trunk = int.from_bytes(data[32:36], "big")
    assert trunk, "there are no free pages"
    for i in range(20):  # its leaves are now pages that hold records
        leaf = (trunk - 1) * PAGE + 8 + 4 * i
        data[leaf : leaf + 4] = (at // PAGE + i + 2).to_bytes(4, "big")
    path.write_bytes(data)
    buffer = await Buffer.open(path)
    try:
        sent = await held_in_the_end(buffer)
        assert buffer.damage is not None
        assert "not sound" in buffer.damage.what
        assert sent == set(records[50:70] + records[80:]), "all but those that stood with it"
        ledger = buffer.ledger()
        assert (ledger["lost"], ledger["lost_at_most"], ledger["dead"]) == (10, 10, 0)
        assert adds_up(ledger)
    finally:
        await buffer.close()


@pytest.mark.parametrize("places", [(1, -2), (2, 3), (1, 4), (-3, -2)])
async def test_leaves_that_changed_places_mix_no_lanes_and_send_nothing_for_ever(
    path: Path, places: tuple[int, int]
) -> None:
    """SQLite trusts the order of its pages: a scan strays into another lane, and what it reads it cannot delete."""
    buffer = await Buffer.open(path)
    records = {lane: [record(f"{lane.identifier}-{i}") for i in range(60)] for lane in (EMAIL, UUID)}
    for lane, some in records.items():
        for one in some:
            await buffer.append([parcel([one], lane)])
    await buffer.close()
    data = bytearray(path.read_bytes())
    with closing(Image(path, None)) as image:
        leaves = sorted({page for page, _, _ in image.rows(range(1, image.pages + 1), {"chunks"})})
    one, other = (slice((leaves[i] - 1) * PAGE, leaves[i] * PAGE) for i in places)
    data[one], data[other] = data[other], data[one]
    path.write_bytes(data)
    buffer = await Buffer.open(path)
    try:
        taken: dict[Lane, list[bytes]] = {EMAIL: [], UUID: []}
        for _ in range(4):
            for lane, found in taken.items():
                with suppress(Unknown):
                    batch = await buffer.take(lane, LIMITS, ANYTIME)
                    if isinstance(batch, Batch):
                        found += [batch.record(i) for i in range(batch.count)]
                        await buffer.settle([(batch, Delivered())])
            if buffer._salvager is not None:
                await asyncio.wait((buffer._salvager,), timeout=10)
        for lane, found in taken.items():
            assert sorted(found) == sorted(records[lane]), (len(found), buffer.ledger(), buffer.damage, buffer.failed)
        assert buffer.ledger()["pending"] == buffer.ledger()["lost_at_most"] == 0
        assert adds_up(buffer.ledger())
    finally:
        await buffer.close()


@pytest.mark.parametrize(
    "number",
    [
        "UPDATE chunks SET id = id + (1 << 30) WHERE id = (SELECT max(id) FROM chunks)",
        "UPDATE chunks SET id = 9223372036854775807 - id WHERE id = (SELECT min(id) FROM chunks)",
        "UPDATE dead SET id = id + (1 << 30)",
        "UPDATE lanes SET id = 1 << 60",
    ],
)
async def test_a_damaged_number_of_a_row_makes_no_record_of_two(path: Path, number: str) -> None:
    """No checksum covers the number. What is found under another one is not new, and the one it had is not lost."""
    buffer = await Buffer.open(path)
    for salt in ("dead", "a", "b", "c"):
        await buffer.append([parcel([record(salt)])])
    batch = await buffer.take(EMAIL, Limits(1, 1000), ANYTIME)
    assert isinstance(batch, Batch)
    await buffer.settle([(batch, Dead("no"))])
    await buffer.close()
    with sqlite3.connect(path) as conn:
        assert conn.execute(number).rowcount == 1
    conn.close()
    buffer = await Buffer.open(path)
    try:
        assert buffer.damage is not None
        found = await held_in_the_end(buffer)
        ledger = buffer.ledger()
        beyond = "9223372036854775807" in number  # such a number no row of ours can have
        assert found == {record(salt) for salt in ("a", "b", "c") if not (beyond and salt == "a")}
        assert (ledger["accepted"], ledger["dead"], ledger["lost"], ledger["lost_at_most"]) == (4, 1, beyond, beyond)
        assert adds_up(ledger)
    finally:
        await buffer.close()


@pytest.mark.parametrize("spoil", ["NULL", "CAST(body AS TEXT)", "CAST(x'7bff' AS TEXT)"])
async def test_a_row_without_bytes_where_bytes_belong_stalls_no_lane(
    path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    buffer = await Buffer.open(path)
    for salt in ("a", "b", "c"):
        await buffer.append([parcel([record(salt)])])
    await buffer.close()
    with sqlite3.connect(path) as conn:  # no UPDATE could write a NULL there, damage can
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'chunks'")
    conn.close()
    with sqlite3.connect(path) as conn:
        conn.execute(f"UPDATE chunks SET body = {spoil} WHERE id = (SELECT min(id) + 1 FROM chunks)")
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute("UPDATE sqlite_master SET sql = replace(sql, ' BLOB ', ' BLOB NOT NULL ') WHERE name = 'chunks'")
    conn.close()
    buffer = await Buffer.open(path)
    try:
        assert await held_in_the_end(buffer) == {record("a"), record("c")}
        assert buffer.damage is not None
        assert (buffer.ledger()["lost"], buffer.ledger()["lost_at_most"]) == (1, 1)
    finally:
        await buffer.close()


async def test_damage_sqlite_finds_puts_the_running_buffer_into_quarantine(path: Path) -> None:
    buffer = await Buffer.open(path)
    try:
        await buffer.append([parcel([record("kept")])])

        def corrupt(work: object) -> None:
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error

        with pytest.raises(Unknown):
            await buffer.run(corrupt)
        await buffer.quiet()
        await buffer.append([parcel([record("new")])])
        assert buffer._salvager is not None
        await asyncio.wait((buffer._salvager,), timeout=10)
        assert await held(buffer) == [record("kept"), record("new")]
        assert buffer.damage is not None
        assert buffer.ledger()["lost_at_most"] == 0
        assert (path.with_name(path.name + ".quarantine") / path.name).exists()
    finally:
        await buffer.close()


def how_far(work: Work) -> str | None:
    """The note of a salvage that is not done."""
    row = work.conn.execute("SELECT value FROM meta WHERE name = 'salvage'").fetchone()
    return row[0] if row else None


async def test_a_long_salvage_goes_on_in_the_background_and_after_a_restart(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = await Buffer.open(path, max_size=32 * 1024 * 1024)
    records = [record(f"s{i}", pad=3000) for i in range(2000)]
    for i in range(0, 2000, 100):
        await buffer.append([parcel(records[i : i + 100])])
    await buffer.close()
    data = bytearray(path.read_bytes())
    data[16] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr("collector.buffer.SALVAGE_FIRST_S", 0.0)
    taken: list[bytes] = []
    starts = 0
    noted = None
    while True:
        buffer = await Buffer.open(path, max_size=32 * 1024 * 1024)
        starts += 1
        try:
            assert adds_up(buffer.ledger())
            assert buffer.ledger()["pending"] == 2000 - len(taken), "what waits to be salvaged is pending"
            while (progress := await buffer.run(how_far)) == noted:  # then it is stopped again
                assert progress is not None
            noted = progress
            if isinstance(batch := await buffer.take(EMAIL, LIMITS, ANYTIME), Batch):
                taken += [batch.record(i) for i in range(batch.count)]
                await buffer.settle([(batch, Delivered())])
            assert buffer.damage is not None
            if buffer.damage.done:
                taken += await held(buffer)
                break
        finally:
            await buffer.close()
    assert taken == records, "in their order, each once"
    assert starts > 1
    assert buffer.ledger()["lost_at_most"] == 0


async def test_one_quarantined_file_is_kept_and_no_more(path: Path) -> None:
    quarantine = path.with_name(path.name + ".quarantine")
    for turn in range(3):
        buffer = await Buffer.open(path)
        await buffer.append([parcel([record(f"s{turn}")])])
        await buffer.close()
        path.write_bytes(b"damaged for the %d. time" % turn)
    buffer = await Buffer.open(path)
    try:
        assert buffer.ledger()["lost"] == 3
        assert (quarantine / path.name).read_bytes() == b"damaged for the 2. time"
        assert {file.name for file in quarantine.iterdir()} <= {path.name, log(path).name, mark(path).name}
        assert quarantine.stat().st_mode & 0o777 == 0o700
    finally:
        await buffer.close()


async def test_another_buffers_log_is_not_played_into_ours(path: Path, tmp_path: Path) -> None:
    """SQLite would: nothing in a write-ahead log names its database."""
    (tmp_path / "other").mkdir()
    other = await Buffer.open(tmp_path / "other" / path.name)
    await other.append([parcel([record("theirs")])])
    their_log = log(other.path).read_bytes()
    await other.close()
    buffer = await Buffer.open(path)
    await buffer.append([parcel([record("ours")])])
    await buffer.close()
    log(path).write_bytes(their_log)
    buffer = await Buffer.open(path)
    try:
        assert await held(buffer) == [record("ours")]
        assert buffer.ledger()["lost_at_most"] == 0
    finally:
        await buffer.close()


async def test_every_version_of_the_schema_can_be_salvaged() -> None:
    """`image` tells rows apart by their columns: no two tables may look alike."""
    conn = sqlite3.connect(":memory:")
    schema.migrate(conn)
    tables = [name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    conn.close()
    # ledger and meta look alike, and are told apart by their names
    assert set(_shapes().values()) >= set(tables) - {"ledger"}
