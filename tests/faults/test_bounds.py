"""`buffer.max_size` is never exceeded (G7), whatever is done and however large it comes."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path

import pytest

from collector import deadletters, search
from collector.admission import Sizes
from collector.batcher import Aside, Batch, Dead, Delivered, Gate, Limits, Wait
from collector.buffer import Buffer, Full
from collector.kinds import Lane
from collector.search import Query
from tests.collector.buffers import ANYTIME, T0, adds_up, parcel, record

SIZES = Sizes(4 * 1024 * 1024)  # the smallest there may be: everything else is larger in proportion
LANES = [
    Lane("events", identifier, priority)
    for identifier in ("email", "uuid", "customId", "email+uuid", "id")
    for priority in ("live", "bulk")
]
LIMITS = Limits(1000, 1_000_000)


class Sampler(threading.Thread):
    """Looks at the files all the time, as a person with `du` would."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.stop = threading.Event()
        self.samples = self.most = self.most_log = 0

    def run(self) -> None:
        while not self.stop.is_set():
            self.sample()
            time.sleep(0.0005)

    def sample(self) -> None:
        total = 0
        for file in self.path.parent.iterdir():
            try:
                size = file.stat().st_size
            except FileNotFoundError:
                continue
            total += size
            if file.name.endswith("-wal"):
                self.most_log = max(self.most_log, size)
        self.samples += 1
        self.most = max(self.most, total)


@contextmanager
def watched(path: Path) -> Iterator[Sampler]:
    sampler = Sampler(path)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.stop.set()
        sampler.join()
    assert sampler.samples > 20
    assert sampler.most_log <= SIZES.wal_cap, "the log is beyond its cap"
    assert sampler.most <= SIZES.max_size


def request(chance: random.Random, serial: int, size: int, length: int, ahead: bool = False) -> list[bytes]:
    """Records of about `length` bytes each, `size` bytes in all."""
    when = "2026-06-01T00:00:00.000Z" if ahead else "2026-01-01T00:00:00.000Z"
    some = [record(f"{serial}-0", pad=max(0, length - 140), time=when)]
    while sum(map(len, some)) + len(some) + len(some[0]) < size:
        some.append(
            record(f"{serial}-{len(some)}", email=f"p{chance.randrange(9)}@x.pl", pad=max(0, length - 140), time=when)
        )
    return some


@asynccontextmanager
async def opened(path: Path, max_size: int = SIZES.max_size) -> AsyncIterator[Buffer]:
    buffer = await Buffer.open(path, max_size=max_size)
    try:
        with watched(path) if max_size == SIZES.max_size else nullcontext():
            yield buffer
        assert adds_up(buffer.ledger())
    finally:
        await buffer.close()


async def offer(buffer: Buffer, *parcels: object) -> bool:
    try:
        await buffer.append(parcels)  # type: ignore[arg-type]
    except Full:
        return False
    return True


async def take(buffer: Buffer, lane: Lane, gate: Gate = ANYTIME) -> Batch | None:
    batch = await buffer.take(lane, LIMITS, gate)
    return batch if isinstance(batch, Batch) else None


@pytest.mark.parametrize("length", [300, 500_000])
async def test_large_requests_and_large_groups_stay_within_the_bound(tmp_path: Path, length: int) -> None:
    chance = random.Random(length)
    async with opened(tmp_path / "t.db") as buffer:
        for serial in range(3):
            body = request(chance, serial, SIZES.max_body - 2, length)
            await asyncio.gather(*(offer(buffer, parcel(body, lane)) for lane in LANES[:3]))
            small = [offer(buffer, parcel(request(chance, serial, 4_000, length), lane)) for lane in LANES]
            await asyncio.gather(*small, *(buffer.run(lambda _: None) for _ in range(9)))
            for lane in LANES[:3]:
                while (batch := await take(buffer, lane)) is not None and serial % 3:
                    await buffer.settle([(batch, Delivered())])
        assert buffer.ledger()["accepted"] > 0


