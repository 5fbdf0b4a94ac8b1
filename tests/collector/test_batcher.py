"""The batcher, for any backlog: full, legal, in order, nothing twice and nothing left out."""

import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from collector.batcher import Gate, Limits, assemble
from collector.chunks import Chunk, Span, are_distinct, crc_of, encode_runs, ends_of
from collector.kinds import KINDS, Run
from tests.collector.buffers import ANYTIME, EMAIL, T0, record
from tracker.time import format_ms


def chunk_of(number: int, records: list[bytes], runs: list[Run] | None = None, gone: bytes = b"") -> Chunk:
    packed = encode_runs(runs or [Run(len(records), max(map(KINDS["events"].time_ms, records)), None, 0)])
    ends, body = ends_of(records).tobytes(), b",".join(records)
    chunk = Chunk.load((number, 0, crc_of(packed, ends, body), packed, ends, body, gone), EMAIL)
    assert chunk is not None
    return chunk


backlogs = st.lists(st.lists(st.integers(0, 400), min_size=1, max_size=30), min_size=1, max_size=12)


@given(backlogs, st.integers(1, 60), st.integers(400, 9_000))
def test_a_backlog_leaves_whole_in_order_and_every_batch_but_the_last_is_full(
    pads: list[list[int]], max_records: int, max_bytes: int
) -> None:
    serial = iter(range(10**6))
    chunks = [chunk_of(i, [record(f"s{next(serial)}", pad=pad) for pad in row]) for i, row in enumerate(pads)]
    waiting = [chunk.record(i) for chunk in chunks for i in range(len(chunk))]
    limits = Limits(max_records, max_bytes)
    gone: dict[int, int] = {}
    while waiting:
        current = [
            chunk_of(
                c.id, [c.record(i) for i in range(len(c))], gone=gone.get(c.id, 0).to_bytes((len(c) + 7) // 8, "little")
            )
            for c in chunks
            if gone.get(c.id, 0).bit_count() < len(c)
        ]
        batch = assemble(EMAIL, current, limits, ANYTIME).batch
        assert batch is not None
        taken = [batch.record(i) for i in range(batch.count)]
        assert taken == waiting[: len(taken)]
        assert batch.body == b"[" + b",".join(taken) + b"]"
        assert batch.count <= max_records
        assert len(batch.body) <= max_bytes or batch.count == 1
        waiting = waiting[len(taken) :]
        if waiting:
            assert batch.count == max_records or len(batch.body) + 1 + len(waiting[0]) > max_bytes, "could hold more"
        for chunk, i in batch.positions():
            gone[chunk.id] = gone.get(chunk.id, 0) | 1 << i


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_a_batch_ends_before_the_first_repeated_order_key(salts: list[int]) -> None:
    records = [record(f"s{salt}") for salt in salts]
    batch = assemble(EMAIL, [chunk_of(1, records)], Limits(1000, 10**6), ANYTIME).batch
    assert batch is not None
    distinct = next((i for i in range(len(salts)) if salts[i] in salts[:i]), len(salts))
    assert batch.count == distinct


@given(st.lists(st.integers(-100_000, 100_000), min_size=1, max_size=40))
def test_nothing_leaves_before_its_time_and_nothing_far_ahead_holds_up_the_rest(offsets: list[int]) -> None:
    now, margin = T0 + 1_000_000, 2_000
    records = [record(f"s{i}", time=format_ms(now + off)) for i, off in enumerate(offsets)]
    done = assemble(EMAIL, [chunk_of(1, records)], Limits(1000, 10**6), Gate(now_ms=now, margin_ms=margin))
    sent = [] if done.batch is None else [done.batch.record(i) for i in range(done.batch.count)]
    aside = [part.record(0) for part, _ in done.fates]
    for one in sent:
        assert KINDS["events"].time_ms(one) <= now - margin
    for one in aside:
        assert KINDS["events"].time_ms(one) > now
    if len(sent) + len(aside) < len(records):
        assert done.wait_until_ms is not None


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.data())
def test_parts_and_picks_are_the_records_they_name(sizes: list[int], data: st.DataObject) -> None:
    serial = iter(range(1000))
    chunks = [chunk_of(i, [record(f"s{next(serial)}") for _ in range(n)]) for i, n in enumerate(sizes)]
    batch = assemble(EMAIL, chunks, Limits(1000, 10**6), ANYTIME).batch
    assert batch is not None
    all_records = [batch.record(i) for i in range(batch.count)]
    start = data.draw(st.integers(0, batch.count))
    stop = data.draw(st.integers(start, batch.count))
    part = batch.part(start, stop)
    assert [part.record(i) for i in range(part.count)] == all_records[start:stop]
    chosen = data.draw(st.sets(st.integers(0, batch.count - 1)))
    picked = batch.pick(chosen)
    assert [picked.record(i) for i in range(picked.count)] == [all_records[i] for i in sorted(chosen)]


