"""`FakeUpstream`: the strict stand-in for the API as a real server on loopback."""

import asyncio
import contextlib
import hashlib
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import EllipsisType, TracebackType
from typing import Any, Final, Self

import msgspec
import orjson
from aiohttp import ClientError, web
from aiohttp.http_exceptions import PayloadEncodingError

from collector.testing.api import READ_LIMIT, Answer, Api, Call
from collector.testing.errors import phrase
from collector.testing.faults import Fault, Target, make_fault, strikes, struck_records
from collector.testing.report import report
from collector.testing.rules import Problem
from collector.testing.store import Buy, Entry, Profile, buys_of
from collector.testing.switches import Switches

_HTML: Final = "<!doctype html><title>Sign in</title><p>Welcome to the shop's WiFi. Please sign in."
_LINGER_0: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class Request(msgspec.Struct, frozen=True):
    """One request as it was seen; the control endpoints under ``/fake/`` are not listed."""

    method: str
    path: str
    status: int
    """What was answered; 0 when a fault cut the connection, or the client left in the middle of its body."""
    answered: bool
    """Whether the client was still there for the answer."""
    records: int
    size: int
    """Bytes of body."""
    digest: str
    """Of the body: equal digests, equal bytes."""
    identifiers: frozenset[str]
    """Identifier types of the records, for example ``email+uuid``."""
    salts: tuple[str | None, ...]
    received_at: float
    """``time.monotonic()`` when the body was complete."""
    answered_at: float
    authorization: str
    """The scheme alone: ``Bearer``, ``Basic`` or empty."""
    headers: dict[str, str]
    """Names in lower case; without Authorization."""
    faults: tuple[str, ...] = ()
    """Names of the scripted faults that struck it."""
    body: bytes | None = None
    """Only with ``keep_bodies=True``."""


