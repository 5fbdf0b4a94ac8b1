"""Small requests that come at the same moment are read and stored as one.

What a request of one record costs is hardly ever its record: looking at columns, entering the queue, a task. So those
that come in one turn of the loop, or while earlier ones are being stored, share all of that. Where anything about any
of them is unusual, or there is no room for all, each is taken by itself: the answers are the same as if they had come
alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from collector.admission import Full
from collector.familiar import Done, Known
from collector.ingest import Ingest, Intake
from collector.kinds import Parcel
from tracker.wire import CLOCK_HEADER, PRIORITY_HEADER

BODY_MAX: Final = 16 * 1024
"""Bytes of a body worth sharing; larger ones are read as fast by themselves."""
TURN_MAX: Final = 128
"""Requests read as one: what the loop does at a stretch stays under some milliseconds."""
GATHER_S: Final = 0.0015
"""When requests came while others were being stored, more are on their way: they are waited for until the first has
waited so long. Whoever waits for an answer before asking again never meets this."""
ENOUGH: Final = 3
"""Where so many wait already they need not wait for more."""


class Asked(NamedTuple):
    """A request, and whom to tell."""

    known: Known
    body: bytes
    done: Done


class Together:
    """Collects requests until the ones before are stored.

    Args:
        store: keeps parcels; returns when they are durable, or raises.
        accepted: answers a request of so many records.
        alone: takes one request by itself, and answers it.
        failed: answers a request that met an exception.
    """

    def __init__(
        self,
        ingest: Ingest,
        store: Callable[[Sequence[Parcel]], Awaitable[None]],
        accepted: Callable[[Asked, int], None],
        alone: Callable[[Asked], None],
        failed: Callable[[Asked, Exception], None],
    ) -> None:
        self._ingest = ingest
        self._store = store
        self._accepted = accepted
        self._alone = alone
        self._failed = failed
        self._waiting: dict[tuple[str, str | None], list[Asked]] = {}
        self._since = 0.0
        """When the first of them came, by the loop's clock."""
        self._storing = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def takes(self, asked: Asked) -> bool:
        """Whether a request can share; then it is taken."""
        path, headers, length = asked.known
        if length > BODY_MAX or CLOCK_HEADER in headers or not self._ingest.is_batch(path):
            return False
        if not self._waiting:
            loop = asyncio.get_running_loop()
            self._since = loop.time()
            if not self._storing:
                loop.call_soon(self._turn)
        self._waiting.setdefault((path, headers.get(PRIORITY_HEADER)), []).append(asked)
        return True

    def _turn(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for (path, _), all_asked in waiting.items():
            for at in range(0, len(all_asked), TURN_MAX):
                some = all_asked[at : at + TURN_MAX]
                read = self._ingest.read_alike(path, [asked.body for asked in some], some[0].known.headers)
                if read is None:
                    for asked in some:
                        self._alone(asked)
                else:
                    self._storing += 1
                    task = asyncio.create_task(self._keep(some, *read))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def _keep(self, some: Sequence[Asked], intake: Intake, counts: Sequence[int]) -> None:
        try:
            if intake.count:
                await self._store(intake.parcels)
        except Full:  # there may be room for some of them
            for asked in some:
                self._alone(asked)
        except Exception as error:
            for asked in some:
                self._failed(asked, error)
        else:
            for asked, count in zip(some, counts, strict=True):
                self._accepted(asked, count)
        finally:
            self._storing -= 1
            if self._waiting and not self._storing:
                few = sum(map(len, self._waiting.values())) < ENOUGH
                asyncio.get_running_loop().call_at(self._since + (GATHER_S if few else 0), self._turn)