class Ahead:
    """A boot whose clock ran ten minutes ahead."""

    def corrected_ms(self, boot: str, offset_ms: int, stamped_ms: int) -> int:
        return stamped_ms - 600_000 if boot == "wrong" else stamped_ms

    def concerns(self, boot: str, offset_ms: int, latest_ms: int) -> bool:
        return boot == "wrong"


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["wrong", "right", None]), min_size=1, max_size=20))
def test_only_times_we_stamped_are_repaired_and_always_the_same_way(boots: list[str | None]) -> None:
    records = [record(f"s{i}", time=format_ms(T0 + i)) for i in range(len(boots))]
    runs = [Run(1, T0 + i, boot, 0) for i, boot in enumerate(boots)]
    gate = Gate(now_ms=T0 + 10**7, corrections=Ahead())
    bodies = set()
    for _ in range(2):
        batch = assemble(EMAIL, [chunk_of(1, records, runs)], Limits(1000, 10**6), gate).batch
        assert batch is not None
        bodies.add(batch.body)
        for i, boot in enumerate(boots):
            expected = T0 + i - (600_000 if boot == "wrong" else 0)
            assert KINDS["events"].time_ms(batch.record(i)) == expected
            assert batch.record(i) == records[i].replace(format_ms(T0 + i).encode(), format_ms(expected).encode())
    assert len(bodies) == 1


def test_a_span_knows_its_bytes() -> None:
    chunk = chunk_of(1, [record("a"), record("b"), record("c")])
    assert bytes(Span(chunk, 1, 3).bytes) == record("b") + b"," + record("c")


@given(
    count=st.integers(1, 70),
    gone=st.one_of(st.integers(0, 2**70), st.integers(0, 70).map(lambda n: (1 << n) - 1)),
    short=st.booleans(),
)
def test_the_spans_of_a_chunk_are_what_is_left_of_it(count: int, gone: int, short: bool) -> None:
    gone &= (1 << count) - 1
    bits = gone.to_bytes((gone.bit_length() + 7) // 8 if short else (count + 7) // 8, "little")
    ends = ends_of([b"x"] * count)
    chunk = Chunk(1, EMAIL, b",".join([b"x"] * count), ends, (Run(count, T0, None, 0),), T0, bits)
    spans = list(chunk.spans())
    assert [i for span in spans for i in range(span.start, span.stop)] == [i for i in range(count) if not gone >> i & 1]
    assert all(one.stop < other.start for one, other in pairwise(spans)), "neighbours are one span"


def test_a_nested_salt_does_not_stand_in_for_one_that_is_written_otherwise() -> None:
    body = b'[{"eventSalt" : "b"},{"eventSalt":"b","params":{"eventSalt":"a"}}]'
    assert not are_distinct(body, 2)


@given(
    salts=st.lists(st.text('abc"\\\u017c,', min_size=1, max_size=4), max_size=6),
    nested=st.booleans(),
    spaced=st.booleans(),
)
def test_salts_are_only_called_distinct_when_they_are(salts: list[str], nested: bool, spaced: bool) -> None:
    events = [
        {"eventSalt": salt, "params": {"eventSalt": "a"} if nested else {"x": '"eventSalt":"a"'}} for salt in salts
    ]
    body = json.dumps(events, separators=(", ", ": ") if spaced else (",", ":")).encode()
    if are_distinct(body, len(salts)):
        assert len(set(salts)) == len(salts)
        assert not nested
    elif salts and len(set(salts)) == len(salts) and not nested and not spaced:
        assert any("\\" in json.dumps(salt) for salt in salts)
