"""Chunks, spans and batches: records as they are stored, and as they are sent.

A *chunk* is what one commit brought for one lane; a *span* is a stretch of a chunk's
records; a *batch* is the spans of one request.
"""

import re
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, count
from operator import add
from typing import Any, Final, Protocol

import msgspec

from collector.kinds import KINDS, Lane, Run

_SALT: Final = re.compile(rb'"eventSalt"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)"')
_RUNS_ENCODER: Final = msgspec.msgpack.Encoder()
_RUNS_DECODER: Final = msgspec.msgpack.Decoder(tuple[Run, ...])


class Corrections(Protocol):
    """What is known of the true time of each boot."""

    def corrected_ms(self, boot: str, offset_ms: int, stamped_ms: int) -> int:
        """The time a stamp made at `stamped_ms` should have had; the stamp itself where nothing is known."""
        ...

    def concerns(self, boot: str, offset_ms: int, latest_ms: int) -> bool:
        """Whether any stamp made up to `latest_ms`, under the same clock, may have to be repaired."""
        ...


class NoCorrections:
    """Every clock was right."""

    def corrected_ms(self, boot: str, offset_ms: int, stamped_ms: int) -> int:  # noqa: ARG002
        return stamped_ms

    def concerns(self, boot: str, offset_ms: int, latest_ms: int) -> bool:  # noqa: ARG002
        return False


def salts_in(body: bytes | memoryview) -> list[bytes]:
    """Every string that stands as an ``eventSalt`` in the bytes, nested ones included: a cheap superset."""
    return _SALT.findall(body)


def are_distinct(body: bytes, count: int) -> bool:
    """Whether a body surely has so many salts, no two alike and none inside another value; False: perhaps not."""
    rests = body.split(b'"eventSalt"')[1:]
    length = rests[0].find(b'"', 2) + 1 if rests else 0
    salts = [rest[:length] for rest in rests]
    joined, quotes = b"".join(salts), b'"' * len(salts)
    # all written alike, which our own are: a colon, and as many characters between quotes
    alike = length > 2 and (joined[::length], joined[1::length], joined[length - 1 :: length], joined.count(b'"')) == (
        b":" * len(salts), quotes, quotes, 2 * len(salts))  # fmt: skip
    if not alike:
        salts = salts_in(body)
        joined = b"".join(salts)
    return len(salts) == count == len(set(salts)) > 0 and b"\\" not in joined


def crc_of(runs: bytes, ends: bytes, body: bytes) -> int:
    """The checksum stored beside a chunk and verified whenever it is read."""
    return zlib.crc32(body, zlib.crc32(ends, zlib.crc32(runs)))


def is_sound(crc: int, runs: Any, ends: Any, body: Any) -> bool:
    """Whether runs, ends and body are what was once stored."""
    try:
        return crc_of(runs, ends, body) == crc
    except TypeError:  # damage may also leave a text, a number or nothing at all in a column
        return False


def encode_runs(runs: Sequence[Run]) -> bytes:
    return _RUNS_ENCODER.encode(tuple(runs))


def ends_of(records: Sequence[bytes]) -> "array[int]":
    """Where each record ends once they are joined by commas."""
    return array("I", map(add, accumulate(map(len, records)), count()))


def count_gone(bits: bytes) -> int:
    """How many records a row of ``gone`` names."""
    return int.from_bytes(bits, "little").bit_count()


class Chunk(msgspec.Struct, frozen=True, eq=False):
    """Records of one row, as stored: of the table ``chunks``, or a single one of ``aside``."""

    id: int
    lane: Lane
    body: bytes
    ends: "array[int]"
    runs: tuple[Run, ...]
    accepted_ms: int
    gone: bytes = b""
    from_aside: bool = False
    reason: str = ""
    """Why it waited, for a record of ``aside``."""

    @classmethod
    def load(cls, row: tuple[int, int, int, bytes, bytes, bytes, bytes | None], lane: Lane) -> "Chunk | None":
        """A row (id, accepted_ms, crc, runs, ends, body, gone) of ``chunks``; None where the checksum fails."""
        chunk_id, accepted_ms, crc, runs, ends, body, gone = row
        if is_sound(crc, runs, ends, body):
            return cls(chunk_id, lane, body, array("I", ends), _RUNS_DECODER.decode(runs), accepted_ms, gone or b"")
        return None

    @classmethod
    def load_aside(cls, row: tuple[int, int, int, bytes, bytes, str], lane: Lane) -> "Chunk | None":
        """A row (id, accepted_ms, crc, runs, body, reason) of ``aside``; None where the checksum fails."""
        row_id, accepted_ms, crc, runs, body, reason = row
        if not is_sound(crc, runs, b"", body):
            return None
        ends = array("I", [len(body)])
        return cls(row_id, lane, body, ends, _RUNS_DECODER.decode(runs), accepted_ms, b"", True, reason)

    def __repr__(self) -> str:
        return f"<Chunk {self.id} of {len(self)} for {self.lane}>"  # what is in it is nobody's business

    def __len__(self) -> int:
        return len(self.ends)

    def start(self, i: int) -> int:
        return self.ends[i - 1] + 1 if i else 0

    def record(self, i: int) -> bytes:
        return self.body[self.start(i) : self.ends[i]]

    def run(self, i: int) -> Run:
        """The run that record `i` belongs to, cut down to that record."""
        for run in self.runs:
            if i < run.count:
                return Run(1, run.latest_ms, run.boot, run.offset_ms)
            i -= run.count
        raise IndexError(i)

    @property
    def left(self) -> int:
        """How many of its records are still here."""
        return len(self.ends) - count_gone(self.gone)

    def is_gone(self, i: int) -> bool:
        return i >> 3 < len(self.gone) and bool(self.gone[i >> 3] & (1 << (i & 7)))

    def spans(self) -> Iterator["Span"]:
        """The stretches of records still here."""
        stop, n, gone = 0, len(self), int.from_bytes(self.gone, "little")
        while stop < n:
            left = gone >> stop
            start = stop + (~left & (left + 1)).bit_length() - 1  # past what is gone
            left = gone >> start
            stop = start + (left & -left).bit_length() - 1 if left else n
            if start < n:
                yield Span(self, start, min(stop, n))

    @property
    def latest_ms(self) -> int:
        """The greatest time of any of its records, as it stands in the bytes."""
        return self.runs[0].latest_ms if len(self.runs) == 1 else max(run.latest_ms for run in self.runs)

    def retimed(self, corrections: Corrections) -> "Chunk":
        """This chunk with the times *we* stamped put right; itself where there is nothing to repair.

        A pure function of what is on disk, so a resend after a crash is byte-identical.
        """
        for run in self.runs:
            if run.boot is not None and corrections.concerns(run.boot, run.offset_ms, run.latest_ms):
                break
        else:
            return self
        kind = KINDS[self.lane.kind]
        records: list[bytes] = []
        runs: list[Run] = []
        for run in self.runs:
            # the latest stamp need not be the latest time: a later stamp may be corrected by less
            latest = run.latest_ms if run.boot is None else 0
            for _ in range(run.count):
                record = self.record(len(records))
                if run.boot is not None and record:  # empty: erased, its place kept
                    stamped = kind.time_ms(record)
                    true_ms = corrections.corrected_ms(run.boot, run.offset_ms, stamped)
                    if true_ms != stamped:
                        record = kind.retimed(record, true_ms)
                    latest = max(latest, true_ms)
                records.append(record)
            runs.append(Run(run.count, latest, None, 0))
        body = b",".join(records)
        return _Retimed(
            self.id, self.lane, body, ends_of(records), tuple(runs), self.accepted_ms, self.gone, self.from_aside,
            self.reason, stored=self,
        )  # fmt: skip

    @property
    def as_stored(self) -> "Chunk":
        return self