class FakeUpstream:
    """The strict stand-in for the API, listening on loopback.

    ``async with FakeUpstream(api_key="k") as fake`` runs in the current event loop, plain
    ``with`` in a thread of its own. Everything it has seen may be read from any thread,
    also after it was stopped; entering it again listens on the same port with the same
    memory. `api_key` None accepts every non-empty key. The keyword arguments are the
    fields of `Switches`; an unknown one raises ValueError naming the nearest. `wall_ms` and
    `monotonic` replace its clocks.
    """

    def __init__(
        self,
        api_key: str | None = "test-key",
        *,
        listen: str = "127.0.0.1:0",
        wall_ms: Callable[[], int] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        **switches: Any,
    ) -> None:
        self.switches = Switches.of(switches)
        self._host, self._port = _address(listen)
        self._api = Api(
            api_key,
            self.switches,
            wall_ms=wall_ms or (lambda: time.time_ns() // 1_000_000),
            monotonic=monotonic,
        )
        self._requests: list[Request] = []
        self._in_progress = 0
        self._faults: list[Fault] = []
        self._clock_faults: list[Fault] = []
        # Readers in other threads see whole requests: a request is handled under this lock.
        self._lock = threading.RLock()
        self._runner: web.ServerRunner | None = None
        self._closing: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._stop_thread: Callable[[], object] | None = None

    def __repr__(self) -> str:
        return f"<FakeUpstream {self.url} stored={self.stored_count} violations={self._api.violation_count}>"

    # What it has seen

    @property
    def url(self) -> str:
        """Base URL, for example ``http://127.0.0.1:40123``. The port is known once it listens."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def stored(self) -> list[dict[str, Any]]:
        """Every stored event and transaction as sent, in the order first stored; an overwrite replaces in place.

        Decoded anew at each call: in a loop over many records take it once, or use `stored_count`.
        """
        return [orjson.loads(entry.raw) for entry in self.entries]

    @property
    def stored_count(self) -> int:
        """Length of `stored`, at no cost."""
        return len(self._api.store.entries)

    @property
    def entries(self) -> list[Entry]:
        """What is stored, with profile, action, stored time, raw bytes and number of overwrites."""
        return list(self._api.store.entries)

    @property
    def buys(self) -> list[Buy]:
        """The ``product.buy`` events of the stored transactions."""
        with self._lock:
            return [buy for entry in self._api.store.entries for buy in buys_of(entry)]

    @property
    def profiles(self) -> list[Profile]:
        """Every profile once, with identifiers and attributes."""
        with self._lock:
            return self._api.store.profiles

    @property
    def requests(self) -> list[Request]:
        """Every request in the order they ended; one that still waits is in `in_progress`."""
        return list(self._requests)

    @property
    def in_progress(self) -> int:
        """Requests that have begun and not ended: a body under way, a fault that delays or hangs."""
        return self._in_progress

    @property
    def overwritten(self) -> int:
        """How many records arrived that overwrote a stored one."""
        return self._api.store.overwritten

    @property
    def altered(self) -> int:
        """Those of `overwritten` whose bytes differed from what was stored."""
        return self._api.store.altered

    @property
    def dropped(self) -> int:
        """Records accepted and thrown away for the key's denylist (``denied_events="drop"``)."""
        return self._api.dropped

    @property
    def violations(self) -> list[str]:
        """What a legal client never sends, in words; the first 1000. Holds no values of records."""
        return list(self._api.violations)

    @property
    def notes(self) -> Counter[str]:
        """Legal and still worth knowing, counted: recommended keys that are missing, records without salt."""
        with self._lock:
            return self._api.notes.copy()

    def report(self) -> dict[str, Any]:
        """Counts, violations and batches as plain data; the same as ``GET /fake/report``."""
        with self._lock:
            return report(self._api, self._requests, self._active_faults(), self.url)

    # Scripted faults

    def fault(self, name: str | int, times: int | EllipsisType | None = ..., **detail: Any) -> Fault:
        """Scripts a fault; see `FAULTS` for the names and `Fault` for the details.

        `times` requests are struck, by default one; ``reject``, ``poison`` and ``clock_offset``
        stay by default, as with None, until `clear_faults`. Without ``path`` or ``kind`` only
        requests that write records are struck. Raises ValueError for an unknown name or detail.
        """
        fault = make_fault(name, times, detail)
        with self._lock:
            if name == "expire_tokens":
                self._api.gate.expire_all()
                fault.hits, fault.left = 1, 0
            elif name == "clock_offset":
                self._clock_faults.append(fault)
                self._set_clock()
            else:
                self._faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        """Ends every fault; requests that hang are cut."""
        with self._lock:
            for fault in (*self._faults, *self._clock_faults):
                fault.cleared = True
            self._faults.clear()
            self._clock_faults.clear()
            self._set_clock()

    def expire_tokens(self) -> None:
        """Every token given out so far is answered with 401 ``Token expired.`` from now on."""
        self.fault("expire_tokens")

    def _set_clock(self) -> None:
        self._api.clock_offset_ms = round(sum(fault.seconds or 0 for fault in self._clock_faults) * 1000)

    def _active_faults(self) -> list[Fault]:
        return [fault for fault in (*self._faults, *self._clock_faults) if fault.left is None or fault.left > 0]

    # Waiting, for tests

    async def until(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """Waits until the condition holds, `timeout` seconds at most; then raises TimeoutError with the state."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"still not so after {timeout} s: {self!r}")
            await asyncio.sleep(0.005)

    def wait_until(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """As `until`, for threads; never call it in the loop that serves."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"still not so after {timeout} s: {self!r}")
            time.sleep(0.005)

    # Life

    async def start(self) -> None:
        """Listens. Raises OSError when the address cannot be had."""
        if self._runner is not None:
            raise RuntimeError("this FakeUpstream is already listening")
        self._closing = asyncio.Event()
        server = web.Server(self._handle, access_log=None, auto_decompress=False)
        runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port, backlog=1024)
            await site.start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Stops listening and cuts what hangs. What it has seen stays."""
        runner, self._runner = self._runner, None
        if runner is not None:
            assert self._closing is not None
            self._closing.set()
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        started = threading.Event()
        failure: list[BaseException] = []

        async def main() -> None:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            self._stop_thread = lambda: loop.call_soon_threadsafe(stop.set)
            try:
                await self.start()
            except BaseException as error:
                failure.append(error)
                return
            finally:
                started.set()
            await stop.wait()
            await self.stop()

        self._thread = threading.Thread(target=lambda: asyncio.run(main()), name="fake-upstream", daemon=True)
        self._thread.start()
        started.wait()
        if failure:
            self._thread.join()
            raise failure[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread is not None
        assert self._stop_thread is not None
        self._stop_thread()
        self._thread.join()
        self._thread = self._stop_thread = None

    # One request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith("/fake/"):
            return self._control(request, await _read(request))
        self._in_progress += 1
        try:
            return await self._handle_call(request)
        finally:
            self._in_progress -= 1

    async def _handle_call(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            body = await _read(request)
        except (ConnectionError, ClientError, PayloadEncodingError):
            body = None
        received_at = time.monotonic()
        call = Call(request.method, request.path, dict(request.query), headers, body or b"")
        target = Target(
            path=call.path,
            kind=call.kind,
            size=len(call.body),
            identifiers=frozenset(call.identifiers),
            salts=call.salts,
            order_ids=call.order_ids,
            raws=call.raws,
        )
        faults: list[Fault] = []
        response, status = _cut(request) if body is None else await self._answer(request, call, target, faults)
        scheme = headers.pop("authorization", "").partition(" ")[0]
        self._requests.append(
            Request(
                method=call.method,
                path=call.path,
                status=status,
                answered=status != 0 and request.transport is not None,
                records=len(call.raws),
                size=len(call.body),
                digest=hashlib.blake2b(call.body, digest_size=16).hexdigest(),
                identifiers=frozenset(target.identifiers),
                salts=tuple(call.salts),
                received_at=received_at,
                answered_at=time.monotonic(),
                authorization=scheme if scheme in ("Bearer", "Basic") else "other" if scheme else "",
                headers=headers,
                faults=tuple(fault.name for fault in faults),
                body=call.body if self.switches.keep_bodies else None,
            )
        )
        return response

    async def _answer(
        self, request: web.BaseRequest, call: Call, target: Target, faults: list[Fault]
    ) -> tuple[web.StreamResponse, int]:
        """The response and the status to note; faults that strike are appended to `faults`."""
        while (fault := self._next_fault(target, faults)) is not None:
            faults.append(fault)
            if fault.name != "delay":
                break
            await self._pause(fault.seconds or 0.0)
        with self._lock:
            verdict = self._api.judge(call)
            if fault is None:
                return self._respond(verdict or self._api.commit(call, {}))
        return await self._struck(request, call, target, fault, verdict)

    def _next_fault(self, target: Target, already: list[Fault]) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.left == 0 or fault in already or not strikes(fault, target):
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                fault.hits += 1
                if fault.left is not None:
                    fault.left -= 1
                return fault
        return None

    async def _struck(
        self, request: web.BaseRequest, call: Call, target: Target, fault: Fault, verdict: Answer | None
    ) -> tuple[web.StreamResponse, int]:
        """What a request gets that a fault has struck; `verdict` is what it would get as a whole without."""
        match fault.name:
            case "hang":
                await self._pause(fault.seconds, fault)
                return _cut(request)
            case "reset":
                return _cut(request)
            case "garbage":
                return await _raw(request, (fault.body or "\x00\x01 this is not HTTP\r\n\r\n").encode())
            case "drip":
                return await self._drip(request, fault)
            case "html":
                return self._plain(fault.status or 200, fault.body or _HTML, "text/html")
            case "redirect":
                status = fault.status or 302
                return self._respond(Answer(status, None, {"Location": fault.location}))
            case "poison":
                status = fault.status or 500
                return self._respond(self._api.error(call, status, None, phrase(status)))
            case "reject" | "207" if verdict is None:
                return self._respond(self._refuse(call, fault, target))
            case "reset_after_store" | "drop_answer" | "truncated" | "odd_body" | "reject" | "207":
                with self._lock:
                    store = fault.name != "odd_body" or fault.store
                    answer = verdict or (self._api.commit(call, {}) if store else Answer(202))
                return await self._after_store(request, fault, answer)
        return self._status(call, fault)

    async def _after_store(
        self, request: web.BaseRequest, fault: Fault, answer: Answer
    ) -> tuple[web.StreamResponse, int]:
        match fault.name:
            case "reset_after_store":
                return _cut(request)
            case "drop_answer":
                return await _raw(request, b"")
            case "truncated":
                head = f"HTTP/1.1 {answer.status} {phrase(answer.status)}\r\nContent-Type: application/json\r\n"
                return await _raw(request, head.encode() + b'Content-Length: 200\r\n\r\n{"timest')
            case "odd_body":
                text = fault.body or ""
                if fault.size is not None:
                    text = ((text or "x") * fault.size)[: fault.size]
                return self._plain(fault.status or answer.status, text, fault.content_type or "text/plain")
        return self._respond(answer)

    def _refuse(self, call: Call, fault: Fault, target: Target) -> Answer:
        """``reject`` and ``207``: some records are bad because the test says so."""
        struck = {}
        for index in struck_records(fault, target):
            salt = target.salts[index]
            named = ("eventSalt", salt) if salt is not None else ("orderId", target.order_ids[index])
            struck[index] = Problem(named[0], fault.message or "is not acceptable", named[1])
        with self._lock:
            if fault.name == "reject" and not fault.hint:
                return self._api.refuse_records(call, {}, message=fault.message)
            return self._api.commit(call, struck, partial=fault.name == "207")

    def _status(self, call: Call, fault: Fault) -> tuple[web.StreamResponse, int]:
        """A scripted status in the API's error shape, or with the given body."""
        assert fault.status is not None
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        if fault.body is not None:
            return self._plain(fault.status, fault.body, fault.content_type or "application/json", headers)
        error = fault.error or ("Token expired." if fault.status == 401 else None)
        message = fault.message or phrase(fault.status)
        with self._lock:
            answer = self._api.error(call, fault.status, error, message, headers)
        if fault.errors is not None:
            assert answer.body is not None
            answer = answer._replace(body=orjson.dumps({**orjson.loads(answer.body), "errors": fault.errors}))
        return self._respond(answer)

    def _respond(self, answer: Answer) -> tuple[web.StreamResponse, int]:
        headers = self._headers(answer.headers)
        kind = None if answer.body is None else "application/json"
        return web.Response(status=answer.status, body=answer.body, headers=headers, content_type=kind), answer.status

    def _plain(
        self, status: int, text: str, content_type: str, headers: dict[str, str] | None = None
    ) -> tuple[web.StreamResponse, int]:
        headers = {**self._headers(headers or {}), "Content-Type": content_type}
        return web.Response(status=status, body=text.encode(), headers=headers), status

    def _headers(self, own: dict[str, str]) -> dict[str, str]:
        # An empty Date, because aiohttp adds its own where there is none.
        now = time.gmtime(self._api.now_ms() // 1000)
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", now) if self.switches.date_header else ""
        return {**own, "Date": date}

    async def _drip(self, request: web.BaseRequest, fault: Fault) -> tuple[web.StreamResponse, int]:
        status = fault.status or 202
        response = web.StreamResponse(status=status, headers=self._headers({"Content-Type": "application/json"}))
        await response.prepare(request)
        assert self._closing is not None
        with contextlib.suppress(ConnectionError):
            while not (self._closing.is_set() or fault.cleared or request.transport is None):
                await response.write(b" ")
                await self._pause(1.0 if fault.seconds is None else fault.seconds)
        _cut(request)
        return response, status

    async def _pause(self, seconds: float | None, fault: Fault | None = None) -> None:
        """Waits, until the server stops or the fault is cleared; seconds None: only for these."""
        assert self._closing is not None
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._closing.is_set() and not (fault is not None and fault.cleared):
            left = 0.05 if deadline is None else min(0.05, deadline - time.monotonic())
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), left)

    # Control, for tests in other processes

    def _control(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        """``GET /fake/report``, ``GET /fake/stored``, ``POST`` and ``DELETE /fake/faults``."""
        match request.method, request.path:
            case "GET", "/fake/report":
                return _control_json(200, self.report())
            case "GET", "/fake/stored":
                return self._stored_page(request.query)
            case "DELETE", "/fake/faults":
                self.clear_faults()
                return web.Response(status=204)
            case "POST", "/fake/faults":
                try:
                    detail = msgspec.json.decode(body, type=dict[str, Any])
                    fault = self.fault(str(detail.pop("name", "")), detail.pop("times", ...), **detail)
                except (ValueError, TypeError) as error:  # msgspec's errors are ValueErrors
                    return _control_json(400, {"message": str(error)})
                return _control_json(200, {"name": fault.name, "left": fault.left})
        return _control_json(404, {"message": "there are /fake/report, /fake/stored and /fake/faults"})

    def _stored_page(self, query: Any) -> web.StreamResponse:
        """`after` is the number of entries already seen; `next` what to give next time, null at the end."""
        try:
            after = int(query.get("after", 0))
            limit = int(query["limit"]) if "limit" in query else None
            if after < 0 or (limit is not None and limit < 1):
                raise ValueError
        except ValueError:
            return _control_json(400, {"message": "after is a whole number from 0, limit one from 1"})
        with self._lock:
            entries = self._api.store.entries
            end = len(entries) if limit is None else min(len(entries), after + limit)
            page = b",".join(entry.raw for entry in entries[after:end])
            following = str(end).encode() if end < len(entries) else b"null"
        return web.Response(
            body=b'{"stored":[' + page + b'],"next":' + following + b"}", content_type="application/json"
        )


async def _read(request: web.BaseRequest) -> bytes:
    """The body; of one over the read limit the beginning, one byte more than the limit."""
    chunks, size = [], 0
    async for chunk in request.content.iter_any():
        if size <= READ_LIMIT:
            chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)[: READ_LIMIT + 1]


