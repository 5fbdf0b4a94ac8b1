"""One lane's courier: takes a batch, delivers it, and does what the outcome asks for.

A batch in hand is a list of pieces, at first one. Splitting, searching for a bad record,
probing after an outage all divide pieces; each request sends one piece or a part of it,
and each record gets its fate as soon as it has one. The same bytes are retried for ever.
Nothing is buried that was not refused alone (G5), nothing but a record's own fault buries
it (G8), and nothing is sent twice in one run only because the disk would not note it.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, assert_never

import msgspec

from collector import batcher
from collector.batcher import Aside, Dead, Fate, Gate, Limits, Wait
from collector.buffer import DeadLettersFull, LaneState, Unknown
from collector.chunks import Batch
from collector.config import Config
from collector.crashpoints import reach
from collector.isolate import Search
from collector.kinds import KINDS, Lane
from collector.logs import logger
from collector.outcomes import Delivered, Forbidden, Later, Outcome, PartlyRejected, Paused, Rejected, TooLarge
from collector.patience import LaneStatus, Patience, Stopped
from collector.retry import Wave
from collector.sizes import LearnedSizes
from collector.waiting import Timer
from collector.work import SEQ_BITS
from tracker.time import Clock

log = logger("lanes")

PROBE: Final = 10
"""Records of a small batch that finds out whether the upstream is back."""
STUCK: Final = 4
"""After so many server faults on one batch, and others passing meanwhile, it is suspected itself."""
STUCK_ALONE: Final = 8
"""After so many of them with nothing else passing, small batches find out whether it is the upstream or a record."""
APART: Final = 0.02
"""Of ``batch.linger``: so far apart two lanes begin to send what has lingered. One linger has turns for all lanes."""
_TYPES_MAX: Final = 20
"""More kinds of events than this are told apart by type only."""
_WORK_S: Final = 60.0
_REQUESTS: Final = 5
"""A delivery is at most a login, a request, both again, and a look at the clock; `_WORK_S` is for the disk."""
_PAUSED_PARK: Final = 10
"""What is parked during a wave waits so many probes long, so that probes reach what is behind it."""


class Source(Protocol):
    """The part of the buffer that delivery needs."""

    @property
    def erasures(self) -> int: ...
    def lane(self, lane: Lane, /) -> LaneState | None: ...
    def head(self, lane: Lane, /) -> int | None: ...
    async def take(self, lane: Lane, limits: Limits, gate: Gate, /) -> Batch | Wait | None: ...
    async def settle(self, fates: Sequence[tuple[Batch, Fate]], /) -> None: ...
    def release(self, batch: Batch, /) -> None: ...


class Upstream(Protocol):
    """Where batches go."""

    async def deliver(self, batch: Batch, /) -> Outcome: ...


class Timekeeper(Protocol):
    """Says when records may leave; see `clock.Keeper`."""

    async def ready(self) -> Later | Paused | None: ...
    def gate(self) -> Gate: ...
    def horizon_ms(self) -> int: ...


class Tally(Protocol):
    """Counts for the metrics."""

    def add(self, name: str, amount: float = 1, **labels: str) -> None: ...
    def observe(self, name: str, value: float, **labels: str) -> None: ...


@dataclass
class Common:
    """What all couriers share."""

    source: Source
    upstream: Upstream
    keeper: Timekeeper
    config: Config
    clock: Clock
    timer: Timer
    chance: Callable[[], float]
    sizes: LearnedSizes
    tally: Tally | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a lane got further, or stuck."""
    passed_ms: int = -1
    """When any lane last got something accepted, by the boot clock."""
    next_turn_ms: float = -math.inf
    """Of lanes whose records have waited for companions one begins to send at a time, and not before this time, by the
    boot clock: what all of them send at once would keep a request that comes just then waiting for all of it."""
    starts_ms: int = 0
    """Not before this time by the boot clock: the start-up jitter."""
    _free_ms: float = 0.0

    @property
    def owed_s(self) -> float:
        """How long those before keep the next one waiting at ``delivery.max_rate``, seconds."""
        return max(0.0, self._free_ms - self.clock.boot_ms()) / 1000

    async def within_rate(self, records: int) -> None:
        """Wait until so many records may go at ``delivery.max_rate``."""
        rate = self.config.delivery.max_rate
        if not rate:
            return
        now = self.clock.boot_ms()
        begin = max(self._free_ms, float(now))
        self._free_ms = begin + records / rate * 1000
        if begin > now and await self.timer.wait(self.stop, (begin - now) / 1000):
            raise Stopped


