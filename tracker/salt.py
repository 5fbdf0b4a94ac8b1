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

_DRAW: Final = 10  # bytes of entropy for one salt
_POOL: Final = 400 * _DRAW  # one system call for 400 salts


class TimeOrdered:
    """Salts in the form of a UUID version 7: sorted by time, random beyond it, each larger than the last.

    Unique across threads and processes; a forked child must `reseed`, or it draws what its parent draws.
    """

    def __init__(self) -> None:
        self.reseed()

    def reseed(self) -> None:
        self._lock = threading.RLock()  # a signal handler may track while we are in here
        self._pool, self._next = b"", 0
        self._ms, self._random = 0, 0

    def __call__(self, ms: int) -> str:
        with self._lock:
            if self._next == len(self._pool):
                self._pool, self._next = os.urandom(_POOL), 0
            drawn = int.from_bytes(self._pool[self._next : self._next + _DRAW], "big")
            self._next += _DRAW
            if ms > self._ms:
                # 73 of 74 random bits, so that counting up has room for 2**41 steps in one millisecond.
                self._ms, self._random = ms, drawn & (1 << 73) - 1
            else:  # the same millisecond, or a clock set back: a random step up
                self._random += 1 + (drawn & 0xFFFFFFFF)
            ms, random = self._ms, self._random
        digits = f"{ms:012x}7{random >> 62:03x}{1 << 63 | random & (1 << 62) - 1:016x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


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
