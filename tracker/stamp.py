"""The stamp: a record gets its time and salt once, and becomes the bytes every attempt sends."""

from collections.abc import Callable
from typing import Final

import msgspec

from tracker import wire
from tracker.errors import InvalidRecord
from tracker.receipt import Receipt
from tracker.record import Record, encode
from tracker.salt import Salts
from tracker.time import Clock, datetime_ms, format_ms

MAX_BODY: Final = 1_000_000
"""Bytes of one request, here as upstream (API reference, Endpoints in scope)."""
_STEP_MS: Final = 500  # above it the clock was set; below it drifts or is slewed

Redact = Callable[[dict[str, object]], dict[str, object]]
"""Takes out of a record what must not be sent."""


class _Stamp(msgspec.Struct, rename="camel"):
    event_salt: str
    time: str = ""
    recorded_at: str = ""


class Stamper:
    """Stamps records with one clock, and notices when that clock is set."""

    def __init__(self, clock: Clock, salts: Salts) -> None:
        self.clock: Clock = clock
        self._salts: Salts = salts
        self._offset_ms = clock.wall_ms() - clock.boot_ms()

    def stamp(self, record: Record, redact: Redact | None = None) -> Receipt:
        """The record, encoded once and for all. Raises `InvalidRecord` when no request could hold it."""
        clock, offset_ms = self.clock, self._offset_ms
        wall_ms = clock.wall_ms()
        if abs(wall_ms - clock.boot_ms() - offset_ms) > _STEP_MS:
            wall_ms, offset_ms = self._look_again()
        given = record.time
        time = format_ms(wall_ms if given is None else datetime_ms(given))
        salt = record.salt or self._salts(wall_ms)
        body = record._encoded(time, salt) if redact is None else encode(redact(record.wire(time, salt)))
        if len(body) > MAX_BODY - 2:
            raise InvalidRecord("record", f"must encode to at most {MAX_BODY - 2} bytes: no request could hold it")
        return Receipt(record.path, body, time, salt, given is not None, offset_ms)

    def again(self, path: str, body: bytes) -> Receipt:
        """A record that was stamped and encoded earlier, maybe in another process: its time counts as given."""
        said = msgspec.json.decode(body, type=_Stamp)
        time, salt = said.time or said.recorded_at, said.event_salt
        return Receipt(path, body, time, salt, True, self._offset_ms)

    def _look_again(self) -> tuple[int, int]:
        """Wall time and offset, once the thread was not interrupted between looking at the two clocks."""
        for _ in range(10):
            before = self.clock.boot_ms()
            wall_ms = self.clock.wall_ms()
            if self.clock.boot_ms() - before <= _STEP_MS // 10:
                break
        if abs(wall_ms - before - self._offset_ms) > _STEP_MS:
            self._offset_ms = wall_ms - before
        return wall_ms, self._offset_ms


def clock_header(clock: Clock, receipts: list[Receipt]) -> str:
    """How the clock stood when these records, all of one offset, were stamped."""
    given: list[range] = []
    for at in [at for at, receipt in enumerate(receipts) if receipt._given]:
        if given and given[-1].stop == at:
            given[-1] = range(given[-1].start, at + 1)
        else:
            given.append(range(at, at + 1))
    header = wire.ClockHeader(clock.boot_id(), receipts[0]._offset_ms, clock.boot_ms(), tuple(given))
    return header.encode()
