"""Records into a collector over HTTP, synchronously, until every one of them is durable or refused."""

import http.client
import re
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from collector.connection import connect
from collector.lines import RecordKind
from tracker.wire import ACCEPTED_HEADER, EVENTS_BATCH, PRIORITY_HEADER, TRANSACTIONS_BATCH

PATHS: Final[dict[RecordKind, str]] = {"events": EVENTS_BATCH, "transactions": TRANSACTIONS_BATCH}
_WAIT: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 507})
_REFUSED: Final = frozenset({400, 413, 422})
_FIRST_WAIT_S: Final = 0.25
_LONGEST_WAIT_S: Final = 10.0


class NotACollector(Exception):
    """What answers will never take these records; the message says why and what to do."""


class Refusal(msgspec.Struct):
    """The API's error body, as much of it as we use."""

    message: str = ""
    errors: list[dict[str, object]] = []


class Post:
    """One connection to one collector. Waits, saying so, for one that is away, full or busy."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        note: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
        timeout_s: float = 60.0,
    ) -> None:
        """Raises ValueError when ``url`` is no collector's address."""
        self.url = url
        self._connection, self._prefix = connect(url, timeout_s)
        self._note = note
        self._sleep = sleep
        self._headers = {"Content-Type": "application/json", PRIORITY_HEADER: "bulk"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        self._connection.close()

    def deliver(self, kind: RecordKind, records: Sequence[bytes]) -> dict[int, str]:
        """Returns when each record is on the collector's disk, or refused: index and reason. Raises NotACollector."""
        refused: dict[int, str] = {}
        todo = [list(range(len(records)))]
        while todo:
            part = todo.pop(0)
            status, refusal = self._send(kind, [records[i] for i in part])
            if status == 202:
                continue
            named = _named(refusal, len(part)) if status != 413 else {}
            if named:
                refused |= {part[i]: reason for i, reason in named.items()}
                todo.insert(0, [index for i, index in enumerate(part) if i not in named])
                todo = [rest for rest in todo if rest]
            elif len(part) == 1:
                refused[part[0]] = refusal.message or f"refused with status {status}"
            else:
                middle = len(part) // 2
                todo[:0] = [part[:middle], part[middle:]]
        return refused

    def _send(self, kind: RecordKind, records: Sequence[bytes]) -> tuple[int, Refusal]:
        """202, or what refuses these very records. Everything else is waited out or raised."""
        body = b"[" + b",".join(records) + b"]"
        wait_s = _FIRST_WAIT_S
        is_fresh = self._connection.sock is None
        while True:
            try:
                self._connection.request("POST", self._prefix + PATHS[kind], body, self._headers)
                answer = self._connection.getresponse()
                content = answer.read()
            except ssl.SSLCertVerificationError as error:
                raise NotACollector(f"{self.url}: certificate not accepted: {error.verify_message}") from None
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                if is_fresh:  # a kept connection may have been closed between two requests: that is no outage
                    self._wait(wait_s, f"no answer ({_short(error)})")
                    wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
                is_fresh = True
                continue
            if answer.status == 202:
                self._check_accepted(answer.headers.get(ACCEPTED_HEADER), len(records))
                return 202, Refusal()
            refusal = _refusal(content)
            if answer.status in _REFUSED:
                return answer.status, refusal
            if answer.status not in _WAIT:
                raise NotACollector(self._verdict(answer.status, refusal))
            retry_after = answer.headers.get("Retry-After", "")
            pause_s = float(retry_after) if re.fullmatch(r"\d{1,5}", retry_after, re.ASCII) else wait_s
            self._wait(pause_s, f"{answer.status} {refusal.message or answer.reason}".strip())
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    def _check_accepted(self, accepted: str | None, count: int) -> None:
        # Only the collector's own header says "on disk"; a 202 of the API or of a proxy promises less.
        if accepted is None:
            raise NotACollector(f"{self.url} answers without {ACCEPTED_HEADER}: is it a Tillpost collector?")
        if accepted != str(count):
            raise NotACollector(f"{self.url} accepted {accepted} of {count} records: is something between us?")

    def _verdict(self, status: int, refusal: Refusal) -> str:
        if status in (401, 403):
            return f"{self.url} refuses us ({status} {refusal.message}): set TILLPOST_INGEST_TOKEN to its ingest token"
        return f"{self.url} answers {status} {refusal.message}".rstrip() + ": is it a Tillpost collector?"

    def _wait(self, seconds: float, why: str) -> None:
        self._note(f"waiting for the collector at {self.url}: {why}; next try in {seconds:g} s")
        self._sleep(seconds)


def _refusal(content: bytes) -> Refusal:
    try:
        return msgspec.json.decode(content, type=Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Refusal()


def _named(refusal: Refusal, count: int) -> dict[int, str]:
    """Records an answer names, by index, each with its field and message; never with the rejected value."""
    named: dict[int, str] = {}
    for error in refusal.errors:
        found = re.match(r"\[(\d{1,7})\]\.?(.*)", str(error.get("field", "")), re.ASCII | re.DOTALL)
        if found and int(found[1]) < count:
            reason = ": ".join(filter(None, (found[2], str(error.get("message", "")))))
            earlier = named.get(int(found[1]))
            named[int(found[1])] = f"{earlier}; {reason}" if earlier else reason
    return named


def _short(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
