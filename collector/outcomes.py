"""What an answer of the upstream means. Pure: no I/O, no clock.

`judge` maps every answer to one verdict; the lane decides what follows from it. Two rules
stand above the table: nothing counts as delivered that the API itself did not confirm (a
captive portal says 200 too), and only a record's own fault may bury it. So whatever speaks
of the request, of our rights or of the road there either waits or pauses.

Reasons of `Later`, `Paused` and `Forbidden` are ours alone and go into logs and status
pages. What the upstream said may repeat personal data: it stays in `Rejected.reason` and
`answer`, which only ever reach a dead letter.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from collector.retry import parse_retry_after
from tracker.wire import ACCEPTED_HEADER

BODY_MAX: Final = 64 * 1024
"""How much of an answer is read; no genuine one comes near it."""
ANSWER_MAX: Final = 2048
"""How much of an answer a dead letter keeps, characters."""

_REASON_MAX: Final = 300
# products[0].quantity of a transaction is a position within one record, so not any name will do
_POSITION: Final = r"(?:\$|events|transactions|items)?\[(\d{1,4})\]"
_HINTED_FIELD: Final = re.compile(rf'"field"\s*:\s*"{_POSITION}')
_INDEXED_FIELD: Final = re.compile(rf"{_POSITION}\.?(.*)", re.DOTALL)
_LIST_POSITION: Final = re.compile(r"(?:ArrayList|List|\$)\[(\d{1,4})\]")  # Jackson's reference chain
_ABOUT_REQUEST: Final = re.compile(r"version header|api-version|content[- ]type", re.IGNORECASE)
_NAMES_PROPERTY: Final = re.compile(
    r"(?:property|field|properties)\b[^'\"]{0,20}['\"]\w|\[\"\w|\[\\\"\w", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Delivered:
    """The upstream has every record."""


@dataclass(frozen=True, slots=True)
class Later:
    """Not now; the same bytes again after a while."""

    reason: str
    retry_after_s: float | None = None
    """What the upstream asked for, as it asked; see `retry.delay_s`."""
    offline: bool = False
    """No connection was made at all: not an attempt."""
    sticks: bool = False
    """May be this batch's own doing if others pass meanwhile: a server fault, or (no status) a connection that
    did not survive the batch."""
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """Refused for its content, nothing of it stored."""

    status: int
    reason: str = field(repr=False)
    answer: str = field(default="", repr=False)
    hints: tuple[int, ...] = ()
    """Positions the answer names: where to look first."""


@dataclass(frozen=True, slots=True)
class PartlyRejected:
    """Some records were refused by name."""

    status: int
    rejected: Mapping[int, str] = field(repr=False)
    """Position of each record named, and why."""
    complete: bool
    """Whether everything refused was matched; if not, nothing is known of the records not named."""
    answer: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The body is larger than the upstream takes."""

    status: int = 413
    answer: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Paused:
    """Something is wrong that no retry mends: with the request, our rights, the address or the certificate."""

    reason: str
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Forbidden:
    """403, also with a new token."""

    reason: str
    status: int = 403


@dataclass(frozen=True, slots=True)
class Unauthorized:
    """401: a new token may help."""

    reason: str
    status: int = 401


