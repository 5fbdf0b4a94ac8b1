"""`eventSalt`: with time, client and action it makes a resend overwrite instead of duplicate.

A salt belongs to one record for ever: never use it for another client or another action
(API reference, Time and eventSalt).
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from itertools import product
from typing import Final

from tracker.checks import kind_of, text
from tracker.errors import InvalidRecord

Salts = Callable[[int], str]
"""Makes the salt of a record stamped at so many milliseconds since 1970."""

_HEX: Final = tuple("0123456789abcdef")


class _Last:
    """The millisecond of a thread's last salt, and the salts of it that are left."""

    __slots__ = ("ms", "rest")

    def __init__(self) -> None:
        self.ms: int = -1
        self.rest: Iterator[str] = iter(())


class TimeOrdered(threading.local):
    """Salts in the form of a UUID version 7: sorted by time, each larger than the thread's last, random at the end.

    Within a millisecond a counter tells a thread's salts apart; the 60 random bits behind it, drawn anew each
    millisecond, are no other thread's or process's. A forked child must `reseed`, or it goes on with its parent's.
    """

    def __init__(self) -> None:  # once in each thread
        self.reseed()

    def reseed(self) -> None:
        self._last = _Last()

    def at(self, ms: int) -> str:
        """The salt of a record stamped at so many milliseconds since 1970."""
        last = self._last  # looked up once: what is local to a thread is slow to find
        if ms <= last.ms:  # the same millisecond, or a clock set back: count on
            for salt in last.rest:
                return salt
            ms = last.ms + 1
        last.ms, last.rest = ms, _salts_of(ms)
        return next(last.rest)


def _salts_of(ms: int) -> Iterator[str]:
    """All salts of a millisecond, in order."""
    time, random = f"{ms:012x}", os.urandom(8).hex()
    head, tail = f"{time[:8]}-{time[8:]}-7", f"-8{random[:3]}-{random[3:15]}"
    return map("".join, product((head,), _HEX, _HEX, _HEX, (tail,)))


_ours: Final = TimeOrdered()
fresh: Final[Salts] = _ours.at
"""The salts of this process."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ours.reseed)


def derive(*parts: str | int, prefix: str = "") -> str:
    """The salt that belongs to a natural key: ``derive("T-07", 123)`` is always the same text.

    Parts cannot run into each other: ``("ab", "c")``, ``("a", "bc")``, ``("abc",)``, ``(1,)`` and ``("1",)``
    give five salts. A `prefix` of up to 64 printable ASCII characters is kept readable in front.
    Name the kind of record among the parts: a sale and its cancellation need two salts.
    """
    import hashlib  # OpenSSL and all: a tenth of what `import tracker` would cost

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
