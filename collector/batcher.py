"""From chunks as they were accepted to one request's worth of records. Pure: no I/O, no clock.

`assemble` fills a batch to the brim and ends it only where it must: before a record whose
order key is already in it, before a record of about now, or at the limits. Records that
would hold up the lane (their time is far ahead, an earlier record of their order key waits
aside) are named to be set aside.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from collector.chunks import Batch, Chunk, Corrections, NoCorrections, Span, are_distinct
from collector.kinds import KINDS, Lane

__all__ = ["Aside", "Assembly", "Batch", "Dead", "Delivered", "Fate", "Gate", "Limits", "Wait", "assemble"]

NEAR_MS: Final = 10_000
"""How far ahead a record's time may be and still wait in its lane rather than aside."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one request: records, and bytes of the encoded body with its brackets and commas."""

    max_records: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Gate:
    """Which records may leave now."""

    now_ms: int
    """The upstream's clock as we estimate it, milliseconds since 1970."""
    margin_ms: int = 0
    """A record leaves when its time is at least this far behind `now_ms`."""
    hold_max_ms: int = 86_400_000
    """A record further ahead than this is buried instead of held."""
    corrections: Corrections = field(default_factory=NoCorrections)

    @property
    def horizon_ms(self) -> int:
        """A record of a later time may not leave."""
        return self.now_ms - self.margin_ms


OPEN_GATE: Final = Gate(now_ms=1 << 62)
"""Lets everything pass; for reading a buffer rather than delivering it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing may leave yet; try again when the upstream's clock shows `until_ms`, or when something changes."""

    until_ms: int | None


@dataclass(frozen=True, slots=True)
class Delivered:
    """The upstream has it."""


@dataclass(frozen=True, slots=True)
class Dead:
    """Refused for what it is."""

    reason: str = field(repr=False)  # it and the answer may quote the record
    status: int | None = None
    answer: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Aside:
    """Waits without holding up its lane.

    ahead: its time has not come; parked: it is suspected of spoiling its batch; denied: its
    event type is not permitted; busy: an earlier record of its order key waits.
    """

    reason: Literal["ahead", "parked", "denied", "busy"]
    due_ms: int | None = None


Fate = Delivered | Dead | Aside


@dataclass(slots=True)
class Assembly:
    """What `assemble` decided."""

    batch: Batch | None = None
    fates: list[tuple[Batch, Fate]] = field(default_factory=list)
    wait_until_ms: int | None = None


def assemble(
    lane: Lane,
    chunks: Iterable[Chunk],
    limits: Limits,
    gate: Gate,
    is_busy: Callable[[bytes], bool] | None = None,
    max_aside: int = 1 << 62,
) -> Assembly:
    """Fill one batch from the head of a lane.

    `chunks` come in the order accepted and are read only as far as needed. `is_busy` says
    whether an earlier record of an order key still waits aside; None where the lane has
    nothing aside. No more than about `max_aside` bytes of records are named to be set aside: at 0
    the lane waits, for room.
    """
    done = Assembly()
    spans: list[Span] = []
    count, size = 0, 2
    horizon = gate.horizon_ms
    kind = KINDS[lane.kind]
    full = False
    for stored in chunks:
        chunk = stored.retimed(gate.corrections)
        latest = chunk.latest_ms
        if horizon < latest <= gate.now_ms + NEAR_MS:
            done.wait_until_ms = latest + gate.margin_ms
            break
        singly = latest > horizon or is_busy is not None
        records, more = len(chunk.ends), len(chunk.body) + (1 if spans else 0)
        fits = 0 < records <= limits.max_records - count and more <= limits.max_bytes - size
        if fits and not (singly or chunk.gone):  # all of it, as nearly always
            spans.append(Span(chunk, 0, records))
            count += records
            size += more
            if count == limits.max_records:
                break
            continue
        for span in chunk.spans():
            for piece in (Span(chunk, i, i + 1) for i in range(span.start, span.stop)) if singly else (span,):
                if singly:
                    verdict = _single(kind.time_ms, kind.order_key, piece, latest, gate, is_busy)
                    if verdict == "wait":
                        done.wait_until_ms = kind.time_ms(chunk.record(piece.start)) + gate.margin_ms
                        full = True
                        break
                    if verdict is not None and max_aside <= 0:
                        done.wait_until_ms = gate.now_ms + NEAR_MS
                        full = True
                        break
                    if verdict is not None:
                        done.fates.append((Batch.of(lane, (piece,)), verdict))
                        max_aside -= piece.size
                        if max_aside <= 0:
                            full = True
                            break
                        continue
                fitting = _fit(piece, limits.max_records - count, limits.max_bytes - size - (1 if spans else 0))
                if fitting:
                    taken = piece if fitting == len(piece) else Span(chunk, piece.start, piece.start + fitting)
                    size += taken.size + (1 if spans else 0)
                    count += fitting
                    if spans and spans[-1].chunk is chunk and spans[-1].stop == taken.start:
                        spans[-1] = Span(chunk, spans[-1].start, taken.stop)
                    else:
                        spans.append(taken)
                elif not spans:
                    # larger than any request: leave alone, let the upstream's limit be the judge
                    spans.append(Span(chunk, piece.start, piece.start + 1))
                    count, fitting = 1, 1
                    full = True
                if fitting < len(piece):
                    full = True
                if full:
                    break
            if full:
                break
        if full or count >= limits.max_records:
            break
    if spans:
        done.batch = _until_repeated_key(Batch.of(lane, spans))
    return done


def _single(
    time_ms: Callable[[bytes], int],
    order_key: Callable[[bytes], bytes],
    piece: Span,
    latest: int,
    gate: Gate,
    is_busy: Callable[[bytes], bool] | None,
) -> Fate | Literal["wait"] | None:
    """What keeps one record from leaving now; None if nothing does."""
    # keys compare what was accepted, so they do not change when a time is repaired
    if is_busy is not None and is_busy(order_key(piece.chunk.as_stored.record(piece.start))):
        return Aside("busy")
    if latest <= gate.horizon_ms:
        return None
    due = time_ms(piece.chunk.record(piece.start))
    if due <= gate.horizon_ms:
        return None
    if due > gate.now_ms + gate.hold_max_ms:
        return Dead(f"its time is more than {gate.hold_max_ms // 3_600_000} h ahead of the upstream's clock")
    return "wait" if due <= gate.now_ms + NEAR_MS else Aside("ahead", due)


def _fit(span: Span, records: int, room: int) -> int:
    """How many of a span's records fit."""
    most = min(len(span), records)
    if most <= 0:
        return 0
    chunk, base = span.chunk, span.chunk.start(span.start)
    if chunk.ends[span.start + most - 1] - base <= room:
        return most
    low, high = 0, most - 1
    while low < high:
        middle = (low + high + 1) // 2
        if chunk.ends[span.start + middle - 1] - base <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _until_repeated_key(batch: Batch) -> Batch:
    """The batch, ended before the first record whose order key is already in it."""
    # equal keys need equal salts: with as many distinct salts as records there is nothing to look for
    if are_distinct(batch.body, batch.count):
        return batch
    order_key = KINDS[batch.lane.kind].order_key
    seen: set[bytes] = set()
    for index, (chunk, i) in enumerate(batch.positions()):
        key = order_key(chunk.as_stored.record(i))
        if key in seen:
            return batch.part(0, index)
        seen.add(key)
    return batch
