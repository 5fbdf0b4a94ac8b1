"""Clocks lie: what is measured, what is repaired, and that a repair never changes once sent."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.batcher import Batch, Delivered
from collector.buffer import Buffer, Unknown
from collector.clock import SERVER_TIME_PATH, Keeper, UpstreamClock
from collector.config import ClockConfig
from collector.corrections import (
    RELEASED_MS,
    Boot,
    Corrections,
    Row,
    Stance,
    estimates,
    load_corrections,
    load_history,
)
from collector.outcomes import Answer, Later, Paused
from tests.collector.buffers import ANYTIME, EMAIL, LIMITS, parcel, record
from tests.collector.virtual_time import T0, VirtualTime
from tracker.time import format_ms
from tracker.wire import ClockHeader

HOUR = 3_600_000
YEAR = 365 * 24 * HOUR


class Upstream:
    """Tells its time as told; `ahead_ms` is its clock minus the true one, which is the virtual wall clock's start."""

    def __init__(self, clock: VirtualTime, true_minus_boot: int) -> None:
        self.clock = clock
        self.true_minus_boot = true_minus_boot
        self.how = "time"
        self.asked = 0
        self.trip_ms = 40

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer | Later | Paused:
        assert (method, path) == ("GET", SERVER_TIME_PATH)
        self.asked += 1
        sent = self.clock.boot_ms()
        self.clock.now += self.trip_ms
        return self.answer(sent)

    def answer(self, sent: int) -> Answer | Later | Paused:
        now = self.true_minus_boot + sent + self.trip_ms // 2
        date = {"Date": formatdate(now // 1000, usegmt=True)}
        at = (True, sent, self.clock.boot_ms())
        match self.how:
            case "time":
                return Answer(200, {}, orjson.dumps({"serverTime": format_ms(now // 1000 * 1000)[:19] + "Z"}), *at)
            case "milliseconds":
                return Answer(200, {}, orjson.dumps({"serverTime": format_ms(now)}), *at)
            case "date":
                return Answer(404, date, b'{"message":"no such thing"}', *at)
            case "cached":
                return Answer(404, date | {"Age": "500"}, b'{"message":"no such thing"}', *at)
            case "nothing":
                return Answer(404, {}, b"404: Not Found", *at)
            case "portal":
                return Answer(200, date | {"Content-Type": "text/html"}, b"<html>", *at)
            case "busy":
                return Answer(503, {}, b"", *at)
            case "odd":
                return Answer(200, {}, b'{"serverTime": "2026-13-45T00:00:00Z"}', *at)
            case _:
                return Later("offline", offline=True)


@pytest.fixture
async def buffer(tmp_path: Path) -> AsyncIterator[Buffer]:
    opened = await Buffer.open(tmp_path / "tillpost.db", max_size=8 << 20)
    yield opened
    await opened.close()


async def keeper_of(buffer: Buffer, clock: VirtualTime, upstream: Upstream, **config: Any) -> Keeper:
    keeper = Keeper(upstream, buffer, clock, ClockConfig(**config), timer=clock, chance=lambda: 0.5)
    await keeper.start()
    return keeper


async def rows(buffer: Buffer) -> list[Row]:
    corrections = await buffer.run(lambda work: load_corrections(work.conn))
    return [row for boot in sorted(corrections.rows) for row in corrections.rows[boot]]


# -- measuring ----------------------------------------------------------------------------------


@given(
    true=st.integers(-YEAR, YEAR),
    trips=st.lists(
        st.tuples(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 60_000)), min_size=1, max_size=20
    ),
    resolution=st.sampled_from([1, 1000]),
)
def test_the_estimate_is_never_further_off_than_it_says(
    true: int, trips: list[tuple[int, int, int]], resolution: int
) -> None:
    clock = VirtualTime()
    upstream = UpstreamClock(clock)
    worst = None
    for there, back, pause in trips:
        clock.now += pause
        sent = clock.boot_ms()
        server = T0 + true + sent + there
        clock.now += there + back
        upstream.observe(server // resolution * resolution, resolution, sent, clock.boot_ms())
        assert upstream.since_boot_ms is not None
        assert abs(upstream.since_boot_ms - (T0 + true)) <= upstream.uncertainty_ms + 1
        assert upstream.uncertainty_ms <= (resolution + there + back) / 2 + 1
        worst = min(worst or 1e9, (resolution + there + back) / 2)
    assert worst is not None


def test_a_server_whose_clock_was_set_is_followed() -> None:
    clock = VirtualTime()
    upstream = UpstreamClock(clock)
    assert upstream.offset_ms is None
    assert upstream.known_ms() is None
    assert upstream.now_ms() == clock.wall_ms()
    upstream.observe(clock.wall_ms(), 1, clock.boot_ms(), clock.boot_ms())
    assert upstream.offset_ms == 0
    upstream.observe(clock.wall_ms() - HOUR, 1, clock.boot_ms(), clock.boot_ms())
    assert upstream.offset_ms == -HOUR
    clock.wall_minus_boot += YEAR  # our clock is set: the upstream's is not affected
    assert upstream.offset_ms == -HOUR - YEAR


@pytest.mark.parametrize("how", ["time", "milliseconds", "date"])
async def test_the_time_is_had_from_server_time_or_from_the_date(buffer: Buffer, how: str) -> None:
    clock = VirtualTime()
    upstream = Upstream(clock, clock.wall_minus_boot + HOUR)
    upstream.how = how
    keeper = await keeper_of(buffer, clock, upstream)
    assert keeper.status() == {"offset_ms": None, "synchronised": False}
    assert await keeper.ready() is None
    assert keeper.status()["synchronised"]
    assert abs(keeper.status()["offset_ms"] - HOUR) <= (30 if how == "milliseconds" else 530)
    assert await keeper.ready() is None
    assert upstream.asked == 1, "and not asked again for every batch"


@pytest.mark.parametrize("how", ["nothing", "cached", "odd"])
async def test_where_the_upstream_tells_no_time_our_own_clock_serves(buffer: Buffer, how: str) -> None:
    clock = VirtualTime()
    upstream = Upstream(clock, clock.wall_minus_boot + HOUR)
    upstream.how = how
    keeper = await keeper_of(buffer, clock, upstream)
    assert await keeper.ready() is None
    assert keeper.status() == {"offset_ms": None, "synchronised": False}
    assert keeper.gate().now_ms == clock.wall_ms()
    keeper.on_answer(Answer(202, {"Date": formatdate((clock.wall_ms() + HOUR) // 1000, usegmt=True)}, b"", True,
                            clock.boot_ms(), clock.boot_ms()))  # fmt: skip
    assert keeper.status()["synchronised"], "until a genuine answer does"


async def test_a_clock_before_our_release_is_not_used(buffer: Buffer) -> None:
    clock = VirtualTime(wall_ms=5_000)
    upstream = Upstream(clock, T0)
    upstream.how = "nothing"
    keeper = await keeper_of(buffer, clock, upstream)
    found = await keeper.ready()
    assert isinstance(found, Paused)
    assert "clock" in found.reason
    assert await rows(buffer) == []
    clock.wall_minus_boot = RELEASED_MS
    assert await keeper.ready() is None


@pytest.mark.parametrize("how", ["portal", "busy", "offline"])
async def test_nothing_is_decided_while_no_api_answers(buffer: Buffer, how: str) -> None:
    clock = VirtualTime()
    upstream = Upstream(clock, clock.wall_minus_boot + HOUR)
    upstream.how = how
    keeper = await keeper_of(buffer, clock, upstream)
    assert isinstance(await keeper.ready(), Later)
    assert await rows(buffer) == []
    upstream.how = "time"
    assert await keeper.ready() is None
    upstream.how = how
    clock.wall_minus_boot += HOUR
    assert await keeper.ready() is None, "once known it is carried on by the boot clock"


async def test_dates_are_not_mixed_with_server_time(buffer: Buffer) -> None:
    clock = VirtualTime()
    keeper = await keeper_of(buffer, clock, Upstream(clock, clock.wall_minus_boot))
    await keeper.ready()
    before = keeper.upstream.since_boot_ms
    keeper.on_answer(Answer(202, {"Date": formatdate((clock.wall_ms() + HOUR) // 1000, usegmt=True)}, b"", True, 1, 2))
    assert keeper.upstream.since_boot_ms == before


async def test_many_lanes_measure_once(buffer: Buffer) -> None:
    clock = VirtualTime()
    upstream = Upstream(clock, clock.wall_minus_boot)
    keeper = await keeper_of(buffer, clock, upstream)
    assert await asyncio.gather(*(keeper.ready() for _ in range(20))) == [None] * 20
    assert upstream.asked == 1


async def test_the_clock_is_measured_every_ten_minutes_and_more_often_until_it_is_known(buffer: Buffer) -> None:
    clock = VirtualTime()
    upstream = Upstream(clock, clock.wall_minus_boot)
    upstream.how = "offline"
    keeper = await keeper_of(buffer, clock, upstream)
    stop, waits = asyncio.Event(), []

    async def wait(event: asyncio.Event, seconds: float | None) -> bool:
        waits.append(seconds)
        if len(waits) == 3:
            upstream.how = "time"
        if len(waits) == 6:
            stop.set()
        return event.is_set()

    clock.wait = wait  # type: ignore[method-assign]
    await keeper.run(stop)
    assert all(seconds is not None and 600 <= seconds <= 720 for seconds in waits[3:])
    assert all(seconds is not None and 1 <= seconds <= 4 for seconds in waits[:3])


# -- repairing ----------------------------------------------------------------------------------


async def test_a_stamp_made_under_a_wrong_clock_gets_its_true_time(buffer: Buffer) -> None:
    """A till that starts in 1970, sells, then learns the time."""
    clock = VirtualTime(wall_ms=5_000)
    upstream = Upstream(clock, T0)
    keeper = await keeper_of(buffer, clock, upstream)
    stamped, offset = clock.wall_ms(), clock.wall_minus_boot
    true = T0 + clock.boot_ms()
    clock.now += HOUR
    assert await keeper.ready() is None
    corrected = keeper.corrections.corrected_ms("boot-1", offset, stamped)
    assert abs(corrected - true) <= 530
    on_disk = await buffer.run(lambda work: load_corrections(work.conn))
    assert on_disk.corrected_ms("boot-1", offset, stamped) == corrected


async def test_errors_below_the_tolerance_are_left_alone(buffer: Buffer) -> None:
    clock = VirtualTime()
    keeper = await keeper_of(buffer, clock, Upstream(clock, clock.wall_minus_boot + 1_500))
    await keeper.ready()
    assert keeper.corrections.corrected_ms("boot-1", clock.wall_minus_boot, T0) == T0


async def test_a_stamp_already_sent_is_corrected_the_same_for_ever(buffer: Buffer) -> None:
    """Whatever the clocks do later: rows only ever start after what was sent."""
    clock = VirtualTime(wall_ms=5_000)
    upstream = Upstream(clock, T0)
    keeper = await keeper_of(buffer, clock, upstream)
    sent: list[tuple[int, int, int]] = []
    for step in range(40):
        clock.now += 400_000
        if step % 7 == 3:
            clock.wall_minus_boot += (-1) ** step * HOUR * step
        if step % 5 == 4:
            upstream.true_minus_boot += 30_000
        stamp, offset = clock.wall_ms(), clock.wall_minus_boot
        assert await keeper.ready() is None
        gate = keeper.gate()
        leaving = gate.corrections.corrected_ms("boot-1", offset, stamp)
        while leaving > gate.now_ms - gate.margin_ms:
            clock.now += 1_000
            assert await keeper.ready() is None
            gate = keeper.gate()
            leaving = gate.corrections.corrected_ms("boot-1", offset, stamp)
        sent.append((offset, stamp, leaving))
        await keeper._put_in_order()
        for offset, stamp, before in sent:
            assert keeper.corrections.corrected_ms("boot-1", offset, stamp) == before
    assert len(await rows(buffer)) > 3, "the clocks did move"


async def test_another_machines_boot_is_mapped_to_ours_once(buffer: Buffer) -> None:
    clock = VirtualTime()
    keeper = await keeper_of(buffer, clock, Upstream(clock, clock.wall_minus_boot))
    # the sender booted a day before us and its wall clock is a year slow
    sender_boot = clock.boot_ms() + 24 * HOUR
    offset = clock.wall_ms() - YEAR - sender_boot
    await keeper.saw(ClockHeader("till-7", offset, sender_boot))
    clock.now += 10_000
    await keeper.saw(ClockHeader("till-7", offset, sender_boot))  # delayed on the way: the first one counts
    known = await buffer.run(lambda work: load_corrections(work.conn))
    assert known.boots == {"till-7": (Stance(sender_boot, "boot-1", 24 * HOUR),)}
    await keeper.ready()
    stamped = offset + sender_boot
    corrected = keeper.corrections.corrected_ms("till-7", offset, stamped)
    assert abs(corrected - (stamped + YEAR)) <= 530
    await keeper.saw(ClockHeader("boot-1", 0, 0))
    assert set(keeper.corrections.boots) == {"till-7"}, "our own boot needs no mapping"


async def test_a_boot_that_ended_before_the_time_was_known_is_estimated(buffer: Buffer) -> None:
    yesterday = VirtualTime(boot="boot-1")
    keeper = await keeper_of(buffer, yesterday, Upstream(yesterday, yesterday.wall_minus_boot))
    await keeper.ready()
    good = yesterday.wall_ms()

    # the battery is empty: this boot starts in 1970 and never sees the network
    morning = VirtualTime(wall_ms=5_000, boot="boot-2")
    offline = Upstream(morning, 0)
    offline.how = "offline"
    keeper = await keeper_of(buffer, morning, offline)
    stamped = morning.wall_ms()
    morning.now += HOUR
    assert await keeper.ready() is not None

    noon = VirtualTime(wall_ms=5_000, boot="boot-3")
    true_start = good + 20 * HOUR
    keeper = await keeper_of(buffer, noon, Upstream(noon, true_start))
    await keeper.ready()
    corrected = keeper.corrections.corrected_ms("boot-2", 0, stamped)
    assert good <= corrected <= true_start
    assert keeper.estimated == 1
    assert (await buffer.run(lambda work: load_history(work.conn))).ended == ()
    # and a restart computes the same
    again = await keeper_of(buffer, noon, Upstream(noon, true_start))
    assert again.corrections.corrected_ms("boot-2", 0, stamped) == corrected
    assert again.estimated == 1


def test_an_ended_boot_whose_clock_fits_is_believed() -> None:
    boot = Boot("b", T0 - 5_000, HOUR)
    assert estimates((boot,), T0 - HOUR, T0 + 2 * HOUR) == [(boot, T0 - 5_000)]


def test_a_clock_found_wrong_is_thought_to_have_been_as_wrong_before() -> None:
    """A year slow: it runs on through reboots, and so does its error."""
    boot = Boot("b", T0 - YEAR, HOUR)
    assert estimates((boot,), T0 - HOUR, T0 + 2 * HOUR, YEAR) == [(boot, T0)]
    empty_battery = Boot("b", 0, HOUR)
    assert estimates((empty_battery,), T0 - HOUR, T0 + 3 * HOUR, T0 + 3 * HOUR) == [(empty_battery, T0 + HOUR // 2)]


@given(
    boots=st.lists(st.tuples(st.integers(0, 2 * T0), st.integers(0, 1000 * HOUR)), min_size=1, max_size=6),
    good=st.one_of(st.none(), st.integers(RELEASED_MS, T0)),
    start=st.integers(T0, T0 + YEAR),
    error=st.integers(-YEAR, T0),
)
def test_estimates_never_lie_after_the_next_boot(
    boots: list[tuple[int, int]], good: int | None, start: int, error: int
) -> None:
    ended = tuple(Boot(str(i), offset, alive) for i, (offset, alive) in enumerate(boots))
    found = estimates(ended, good, start, error)
    assert [boot for boot, _ in found] == list(ended)
    ends = [offset + boot.alive_ms for boot, offset in found]
    starts = [*[offset for _, offset in found][1:], start]
    assert all(end <= begin for end, begin in zip(ends, starts, strict=True))


def test_what_nothing_is_known_of_stays_as_it_is() -> None:
    assert Corrections().corrected_ms("any", 5, T0) == T0
    absurd = Corrections({"b": (Row(0, -(10**15), 0),)})
    assert absurd.corrected_ms("b", 0, T0) == T0


# -- what must hold however unlikely ------------------------------------------------------------


async def test_another_tolerance_changes_nothing_that_may_have_been_sent(buffer: Buffer) -> None:
    clock = VirtualTime()
    upstream = Upstream(clock, clock.wall_minus_boot + 5_000)
    first = await keeper_of(buffer, clock, upstream, tolerance=60.0)
    await first.ready()
    second = await keeper_of(buffer, clock, upstream, tolerance=0.0)
    await second.ready()
    assert second.corrections.corrected_ms("boot-1", clock.wall_minus_boot, T0) == T0
    clock.now += HOUR
    assert await second.ready() is None
    later = clock.wall_ms()
    assert abs(second.corrections.corrected_ms("boot-1", clock.wall_minus_boot, later) - later - 5_000) <= 530


async def test_a_commit_of_unknown_outcome_does_not_stop_the_clock(buffer: Buffer) -> None:
    """The row may be there although nobody was told so: it stays, and nothing else is put in its place."""
    clock = VirtualTime()

    class Doubtful:
        failing = False

        async def run(self, unit: Any) -> Any:
            result = await buffer.run(unit)
            if self.failing:
                raise Unknown("the commit failed; whether it is on disk is not known")
            return result

    store = Doubtful()
    upstream = Upstream(clock, clock.wall_minus_boot + HOUR)
    keeper = Keeper(upstream, store, clock, ClockConfig(), timer=clock, chance=lambda: 0.5)
    await keeper.start()
    store.failing = True
    with pytest.raises(Unknown):
        await keeper.ready()
    on_disk = await rows(buffer)
    store.failing = False
    upstream.true_minus_boot += 700
    assert await keeper.ready() is None
    assert await rows(buffer) == on_disk
    assert keeper.corrections.rows["boot-1"] == tuple(on_disk)
    assert buffer.failed is None


async def test_a_buffer_that_goes_back_to_a_machine_it_was_on_before(buffer: Buffer) -> None:
    for boot in ("here", "there", "here"):
        clock = VirtualTime(boot=boot)
        upstream = Upstream(clock, clock.wall_minus_boot + HOUR)
        upstream.how = "offline"
        keeper = await keeper_of(buffer, clock, upstream)
        await keeper.ready()
    upstream.how = "time"
    assert await keeper.ready() is None
    assert set(keeper.corrections.rows) == {"here", "there"}
    assert keeper.estimated == 1


async def test_stamps_made_since_anything_last_left_are_repaired_too(buffer: Buffer) -> None:
    """A machine that stood still without noticing: wall time jumps when it learns the time, its boot clock does not."""
    clock = VirtualTime()
    upstream = Upstream(clock, clock.wall_minus_boot)
    keeper = await keeper_of(buffer, clock, upstream)
    await keeper.ready()
    keeper.gate()
    clock.now += 60_000
    upstream.true_minus_boot += 8 * HOUR
    clock.wall_minus_boot += 8 * HOUR
    clock.now += 60_000
    stamped = clock.wall_ms()
    clock.now += 60_000
    assert await keeper.ready() is None
    assert keeper.corrections.corrected_ms("boot-1", clock.wall_minus_boot, stamped) == stamped


def test_a_stamp_before_a_step_may_be_later_than_one_after_it() -> None:
    """So whether anything is to be repaired cannot be told from the latest stamp of a run."""
    known = Corrections({"b": (Row(0, 0, 0), Row(1_000, -600, 0))})
    assert known.corrected_ms("b", -600, 900 - 600) == 900
    assert known.corrected_ms("b", -600, 1_100 - 600) == 500
    assert known.concerns("b", -600, 1_100 - 600)
    assert not known.concerns("b", 0, 900)
    assert not known.concerns("other", 5, 900)


async def test_a_clock_not_measured_for_long_is_trusted_less(buffer: Buffer) -> None:
    clock = VirtualTime()
    keeper = await keeper_of(buffer, clock, Upstream(clock, clock.wall_minus_boot), margin=0.0)
    await keeper.ready()
    assert keeper.gate().margin_ms <= 530
    clock.now += 72 * HOUR
    assert keeper.gate().margin_ms >= 50_000


async def test_what_no_record_can_need_any_more_is_forgotten_and_nothing_else(
    buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.clock._BOOTS_MANY", 3)
    clock = VirtualTime()
    upstream = Upstream(clock, clock.wall_minus_boot)
    keeper = await keeper_of(buffer, clock, upstream)
    await keeper.ready()
    for number in range(5):
        await keeper.saw(ClockHeader(f"till-{number}", 0, clock.boot_ms()))
    await buffer.append([parcel([record("s1")], boot="till-1")])
    assert len((await keeper_of(buffer, clock, upstream)).corrections.boots) == 5
    batch = await buffer.take(EMAIL, LIMITS, ANYTIME)
    assert isinstance(batch, Batch)
    await buffer.settle([(batch, Delivered())])
    forgetful = await keeper_of(buffer, clock, upstream)
    assert forgetful.corrections.boots == {}
    assert set(forgetful.corrections.rows) == {"boot-1"}


# -- other machines -----------------------------------------------------------------------------


class Sender:
    """A tracker on another machine; `late_ms` is how long its requests are under way."""

    def __init__(self, clock: VirtualTime, keeper: Keeper, wall_minus_true: int = 0) -> None:
        self.clock, self.keeper = clock, keeper
        self.ahead = 24 * HOUR
        self.offset = clock.wall_minus_boot + wall_minus_true - self.ahead

    async def send(self, late_ms: int = 0) -> int:
        """A stamp it made, and told us of."""
        boot_ms = self.clock.boot_ms() + self.ahead
        header = ClockHeader("till-7", self.offset, boot_ms)
        self.clock.now += late_ms
        await self.keeper.saw(header)
        return boot_ms + self.offset

    def corrected(self, stamped: int) -> int:
        return self.keeper.corrections.corrected_ms("till-7", self.offset, stamped)


async def test_a_request_that_was_long_under_way_misleads_no_later_one(buffer: Buffer) -> None:
    clock = VirtualTime()
    keeper = await keeper_of(buffer, clock, Upstream(clock, clock.wall_minus_boot))
    await keeper.ready()
    sender = Sender(clock, keeper)
    first = await sender.send(late_ms=30_000)
    before = sender.corrected(first)
    stamped = await sender.send()
    clock.now += 5_000
    stamped = await sender.send()
    assert sender.corrected(stamped) == stamped, "the sender's clock is right"
    await sender.send(late_ms=30_000)
    clock.now += 5_000
    stamped = await sender.send()
    assert sender.corrected(stamped) == stamped
    assert sender.corrected(first) == before, "and what may have been sent stays as it was sent"


async def test_boot_clocks_that_drift_apart_are_followed(buffer: Buffer) -> None:
    clock = VirtualTime()
    keeper = await keeper_of(buffer, clock, Upstream(clock, clock.wall_minus_boot))
    await keeper.ready()
    sender = Sender(clock, keeper)
    sent = {}
    for _ in range(200):
        clock.now += 600_000
        sender.ahead -= 60  # a tenth of a millisecond each second
        sender.offset += 60  # while its wall clock is kept right
        stamped = await sender.send()
        corrected = keeper.corrections.corrected_ms("till-7", sender.offset, stamped)
        assert corrected == stamped
        sent[stamped, sender.offset] = corrected
    assert 10 <= len(keeper.corrections.boots["till-7"]) <= 40
    for (stamped, offset), corrected in sent.items():
        assert keeper.corrections.corrected_ms("till-7", offset, stamped) == corrected


async def test_a_sender_that_slept_is_believed(buffer: Buffer) -> None:
    clock = VirtualTime()
    keeper = await keeper_of(buffer, clock, Upstream(clock, clock.wall_minus_boot))
    await keeper.ready()
    sender = Sender(clock, keeper)
    await sender.send()
    clock.now += 8 * HOUR + 1_000
    sender.ahead -= 8 * HOUR  # its boot clock stood still
    sender.offset += 8 * HOUR
    stamped = await sender.send()
    assert sender.corrected(stamped) == stamped


async def test_what_a_sender_stamped_before_our_reboot_is_known_once_the_time_is(buffer: Buffer) -> None:
    """Also when our own boot ended before the time was known: the sender's went on."""
    evening = VirtualTime(boot="boot-1")
    offline = Upstream(evening, 0)
    offline.how = "offline"
    keeper = await keeper_of(buffer, evening, offline)
    sender = Sender(evening, keeper, wall_minus_true=-YEAR)
    stamped = await sender.send()
    true = stamped + YEAR
    assert await keeper.ready() is not None

    morning = VirtualTime(wall_ms=T0 + 60 * HOUR, boot="boot-2")
    upstream = Upstream(morning, morning.wall_minus_boot)
    keeper = await keeper_of(buffer, morning, upstream)
    sender.clock, sender.keeper = morning, keeper
    sender.ahead += morning.wall_minus_boot - evening.wall_minus_boot  # it ran on meanwhile
    await sender.send()
    await keeper.ready()
    assert abs(sender.corrected(stamped) - true) <= 530
