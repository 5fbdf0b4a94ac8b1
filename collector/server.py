"""The HTTP surface: the API's own paths for records, health and figures, and operations (DESIGN 5.2).

Below aiohttp's router on purpose: the paths are a fixed table, and looking one up there costs
more than everything else a small request needs here.
"""

import asyncio
import importlib
import logging
import os
import socket
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from collector import page
from collector.admission import Full, Sizes
from collector.bodies import check_type, read_body
from collector.buffer import Unknown
from collector.config import Config
from collector.door import HEAD_S, IDLE_S, Door
from collector.familiar import Done, Heads, Known, encode
from collector.history import MINUTES_MAX
from collector.ingest import ROUTES, Ingest
from collector.kinds import Parcel
from collector.listeners import Listener, NoRoom, bind, bind_unix, refuse_open_doors
from collector.logs import Repeats, logger
from collector.operations_api import JSON, PRIVATE, Answer, Handler, Operations, OperationsApi, json_answer
from collector.refusals import Refused, answer
from collector.secret import SecretUnavailable
from collector.status import VERSION
from collector.together import Asked, Together
from collector.tokens import AdminToken, Tokens
from tracker.time import format_ms
from tracker.wire import ACCEPTED_HEADER, COLLECTOR_HEADER, ClockHeader

resource: Any = importlib.import_module("resource") if os.name == "posix" else None

BODY_TIMEOUT_S: Final = 30.0
IN_FLIGHT_BYTES: Final = 64 * 1024 * 1024
"""Bodies held in memory at once; beyond it the next request is asked to come back."""
SHUTDOWN_S: Final = 2.0
"""How long `close` waits for answers that are on their way, twice at the worst."""
LINGER_S: Final = 2.0
"""How long the rest of a body that was refused is read, so that its sender gets to see the answer."""
MAX_CONNECTIONS: Final = 1000
_ADMIN_CONNECTIONS: Final = 16
_OTHER_FILES: Final = 64
"""Descriptors kept for the buffer, the upstream and operators when connections have taken all others."""
_SMALL_BODY: Final = 64 * 1024
_LOGIN: Final = ("/uauth/v2/auth/login/profile", "/v4/auth/login/profile")
_REFRESH: Final = "/v4/auth/refresh/profile"
_OWN_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_log = logger("server")
# aiohttp reports broken requests with the bytes that broke them. What can fail in here, `_handle` reports.
_SILENT: Final = logging.Logger("tillpost.aiohttp", level=logging.CRITICAL + 1)


class Check(msgspec.Struct, frozen=True):
    """One line of ``/readyz``."""

    name: str
    ok: bool
    text: str = ""
    vital: bool = False
    """Whether it counts for ``/livez`` too: only a restart could help."""


class Core(Protocol):
    """What the server needs from the collector behind it."""

    async def append(self, parcels: Sequence[Parcel], clock: ClockHeader | None) -> None:
        """Returns when durable. Raises Full or Unknown."""
        ...

    def server_time_ms(self) -> int | None:
        """The upstream's estimated clock, None while it is not known."""
        ...

    def checks(self) -> Sequence[Check]: ...

    def details(self) -> Sequence[Check]:
        """What ``/readyz?verbose`` tells besides."""
        ...

    async def status(self) -> Mapping[str, Any]:
        """The body of ``status.json``."""
        ...

    async def metrics(self) -> bytes:
        """The body of ``/metrics``."""
        ...

    def minutes(self, count: int) -> Mapping[str, Any]:
        """The body of ``/history.json``: the last `count` minutes."""
        ...


class _Login(msgspec.Struct):
    api_key: str = msgspec.field(name="apiKey")


