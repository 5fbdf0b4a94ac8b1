"""Scripted trouble: what a `FakeUpstream` can be told to do wrong, and to which requests.

`FAULTS` is the one table of names; `make_fault` refuses what is not in it and names the
nearest. A fault is spent by the requests it hits (`times`), in the order the faults were
given; ``delay`` is felt and the request then goes on to the next fault or to the API.
"""

import threading
from collections.abc import Iterator
from types import EllipsisType
from typing import Any, Final, Literal

import msgspec

from collector.testing.call import Call
from collector.testing.switches import unknown


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, eq=False):
    """One scripted fault. `hits` counts the requests it has struck, `left` those it still will (None: no end)."""

    name: str
    left: int | None = 1
    hits: int = 0
    cleared: bool = False

    # Which requests it strikes; without path and kind only those that write records.
    path: str | None = None
    """Part of the request's path; ``*`` for every request, logins and server time included."""
    kind: Literal["events", "transactions", "profiles", "login", "time", "other"] | None = None
    identifier: str | None = None
    """Batches that hold this identifier type, for example ``email`` or ``email+uuid``."""
    salt: str | list[str] | None = None
    """Requests that hold a record with one of these salts."""
    order_id: str | list[str] | None = None
    """Requests that hold a transaction with one of these order ids."""
    contains: str | None = None
    """Requests that hold a record with this text in its bytes."""
    max_bytes: int | None = None
    """Only bodies larger than this."""
    max_records: int | None = None
    """Only batches of more records than this."""
    after: int = 0
    """This many matching requests pass first."""

    # What it does
    seconds: float | None = None
    status: int | None = None
    indexes: list[int] | None = None
    message: str | None = None
    error: str | None = None
    errors: list[dict[str, Any]] | None = None
    retry_after: str | int | float | None = None
    location: str = "/portal/login"
    body: str | None = None
    size: int | None = None
    content_type: str | None = None
    store: bool = True
    hint: bool = True


class _Row(msgspec.Struct, frozen=True):
    text: str
    details: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    """One of these must be given."""
    times: int | None = 1


def _row(text: str, details: str = "", needs: str = "", times: int | None = 1) -> _Row:
    return _Row(text, frozenset((details + " " + needs).split()), frozenset(needs.split()), times)


_LIMITS: Final = frozenset(
    {"path", "kind", "identifier", "salt", "order_id", "contains", "max_bytes", "max_records", "after"}
)
STATUS: Final = "status"
CLOCK: Final = "clock_offset"
FAULTS: Final[dict[str, _Row]] = {
    "delay": _row("wait before handling; the request then goes on", needs="seconds"),
    "hang": _row("never answer: until the client gives up, clear_faults(), or `seconds` are over", "seconds"),
    "reset": _row("RST before the request is handled"),
    "reset_after_store": _row("handle and store, then RST instead of an answer"),
    "drop_answer": _row("handle and store, then close without an answer"),
    "truncated": _row("handle and store, then break off in the middle of the answer"),
    "garbage": _row("answer bytes that are not HTTP", "body"),
    "drip": _row("answer one byte at a time, `seconds` apart, without end", "seconds status"),
    "odd_body": _row("an answer with an unexpected body; stores first unless store=False",
                     "status body size content_type store"),
    "207": _row("refuse the records at `indexes`, or with `salt`, `order_id`; store the others", "indexes"),
    "reject": _row("a record that makes its whole batch a 400, for ever; hint=False: no `errors`",
                   "message hint", "salt order_id contains", None),
    "poison": _row("a record that makes its whole batch a 500 (or `status`), for ever",
                   "status", "salt order_id contains", None),
    "html": _row("a captive portal: 200 (or `status`) with HTML", "status body"),
    "redirect": _row("302 (or `status`) to `location`", "status location"),
    CLOCK: _row("the server's clock is `seconds` ahead", needs="seconds", times=None),
    "expire_tokens": _row("every token given out so far expires now; strikes at once"),
    STATUS: _row("written as the number, 300 to 599: the API's error with that status",
                 "message error errors retry_after body content_type"),
}  # fmt: skip


