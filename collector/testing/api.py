"""The API itself, without sockets: a parsed `Call` in, an `Answer` out (API.md 2 to 9).

A write passes two gates. `Api.judge` looks at the request as a whole and at every record,
and stores nothing; `Api.commit` stores. Scripted faults act between the two. Whatever a
legal client must never send is noted in `Api.violations`, also when a fault hides it.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import orjson

from collector.testing import profiles, rules
from collector.testing.auth import Gate, event_permission
from collector.testing.call import READ_LIMIT, Answer, Call
from collector.testing.errors import error_body, partial_body
from collector.testing.rules import CHARGE, EVENT_TYPES, Problem, Record
from collector.testing.store import Store, identifiers_of, read_back
from collector.testing.switches import Switches

LEGAL_BYTES: Final = 1_000_000
"""What every reading of "1 MB" allows (API.md 3)."""
LEGAL_RECORDS: Final = 1000
_LISTED_VIOLATIONS: Final = 1000


class Api:
    """One workspace behind the API. Not thread-safe: the server's loop owns it."""

    def __init__(
        self,
        api_key: str | None,
        switches: Switches,
        *,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.switches = switches
        self.store = Store()
        self.gate = Gate(api_key, switches, monotonic)
        self.violations: list[str] = []
        self.violation_count = 0
        self.notes: Counter[str] = Counter()
        """Legal, and still worth knowing: recommended keys that are missing, odd salts."""
        self.dropped = 0
        """Records answered with 202 and thrown away, because the key's denylist covers them."""
        self._wall_ms = wall_ms
        self._monotonic = monotonic
        self._allowance, self._allowed_at = switches.max_rate, monotonic()

    def now_ms(self) -> int:
        """This server's clock, milliseconds since 1970."""
        return self._wall_ms() + round(self.switches.clock_offset_s * 1000)

    def violation(self, call: Call, text: str) -> None:
        """Notes what a legal client would never have sent. Never holds values, which may name people."""
        self.violation_count += 1
        if len(self.violations) < _LISTED_VIOLATIONS:
            self.violations.append(f"{call.method} {call.path}: {text}")

    # Before storing

    def judge(self, call: Call) -> Answer | None:
        """The answer to a call that is refused as a whole, or that writes nothing; None for a write to commit."""
        if call.kind == "other":
            self.violation(call, "no such path")
            return self.error(call, 404, "Not Found", "No such path")
        wanted = "GET" if call.kind in ("time", "refresh", "read") else "POST"
        if call.method != wanted:
            self.violation(call, "method not allowed")
            return self.error(call, 405, "Method Not Allowed", f"Request method '{call.method}' not supported")
        if call.path.startswith("/v4/") and call.headers.get("api-version") != "4.4":
            self.violation(call, "Api-Version must be 4.4")
            return self.error(call, 400, "Bad Request", "Version header content is invalid")
        if wanted == "POST" or call.kind == "read":
            refusal = self._judge_content_type(call)
            if refusal is not None:
                return refusal
        if call.kind == "login":
            return self._login(call)
        if call.kind == "time":
            return self._server_time()
        refused = self.gate.check(call.headers.get("authorization"))
        if refused is not None:
            if refused.violation:
                self.violation(call, refused.message)
            return self.error(call, refused.status, refused.error, refused.message)
        permission = _permission(call)
        if permission is not None and not self.gate.permits(permission):
            return self.error(call, 403, "Forbidden", "Access is denied")
        match call.kind:
            case "refresh":
                return _json(200, {"token": self.gate.issue(self.now_ms())})
            case "permissions":
                return self._permission_check(call)
            case "read":
                return self._read_back(call)
            case "devices":
                return self._linked_devices(call)
        return self._judge_write(call)

    def _judge_content_type(self, call: Call) -> Answer | None:
        media, _, parameters = call.headers.get("content-type", "").partition(";")
        charset = parameters.strip().lower().replace('"', "")
        if media.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
            self.violation(call, "content type must be application/json")
        elif call.headers.get("content-encoding", "identity").lower() != "identity":
            self.violation(call, "compressed request")
        else:
            return None
        return self.error(call, 415, "Unsupported Media Type", "Content type is not supported")

    def _judge_write(self, call: Call) -> Answer | None:
        switches, size, count = self.switches, len(call.body), len(call.records)
        if size > LEGAL_BYTES:
            shown = f"more than {READ_LIMIT}" if size > READ_LIMIT else str(size)
            self.violation(call, f"body of {shown} bytes, {LEGAL_BYTES} are allowed")
        if count > LEGAL_RECORDS:
            self.violation(call, f"{count} items, {LEGAL_RECORDS} are allowed")
        max_bytes, max_records = switches.one_mb, switches.events_max_records
        if call.kind == "transactions":
            max_bytes = switches.transactions_max_bytes or switches.one_mb
            max_records = switches.transactions_max_records
        if size > max_bytes:
            return self.error(call, switches.over_size_status, None, "Request body is too large")
        if call.parse_error is not None:
            self.violation(call, "body is not " + ("an array of JSON objects" if call.is_batch else "JSON"))
            return self.error(
                call, 400, "Bad Request", f"JSON parse error: {call.parse_error}; nested exception is ..."
            )
        if count > max_records:
            return self.error(call, switches.over_count_status, None, f"At most {max_records} items are allowed")
        if count == 0:
            self.violation(call, "empty batch")
            return self.error(call, 400, "Bad Request", "The batch must not be empty")
        if not self._within_rate(count):
            return self.error(call, 429, None, "Too many requests", {"Retry-After": "1"})
        if call.kind == "events" and len(self._counting_types(call)) > 1:
            self.violation(call, "mixed identifier types: " + ", ".join(sorted(self._counting_types(call))))
            message = "All events must use the same type of profile identifier"
            return self.error(call, 400, "Bad Request", message)
        self._judge_records(call)
        denies = call.kind == "events" and switches.denied and switches.denied_events == "403"
        if denies and any(map(self._is_denied, _kept(call))):
            return self.error(call, 403, "Forbidden", "Event is not allowed for this API key")
        return None

    def _counting_types(self, call: Call) -> set[str]:
        """Identifier types in the batch, as the `identifiers` switch reads them (API.md 4.2)."""
        if self.switches.identifiers == "same-keys":
            return set(call.identifiers) - {""}
        first = {next((key for key in rules.CLIENT_KEYS if key in type_.split("+")), "") for type_ in call.identifiers}
        return first - {""}

    def _judge_records(self, call: Call) -> None:
        for index, record in enumerate(call.records):
            if call.kind == "profiles":
                problems = profiles.check_profile(record)
            else:
                problems = self._judge_record(call, index, record)
            if problems:
                call.problems[index] = problems
                self._complain(call, index, (f"{p.field}: {p.message}" for p in problems))

    def _judge_record(self, call: Call, index: int, record: Any) -> list[Problem]:
        """Problems of one event or transaction; what is illegal though accepted becomes a violation here."""
        raw, is_event = call.raws[index], call.kind == "events"
        null = None
        if b"null" in raw:
            null = rules.null_in(record, "" if is_event else "discountAmount")
            if null is not None and self.switches.nulls == "ignore":
                self._complain(call, index, [f"{null} is null"])
                record = call.records[index] = rules.without_nulls(record)
                null = None
        if is_event:
            problems = rules.check_event(record, call.path_type, self.switches, self.notes)
        else:
            problems = rules.check_transaction(record)
        if null is not None and not any(problem.field == null for problem in problems):
            problems.append(Problem(null, "must not be null"))
        if type(record) is dict:
            self._judge_manners(call, index, record)
        return problems

    def _judge_manners(self, call: Call, index: int, record: Record) -> None:
        """What the API accepts, and a legal client still never sends."""
        if record.get("action") == CHARGE and call.kind == "events":
            self._complain(call, index, ["transaction.charge sent as an event makes no product.buy events"])
        if self.switches.params_email == "accept" and rules.differing_email(record):
            self._complain(call, index, ["params.email differs from client.email"])
        salt = call.salts[index]
        if salt is None:
            self.notes["record without eventSalt"] += 1
        elif len(salt) > 128 or not salt.isascii():
            self.notes["eventSalt longer than 128 characters or not ASCII"] += 1

    def _complain(self, call: Call, index: int, texts: Iterable[str]) -> None:
        where = f"[{index}] " if call.is_batch else ""
        for text in texts:
            self.violation(call, where + text)

    def _within_rate(self, count: int) -> bool:
        rate = self.switches.max_rate
        if not rate:
            return True
        now = self._monotonic()
        # One second's worth is saved up, and a batch may overdraw it: else a large one could never pass.
        self._allowance = min(rate, self._allowance + (now - self._allowed_at) * rate)
        self._allowed_at = now
        if self._allowance <= 0:
            return False
        self._allowance -= count
        return True

    def _is_denied(self, type_and_record: tuple[str, Any]) -> bool:
        type_, record = type_and_record
        action = record.get("action") if type_ == "custom" else EVENT_TYPES[type_].action
        return type_ in self.switches.denied or action in self.switches.denied

    # Storing

    def commit(self, call: Call, refused: dict[int, Problem], *, partial: bool = False) -> Answer:
        """Stores what `judge` let through. `refused` are records a scripted fault makes bad; `partial` asks for 207."""
        bad = {**call.problems, **{index: [problem] for index, problem in refused.items()}}
        if call.kind == "profiles" or (call.kind == "transactions" and self.switches.bad_transactions == 207):
            partial = True
        partial = partial and call.is_batch
        if bad and not partial:
            return self.refuse_records(call, bad)
        now = self.now_ms()
        for index, record in enumerate(call.records):
            if index not in bad:
                self._store(call, index, record, now)
        if bad:
            return Answer(207, partial_body(self.switches, call.path, bad, now))
        return Answer(202)

    def refuse_records(self, call: Call, bad: dict[int, list[Problem]], *, message: str | None = None) -> Answer:
        """400 for records that are bad, in the API's words (API.md 7); `bad` empty: without naming any."""
        problems = [problem for index in bad for problem in bad[index]]
        if problems and all(problem.message.startswith("Missing property") for problem in problems):
            # The API's sample for a missing currency names no field.
            return self.error(
                call, 400, "Bad Request", f"JSON parse error: {problems[0].message}; nested exception is ..."
            )
        body = error_body(
            self.switches,
            call.path,
            400,
            "Bad Request",
            message or "Some fields did not pass validation",
            self.now_ms(),
            bad if call.is_batch else problems,
        )
        return Answer(400, body)

    def _store(self, call: Call, index: int, record: Record, now_ms: int) -> None:
        if call.kind == "profiles":
            profiles.upsert(self.store, record)
            return
        type_ = "transaction" if call.kind == "transactions" else call.path_type or record["type"]
        if call.kind == "transactions":
            action = CHARGE
        else:
            if self.switches.denied and self._is_denied((type_, record)):
                self.dropped += 1
                return
            action = record["action"] if type_ == "custom" else EVENT_TYPES[type_].action
        identifiers = identifiers_of(record["client"], first_only=self.switches.identifiers == "first-key")
        complaints = self.store.put(call.kind, type_, action, record, call.raws[index], identifiers, now_ms)
        self._complain(call, index, complaints)

    # Everything that is no write

    def _login(self, call: Call) -> Answer:
        old = call.path.startswith("/v4/")
        try:
            body = orjson.loads(call.body)
        except orjson.JSONDecodeError:
            body = None
        key = body.get("apiKey") if type(body) is dict else None
        if type(key) is not str or not key:
            self.violation(call, "login without apiKey")
            return self.error(call, 400, "Bad Request", "apiKey must not be null", shape="index" if old else "2022")
        if not self.gate.knows_key(key):
            status = self.switches.wrong_key_status
            return self.error(call, status, None, "Wrong API key", shape="index" if old else "2022")
        return _json(200, {"token": self.gate.issue(self.now_ms())})

    def _server_time(self) -> Answer:
        seconds, ms = divmod(self.now_ms(), 1000)
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        fraction = "" if self.switches.server_time == "seconds" else f".{ms:03d}"
        return _json(200, {"serverTime": f"{text}{fraction}Z"})

    def _permission_check(self, call: Call) -> Answer:
        """Which of these permissions the key has; asked with a token, not with Basic (API.md 2.3)."""
        if not call.headers.get("authorization", "").lower().startswith("bearer "):
            self.violation(call, "permission check without a Bearer token")
            return self.error(call, 401, "Unauthorized", "Full authentication is required")
        try:
            names = msgspec.json.decode(call.body, type=list[str])
        except msgspec.DecodeError:
            self.violation(call, "permission check wants an array of names")
            return self.error(call, 400, "Bad Request", "JSON parse error: expected an array of strings")
        permissions = {name: self.gate.permits(name) for name in names}
        return _json(200, {"businessProfileName": "Stand-in", "permissions": permissions})

    def _read_back(self, call: Call) -> Answer:
        """Events of one profile, newest first (API.md 3)."""
        query = call.query
        try:
            profile = self.store.find(("id", int(call.path.rsplit("/", 1)[1])))
            since = rules.parse_time(query["time[from]"]) if "time[from]" in query else None
            until = rules.parse_time(query["time[to]"]) if "time[to]" in query else None
            limit = int(query.get("limit", "500"))
            if not 1 <= limit <= 500:
                raise ValueError("limit must be between 1 and 500")
        except ValueError as error:
            self.violation(call, str(error))
            return self.error(call, 400, "Bad Request", str(error))
        found = [
            event
            for entry in self.store.entries
            if entry.profile is profile
            and (since is None or entry.instant_ms >= since)
            and (until is None or entry.instant_ms <= until)
            for event in read_back(entry)
            if query.get("action") in (None, event["action"])
        ]
        found.sort(key=lambda event: str(event["time"]), reverse=True)
        return _json(200, found[:limit])

    def _linked_devices(self, call: Call) -> Answer:
        try:
            body = orjson.loads(call.body)
        except orjson.JSONDecodeError:
            body = None
        named = body if type(body) is dict else {}
        missing = [key for key in ("deviceId", "registrationId", "type") if not named.get(key)]
        if missing or named["type"] not in ("android", "ios", "windows"):
            self.violation(call, "device needs deviceId, registrationId and type")
            return self.error(call, 400, "Bad Request", "Some fields did not pass validation")
        return Answer(202)

    def error(
        self,
        call: Call,
        status: int,
        error: str | None,
        message: str,
        headers: dict[str, str] | None = None,
        *,
        shape: str | None = None,
    ) -> Answer:
        """An error in the API's body (API.md 7)."""
        body = error_body(self.switches, call.path, status, error, message, self.now_ms(), shape=shape)
        return Answer(status, body, headers or {})


def _kept(call: Call) -> list[tuple[str, Any]]:
    """Type and record of the good events."""
    return [
        (call.path_type or record["type"], record)
        for index, record in enumerate(call.records)
        if index not in call.problems
    ]


def _permission(call: Call) -> str | None:
    match call.kind, call.is_batch:
        case "events", True:
            return "API_BATCH_EVENTS_CREATE"
        case "events", False:
            return event_permission(call.path_type or "")
        case "transactions", batch:
            return "API_BATCH_TRANSACTION_CREATE" if batch else "API_TRANSACTION_CREATE"
        case "profiles", _:
            return "API_BATCH_CLIENT_CREATE"
        case "read", _:
            return "API_LISTING_BY_CLIENT_EVENTS_READ"
        case "devices", _:
            by_identifier = "/by-" in call.path
            return "API_BY_IDENTIFY_DEVICE_CLIENT_UPDATE" if by_identifier else "API_DEVICE_CLIENT_UPDATE"
    return None


def _json(status: int, value: Any) -> Answer:
    return Answer(status, orjson.dumps(value))
