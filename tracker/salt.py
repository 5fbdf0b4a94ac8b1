"""`eventSalt`: with time, client and action it makes a resend overwrite instead of duplicate.

A salt belongs to one record for ever: never use it for another client or another action
(API reference, Time and eventSalt).
"""

import hashlib
import os
import re
import threading
from collections.abc import Callable
from typing import Final

from tracker.checks import kind_of, text
from tracker.errors import InvalidRecord

Salts = Callable[[int], str]
"""Makes the salt of a record stamped at so many milliseconds since 1970."""

_POOL: Final = 256  # salts per system call
_DIGITS: Final = 15  # 60 random bits beside the millisecond and the counter


class TimeOrdered:
    """Salts in the form of a UUID version 7: sorted by time, each larger than the last, random at the end.

    Unique across threads and processes; a forked child must `reseed`, or it draws what its parent draws.
    """

    def __init__(self) -> None:
        self.reseed()

    def reseed(self) -> None:
        self._lock = threading.RLock()  # a signal handler may track while we are in here
        self._tails: list[str] = []
        self._ms, self._head, self._count = -1, "", 0

    def __call__(self, ms: int) -> str:
        with self._lock:
            if ms > self._ms:
                self._begin(ms)
            elif self._count == 0xFFF:  # the same millisecond, or a clock set back: count on
                self._begin(self._ms + 1)
            self._count += 1
            try:
                tail = self._tails.pop()
            except IndexError:
                self._tails = _tails()
                tail = self._tails.pop()
            return f"{self._head}{self._count:03x}{tail}"

    def _begin(self, ms: int) -> None:
        digits = f"{ms:012x}"
        self._ms, self._head, self._count = ms, f"{digits[:8]}-{digits[8:12]}-7", 0


def _tails() -> list[str]:
    """The random ends of the next salts, with version 7's variant in front."""
    digits = os.urandom(_POOL * _DIGITS // 2).hex()
    drawn = (digits[at : at + _DIGITS] for at in range(0, len(digits), _DIGITS))
    return [f"-8{random[:3]}-{random[3:]}" for random in drawn]


fresh: Final = TimeOrdered()
"""The salts of this process."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=fresh.reseed)


def derive(*parts: str | int, prefix: str = "") -> str:
    """The salt that belongs to a natural key: ``derive("T-07", 123)`` is always the same text.

    Parts cannot run into each other: ``("ab", "c")``, ``("a", "bc")``, ``("abc",)``, ``(1,)`` and ``("1",)``
    give five salts. A `prefix` of up to 64 printable ASCII characters is kept readable in front.
    Name the kind of record among the parts: a sale and its cancellation need two salts.
    """
    if not parts:
        raise InvalidRecord("parts", "must hold at least one str or int")
    if not isinstance(prefix, str) or not re.fullmatch(r"[\x20-\x7e]{0,64}", prefix):
        raise InvalidRecord("prefix", "must be at most 64 printable ASCII characters", prefix)
    digest = hashlib.blake2b(digest_size=16, person=b"tillpost-salt")
    for index, part in enumerate(parts):
        if isinstance(part, bool) or not isinstance(part, (str, int)):
            raise InvalidRecord(f"parts[{index}]", f"must be str or int, not {kind_of(part)}", part)
        tag, content = (b"s", text(part, f"parts[{index}]").encode()) if isinstance(part, str) else (b"i", b"%d" % part)
        digest.update(tag + len(content).to_bytes(8, "big") + content)
    return f"{prefix}-{digest.hexdigest()}" if prefix else digest.hexdigest()
