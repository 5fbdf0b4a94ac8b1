"""HTTP to a collector: over TCP, TLS or a Unix socket.

Loaded by the first tracker of a URL, with all it will need: a process that forks while the sending thread imports
something would wait for the import lock for ever.
"""

import email.utils  # noqa: F401  dates in Retry-After
import encodings.idna  # noqa: F401  names of hosts
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection, RemoteDisconnected
from typing import Any, Final
from urllib.parse import urlsplit

from tracker.errors import InvalidRecord
from tracker.transport import Answer, TransportError, said

_MAX_ANSWER: Final = 1 << 20  # an error answer names up to 100 records; more is not our collector


class Http:
    """HTTP/1.1 over one connection that is kept alive."""

    def __init__(self, url: str, token: str | None) -> None:
        self._make, self._prefix = _connector(url)
        self._authorization = {"Authorization": f"Bearer {token}"} if token else {}
        self._connection: HTTPConnection | None = None

    def send(self, path: str, body: bytes, headers: Mapping[str, str], timeout: float) -> Answer:
        headers = {"Content-Type": "application/json", **self._authorization, **headers}
        try:
            if (kept := self._connection) is not None:
                with suppress(RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                    return self._post(kept, path, body, headers, timeout)
                # The server closed a connection that had been idle. Should it have read the request after
                # all, the copy overwrites: every record carries its salt.
            self._connection = made = self._make(timeout)
            return self._post(made, path, body, headers, timeout)
        except (OSError, HTTPException) as error:
            raise TransportError(said(error)) from error

    def _post(self, connection: Any, path: str, body: bytes, headers: Mapping[str, str], timeout: float) -> Answer:
        whole = False
        try:
            if connection.sock is not None and connection.sock.gettimeout() != timeout:
                connection.sock.settimeout(timeout)
            connection.request("POST", self._prefix + path, body, headers)
            response = connection.getresponse()
            answer = Answer(
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read(_MAX_ANSWER),
            )
            whole = response.isclosed()  # what is more than we read would be taken for the next answer
            return answer
        finally:
            if not whole:
                connection.close()
                if self._connection is connection:  # and not already, after a fork, the child's
                    self._connection = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def forget_parent(self) -> None:
        connection, self._connection = self._connection, None
        # Not `close`: the parent's thread may have held the lock of the answer it was reading, for ever here.
        if connection is not None and connection.sock is not None and (copy := connection.sock.detach()) >= 0:
            os.close(copy)


class _InOnePiece(HTTPConnection):
    """Sends head and body of a request together.

    Whenever a socket is used the interpreter runs other threads, and a busy one gives it back 5 ms later.
    """

    _head: bytes | None = None

    def send(self, data: Any) -> None:
        if self._head is None:
            self._head = data
        else:
            head, self._head = self._head, None
            super().send(head + data)


class _TlsConnection(_InOnePiece, HTTPSConnection):
    pass


class _UnixConnection(_InOnePiece):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connector(url: str) -> tuple[Any, str]:
    """What makes a connection, given a timeout, and the path in front of ours."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRecord("target", f"is not a URL: {error}", url) from None
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidRecord("target", "must have no user, query or fragment; a token is an argument of its own", url)
    if parts.scheme == "unix":
        if parts.netloc or not parts.path.startswith("/"):
            raise InvalidRecord("target", "must name a socket by its full path: unix:///run/tillpost.sock", url)
        if not hasattr(socket, "AF_UNIX"):
            raise InvalidRecord("target", f"cannot be a Unix socket on {sys.platform}: use http://127.0.0.1:8787", url)
        return lambda timeout: _UnixConnection(parts.path, timeout), ""
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidRecord("target", "must look like http://127.0.0.1:8787 or unix:///run/tillpost.sock", url)
    kind = _TlsConnection if parts.scheme == "https" else _InOnePiece
    return lambda timeout: kind(host, port, timeout=timeout), parts.path.rstrip("/")
