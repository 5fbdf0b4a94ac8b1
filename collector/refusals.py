"""Refusals: how an answer says what was wrong, in the API's own error shape."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from math import ceil
from typing import Any, Final

import msgspec

from collector.shapes import Fault

MAX_ERRORS: Final = 100
"""How many bad records an answer names (DESIGN 5.2)."""
INVALID: Final = 1001
"""The `code` of every entry of `errors`, as in the API's sample."""
_SHOWN_CHARS: Final = 256
"""A rejected value longer than this is not sent back."""


class Refused(Exception):
    """Nothing of the request was stored; the fields are the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        errors: Sequence[dict[str, Any]] = (),
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = list(errors)
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, ceil(retry_after_s)))


def answer(refused: Refused, path: str, now: datetime | None = None) -> bytes:
    """The error body of the API (API reference, 7); its `path` has no ``/v4``."""
    when = now or datetime.now(UTC)
    return msgspec.json.encode(
        {
            "timestamp": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "status": refused.status,
            "error": HTTPStatus(refused.status).phrase,
            "message": refused.message,
            "path": path.removeprefix("/v4"),
            "errors": refused.errors,
        }
    )


_MISSING: Final = re.compile(r"Object missing required field `(.+?)`(.*)", re.DOTALL)


def fault_of(error: msgspec.ValidationError, value: Any) -> Fault:
    """A decoder's complaint in the API's terms: field, message, the value itself."""
    message, _, at = str(error).rpartition(" - at `$")
    message, at = (message, at.rstrip("`")) if message else (str(error), "")
    field = at.lstrip(".")
    missing = _MISSING.fullmatch(message)
    if missing is not None:
        field = f"{field}.{missing[1]}" if field else missing[1]
        return Fault(field, "is required and missing: add it")
    rejected = _value_at(value, field)
    if field == "type":
        return Fault(field, "is no event type of the API; it looks like added-to-cart, or custom", rejected)
    return Fault(field, message.replace("`", ""), rejected)


def _value_at(value: Any, field: str) -> Any:
    """The value under ``params.items[3].sku``; None where there is none."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", field):
        try:
            value = value[int(index)] if index else value[name]
        except (LookupError, TypeError):
            return None
    return value


def entry(found: Fault, index: int | None) -> dict[str, Any]:
    """An entry of `errors`. A long or structured value stays out: the sender has it."""
    field = found.field
    if index is not None:
        field = f"[{index}].{field}" if field else f"[{index}]"
    value = found.value
    shown = isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _SHOWN_CHARS)
    return {"code": INVALID, "field": field, "message": found.message, "rejectedValue": value if shown else None}


def invalid(errors: Sequence[dict[str, Any]]) -> Refused:
    return Refused(400, "Some fields did not pass validation", errors[:MAX_ERRORS])
