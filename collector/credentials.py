"""How we prove who we are: a token we log in for, Basic, or a token given (API reference 2).

Secrets come from sources that are asked when needed, so a key file replaced on disk is
read at the next 401 or SIGHUP. A source that cannot be read pauses the lanes and is no
crash. No secret appears in a repr, an error or a log line.
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import orjson

from collector.config import UpstreamConfig
from collector.logs import logger
from collector.outcomes import Answer, Later, Paused
from collector.secret import SecretUnavailable
from collector.waiting import Embargo, Shared
from tracker.time import Clock

log = logger("credentials")

LOGIN_PATH: Final = "/uauth/v2/auth/login/profile"
RENEW_AT: Final = 0.8
"""A token is renewed when this share of its life is over."""
FRESH_MS: Final = 60_000
"""A token this young is not renewed for a 403: the next one would have the same permissions."""

SecretSource = Callable[[], str]
"""Gives a secret. Raises SecretUnavailable."""


class Exchange(Protocol):
    """The part of the HTTP client a login needs."""

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer | Later | Paused: ...


class Credentials(Protocol):
    """What goes into the ``Authorization`` header."""

    async def authorization(self) -> str | Later | Paused:
        """The header's value, or why there is none now."""
        ...

    async def renew(self, refused: str, *, forbidden: bool) -> str | Later | Paused | None:
        """Another value after `refused` met a 401 (or a 403: `forbidden`); None when there is none to be had."""
        ...

    def reload(self) -> None:
        """Read the secret again before the next request."""
        ...

    @property
    def token_age_s(self) -> float | None:
        """Seconds since the login whose token is used; None where there is none."""
        ...

    async def close(self) -> None: ...


def make_credentials(
    config: UpstreamConfig,
    secret: SecretSource,
    exchange: Exchange,
    clock: Clock,
    now_ms: Callable[[], int],
    *,
    retry_after_max_s: float = 3600.0,
    on_login: Callable[[str], None] | None = None,
) -> Credentials:
    """As ``upstream.auth`` says. `now_ms` is the upstream's clock, for tokens that say when they expire.

    `on_login` hears what came of each login: done, later or paused.
    """
    if config.auth == "api-key":
        return LoginToken(secret, exchange, clock, now_ms, retry_after_max_s, on_login)
    if config.auth == "basic":
        guid = config.workspace_guid
        return Given(secret, lambda key: "Basic " + base64.b64encode(f"{guid}:{key}".encode()).decode())
    return Given(secret, lambda token: f"Bearer {token}")


class Given:
    """Credentials that need no login."""

    token_age_s = None

    def __init__(self, secret: SecretSource, header: Callable[[str], str]) -> None:
        self._secret = secret
        self._header = header
        self._value: str | None = None

    async def authorization(self) -> str | Later | Paused:
        if self._value is None:
            read = _read(self._secret)
            if isinstance(read, Paused):
                return read
            self._value = self._header(read)
        return self._value

    async def renew(self, refused: str, *, forbidden: bool) -> str | Later | Paused | None:  # noqa: ARG002
        self._value = None
        value = await self.authorization()
        return None if value == refused else value

    def reload(self) -> None:
        self._value = None

    async def close(self) -> None:
        """Nothing to let go of."""


class LoginToken:
    """Logs in with the API key for a token. Whoever needs one while a login is under way waits for that login."""

    def __init__(
        self,
        secret: SecretSource,
        exchange: Exchange,
        clock: Clock,
        now_ms: Callable[[], int],
        retry_after_max_s: float = 3600.0,
        on_login: Callable[[str], None] | None = None,
    ) -> None:
        self._on_login = on_login or (lambda _: None)
        self._secret = secret
        self._exchange = exchange
        self._clock = clock
        self._now_ms = now_ms
        self._value: str | None = None
        self._since_boot_ms = 0
        self._renew_at_boot_ms: float | None = None
        self._embargo = Embargo(clock, retry_after_max_s)
        self._logged_in: Shared[str | Later | Paused] = Shared(self._log_in, "tillpost-login")

    async def authorization(self) -> str | Later | Paused:
        held = self._value
        if held is None:
            return await self._logged_in()
        if self._renew_at_boot_ms is not None and self._clock.boot_ms() >= self._renew_at_boot_ms:
            # the old one still works; when the login fails, a 401 will tell in time
            self._renew_at_boot_ms = self._clock.boot_ms() + FRESH_MS
            renewed = await self._logged_in()
            return renewed if isinstance(renewed, str) else held
        return held

    async def renew(self, refused: str, *, forbidden: bool) -> str | Later | Paused | None:
        if self._value is not None and self._value != refused:
            return self._value  # somebody else was quicker
        if forbidden and self._value == refused and self._clock.boot_ms() - self._since_boot_ms < FRESH_MS:
            return None
        if self._value == refused:
            self._value = None
        return await self._logged_in()

    def reload(self) -> None:
        self._value = None

    @property
    def token_age_s(self) -> float | None:
        return None if self._value is None else (self._clock.boot_ms() - self._since_boot_ms) / 1000

    async def close(self) -> None:
        """End a login that is under way."""
        await self._logged_in.close()

    async def _log_in(self) -> str | Later | Paused:
        if (told := self._embargo.told()) is not None:
            return told
        key = _read(self._secret)
        if isinstance(key, Paused):
            return key
        answer = await self._exchange.request("POST", LOGIN_PATH, body=orjson.dumps({"apiKey": key}))
        token = judge_login(answer) if isinstance(answer, Answer) else answer
        if not isinstance(token, str):
            log.warning("login.failed", reason=token.reason)
            self._on_login(type(token).__name__.lower())
            if isinstance(token, Later):
                self._embargo.note(token)
            return token
        self._since_boot_ms = self._clock.boot_ms()
        life_ms = token_life_ms(token, self._now_ms())
        self._renew_at_boot_ms = None if life_ms is None else self._since_boot_ms + RENEW_AT * life_ms
        self._value = f"Bearer {token}"
        self._on_login("done")
        log.info("login.done", life_s=None if life_ms is None else life_ms // 1000)
        return self._value


def judge_login(answer: Answer) -> str | Later | Paused:
    """The token in the answer to a login, or what the answer means instead."""
    status = answer.status
    if status == 408 or status == 425 or status == 429 or status >= 500:
        return Later(f"{status} from the login", answer.retry_after_s, status=status)
    if answer.html and status in (200, 400):
        return Later(f"{status} with a web page instead of an answer to the login: a captive portal?", status=status)
    if status in (400, 401, 403, 422):
        return Paused(f"{status} from the login: the upstream does not accept the API key", status)
    if status != 200:
        return Paused(f"{status}: the upstream has no login at this address", status)
    body = answer.json() if answer.complete else None
    token = body.get("token") if isinstance(body, dict) else None
    # it becomes a header: anything but printable characters would be another header
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token or not token:
        return Later("200 from the login without a token", status=status)
    return token


def token_life_ms(token: str, now_ms: int) -> int | None:
    """How long the token lives from now, by its ``exp``; None where it does not say or is over already."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims: Any = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    expires = claims.get("exp") if isinstance(claims, dict) else None
    if not isinstance(expires, int | float) or isinstance(expires, bool):
        return None
    life_ms = int(expires * 1000) - now_ms
    return life_ms if life_ms > 0 else None


def _read(secret: SecretSource) -> str | Paused:
    try:
        return secret()
    except SecretUnavailable as error:
        return Paused(f"no credentials: {error}")