@pytest.mark.parametrize("length", [400, 2_000])
async def test_setting_aside_burying_reviving_and_forgetting_stay_within_the_bound(tmp_path: Path, length: int) -> None:
    chance, lane = random.Random(length), LANES[0]
    async with opened(tmp_path / "t.db") as buffer:
        serial = 0
        while buffer.used_bytes < 0.25 * SIZES.usable:
            assert await offer(buffer, parcel(request(chance, serial, 100_000, length, ahead=True), lane))
            serial += 1
        # all of it has a time that is far ahead: nothing may leave, everything goes aside
        for _ in range(100):
            await take(buffer, lane, Gate(now_ms=T0 + 10**9, hold_max_ms=10**11))
            if all_aside(buffer, lane):
                break
        assert all_aside(buffer, lane)
        batch = await take(buffer, lane)
        assert batch is not None
        await buffer.settle([(batch.part(0, batch.count // 2), Aside("parked", 10**15))])
        batch = await take(buffer, lane)
        assert batch is not None
        for i in range(min(40, batch.count)):
            await buffer.settle([(batch.part(i, i + 1), Dead("no", 400))])
        assert await deadletters.retry(buffer, None) > 0
        await search.forget(buffer, Query(client={"email": "p1@x.pl"}))
        while (batch := await take(buffer, lane)) is not None:
            await buffer.settle([(batch, Delivered())])
    assert not any(b"p1@x.pl" in file.read_bytes() for file in tmp_path.iterdir())


async def test_a_full_buffer_with_no_room_to_set_aside_waits_and_goes_on(tmp_path: Path) -> None:
    chance, lane, serial = random.Random(1), LANES[0], 0
    async with opened(tmp_path / "t.db") as buffer:
        while await offer(buffer, parcel(request(chance, serial, 100_000, 200, ahead=True), lane)):
            serial += 1
        for _ in range(30):
            waiting = await buffer.take(lane, LIMITS, Gate(now_ms=T0, hold_max_ms=10**11))
            assert isinstance(waiting, Wait)
            assert waiting.until_ms is not None
        assert waiting.until_ms > T0, "a lane without room asks again and again at once"
        assert not all_aside(buffer, lane)
        assert buffer.failed is None
        while (batch := await take(buffer, lane)) is not None:
            await buffer.settle([(batch, Delivered())])


def all_aside(buffer: Buffer, lane: Lane) -> bool:
    state = buffer.lane(lane)
    assert state is not None
    return state.aside == state.pending > 0


async def test_a_batch_goes_aside_although_the_file_is_at_its_bound(tmp_path: Path) -> None:
    """What is set aside takes room of its own until the rest of its chunk has left: the ballast's."""
    chance, lane, serial = random.Random(1), LANES[0], 0
    async with opened(tmp_path / "t.db") as buffer:
        while await offer(buffer, parcel(request(chance, serial, 200_000, 1000), lane)):
            serial += 1
        batch = await take(buffer, lane)
        assert batch is not None
        pages = buffer.used_bytes
        await buffer.settle([(batch.pick(range(0, batch.count, 2)), Aside("parked", 10**15))])
        assert buffer.used_bytes > pages
        assert buffer.failed is None
        while (batch := await take(buffer, lane)) is not None:
            await buffer.settle([(batch, Delivered())])


async def test_a_cap_lowered_below_the_backlog_starts_drains_and_gives_the_pages_back(tmp_path: Path) -> None:
    chance, path, lane = random.Random(1), tmp_path / "t.db", LANES[0]
    async with opened(path, 32 * 1024 * 1024) as buffer:
        for serial in range(33):
            assert await offer(buffer, parcel(request(chance, serial, 400_000, 8000), lane))
        accepted = buffer.ledger()["accepted"]
    assert path.stat().st_size > 3 * SIZES.max_size
    buffer = await Buffer.open(path, max_size=SIZES.max_size)
    try:
        assert buffer.is_full
        assert not await offer(buffer, parcel([record("no")], lane))
        while (batch := await take(buffer, lane)) is not None:
            await buffer.settle([(batch, Delivered())])
        await buffer.quiet()
        assert await offer(buffer, parcel([record("yes")], lane))
        await buffer.quiet()
        assert buffer.ledger()["delivered"] == accepted
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= SIZES.max_size
    finally:
        await buffer.close()
