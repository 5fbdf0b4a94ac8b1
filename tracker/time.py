"""Time on the wire, and the clocks it comes from.

The API takes ISO 8601 with an offset; we always write UTC with milliseconds and ``Z``
(API reference, Events: `time`; Transactions: `recordedAt`). What other clients send is
understood and never rewritten.
"""

import re
import time as _time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, Protocol

_FOREIGN: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """Where time comes from; tests pass their own."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970 by the machine's clock, which may be wrong."""
        ...

    def boot_ms(self) -> int:
        """Milliseconds since the machine started, suspended time included; never set, never back."""
        ...

    def boot_id(self) -> str:
        """Names this run of the machine; another one after every reboot."""
        ...


class SystemClock:
    """The machine's clocks."""

    def __init__(self) -> None:
        # Without a boot id (macOS, Windows) a process is its own boot: stamps of an earlier
        # process then count as an earlier boot, which is true of what we know about them.
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123  pathlib is slow to load
                self._boot_id = file.read().strip()
        except OSError:
            self._boot_id = str(uuid.uuid4())
        boot_clock = getattr(_time, "CLOCK_BOOTTIME", None)
        self._boot_ns: Callable[[], int] = (
            _time.monotonic_ns if boot_clock is None else partial(_time.clock_gettime_ns, boot_clock)
        )

    def wall_ms(self) -> int:
        return _time.time_ns() // 1_000_000

    def boot_ms(self) -> int:
        return self._boot_ns() // 1_000_000

    def boot_id(self) -> str:
        return self._boot_id


_cached_second: tuple[int, str] = (-1, "")
_cached_ms: tuple[int, str] = (-1, "")


def format_ms(ms: int) -> str:
    """Milliseconds since 1970 as ``2026-05-04T09:53:56.999Z``."""
    global _cached_second, _cached_ms
    known, text = _cached_ms
    if ms == known:
        return text
    second, milli = divmod(ms, 1000)
    known, text = _cached_second
    if second != known:
        text = (_EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
        _cached_second = (second, text)  # one tuple, so that threads see both halves or neither
    text = f"{text}.{milli:03d}Z"
    _cached_ms = (ms, text)
    return text


def parse_ms(text: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 time with offset; finer fractions are cut off.

    Raises ValueError, saying what is wrong, for a time without offset or out of range.
    """
    found = _FOREIGN.fullmatch(text)
    if found is None:
        if _FOREIGN.fullmatch(text + "Z"):
            raise ValueError("a time needs an offset: add Z or +hh:mm")
        raise ValueError("a time looks like 2026-05-04T09:53:56.999Z (ISO 8601 with Z or +hh:mm)")
    year, month, day, hour, minute, second, fraction, zone = found.groups()
    try:
        naive = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second))
    except ValueError as error:
        raise ValueError(f"not a time: {error}") from None
    ms = (naive - datetime(1970, 1, 1)) // timedelta(milliseconds=1)
    ms += int((fraction or "0").ljust(3, "0")[:3])
    if zone not in "Zz":
        hours, minutes = int(zone[1:3]), int(zone[4:6])
        if hours > 23 or minutes > 59:
            raise ValueError(f"not an offset: {zone}")
        ms -= (1 if zone[0] == "+" else -1) * (hours * 60 + minutes) * 60_000
    return ms


def datetime_ms(value: datetime) -> int:
    """Milliseconds since 1970 of an aware datetime. Raises ValueError for a naive one."""
    if value.tzinfo is None or value.utcoffset() is None:
        raise ValueError(
            "a naive datetime does not say which hour it means: give it a time zone, "
            "for example datetime.now(timezone.utc)"
        )
    return (value - _EPOCH) // timedelta(milliseconds=1)