Outcome = Delivered | Later | Rejected | PartlyRejected | TooLarge | Paused | Forbidden
"""How a delivery ended."""
Verdict = Outcome | Unauthorized
"""What one answer means; a 401 first asks for a new token."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, its body read up to `BODY_MAX`."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Case-insensitive."""
    body: bytes = field(default=b"", repr=False)
    complete: bool = True
    """Whether `body` is all of it."""
    sent_boot_ms: int = 0
    received_boot_ms: int = 0

    @property
    def html(self) -> bool:
        """Whether a page for people came where an API should have spoken."""
        start = self.body[:256].lstrip().lower()
        return "html" in self.headers.get("Content-Type", "").lower() or start.startswith((b"<!doctype", b"<html"))

    @property
    def genuine(self) -> bool:
        """Whether it may be believed to come from the API: JSON, or a plain success without a body."""
        if self.html or not self.complete or self.status < 200 or 300 <= self.status < 400:
            return False
        return self.json() is not None if self.body.strip() else self.status < 300

    @property
    def retry_after_s(self) -> float | None:
        """What it asks for, seconds from now; None for nothing, the past and nonsense."""
        return parse_retry_after(self.headers.get("Retry-After"), self.headers.get("Date"))

    def json(self) -> Any:
        """The body as JSON; None where it is not."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None

    def excerpt(self) -> str:
        return self.body[: ANSWER_MAX * 4].decode("utf-8", "replace")[:ANSWER_MAX]


class Records(Protocol):
    """The part of a batch needed to find whose value an answer complains of."""

    @property
    def count(self) -> int: ...
    def record(self, index: int) -> bytes: ...


def judge(answer: Answer, batch: Records, *, chain: bool = False) -> Verdict:
    """The whole table (DESIGN 8, API reference 7).

    `chain`: the upstream is another collector, which always says how many records it
    accepted. 409, 423 and 424 are in no document of the API: they wait as a server fault
    does, and are set aside if they stick to one batch, never buried.
    """
    status = answer.status
    if status in (200, 201, 202, 204, 207):
        return _success(answer, batch, chain)
    if status == 401:
        return Unauthorized("401: the upstream does not accept our credentials")
    if status == 403:
        return Forbidden("403: the key lacks a permission, or our address is blocked")
    if status == 413:
        return TooLarge(413, answer.excerpt())
    if status in (400, 422):
        return _refusal(answer, batch)
    if status in (408, 425, 429) or status >= 500 or status in (409, 423, 424):
        asked_s = answer.retry_after_s
        sticks = status not in (408, 425, 429, 511) and asked_s is None
        return Later(f"{status} from the upstream", asked_s, sticks=sticks, status=status)
    if 300 <= status < 400:
        return Paused(f"{status}: the upstream's address redirects elsewhere, which is not followed", status)
    if 400 <= status < 500:
        return Paused(f"{status}: the upstream does not take such requests at this address", status)
    return Later(f"{status} is no answer of the API", status=status)


def _success(answer: Answer, batch: Records, chain: bool) -> Verdict:
    status = answer.status
    if answer.html:
        return Later(f"{status} with a web page instead of an answer: a captive portal?", status=status)
    if not answer.complete:
        return Later(f"{status} with an answer that broke off or has no end", status=status)
    accepted = answer.headers.get(ACCEPTED_HEADER)
    if accepted is not None and accepted != str(batch.count):
        return Later(f"{status}, but {ACCEPTED_HEADER} is not the {batch.count} records sent", status=status)
    if chain and accepted is None:
        return Later(f"{status} without {ACCEPTED_HEADER}, which this upstream sends otherwise", status=status)
    body = answer.json()
    if body is None and answer.body.strip() not in (b"", b"null"):
        return Later(f"{status} with a body that is not JSON", status=status)
    if status == 207:
        return _partial(answer, batch, body.get("errors") if isinstance(body, dict) else body)
    # none is documented, yet a success that lists errors is no success for those it lists
    errors = body.get("errors") if isinstance(body, dict) else None
    if isinstance(errors, list) and any(_is_error(item) for item in errors):
        return _partial(answer, batch, errors)
    return Delivered()


# -- 207: which records does it name ------------------------------------------------------------


def _is_error(item: Any) -> bool:
    keys = ("code", "errorCode", "field", "message", "rejectedValue", "error")
    return isinstance(item, dict) and any(key in item for key in keys) and not _is_success(item)


def _is_success(item: Any) -> bool:
    status = item.get("status") if isinstance(item, dict) else None
    return isinstance(status, int) and 200 <= status < 300


def _partial(answer: Answer, batch: Records, items: Any) -> Verdict:
    status = answer.status
    listed: list[Any] = items if isinstance(items, list) else [None]
    errors = [item for item in listed if _is_error(item)]
    clear = all(_is_error(item) or _is_success(item) for item in listed)
    if not errors and clear:
        return Delivered()
    if batch.count == 1:
        if errors:
            return Rejected(status, _reason(status, {}, errors), answer.excerpt())
        return Later(f"{status} with an answer that names nothing", sticks=True, status=status)
    rejected: dict[int, str] = {}
    parsed: list[Any] | None = None
    for entry in errors:
        index = _index(entry, batch.count)
        if index is None:
            parsed = parsed or [_read(batch.record(i)) for i in range(batch.count)]
            index = _by_value(entry, parsed)
        if index is None:
            clear = False
        else:
            rejected.setdefault(index, _reason(status, {}, [entry]))
    return PartlyRejected(status, rejected, clear, answer.excerpt())


def _read(record: bytes) -> Any:
    """None where it holds a number beyond all doubles, which is legal JSON and delivered as it is."""
    try:
        return orjson.loads(record)
    except orjson.JSONDecodeError:
        return None


def _index(entry: Mapping[str, Any], count: int) -> int | None:
    found = entry.get("index")
    if not isinstance(found, int) or isinstance(found, bool):
        named = entry.get("field")
        match = _INDEXED_FIELD.fullmatch(named) if isinstance(named, str) else None
        if match is None:
            return None
        found = int(match[1])
    return found if 0 <= found < count else None


def _by_value(entry: Mapping[str, Any], records: Sequence[Any]) -> int | None:
    """The only record that holds the rejected value where the entry says it was."""
    value = entry.get("rejectedValue")
    if not isinstance(value, str | int | float) or isinstance(value, bool) or value == "":
        return None
    path = entry.get("field")
    steps = re.findall(r"[^.\[\]]+", path) if isinstance(path, str) else []
    if steps:
        holders = [i for i, record in enumerate(records) if _at(record, steps) == value]
    else:
        holders = [i for i, record in enumerate(records) if _holds(record, value)]
    return holders[0] if len(holders) == 1 else None


def _at(record: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        if isinstance(record, list) and step.isdigit() and int(step) < len(record):
            record = record[int(step)]
        elif isinstance(record, dict):
            record = record.get(step)
        else:
            return None
    return record


def _holds(value: Any, wanted: str | float) -> bool:
    if isinstance(value, dict):
        return any(_holds(held, wanted) for held in value.values())
    if isinstance(value, list):
        return any(_holds(held, wanted) for held in value)
    return type(value) is type(wanted) and value == wanted


# -- 400 and 422: of the request or of a record -------------------------------------------------


def _refusal(answer: Answer, batch: Records) -> Verdict:
    status = answer.status
    if answer.html:
        return Later(f"{status} with a web page instead of an answer: not from the API", status=status)
    body = answer.json()
    about = body if isinstance(body, dict) else {}
    listed = about.get("errors")
    entries = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    if not answer.complete and not entries:
        # a long list of errors is cut; one that broke off early could be about anything
        if len(answer.body) < BODY_MAX:
            return Later(f"{status} with an answer that broke off", status=status)
    elif not entries and _speaks_of_request(about):
        return Paused(f"{status}: the upstream refuses the request itself, not a record in it", status)
    text = answer.body.decode("utf-8", "replace")
    found = _HINTED_FIELD.findall(text) + _LIST_POSITION.findall(str(about.get("message", "")))
    hints = dict.fromkeys(int(index) for index in found if int(index) < batch.count)
    return Rejected(status, _reason(status, about, entries), answer.excerpt(), tuple(hints))


def _speaks_of_request(body: Mapping[str, Any]) -> bool:
    message = str(body.get("message") or "")
    if _ABOUT_REQUEST.search(message) or _ABOUT_REQUEST.search(str(body.get("error") or "")):
        return True
    return "json parse error" in message.lower() and not _NAMES_PROPERTY.search(message)


def _reason(status: int, body: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> str:
    """One short line for a dead letter: ``400: params.sku must not be null``."""
    said = [body.get("message")]
    for entry in entries[:1]:
        named = str(entry.get("field") or "")
        indexed = _INDEXED_FIELD.fullmatch(named)
        said = [indexed[2] if indexed else named, entry.get("message")]
    text = " ".join(" ".join(str(part).split()) for part in said if part)
    return f"{status}: {text or 'refused without a reason'}"[:_REASON_MAX]
