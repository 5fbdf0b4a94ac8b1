"""What a long outage costs: disk, memory, the time to start.

The long forms: ``python -m tests.faults.backlog 1000000`` and ``python -m tests.faults.outage 72 64``.
"""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from collector import buffer as buffer_file
from collector.admission import Policy
from collector.batcher import Aside, Batch, Wait
from collector.outcomes import Later
from collector.parked import Parked
from collector.status import status_of
from tests.collector.buffers import ANYTIME, EMAIL, LIMITS, UUID, opened, parcel, record
from tests.faults.backlog import fill
from tests.faults.machines import HOUR, Machine, World, stamp
from tests.faults.outage import MIB, POLICIES, Minutes, outage

# -- disk ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("when_full", POLICIES)
async def test_offline_for_long_the_files_stay_within_the_size(tmp_path: Path, when_full: Policy) -> None:
    """What does not fit is refused, or discarded for what is newer, and counted."""
    done = await outage(tmp_path, 60, 4 * MIB, when_full)
    assert done.within(4 * MIB)
    assert done.ledger["pending"] > 5_000
    assert (done.refused, done.ledger["discarded"])[when_full == "discard-oldest"] > done.sent / 2


async def test_the_oldest_is_what_is_discarded_although_the_clock_was_set_back(tmp_path: Path) -> None:
    clock = Minutes()
    path = tmp_path / "tillpost.db"
    async with opened(path, max_size=4 * MIB, when_full="discard-oldest", clock=clock) as buffer:
        for number in range(80):
            clock.ms += 60_000 if number != 3 else -365 * 24 * HOUR
            await buffer.append([parcel([record(f"{number}-{i}") for i in range(200)])])
        left = await buffer.run(
            lambda work: [body for (body,) in work.conn.execute("SELECT body FROM chunks ORDER BY id LIMIT 1")]
        )
        discarded = buffer.ledger()["discarded"]
    assert discarded > 0
    assert left[0].startswith(record(f"{discarded // 200}-0"))


async def test_a_lane_at_its_share_discards_its_own_oldest(tmp_path: Path) -> None:
    async with opened(tmp_path / "tillpost.db", max_size=4 * MIB, when_full="discard-oldest") as buffer:
        await buffer.append([parcel([record("other")], UUID)])
        for number in range(80):
            await buffer.append([parcel([record(f"{number}-{i}") for i in range(200)])])
        lanes = {state.lane: state for state in buffer.lanes()}
        ledger = buffer.ledger()
    assert ledger["accepted"] == 16_001
    assert ledger["discarded"] > 0
    assert lanes[UUID].pending == 1


# -- memory and time ----------------------------------------------------------------------------


