"""What was wrong with our clocks: the true time of each boot, as it stands on disk.

While a machine runs, wall time minus time since boot is constant unless somebody sets the
clock. So the true time of a stamp follows from when, since boot, it was made.

Rows of ``clock`` and ``boots`` are committed before any record they govern is sent. They never
change, and a new one governs only stamps later than all that may have been sent: the corrected
time is a pure function of the disk, and a resend after a crash is byte-identical.
"""

import sqlite3
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

import msgspec

from tracker.time import parse_ms

RELEASED_MS: Final = parse_ms("2026-11-01T00:00:00Z")
"""When this version was released: a clock that shows an earlier time is certainly wrong."""
_LATEST_MS: Final = 253_402_300_799_999  # the end of year 9999


class Row(NamedTuple):
    """The true time of a boot of ours, from a moment on."""

    from_boot_ms: int
    """Time since boot of the first stamp it governs; the first row governs all before it too."""
    offset_ms: int
    """True time minus time since boot."""
    tolerance_ms: int
    """Smaller errors are left as they are. Kept here, so that a new configuration changes nothing already sent."""


class Stance(NamedTuple):
    """How the boot clock of another machine stands to one of ours, from a moment on."""

    from_boot_ms: int
    """By the other machine's boot clock; the first stance governs all before it too."""
    own_boot: str
    ahead_ms: int
    """How far the other boot clock runs ahead of ours."""


R = TypeVar("R", Row, Stance)


def _governing(parts: Sequence[R], at_ms: int) -> int:
    return max(bisect_right(parts, at_ms, key=lambda part: part.from_boot_ms) - 1, 0)


@dataclass(frozen=True)
class Corrections:
    """The true time of each boot. Immutable: what is on disk at one moment."""

    rows: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    """Per boot of ours, in order."""
    boots: Mapping[str, tuple[Stance, ...]] = field(default_factory=dict)
    """Per boot of another machine, in order."""

    def corrected_ms(self, boot: str, offset_ms: int, stamped_ms: int) -> int:
        """The time a stamp made at `stamped_ms`, with wall minus boot clock at `offset_ms`, should have had."""
        at_boot_ms = stamped_ms - offset_ms
        if stances := self.boots.get(boot):
            _, boot, ahead_ms = stances[_governing(stances, at_boot_ms)]
            at_boot_ms -= ahead_ms
        rows = self.rows.get(boot)
        if not rows:
            return stamped_ms
        row = rows[_governing(rows, at_boot_ms)]
        true_ms = at_boot_ms + row.offset_ms
        if abs(true_ms - stamped_ms) <= row.tolerance_ms or not 0 <= true_ms <= _LATEST_MS:
            return stamped_ms
        return true_ms

    def concerns(self, boot: str, offset_ms: int, latest_ms: int) -> bool:
        """Whether any stamp made up to `latest_ms`, under the same clock, may have to be repaired."""
        at_boot_ms = latest_ms - offset_ms
        stances = self.boots.get(boot)
        known = stances[: _governing(stances, at_boot_ms) + 1] if stances else (Stance(0, boot, 0),)
        for _, own, ahead_ms in known:
            rows = self.rows.get(own, ())
            for row in rows[: _governing(rows, at_boot_ms - ahead_ms) + 1]:
                # true minus stamped time is the same for all stamps that a row governs
                if abs(row.offset_ms - offset_ms - ahead_ms) > row.tolerance_ms:
                    return True
        return False

    def knows(self, boot: str) -> bool:
        """Whether the true time of this boot is known or estimated."""
        stances = self.boots.get(boot)
        return all(own in self.rows for _, own, _ in stances) if stances else boot in self.rows


class Boot(msgspec.Struct, frozen=True):
    """One run of this machine, as it is remembered for later."""

    boot: str
    offset_ms: int
    """Wall minus boot clock, as last seen."""
    alive_ms: int
    """Time since boot, as last seen."""


