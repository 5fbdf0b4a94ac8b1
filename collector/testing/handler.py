"""One HTTP request after another: scripted faults, the API, the answer; and the control endpoints.

A request is judged and stored under the lock, so that readers in other threads never see
half of one. The lock is never held across an await.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec
import orjson
from aiohttp import ClientError, web
from aiohttp.http_exceptions import PayloadEncodingError

from collector.testing.api import Api
from collector.testing.call import Answer, Call, Request, remembered
from collector.testing.connection import cut, read_body, write_raw
from collector.testing.errors import phrase
from collector.testing.faults import Fault, Script, struck_records
from collector.testing.rules import Problem

_STORING: Final = frozenset({"reset_after_store", "drop_answer", "truncated", "odd_body", "207"})
"""Faults that strike after the API has done its work."""
_HTML: Final = "<!doctype html><title>Sign in</title><p>Welcome to the shop's WiFi. Please sign in."


class Controlled(Protocol):
    """What the control endpoints show and change."""

    def report(self) -> dict[str, Any]: ...
    def fault(self, name: str, times: Any = ..., **detail: Any) -> Fault: ...
    def clear_faults(self) -> None: ...


class Handler:
    """Answers requests and remembers them."""

    def __init__(self, api: Api, script: Script, controlled: Controlled) -> None:
        self.api = api
        self.script = script
        self.controlled = controlled
        self.requests: list[Request] = []
        self.in_progress = 0
        self.lock = threading.RLock()
        self.closing = asyncio.Event()
        """Set when the server stops: nothing may hang any longer."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith("/fake/"):
            return self._control(request, await read_body(request))
        self.in_progress += 1
        try:
            return await self._handle_call(request)
        finally:
            self.in_progress -= 1

    async def _handle_call(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            body = await read_body(request)
        except (ConnectionError, ClientError, PayloadEncodingError):
            body = None
        received_at = time.monotonic()
        call = Call(request.method, request.path, dict(request.query), headers, body or b"")
        faults: list[Fault] = []
        response, status = cut(request) if body is None else await self._answer(request, call, faults)
        self.requests.append(
            remembered(
                call,
                status,
                answered=status != 0 and request.transport is not None,
                received_at=received_at,
                faults=[fault.name for fault in faults],
                keep_body=self.api.switches.keep_bodies,
            )
        )
        return response

    async def _answer(
        self, request: web.BaseRequest, call: Call, faults: list[Fault]
    ) -> tuple[web.StreamResponse, int]:
        """The response and the status to note; faults that strike are appended to `faults`."""
        last: Fault | None = None
        for fault in self.script.striking(call):
            faults.append(fault)
            if fault.name != "delay":
                last = fault
                break
            await self._pause(fault.seconds or 0.0)
        with self.lock:
            verdict = self.api.judge(call)
            if last is None:
                return self._respond(verdict or self._commit(call, None, faults))
            if last.name in _STORING and verdict is None:
                store = last.name != "odd_body" or last.store
                verdict = self._commit(call, last, faults) if store else Answer(202)
        return await self._struck(request, call, last, verdict)

    async def _struck(
        self, request: web.BaseRequest, call: Call, fault: Fault, answer: Answer | None
    ) -> tuple[web.StreamResponse, int]:
        """What a request gets that a fault has struck; `answer` is what the API itself says."""
        match fault.name:
            case "hang":
                await self._pause(fault.seconds, fault)
                return cut(request)
            case "reset" | "reset_after_store":
                return cut(request)
            case "drop_answer":
                return await write_raw(request, b"")
            case "garbage":
                return await write_raw(request, (fault.body or "\x00\x01 this is not HTTP\r\n\r\n").encode())
            case "drip":
                return await self._drip(request, fault)
            case "html":
                return self._plain(fault.status or 200, fault.body or _HTML, "text/html")
            case "redirect":
                return self._respond(Answer(fault.status or 302, None, {"Location": fault.location}))
            case "poison":
                status = fault.status or 500
                return self._respond(self.api.error(call, status, None, phrase(status)))
            case "truncated" if answer is not None:
                head = f"HTTP/1.1 {answer.status} {phrase(answer.status)}\r\nContent-Type: application/json\r\n"
                return await write_raw(request, head.encode() + b'Content-Length: 200\r\n\r\n{"timest')
            case "odd_body" if answer is not None:
                text = fault.body or ""
                if fault.size is not None:
                    text = ((text or "x") * fault.size)[: fault.size]
                return self._plain(fault.status or answer.status, text, fault.content_type or "text/plain")
            case "207" if answer is not None:
                return self._respond(answer)
        return self._status(call, fault)

    def _commit(self, call: Call, fault: Fault | None, faults: list[Fault]) -> Answer:
        """Stores the call but for the records that ``reject`` or ``207`` make bad; with the lock held."""
        rejecting = list(self.script.rejecting(call))
        faults += rejecting
        partial = fault is not None and fault.name == "207"
        bad = {}
        for each in (*rejecting, *((fault,) if fault is not None and partial else ())):
            for index in struck_records(each, call):
                salt = call.salts[index]
                field, value = ("eventSalt", salt) if salt is not None else ("orderId", call.order_ids[index])
                bad[index] = Problem(field, each.message or "is not acceptable", value)
        for each in rejecting:
            if not each.hint:
                return self.api.refuse_records(call, {}, message=each.message)
        return self.api.commit(call, bad, partial=partial)

    def _status(self, call: Call, fault: Fault) -> tuple[web.StreamResponse, int]:
        """A scripted status in the API's error shape, or with the given body."""
        assert fault.status is not None
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        if fault.body is not None:
            return self._plain(fault.status, fault.body, fault.content_type or "application/json", headers)
        error = fault.error or ("Token expired." if fault.status == 401 else None)
        message = fault.message or phrase(fault.status)
        with self.lock:
            answer = self.api.error(call, fault.status, error, message, headers)
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
        now = time.gmtime(self.api.now_ms() // 1000)
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", now) if self.api.switches.date_header else ""
        return {**own, "Date": date}

    async def _drip(self, request: web.BaseRequest, fault: Fault) -> tuple[web.StreamResponse, int]:
        status = fault.status or 202
        response = web.StreamResponse(status=status, headers=self._headers({"Content-Type": "application/json"}))
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while not (self.closing.is_set() or fault.cleared or request.transport is None):
                await response.write(b" ")
                await self._pause(1.0 if fault.seconds is None else fault.seconds)
        cut(request)
        return response, status

    async def _pause(self, seconds: float | None, fault: Fault | None = None) -> None:
        """Waits, until the server stops or the fault is cleared; seconds None: only for these."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self.closing.is_set() and not (fault is not None and fault.cleared):
            left = 0.05 if deadline is None else min(0.05, deadline - time.monotonic())
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.closing.wait(), left)

    # Control, for tests in other processes

    def _control(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        """``GET /fake/report``, ``GET /fake/stored``, ``POST`` and ``DELETE /fake/faults``."""
        match request.method, request.path:
            case "GET", "/fake/report":
                return _control_json(200, self.controlled.report())
            case "GET", "/fake/stored":
                return self._stored_page(request.query)
            case "DELETE", "/fake/faults":
                self.controlled.clear_faults()
                return web.Response(status=204)
            case "POST", "/fake/faults":
                try:
                    detail = msgspec.json.decode(body, type=dict[str, Any])
                    fault = self.controlled.fault(str(detail.pop("name", "")), detail.pop("times", ...), **detail)
                except (ValueError, TypeError) as error:  # msgspec's errors are ValueErrors
                    return _control_json(400, {"message": str(error)})
                return _control_json(200, {"name": fault.name, "left": fault.left})
        return _control_json(404, {"message": "there are /fake/report, /fake/stored and /fake/faults"})

    def _stored_page(self, query: Mapping[str, str]) -> web.StreamResponse:
        """`after` is the number of entries already seen; `next` what to give next time, null at the end."""
        try:
            after = int(query.get("after", 0))
            limit = int(query["limit"]) if "limit" in query else None
            if after < 0 or (limit is not None and limit < 1):
                raise ValueError
        except ValueError:
            return _control_json(400, {"message": "after is a whole number from 0, limit one from 1"})
        with self.lock:
            entries = self.api.store.entries
            end = len(entries) if limit is None else min(len(entries), after + limit)
            page = b",".join(entry.raw for entry in entries[after:end])
            following = str(end).encode() if end < len(entries) else b"null"
        return web.Response(
            body=b'{"stored":[' + page + b'],"next":' + following + b"}", content_type="application/json"
        )


def _control_json(status: int, value: Any) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")
