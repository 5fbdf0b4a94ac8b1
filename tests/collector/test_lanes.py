"""What lanes do with every outcome: a real buffer, an upstream that does as told, and time that jumps."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from collector.batcher import Gate
from collector.buffer import Buffer, Unknown
from collector.chunks import Batch
from collector.config import BatchConfig, ClockConfig, Config, DeadConfig, DeliveryConfig, KindBatchConfig
from collector.kinds import Lane
from collector.lanes import Lanes
from collector.outcomes import Delivered, Forbidden, Later, Outcome, PartlyRejected, Paused, Rejected, TooLarge
from collector.patience import Patience
from tests.collector.buffers import EMAIL, SALES, UUID, adds_up, parcel, record
from tests.collector.logged import capture_logs
from tests.collector.virtual_time import T0, VirtualTime
from tracker.time import format_ms


class Upstream:
    """Stores what it accepts; `rule` decides. Keeps every request."""

    def __init__(self, clock: VirtualTime) -> None:
        self.clock = clock
        self.rule: Callable[[Batch], Outcome] = lambda batch: Delivered()
        self.requests: list[tuple[int, Lane, list[str], bytes]] = []
        self.stored: Counter[str] = Counter()
        self.hang: asyncio.Event | None = None
        self.in_flight: Counter[Lane] = Counter()

    async def deliver(self, batch: Batch) -> Outcome:
        self.in_flight[batch.lane] += 1
        assert self.in_flight[batch.lane] == 1, "two requests of one lane at once"
        try:
            salts = salts_of(batch)
            self.requests.append((self.clock.boot_ms(), batch.lane, salts, batch.body))
            if self.hang is not None:
                await self.hang.wait()
            outcome = self.rule(batch)
            if isinstance(outcome, Delivered):
                self.stored.update(salts)
            elif isinstance(outcome, PartlyRejected) and outcome.complete:
                self.stored.update(salt for i, salt in enumerate(salts) if i not in outcome.rejected)
            return outcome
        finally:
            self.in_flight[batch.lane] -= 1

    @property
    def sizes(self) -> list[int]:
        return [len(salts) for _, _, salts, _ in self.requests]


class Timekeeper:
    """Knows the time from the start."""

    def __init__(self, clock: VirtualTime) -> None:
        self.clock = clock
        self.verdict: Later | Paused | None = None
        self.margin_ms = 0

    async def ready(self) -> Later | Paused | None:
        return self.verdict

    def gate(self) -> Gate:
        return Gate(self.clock.wall_ms(), self.margin_ms)

    def horizon_ms(self) -> int:
        return self.gate().horizon_ms


def salts_of(batch: Batch) -> list[str]:
    return [each["eventSalt"] for each in orjson.loads(batch.body)]


class World:
    """A buffer, an upstream and the lanes between them."""

    def __init__(self, buffer: Buffer, clock: VirtualTime, config: Config) -> None:
        self.buffer, self.clock, self.config = buffer, clock, config
        self.upstream = Upstream(clock)
        self.keeper = Timekeeper(clock)
        self.lanes = self.new_lanes()

    def new_lanes(self) -> Lanes:
        return Lanes(self.buffer, self.upstream, self.keeper, self.config, clock=self.clock, timer=self.clock,
                     chance=random.Random(1).random)  # fmt: skip

    async def accept(self, salts: Iterable[str], lane: Lane = EMAIL, **more: Any) -> None:
        await self.buffer.append([parcel([record(salt, **more) for salt in salts], lane)])

    async def until(self, done: Callable[[], bool], seconds: float = 86_400) -> None:
        """Wait in virtual time until something is so; fail when it is not after so long."""
        end = self.clock.now + seconds * 1000
        never, pause = asyncio.Event(), 0.05
        while not done():
            assert self.clock.now < end, (self.ledger, dict(self.lanes.activity()), self.upstream.sizes[-20:])
            await self.clock.wait(never, pause)
            pause = min(pause * 1.05, 20)

    async def after(self, seconds: float) -> None:
        await self.clock.wait(asyncio.Event(), seconds)

    @property
    def ledger(self) -> dict[str, int]:
        ledger = self.buffer.ledger()
        assert adds_up(ledger)
        return ledger

    async def empty(self, seconds: float = 86_400) -> None:
        await self.until(lambda: self.ledger["pending"] == 0, seconds)

    def status(self, lane: Lane = EMAIL) -> Any:
        return self.lanes.activity()[lane]

    def count_takes(self) -> list[float]:
        """When the buffer was asked for a batch, from now on."""
        takes, take = list[float](), self.buffer.take

        async def counted(*args: Any) -> Any:
            takes.append(self.clock.now)
            return await take(*args)

        self.buffer.take = counted  # type: ignore[method-assign]
        return takes

    async def dead(self) -> list[tuple[str, str, int | None]]:
        rows = await self.buffer.run(
            lambda work: work.conn.execute("SELECT body, reason, status FROM dead ORDER BY id").fetchall()
        )
        return [(orjson.loads(body)["eventSalt"], reason, status) for body, reason, status in rows]


@asynccontextmanager
async def world(tmp_path: Path, started: bool = True, **sections: Any) -> AsyncIterator[World]:
    config = Config(**sections)
    clock = VirtualTime()
    buffer = await Buffer.open(tmp_path / "tillpost.db", max_size=64 << 20, clock=clock)
    clock.busy = lambda: not buffer._idle.is_set()
    async with clock:
        scene = World(buffer, clock, config)
        if started:
            await scene.lanes.start()
        try:
            yield scene
        finally:
            await scene.lanes.stop(1)
            assert adds_up(buffer.ledger())
            await buffer.close()


def numbered(count: int, prefix: str = "s") -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


def rejecting(bad: Callable[[str], bool], hints: bool = False) -> Callable[[Batch], Outcome]:
    def rule(batch: Batch) -> Outcome:
        found = tuple(i for i, salt in enumerate(salts_of(batch)) if bad(salt))
        return (
            Rejected(400, "400: params.sku must not be null", "{}", found[:1] if hints else ())
            if found
            else Delivered()
        )

    return rule


# -- batches ------------------------------------------------------------------------------------


async def test_a_backlog_leaves_in_order_in_full_batches(tmp_path: Path) -> None:
    async with world(tmp_path, started=False) as scene:
        for start in range(0, 2500, 50):
            await scene.accept(numbered(2500)[start : start + 50])
        await scene.lanes.start()
        await scene.empty()
    assert scene.upstream.sizes == [1000, 1000, 500]
    assert [salt for _, _, salts, _ in scene.upstream.requests for salt in salts] == numbered(2500)


async def test_a_few_records_linger_for_companions(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        begun = scene.clock.now
        for salt in numbered(8):
            await scene.accept([salt])
            await scene.after(0.1)
        await scene.empty()
    assert scene.upstream.sizes == [8]
    assert 1_000 <= scene.upstream.requests[0][0] - begun <= 1_100


async def test_a_courier_that_waits_for_companions_is_not_woken_by_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[float | None] = []
    wait = Patience.wait

    async def counted(self: Patience, event: asyncio.Event, seconds: float | None) -> bool:
        found = await wait(self, event, seconds)
        ended.append(seconds)
        return found

    monkeypatch.setattr(Patience, "wait", counted)
    async with world(tmp_path, batch=BatchConfig(max_records=100, linger=60)) as scene:
        await scene.accept(numbered(1))
        await scene.after(1)
        ended.clear()
        for salt in numbered(98, "t"):
            await scene.accept([salt])
        assert ended == []
        await scene.accept(["last"])
        await scene.until(lambda: scene.ledger["delivered"] == 100)
    assert scene.upstream.sizes == [100]


async def test_a_full_batch_goes_at_once(tmp_path: Path) -> None:
    async with world(tmp_path, batch=BatchConfig(max_records=100, linger=60)) as scene:
        begun = scene.clock.now
        await scene.accept(numbered(40))
        await scene.accept(numbered(60, "t"))
        await scene.until(lambda: scene.ledger["delivered"] == 100)
    assert scene.upstream.sizes == [100]
    assert scene.upstream.requests[0][0] - begun < 1_000


async def test_a_steady_trickle_makes_one_request_per_linger(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.keeper.margin_ms = 2_000
        for i in range(200):
            await scene.accept([f"s{i}"], time=format_ms(scene.clock.wall_ms()))
            await scene.after(0.05)
        await scene.empty()
    times = [at for at, *_ in scene.upstream.requests]
    assert all(later - earlier >= 1_000 for earlier, later in pairwise(times))
    assert scene.upstream.stored == Counter(numbered(200))


async def test_what_is_known_to_have_just_come_is_taken_once(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        takes = scene.count_takes()
        for i in range(100):
            await scene.accept([f"s{i}"])
            await scene.after(0.05)
        await scene.empty()
    assert len(scene.upstream.requests) >= 5
    assert len(takes) == len(scene.upstream.requests)  # none only to see that it had better wait


async def test_lanes_that_linger_alike_do_not_send_in_the_same_moment(tmp_path: Path) -> None:
    lanes = [Lane("events", identifier, "live") for identifier in ("customId", "email", "id", "uuid")]
    async with world(tmp_path) as scene:
        for i in range(100):
            await asyncio.gather(*(scene.accept([f"{lane.identifier}-{i}"], lane) for lane in lanes))
            await scene.after(0.05)
        await scene.empty()
    times = sorted(at for at, *_ in scene.upstream.requests)
    assert all(later - earlier >= 20 for earlier, later in pairwise(times))
    for lane in lanes:
        of_lane = [at for at, sent, *_ in scene.upstream.requests if sent == lane]
        assert len(of_lane) >= 5
        assert all(1_000 <= later - earlier <= 1_100 for earlier, later in pairwise(of_lane[:-1]))


async def test_what_was_there_with_the_last_batch_goes_right_after_it(tmp_path: Path) -> None:
    async with world(tmp_path, started=False, batch=BatchConfig(max_records=100, linger=600)) as scene:
        for start in range(0, 250, 10):
            await scene.accept(numbered(250)[start : start + 10])
        await scene.lanes.start()
        begun = scene.clock.now
        await scene.empty()
        assert scene.upstream.sizes == [100, 100, 50]
        assert scene.clock.now - begun < 10_000


async def test_what_waited_aside_does_not_wait_for_companions_of_what_just_came(tmp_path: Path) -> None:
    async with world(tmp_path, batch=BatchConfig(linger=60)) as scene:
        await scene.accept(["later"], time=format_ms(scene.clock.wall_ms() + 150_000))
        await scene.until(lambda: scene.buffer.lanes()[0].aside == 1)
        scene.upstream.hang = asyncio.Event()
        await scene.accept(["first"])
        await scene.until(lambda: scene.upstream.in_flight[EMAIL] == 1)
        assert not scene.upstream.stored
        await scene.after(32)  # its time has come
        await scene.accept(["new"])
        scene.upstream.hang.set()
        answered = scene.clock.now
        await scene.until(lambda: scene.upstream.stored["later"] == 1)
        assert scene.clock.now - answered < 5_000


async def test_while_nothing_may_leave_yet_the_buffer_is_hardly_asked(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.keeper.margin_ms, takes = 60_000, scene.count_takes()
        begun = scene.clock.now
        for i in range(300):
            await scene.accept([f"s{i}"], time=format_ms(scene.clock.wall_ms()))
            await scene.after(0.05)
        seconds = (scene.clock.now - begun) / 1000
        assert len(takes) <= 2 * seconds + 2
        assert not scene.upstream.requests


async def test_the_margin_is_never_skipped_not_even_by_a_drain(tmp_path: Path) -> None:
    async with world(tmp_path, clock=ClockConfig(margin=2)) as scene:
        scene.keeper.margin_ms = 2_000
        stamped = scene.clock.wall_ms()
        await scene.accept(["s0"], time=format_ms(stamped))
        assert await scene.lanes.drain(30) == []
        sent_at = scene.upstream.requests[0][0] + scene.clock.wall_minus_boot
    assert 2_000 <= sent_at - stamped <= 2_200


async def test_a_drain_does_not_linger(tmp_path: Path) -> None:
    async with world(tmp_path, batch=BatchConfig(linger=600)) as scene:
        await scene.accept(numbered(3))
        await scene.accept(numbered(3), UUID)
        begun = scene.clock.now
        assert await scene.lanes.drain(30) == []
        assert scene.clock.now - begun < 1_000


async def test_limits_of_a_kind_hold(tmp_path: Path) -> None:
    config = BatchConfig(max_records=500, max_bytes=20_000, transactions=KindBatchConfig(max_records=7))
    async with world(tmp_path, started=False, batch=config) as scene:
        await scene.accept(numbered(300, "e"))
        sale = orjson.dumps({"orderId": "1", "client": {"customId": "c"}, "recordedAt": "2026-01-01T00:00:00.000Z"})
        sales = [sale.replace(b'"1"', b'"%d","eventSalt":"t%d"' % (i, i)) for i in range(20)]
        await scene.buffer.append([parcel(sales, SALES)])
        await scene.lanes.start()
        await scene.empty()
    sent = {lane: [len(salts) for _, of, salts, _ in scene.upstream.requests if of == lane] for lane in (EMAIL, SALES)}
    assert sent[SALES] == [7, 7, 6]
    assert max(len(body) for _, _, _, body in scene.upstream.requests) <= 20_000
    assert sent[EMAIL] == [151, 149]


async def test_max_rate_holds_over_all_lanes(tmp_path: Path) -> None:
    async with world(
        tmp_path, started=False, delivery=DeliveryConfig(max_rate=100), batch=BatchConfig(max_records=50)
    ) as scene:
        await scene.accept(numbered(500, "a"))
        await scene.accept(numbered(500, "b"), UUID)
        begun = scene.clock.now
        await scene.lanes.start()
        await scene.empty()
        taken_s = (scene.clock.now - begun) / 1000
    assert 9 <= taken_s <= 12


async def test_a_whole_shop_does_not_start_in_the_same_second(tmp_path: Path) -> None:
    async with world(tmp_path, started=False, delivery=DeliveryConfig(startup_jitter=30)) as scene:
        await scene.accept(numbered(3))
        begun = scene.clock.now
        await scene.lanes.start()
        await scene.empty()
        assert scene.upstream.requests[0][0] - begun >= 30_000 * random.Random(1).random() - 1


# -- later --------------------------------------------------------------------------------------


async def test_the_same_bytes_are_tried_again_until_they_are_accepted(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        answers: list[Outcome] = [Later("503 from the upstream", status=503)] * 2
        scene.upstream.rule = lambda batch: answers.pop() if answers else Delivered()
        await scene.accept(numbered(50))
        await scene.until(lambda: scene.status().attempts == 1)
        assert scene.status().state == "backing-off"
        assert scene.status().last_error == "503 from the upstream"
        await scene.accept(numbered(50, "late"))
        await scene.empty()
        assert (scene.status().attempts, scene.status().last_error) == (0, None)
    bodies = [body for _, _, salts, body in scene.upstream.requests if salts[0] == "s0"]
    assert len(bodies) == 3
    assert len(set(bodies)) == 1


async def test_being_offline_is_no_attempt_and_retries_go_on_for_ever(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = lambda batch: Later("offline", offline=True)
        await scene.accept(numbered(5))
        await scene.after(86_400)
        assert scene.status().attempts == 0
        assert len(scene.upstream.requests) < 86_400 / 100, "no more often than the backoff allows"
        scene.upstream.rule = lambda batch: Delivered()
        await scene.empty(400)
    assert scene.upstream.stored == Counter(numbered(5))


async def test_never_earlier_than_retry_after_not_even_when_resumed(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        answers: list[Outcome] = [Later("429 from the upstream", retry_after_s=100, status=429)]
        scene.upstream.rule = lambda batch: answers.pop() if answers else Delivered()
        await scene.accept(numbered(5))
        await scene.until(lambda: scene.status().state == "backing-off")
        scene.lanes.resume()
        scene.lanes.hurry()
        await scene.empty()
    (first, *_), (second, *_) = scene.upstream.requests
    assert 100_000 <= second - first <= 120_000


async def test_after_an_outage_a_backlog_leaves_in_full_batches(tmp_path: Path) -> None:
    async with world(tmp_path, started=False) as scene:
        scene.upstream.rule = lambda batch: Later("the connection was refused", offline=True)
        await scene.accept(numbered(3000))
        await scene.lanes.start()
        await scene.after(3600)
        scene.upstream.rule = lambda batch: Delivered()
        before = len(scene.upstream.requests)
        await scene.empty()
        sizes = scene.upstream.sizes[before:]
    assert sizes == [1000, 1000, 1000]
    assert scene.upstream.stored == Counter(numbered(3000))


async def test_faults_that_stay_are_probed_with_small_batches_then_all_goes_at_full_speed(tmp_path: Path) -> None:
    async with world(tmp_path, started=False) as scene:
        scene.upstream.rule = lambda batch: Later("503 from the upstream", status=503, sticks=True)
        await scene.accept(numbered(3000))
        await scene.lanes.start()
        await scene.after(3600)
        scene.upstream.rule = lambda batch: Delivered()
        before = len(scene.upstream.requests)
        await scene.empty()
        sizes = scene.upstream.sizes[before:]
    assert sizes[0] <= 10
    assert max(sizes[1:]) == 1000
    assert len(sizes) <= 5
    assert max(scene.upstream.sizes[10:before]) <= 10, "it may be a record: small batches find out"
    assert scene.upstream.stored == Counter(numbered(3000))


async def test_a_resume_ends_the_waiting(tmp_path: Path) -> None:
    async with world(tmp_path, delivery=DeliveryConfig(pause_probe=86_400)) as scene:
        scene.upstream.rule = lambda batch: Paused("404")
        await scene.accept(numbered(5))
        await scene.until(lambda: scene.status().state == "paused")
        scene.upstream.rule = lambda batch: Delivered()
        assert scene.lanes.resume(UUID) == 0
        assert scene.lanes.resume(EMAIL) == 1
        await scene.empty(10)


async def test_a_failing_lane_does_not_hold_up_another(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = lambda batch: Later("500") if batch.lane == EMAIL else Delivered()
        await scene.accept(numbered(5))
        await scene.accept(numbered(5, "u"), UUID)
        await scene.until(lambda: scene.ledger["delivered"] == 5, 10)
        assert scene.status(EMAIL).state == "backing-off"


async def test_nothing_is_taken_before_the_time_is_known(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.keeper.verdict = Later("offline", offline=True)
        await scene.accept(numbered(5))
        await scene.after(60)
        assert not scene.upstream.requests
        assert (scene.status().state, scene.status().attempts) == ("backing-off", 0)
        scene.keeper.verdict = Paused("TLS: expired")
        await scene.until(lambda: scene.status().state == "paused", 100)
        scene.keeper.verdict = None
        await scene.empty(200)


# -- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hints", [False, True])
async def test_one_bad_record_in_a_thousand_costs_only_itself(tmp_path: Path, hints: bool) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = rejecting(lambda salt: salt == "s617", hints)
        await scene.accept(numbered(1000))
        await scene.empty()
        assert await scene.dead() == [("s617", "400: params.sku must not be null", 400)]
    assert scene.ledger["delivered"] == 999
    assert scene.upstream.stored == Counter(salt for salt in numbered(1000) if salt != "s617")
    assert len(scene.upstream.requests) <= (3 if hints else 21)


async def test_any_bad_records_are_found_and_no_others(tmp_path: Path) -> None:
    chance = random.Random(5)
    async with world(tmp_path, dead=DeadConfig(wave="400/400")) as scene:
        for attempt in range(8):
            salts = numbered(chance.randrange(1, 120), f"r{attempt}-")
            bad = set(chance.sample(salts, min(len(salts), chance.randrange(0, 9))))
            scene.upstream.rule = rejecting(bad.__contains__, hints=chance.random() < 0.5)
            await scene.accept(salts)
            await scene.empty()
            assert {salt for salt, _, _ in await scene.dead() if salt in salts} == bad
            assert {salt for salt in salts if scene.upstream.stored[salt]} == set(salts) - bad
    assert set(scene.upstream.stored.values()) == {1}


async def test_a_batch_whose_parts_are_all_accepted_buries_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = lambda batch: Rejected(400, "400: mixed") if batch.count > 3 else Delivered()
        await scene.accept(numbered(64))
        await scene.empty()
    assert scene.ledger["dead"] == 0
    assert scene.ledger["delivered"] == 64


async def test_parts_accepted_are_settled_while_the_search_goes_on(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        seen: list[int] = []

        def rule(batch: Batch) -> Outcome:
            seen.append(scene.ledger["delivered"])
            return rejecting(lambda salt: salt == "s63")(batch)

        scene.upstream.rule = rule
        await scene.accept(numbered(64))
        await scene.empty()
    assert seen == [0, 0, 32, 48, 56, 60, 62, 63]


async def test_trouble_in_the_middle_of_a_search_loses_nothing(tmp_path: Path) -> None:
    chance = random.Random(3)
    async with world(tmp_path) as scene:
        judge = rejecting(lambda salt: salt in ("s17", "s94"))
        troubles: list[Outcome] = [
            Later("503", status=503, sticks=True),
            Later("offline", offline=True),
            Paused("401"),
            TooLarge(),
            Forbidden("403"),
            PartlyRejected(207, {}, complete=False),
        ]

        def rule(batch: Batch) -> Outcome:
            if chance.random() < 0.4 and len(scene.upstream.requests) < 400:
                trouble = chance.choice(troubles)
                if not (isinstance(trouble, TooLarge | PartlyRejected) and batch.count == 1):
                    return trouble
            return judge(batch)

        scene.upstream.rule = rule
        await scene.accept(numbered(128))
        await scene.empty(30 * 86_400)
        assert {salt for salt, _, _ in await scene.dead()} == {"s17", "s94"}
    assert set(scene.upstream.stored) == set(numbered(128)) - {"s17", "s94"}


async def test_a_207_buries_what_it_names_and_delivers_the_rest(tmp_path: Path) -> None:
    def rule(batch: Batch) -> Outcome:
        bad = {i: "207: phone is wrong" for i, salt in enumerate(salts_of(batch)) if salt in ("s3", "s7")}
        return PartlyRejected(207, bad, complete=True, answer="[]") if bad else Delivered()

    async with world(tmp_path) as scene:
        scene.upstream.rule = rule
        await scene.accept(numbered(10))
        await scene.empty()
        assert await scene.dead() == [("s3", "207: phone is wrong", 207), ("s7", "207: phone is wrong", 207)]
    assert scene.upstream.sizes == [10]


async def test_a_207_that_cannot_be_matched_is_sent_again_one_by_one(tmp_path: Path) -> None:
    def rule(batch: Batch) -> Outcome:
        if batch.count > 1:
            return PartlyRejected(207, {2: "207: named"}, complete=False)
        return Rejected(207, "207: alone") if salts_of(batch) == ["s5"] else Delivered()

    async with world(tmp_path) as scene:
        scene.upstream.rule = rule
        await scene.accept(numbered(8))
        await scene.empty()
        assert [(salt, reason) for salt, reason, _ in await scene.dead()] == [
            ("s2", "207: named"),
            ("s5", "207: alone"),
        ]
    assert scene.upstream.sizes == [8] + [1] * 7


# -- waves --------------------------------------------------------------------------------------


async def test_a_wave_of_refusals_pauses_the_lane_and_buries_no_more(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = lambda batch: Rejected(400, "400: a bad deploy")
        with capture_logs() as logs:
            await scene.accept(numbered(300))
            await scene.until(lambda: scene.status().state == "paused")
            await scene.after(3600)
        assert scene.ledger["dead"] == 20
        assert scene.status().state == "paused"
        assert "20 of the last 400" in scene.status().last_error
        assert sum(line["event"] == "lane.paused" for line in logs) == 1
        alarms = [line for line in logs if line["log_level"] == "error"]
        assert {line["lane"] for line in alarms} == {str(EMAIL)}
        scene.upstream.rule = lambda batch: Delivered()
        await scene.empty()
    assert scene.ledger["delivered"] == 280


async def test_a_wave_that_has_passed_is_buried_to_the_end(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = rejecting(lambda salt: salt.startswith("bad"))
        await scene.accept([*numbered(30, "bad"), *numbered(2000, "good")])
        await scene.until(lambda: scene.status().state == "paused")
        assert scene.ledger["dead"] == 20
        await scene.empty()
        assert {salt for salt, _, _ in await scene.dead()} == set(numbered(30, "bad"))
    assert scene.ledger["delivered"] == 2000


async def test_a_resume_starts_the_count_anew(tmp_path: Path) -> None:
    async with world(tmp_path, delivery=DeliveryConfig(pause_probe=1e6)) as scene:
        scene.upstream.rule = lambda batch: Rejected(400, "400: bad")
        await scene.accept(numbered(100))
        await scene.until(lambda: scene.ledger["dead"] == 20)
        await scene.until(lambda: scene.status().state == "paused")
        await scene.after(100)
        scene.lanes.resume()
        await scene.until(lambda: scene.ledger["dead"] == 40)
        await scene.after(100)
        assert scene.ledger["dead"] == 40


async def test_a_wave_is_probed_with_what_is_behind_it_also_from_single_requests(tmp_path: Path) -> None:
    async with world(tmp_path, batch=BatchConfig(linger=0)) as scene:
        scene.upstream.rule = rejecting(lambda salt: salt.startswith("bad"))
        for salt in numbered(25, "bad"):
            await scene.accept([salt])
            await scene.after(2)
        assert scene.ledger["dead"] == 20
        await scene.accept(numbered(3, "good"))
        await scene.until(lambda: scene.ledger["delivered"] == 3, 3600)
        assert scene.ledger["dead"] == 20


# -- too large ----------------------------------------------------------------------------------


async def test_too_large_is_split_remembered_and_grows_again(tmp_path: Path) -> None:
    async with world(tmp_path, started=False) as scene:
        limit = 30_000
        scene.upstream.rule = lambda batch: TooLarge() if len(batch.body) > limit else Delivered()
        await scene.accept(numbered(1000))
        await scene.lanes.start()
        await scene.empty()
        refused = sum(1 for *_, body in scene.upstream.requests if len(body) > limit)
        assert refused == 3
        before = len(scene.upstream.requests)
        await scene.accept(numbered(1000, "t"))
        await scene.empty()
        assert all(len(body) <= limit for *_, body in scene.upstream.requests[before:]), "remembered"

        await scene.lanes.stop(1)
        scene.lanes = scene.new_lanes()
        await scene.lanes.start()
        before = len(scene.upstream.requests)
        await scene.accept(numbered(1000, "u"))
        await scene.empty()
        assert all(len(body) <= limit for *_, body in scene.upstream.requests[before:]), "also after a restart"

        limit = 1_000_000
        await scene.after(6 * 3600)
        before = len(scene.upstream.requests)
        await scene.accept(numbered(1000, "v"))
        await scene.empty()
        assert scene.upstream.sizes[before:] == [1000]
    assert scene.ledger["dead"] == 0


async def test_a_record_too_large_alone_is_buried(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = lambda batch: TooLarge(413, "<html>") if len(batch.body) > 20_000 else Delivered()
        await scene.buffer.append([parcel([*(record(s) for s in numbered(50)), record("huge", pad=50_000)])])
        await scene.empty()
        ((salt, reason, status),) = await scene.dead()
    assert (salt, status) == ("huge", 413)
    assert "too large" in reason
    assert scene.ledger["delivered"] == 50


# -- paused -------------------------------------------------------------------------------------


async def test_a_paused_lane_keeps_everything_probes_small_and_resumes(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = lambda batch: Paused("404: not here", 404)
        with capture_logs() as logs:
            await scene.accept(numbered(500))
            await scene.until(lambda: scene.status().state == "paused")
            await scene.after(3600)
            assert scene.ledger["pending"] == 500
            assert scene.status().last_error == "404: not here"
            assert 50 <= len(scene.upstream.requests) <= 62
            assert max(scene.upstream.sizes[1:]) <= 10
            scene.upstream.rule = lambda batch: Delivered()
            await scene.empty(62)
        assert [line["event"] for line in logs if line["event"].startswith("lane.")] == ["lane.paused", "lane.resumed"]
        assert (scene.status().state, scene.status().last_error) == ("idle", None)


async def test_trouble_while_paused_changes_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        answers: list[Outcome] = [Later("500", sticks=True, status=500), Later("offline", offline=True), Paused("404")]
        scene.upstream.rule = lambda batch: answers[len(scene.upstream.requests) % 3]
        await scene.accept(numbered(50))
        await scene.until(lambda: scene.status().state == "paused")
        await scene.after(3600)
        assert scene.status().state == "paused"
        assert len(scene.upstream.requests) <= 65
        scene.upstream.rule = lambda batch: Delivered()
        await scene.empty(400)


# -- forbidden ----------------------------------------------------------------------------------


def typed(salt: str, type_: str, action: str | None = None) -> bytes:
    event = {
        "type": type_,
        "label": "x",
        "time": "2026-01-01T00:00:00.000Z",
        "eventSalt": salt,
        "client": {"email": "a@b.pl"},
    }
    return orjson.dumps(event | ({"action": action} if action else {}))


def forbidding(scene: World, *denied: str) -> None:
    def rule(batch: Batch) -> Outcome:
        types = {each.get("action", each["type"]) for each in orjson.loads(batch.body)}
        return Forbidden("403: no") if types & set(denied) else Delivered()

    scene.upstream.rule = rule


async def test_event_types_that_are_refused_wait_aside_and_the_others_flow(tmp_path: Path) -> None:
    kinds = [("product-view", None), ("shared", None), ("custom", "a.ok"), ("custom", "a.denied")]
    async with world(tmp_path) as scene:
        forbidding(scene, "shared", "a.denied")
        await scene.buffer.append([parcel([typed(f"s{i}", *kinds[i % 4]) for i in range(80)])])
        await scene.until(lambda: scene.ledger["delivered"] == 40, 100)
        state = scene.buffer.lane(EMAIL)
        assert state is not None
        assert (state.aside, state.pending) == (40, 40)
        assert len(scene.upstream.requests) == 5
        await scene.buffer.append([parcel([typed(f"t{i}", *kinds[i % 4]) for i in range(8)])])
        await scene.until(lambda: scene.ledger["delivered"] == 44, 100)
        assert sum(salts[0].startswith("t") for _, _, salts, _ in scene.upstream.requests) == 1, "known by now"
        before = len(scene.upstream.requests)
        await scene.after(7200)
        assert len(scene.upstream.requests) - before <= 2 * 7200 / 300 + 4, "one of each type finds out for all"
        forbidding(scene)
        await scene.empty()
        await scene.buffer.append([parcel([typed(f"u{i}", *kinds[i % 4]) for i in range(8)])])
        await scene.empty()
    assert scene.upstream.sizes[-1] == 8, "permitted again"
    assert scene.ledger["dead"] == 0


async def test_when_every_type_is_refused_the_lane_pauses_and_nothing_is_set_aside(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = lambda batch: Forbidden("403: the key lacks a permission")
        await scene.buffer.append([parcel([typed("s1", "shared"), typed("s2", "product-view"), typed("s3", "shared")])])
        await scene.until(lambda: scene.status().state == "paused")
        await scene.after(300)
        state = scene.buffer.lane(EMAIL)
        assert state is not None
        assert (state.pending, state.aside) == (3, 0)
        forbidding(scene)
        await scene.empty(61)


async def test_many_of_a_type_that_is_permitted_again_leave_together(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        forbidding(scene, "shared")
        both = [typed(f"s{i}", "shared" if i % 3 else "product-view") for i in range(900)]
        await scene.buffer.append([parcel(both)])
        await scene.until(lambda: scene.ledger["delivered"] == 300, 100)
        before = len(scene.upstream.requests)
        forbidding(scene)
        await scene.empty(700)
        assert scene.upstream.sizes[before:] == [600]


async def test_a_refused_type_that_comes_alone_holds_up_the_others_for_a_probe_at_most(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        forbidding(scene, "shared")
        await scene.buffer.append([parcel([typed(f"s{i}", "shared") for i in range(30)])])
        await scene.until(lambda: scene.status().state == "paused")
        await scene.after(200)
        assert scene.status().state == "paused", "it could be the whole lane"
        await scene.buffer.append([parcel([typed(f"t{i}", "product-view") for i in range(30)])])
        await scene.until(lambda: scene.ledger["delivered"] == 30, 61)
        state = scene.buffer.lane(EMAIL)
        assert state is not None
        assert (state.pending, state.aside, scene.ledger["dead"]) == (30, 30, 0)
        assert scene.status().state != "paused"
        forbidding(scene)
        await scene.empty(400)


# -- server faults that stick -------------------------------------------------------------------


def poisoned(*salts: str) -> Callable[[Batch], Outcome]:
    def rule(batch: Batch) -> Outcome:
        return (
            Later("500 from the upstream", sticks=True, status=500)
            if set(salts) & set(salts_of(batch))
            else Delivered()
        )

    return rule


@pytest.mark.parametrize("where", [0, 5, 250, 499])
@pytest.mark.parametrize("alone", [True, False], ids=["only lane", "other lanes pass"])
async def test_a_record_the_upstream_chokes_on_waits_aside_and_the_rest_flows(
    tmp_path: Path, where: int, alone: bool
) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = poisoned(f"s{where}")
        await scene.accept(numbered(500))
        if not alone:
            for i in range(30):
                await scene.accept([f"u{i}"], UUID)
                await scene.after(5)
        delivered = 499 + (0 if alone else 30)
        await scene.until(lambda: scene.ledger["delivered"] == delivered, 3600)
        await scene.after(7200)
        state = scene.buffer.lane(EMAIL)
        assert state is not None
        assert (state.pending, scene.ledger["dead"]) == (1, 0)
        requests = len(scene.upstream.requests)
        await scene.accept(numbered(500, "t"))
        await scene.until(lambda: scene.ledger["delivered"] == delivered + 500, 1000)
        scene.upstream.rule = lambda batch: Delivered()
        await scene.empty(1000)
        assert requests < 100 + 2 * 3600 * 2 / 100
    assert set(scene.upstream.stored.values()) == {1}


async def test_several_of_them_too(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = poisoned("s3", "s4", "s77", "s199")
        await scene.accept(numbered(200))
        await scene.until(lambda: scene.ledger["delivered"] == 196, 7200)
        assert scene.ledger["dead"] == 0


async def test_when_nothing_passes_hardly_anything_is_set_aside(tmp_path: Path) -> None:
    """An outage that answers 500 is no fault of any record."""
    async with world(tmp_path) as scene:
        scene.upstream.rule = lambda batch: Later("500 from the upstream", sticks=True, status=500)
        await scene.accept(numbered(500))
        await scene.accept(["single"], UUID)
        await scene.after(36_000)
        assert sum(state.aside for state in scene.buffer.lanes()) <= 2
        assert len(scene.upstream.requests) < 2 * 36_000 / 100 + 30
        scene.upstream.rule = lambda batch: Delivered()
        await scene.empty(700)


async def test_a_connection_that_does_not_survive_a_large_batch_gets_smaller_ones(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = lambda batch: Delivered() if len(batch.body) < 40_000 else Later("timed out", sticks=True)
        await scene.accept(numbered(1000))
        await scene.empty(3600)
    assert scene.ledger["dead"] == 0


# -- the disk -----------------------------------------------------------------------------------


async def test_what_cannot_be_noted_is_not_sent_twice(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        settle, broken = scene.buffer.settle, True

        async def failing(fates: Any) -> None:
            if broken:
                raise Unknown("the commit failed")
            await settle(fates)

        scene.buffer.settle = failing  # type: ignore[method-assign]
        await scene.accept(numbered(20))
        await scene.until(lambda: scene.status().state == "paused")
        assert scene.status().last_error == "the buffer cannot be written"
        await scene.after(3600)
        assert len(scene.upstream.requests) == 1
        broken = False
        await scene.empty(400)
        assert len(scene.upstream.requests) == 1
        assert scene.status().state == "idle"


async def test_a_lane_that_cannot_bury_pauses(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.buffer.dead_max = 10
        scene.upstream.rule = rejecting(lambda salt: salt == "s1")
        await scene.accept(numbered(4))
        await scene.until(lambda: scene.status().state == "paused")
        assert "dead letters" in scene.status().last_error
        await scene.after(600)
        assert scene.ledger["dead"] == 0
        scene.buffer.dead_max = 1 << 20
        await scene.empty(100)
        assert scene.ledger["dead"] == 1
    assert scene.upstream.stored == Counter(["s0", "s2", "s3"])


async def test_what_was_erased_meanwhile_is_not_sent_again(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = lambda batch: Later("503", status=503)
        await scene.accept(["keep", "forget"])
        await scene.until(lambda: scene.status().attempts == 1)

        def forget(work: Any) -> None:
            chunk = work.conn.execute("SELECT id FROM chunks").fetchone()[0]
            work.conn.execute("INSERT INTO gone (chunk, bits) VALUES (?, x'02')", (chunk,))
            work.lane(EMAIL).pending -= 1
            work.lane(EMAIL).revision += 1
            work.ledger["pending"] -= 1
            work.ledger["discarded"] += 1

        await scene.buffer.erase(forget)
        before = len(scene.upstream.requests)
        scene.upstream.rule = lambda batch: Delivered()
        await scene.empty(100)
        assert [salts for _, _, salts, _ in scene.upstream.requests[before:]] == [["keep"]]


# -- stopping, draining, faults of ours ---------------------------------------------------------


async def test_a_stop_lets_requests_in_flight_finish(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.hang = asyncio.Event()
        await scene.accept(numbered(10))
        await scene.until(lambda: bool(scene.upstream.requests))
        stopping = asyncio.create_task(scene.lanes.stop(10))
        await scene.accept(numbered(10, "late"))
        await asyncio.sleep(0)
        scene.upstream.hang.set()
        await stopping
        assert (scene.ledger["delivered"], scene.ledger["pending"]) == (10, 10)
        assert len(scene.upstream.requests) == 1


async def test_a_stop_gives_up_at_its_deadline_and_deletes_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.hang = asyncio.Event()
        await scene.accept(numbered(10))
        await scene.until(lambda: bool(scene.upstream.requests))
        await scene.lanes.stop(0.02)
        assert (scene.ledger["delivered"], scene.ledger["pending"]) == (0, 10)
        scene.upstream.hang = None
        scene.lanes = scene.new_lanes()
        await scene.lanes.start()
        await scene.empty()


async def test_a_stop_interrupts_every_kind_of_wait(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        rules: dict[Lane, Outcome] = {EMAIL: Paused("404"), UUID: Later("429", retry_after_s=3000)}
        scene.upstream.rule = lambda batch: rules[batch.lane]
        await scene.accept(numbered(3))
        await scene.accept(numbered(3), UUID)
        await scene.until(lambda: len(scene.upstream.requests) == 2)
        begun = scene.clock.now
        await scene.lanes.stop(5)
        assert scene.clock.now - begun < 1000
        assert scene.ledger["pending"] == 6


async def test_a_drain_names_what_is_left_and_why(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        scene.upstream.rule = lambda batch: Paused("404: not here") if batch.lane == EMAIL else Delivered()
        await scene.accept(numbered(3))
        await scene.accept(["now"], UUID)
        await scene.accept(["tomorrow"], UUID, time=format_ms(T0 + 20_000_000))
        left = await scene.lanes.drain(30)
        assert [(str(u.lane), u.pending, u.aside, u.state, u.reason, u.stuck) for u in left] == [
            ("events/email/live", 3, 0, "paused", "404: not here", True),
            ("events/uuid/live", 1, 1, "idle", None, True),
        ]
        assert await scene.lanes.drain() == left, "without a limit it ends when nothing moves"
        scene.upstream.rule = lambda batch: Delivered()
        assert await scene.lanes.drain(30_000) == []


async def test_a_fault_of_ours_costs_a_pause_but_not_the_lane(tmp_path: Path) -> None:
    def faulty(batch: Batch) -> Outcome:
        raise TypeError("s3cret payload")

    async with world(tmp_path) as scene:
        scene.upstream.rule = faulty
        with capture_logs() as logs:
            await scene.accept(numbered(3))
            await scene.until(lambda: scene.status().attempts == 2)
            scene.upstream.rule = lambda batch: Delivered()
            await scene.empty(100)
        assert any(line["event"] == "lane.fault" for line in logs)


async def test_an_idle_lane_makes_no_timers(tmp_path: Path) -> None:
    async with world(tmp_path) as scene:
        await scene.accept(numbered(3))
        await scene.empty()
        assert scene.status().state == "idle"
        await scene.after(5)
        assert not [over for _, _, over in scene.clock._sleepers if not over.done()]


async def test_logs_hold_no_people_and_no_payload(tmp_path: Path) -> None:
    answers: list[Outcome] = [
        Rejected(400, "400: bad anna@example.com", "anna@example.com"),
        Later("503 from the upstream"),
        PartlyRejected(207, {0: "207: anna@example.com"}, False, "anna@example.com"),
        TooLarge(413, "anna@example.com"),
        Paused("404"),
    ]
    async with world(tmp_path) as scene:
        scene.upstream.rule = lambda batch: answers[len(scene.upstream.requests) % 5]
        with capture_logs() as logs:
            await scene.accept(numbered(30), email="anna@example.com")
            await scene.after(600)
        assert len(scene.upstream.requests) > 5
        assert "anna" not in repr(logs) + repr(scene.lanes.activity())
