"""What must be on the disk: the oracle of the power cuts.

A run writes down what it is about to do (*begin*) and, once the buffer has said that it is
done, that it is (*end*). What has ended before the cut must be on the disk to the byte; what
had only begun must be there as a whole or not at all.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from collector.buffer import Buffer
from collector.chunks import Chunk, crc_of
from collector.kinds import Lane
from collector.work import SEQ_BITS, Work
from tests.collector.buffers import BULK, EMAIL, SALES, UUID

LANES: Final = (EMAIL, UUID, BULK, SALES)
AHEAD_EVERY: Final = 29
"""Every so many keys belong to records whose time has not come."""
NOW_MS: Final = 1_767_225_660_000
"""The upstream's clock during the whole run."""
HERE: Final = ("pending", "dead", "superseded")
"""States in which a record is on the disk; pending includes aside."""


def lane_of(name: str) -> Lane:
    """The lane of a record; its name is ``key.version``: versions of one key overwrite each other upstream."""
    return LANES[int(name.partition(".")[0]) % len(LANES)]


def is_ahead(name: str) -> bool:
    return int(name.partition(".")[0]) % AHEAD_EVERY == 0


@cache
def record_of(name: str) -> bytes:
    """The bytes of a record, always the same."""
    key, _, version = name.partition(".")
    padding = "x" * ((int(key) * 37 + int(version) * 101) % 700)
    time = "2026-01-01T01:00:00.000Z" if is_ahead(name) else "2026-01-01T00:00:00.000Z"
    common = {"eventSalt": f"k{key}", "label": name, "params": {"padding": padding}}
    match lane_of(name).kind, lane_of(name).identifier:
        case "transactions", _:
            record = {"orderId": key, "recordedAt": time, "client": {"customId": "c"}, **common}
        case _, identifier:
            record = {"type": "custom", "action": "a.b", "time": time, "client": {identifier: "c"}, **common}
    return json.dumps(record, separators=(",", ":")).encode()


def name_of(record: bytes) -> str:
    found = re.search(rb'"label":"([^"]+)"', record)
    assert found is not None, "a record without its name"
    return found[1].decode()


@dataclass
class Journal:
    """What has ended, and what has only begun."""

    states: dict[str, str] = field(default_factory=dict)
    """Every record that was acknowledged: pending, delivered, dead, superseded or discarded."""
    begun: dict[int, dict[str, list[str]]] = field(default_factory=dict)
    """What is under way: for each step the state that it gives to which records."""

    def apply(self, mark: bytes) -> None:
        """The next mark of the run: ``{"begin": step, "moves": {...}}``, ``{"end": step}`` or ``{"void": step}``."""
        fields: dict[str, Any] = json.loads(mark)
        match fields:
            case {"begin": step, "moves": moves}:
                self.begun[step] = moves
            case {"end": step}:
                self.states.update(_flat(self.begun.pop(step)))
            case {"void": step}:
                del self.begun[step]


def _flat(moves: dict[str, list[str]]) -> dict[str, str]:
    return {name: state for state, names in moves.items() for name in names}


@dataclass
class Found:
    """What an opened buffer holds."""

    states: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, record: bytes, state: str) -> None:
        name = name_of(record)
        if record != record_of(name):
            self.faults.append(f"{name} is altered")
        if name in self.states:
            self.faults.append(f"{name} is there twice")
        self.states[name] = state


async def look(buffer: Buffer) -> Found:
    """Everything a buffer holds, read from its tables."""

    def tables(work: Work) -> Found:
        found = Found()
        lanes = {state.id: state.lane for state in work.all_lanes()}
        chunks = "SELECT id, accepted_ms, crc, runs, ends, body, bits FROM chunks LEFT JOIN gone ON chunk = id"
        for row in work.conn.execute(chunks):
            if (chunk := Chunk.load(row, lanes[row[0] >> SEQ_BITS])) is None:
                found.faults.append("a chunk fails its checksum")
                continue
            for span in chunk.spans():
                for i in range(span.start, span.stop):
                    found.add(chunk.record(i), "pending")
        for crc, runs, body in work.conn.execute("SELECT crc, runs, body FROM aside"):
            found.add(body, "pending")
            found.faults += ["a record aside fails its checksum"] * (crc != crc_of(runs, b"", body))
        for superseded, body in work.conn.execute("SELECT superseded, body FROM dead"):
            found.add(body, "superseded" if superseded else "dead")
        return found

    return await buffer.run(tables)


@dataclass
class Verdict:
    """How a buffer compares with what was acknowledged."""

    done: list[int]
    """Steps under way that are on the disk."""
    lost: list[str]
    """Acknowledged records that are not there."""
    faults: list[str]
    """All that is wrong, in words."""


async def judge(buffer: Buffer, journal: Journal) -> Verdict:
    """Compare a buffer that was just opened with what the run was told."""
    found = await look(buffer)
    faults, states, done = list(found.faults), dict(journal.states), []
    for step, moves in journal.begun.items():
        after = _flat(moves)
        applied = {_visible(found.states.get(name)) == _visible(state) for name, state in after.items()}
        if applied == {True}:
            done.append(step)
            states.update(after)
        elif len(applied) == 2:
            faults.append(f"step {step} is there in part")
    wanted = {name: state for name, state in states.items() if state in HERE}
    lost = [name for name in wanted if name not in found.states]
    faults += [f"{name} is lost" for name in lost]
    faults += [f"{name} is back, it was {states.get(name)}" for name in found.states.keys() - wanted.keys()]
    faults += [
        f"{name} should be {state}, is {found.states[name]}"
        for name, state in wanted.items()
        if name in found.states and found.states[name] != state
    ]
    counts = Counter(states.values())
    names = ("delivered", "pending", "dead", "discarded", "superseded")
    ledger = {"accepted": len(states), "lost": 0, "lost_at_most": 0, **{name: counts[name] for name in names}}
    if (shown := {name: buffer.ledger()[name] for name in ledger}) != ledger:
        faults.append(f"the ledger is {shown}, should be {ledger}")
    if sum(state.pending for state in buffer.lanes()) != ledger["pending"]:
        faults.append("the lanes' numbers do not add up to the ledger's")
    return Verdict(done, lost, faults)


def _visible(state: str | None) -> str | None:
    """A state as the tables show it: what is delivered or discarded is not there."""
    return state if state in HERE else None