def make_fault(name: str | int, times: int | EllipsisType | None, detail: dict[str, Any]) -> Fault:
    """A fault from its name and details. Raises ValueError, naming the nearest name, for what does not exist."""
    name = str(name)
    is_status = name not in FAULTS and name.isascii() and name.isdigit() and 300 <= int(name) <= 599
    if name == STATUS or (name not in FAULTS and not is_status):
        raise ValueError(unknown("fault", name, [known for known in FAULTS if known != STATUS] + ["503"]))
    row = FAULTS[STATUS if is_status else name]
    for key in detail:
        if key not in row.details | _LIMITS:
            raise ValueError(unknown(f"detail of fault {name}", key, sorted(row.details | _LIMITS)))
    if row.needs and not any(detail.get(key) is not None for key in row.needs):
        raise ValueError(f"fault {name} needs " + " or ".join(sorted(row.needs)))
    if name == "207" and not {"indexes", "salt", "order_id", "contains"} & detail.keys():
        raise ValueError("fault 207 needs indexes, salt, order_id or contains")
    left = row.times if isinstance(times, EllipsisType) else times
    if left is not None and (isinstance(left, bool) or not isinstance(left, int) or left < 1):
        raise ValueError(f"fault {name}: times is a whole number from 1, or None for no end")
    if is_status:
        detail = {**detail, "status": int(name)}
    try:
        return msgspec.convert({**detail, "name": name, "left": left}, Fault)
    except msgspec.ValidationError as error:
        raise ValueError(f"fault {name}: {error}") from None


def strikes(fault: Fault, call: Call) -> bool:
    """Whether the fault is meant for this request; counts down nothing."""
    if fault.path is not None:
        if fault.path != "*" and fault.path not in call.path:
            return False
    elif fault.kind is None and call.kind not in ("events", "transactions", "profiles"):
        return False
    if fault.name == CLOCK:
        return False
    if fault.kind is not None and call.kind != fault.kind:
        return False
    if fault.identifier is not None and fault.identifier not in call.identifiers:
        return False
    if fault.max_bytes is not None and len(call.body) <= fault.max_bytes:
        return False
    if fault.max_records is not None and len(call.raws) <= fault.max_records:
        return False
    if fault.salt is None and fault.order_id is None and fault.contains is None:
        return True
    return bool(struck_records(fault, call))


def struck_records(fault: Fault, call: Call) -> list[int]:
    """Positions of the records that a fault names by salt, order id, text or index."""
    salts, orders = _wanted(fault.salt), _wanted(fault.order_id)
    text = None if fault.contains is None else fault.contains.encode()
    found = {index for index in fault.indexes or () if 0 <= index < len(call.raws)}
    for index, raw in enumerate(call.raws):
        named = call.salts[index] in salts or call.order_ids[index] in orders
        if named or (text is not None and text in raw):
            found.add(index)
    return sorted(found)


def _wanted(value: str | list[str] | None) -> frozenset[str]:
    return frozenset() if value is None else frozenset([value] if isinstance(value, str) else value)


class Script:
    """The faults that are still to come, in the order they were given. Thread-safe."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Lets the fault strike from now on."""
        with self._lock:
            self._faults.append(fault)

    def clear(self, keep: str | None = None) -> None:
        """Ends every fault, those that hold a request included; those named `keep` go on without a gap."""
        with self._lock:
            for fault in self._faults:
                fault.cleared = fault.name != keep
            self._faults = [fault for fault in self._faults if not fault.cleared]

    @property
    def active(self) -> list[Fault]:
        """Faults that may still strike."""
        with self._lock:
            return [fault for fault in self._faults if fault.left != 0]

    @property
    def clock_offset_ms(self) -> int:
        """How far ahead the server's clock is made to be."""
        return round(1000 * sum(fault.seconds or 0 for fault in self.active if fault.name == CLOCK))

    def striking(self, call: Call) -> Iterator[Fault]:
        """The faults that strike this request, each counted as it is taken; poison before all others.

        Not ``reject``: a record that is bad stays bad whatever else happens to its request.
        """
        for fault in sorted(self.active, key=lambda fault: fault.name != "poison"):
            if fault.name != "reject" and strikes(fault, call) and self._take(fault):
                yield fault

    def rejecting(self, call: Call) -> Iterator[Fault]:
        """The ``reject`` faults that strike this request, each counted as it is taken."""
        for fault in self.active:
            if fault.name == "reject" and strikes(fault, call) and self._take(fault):
                yield fault

    def _take(self, fault: Fault) -> bool:
        with self._lock:
            if fault.cleared or fault.left == 0:
                return False
            if fault.after:
                fault.after -= 1
                return False
            fault.hits += 1
            if fault.left is not None:
                fault.left -= 1
            return True


def help_table() -> list[tuple[str, str]]:
    """One row per fault, for help texts: name and what it does."""
    return [("<status>" if name == STATUS else name, row.text) for name, row in FAULTS.items()]
