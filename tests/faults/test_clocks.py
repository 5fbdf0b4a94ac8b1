"""Clocks that lie: whatever they show, no record is sent with a future time, and none is sent in two ways."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from collector import deadletters
from tests.faults.machines import DAY, HOUR, SECOND, YEAR, Machine, World, stamp
from tracker.time import format_ms, parse_ms

WRONG = {"a year slow": -YEAR, "ten years fast": 10 * YEAR, "ten minutes fast": 600_000, "right": 0}


@pytest.mark.parametrize("error_ms", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("skew_ms", [0, 600_000, -600_000], ids=["", "upstream fast", "upstream slow"])
async def test_whatever_our_clock_shows_records_arrive_with_the_true_time(
    tmp_path: Path, error_ms: int, skew_ms: int
) -> None:
    world = World(skew_ms)
    async with world.upstream():
        till = Machine(world, "boot-1", error_ms)
        async with world.collector(till, tmp_path) as here:
            await here.sell(till, 20)
            bare = {"type": "custom", "action": "a.b", "label": "x", "client": {"customId": "C-1"}}
            await here.post(orjson.dumps([{**bare, "eventSalt": "collector-stamps"}]))
            world.made["collector-stamps"] = world.made[next(iter(world.made))]
            given = await here.sell(till, 5, given_ms=world.now + skew_ms - DAY)
            await here.delivered(26, hours=1)
            assert here.ledger["dead"] == 0
            assert here.parts.keeper.status()["synchronised"]
            repaired = sum(here.parts.counters.read("clock_corrected_records").values())
            assert repaired == (21 if abs(skew_ms - error_ms) > 2_000 else 0)
    world.check()
    assert len(given) == 5


async def test_1970_until_the_network_comes(tmp_path: Path) -> None:
    """Sold in 1970, then the network and the right time: in either order."""
    world = World()
    async with world.upstream() as fake:
        till = Machine(world, "boot-1").empty_battery()
        fake.fault("reset", times=None, path="*")
        async with world.collector(till, tmp_path) as here:
            await here.sell(till, 10)
            await world.after(1800)
            await here.sell(till, 10)
            till.error_ms = 0  # NTP was quicker
            await here.sell(till, 10)
            assert fake.stored_count == 0
            fake.clear_faults()
            await here.delivered(30, hours=1)
            till.empty_battery()  # and somebody sets it wrong again
            await here.sell(till, 10)
            await here.delivered(40, hours=1)
    world.check()


@pytest.mark.parametrize("error_ms", [-YEAR, YEAR, None], ids=["a year slow", "a year fast", "1970 at each start"])
async def test_a_reboot_before_the_time_was_known(tmp_path: Path, error_ms: int | None) -> None:
    """The boot before is estimated, and counted; a clock that runs on through the reboot tells it exactly."""
    world = World()
    estimated: list[str] = []
    async with world.upstream() as fake:
        monday = Machine(world, "boot-1")
        async with world.collector(monday, tmp_path) as here:
            await here.sell(monday, 3)
            await here.delivered(3)
        await world.after(20 * 3600)
        fake.fault("reset", times=None, path="*")
        tuesday = Machine(world, "boot-2", error_ms or 0)
        if error_ms is None:
            tuesday.empty_battery()
        async with world.collector(tuesday, tmp_path) as here:
            estimated += await here.sell(tuesday, 10)
            await world.after(3600)
            estimated += await here.sell(tuesday, 10)
            given = await here.sell(tuesday, 2, given_ms=world.now - HOUR)
        assert fake.stored_count == 3
        await world.after(2 * 3600)
        wednesday = Machine(world, "boot-3", error_ms or 0)
        if error_ms is None:
            wednesday.empty_battery()
        fake.clear_faults()
        async with world.collector(wednesday, tmp_path) as here:
            await here.sell(wednesday, 3)
            await here.delivered(28, hours=1)
            assert here.parts.keeper.estimated == 1
            metrics = (await here.parts.metrics()).decode()
            assert "tillpost_clock_estimated_boots_total 1.0" in metrics
    world.check(but=estimated if error_ms is None else ())
    made = {entry.salt: entry.instant_ms for entry in fake.entries}
    for salt in estimated:  # between what was known before and after, in order
        assert world.made[next(iter(world.made))].true_ms <= made[salt] <= world.now
    assert [made[salt] for salt in estimated] == sorted(made[salt] for salt in estimated)
    assert abs(made[estimated[-1]] - made[estimated[0]] - HOUR) <= 10 * SECOND
    assert len(given) == 2


async def test_a_suspended_machine_goes_on_at_once(tmp_path: Path) -> None:
    """Its timers stood still, the time since boot did not: a long back-off is over when it wakes."""
    world = World()
    async with world.upstream() as fake:
        till = Machine(world, "boot-1", -YEAR)
        async with world.collector(till, tmp_path) as here:
            await here.sell(till, 3)
            await here.delivered(3)
            fake.fault("429", times=1, retry_after="3600")
            await here.sell(till, 5)
            await here.until(lambda: any(lane.attempts for lane in here.parts.lanes.activity().values()))
            world.suspended(8)
            awake = world.now
            await here.sell(till, 5)
            await here.delivered(13)
            assert world.now - awake <= 60 * SECOND
    world.check()


async def test_a_process_that_was_stopped_for_hours_goes_on_at_once(tmp_path: Path) -> None:
    world = World()
    async with world.upstream() as fake:
        till = Machine(world, "boot-1", YEAR)
        async with world.collector(till, tmp_path) as here:
            await here.sell(till, 3)
            await here.delivered(3)
            fake.fault("503", times=3)
            await here.sell(till, 5)
            world.time.now += 8 * HOUR  # all timers are over at once
            await here.sell(till, 5)
            await here.delivered(13, hours=0.5)
            posts = [request for request in fake.requests if request.path == "/v4/events/batch"]
            assert len(posts) <= 8
    world.check()


async def test_clocks_that_are_set_again_and_again_while_it_runs(tmp_path: Path) -> None:
    """Ours, the upstream's, and both: everything arrives, nothing stalls, nothing is buried, nothing expires."""
    world = World()
    async with world.upstream() as fake:
        till = Machine(world, "boot-1")
        async with world.collector(till, tmp_path, dead={"keep": "90d"}) as here:
            count = 0
            for error_ms in (0, -YEAR, 10 * YEAR, 3 * HOUR, -3 * HOUR, 0):
                till.error_ms = error_ms
                await here.sell(till, 10)
                await here.sell(till, 3, given_ms=world.now - 2 * HOUR)
                count += 13
                await here.delivered(count, hours=1)
                await world.after(900)
            assert here.ledger["dead"] == here.ledger["discarded"] == 0
    world.check()
    assert fake.overwritten == 0


