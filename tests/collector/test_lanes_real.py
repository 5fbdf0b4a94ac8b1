"""The lanes with everything real: buffer, HTTP, login, clock, and the strict stand-in for the API."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from collector.buffer import Buffer
from collector.clock import Keeper
from collector.config import BatchConfig, ClockConfig, Config, DeadConfig, DeliveryConfig, UpstreamConfig
from collector.credentials import make_credentials
from collector.delivery import Http, HttpUpstream
from collector.kinds import Lane
from collector.lanes import Lanes
from collector.testing import FakeUpstream
from collector.waiting import SystemTimer
from tests.collector.buffers import EMAIL, UUID, adds_up, parcel
from tracker.time import SystemClock, format_ms, parse_ms

FAST = Config(
    batch=BatchConfig(linger=0),
    clock=ClockConfig(margin=0),
    dead=DeadConfig(wave="50/400"),
    delivery=DeliveryConfig(backoff_base=0.01, backoff_max=0.05, pause_probe=0.05),
)


class Real:
    """A buffer delivering to a `FakeUpstream`."""

    def __init__(self, buffer: Buffer, fake: FakeUpstream, config: Config) -> None:
        clock = SystemClock()
        config = msgspec.structs.replace(config, upstream=UpstreamConfig(url=fake.url, timeout=2.0))
        self.buffer, self.fake = buffer, fake
        self.http = Http(config.upstream, clock)
        self.keeper = Keeper(self.http, buffer, clock, config.clock, timer=SystemTimer(), chance=random.random)
        self.http.on_answer = self.keeper.on_answer
        self.credentials = make_credentials(
            config.upstream, lambda: "test-key", self.http, clock, self.keeper.upstream.now_ms
        )
        self.lanes = Lanes(buffer, HttpUpstream(self.http, self.credentials), self.keeper, config)

    async def accept(self, salts: list[str], lane: Lane = EMAIL, time_ms: int | None = None) -> None:
        records = [event(salt, lane, time_ms or SystemClock().wall_ms() - 5_000) for salt in salts]
        await self.buffer.append([parcel(records, lane)])

    async def delivered(self, count: int, pending: int = 0) -> None:
        """Wait until so many are delivered and only so many are left."""
        ledger = self.buffer.ledger
        async with asyncio.timeout(20):
            while (ledger()["delivered"], ledger()["pending"]) != (count, pending):
                await SystemTimer().wait(self.lanes._common.changed, 0.02)


@asynccontextmanager
async def real(tmp_path: Path, config: Config = FAST, **switches: Any) -> AsyncIterator[Real]:
    async with FakeUpstream("test-key", **switches) as fake:
        buffer = await Buffer.open(tmp_path / "tillpost.db", max_size=64 << 20)
        scene = Real(buffer, fake, config)
        await scene.keeper.start()
        await scene.lanes.start()
        try:
            yield scene
            assert not fake.violations, fake.violations
        finally:
            await scene.lanes.stop(5)
            await scene.keeper.close()
            await scene.credentials.close()
            await scene.http.close()
            assert adds_up(buffer.ledger())
            await buffer.close()


def event(salt: str, lane: Lane, time_ms: int) -> bytes:
    client = {"email": "a@example.com"} if lane == EMAIL else {"uuid": "0a1b2c3d-0000-4000-8000-000000000001"}
    return orjson.dumps({"type": "custom", "action": "a.b", "label": "x", "time": format_ms(time_ms), "eventSalt": salt,
                         "client": client})  # fmt: skip


def numbered(count: int, prefix: str = "s") -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


TROUBLE: dict[str, dict[str, Any]] = {
    **{key: {} for key in ("503", "401", "403", "404", "reset", "reset_after_store", "drop_answer", "truncated")},
    **{key: {} for key in ("garbage", "html", "redirect", "expire_tokens")},
    "429": {"retry_after": "0.1"},
}


async def test_everything_arrives_once_through_every_kind_of_trouble(tmp_path: Path) -> None:
    async with real(tmp_path) as scene:
        for name, detail in TROUBLE.items():
            scene.fake.fault(name, **detail)
            await scene.accept(numbered(20, f"{name}-"))
            await scene.accept(numbered(5, f"u-{name}-"), UUID)
        await scene.delivered(len(TROUBLE) * 25)
        assert await scene.lanes.drain(5) == []
        assert scene.fake.stored_count == len(TROUBLE) * 25
        assert scene.buffer.ledger()["dead"] == 0


@pytest.mark.parametrize("shape", ["index", "bare", "2022"])
async def test_a_bad_record_costs_only_itself_whatever_the_answer_looks_like(tmp_path: Path, shape: str) -> None:
    async with real(tmp_path, error_shape=shape) as scene:
        scene.fake.fault("reject", salt="s77")
        await scene.accept(numbered(300))
        await scene.delivered(299)
        assert scene.buffer.ledger()["dead"] == 1
        posts = [request for request in scene.fake.requests if request.path == "/v4/events/batch"]
        assert len(posts) <= 1 + 2 * 9
        assert scene.fake.stored_count == 299


@pytest.mark.parametrize("shape", ["index", "bare", "2022"])
async def test_a_207_settles_what_can_be_matched_and_the_rest_one_by_one(tmp_path: Path, shape: str) -> None:
    async with real(tmp_path, error_shape=shape) as scene:
        scene.fake.fault("207", salt="s7", times=None)
        await scene.accept(numbered(20))
        await scene.delivered(19)
        assert scene.buffer.ledger()["dead"] == 1
        assert scene.fake.stored_count == 19


async def test_a_record_that_makes_the_upstream_fail_waits_aside(tmp_path: Path) -> None:
    async with real(tmp_path) as scene:
        scene.fake.fault("poison", salt="s7")
        await scene.accept(numbered(40))
        await scene.delivered(39, pending=1)
        assert scene.buffer.ledger()["dead"] == 0


async def test_a_proxy_with_a_small_limit_gets_small_bodies(tmp_path: Path) -> None:
    async with real(tmp_path) as scene:
        scene.fake.fault("413", times=None, max_bytes=20_000)
        await scene.accept(numbered(900))
        await scene.delivered(900)
        assert scene.buffer.ledger()["dead"] == 0


async def test_a_denied_event_type_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async with real(tmp_path, denied=frozenset({"a.denied"})) as scene:
        now = SystemClock().wall_ms() - 5_000
        records = [
            event(f"s{i}", EMAIL, now).replace(b'"a.b"', b'"a.denied"' if i % 4 == 0 else b'"a.b"') for i in range(40)
        ]
        await scene.buffer.append([parcel(records)])
        await scene.delivered(30, pending=10)


@pytest.mark.parametrize("offset", [-3600, 3600])
async def test_a_time_we_stamped_under_a_wrong_clock_arrives_right_and_a_given_one_unchanged(
    tmp_path: Path, offset: int
) -> None:
    async with real(tmp_path, clock_offset_s=offset, keep_bodies=True) as scene:
        clock = SystemClock()
        stamped = clock.wall_ms()
        boot, wall_minus_boot = clock.boot_id(), clock.wall_ms() - clock.boot_ms()
        given = stamped + offset * 1000 - 60_000
        await scene.buffer.append(
            [
                parcel([event("ours", EMAIL, stamped)], boot=boot, offset_ms=wall_minus_boot),
                parcel([event("given", EMAIL, given)]),
            ]
        )
        await scene.delivered(2)
        bodies = [request.body for request in scene.fake.requests if request.path == "/v4/events/batch"]
        sent = {each["eventSalt"]: each["time"] for body in bodies for each in orjson.loads(body)}
        assert sent["given"] == format_ms(given)
        assert abs(SystemClock().wall_ms() + offset * 1000 - parse_ms(sent["ours"])) < 5_000
        assert scene.keeper.status()["synchronised"]
        assert abs(scene.keeper.status()["offset_ms"] - offset * 1000) < 1_500
