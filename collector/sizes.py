"""How large a request may be: as configured, and as learned from an upstream that took less."""

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import msgspec

from collector.batcher import Limits
from collector.buffer import Unknown
from collector.config import BatchConfig
from collector.logs import logger
from collector.work import Work

log = logger("lanes")
T = TypeVar("T")

QUIET_MS: Final = 3_600_000
"""A learned limit grows by half after each such time without a refusal for size."""
_RECORDS_MAX, _BYTES_MAX = 1000, 1_000_000  # of any request, whatever is configured (G4)
_NAME: Final = "learned_bytes"


class Store(Protocol):
    """The part of the buffer that remembers limits."""

    async def run(self, unit: Callable[[Work], T], /) -> T: ...


class LearnedSizes:
    """Limits per kind. `load` before use; what is learned survives a restart."""

    def __init__(self, config: BatchConfig, store: Store) -> None:
        self._config = config
        self._store = store
        self._learned: dict[str, int] = {}
        self._changed_ms: dict[str, int] = {}

    async def load(self, boot_ms: int) -> None:
        """Read what an earlier run learned; `boot_ms` is now, by the boot clock."""

        def unit(work: Work) -> Any:
            return work.conn.execute("SELECT value FROM meta WHERE name = ?", (_NAME,)).fetchone()

        row = await self._store.run(unit)
        self._learned = msgspec.json.decode(row[0], type=dict[str, int]) if row else {}
        self._changed_ms = dict.fromkeys(self._learned, boot_ms)

    def limits(self, kind: str, boot_ms: int) -> Limits:
        """Of the next request of this kind."""
        records, size = self._configured(kind)
        learned = self._learned.get(kind)
        while learned is not None and boot_ms - self._changed_ms[kind] >= QUIET_MS:
            learned = learned * 3 // 2 + 1
            self._changed_ms[kind] += QUIET_MS
            self._learned[kind] = learned
            if learned >= size:
                del self._learned[kind], self._changed_ms[kind]
                learned = None
        return Limits(records, size if learned is None else min(size, learned))

    async def learn(self, kind: str, refused_bytes: int, boot_ms: int) -> int:
        """A body of so many bytes was too large: the limit from now on, also after a restart."""
        limit = max(min(refused_bytes // 2, self._learned.get(kind, refused_bytes)), 1)
        self._learned[kind], self._changed_ms[kind] = limit, boot_ms
        encoded = msgspec.json.encode(self._learned).decode()
        try:
            await self._store.run(
                lambda work: (
                    work.conn.execute(
                        "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (_NAME, encoded)
                    ).rowcount
                )
            )
        except Unknown:
            log.warning("sizes.not_stored", kind=kind)  # learned again after a restart
        return limit

    def _configured(self, kind: str) -> tuple[int, int]:
        own = self._config.transactions if kind == "transactions" else self._config.events
        records = own.max_records or self._config.max_records
        size = own.max_bytes or self._config.max_bytes
        return min(records, _RECORDS_MAX), min(size, _BYTES_MAX)