async def test_the_upstreams_clock_is_set_back_while_records_wait(tmp_path: Path) -> None:
    """Then what was fine a moment ago lies in the future: it waits, and loses nothing of its own time."""
    world = World(skew_ms=600_000)
    async with world.upstream() as fake:
        till = Machine(world, "boot-1")
        async with world.collector(till, tmp_path) as here:
            await here.sell(till, 5)
            await here.delivered(5)
            outage = fake.fault("503", times=None)
            waiting = await here.sell(till, 5)
            await here.until(lambda: outage.hits >= 2)
            world.skew_ms = 0
            fake.clear_faults()
            await here.parts.keeper._put_in_order()
            await here.sell(till, 5)
            await here.delivered(15, hours=2)
    assert fake.violations == []
    assert fake.altered == 0
    assert len({entry.salt for entry in fake.entries}) == 15
    assert len(waiting) == 5


@pytest.mark.parametrize("theirs", [0, -YEAR, 10 * YEAR], ids=["right", "a year slow", "ten years fast"])
@pytest.mark.parametrize("ours", [0, -YEAR], ids=["", "ours a year slow"])
async def test_a_tracker_on_another_machine(tmp_path: Path, theirs: int, ours: int) -> None:
    world = World(600_000)
    async with world.upstream():
        server, till = Machine(world, "boot-s", ours), Machine(world, "boot-t", theirs)
        till._started -= 40 * DAY
        till.stamper = type(till.stamper)(till, world.salts)
        late = [stamp(till) for _ in range(5)]  # in the tracker's memory while the collector was away
        await world.after(3600)
        async with world.collector(server, tmp_path) as here:
            await here.take(till, late)
            await here.sell(till, 5)
            await here.sell(server, 5)
            await here.sell(till, 2, given_ms=world.now - HOUR)
            await here.delivered(17, hours=1)
            assert here.ledger["dead"] == 0
    world.check()


async def test_a_client_of_somebody_else_whose_times_lie_ahead_is_believed_and_waited_for(tmp_path: Path) -> None:
    """No Tillpost-Clock: what it says is what the application gave."""
    world = World()
    async with world.upstream():
        till = Machine(world, "boot-1", -YEAR)
        async with world.collector(till, tmp_path) as here:
            await here.sell(till, 2)
            await here.delivered(2)
            ahead = [stamp(till, world.now + ahead_s * SECOND) for ahead_s in (-60, 1, 5, 300, 7200)]
            await here.post(b"[" + b",".join(receipt._body for receipt in ahead) + b"]")
            await here.sell(till, 2)
            await here.until(lambda: world.fake.stored_count >= 5, hours=0.01)  # they do not hold up the others
            await here.delivered(9, hours=3)
            assert here.ledger["dead"] == 0
            status, _, answer = await here.parts.server.receive(
                "/v4/events/batch", b"[" + stamp(till, world.now + 2 * DAY)._body + b"]", {}
            )
            assert status == 400
            assert b"clock.hold_max" in answer
    world.check()


