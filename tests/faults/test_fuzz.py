"""Whatever bytes come: parsers refuse in their own words or accept what holds, and never fail (catalogue 57, 44, 54).

`TILLPOST_FUZZ=100` runs a hundred times as many examples.
"""

import json
import os
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from collector.config import Config, ConfigError
from collector.ingest import Ingest
from collector.kinds import KINDS
from collector.outcomes import Answer, Rejected, judge
from collector.refusals import Refused, answer
from collector.settings import load
from collector.testing.rules import check_event, check_transaction
from collector.testing.switches import Switches
from collector.tokens import Tokens
from collector.values import TYPES
from tests.collector.surface import NOW_MS, FixedClock, secret
from tests.collector.test_ingest import CART, CUSTOM, EVENT, SALE
from tracker.wire import EVENTS_BATCH, TRANSACTIONS_BATCH, ClockHeader

EXAMPLES = 150 * int(os.environ.get("TILLPOST_FUZZ", "1"))
fuzzed = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))

LENIENT = Ingest(msgspec.convert({"ingest": {"nulls": "drop"}, "upstream": {"identifiers": "first"}}, Config),
                 FixedClock(), lambda: NOW_MS)  # fmt: skip
STRICT = Ingest(Config(), FixedClock(), lambda: NOW_MS)
SEEDS = [json.dumps(record, separators=(",", ":")).encode() for record in (EVENT, CART, CUSTOM, SALE)]
PIECES = [
    b'"client":{"email":"a@b.pl"}', b'"client":{"uuid":"00000000"}', b'"type":"custom"', b'"action":"a.b"',
    b'"params":{}', b'"time":"2026-05-04T09:53:56Z"', b'"2026-02-30T00:00:00Z"', b'"eventSalt":null', b'"quantity":',
    b'"amount":', b"null", b"true", b"NaN", b"1e999", b"1E5", b"-0", b"1" * 400, rb'"\ud800"', rb"\u0022", b"\xff",
    b"\xed\xa0\x80", b"\xe2\x80\xa8", b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"\0", b"[[[[",
]  # fmt: skip
PATHS = [EVENTS_BATCH, TRANSACTIONS_BATCH, "/v4/events/custom", "/v4/events/push/viewed", "/v4/transactions"]
CLOCKS = ["live", "bulk", "boot=b; offset=1; now=2", "boot=b; offset=-5; now=2; given=0-1,3", "boot=;"]
SAID = ["[0].label", "[2].client", "[99999].x", "products[0].quantity", "must not be null", "C-1", "in"]
KEYS_SAID = ["errors", "error", "message", "field", "rejectedValue", "index", "status", "code"]
NAMES = ["Content-Type", "Retry-After", "Date", "Tillpost-Accepted", "Location", "Content-Encoding"]
VALUES = ["text/html", "application/json", "3", "-1", "1e400", "Wed, 21 Oct 2015 07:28:00 GMT",
          "Wed, 99 Foo 20155 07:28:00", "9" * 400, "\u0663", "\x00", ""]  # fmt: skip
KEYS = sorted(TYPES)
WORDS = ["10s", "-1", "8MiB", "9" * 400 + "d", "inf", "nan", "{", "[", "1e999s", "true", '["a"]', "\x00"]
VARIABLES = [f"TILLPOST_{key.replace('.', '__').upper()}" for key in KEYS] + [
    "TILLPOST_BATCH__LINGR",
    "TILLPOST_API_KEY",
]
TOML = [b"[batch]\nlinger=", b"[upstream]\nurl='", b"[batch.events]\nmax_records=0"]
HEADERS = st.dictionaries(
    st.sampled_from(["Tillpost-Clock", "Tillpost-Priority", "Content-Type"]),
    st.sampled_from(CLOCKS) | st.text(max_size=40),
    max_size=2,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(SAID),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS_SAID), inner, max_size=5),
    max_leaves=20,
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Batches of good records with a few wounds; sometimes anything at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    body = bytearray(b"[" + b",".join(draw(st.lists(st.sampled_from(SEEDS), max_size=4))) + b"]")
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        end = at + draw(st.sampled_from([0, 0, 1, 1, 2, 8, 40]))
        body[at:end] = draw(st.sampled_from(PIECES) | st.binary(max_size=4))
    return bytes(body)


def accept(ingest: Ingest, path: str, body: bytes, headers: dict[str, str]) -> list[Any]:
    """The records accepted, each shown to be what may be stored; nothing where they were refused."""
    try:
        intake = ingest.read(path, body, headers)
    except Refused as refused:
        told = json.loads(answer(refused, path))
        assert 400 <= refused.status < 500 and len(told["errors"]) <= 100
        return []
    records: list[Any] = []
    for parcel in intake.parcels:
        kind = KINDS[parcel.lane.kind]
        assert sum(run.count for run in parcel.runs) == len(parcel.records) > 0
        for raw in parcel.records:
            record = json.loads(raw.decode("utf-8"), parse_int=int, parse_constant=pytest.fail)
            json.dumps(record, ensure_ascii=False).encode()  # no lone surrogates
            problems = (
                check_transaction(record)
                if kind.name == "transactions"
                else check_event(record, None, Switches(), Counter())
            )
            assert problems == [], (problems, raw)
            # what later stages ask of every stored record
            assert len(kind.order_key(raw)) == 16
            kind.time_ms(raw)
            kind.identity(raw)
            assert json.loads(kind.retimed(bytes(raw), NOW_MS))["client"] == record["client"]
            records.append(record)
        assert json.loads(kind.render(parcel.records)) is not None
    assert intake.count == len(records)
    return records