class _Retimed(Chunk, frozen=True, eq=False):
    stored: Chunk | None = None

    @property
    def as_stored(self) -> Chunk:
        return self.stored or self


class Span(msgspec.Struct, frozen=True):
    """Records `start` to `stop` of one chunk, none of them gone."""

    chunk: Chunk
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def size(self) -> int:
        """Bytes of its records, with the commas between them."""
        return self.chunk.ends[self.stop - 1] - self.chunk.start(self.start)

    @property
    def bytes(self) -> "bytes | memoryview":
        if self.stop - self.start == len(self.chunk.ends):  # all of it, as nearly always
            return self.chunk.body
        return memoryview(self.chunk.body)[self.chunk.start(self.start) : self.chunk.ends[self.stop - 1]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Up to one request of one lane; immutable, so that every attempt sends the same bytes."""

    lane: Lane
    spans: tuple[Span, ...]
    count: int

    @classmethod
    def of(cls, lane: Lane, spans: Iterable[Span]) -> "Batch":
        held = tuple(spans)
        return cls(lane, held, sum([span.stop - span.start for span in held]))

    @cached_property
    def body(self) -> bytes:
        """The request's body."""
        if not self.spans:
            return b"[]"
        parts: list[bytes | memoryview] = [b","] * (2 * len(self.spans) + 1)
        parts[0], parts[-1] = b"[", b"]"
        parts[1::2] = [span.bytes for span in self.spans]
        return b"".join(parts)

    @property
    def parked(self) -> bool:
        """Whether any of it waited aside because it was parked."""
        return any(span.chunk.reason == "parked" for span in self.spans)

    @property
    def denied(self) -> bool:
        """Whether any of it waited aside because its event type was not permitted."""
        return any(span.chunk.reason == "denied" for span in self.spans)

    @property
    def from_aside(self) -> bool:
        """Whether any of it waited aside for whatever reason."""
        return any(span.chunk.from_aside for span in self.spans)

    @property
    def repaired(self) -> int:
        """How many of its times we had stamped under a wrong clock and put right."""
        return sum(
            span.chunk.record(i) != span.chunk.as_stored.record(i)
            for span in self.spans
            if span.chunk.as_stored is not span.chunk
            for i in range(span.start, span.stop)
        )

    def positions(self) -> Iterator[tuple[Chunk, int]]:
        for span in self.spans:
            for i in range(span.start, span.stop):
                yield span.chunk, i

    def record(self, index: int) -> bytes:
        """The bytes of one record as they are sent."""
        chunk, i = self._locate(index)
        return chunk.record(i)

    def part(self, start: int, stop: int) -> "Batch":
        """Records `start` to `stop`, in order."""
        spans, at = [], 0
        for span in self.spans:
            low, high = max(start - at, 0), min(stop - at, len(span))
            if low < high:
                spans.append(Span(span.chunk, span.start + low, span.start + high))
            at += len(span)
        return Batch.of(self.lane, spans)

    def pick(self, indices: Iterable[int]) -> "Batch":
        """The records at `indices`, in the order of the batch."""
        spans: list[Span] = []
        for index in sorted(set(indices)):
            chunk, i = self._locate(index)
            if spans and spans[-1].chunk is chunk and spans[-1].stop == i:
                spans[-1] = Span(chunk, spans[-1].start, i + 1)
            else:
                spans.append(Span(chunk, i, i + 1))
        return Batch.of(self.lane, spans)

    def _locate(self, index: int) -> tuple[Chunk, int]:
        for span in self.spans:
            if index < len(span):
                return span.chunk, span.start + index
            index -= len(span)
        raise IndexError(index)
