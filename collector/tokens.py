"""Who may send records: the ingest token, and the local token that stands in for the API's login.

A client of the API logs in first and then sends what it got as a bearer token. Ours is a
keyed hash of the ingest token: nothing is stored, it survives a restart, and it dies with
the ingest token. Without an ingest token everybody may send, and any token will do.
"""

import base64
import binascii
import hashlib
import hmac
from typing import Final

from collector.secret import Secret, SecretUnavailable

_PURPOSE: Final = b"tillpost local token, version 1"


class Tokens:
    """Checks credentials against the ingest token, where one is set."""

    def __init__(self, ingest_token: Secret | None) -> None:
        self._secret = ingest_token
        self._known: str | None = None

    @property
    def required(self) -> bool:
        """Whether records need credentials at all."""
        return self._secret is not None

    def admits(self, authorization: str | None) -> bool:
        """Whether an Authorization header lets its sender in: Bearer (ingest or local token), or Basic.

        Raises SecretUnavailable while the ingest token cannot be read.
        """
        if self._secret is None:
            return True
        scheme, _, credentials = (authorization or "").partition(" ")
        credentials = credentials.strip()
        match scheme.lower():
            case "bearer":
                return self._matches(credentials, local=True)
            case "basic":
                return self._matches(_password(credentials), local=False)
        return False

    def login(self, api_key: str) -> str | None:
        """A local token for an API key, which must be the ingest token where one is set; else None.

        Raises SecretUnavailable while the ingest token cannot be read.
        """
        if self._secret is None:
            return _local_token("")
        return self.local_token() if self._matches(api_key, local=False) else None

    def local_token(self) -> str:
        """Raises SecretUnavailable while the ingest token cannot be read."""
        return _local_token("" if self._secret is None else self._current())

    def _matches(self, offered: str, *, local: bool) -> bool:
        if self._is_right(offered, self._current(), local=local):
            return True
        # The token may have been replaced: its file is read again before somebody is turned away.
        before, self._known = self._known, None
        return self._current() != before and self._is_right(offered, self._current(), local=local)

    @staticmethod
    def _is_right(offered: str, token: str, *, local: bool) -> bool:
        given = offered.encode()
        right = hmac.compare_digest(given, token.encode())
        return right or (local and hmac.compare_digest(given, _local_token(token).encode()))

    def _current(self) -> str:
        if self._known is None:
            assert self._secret is not None
            self._known = self._secret()
        return self._known


class AdminToken:
    """Checks the admin token for operations over TCP; without one nobody passes."""

    def __init__(self, admin_token: Secret | None) -> None:
        self._secret = admin_token

    def admits(self, authorization: str | None) -> bool:
        scheme, _, offered = (authorization or "").partition(" ")
        if self._secret is None or scheme.lower() != "bearer":
            return False
        try:
            token = self._secret()
        except SecretUnavailable:
            return False
        return hmac.compare_digest(offered.strip().encode(), token.encode())


def _local_token(token: str) -> str:
    digest = hmac.digest(token.encode(), _PURPOSE, hashlib.sha256)
    return "tillpost." + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _password(credentials: str) -> str:
    """The password of Basic credentials; empty, which no token is, for what is none."""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""