@fuzzed
@given(
    bodies(),
    st.sampled_from(PATHS),
    HEADERS,
    st.booleans(),
)
@example(b"[" + b"[" * 100_000, EVENTS_BATCH, {}, False)
@example(b"[" + SEEDS[0][:-1] + b',"params":{"n":%s}}]' % (b"9" * 4000), EVENTS_BATCH, {}, False)
def test_ingest_accepts_only_what_the_strict_rules_accept_and_never_fails(
    body: bytes, path: str, headers: dict[str, str], lenient: bool
) -> None:
    accept(LENIENT if lenient else STRICT, path, body, headers)


def test_the_fuzzed_bodies_are_accepted_and_refused_often_enough() -> None:
    """Else the test above proves little."""
    seen: Counter[bool] = Counter()

    @settings(max_examples=200, database=None, suppress_health_check=list(HealthCheck))
    @given(bodies())
    def look(body: bytes) -> None:
        seen[bool(accept(STRICT, EVENTS_BATCH, body, {}))] += 1

    look()
    assert seen[True] >= 10
    assert seen[False] >= 30


class Three:
    """A batch of three records, one of them with a number no parser turns into a value."""

    records = (SEEDS[1], SEEDS[2][:-1] + b',"params":{"n":%s}}' % (b"9" * 400), SEEDS[0])
    count = 3

    def record(self, index: int) -> bytes:
        return self.records[index]


@fuzzed
@given(
    st.integers(100, 599) | st.sampled_from([200, 202, 207, 400, 422, 503]),
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES) | st.text(max_size=12)), max_size=4),
    JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60) | st.just(b"[" * 100_000),
    st.booleans(),
    st.booleans(),
)
def test_no_answer_of_an_upstream_makes_judging_fail_or_buries_by_mistake(
    status: int, headers: list[tuple[str, str]], body: bytes, complete: bool, chain: bool
) -> None:
    found = Answer(status, CIMultiDict(headers), body, complete)
    verdict = judge(found, Three(), chain=chain)
    assert not isinstance(verdict, Rejected) or status in (200, 201, 202, 204, 207, 400, 422)
    if status in (401, 403, 404, 405, 415) or status >= 500 or 300 <= status < 400:
        assert type(verdict).__name__ in ("Later", "Paused", "Forbidden", "Unauthorized")
    rejected = getattr(verdict, "rejected", {})
    assert all(0 <= index < 3 for index in rejected)
    assert isinstance(found.genuine, bool) and len(found.excerpt()) <= 2048


@fuzzed
@given(
    st.text(max_size=60)
    | st.tuples(*[st.text("0123456789-_+ ٣abc,", max_size=24)] * 4).map(
        lambda parts: "boot={}; offset={}; now={}; given={}".format(*parts)
    )
    | st.tuples(st.integers(), st.integers(), st.integers(0, 10**12)).map(
        lambda parts: "boot=b; offset={}; now={}; given=0-{}".format(*parts)
    )
)
@example("boot=b; offset=99999999999999999999999; now=1")
@example("boot=b; offset=1_0; now=\u0663")
@example("boot=b; offset=1; now=1; given=1-0")
def test_a_clock_header_is_refused_or_read_as_it_would_be_written(text: str) -> None:
    try:
        header = ClockHeader.decode(text)
    except ValueError as error:
        assert str(error).startswith("Tillpost-Clock")
        return
    assert ClockHeader.decode(header.encode()) == header
    assert msgspec.msgpack.encode((header.offset_ms, header.now_ms))  # it fits where it is kept


@fuzzed
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*KEYS, "upstream", "x.y", "batch.events"]) | st.text(max_size=20),
            st.text(max_size=20) | st.sampled_from(WORDS),
        ),
        max_size=3,
    ),
    st.dictionaries(st.sampled_from(VARIABLES), st.text(max_size=12), max_size=3),
)
def test_configuration_is_read_or_refused_in_one_line(assigned: list[tuple[str, str]], environ: dict[str, str]) -> None:
    try:
        load(flags=[(key, "--set", value) for key, value in assigned], environ=environ, default_file=None).check()
    except ConfigError as error:
        assert str(error) and "\n" not in str(error)


@fuzzed
@given(st.binary(max_size=80) | st.sampled_from(TOML))
def test_a_configuration_file_of_any_bytes_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(content)
    try:
        load(file=path, environ={}, default_file=None)
    except ConfigError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)


@fuzzed
@given(
    st.none()
    | st.text(max_size=40)
    | st.tuples(st.sampled_from(["Bearer", "basic", "BASIC", ""]), st.text(max_size=30)).map(" ".join)
)
def test_no_authorization_but_the_right_one_admits(header: str | None) -> None:
    assert not Tokens(secret("the-ingest-token")).admits(header)
