"""Operating a collector: through its admin socket while it runs, on its buffer file while it does not.

Both ways give the same JSON, as bytes: what ``/v1`` and ``/status.json`` answer.
"""

import asyncio
import http.client
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from collector.connection import UnixConnection, connect
from collector.files import BufferUnusable, beside
from collector.secret import Secret
from collector.settings import Settings

_TIMEOUT_S: Final = 60.0
_PAGE: Final = 100


class AdminError(Exception):
    """An operation failed or was refused; the message says why and what to do."""


class Operations(Protocol):
    """What can be done to a buffer, running or not. The results are JSON-ready: the body of the HTTP answer."""

    async def status(self) -> Any: ...
    async def dead_letters(self, limit: int, after: int) -> Any: ...
    async def retry(self, ids: Sequence[int] | None, force: bool) -> Any: ...
    async def discard(self, ids: Sequence[int] | None) -> Any: ...
    async def find(self, what: Mapping[str, Any]) -> Any: ...
    async def forget(self, what: Mapping[str, Any]) -> Any: ...


class DeadLetter(msgspec.Struct):
    """One entry of ``/v1/dead-letters``; the record keeps its bytes."""

    id: int
    kind: str = ""
    identifier: str = ""
    reason: str = ""
    status: int | None = None
    answer: str | None = None
    died_at: str | None = None
    superseded: bool = False
    record: msgspec.Raw = msgspec.Raw(b"null")


class Page(msgspec.Struct):
    """A page of dead letters; ``next`` is None on the last."""

    dead_letters: list[DeadLetter] = []
    next: int | None = None


class Admin(Protocol):
    """The operations as a command calls them: synchronous, each returning JSON. Raises AdminError."""

    @property
    def is_running(self) -> bool: ...
    def status(self) -> bytes: ...
    def dead_letters(self, limit: int, after: int = 0) -> bytes: ...
    def retry(self, ids: Sequence[int] | None, force: bool) -> bytes: ...
    def discard(self, ids: Sequence[int] | None) -> bytes: ...
    def find(self, what: Mapping[str, Any]) -> bytes: ...
    def forget(self, what: Mapping[str, Any]) -> bytes: ...


class Running:
    """A running collector, over HTTP."""

    is_running = True

    def __init__(self, opened: Callable[[], tuple[http.client.HTTPConnection, str]], token: Secret | None) -> None:
        self._open = opened
        self._token = token

    def status(self) -> bytes:
        return self._call("GET", "/status.json")

    def dead_letters(self, limit: int, after: int = 0) -> bytes:
        return self._call("GET", f"/v1/dead-letters?limit={limit}" + (f"&after={after}" if after else ""))

    def retry(self, ids: Sequence[int] | None, force: bool) -> bytes:
        return self._call("POST", "/v1/dead-letters/retry", {**_which(ids), **({"force": True} if force else {})})

    def discard(self, ids: Sequence[int] | None) -> bytes:
        return self._call("POST", "/v1/dead-letters/discard", _which(ids))

    def find(self, what: Mapping[str, Any]) -> bytes:
        return self._call("POST", "/v1/find", what)

    def forget(self, what: Mapping[str, Any]) -> bytes:
        return self._call("POST", "/v1/forget", what)

    def drain(self) -> bytes:
        """Asks it to send what it can without waiting for batches to fill; returns at once."""
        return self._call("POST", "/v1/drain", {})

    def resume(self, lane: str | None) -> bytes:
        """Lets a paused lane, or all of them, go on."""
        return self._call("POST", "/v1/lanes/resume", {"lane": lane} if lane else {})

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        connection, prefix = self._open()
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token()}"
        try:
            connection.request(method, prefix + path, None if body is None else msgspec.json.encode(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise AdminError(
                f"the collector did not answer: {error or type(error).__name__}; is it stopping?"
            ) from None
        finally:
            connection.close()
        if answer.status >= 400:
            raise AdminError(f"the collector refuses: {_message(content) or answer.reason} ({answer.status})")
        return content


class Stopped:
    """A buffer nobody holds: each operation opens the file, works on it and lets go of it."""

    is_running = False

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[Operations]]) -> None:
        self._open = opened

    def status(self) -> bytes:
        return self._call(lambda operations: operations.status())

    def dead_letters(self, limit: int, after: int = 0) -> bytes:
        return self._call(lambda operations: operations.dead_letters(limit, after))

    def retry(self, ids: Sequence[int] | None, force: bool) -> bytes:
        return self._call(lambda operations: operations.retry(ids, force))

    def discard(self, ids: Sequence[int] | None) -> bytes:
        return self._call(lambda operations: operations.discard(ids))

    def find(self, what: Mapping[str, Any]) -> bytes:
        return self._call(lambda operations: operations.find(what))

    def forget(self, what: Mapping[str, Any]) -> bytes:
        return self._call(lambda operations: operations.forget(what))

    def _call(self, work: Callable[[Operations], Awaitable[Any]]) -> bytes:
        async def once() -> bytes:
            async with self._open() as operations:
                return msgspec.json.encode(await work(operations))

        try:
            return asyncio.run(once())
        except ValueError as error:  # a request it cannot understand; a running collector would answer 400
            raise AdminError(str(error)) from None


def reach(settings: Settings) -> Running | Stopped:
    """The way to the buffer the settings name. Raises AdminError, and BufferUnusable where there is no such file."""
    path = Path(settings.config.buffer.path).absolute()
    for opened, token in _ways(settings, path):
        try:
            connection, _ = opened()
            connection.connect()
        except (FileNotFoundError, ConnectionRefusedError):
            continue
        except PermissionError:
            raise AdminError(f"no permission for {beside(path, '.sock')}: run this as the collector's user") from None
        except OSError as error:
            raise AdminError(f"cannot reach the collector of {path}: {error}") from None
        connection.close()
        return Running(opened, token)
    if not path.exists():
        raise BufferUnusable(path, "there is no such file. Name it with --buffer or --config.")

    def offline() -> AbstractAsyncContextManager[Operations]:
        from collector.app import offline as open_offline

        return open_offline(settings)

    return Stopped(offline)


def _ways(
    settings: Settings, path: Path
) -> Iterator[tuple[Callable[[], tuple[http.client.HTTPConnection, str]], Secret | None]]:
    if hasattr(socket, "AF_UNIX"):
        yield lambda: (UnixConnection(beside(path, ".sock"), _TIMEOUT_S), ""), None
        return
    # Without Unix sockets (Windows) the first TCP address and the admin token have to do.
    for address in settings.config.ingest.addresses:
        if address.port:
            yield lambda url=f"http://{address}": connect(url, _TIMEOUT_S), settings.secrets.admin_token  # type: ignore[misc]
            return


def every_dead_letter(admin: Admin) -> Iterator[DeadLetter]:
    """All dead letters, page by page."""
    after = 0
    while True:
        page = msgspec.json.decode(admin.dead_letters(_PAGE, after), type=Page)
        yield from page.dead_letters
        if page.next is None:
            return
        after = page.next


def _which(ids: Sequence[int] | None) -> dict[str, Any]:
    return {"all": True} if ids is None else {"ids": list(ids)}


def _message(content: bytes) -> str:
    try:
        body = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return str(body.get("message", "")) if isinstance(body, dict) else ""
