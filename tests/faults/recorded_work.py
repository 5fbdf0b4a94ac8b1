"""A run worth recording: everything a buffer does, by several tasks at once.

``python -m tests.faults.recorded_work FOLDER LOG SYNCHRONOUS SEED REQUESTS`` opens the
buffer in FOLDER, which need not exist, takes up what an earlier run that was killed has
left, and marks in LOG what it begins and what has ended.
"""

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from collector import deadletters, search
from collector.batcher import Aside, Batch, Dead, Delivered, Fate, Gate, Limits
from collector.buffer import Buffer
from collector.database import Synchronous
from tests.collector.buffers import parcel
from tests.faults.disk import mark, read
from tests.faults.oracle import LANES, NOW_MS, Journal, is_ahead, judge, lane_of, name_of, record_of

FILE: Final = "data/tillpost.db"
MAX_SIZE: Final = 8 * 1024 * 1024
"""Small, so that the log goes round often."""
WRITERS: Final = 3
GATE: Final = Gate(now_ms=NOW_MS, margin_ms=2000)
BACKLOG: Final = 400
FATES: Final = {"delivered": 90, "dead": 4, "aside": 6}
"""How often a taken record meets which fate, in a hundred."""


class Work:
    """Tasks on one buffer. Each record and each order key is in one task's hands at a time."""

    def __init__(self, folder: Path, log: Path, synchronous: Synchronous, seed: int) -> None:
        self.path = folder / FILE
        self.synchronous = synchronous
        self.chance = random.Random(seed)
        self.journal = Journal()
        entries = read(log) if log.exists() else []
        for entry in entries:
            if entry.kind == "k":
                self.journal.apply(entry.payload)
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.step = sum(entry.kind == "k" for entry in entries)
        self.versions: dict[int, int] = {}
        for name in self.journal.states:
            self._known(name)
        for moves in self.journal.begun.values():
            for name in [name for names in moves.values() for name in names]:
                self._known(name)
        self.busy: set[str] = set()
        """Keys whose records somebody is moving."""
        self.requests = 0
        self.stop = False

    def _known(self, name: str) -> None:
        key, _, version = name.partition(".")
        self.versions[int(key)] = max(self.versions.get(int(key), 0), int(version))

    def _mark(self, **fields: object) -> None:
        payload = json.dumps(fields).encode()
        self.journal.apply(payload)
        mark(self.log, payload)

    @asynccontextmanager
    async def moving(self, moves: dict[str, list[str]]) -> AsyncIterator[None]:
        """What happens inside gives records these states; a step like any other."""
        self.step += 1
        step = self.step
        self._mark(begin=step, moves=moves)
        yield
        self._mark(end=step)

    async def open(self) -> None:
        self.buffer = await Buffer.open(self.path, max_size=MAX_SIZE, synchronous=self.synchronous)
        if self.journal.begun:
            verdict = await judge(self.buffer, self.journal)
            assert not verdict.faults, verdict.faults
            # a commit makes certain what the killed run had written and not synced
            await self.append(self._names(1))
            for step in list(self.journal.begun):
                self._mark(**{"end" if step in verdict.done else "void": step})

    # -- what is done ---------------------------------------------------------------------------

    def _names(self, count: int) -> list[str]:
        """Names of new records."""
        names = []
        for _ in range(count):
            key = len(self.versions)
            self.versions[key] = 0
            names.append(f"{key}.0")
        return names

    async def append(self, names: Sequence[str], superseded: Sequence[str] = ()) -> None:
        parcels = [
            parcel([record_of(name) for name in names if lane_of(name) == lane], lane)
            for lane in LANES
            if any(lane_of(name) == lane for name in names)
        ]
        async with self.moving({"pending": list(names), "superseded": list(superseded)}):
            await self.buffer.append(parcels)

    def _newer(self, dead: Sequence[str]) -> tuple[str, list[str]]:
        """The next version of one of these dead letters, and those that it supersedes."""
        key = _key(self.chance.choice(dead))
        self.versions[int(key)] += 1
        return f"{key}.{self.versions[int(key)]}", [name for name in dead if _key(name) == key]

    async def write(self) -> None:
        """Requests of mixed lanes, now and then with another version of a dead letter."""
        while not self.stop:
            while self.buffer.ledger()["pending"] > BACKLOG:
                await asyncio.sleep(0)
            self.requests += 1
            names = self._names(self.chance.choice((1, 1, 3, 10, 40)))
            dead = [name for name in self._in_state("dead") if _key(name) not in self.busy]
            superseded: list[str] = []
            if dead and self.chance.random() < 0.3:
                newer, superseded = self._newer(dead)
                names.append(newer)
                self.busy.add(_key(newer))
            await self.append(names, superseded)
            self.busy -= {_key(name) for name in superseded}

    async def deliver(self, number: int) -> None:
        """Takes batches of one lane and gives their records their fates, not always all of them."""
        lane = LANES[number]
        while not self.stop:
            taken = await self.buffer.take(lane, Limits(self.chance.randrange(1, 120), 60_000), GATE)
            if not isinstance(taken, Batch):
                await asyncio.sleep(0.001)
                continue
            left = list(range(taken.count))
            while left and not self.stop:
                some = self.chance.sample(left, self.chance.randrange(1, len(left) + 1))
                left = [i for i in left if i not in some]
                await self._settle(taken, some)
                if self.chance.random() < 0.2:
                    break
            self.buffer.release(taken)

    async def _settle(self, taken: Batch, some: list[int], fated: Mapping[str, int] = FATES) -> None:
        names = {i: name_of(taken.record(i)) for i in some}
        fates: list[tuple[Batch, Fate]] = []
        moves: dict[str, list[str]] = {"delivered": [], "dead": []}
        buried: set[str] = set()
        kinds = self.chance.choices(list(fated), list(fated.values()), k=len(some))
        delivered = []
        for i, kind in zip(some, kinds, strict=True):
            key = _key(names[i])
            if kind == "dead" and key not in self.busy | buried:
                fates.append((taken.pick([i]), Dead("refused", 400, "no")))
                moves["dead"].append(names[i])
                buried.add(key)
            elif kind == "aside":
                due_ms = self.buffer.clock.boot_ms() + self.chance.randrange(100)
                fates.append((taken.pick([i]), Aside("parked", due_ms)))
            else:
                delivered.append(i)
        if delivered:
            fates.append((taken.pick(delivered), Delivered()))
            moves["delivered"] = [names[i] for i in delivered]
        self.busy |= buried
        async with self.moving(moves):
            await self.buffer.settle(fates)
        self.busy -= buried

    async def operate(self) -> None:
        """Retries and discards dead letters, and forgets somebody whose record waits aside."""
        while not self.stop:
            await asyncio.sleep(0.005)
            letters = [name for name in self._in_state("dead", "superseded") if _key(name) not in self.busy]
            if len(letters) > 8:
                chosen = self.chance.sample(letters, self.chance.randrange(1, 5))
                keys = {_key(name) for name in chosen}
                self.busy |= keys
                ids = await self._ids(chosen)
                retry = self.chance.random() < 0.7
                async with self.moving({"pending" if retry else "discarded": chosen}):
                    if retry:
                        await deadletters.retry(self.buffer, ids, force=True)
                    else:
                        await deadletters.discard(self.buffer, ids)
                self.busy -= keys
            ahead = [name for name in self._in_state("pending") if is_ahead(name)]
            if len(ahead) > 20 and self.chance.random() < 0.1:
                name = self.chance.choice(ahead)
                async with self.moving({"discarded": [name]}):
                    await search.forget(self.buffer, search.Query(salt=f"k{_key(name)}"))

    async def _leave_some(self) -> None:
        """Leave a dead letter and a superseded one for certain, where chance has left none."""
        await self._bury()
        if not self._in_state("superseded"):
            newer, superseded = self._newer(self._in_state("dead"))
            await self.append([newer], superseded)
            await self._bury()

    async def _bury(self) -> None:
        while not self._in_state("dead"):
            taken = await self.buffer.take(self.chance.choice(LANES), Limits(1, 60_000), GATE)
            if isinstance(taken, Batch):
                await self._settle(taken, [0], {"dead": 1})
                self.buffer.release(taken)

    async def _ids(self, names: Sequence[str]) -> list[int]:
        rows = await self.buffer.run(lambda work: work.conn.execute("SELECT id, body FROM dead").fetchall())
        return [letter for letter, body in rows if name_of(body) in names]

    def _in_state(self, *states: str) -> list[str]:
        return [name for name, state in self.journal.states.items() if state in states]

    # -- all together ---------------------------------------------------------------------------

    async def go(self, requests: int) -> None:
        """Work until so many requests are accepted, once more after a clean stop."""
        for _ in range(2):
            await self.open()
            self.stop, self.requests = False, 0
            tasks = [self.write() for _ in range(WRITERS)]
            tasks += [self.deliver(number) for number in range(len(LANES))]
            tasks += [self.operate(), self._until(requests // 2)]
            await asyncio.gather(*tasks)
            await self._leave_some()
            await self.buffer.close()

    async def _until(self, requests: int) -> None:
        while self.requests < requests:
            await asyncio.sleep(0.001)
        self.stop = True


def _key(name: str) -> str:
    return name.partition(".")[0]


if __name__ == "__main__":
    folder, log, synchronous, seed, requests = sys.argv[1:]
    asyncio.run(Work(Path(folder), Path(log), synchronous, int(seed)).go(int(requests)))  # type: ignore[arg-type]
