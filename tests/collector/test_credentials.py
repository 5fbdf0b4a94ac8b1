"""Who we are: one login for many lanes, renewed in time, and no secret where it could be seen."""

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from collector.config import UpstreamConfig
from collector.credentials import FRESH_MS, LOGIN_PATH, Given, LoginToken, judge_login, make_credentials, token_life_ms
from collector.delivery import Http, HttpUpstream
from collector.outcomes import Answer, Delivered, Forbidden, Later, Paused
from collector.secret import Secret, SecretUnavailable
from tests.collector.logged import capture_logs
from tests.collector.scripted import Scripted, answer, close
from tests.collector.test_delivery import batch_of
from tracker.time import SystemClock

KEY = "64c09614-1b2a-42f7-804d-f647243eb1ab"
JSON = {"Content-Type": "application/json"}
NOW = 1_777_888_436_000


class Hands:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.boot = 1_000

    def wall_ms(self) -> int:
        return NOW + self.boot

    def boot_ms(self) -> int:
        return self.boot

    def boot_id(self) -> str:
        return "boot"


class Login:
    """An upstream of which only the login exists. It waits for `gate` before it answers."""

    def __init__(self, *answers: Answer | Later | Paused) -> None:
        self.answers = list(answers)
        self.bodies: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer | Later | Paused:
        assert (method, path) == ("POST", LOGIN_PATH)
        self.bodies.append(orjson.loads(body or b""))
        await self.gate.wait()
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def token(value: str) -> Answer:
    return Answer(200, JSON, orjson.dumps({"token": value}))


def jwt(claims: dict[str, Any]) -> str:
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (b"{}", orjson.dumps(claims), b"x"))


def login(exchange: Login, secret: Any = lambda: KEY, clock: Hands | None = None) -> LoginToken:
    hands = clock or Hands()
    return LoginToken(secret, exchange, hands, hands.wall_ms)


async def test_many_lanes_at_once_share_one_login() -> None:
    exchange = Login(token("t1"))
    exchange.gate.clear()
    credentials = login(exchange)
    lanes = [asyncio.create_task(credentials.authorization()) for _ in range(50)]
    await asyncio.sleep(0)
    exchange.gate.set()
    assert set(await asyncio.gather(*lanes)) == {"Bearer t1"}
    assert exchange.bodies == [{"apiKey": KEY}]
    assert await credentials.authorization() == "Bearer t1"
    assert len(exchange.bodies) == 1


async def test_many_lanes_refused_at_once_renew_once() -> None:
    exchange = Login(token("t1"), token("t2"))
    credentials = login(exchange)
    old = await credentials.authorization()
    assert isinstance(old, str)
    renewed = await asyncio.gather(*(credentials.renew(old, forbidden=False) for _ in range(50)))
    assert set(renewed) == {"Bearer t2"}
    assert await credentials.renew(old, forbidden=False) == "Bearer t2", "a late one gets what is there"
    assert len(exchange.bodies) == 2


async def test_a_failed_login_is_the_answer_for_all_who_wait_and_the_next_one_tries_again() -> None:
    exchange = Login(Answer(401, JSON, b"{}"), token("t1"))
    exchange.gate.clear()
    credentials = login(exchange)
    lanes = [asyncio.create_task(credentials.authorization()) for _ in range(10)]
    await asyncio.sleep(0)
    exchange.gate.set()
    assert all(isinstance(found, Paused) for found in await asyncio.gather(*lanes))
    assert len(exchange.bodies) == 1
    assert await credentials.authorization() == "Bearer t1"


