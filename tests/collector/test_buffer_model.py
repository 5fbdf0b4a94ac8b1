"""The buffer against a plain model: whatever is done, in whatever order, it holds what it should."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from collector import deadletters
from collector.batcher import Aside, Batch, Dead, Delivered, Gate, Limits, Wait
from collector.buffer import Buffer
from collector.kinds import KINDS
from tests.collector.buffers import EMAIL, T0, adds_up, parcel, record
from tracker.time import format_ms

T = TypeVar("T")
MARGIN_MS = 2_000


class FakeClock:
    def __init__(self) -> None:
        self.ms = T0

    def wall_ms(self) -> int:
        return self.ms

    def boot_ms(self) -> int:
        return self.ms - T0 + 1_000_000

    def boot_id(self) -> str:
        return "test"


class BufferMachine(RuleBasedStateMachine):
    """One lane. The model is a list of records in the order accepted, each with its state."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.serial = 0
        self.accepted = 0
        self.delivered = 0
        self.discarded = 0
        self.pending: list[bytes] = []
        """In the order in which they must leave, as far as order is promised: per order key."""
        self.dead: dict[int, bytes] = {}
        self.superseded: set[int] = set()
        self.in_hand: Batch | None = None
        self.left: list[int] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    @initialize()
    def open(self) -> None:
        self.buffer = self.run(Buffer.open(self.folder / "t.db", clock=self.clock))

    def teardown(self) -> None:
        self.run(self.buffer.close())
        self.loop.close()
        shutil.rmtree(self.folder)

    # -- what can happen ------------------------------------------------------------------------

    @rule(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), key=st.integers(0, 3), ahead=st.booleans())
    def append(self, sizes: list[int], key: int, ahead: bool) -> None:
        groups = []
        for size in sizes:
            records = []
            for _ in range(size):
                self.serial += 1
                # a few keys come again and again; most never do
                repeated = self.serial % 7 == 0
                salt = f"key{key}" if repeated else f"s{self.serial}"
                when = T0 if repeated else self.clock.ms - (0 if self.serial % 5 else 60_000)
                if ahead and self.serial % 11 == 0:
                    when = self.clock.ms + 3_600_000
                records.append(record(salt, time=format_ms(when), pad=self.serial % 13))
            groups.append(records)
        keys = {KINDS["events"].order_key(r) for group in groups for r in group}
        for letter, body in self.dead.items():
            if KINDS["events"].order_key(body) in keys:
                self.superseded.add(letter)

        async def together() -> None:
            await asyncio.gather(*(self.buffer.append([parcel(group)]) for group in groups))

        self.run(together())
        for group in groups:
            self.pending += group
            self.accepted += len(group)

    @precondition(lambda self: self.in_hand is None)
    @rule(records=st.integers(1, 60), size=st.integers(300, 8_000))
    def take(self, records: int, size: int) -> None:
        gate = Gate(now_ms=self.clock.ms, margin_ms=MARGIN_MS)
        taken = self.run(self.buffer.take(EMAIL, Limits(records, size), gate))
        if not isinstance(taken, Batch):
            assert isinstance(taken, Wait) == bool(self.pending)
            return
        bodies = [taken.record(i) for i in range(taken.count)]
        assert taken.body == b"[" + b",".join(bodies) + b"]"
        assert taken.count <= records
        assert len(taken.body) <= size or taken.count == 1
        keys = [KINDS["events"].order_key(body) for body in bodies]
        assert len(set(keys)) == len(keys), "one order key twice in a request"
        for body, key in zip(bodies, keys, strict=True):
            assert KINDS["events"].time_ms(body) <= self.clock.ms - MARGIN_MS, "left before its time"
            first = next(p for p in self.pending if KINDS["events"].order_key(p) == key)
            assert first == body, "overtook an earlier record of its order key"
        self.in_hand, self.left = taken, list(range(taken.count))

    @precondition(lambda self: self.in_hand is not None)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        assert self.in_hand is not None
        chosen = data.draw(st.lists(st.sampled_from(self.left), unique=True, min_size=1))
        fates = []
        for index in chosen:
            part = self.in_hand.pick([index])
            body = self.in_hand.record(index)
            fate = data.draw(st.sampled_from(["delivered", "delivered", "delivered", "dead", "aside"]))
            if fate == "delivered":
                fates.append((part, Delivered()))
                self.pending.remove(body)
                self.delivered += 1
            elif fate == "dead":
                fates.append((part, Dead("refused", 400, "no")))
                self.pending.remove(body)
            else:
                fates.append((part, Aside("parked", self.clock.boot_ms() + 30_000)))
        before = {letter["id"] for letter in self.letters()}
        self.run(self.buffer.settle(fates))
        for letter in self.letters():
            if letter["id"] not in before:
                body = next(
                    p
                    for p, f in ((p.record(0), f) for p, f in fates if isinstance(f, Dead))
                    if _salt(p) == letter["record"]["eventSalt"] and letter["record"]["label"] == _label(p)
                )
                self.dead[letter["id"]] = body
        self.left = [i for i in self.left if i not in chosen]
        if not self.left:
            self.in_hand = None

    @precondition(lambda self: self.in_hand is not None)
    @rule()
    def deliver(self) -> None:
        """All that is left of it, as one part where that is possible."""
        assert self.in_hand is not None
        self.run(self.buffer.settle([(self.in_hand.pick(self.left), Delivered())]))
        for index in self.left:
            self.pending.remove(self.in_hand.record(index))
        self.delivered += len(self.left)
        self.in_hand = None

    @precondition(lambda self: self.in_hand is not None)
    @rule()
    def release(self) -> None:
        assert self.in_hand is not None
        self.buffer.release(self.in_hand)
        self.in_hand = None

    @precondition(lambda self: self.dead)
    @rule(data=st.data(), force=st.booleans())
    def retry(self, data: st.DataObject, force: bool) -> None:
        letter = data.draw(st.sampled_from(sorted(self.dead)))
        count = self.run(deadletters.retry(self.buffer, [letter], force=force))
        if letter in self.superseded and not force:
            assert count == 0
            return
        assert count == 1
        self.pending.append(self.dead.pop(letter))
        self.superseded.discard(letter)

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        letter = data.draw(st.sampled_from(sorted(self.dead)))
        assert self.run(deadletters.discard(self.buffer, [letter])) == 1
        del self.dead[letter]
        self.superseded.discard(letter)
        self.discarded += 1

    @rule(seconds=st.sampled_from([1, 5, 31, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.clock.ms += seconds * 1000

    @rule()
    def reopen(self) -> None:
        self.run(self.buffer.close())
        self.in_hand = None
        self.buffer = self.run(Buffer.open(self.folder / "t.db", clock=self.clock))

    @rule()
    def crash(self) -> None:
        """A copy of the files as they are is what a killed process leaves behind."""
        copy = Path(tempfile.mkdtemp())
        for file in self.folder.iterdir():
            if not file.name.endswith(".lock"):
                shutil.copy(file, copy / file.name)
        self.run(self.buffer.close())
        shutil.rmtree(self.folder)
        self.folder = copy
        self.in_hand = None
        self.buffer = self.run(Buffer.open(self.folder / "t.db", clock=self.clock))

    # -- what must always be true ---------------------------------------------------------------

    def letters(self) -> list[dict[str, Any]]:
        page = self.run(deadletters.page(self.buffer, limit=1000))
        return msgspec.json.decode(msgspec.json.encode(page))["dead_letters"]

    @invariant()
    def the_ledger_is_exact(self) -> None:
        if not hasattr(self, "buffer"):
            return
        ledger = self.buffer.ledger()
        assert adds_up(ledger)
        assert ledger == {
            "accepted": self.accepted,
            "delivered": self.delivered,
            "pending": len(self.pending),
            "dead": len(self.dead) - len(self.superseded),
            "superseded": len(self.superseded),
            "discarded": self.discarded,
            "lost": 0,
            "lost_at_most": 0,
        }

    @invariant()
    def the_rows_are_what_the_ledger_says(self) -> None:
        if not hasattr(self, "buffer"):
            return

        def count(work: Any) -> tuple[int, int, int]:
            n = 0
            for rows, bits in work.conn.execute("SELECT c.n, g.bits FROM chunks c LEFT JOIN gone g ON g.chunk = c.id"):
                n += rows - int.from_bytes(bits or b"", "little").bit_count()
            aside = work.conn.execute("SELECT count(*) FROM aside").fetchone()[0]
            return (
                n,
                aside,
                # what left before its elders is remembered until they have left too
                work.conn.execute(
                    "SELECT count(*) FROM gone WHERE chunk NOT IN (SELECT id FROM chunks) "
                    "AND chunk < ifnull((SELECT min(id) FROM chunks), 1 << 62)"
                ).fetchone()[0],
            )

        in_chunks, aside, orphans = self.run(self.buffer.run(count))
        assert in_chunks + aside == len(self.pending)
        assert orphans == 0
        state = self.buffer.lane(EMAIL)
        if state is not None:
            assert (state.pending, state.aside) == (len(self.pending), aside)
            assert state.bytes == sum(map(len, self.pending))
        assert self.buffer.dead_bytes == sum(map(len, self.dead.values()))


def _salt(body: bytes) -> str:
    return KINDS["events"].identity(body).salt


def _label(body: bytes) -> str:
    return body.split(b'"label":"')[1].split(b'"')[0].decode()


BufferMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=40, suppress_health_check=list(HealthCheck)
)
TestBufferModel = BufferMachine.TestCase
