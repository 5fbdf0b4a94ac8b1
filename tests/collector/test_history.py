"""What is remembered of the last hours, and of today across restarts."""

import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from collector.batcher import Delivered
from collector.buffer import Buffer
from collector.history import ERRORS_MAX, MINUTES_MAX, History
from tests.collector.buffers import ANYTIME, EMAIL, LIMITS, parcel, record
from tests.collector.surface import FixedClock

MINUTE = 60_000
HOUR = 60 * MINUTE
NOON = 1_777_896_000_000  # 2026-05-04T12:00:00Z
AWAY = "the upstream cannot be reached"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
async def buffer(tmp_path: Path) -> AsyncIterator[Buffer]:
    opened = await Buffer.open(tmp_path / "tillpost.db", max_size=16 << 20)
    yield opened
    await opened.close()


class Machine(FixedClock):
    """A clock to be set, and whether somebody confirmed it."""

    def __init__(self) -> None:
        super().__init__(NOON, 5_000)
        self.sure = True

    def pass_by(self, ms: int) -> None:
        self.wall += ms
        self.boot += ms


async def remembering(buffer: Buffer, clock: Machine) -> History:
    history = History(buffer, clock, clock.wall_ms, lambda: clock.sure)
    await history.load()
    return history


async def accept(buffer: Buffer, count: int) -> None:
    done = buffer.ledger()["accepted"]
    await buffer.append([parcel(record(f"s{done + i}") for i in range(count))])


async def deliver(buffer: Buffer) -> None:
    batch = await buffer.take(EMAIL, LIMITS, ANYTIME)
    assert batch is not None and hasattr(batch, "count")
    await buffer.settle([(batch, Delivered())])


async def test_minutes_are_differences_of_the_ledger_and_the_last_one_is_of_now(buffer: Buffer) -> None:
    clock = Machine()
    history = await remembering(buffer, clock)
    await accept(buffer, 3)
    clock.pass_by(MINUTE)
    await history.look({})
    await deliver(buffer)
    clock.pass_by(MINUTE // 2)
    await history.look({})
    assert history.minutes(60) == {
        "at": [NOON // 1000 + 60, NOON // 1000 + 90], "accepted": [3, 0], "delivered": [0, 3], "pending": [3, 0],
    }  # fmt: skip
    assert history.minutes(1)["accepted"] == [3, 0]


async def test_a_clock_that_is_set_does_not_fold_the_time_axis(buffer: Buffer) -> None:
    clock = Machine()
    history = await remembering(buffer, clock)
    for _ in range(3):
        clock.pass_by(MINUTE)
        await history.look({})
    clock.wall -= 5 * HOUR
    at = history.minutes(60)["at"]
    assert at == sorted(at) and at[0] == at[-1] - 120 and at[-1] == clock.wall // 1000


async def test_minutes_and_errors_are_bounded(buffer: Buffer) -> None:
    clock = Machine()
    history = await remembering(buffer, clock)
    for i in range(MINUTES_MAX + 50):
        clock.pass_by(MINUTE)
        await history.look({"events/email/live": f"{i} from the upstream"})
    assert len(history.minutes(MINUTES_MAX)["at"]) == MINUTES_MAX + 1
    assert len(history._points) == MINUTES_MAX + 1
    assert len(history.errors()) == ERRORS_MAX


async def test_today_begins_at_midnight_and_survives_a_restart(buffer: Buffer) -> None:
    clock = Machine()
    history = await remembering(buffer, clock)
    await accept(buffer, 5)
    await deliver(buffer)
    assert history.today() == {"day": "2026-05-04", "accepted": 5, "delivered": 5}
    clock.pass_by(11 * HOUR)
    history = await remembering(buffer, clock)
    assert history.today() == {"day": "2026-05-04", "accepted": 5, "delivered": 5}
    await accept(buffer, 2)
    clock.pass_by(2 * HOUR)
    await history.look({})
    assert history.today() == {"day": "2026-05-05", "accepted": 0, "delivered": 0}
    await deliver(buffer)
    assert (await remembering(buffer, clock)).today() == {"day": "2026-05-05", "accepted": 0, "delivered": 2}


async def test_a_clock_that_fell_back_and_nobody_confirmed_does_not_begin_the_day_again(buffer: Buffer) -> None:
    clock = Machine()
    await remembering(buffer, clock)
    await accept(buffer, 4)
    clock.wall, clock.sure = 0, False
    history = await remembering(buffer, clock)
    assert history.today() == {"day": "2026-05-04", "accepted": 4, "delivered": 0}
    clock.wall, clock.sure = NOON - 24 * HOUR, True
    await history.look({})
    assert history.today() == {"day": "2026-05-03", "accepted": 0, "delivered": 0}


async def test_a_time_beyond_all_calendars_is_survived(buffer: Buffer) -> None:
    clock = Machine()
    history = await remembering(buffer, clock)
    for clock.wall in (10**18, -(10**18)):
        await history.look({})
        assert history.today()["day"] in ("9999-01-01", "1970-01-01")


async def test_the_day_is_the_one_of_the_place(buffer: Buffer, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Machine()
    monkeypatch.setitem(os.environ, "TZ", "Pacific/Auckland")
    time.tzset()
    assert (await remembering(buffer, clock)).today()["day"] == "2026-05-05"


async def test_an_error_is_told_once_with_its_lanes_from_its_first_to_its_last_moment(buffer: Buffer) -> None:
    clock = Machine()
    history = await remembering(buffer, clock)
    await history.look({"events/email/live": AWAY, "events/uuid/live": "400: a record is refused"})
    clock.pass_by(5_000)
    await history.look({"events/email/live": AWAY, "events/uuid/live": AWAY})
    [told] = history.errors()
    assert told["lanes"] == ["events/email/live", "events/uuid/live"] and "cannot be reached" in told["what"]
    assert (told["since"], told["until"]) == ("2026-05-04T12:00:00.000Z", None)
    clock.pass_by(5_000)
    await history.look({"events/email/live": None})
    assert history.errors()[0]["until"] == "2026-05-04T12:00:10.000Z"
    clock.pass_by(MINUTE)
    await history.look({"events/email/live": AWAY})
    assert [error["until"] for error in history.errors()] == [None], "it is the same outage still"
    await history.look({})
    clock.pass_by(HOUR)
    await history.look({"events/email/live": AWAY})
    assert [error["until"] is None for error in history.errors()] == [True, False]
