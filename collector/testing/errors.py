"""Error bodies as the API writes them (API.md 7), in the three shapes its clients have met."""

import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final
from uuid import uuid4

import orjson

from collector.testing.rules import Problem
from collector.testing.switches import Switches

_INVALID: Final = 1001
_LISTED: Final = 100


def error_body(
    switches: Switches,
    path: str,
    status: int,
    error: str | None,
    message: str,
    now_ms: int,
    problems: dict[int, list[Problem]] | list[Problem] | None = None,
    *,
    shape: str | None = None,
) -> bytes:
    """The body of a refusal; `problems` by index for a batch, else as a list. `shape` overrides the switch."""
    if (shape or switches.error_shape) == "2022":
        return orjson.dumps(_of_2022(path, status, message, now_ms))
    body: dict[str, Any] = {
        "timestamp": timestamp(now_ms),
        "status": status,
        "error": error or phrase(status),
        "message": message,
        "path": _path(path),
    }
    if problems:
        body["errors"] = _entries(switches, problems)
    return orjson.dumps(body)


def partial_body(switches: Switches, path: str, bad: dict[int, list[Problem]], now_ms: int) -> bytes:
    """The bare array of a 207: one entry per refused item."""
    first = {index: problems[:1] for index, problems in sorted(bad.items())}
    if switches.error_shape == "2022":
        messages = (f"{problem.field}: {problem.message}" for problems in first.values() for problem in problems)
        return orjson.dumps([_of_2022(path, 400, message, now_ms) for message in messages])
    return orjson.dumps(_entries(switches, first, limit=None))


def _entries(
    switches: Switches, problems: dict[int, list[Problem]] | list[Problem], limit: int | None = _LISTED
) -> list[dict[str, Any]]:
    placed: Iterable[tuple[str, Problem]]
    if isinstance(problems, list):
        placed = (("", problem) for problem in problems)
    else:
        placed = ((f"[{index}]", problem) for index, each in sorted(problems.items()) for problem in each)
    entries = []
    for place, problem in placed:
        field = problem.field
        if place and switches.error_shape == "index":
            field = f"{place}.{field}" if field else place
        entries.append({"code": _INVALID, "field": field, "message": problem.message, "rejectedValue": problem.value})
    return entries[:limit]


def _of_2022(path: str, status: int, message: str, now_ms: int) -> dict[str, Any]:
    """The shape of the 2022 spec; a failed login has it too (API.md 2.1)."""
    return {
        "path": _path(path),
        "timestamp": timestamp(now_ms),
        "errorCode": _INVALID,
        "status": status,
        "message": message,
        "traceId": uuid4().hex,
    }


def _path(path: str) -> str:
    """Without ``/v4``, and for a transactions batch as in the API's sample."""
    return path.removeprefix("/v4").replace("/transactions/batch", "/transactions")


def phrase(status: int) -> str:
    """``Not Found`` for 404, and something for numbers nobody has named."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


def timestamp(now_ms: int) -> str:
    """``2020-10-28T12:24:24.444Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ms // 1000)) + f".{now_ms % 1000:03d}Z"