class Work:
    """Counts what SQLite has to do, which no other program on the machine changes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        prepare = buffer_file.prepare

        def counting(conn: sqlite3.Connection, *args: Any) -> None:
            conn.set_progress_handler(self._step, 10)
            prepare(conn, *args)

        monkeypatch.setattr(buffer_file, "prepare", counting)

    def _step(self) -> int:
        self.steps += 10
        return 0

    def since(self, before: int) -> int:
        return self.steps - before


async def test_the_work_of_starting_taking_and_looking_does_not_grow_with_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, spent = Work(monkeypatch), {}
    for count in (4_000, 8_000):
        path = tmp_path / f"{count}.db"
        await fill(path, count, per_chunk=1)
        before = work.steps
        async with opened(path, max_size=2048 * MIB) as buffer:
            await buffer.append([parcel([record("new")])])
            started = work.since(before)
            assert isinstance(await buffer.take(EMAIL, LIMITS, ANYTIME), Batch)
            taken = work.since(before) - started
            assert (await status_of(buffer, state="running"))["ledger"]["pending"] == count + 1
            spent[count] = (started, taken, work.since(before) - started - taken)
    assert spent[4_000][1] > 1_000, "nothing was counted"
    assert all(more <= 1.2 * less + 100 for less, more in zip(*spent.values(), strict=True)), spent


async def test_the_work_of_taking_does_not_grow_with_what_waits_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a type that is not permitted, say: the rest of the lane flows on, and the others with it."""
    clock, work = Minutes(), Work(monkeypatch)
    spent: list[int] = []
    async with opened(tmp_path / "tillpost.db", max_size=32 * MIB, clock=clock) as buffer:
        for round_ in range(3):
            for part in range(3):
                # another lane's come between: the rows of a lane do not follow upon each other
                for lane in (EMAIL, UUID):
                    salts = [f"{round_}-{part}-{lane.identifier}-{i}" for i in range(200)]
                    await buffer.append([parcel(map(record, salts), lane)])
                    batch = await buffer.take(lane, LIMITS, ANYTIME)
                    assert isinstance(batch, Batch)
                    for half, wait_ms in ((0, 300_000), (1, 330_000)):
                        due_ms = clock.boot_ms() + wait_ms
                        await buffer.settle([(batch.pick(range(half, batch.count, 2)), Aside("denied", due_ms))])
            before = work.steps
            assert isinstance(await buffer.take(EMAIL, LIMITS, ANYTIME), Wait)
            again = work.since(before)
            assert isinstance(await buffer.take(EMAIL, LIMITS, ANYTIME), Wait)
            await status_of(buffer, state="running")
            spent.append(work.since(before) - again)
        assert 0 < spent[-1] <= 1.2 * spent[0] + 100, spent
        clock.ms += 360_000
        batch = await buffer.take(EMAIL, LIMITS, ANYTIME)
        assert isinstance(batch, Batch)
        assert batch.count == 1000


def test_parked_records_wait_as_runs_and_nobody_much_longer_than_told() -> None:
    parked = Parked()
    due = {row: 300_000 + row % 50_000 for row in range(1, 3_000, 2)}
    parked.note(((1, row, ms) for row, ms in due.items()), 0)
    parked.note(((2, row + 1, ms) for row, ms in due.items()), 0)
    previous = None
    for row in due:  # a take that looks at one after the other
        run = parked.run_at(1, row, 0)
        assert run is not None
        previous = run if previous is None else parked.join(1, previous, run, 0)
    assert len(parked._lanes[1]) == 1
    assert parked.run_at(1, 4_000, 0) is None
    assert parked.run_at(3, 1, 0) is None
    for row, ms in due.items():
        assert parked.run_at(1, row, ms - 1) is not None
        assert parked.run_at(1, row, ms * 5 // 4) is None
    parked.note([(1, 5_001, 10_000_000), (1, 5_002, 20_000_000)], 1_000_000)
    assert len(parked._lanes[1]) == 2, "what is over is kept, or what is not alike was joined"


# -- a link that comes and goes -----------------------------------------------------------------


async def test_a_flapping_link_makes_progress(tmp_path: Path) -> None:
    """Up three seconds, down ten, for days: everything arrives once, and being offline is no attempt."""
    hours = 6
    world = World()
    async with world.upstream() as fake:
        till = Machine(world, "boot-1")
        async with world.collector(till, tmp_path) as here:
            request = here.parts.http.request
            cut = 0

            def up() -> bool:
                return world.time.now % 13_000 < 3_000

            async def over_the_link(*args: Any, **named: Any) -> Any:
                nonlocal cut
                if not up():
                    return Later("the upstream cannot be reached", offline=True)
                await world.after(0.4)
                answer = await request(*args, **named)
                await world.after(0.4)
                if up():
                    return answer
                cut += 1
                return Later("the connection broke off before an answer came", sticks=True)

            here.parts.http.request = over_the_link  # type: ignore[method-assign]
            count, oldest = 0, 0.0
            for _ in range(hours * 2):
                await here.take(till, [stamp(till) for _ in range(5)])
                count += 5
                await world.after(1800)
                status = await here.parts.status()
                oldest = max(oldest, *(lane["oldest_age_s"] or 0.0 for lane in status["lanes"]))
            await here.delivered(count, hours=2)
            assert cut > 0, "no answer was lost"
            assert oldest <= 2 * 3600
    world.check()
    assert fake.stored_count == count
