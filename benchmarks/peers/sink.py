"""One sink for everybody: answers at once in words that all libraries take for success, and knows each event.

It finds an event by its number, whatever the library wraps it in: JSON, gzip, a form, base64, or lines over TCP.
"""

import base64
import contextlib
import functools
import gzip
import json
import re
from typing import Any, Final, NoReturn
from urllib.parse import parse_qs

from benchmarks import lab
from benchmarks.lab import answer_json
from benchmarks.peers.events import MARK

ROOM: Final = 100_000
"""Numbers of events the sink can tell apart."""
ANSWERS, HANGS, STRICT = range(3)
"""What the sink does with a request: takes it; reads it and never answers; refuses it (400) unless it is JSON."""

_NUMBER: Final = re.compile(rb"%s(\d{7})" % MARK.encode())
_BASE64: Final = re.compile(rb'"ue_px": "([\w\-=+/]+)"')  # snowplow's default wrapping
_SUCCESS: Final = answer_json(b'{"status": 1, "code": 200, "error": null}')
_REFUSED: Final = answer_json(
    b'{"status": 0, "code": 400, "message": "not JSON", "error": "not JSON"}', "400 Bad Request"
)


class Counts:
    """What has arrived, in memory that processes share."""

    def __init__(self) -> None:
        self.copies = lab._spawn.RawArray("i", ROOM)
        self._arrived = lab._spawn.RawValue("q")
        self._mode = lab._spawn.RawValue("i")

    @property
    def arrived(self) -> int:
        """How many different events."""
        return int(self._arrived.value)

    @property
    def mode(self) -> int:
        return int(self._mode.value)

    @mode.setter
    def mode(self, mode: int) -> None:
        self._mode.value = mode

    def take(self, body: bytes) -> None:
        for found in _NUMBER.findall(body):
            number = int(found)
            self._arrived.value += not self.copies[number]
            self.copies[number] += 1

    def clear(self) -> None:
        self._arrived.value = 0
        self.copies[:] = [0] * ROOM

    def of(self, numbers: range) -> tuple[int, int]:
        """How many of these arrived, and how many further copies of them."""
        copies = self.copies[numbers.start : numbers.stop]
        arrived = sum(map(bool, copies))
        return arrived, sum(copies) - arrived


class _Everything(lab._Sink):
    """HTTP; or lines of JSON, where the first byte of a connection says so."""

    def __init__(self, counts: Counts, records: Any, requests: Any) -> None:
        super().__init__(records, requests)
        self.counts = counts
        self.lines: bool | None = None

    def data_received(self, data: bytes) -> None:
        if self.lines is None:
            self.lines = data.startswith(b"{")
        if not self.lines:
            return super().data_received(data)
        whole, _, rest = (bytes(self.data) + data).rpartition(b"\n")
        self.data = bytearray(rest)
        if self.counts.mode == STRICT:  # nobody can be told; a reader of lines leaves out what it cannot read
            whole = b"\n".join(line for line in whole.split(b"\n") if _is_json(line))
        return self.counts.take(whole)

    def take(self, body: bytes) -> bytes:
        self.requests.value += 1
        if self.counts.mode == HANGS:
            return b""
        if b"content-encoding: gzip" in self.head:
            body = gzip.decompress(body)
        if self.counts.mode == STRICT and not _is_json(body):
            return _REFUSED
        self.counts.take(body)
        for wrapped in _BASE64.findall(body):
            self.counts.take(base64.urlsafe_b64decode(wrapped))
        return _SUCCESS


def _is_json(body: bytes) -> bool:
    """Whether a body, or the form field it is in, is JSON without NaN and infinities."""
    if body.startswith(b"data="):
        body = parse_qs(body.decode())["data"][0].encode()
    with contextlib.suppress(ValueError):
        json.loads(body, parse_constant=_refuse)
        return True
    return False


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


class Sink(lab.Sink):
    """The process, which may be started again on its port: an outage."""

    def __init__(self) -> None:
        self.counts = Counts()
        super().__init__(functools.partial(_Everything, self.counts))
