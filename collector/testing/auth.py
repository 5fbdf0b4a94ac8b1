"""Keys, tokens and permissions of the stand-in (API.md 2)."""

import base64
import binascii
import hmac
import secrets
from collections.abc import Callable
from typing import NamedTuple

import orjson

from collector.testing.switches import Switches


class Refusal(NamedTuple):
    """Why a call is not let in."""

    status: int
    error: str
    message: str
    violation: bool = False
    """A legal client never gets this one, whatever its key and however old its token."""


class Gate:
    """Gives tokens for the key and checks what comes back. Keeps secrets out of its repr."""

    def __init__(self, api_key: str | None, switches: Switches, monotonic: Callable[[], float]) -> None:
        self._api_key = api_key
        self._switches = switches
        self._monotonic = monotonic
        self._expires: dict[str, float] = {}

    def knows_key(self, key: str) -> bool:
        """Whether this is the key; without a configured one every non-empty key is."""
        if self._api_key is None:
            return bool(key)
        return hmac.compare_digest(key.encode(), self._api_key.encode())

    def issue(self, now_ms: int) -> str:
        """A new token; `now_ms` is the server's clock, for the ``exp`` of a JWT."""
        life = self._switches.token_life_s
        token = secrets.token_urlsafe(24)
        if self._switches.jwt:
            parts = (
                orjson.dumps({"alg": "HS256", "typ": "JWT"}),
                orjson.dumps({"exp": int(now_ms / 1000 + life)}),
                token.encode(),
            )
            token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
        self._expires[token] = self._monotonic() + life
        return token

    def expire_all(self) -> None:
        """Every token given out so far is expired from now on."""
        self._expires = dict.fromkeys(self._expires, self._monotonic())

    def check(self, authorization: str | None) -> Refusal | None:
        """None for a call that may come in (API.md 2.1, 2.2, 9.2)."""
        scheme, _, credentials = (authorization or "").partition(" ")
        if not credentials:
            return Refusal(401, "Unauthorized", "Full authentication is required", violation=True)
        match scheme.lower():
            case "bearer":
                return self._check_token(credentials.strip())
            case "basic":
                return self._check_basic(credentials.strip())
        return Refusal(401, "Unauthorized", "Authorization scheme is not known", violation=True)

    def _check_token(self, token: str) -> Refusal | None:
        expires = self._expires.get(token)
        if expires is None:
            # Not a violation: it may come from before a restart of this server.
            return Refusal(401, "Unauthorized", "Token is not valid")
        if self._monotonic() >= expires:
            return Refusal(401, "Token expired.", "Token expired.")
        return None

    def _check_basic(self, credentials: str) -> Refusal | None:
        if not self._switches.basic:
            return Refusal(401, "Unauthorized", "Basic authorization is not allowed for this key")
        try:
            guid, _, key = base64.b64decode(credentials, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return Refusal(401, "Unauthorized", "Basic authorization is malformed", violation=True)
        if self.knows_key(key) and (not self._switches.workspace_guid or guid == self._switches.workspace_guid):
            return None
        return Refusal(401, "Unauthorized", "Key or workspace is not valid")

    def permits(self, permission: str) -> bool:
        """Whether the key has this permission (API.md 2.4)."""
        return self._switches.permissions is None or permission in self._switches.permissions


_IRREGULAR = {
    "push/received": "API_PUSH_RECIVED_EVENTS_CREATE",
    "recommendation-seen": "API_RECOMENDATION_SEEN_EVENTS_CREATE",
    "recommendation-view": "API_RECOMMENDATION_VIEW_EVENT_CREATE",
    "item-search-click": "API_ITEM_SEARCH_CLICK_EVENT_CREATE",
}


def event_permission(type_: str) -> str:
    """The permission of a single-event path (API.md 2.4)."""
    regular = "API_" + type_.upper().replace("-", "_").replace("/", "_") + "_EVENTS_CREATE"
    return _IRREGULAR.get(type_, regular)