class History(msgspec.Struct, frozen=True):
    """What is remembered to estimate boots that ended before the true time was known."""

    current: Boot | None = None
    ended: tuple[Boot, ...] = ()
    """Boots without a row, oldest first."""
    good_ms: int | None = None
    """The latest true time ever known."""
    estimated: int = 0
    """Boots whose true time could only be estimated."""


def load_corrections(conn: sqlite3.Connection) -> Corrections:
    """Everything that is known of true times."""
    rows: dict[str, list[Row]] = {}
    for boot, *row in conn.execute(
        "SELECT boot, from_boot_ms, offset_ms, tolerance_ms FROM clock ORDER BY boot, from_boot_ms"
    ):
        rows.setdefault(boot, []).append(Row(*row))
    boots: dict[str, list[Stance]] = {}
    for boot, *stance in conn.execute(
        "SELECT boot, from_boot_ms, own_boot, ahead_ms FROM boots ORDER BY boot, from_boot_ms"
    ):
        boots.setdefault(boot, []).append(Stance(*stance))
    return Corrections(
        {boot: tuple(found) for boot, found in rows.items()}, {boot: tuple(found) for boot, found in boots.items()}
    )


def add_row(conn: sqlite3.Connection, boot: str, row: Row) -> None:
    """From now on this is the true time of a boot. What a commit of unknown outcome left there already stays."""
    conn.execute(
        "INSERT OR IGNORE INTO clock (boot, from_boot_ms, offset_ms, tolerance_ms) VALUES (?, ?, ?, ?)", (boot, *row)
    )


def put_stance(conn: sqlite3.Connection, boot: str, stance: Stance) -> None:
    """Remember how another machine's boot clock stands to ours."""
    conn.execute(
        "INSERT OR REPLACE INTO boots (boot, from_boot_ms, own_boot, ahead_ms) VALUES (?, ?, ?, ?)", (boot, *stance)
    )


def forget_boots(conn: sqlite3.Connection, but: str, more_than: int) -> None:
    """Drop what is known of other boots once there are `more_than` and no stored record can need it."""
    known = conn.execute("SELECT (SELECT count(*) FROM clock) + (SELECT count(*) FROM boots)").fetchone()[0]
    stored = conn.execute("SELECT 1 FROM lanes WHERE pending UNION ALL SELECT 1 FROM dead LIMIT 1").fetchone()
    if known > more_than and stored is None:
        conn.execute("DELETE FROM clock WHERE boot <> ?", (but,))
        conn.execute("DELETE FROM boots")


def load_history(conn: sqlite3.Connection) -> History:
    row = conn.execute("SELECT value FROM meta WHERE name = 'clock_history'").fetchone()
    return msgspec.json.decode(row[0], type=History) if row else History()


def save_history(conn: sqlite3.Connection, history: History) -> None:
    encoded = msgspec.json.encode(history).decode()
    conn.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('clock_history', ?)", (encoded,))


def estimates(
    ended: tuple[Boot, ...], good_ms: int | None, next_started_ms: int, error_ms: int = 0
) -> list[tuple[Boot, int]]:
    """True time minus time since boot for boots nobody measured, oldest first.

    Each lies between the last time known to be true and the start of the next boot. A clock that
    was `error_ms` slow in that next boot is thought to have been so before, else its own time is
    believed, where that fits; otherwise the middle is taken, or, where nothing was ever known,
    the latest possible.
    """
    found: list[tuple[Boot, int]] = []
    for boot in reversed(ended):
        latest = next_started_ms - boot.alive_ms
        earliest = min(good_ms, latest) if good_ms is not None else None
        lowest = max(earliest or 0, RELEASED_MS - boot.alive_ms)
        fitting = (since for since in (boot.offset_ms + error_ms, boot.offset_ms) if lowest <= since <= latest)
        middle = latest if earliest is None else (earliest + latest) // 2
        next_started_ms = next(fitting, middle)
        found.append((boot, next_started_ms))
    return found[::-1]