class _Room:
    """Memory the bodies of one request hold."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self.held = 0

    def take(self, size: int) -> None:
        """Raises Refused when ingest is saturated."""
        if not self._server.take_room(size):
            raise Refused(503, "too many requests at once: try again", retry_after_s=1.0)
        self.held += size


class Server:
    """Serves one collector. `start` opens the listeners, `close` ends them; `receive` works without any."""

    def __init__(
        self,
        config: Config,
        ingest: Ingest,
        core: Core,
        operations: Operations,
        *,
        tokens: Tokens,
        admin_token: AdminToken,
        body_timeout_s: float = BODY_TIMEOUT_S,
        max_in_flight: int = IN_FLIGHT_BYTES,
        max_connections: int | None = None,
        head_timeout_s: float = HEAD_S,
        idle_timeout_s: float = IDLE_S,
        on_ingest: Callable[[int], None] | None = None,
    ) -> None:
        """`on_ingest` hears the status of every answer to records."""
        self._on_ingest = on_ingest or (lambda _: None)
        self._repeats = Repeats()
        self._config = config
        self._ingest = ingest
        self._core = core
        self._operations = operations
        self._tokens = tokens
        self._admin_token = admin_token
        self._body_timeout_s = body_timeout_s
        self.max_body: Final = min(config.ingest.max_body, Sizes(config.buffer.max_size).max_body)
        self.max_in_flight = max(max_in_flight, 2 * self.max_body)
        self._hosts = _OWN_HOSTS | {host.lower() for host in config.ingest.allowed_hosts}
        self._listeners: list[Listener] = []
        self._doors: list[Door] = []
        self._sockets: list[asyncio.Server] = []
        self._max_connections = max_connections or _connections_allowed()
        self._patience_s = (head_timeout_s, idle_timeout_s)
        self.accepting = True
        """False makes ``/readyz`` say so; records are taken all the same, until `close`."""
        self.in_progress = 0
        """Requests with records that have no answer yet."""
        self.last_ingest = time.monotonic()
        """When the last request with records came, by the monotonic clock, seconds."""
        self.bytes_in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._together = Together(ingest, partial(core.append, clock=None), self._accepted, self._alone, self._failed)
        self._table = self._paths()

    # Listening

    async def start(self, admin_socket: Path | None = None) -> None:
        """Listen on `ingest.listen` and the admin socket. Raises ConfigError or ListenError, then nothing is open."""
        addresses = self._config.ingest.addresses
        refuse_open_doors(addresses, token=self._tokens.required)
        try:
            for address in addresses:
                await self._listen(bind(address, self._config.ingest.socket_mode_bits), admin=False)
            if admin_socket is not None:
                try:
                    await self._listen(bind_unix(admin_socket, 0o600), admin=True)
                except NoRoom as error:  # the backlog must leave all the same
                    _log.error("no operations but over TCP", cause=str(error))
        except BaseException:
            await self.close()
            raise

    async def _listen(self, listener: Listener, *, admin: bool) -> None:
        self._listeners.append(listener)
        shares = len(self._config.ingest.listen) or 1
        head_s, idle_s = self._patience_s
        door = Door(
            partial(self._handle, loopback=listener.loopback, admin=admin),
            Heads(self._familiar, ROUTES, self.max_body, self.take_room, self.free_room),
            max_connections=_ADMIN_CONNECTIONS if admin else max(1, self._max_connections // shares),
            head_s=head_s, idle_s=idle_s, lingering_time=LINGER_S,
            access_log=None, logger=_SILENT, auto_decompress=False,
        )  # fmt: skip
        self._doors.append(door)
        loop = asyncio.get_running_loop()
        for bound in listener.sockets:
            unix = bound.family == getattr(socket, "AF_UNIX", None)
            serve = loop.create_unix_server if unix else loop.create_server
            self._sockets.append(await serve(door, sock=bound, backlog=128))

    @property
    def addresses(self) -> list[str]:
        """Where it listens; the admin socket, if any, comes last."""
        return [address for listener in self._listeners for address in listener.addresses]

    async def close(self, timeout_s: float = SHUTDOWN_S) -> None:
        """Stop listening; requests in progress get `timeout_s` for their answers."""
        for listening in self._sockets:
            listening.close()
        await asyncio.sleep(0)  # what has just been accepted begins
        for door in self._doors:
            door.pre_shutdown()  # who has no request under way is told goodbye
        await asyncio.gather(*(door.shutdown(timeout_s) for door in self._doors))
        for listener in self._listeners:
            listener.release()
        self._sockets.clear()
        self._doors.clear()
        self._listeners.clear()

    # Records

    async def receive(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Take the records of one request: 202 when they are durable, else the answer that says why not.

        Behind HTTP and the embedded tracker alike.
        """
        given = await self._received(path, body, headers)
        self._tally(given[0])
        return given

    def _tally(self, status: int) -> None:
        """Note an answer to records; of those refused the log says so, not whose they are."""
        self._on_ingest(status)
        if status >= 400 and (left_out := self._repeats.due(status)) is not None:
            _log.warning("ingest.refused", status=status, requests=left_out + 1)

    async def _received(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        self.in_progress += 1
        self.last_ingest = time.monotonic()
        try:
            return await self._kept(path, self._read_and_kept(path, body, headers))
        finally:
            self.in_progress -= 1
            self.last_ingest = time.monotonic()

    async def _read_and_kept(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        if len(body) > self.max_body:
            raise Refused(413, f"the body is larger than {self.max_body} bytes: send fewer records per request")
        intake = self._ingest.read(path, body, headers)
        if intake.count:
            await self._core.append(intake.parcels, intake.clock)
        return _accepted(intake.count)

    async def _kept(self, path: str, work: Awaitable[Answer]) -> Answer:
        """An answer, also where the records were refused or could not be kept."""
        try:
            return await work
        except Refused as refused:
            return refusal(refused, path)
        except Full as full:
            return refusal(Refused(507, full.what, retry_after_s=full.retry_after_s), path)
        except Unknown:
            message = "it is not known whether the records are on disk: send the same request again"
            return refusal(Refused(503, message, retry_after_s=1.0), path)

    async def _records(self, request: web.BaseRequest) -> Answer:
        with self._room() as room:
            try:
                self._authenticate(request)
                check_type(request)
                body = await read_body(request, self.max_body, self._body_timeout_s, room.take)
            except Refused as refused:
                self._tally(refused.status)
                raise
            return await self.receive(request.path, body, request.headers)

    def _familiar(self, known: Known, body: bytes, done: Done) -> None:
        """Answers a request whose head was checked before: all but its credentials, which may have been replaced."""
        self.in_progress += 1
        asked = Asked(known, body, done)
        if self._tokens.required or not self._together.takes(asked):
            self._alone(asked)

    def _alone(self, asked: Asked) -> None:
        self._reply(asked, self._records_again(asked.known, asked.body))

    def _failed(self, asked: Asked, error: Exception) -> None:
        async def fail() -> Answer:
            raise error

        self._reply(asked, self._kept(asked.known.path, fail()))

    def _reply(self, asked: Asked, work: Coroutine[Any, Any, Answer]) -> None:
        async def reply() -> None:
            self._done(asked, await self._guarded(asked.known.path, work))

        task = asyncio.create_task(reply())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _records_again(self, known: Known, body: bytes) -> Answer:
        if not self._tokens.admits(known.headers.get("Authorization")):
            self._tally(401)
            raise _bad_credentials()
        return await self.receive(known.path, body, known.headers)

    def _accepted(self, asked: Asked, count: int) -> None:
        self._tally(202)
        self._done(asked, _accepted(count))

    def _done(self, asked: Asked, answer: Answer) -> None:
        self.in_progress -= 1
        self.last_ingest = time.monotonic()
        asked.done(encode(*answer))

    def take_room(self, size: int) -> bool:
        """Whether memory holds so many more bytes of bodies; then they count until they are freed."""
        fits = self.bytes_in_flight + size <= self.max_in_flight
        self.bytes_in_flight += size * fits
        return fits

    def free_room(self, size: int) -> None:
        self.bytes_in_flight -= size

    @contextmanager
    def _room(self) -> Iterator[_Room]:
        room = _Room(self)
        try:
            yield room
        finally:
            self.free_room(room.held)

    # Every request

    async def _handle(self, request: web.BaseRequest, *, loopback: bool, admin: bool) -> web.StreamResponse:
        status, headers, body = await self._guarded(request.path, self._asked(request, loopback=loopback, admin=admin))
        response = web.Response(status=status, headers=headers, body=body)
        if status in (408, 413):
            response.force_close()  # what is left of the body is not worth reading
        return response

    async def _asked(self, request: web.BaseRequest, *, loopback: bool, admin: bool) -> Answer:
        self._check_sender(request, loopback=loopback)
        return await self._find(request, admin=admin)(request)

    async def _guarded(self, path: str, work: Awaitable[Answer]) -> Answer:
        """An answer whatever happens."""
        try:
            return await work
        except Refused as refused:
            return refusal(refused, path)
        except Unknown as error:
            return refusal(Refused(503, f"{error}", retry_after_s=5.0), path)
        except SecretUnavailable as error:
            _log.error("token unreadable", cause=str(error))
            return refusal(Refused(503, "credentials cannot be checked", retry_after_s=5.0), path)
        except (ConnectionError, web.RequestPayloadError):
            return refusal(Refused(400, "the body ended early"), path)
        except Exception as error:
            # Where, but not what it says: a library's message may quote the payload.
            at = traceback.extract_tb(error.__traceback__)[-1]
            _log.error("request failed", error=type(error).__name__, at=f"{Path(at.filename).name}:{at.lineno}")
            return refusal(Refused(500, "the collector failed; its log says more"), path)

    def _check_sender(self, request: web.BaseRequest, *, loopback: bool) -> None:
        """A web page must not reach a collector on loopback: neither by a name of its own nor across origins."""
        host = request.headers.get("Host", "")
        if loopback and _host_of(host) not in self._hosts and host.lower() not in self._hosts:
            raise Refused(421, "this host name is not served here: use localhost, or name it in ingest.allowed_hosts")
        origin = request.headers.get("Origin")
        if origin is not None and (not host or origin.partition("://")[2].lower() != host.lower()):
            raise Refused(403, "requests from other origins are refused")

    def _find(self, request: web.BaseRequest, *, admin: bool) -> Handler:
        """Who answers this request. Raises Refused for nobody."""
        path = request.path
        if path.startswith("/v1/") and not admin and not self._admin_token.admits(request.headers.get("Authorization")):
            raise Refused(403, "operations need the admin socket beside the buffer, or the admin token")
        methods = self._table.get(path)
        if methods is None:
            if path.startswith(("/v4/", "/uauth/")):
                raise Refused(501, "this collector takes events and transactions: send other requests to the API")
            raise Refused(404, "there is nothing here; GET /openapi.json lists what there is")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            raise Refused(405, f"{path} takes {' or '.join(methods)}", headers={"Allow": ", ".join(methods)})
        return handler

    def _authenticate(self, request: web.BaseRequest) -> None:
        if not self._tokens.admits(request.headers.get("Authorization")):
            raise _bad_credentials()

    def _paths(self) -> dict[str, dict[str, Handler]]:
        return {
            **{path: {"POST": self._records} for path in ROUTES},
            **{path: {"POST": self._login} for path in _LOGIN},
            _REFRESH: {"GET": self._refresh},
            "/v4/server/time": {"GET": self._server_time},
            "/livez": {"GET": self._livez},
            "/readyz": {"GET": self._readyz},
            "/metrics": {"GET": self._metrics},
            "/status.json": {"GET": self._status},
            "/openapi.json": {"GET": self._openapi},
            "/": {"GET": self._page},
            "/history.json": {"GET": self._history},
            **{path: {"GET": self._asset} for path in page.ASSETS},
            **OperationsApi(self._operations, self._small_body).paths(),
        }

    # The API's other paths

    async def _login(self, request: web.BaseRequest) -> Answer:
        check_type(request)
        try:
            key = msgspec.json.decode(await self._small_body(request), type=_Login).api_key
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Refused(400, 'the body must be {"apiKey": "..."}') from None
        token = self._tokens.login(key)
        if token is None:
            raise Refused(401, "Could not authenticate: the apiKey must be the collector's ingest token")
        return json_answer({"token": token})

    async def _refresh(self, request: web.BaseRequest) -> Answer:
        self._authenticate(request)
        return json_answer({"token": self._tokens.local_token()})

    async def _server_time(self, _: web.BaseRequest) -> Answer:
        now_ms = self._core.server_time_ms()
        if now_ms is None:
            raise Refused(503, "the API's clock is not known yet", retry_after_s=5.0)
        return json_answer({"serverTime": format_ms(now_ms)})

    async def _small_body(self, request: web.BaseRequest, max_bytes: int = _SMALL_BODY) -> bytes:
        with self._room() as room:
            return await read_body(request, max_bytes, self._body_timeout_s, room.take)

    # Health and figures

    async def _livez(self, _: web.BaseRequest) -> Answer:
        return _checked([Check("process", True), *(check for check in self._core.checks() if check.vital)])

    async def _readyz(self, request: web.BaseRequest) -> Answer:
        """``?verbose`` adds what a person wants to know; the status is the same."""
        own = Check("server", self.accepting, "" if self.accepting else "stopping")
        details = self._core.details() if "verbose" in request.query else ()
        return _checked([own, *self._core.checks()], details)

    async def _metrics(self, _: web.BaseRequest) -> Answer:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return 200, {"Content-Type": kind, **PRIVATE}, await self._core.metrics()

    async def _status(self, _: web.BaseRequest) -> Answer:
        return json_answer(await self._core.status())

    async def _openapi(self, _: web.BaseRequest) -> Answer:
        return 200, {**JSON, **PRIVATE}, resources.files("collector").joinpath("openapi.json").read_bytes()

    async def _page(self, _: web.BaseRequest) -> Answer:
        return 200, {**page.HEADERS, **PRIVATE}, page.render(await self._core.status())

    async def _history(self, request: web.BaseRequest) -> Answer:
        asked = request.query.get("minutes", "60")
        if not (asked.isascii() and asked.isdigit() and len(asked) < 9 and 1 <= int(asked) <= MINUTES_MAX):
            raise Refused(400, f"minutes must be 1 to {MINUTES_MAX}")
        return json_answer(self._core.minutes(int(asked)))

    async def _asset(self, request: web.BaseRequest) -> Answer:
        kind, body = page.asset(request.path)
        return 200, {"Content-Type": kind, **PRIVATE}, body


def _accepted(count: int) -> Answer:
    return 202, {ACCEPTED_HEADER: str(count)}, b""


def _bad_credentials() -> Refused:
    return Refused(401, "Bad credentials: send the ingest token, or log in with it")


def _connections_allowed() -> int:
    """How many, so that descriptors are left for everything else."""
    if resource is None:
        return MAX_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft < 0 else max(8, min(MAX_CONNECTIONS, soft - _OTHER_FILES))


def _host_of(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def _checked(checks: Sequence[Check], details: Sequence[Check] = ()) -> Answer:
    """200 when all checks are well, else 503; a line for each, so that a person sees why."""
    shown = (*checks, *details)
    lines = [f"[{'+' if check.ok else '-'}] {check.name}{': ' if check.text else ''}{check.text}\n" for check in shown]
    status = 200 if all(check.ok for check in checks) else 503
    return status, {"Content-Type": "text/plain; charset=utf-8", **PRIVATE}, "".join(lines).encode()


def refusal(refused: Refused, path: str) -> Answer:
    """A refusal as an answer in the API's error shape."""
    return refused.status, {**JSON, COLLECTOR_HEADER: VERSION, **refused.headers}, answer(refused, path)