@pytest.mark.parametrize("tolerance", ["2s", "0s", "20m"])
async def test_a_resend_after_a_crash_is_the_same_whatever_the_clocks_did_meanwhile(
    tmp_path: Path, tolerance: str
) -> None:
    """Stored upstream, answer lost, killed; then clocks and even `clock.tolerance` are set, and it is sent again."""
    world = World(600_000)
    async with world.upstream() as fake:
        till = Machine(world, "boot-1", -YEAR)
        other = Machine(world, "boot-t", 3 * DAY)
        other._started -= DAY
        folder = tmp_path / "0"
        folder.mkdir()
        count = 0
        for round_ in range(4):
            config: dict[str, Any] = {"clock": {"tolerance": "2s" if round_ % 2 == 0 else tolerance}}
            async with world.collector(till, folder, **config) as here:
                lost = fake.fault("drop_answer", times=None)
                for machine in (till, other, till):
                    await here.sell(machine, 7)
                    await here.sell(machine, 2, given_ms=world.now - HOUR)
                count += 27
                await here.until(lambda lost=lost: lost.hits >= 2, hours=2)
                folder = here.as_killed(tmp_path / str(round_ + 1))
            fake.clear_faults()
            till.error_ms += [10 * YEAR, -YEAR, HOUR, -HOUR][round_]
            world.skew_ms -= 5_000
            if round_ == 1:
                till = Machine(world, "boot-2", -YEAR)
            await world.after(900)
            async with world.collector(till, folder, **config) as here:
                await here.delivered(count, hours=2)
        assert fake.overwritten >= count
    world.skew_ms = 600_000
    world.check(within_ms=25_000 if tolerance != "20m" else 20 * 60_000)


async def test_records_of_one_order_key_leave_in_their_order_whatever_the_clock_does(tmp_path: Path) -> None:
    world = World()
    async with world.upstream() as fake:
        till = Machine(world, "boot-1", -YEAR)
        when = world.now - HOUR
        async with world.collector(till, tmp_path) as here:
            for version in range(6):
                till.error_ms += (-1) ** version * DAY
                event = {"type": "custom", "action": "a.b", "label": f"v{version}", "time": format_ms(when),
                         "eventSalt": "same", "client": {"customId": "C-1"}}  # fmt: skip
                await here.post(orjson.dumps([event]))
            await here.until(lambda: here.ledger["pending"] == 0)
        assert [entry.record["label"] for entry in fake.entries] == ["v5"]
        assert fake.overwritten == 5
        assert fake.violations == []


async def test_a_clock_years_ahead_lets_no_dead_letter_expire(tmp_path: Path) -> None:
    """Their age is told by the upstream's clock, when they die and when they are looked at, or not at all."""
    world = World()
    async with world.upstream() as fake:
        till = Machine(world, "boot-1", -10 * YEAR)
        async with world.collector(till, tmp_path, dead={"keep": "10h"}) as here:
            await here.sell(till, 1)
            await here.delivered(1)
            bad = stamp(till)
            fake.fault("reject", salt=bad.salt)
            await here.take(till, [bad])
            await here.until(lambda: here.ledger["dead"] == 1)
            for error_ms in (10 * YEAR, 0, -YEAR):
                till.error_ms = error_ms
                assert await here.parts._expire()
                assert here.ledger["dead"] == 1
        fake.fault("reset", times=None, path="*")
        later = Machine(world, "boot-2", 10 * YEAR)
        async with world.collector(later, tmp_path, dead={"keep": "10h"}) as here:
            assert not await here.parts._expire(), "the true time is not known"
            assert here.ledger["dead"] == 1
            fake.clear_faults()
            await here.until(lambda: here.parts.keeper.upstream.synchronised)
            await world.after(9 * 3600)
            assert await here.parts._expire()
            assert here.ledger["dead"] == 1
            await world.after(2 * 3600)
            assert await here.parts._expire()
            assert (here.ledger["dead"], here.ledger["discarded"]) == (0, 1)


async def test_dead_letters_are_shown_as_they_were_sent(tmp_path: Path) -> None:
    world = World()
    async with world.upstream():
        till = Machine(world, "boot-1", -YEAR)
        async with world.collector(till, tmp_path) as here:
            await here.sell(till, 1)
            await here.delivered(1)
            receipt = stamp(till)
            world.fake.fault("reject", salt=receipt.salt)
            await here.take(till, [receipt])
            await here.until(lambda: here.ledger["dead"] == 1)
            (letter,) = (await deadletters.page(here.parts.buffer))["dead_letters"]
            sent = orjson.loads(bytes(letter["record"]))["time"]
            assert abs(parse_ms(sent) - world.made[receipt.salt].true_ms) <= 3_100