async def test_one_lane_that_gives_up_does_not_take_the_login_from_the_others() -> None:
    exchange = Login(token("t1"))
    exchange.gate.clear()
    credentials = login(exchange)
    first, second = (asyncio.create_task(credentials.authorization()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    exchange.gate.set()
    assert await second == "Bearer t1"
    assert len(exchange.bodies) == 1


async def test_a_login_under_way_ends_when_closed() -> None:
    exchange = Login(token("t1"))
    exchange.gate.clear()
    credentials = login(exchange)
    waiting = asyncio.create_task(credentials.authorization())
    await asyncio.sleep(0)
    await credentials.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_token_is_renewed_when_four_fifths_of_its_life_are_over() -> None:
    hands = Hands()
    life = jwt({"exp": (hands.wall_ms() + 1_000_000) / 1000})
    exchange = Login(token(life), token("t2"))
    credentials = login(exchange, clock=hands)
    assert await credentials.authorization() == f"Bearer {life}"
    hands.boot += 799_000
    assert await credentials.authorization() == f"Bearer {life}"
    hands.boot += 2_000
    assert await credentials.authorization() == "Bearer t2"


async def test_while_renewal_in_time_fails_the_old_token_serves() -> None:
    hands = Hands()
    life = jwt({"exp": (hands.wall_ms() + 1_000_000) / 1000})
    exchange = Login(token(life), Later("down"))
    credentials = login(exchange, clock=hands)
    await credentials.authorization()
    hands.boot += 900_000
    for _ in range(5):
        assert await credentials.authorization() == f"Bearer {life}"
    assert len(exchange.bodies) == 2, "and the login is not asked at every request"


async def test_a_403_renews_an_old_token_but_not_a_fresh_one() -> None:
    hands = Hands()
    exchange = Login(token("t1"), token("t2"))
    credentials = login(exchange, clock=hands)
    held = await credentials.authorization()
    assert isinstance(held, str)
    assert await credentials.renew(held, forbidden=True) is None
    hands.boot += FRESH_MS
    assert await credentials.renew(held, forbidden=True) == "Bearer t2"


async def test_the_key_file_is_read_again_after_a_401_and_on_reload(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old-key\n")
    exchange = Login(token("t1"), token("t2"), token("t3"))
    credentials = login(exchange, Secret("api_key", file=str(file), source="test"))
    held = await credentials.authorization()
    assert isinstance(held, str)
    file.write_text("new-key\n")
    assert await credentials.authorization() == held
    await credentials.renew(held, forbidden=False)
    file.write_text("newest-key\n")
    credentials.reload()
    await credentials.authorization()
    assert [body["apiKey"] for body in exchange.bodies] == ["old-key", "new-key", "newest-key"]


async def test_a_key_that_cannot_be_read_pauses_and_recovers(tmp_path: Path) -> None:
    file = tmp_path / "key"
    for config in (
        UpstreamConfig(auth="api-key"),
        UpstreamConfig(auth="basic", workspace_guid="g"),
        UpstreamConfig(auth="token"),
    ):
        file.unlink(missing_ok=True)
        hands = Hands()
        exchange = Login(token("t1"))
        secret = Secret("api_key", file=str(file), source="test")
        credentials = make_credentials(config, secret, exchange, hands, hands.wall_ms)
        found = await credentials.authorization()
        assert isinstance(found, Paused)
        assert str(file) in found.reason
        file.write_text(KEY)
        assert isinstance(await credentials.authorization(), str)
        await credentials.close()


async def test_basic_and_token_say_what_the_api_expects() -> None:
    hands, exchange = Hands(), Login(token("t1"))
    basic = make_credentials(
        UpstreamConfig(auth="basic", workspace_guid="guid"), lambda: "key", exchange, hands, hands.wall_ms
    )
    assert await basic.authorization() == "Basic " + base64.b64encode(b"guid:key").decode()
    static = make_credentials(UpstreamConfig(auth="token"), lambda: "key", exchange, hands, hands.wall_ms)
    assert await static.authorization() == "Bearer key"
    assert not exchange.bodies


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (Answer(200, JSON, b'{"token":"abc.def"}'), str),
        (Answer(200, JSON, b'{"token":"a\\r\\nX: y"}'), Later),
        (Answer(200, JSON, b'{"token":"\xc3\xa9"}'), Later),
        (Answer(200, JSON, b'{"token":""}'), Later),
        (Answer(200, JSON, b'{"token":5}'), Later),
        (Answer(200, JSON, b"[]"), Later),
        (Answer(200, JSON, b'{"token":"abc"}', complete=False), Later),
        (Answer(200, {"Content-Type": "text/html"}, b"<html>"), Later),
        (Answer(400, {"Content-Type": "text/html"}, b"<html>"), Later),
        (Answer(400, JSON, b"{}"), Paused),
        (Answer(401, JSON, b"{}"), Paused),
        (Answer(403, JSON, b"{}"), Paused),
        (Answer(404), Paused),
        (Answer(302), Paused),
        (Answer(202), Paused),
        (Answer(429), Later),
        (Answer(500), Later),
        (Answer(503), Later),
    ],
)
def test_every_answer_to_a_login(found: Answer, kind: type) -> None:
    assert isinstance(judge_login(found), kind)


@pytest.mark.parametrize(
    ("text", "life"),
    [
        (jwt({"exp": (NOW + 5000) // 1000}), 5000),
        (jwt({"exp": NOW // 1000}), None),
        (jwt({"exp": "soon"}), None),
        (jwt({"exp": True}), None),
        (jwt({}), None),
        ("opaque", None),
        ("a.b.c", None),
        ("..", None),
        ("a.\xe9.c", None),
    ],
)
def test_a_token_tells_its_life_or_nothing(text: str, life: int | None) -> None:
    assert token_life_ms(text, NOW) == life


# -- against a server ---------------------------------------------------------------------------


@asynccontextmanager
async def upstream_at(server: Scripted, secret: Any = lambda: KEY) -> AsyncIterator[HttpUpstream]:
    clock = SystemClock()
    config = UpstreamConfig(url=server.url)
    http = Http(config, clock)
    credentials = make_credentials(config, secret, http, clock, clock.wall_ms)
    try:
        yield HttpUpstream(http, credentials)
    finally:
        await credentials.close()
        await http.close()


def login_answer(value: str) -> bytes:
    return answer(200, orjson.dumps({"token": value}), "Content-Type: application/json")


async def test_an_expired_token_is_replaced_once_and_the_same_bytes_go_again() -> None:
    script = (login_answer("t1"), answer(401), login_answer("t2"), answer(202))
    async with Scripted(*script) as server, upstream_at(server) as upstream:
        assert await upstream.deliver(batch_of()) == Delivered()
    assert [seen.path for seen in server.seen] == [LOGIN_PATH, "/v4/events/batch"] * 2
    assert server.seen[0].headers["Api-Version"] == "4.4"
    assert server.seen[1].headers["Authorization"] == "Bearer t1"
    assert server.seen[3].headers["Authorization"] == "Bearer t2"
    assert server.seen[1].body == server.seen[3].body


async def test_a_storm_of_401_ends_paused_after_one_new_token() -> None:
    script = (login_answer("t1"), answer(401), login_answer("t2"), answer(401))
    async with Scripted(*script) as server, upstream_at(server) as upstream:
        assert isinstance(await upstream.deliver(batch_of()), Paused)
    assert len(server.seen) == 4


async def test_a_403_with_a_fresh_token_is_final() -> None:
    async with Scripted(login_answer("t1"), answer(403)) as server, upstream_at(server) as upstream:
        assert isinstance(await upstream.deliver(batch_of()), Forbidden)
    assert len(server.seen) == 2


async def test_a_login_that_breaks_off_waits() -> None:
    async with Scripted(close) as server, upstream_at(server) as upstream:
        assert isinstance(await upstream.deliver(batch_of()), Later)


async def test_the_secret_is_in_no_repr_no_error_and_no_log_line() -> None:
    def unavailable() -> str:
        raise SecretUnavailable("api_key file /run/key (TILLPOST_API_KEY_FILE): Permission denied")

    with capture_logs() as logs:
        for steps in ([login_answer("tok-en"), answer(401), answer(401)], [answer(401)], [answer(500)], [close]):
            async with Scripted(*steps) as server, upstream_at(server) as upstream:
                found = await upstream.deliver(batch_of())
                assert KEY not in repr(found)
                assert "tok-en" not in repr(found)
        given = Given(unavailable, lambda key: key)
        credentials = login(Login(token("tok-en")))
        await credentials.authorization()
    shown = repr(logs) + repr(credentials) + str(vars(given)) + repr(await given.authorization())
    assert KEY not in shown
    assert "tok-en" not in shown
    assert any(line["event"] == "login.failed" for line in logs)