def _cut(request: web.BaseRequest) -> tuple[web.StreamResponse, int]:
    """Resets the connection; the response goes nowhere."""
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                # Linger 0 turns the close into an RST.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        request.transport.abort()
    return web.Response(), 0


async def _raw(request: web.BaseRequest, data: bytes) -> tuple[web.StreamResponse, int]:
    """Writes bytes past aiohttp, then closes; the response goes nowhere."""
    if request.transport is not None:
        request.transport.write(data)
        request.transport.close()
        # The transport tells aiohttp in the next turn of the loop; only then the response is surely lost.
        await asyncio.sleep(0)
    return web.Response(), 0


def _control_json(status: int, value: Any) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")


def _address(listen: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:http://)?(\[[0-9a-fA-F:]+\]|[^:/]+):(\d{1,5})/?", listen)
    if found is None or int(found[2]) > 65535:
        raise ValueError(f"not an address: {listen!r}; give host:port, for example 127.0.0.1:8788 (port 0: any)")
    return found[1].strip("[]"), int(found[2])


def run_fake_upstream(listen: str, api_key: str | None, switches: Switches) -> None:
    """Serves until SIGTERM or SIGINT; the first line on standard output is the URL.

    Raises ValueError for a bad address and OSError when it cannot be had.
    """
    fake = FakeUpstream(api_key, listen=listen, **msgspec.structs.asdict(switches))
    asyncio.run(serve(fake, lambda: sys.stdout.write(fake.url + "\n") and sys.stdout.flush()))


async def serve(fake: FakeUpstream, ready: Callable[[], object]) -> None:
    """Runs the stand-in until SIGTERM or SIGINT; calls `ready` once it listens."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    async with fake:
        ready()
        await stop.wait()
