"""What may enter the buffer, and how it is laid down: room, policy when full, merging, superseding."""

import heapq
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import msgspec

from collector.chunks import Batch, Chunk, ends_of, salts_in
from collector.crashpoints import reach
from collector.kinds import KINDS, Lane, Parcel, Run
from collector.work import PAGE, SEQ_BITS, LaneState, Work

CHUNK_RECORDS: Final = 1000
CHUNK_BYTES: Final = 1_000_000
RETRY_AFTER_S: Final = 5.0

Policy = Literal["refuse", "discard-oldest"]
EVERYTHING, ONE_LANE, BULK = 0.95, 0.80, 0.70
"""Shares of `Sizes.usable` that may fill (guarantee G7)."""


class Full(Exception):
    """No room: nothing of the request was stored. `retry_after_s` says when to try again."""

    def __init__(self, what: str, retry_after_s: float = RETRY_AFTER_S) -> None:
        super().__init__(what)
        self.what = what
        self.retry_after_s = retry_after_s


class Sizes(msgspec.Struct, frozen=True):
    """How `buffer.max_size` is divided (guarantee G7)."""

    max_size: int

    @property
    def wal_cap(self) -> int:
        return min(16 * 1024 * 1024, self.max_size // 4)

    @property
    def usable(self) -> int:
        """What pages may fill: `max_size` minus the reserve (the WAL at its cap, and the ballast)."""
        return self.max_size - 2 * self.wal_cap

    @property
    def max_body(self) -> int:
        """The largest request body one commit can take."""
        return self.wal_cap // 2

    @property
    def max_chunk(self) -> int:
        """Bytes of records in one row: small enough that it can be rewritten in one commit."""
        return min(CHUNK_BYTES, self.wal_cap // 4)

    @property
    def max_step(self) -> int:
        """Bytes of records that one commit may move from one table to another: it writes up to three times as much."""
        return self.wal_cap // 8


class Request(Protocol):
    """Parcels of one request that want in."""

    parcels: Sequence[Parcel]
    bytes: int
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Admission:
    """The buffer's door."""

    sizes: Sizes
    when_full: Policy

    def admit(
        self, work: Work, appends: Sequence[Request], dead_salts: set[int], in_hand: Sequence[Batch], used: int
    ) -> None:
        """Merge the parcels of all requests into as few chunks as possible, lane by lane.

        A request there is no room for gets its error; `in_hand` is what must not be
        discarded, `dead_salts` the hashes of the dead letters' salts, `used` the bytes of pages in use.
        """
        usable = self.sizes.usable
        merged: dict[Lane, tuple[list[bytes], list[Run]]] = {}
        for append in appends:
            cost = append.bytes + append.bytes // 32 + 2 * PAGE * len(append.parcels)
            lanes = {parcel.lane for parcel in append.parcels}
            what = _no_room(work, usable, used + cost, lanes, append.bytes)
            if what is not None and self.when_full == "discard-oldest":
                used -= self._discard(work, used + cost, lanes, append.bytes, in_hand)
                what = _no_room(work, usable, used + cost, lanes, append.bytes)
            if what is not None:
                append.error = Full(what)
                continue
            used += cost
            for parcel in append.parcels:
                records, runs = merged.setdefault(parcel.lane, ([], []))
                records += parcel.records
                runs += parcel.runs
                work.ledger["accepted"] += len(parcel.records)
                _supersede(work, parcel, dead_salts)
        for lane, (records, runs) in merged.items():
            for some, theirs, ends in _cut(records, runs, self.sizes.max_chunk):
                work.insert_chunk(lane, some, theirs, work.now_ms, ends)

    def _discard(self, work: Work, would_use: int, lanes: set[Lane], size: int, in_hand: Sequence[Batch]) -> int:
        """Drop whole chunks, the oldest first, bulk before live; never what is in hand. Freed bytes."""
        bulk_only = any(lane.priority == "bulk" for lane in lanes)
        above = would_use - int((BULK if bulk_only else EVERYTHING) * self.sizes.usable)
        kept = {span.chunk.id for batch in in_hand for span in batch.spans}
        freed = 0
        for priority in ("bulk",) if bulk_only else ("bulk", "live"):
            states = [state for state in work.all_lanes() if state.lane.priority == priority]
            freed += _drop(work, states, above - freed, kept)
        for lane in lanes:
            if (state := work.peek(lane)) is not None:
                freed += _drop(work, [state], _above_share(work, self.sizes.usable, lane, size), kept)
        return freed


def _no_room(work: Work, usable: int, would_use: int, lanes: set[Lane], size: int) -> str | None:
    if would_use > EVERYTHING * usable:
        return "the buffer is full"
    if would_use > BULK * usable and any(lane.priority == "bulk" for lane in lanes):
        return "the buffer is too full for bulk records"
    for lane in lanes:
        if _above_share(work, usable, lane, size) > 0:
            return f"the lane {lane} fills its share of the buffer"
    return None


def _above_share(work: Work, usable: int, lane: Lane, size: int) -> int:
    """By how many bytes a lane would exceed what one may take while others hold records."""
    state = work.peek(lane)
    above = (state.bytes if state else 0) + size - int(ONE_LANE * usable)
    if above <= 0:
        return 0
    return above if any(other.pending for other in work.all_lanes() if other.lane != lane) else 0


def _drop(work: Work, states: Sequence[LaneState], wanted: int, kept: set[int]) -> int:
    """Discard chunks of these lanes, but those that are `kept`, until so many bytes are freed; how many were."""
    freed = 0
    if wanted > 0:
        # which lane holds the oldest is told by clocks that may have been set; within a lane its order is
        for chunk in heapq.merge(*(_from_head(work, state) for state in states), key=lambda chunk: chunk.accepted_ms):
            if chunk.id not in kept:
                removed = work.remove(Batch.of(chunk.lane, chunk.spans()))
                work.ledger["discarded"] += sum(len(left) for _, left in removed)
                freed += len(chunk.body)
            if freed >= wanted:
                break
    return freed


def _from_head(work: Work, state: LaneState) -> Iterator[Chunk]:
    """A lane's chunks in order, each read when it is asked for."""
    after = (state.id << SEQ_BITS) - 1
    while row := work.conn.execute(
        "SELECT c.id, c.accepted_ms, c.crc, c.runs, c.ends, c.body, g.bits FROM chunks c "
        "LEFT JOIN gone g ON g.chunk = c.id WHERE c.id > ? AND c.id < ? ORDER BY c.id LIMIT 1",
        (after, (state.id + 1) << SEQ_BITS),
    ).fetchone():
        after = row[0]
        if (chunk := Chunk.load(row, state.lane)) is not None:
            yield chunk


def _supersede(work: Work, parcel: Parcel, dead_salts: set[int]) -> None:
    """A dead letter whose order key is accepted again is superseded: it must not overwrite what is newer."""
    if not dead_salts and not work.new_dead_salts:
        return
    order_key = KINDS[parcel.lane.kind].order_key
    for record in parcel.records:
        hashes = set(map(hash, salts_in(record)))
        if hashes.isdisjoint(dead_salts) and hashes.isdisjoint(work.new_dead_salts):
            continue
        state = work.lane(parcel.lane)
        changed = work.conn.execute(
            "UPDATE dead SET superseded = 1 WHERE lane = ? AND order_key = ? AND NOT superseded",
            (state.id, order_key(record)),
        ).rowcount
        work.ledger["dead"] -= changed
        work.ledger["superseded"] += changed
        if changed:
            reach("superseding")


def _cut(
    records: list[bytes], runs: list[Run], max_bytes: int
) -> Iterator[tuple[list[bytes], list[Run], "array[int] | None"]]:
    """Records and their runs in pieces no larger than a chunk may be; of a piece that is all its ends too."""
    ends = ends_of(records)
    if len(records) <= CHUNK_RECORDS and ends[-1] < max_bytes:
        yield records, _runs_between(runs, 0, len(records)), ends
        return
    start = 0
    while start < len(records):
        before = ends[start - 1] + 1 if start else 0
        fitting = bisect_right(ends, before + max_bytes - 1, start, min(start + CHUNK_RECORDS, len(records)))
        stop = max(fitting, start + 1)
        yield records[start:stop], _runs_between(runs, start, stop), None
        start = stop


def _runs_between(runs: list[Run], start: int, stop: int) -> list[Run]:
    found: list[Run] = []
    at = 0
    for run in runs:
        low, high = max(start, at), min(stop, at + run.count)
        at += run.count
        if low >= high:
            continue
        last = found[-1] if found else None
        if last is not None and (last.boot, last.offset_ms) == (run.boot, run.offset_ms):
            found[-1] = Run(last.count + high - low, max(last.latest_ms, run.latest_ms), run.boot, run.offset_ms)
        else:
            found.append(Run(high - low, run.latest_ms, run.boot, run.offset_ms))
    return found
