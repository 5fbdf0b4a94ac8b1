"""``/v1``: operations over HTTP, for the command line and for administrators' scripts."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Protocol, TypeAlias

import msgspec
from aiohttp import web
from msgspec import Meta

from collector.refusals import Refused

Answer: TypeAlias = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""
Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[Answer]]

JSON: Final = {"Content-Type": "application/json"}
PRIVATE: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
PAGE_MAX: Final = 1000
"""Dead letters in one answer at most."""
ID_MAX: Final = 2**63 - 1
"""What SQLite can hold."""


class Operations(Protocol):
    """What ``/v1`` does; the results are the bodies of its answers. ValueError means a bad request."""

    async def dead_letters(self, limit: int, after: int) -> Any: ...
    async def retry(self, ids: Sequence[int] | None, force: bool) -> Any: ...
    async def discard(self, ids: Sequence[int] | None) -> Any: ...
    async def find(self, what: Mapping[str, Any]) -> Any: ...
    async def forget(self, what: Mapping[str, Any]) -> Any: ...
    async def drain(self) -> None: ...
    async def resume(self, lane: str | None) -> Any: ...


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    """``{"ids": [...]}`` or ``{"all": true}``."""

    ids: list[Annotated[int, Meta(ge=-ID_MAX, le=ID_MAX)]] | None = None
    all: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if (self.ids is None) != self.all:
            raise ValueError('give either "ids" or "all": true')


class _Resume(msgspec.Struct, forbid_unknown_fields=True):
    lane: str | None = None


class OperationsApi:
    """Turns requests under ``/v1`` into operations; who may ask is decided before."""

    def __init__(self, operations: Operations, body: Callable[[web.BaseRequest], Awaitable[bytes]]) -> None:
        self._operations = operations
        self._body = body

    def paths(self) -> dict[str, dict[str, Handler]]:
        return {
            "/v1/dead-letters": {"GET": self._dead_letters},
            "/v1/dead-letters/retry": {"POST": self._retry},
            "/v1/dead-letters/discard": {"POST": self._discard},
            "/v1/drain": {"POST": self._drain},
            "/v1/lanes/resume": {"POST": self._resume},
            "/v1/find": {"POST": self._find},
            "/v1/forget": {"POST": self._forget},
        }

    async def _dead_letters(self, request: web.BaseRequest) -> Answer:
        try:
            limit, after = int(request.query.get("limit", "100")), int(request.query.get("after", "0"))
        except ValueError:
            raise Refused(400, "limit and after must be whole numbers") from None
        if not 1 <= limit <= 1000:
            raise Refused(400, "limit must be 1 to 1000")
        return json_answer(await self._operations.dead_letters(limit, max(-ID_MAX, min(after, ID_MAX))))

    async def _retry(self, request: web.BaseRequest) -> Answer:
        choice = await self._argument(request, _Choice)
        return await _done(self._operations.retry(choice.ids, choice.force))

    async def _discard(self, request: web.BaseRequest) -> Answer:
        choice = await self._argument(request, _Choice)
        return await _done(self._operations.discard(choice.ids))

    async def _drain(self, _: web.BaseRequest) -> Answer:
        await self._operations.drain()
        return 202, {}, b""

    async def _resume(self, request: web.BaseRequest) -> Answer:
        return await _done(self._operations.resume((await self._argument(request, _Resume)).lane))

    async def _find(self, request: web.BaseRequest) -> Answer:
        return await _done(self._operations.find(await self._argument(request, dict[str, Any])))

    async def _forget(self, request: web.BaseRequest) -> Answer:
        return await _done(self._operations.forget(await self._argument(request, dict[str, Any])))

    async def _argument(self, request: web.BaseRequest, shape: type[msgspec.Struct] | Any) -> Any:
        """The JSON body of an operation; none means ``{}``. Raises Refused."""
        try:
            return msgspec.json.decode(await self._body(request) or b"{}", type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refused(400, f"the body is not what this operation takes: {error}") from None


async def _done(result: Awaitable[Any]) -> Answer:
    try:
        return json_answer(await result)
    except ValueError as error:
        raise Refused(400, str(error)) from None


def json_answer(value: Any) -> Answer:
    """200 with a JSON body that no cache keeps."""
    return 200, {**JSON, **PRIVATE}, msgspec.json.encode(value)