@dataclass
class _Piece:
    """Records in hand that are sent together, or searched, or probed with a few of them."""

    batch: Batch
    search: Search | None = None
    probe: tuple[int, int] | None = None
    """From and up to which record, while only a few are sent."""
    tries: int = 0
    """Answers in a row that may be its own doing."""
    since_ms: int = 0
    """When the first of those came, by the boot clock."""

    @property
    def part(self) -> Batch:
        """What to send next."""
        if self.probe is not None:
            return self.batch.part(*self.probe)
        return self.batch if self.search is None else self.batch.pick(self.search.part)

    @property
    def left(self) -> Batch:
        """What has no verdict."""
        return self.batch if self.search is None else self.batch.pick(self.search.left)

    def shrink(self) -> None:
        """Send only a few from now on."""
        self.batch, self.search = self.left, None
        self.probe = (0, min(PROBE, (self.batch.count + 1) // 2))

    def move_on(self) -> None:
        """Probe with the next few."""
        assert self.probe is not None
        start, stop = self.probe
        begin = stop if stop < self.batch.count else 0
        self.probe = (begin, min(begin + stop - start, self.batch.count))


class Courier:
    """Carries one lane's records; `run` until told to stop."""

    def __init__(self, lane: Lane, common: Common) -> None:
        self.lane = lane
        self.arrived = asyncio.Event()
        """Set when records arrive."""
        self.hurried = False
        """Set by a drain until the lane is empty: no linger."""
        self._common = common
        self._config = common.config
        self._log = log.bind(lane=str(lane))
        self._wave = Wave.parse(common.config.dead.wave)
        self._in_wave = False
        self._pieces: deque[_Piece] = deque()
        self._request_s = _WORK_S + _REQUESTS * common.config.upstream.timeout
        """What a courier may take from one wait to the next."""
        self._patience = Patience(
            common.config.delivery,
            common.clock,
            common.timer,
            common.chance,
            stop=common.stop,
            changed=common.changed,
            starts_ms=common.starts_ms,
            log=self._log,
            work_s=self._request_s,
        )
        self._parked_blind = False
        self._denied: dict[str, int] = {}
        """Event types refused, and when, by the boot clock, some that wait aside may find out again."""
        self._suspected: str | None = None
        """The event type of a batch of that type alone that was refused, until it is known whether others pass."""
        self._since_ms: int | None = None
        """When the lane, empty before, got records."""
        self._lingers: tuple[int, int] | None = None
        """While it waits for companions of a batch: how many records, or bytes, in the lane are enough."""
        self._sent_ms = -(1 << 62)
        self._seen_seq = 0
        self._erasures = 0
        self._horizon_ms = -(1 << 62)

    # -- from outside

    @property
    def status(self) -> LaneStatus:
        """What the lane is doing."""
        return self._patience.status

    @property
    def pulse(self) -> int | None:
        """A number that stays the same while the courier should get on and does not; None while all is well."""
        return self._patience.beats if self._patience.is_overdue(self._state().pending) else None

    def came(self) -> None:
        """Records came to the lane, or are in it."""
        if self._lingers is not None:
            state = self._state()
            if state.pending < self._lingers[0] and state.bytes < self._lingers[1]:
                return  # it would only go on waiting, a hundred times a second
        self.arrived.set()

    def nudge(self) -> None:
        """Try at once."""
        self._patience.nudged.set()
        self.arrived.set()

    def resume(self) -> None:
        """Count refusals anew, and try at once."""
        self._wave.reset()
        self._in_wave = False
        self.nudge()

    async def run(self) -> None:
        """Deliver until told to stop. A fault of ours is logged and costs a pause, never the lane."""
        while not self._common.stop.is_set():
            try:
                await self._round()
            except Stopped:
                break
            except Exception as error:
                self._log.exception("lane.fault")
                self._patience.back_off(Later(f"a fault of ours ({type(error).__name__}); see the log"))
        self._patience.doing("idle")

    # -- taking

    async def _round(self) -> None:
        await self._something()
        await self._patience.hold()
        batch = await self._take()
        if batch is None:
            return
        try:
            if await self._postponed(batch):
                return
            await self._work(batch)
        finally:
            self._pieces.clear()
            self._common.source.release(batch)

    async def _something(self) -> None:
        """Wait until the lane holds records."""
        while not self._state().pending:
            self._patience.doing("idle")
            self._since_ms, self.hurried = None, False
            self._common.changed.set()
            await self._patience.wait(self.arrived, None)
        if self._since_ms is None:
            self._since_ms = self._common.clock.boot_ms()

    async def _take(self) -> Batch | None:
        source, clock = self._common.source, self._common.clock
        try:
            verdict = await self._common.keeper.ready()
            if verdict is not None:
                if isinstance(verdict, Paused):
                    self._patience.pause(verdict.reason)
                else:
                    self._patience.back_off(verdict)
                return None
            gate, limits = self._common.keeper.gate(), self._common.sizes.limits(self.lane.kind, clock.boot_ms())
            before, self._erasures = self._state(), source.erasures
            self.arrived.clear()
            if self._is_new(before) and self._may_grow(before.pending, before.body_size, limits):
                await self._linger(limits.max_records, limits.max_bytes)
                return None
            found = await source.take(self.lane, limits, gate)
        except Unknown:
            self._patience.back_off(Later("the buffer cannot be used now"))
            return None
        if isinstance(found, Wait):
            self._patience.doing("idle")
            seconds = 60.0 if found.until_ms is None else (found.until_ms - gate.now_ms) / 1000
            self._common.changed.set()
            if await self._patience.wait(self.arrived, min(max(seconds, 0.01), 600.0)) and not self.hurried:
                # what came may leave earlier than what waits, yet not every arrival is worth a look
                await self._patience.wait(self._patience.nudged, min(self._config.batch.linger, max(seconds, 0.01)))
            return None
        if found is None or await self._grew(found, limits, before):
            return None
        self._sent_ms, self._seen_seq = clock.boot_ms(), before.last_seq
        self._horizon_ms = gate.horizon_ms
        return found

    async def _grew(self, batch: Batch, limits: Limits, before: LaneState) -> bool:
        """Wait for companions if the batch may get some: True when it is to be taken again.

        `before` is the lane as it was when the batch was taken.
        """
        if batch.from_aside:
            return False
        head, position = batch.spans[0].chunk, batch.spans[0].start
        if not self._came_since(head.id) and KINDS[self.lane.kind].time_ms(head.record(position)) <= self._horizon_ms:
            return False  # it could have gone with the last one, so more waits behind it
        if not self._may_grow(batch.count, len(batch.body), limits):
            return False
        self._common.source.release(batch)
        await self._linger(
            before.pending + limits.max_records - batch.count, before.bytes + limits.max_bytes - len(batch.body)
        )
        return True

    def _is_new(self, state: LaneState) -> bool:
        """Whether all of the lane is known to have come since the last batch: no take need tell."""
        head = self._common.source.head(self.lane)
        return head is not None and not state.aside and self._came_since(head)

    def _came_since(self, row: int) -> bool:
        return row & ((1 << SEQ_BITS) - 1) > self._seen_seq

    def _may_grow(self, count: int, size: int, limits: Limits) -> bool:
        """Whether companions of so many records and bytes are to be waited for."""
        if count >= limits.max_records or size >= limits.max_bytes * 0.95:
            return False
        return self._lingers_until_ms > self._common.clock.boot_ms() and not (self.hurried or self._patience.in_trouble)

    @property
    def _lingers_until_ms(self) -> float:
        begun = self._common.clock.boot_ms() if self._since_ms is None else self._since_ms
        return max(self._sent_ms, begun) + self._config.batch.linger * 1000

    async def _linger(self, records: int, size: int) -> None:
        """Wait until the lane holds so many records, or bytes, or has waited long enough and it is its turn."""
        common, until_ms = self._common, self._lingers_until_ms
        self._patience.doing("idle")
        self._lingers = (records, size)
        try:
            self.arrived.clear()
            self.came()  # enough of them, perhaps, meanwhile
            while (left_ms := max(until_ms, common.next_turn_ms) - common.clock.boot_ms()) > 0:
                if await self._patience.wait(self.arrived, left_ms / 1000):
                    return
            common.next_turn_ms = common.clock.boot_ms() + APART * self._config.batch.linger * 1000
        finally:
            self._lingers = None

    async def _postponed(self, batch: Batch) -> bool:
        """Set aside what is known to be refused now. True when nothing of the batch is left."""
        state = self._state()
        waited = batch.parked or batch.denied
        if self._in_wave and waited and state.pending > state.aside:
            await self._park(batch, "denied" if batch.denied else "parked")  # probes must reach what nobody has judged
            return True
        if not (self._denied or batch.denied or self._suspected):
            return False
        groups, now = _by_type(batch), self._common.clock.boot_ms()
        # of those that waited some find out for all of their type
        known = {label for label in groups if (self._denied.get(label, 0) > now if waited else label in self._denied)}
        if known:
            await self._park(batch.pick(i for label in known for i in groups[label]), "denied")
        apart = {label for label in groups.keys() - known if batch.denied or label == self._suspected}
        others = [i for label in groups.keys() - known - apart for i in groups[label]]
        self._pieces.extend(_Piece(batch.pick(some)) for some in (others, *(groups[label] for label in apart)) if some)
        return not self._pieces

    # -- delivering

    async def _work(self, batch: Batch) -> None:
        if not self._pieces:
            self._pieces.append(_Piece(batch))
        while self._pieces:
            await self._patience.hold()
            if self._common.source.erasures != self._erasures:
                return  # somebody was forgotten: take again what is left
            if self._common.keeper.horizon_ms() < self._horizon_ms:
                return  # the upstream's clock was set back: what is in hand may lie ahead of it now
            piece = self._head()
            part = piece.part
            outcome = await self._send(part)
            if not isinstance(outcome, Later | Paused):
                piece = self._judged(piece)
            match outcome:
                case Delivered():
                    await self._delivered(piece, part)
                case Later():
                    await self._later(piece, part, outcome)
                case Rejected():
                    await self._rejected(piece, part, outcome)
                case PartlyRejected():
                    await self._partly_rejected(piece, part, outcome)
                case TooLarge():
                    await self._too_large(piece, part, outcome)
                case Paused():
                    self._patience.pause(outcome.reason)
                case Forbidden():
                    await self._forbidden(piece, part, outcome)
                case _:
                    assert_never(outcome)

    def _head(self) -> _Piece:
        """The piece to go on with; while paused, or when it may itself be the trouble, only a few of it are sent.

        After a mere outage it goes whole: the same bytes as before, and a backlog leaves in full batches.
        """
        piece = self._pieces[0]
        if self._patience.paused is None and piece.tries < STUCK_ALONE:
            piece.probe = None
        elif piece.part.count > PROBE:
            piece.shrink()
        return piece

    def _judged(self, piece: _Piece) -> _Piece:
        """The piece an answer speaks of: a probe becomes one of its own."""
        if piece.probe is None:
            return piece
        start, stop = piece.probe
        probe = _Piece(piece.batch.part(start, stop), None, None, piece.tries, piece.since_ms)
        others = piece.batch.pick(i for i in range(piece.batch.count) if not start <= i < stop)
        self._replace(probe, *([_Piece(others, None, None, piece.tries, piece.since_ms)] if others.count else []))
        return probe

    async def _send(self, part: Batch) -> Outcome:
        rate = self._config.delivery.max_rate
        self._patience.expect(_WORK_S + (self._common.owed_s + part.count / rate if rate else 0.0))
        await self._common.within_rate(part.count)
        if self._common.stop.is_set():
            raise Stopped
        self._patience.doing("sending")
        reach("taken")
        self._patience.expect(self._request_s)
        begun_ms = self._common.clock.boot_ms()
        outcome = await self._common.upstream.deliver(part)
        self._note(part, outcome, (self._common.clock.boot_ms() - begun_ms) / 1000)
        return outcome

    def _note(self, part: Batch, outcome: Outcome, seconds: float) -> None:
        """Count a request for the metrics."""
        if (tally := self._common.tally) is None:
            return
        kind, size = self.lane.kind, len(part.body)
        tally.add("delivery_requests", kind=kind, outcome=type(outcome).__name__.lower())
        tally.add("delivery_bytes", size, kind=kind)
        tally.observe("delivery_request_duration_seconds", seconds, kind=kind)
        limits = self._common.sizes.limits(kind, self._common.clock.boot_ms())
        fill = max(part.count / limits.max_records, size / limits.max_bytes)
        tally.observe("batch_fill_ratio", min(fill, 1.0), kind=kind)
        if isinstance(outcome, Later | Paused):
            tally.add("delivery_retries", kind=kind, reason=_cause(outcome))

    async def _delivered(self, piece: _Piece, part: Batch) -> None:
        reach("delivered")
        await self._settle((part, batcher.Delivered()))
        self._passed(part)
        if piece.search is not None:
            piece.search.accepted()
        self._finish(piece)

    async def _later(self, piece: _Piece, part: Batch, outcome: Later) -> None:
        if outcome.sticks and part.parked:
            # suspected already: it waits on, and the lane does not wait for it
            self.status.last_error = outcome.reason
            await self._park(part)
            self._set_aside(piece)
            return
        if outcome.sticks:
            piece.since_ms = piece.since_ms if piece.tries else self._common.clock.boot_ms()
            piece.tries += 1
            if piece.tries >= STUCK and await self._suspect(piece, part, outcome):
                return
        self._patience.back_off(outcome)

    async def _suspect(self, piece: _Piece, part: Batch, outcome: Later) -> bool:
        """The same batch fails again and again. True when something else can be tried at once."""
        if self._common.passed_ms > piece.since_ms:
            # others pass, so it is this batch: find the record, and let it wait without holding up the rest
            piece = self._judged(piece)
            if part.count == 1:
                await self._park(part)
                self._log.warning("record.parked", reason=outcome.reason)
                self._refused_part(piece, ())
                piece.tries = 0
            elif outcome.status is None:
                await self._split(part)  # the connection does not survive so many bytes
            else:
                self._refused_part(piece, ())
            return True
        if piece.tries < STUCK_ALONE:
            return False
        # nobody passes, or nobody tries: let others of this lane show whether it is the upstream
        if piece.probe is not None:
            piece.move_on()
        elif len(self._pieces) > 1:
            self._pieces.rotate(-1)
        elif part.count > 1:
            piece.shrink()
        elif not self._parked_blind:
            self._parked_blind = True
            await self._park(part, seconds=self._patience.delay_s(self._patience.failures))
            self._refused_part(piece, ())
        return False

    async def _rejected(self, piece: _Piece, part: Batch, outcome: Rejected) -> None:
        self._answered(f"{outcome.status}: a record is refused")
        if self._in_wave:
            await self._park(part)
            self._set_aside(piece)
            self._patience.pause(self._patience.paused or "a wave of refusals")
        elif part.count > 1:
            self._refused_part(piece, outcome.hints)
        else:
            await self._refused_alone(part, Dead(outcome.reason, outcome.status, outcome.answer))
            self._refused_part(piece, ())

    async def _partly_rejected(self, piece: _Piece, part: Batch, outcome: PartlyRejected) -> None:
        self._answered(f"{outcome.status}: some records are refused")
        others = part.pick(i for i in range(part.count) if i not in outcome.rejected)
        if outcome.complete and others.count:
            await self._settle((others, batcher.Delivered()))
            self._passed(others)
        for index, reason in outcome.rejected.items():
            await self._refused_alone(part.pick((index,)), Dead(reason, outcome.status, outcome.answer))
        pieces = [] if outcome.complete else [_Piece(others.part(i, i + 1)) for i in range(others.count)]
        if piece.search is not None:
            inside = set(piece.search.part)
            pieces.append(_Piece(piece.batch.pick(i for i in piece.search.left if i not in inside)))
        self._replace(*(each for each in pieces if each.batch.count))

    async def _too_large(self, piece: _Piece, part: Batch, outcome: TooLarge) -> None:
        self._answered(f"{outcome.status}: too large")
        if part.count > 1:
            await self._split(part)
            return
        reason = f"{outcome.status}: too large for the upstream even alone ({len(part.body)} bytes)"
        await self._refused_alone(part, Dead(reason, outcome.status, outcome.answer))
        self._refused_part(piece, ())

    async def _split(self, part: Batch) -> None:
        limit = await self._common.sizes.learn(self.lane.kind, len(part.body), self._common.clock.boot_ms())
        self._log.info("batch.split", bytes=len(part.body), limit=limit)
        # the other pieces in hand are no smaller for having waited
        self._pieces = deque(_Piece(part) for each in self._pieces for part in _by_bytes(each.left, limit))

    async def _forbidden(self, piece: _Piece, part: Batch, outcome: Forbidden) -> None:
        groups = _by_type(part) if self.lane.kind == "events" else {}
        if len(groups) > 1:
            await self._apart(piece, part, groups, outcome)
        elif part.parked or part.denied or self._denied.keys() & groups.keys():
            await self._park(part, "denied" if groups else "parked")
            self._set_aside(piece)
            self._deny(groups)
        else:
            self._patience.pause(outcome.reason)
            if groups:
                # what has come meanwhile may show whether it is this type alone: take again, others first
                (self._suspected,) = groups
                self._pieces.clear()

    async def _apart(self, piece: _Piece, part: Batch, groups: dict[str, list[int]], outcome: Forbidden) -> None:
        """Try the event types one by one: those that are refused wait aside, if any other passes."""
        refused: dict[str, Batch] = {}
        left: list[Batch] = []
        permitted = False
        for label, indices in groups.items():
            group = part.pick(indices)
            match await self._send(group):
                case Delivered():
                    await self._settle((group, batcher.Delivered()))
                    self._passed(group)
                    permitted = True
                case Forbidden():
                    refused[label] = group
                case other:
                    left.append(group)
                    permitted = permitted or isinstance(other, Rejected | PartlyRejected)
        if permitted or part.denied:
            for group in refused.values():
                await self._park(group, "denied")
            self._deny(refused)
            self._log.error("types.refused", types=sorted(refused), status=outcome.status)
        else:
            left.extend(refused.values())
            self._patience.pause(outcome.reason)
        if piece.search is not None:
            inside = set(piece.search.part)
            left.append(piece.batch.pick(i for i in piece.search.left if i not in inside))
        self._replace(*(_Piece(each) for each in left if each.count))

    def _deny(self, labels: Iterable[str]) -> None:
        again_ms = self._common.clock.boot_ms() + round(self._config.delivery.backoff_max * 1000)
        self._denied.update(dict.fromkeys(labels, again_ms))

    # -- what becomes of pieces

    def _replace(self, *pieces: _Piece) -> None:
        """Put these in the place of the first piece."""
        self._pieces.popleft()
        self._pieces.extendleft(reversed(pieces))

    def _finish(self, piece: _Piece) -> None:
        """Let the first piece go if nothing of it is left."""
        if piece.search is None or not piece.search.part:
            self._pieces.popleft()

    def _refused_part(self, piece: _Piece, hints: Sequence[int]) -> None:
        if piece.search is not None:
            piece.search.refused(hints)
        elif piece.batch.count > 1:
            piece.search = Search(piece.batch.count, hints)
            return
        self._finish(piece)

    def _set_aside(self, piece: _Piece) -> None:
        """All of the part that was sent is aside."""
        if piece.search is None:
            self._pieces.popleft()
        else:
            inside = set(piece.search.part)
            left = piece.batch.pick(i for i in piece.search.left if i not in inside)
            self._replace(*([_Piece(left)] if left.count else []))

    async def _refused_alone(self, part: Batch, fate: Dead) -> None:
        """Bury a record, unless too many were refused of late: then it waits, and so does the lane."""
        if self._wave.full:
            await self._park(part)
            if not part.parked:
                self._pause_for_wave()
            return
        await self._settle((part, fate))
        self._log.warning("record.buried", status=fate.status)
        if self._common.tally is not None:
            self._common.tally.add("buried_records", part.count, kind=self.lane.kind)
        if self._wave.refused():
            self._pause_for_wave()

    async def _park(
        self, part: Batch, reason: Literal["parked", "denied"] = "parked", seconds: float | None = None
    ) -> None:
        """Let records wait aside, by default for long."""
        if seconds is None:
            delivery = self._config.delivery
            longest = max(delivery.backoff_max, _PAUSED_PARK * delivery.pause_probe if self._in_wave else 0.0)
            seconds = longest * (1 + self._common.chance() / 5)
        due_ms = self._common.clock.boot_ms() + round(seconds * 1000)
        await self._settle((part, Aside(reason, due_ms)))

    async def _settle(self, *fates: tuple[Batch, Fate]) -> None:
        """Note fates on disk. While the disk will not have them only the note is tried again, never the request."""
        failures = 0
        stuck: str | None = None
        while True:
            try:
                await self._common.source.settle(fates)
                break
            except DeadLettersFull as error:
                stuck, seconds = str(error), self._config.delivery.pause_probe
            except Unknown:
                failures += 1
                stuck, seconds = "the buffer cannot be written", self._patience.delay_s(failures)
            self._patience.pause(stuck, seconds)
            await self._patience.hold()
        if stuck is not None and self._patience.paused == stuck and not self._in_wave:
            self._patience.resumed()
        self._common.changed.set()

    def _passed(self, part: Batch) -> None:
        """Records were accepted."""
        self._wave.delivered(part.count)
        if self._common.tally is not None and (repaired := part.repaired):
            self._common.tally.add("clock_corrected_records", repaired)
        self._common.passed_ms = self._common.clock.boot_ms()
        self._parked_blind = False
        self._in_wave = False
        for piece in self._pieces:
            piece.tries = min(piece.tries, STUCK)  # the upstream works: no more need for small batches
        if self._denied or self._suspected:
            labels = _by_type(part)
            if self._suspected is not None and self._suspected not in labels:
                self._deny((self._suspected,))
            self._suspected = None
            for label in labels:
                self._denied.pop(label, None)
        self._answered(None)

    def _answered(self, said: str | None) -> None:
        """The upstream dealt with our records: no outage, and no reason to pause but a wave."""
        self._patience.answered(said)
        if not self._in_wave:
            self._patience.resumed()

    def _pause_for_wave(self) -> None:
        self._in_wave = True
        self._patience.pause(
            f"{self._wave.limit} of the last {self._wave.window} records were refused: nothing more is buried; "
            "look at the dead letters, then resume"
        )

    def _state(self) -> LaneState:
        return self._common.source.lane(self.lane) or LaneState(self.lane, 0)


def _cause(outcome: Later | Paused) -> str:
    """Why a request is to be repeated, in one of few words: nothing the upstream said."""
    if outcome.status is not None:
        return str(outcome.status)
    if isinstance(outcome, Paused):
        return "tls" if outcome.reason.startswith("TLS") else "credentials"
    return "offline" if outcome.offline else "no-answer"


class _Label(msgspec.Struct):
    type: str = ""
    action: str = ""


_label_of: Final = msgspec.json.Decoder(_Label).decode
"""Skips everything else: a record may hold numbers that no parser turns into a value."""


def _by_type(batch: Batch) -> dict[str, list[int]]:
    """Positions by what an upstream may permit apart: the event type, for custom events with their action."""
    events = [_label_of(batch.record(i)) for i in range(batch.count)]
    labels = [f"custom:{event.action}" if event.type == "custom" else event.type for event in events]
    if len(set(labels)) > _TYPES_MAX:
        labels = [label.partition(":")[0] for label in labels]
    groups: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    return groups


def _by_bytes(batch: Batch, limit: int) -> Iterable[Batch]:
    """Parts whose bodies are within `limit` bytes, or a single record."""
    start, size = 0, 1
    for index in range(batch.count):
        length = len(batch.record(index)) + 1
        if index > start and size + length > limit:
            yield batch.part(start, index)
            start, size = index, 1
        size += length
    yield batch.part(start, batch.count)
