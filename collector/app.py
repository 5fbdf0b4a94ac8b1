"""The collector: the one file that knows every part. Read it first.

    ingest -> buffer -> lanes -> delivery        (server.py, buffer.py, lanes.py, delivery.py)
                 clock keeper beside              (clock.py)

`Collector` is what applications hold: it owns a daemon thread with an event loop of its own, on
which everything else lives. An aiosqlite connection left open in the main thread would keep the
interpreter from ending, and an application's own loop must not wait for our disk.
"""

import asyncio
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from collector import deadletters, metrics
from collector.buffer import Buffer, Unknown
from collector.clock import Keeper
from collector.config import ConfigError
from collector.crashpoints import reach
from collector.credentials import make_credentials
from collector.delivery import Http, HttpUpstream
from collector.files import BufferInUse, BufferUnusable, beside
from collector.history import History
from collector.ingest import Ingest
from collector.kinds import Lane, Parcel
from collector.lanes import Lanes
from collector.logs import Repeats, logger
from collector.operations import BufferOperations
from collector.pulse import Pulse
from collector.server import SHUTDOWN_S, Check, Server
from collector.settings import Settings, embedded
from collector.status import State, status_of
from collector.tokens import AdminToken, Tokens
from collector.troubles import condition
from collector.units import parse_duration
from collector.waiting import SystemTimer, Timer
from tracker.time import Clock, SystemClock
from tracker.wire import ClockHeader

__all__ = ["BufferInUse", "BufferUnusable", "Collector", "offline"]

T = TypeVar("T")
log = logger("collector")

QUIET_S: Final = 1.0
"""A stopping collector takes records until none came for this long."""
CLOSING_S: Final = 4.0
"""The least time for the last commit and checkpoint, beyond the grace if need be; a disk that hangs ends nothing."""
REVIVE_EVERY_S: Final = 30.0
FAILED_FOR_S: Final = 600.0
"""A buffer that stays failed for so long ends the sidecar."""
DISK: Final = "disk"
WRITER: Final = "writer"
LOOK_EVERY_S: Final = 2.0
"""How often the disk is looked at while nothing is committed."""
EXPIRE_EVERY_S: Final = 3600.0


class CollectorFailed(Exception):
    """A part of the collector died; the process should end so that a supervisor starts it again."""


class LoopTrouble:
    """What asyncio has to tell, in a line: its own report quotes objects, and so maybe records, with a traceback.

    The same message is said once a minute: a process without descriptors fails to accept every second.
    """

    def __init__(self) -> None:
        self._repeats = Repeats()

    def __call__(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message, error = str(context["message"]), context.get("exception")
        if self._repeats.due(message) is not None:
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else None
            log.error("loop trouble", what=message, error=type(error).__name__ if error else None, why=why)


class Parts:
    """Everything that runs on the collector's loop; made, opened and closed there."""

    def __init__(self, settings: Settings, clock: Clock | None = None, timer: Timer | None = None) -> None:
        self.settings = settings
        self.config = settings.config
        self.clock = clock or SystemClock()
        self.state: State = "starting"
        self.counters = metrics.Counters()
        self.timer = timer or SystemTimer()
        self.failure: Exception | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._mend_due = asyncio.Event()
        self._looks = 0
        self._looking = False
        self.pulse = Pulse()

    # -- opening and closing ------------------------------------------------------------------

    async def open(self) -> None:
        """Open in the order a record travels, so that nothing is accepted that could not be kept."""
        config = self.config
        try:
            self.http = Http(config.upstream, self.clock)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self.buffer = await Buffer.open(
            config.buffer.path,
            max_size=config.buffer.max_size,
            when_full=config.buffer.when_full,
            dead_max=config.dead.max_size,
            clock=self.clock,
        )
        self.keeper = Keeper(
            self.http, self.buffer, self.clock, config.clock, delivery=config.delivery, timer=self.timer,
            chance=random.random,
        )  # fmt: skip
        self.http.on_answer = self.keeper.on_answer
        self.buffer.on_commit = self._committed
        self.buffer.tell_time = self.keeper.upstream.now_ms
        self.credentials = make_credentials(
            config.upstream, self._upstream_secret(), self.http, self.clock, self.keeper.upstream.now_ms,
            retry_after_max_s=config.delivery.retry_after_max,
            on_login=lambda outcome: self.counters.add("logins", outcome=outcome),
        )  # fmt: skip
        self.upstream = HttpUpstream(self.http, self.credentials, is_chain=config.upstream.auth == "token")
        self.lanes = Lanes(
            self.buffer, self.upstream, self.keeper, config, clock=self.clock, timer=self.timer, tally=self.counters,
            on_end=self._ended,
        )  # fmt: skip
        self.history = History(
            self.buffer, self.clock, self.keeper.upstream.now_ms, lambda: self.keeper.upstream.synchronised
        )
        self.server = Server(
            config,
            Ingest(config, self.clock, self.keeper.upstream.known_ms),
            self,
            Operations(self),
            tokens=Tokens(self.settings.secrets.ingest_token),
            admin_token=AdminToken(self.settings.secrets.admin_token),
            on_ingest=lambda status: self.counters.add("ingest_requests", status=str(status)),
        )
        try:
            await self.keeper.start()
            await self.history.load()
            await self.server.start(beside(self.buffer.path, ".sock") if hasattr(os, "fork") else None)
        except BaseException as error:
            await self.server.close()
            await self.buffer.close()
            await self.http.close()
            if isinstance(error, Unknown):
                raise BufferUnusable(self.buffer.path, f"{error}. Look after the disk.") from error
            raise
        self.buffer.writer.add_done_callback(self._ended)
        self._begin(self.keeper.run(self._stop), "clock")
        await self.lanes.start()
        self._begin(self._watch(), "watch")
        self._begin(self._mend(), "mend")
        self._begin(self._look(), "look")
        self.state = "running"
        ledger = self.buffer.ledger()
        log.info("started", buffer=str(self.buffer.path), pending=ledger["pending"], dead=ledger["dead"])

    def _committed(self, seconds: float) -> None:
        self.counters.add("commits")
        self.counters.observe("commit_sync_duration_seconds", seconds)

    def _upstream_secret(self) -> Callable[[], str]:
        secret = self.settings.upstream_secret
        assert secret is not None, "Settings.check refuses a configuration without one"
        return secret

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=f"tillpost-{name}")
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A part that ends while the collector runs must not leave it healthy but idle."""
        error = None if task.cancelled() else task.exception()
        if self._stop.is_set():
            return
        why = "cancelled" if task.cancelled() else type(error).__name__ if error else "ended"
        log.critical("part died", part=task.get_name(), why=why)
        # the type alone: a message may quote what it choked on
        self.failure = self.failure or CollectorFailed(f"{task.get_name()} died ({why})")
        self.state = "failed"

    async def close(self) -> None:
        """Stop well (G11): what is under way finishes, what is not confirmed stays on the disk."""
        deadline = time.monotonic() + self.config.shutdown.grace
        self.state = "stopping"
        self.server.accepting = False
        if self.config.shutdown.drain:
            await self.lanes.drain(max(0.0, deadline - time.monotonic() - QUIET_S))
        if self.server.addresses and self.failure is None:
            await self._quiet(deadline - QUIET_S - SHUTDOWN_S)
        await self.server.close(min(SHUTDOWN_S, max(0.1, deadline - time.monotonic())))
        self._stop.set()
        await self.lanes.stop(max(0.0, deadline - time.monotonic()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.keeper.close()
        await self.credentials.close()
        await self.http.close()
        reach("stopping")
        closing = asyncio.create_task(self.buffer.close(), name="tillpost-closing")
        if (await asyncio.wait((closing,), timeout=max(CLOSING_S, deadline - time.monotonic())))[1]:
            log.critical("buffer does not close", path=str(self.buffer.path))
            return
        closing.result()
        self.state = "stopped"
        log.info("closed", pending=self.buffer.ledger()["pending"])

    async def _quiet(self, deadline: float) -> None:
        """Until no record has come for a second: clients that are stopping too may still hand theirs over."""
        while (now := time.monotonic()) < deadline:
            idle = now - self.server.last_ingest
            if idle >= QUIET_S and not self.server.in_progress:
                return
            await asyncio.sleep(min(0.05 if self.server.in_progress else QUIET_S - idle, deadline - now))

    async def _watch(self) -> None:
        """Look for what hangs. Waits for nothing that could hang itself."""
        while not await self.timer.wait(self._stop, REVIVE_EVERY_S):
            self._look_for_stuck()
            self._mend_due.set()

    async def _mend(self) -> None:
        """Revive a failed buffer, or give up on it; discard dead letters that are past `dead.keep`."""
        failed_since: float | None = None
        expired = -EXPIRE_EVERY_S
        while True:
            await self._mend_due.wait()
            self._mend_due.clear()
            now = self.clock.boot_ms() / 1000
            if self.buffer.failed is None:
                failed_since = None
            else:
                failed_since = failed_since or now
                if await self.buffer.revive():
                    failed_since = None
                    self.lanes.nudge()
                elif now - failed_since > FAILED_FOR_S:
                    self.failure = BufferUnusable(self.buffer.path, f"it failed for ten minutes: {self.buffer.failed}")
                    self.state = "failed"
            if now - expired > EXPIRE_EVERY_S and await self._expire():
                expired = now

    async def _look(self) -> None:
        """Notice files that are taken away, let the lanes go on as soon as a full disk has room again; remember."""
        while not await self.timer.wait(self._stop, LOOK_EVERY_S):
            was_tight = self.buffer.is_tight
            self._looks += 1
            self._looking = True
            await self.buffer.look()
            self._looking = False
            if self.buffer.moved and self.failure is None:
                self.failure = BufferUnusable(self.buffer.path, f"{self.buffer.failed}. Put them back, or start anew.")
                self.state = "failed"
            elif was_tight and not self.buffer.is_tight:
                self.lanes.nudge()
            await self.history.look({str(lane): doing.last_error for lane, doing in self.lanes.activity().items()})

    async def _expire(self) -> bool:
        """Discard dead letters past `dead.keep`, unless only our own clock tells their age: it may be years ahead."""
        keep = self.config.dead.keep
        if not keep or not self.keeper.upstream.synchronised:
            return False
        with suppress(Unknown):
            if count := await deadletters.expire(self.buffer, parse_duration(keep)):
                log.warning("dead letters discarded", count=count, older_than=keep)
        return True

    def _look_for_stuck(self) -> None:
        """A disk, a thread that is gone, a task that waits for what never comes."""
        now: dict[str, Hashable] = {str(lane): pulse for lane, pulse in self.lanes.pulses().items()}
        if self.buffer.under_way is not None:
            now[DISK] = self.buffer.under_way
        if self._looking:
            now[WRITER] = self._looks
        ended = self.pulse.look(now)
        if not ended or self.failure is not None:
            return
        self.state = "failed"
        if DISK in ended or WRITER in ended:
            log.critical("buffer stuck", path=str(self.buffer.path))
            self.failure = BufferUnusable(self.buffer.path, "a transaction does not end: the disk hangs")
        else:
            log.critical("part died", part=ended[0], why="it does not get on")
            self.failure = CollectorFailed(f"{ended[0]} does not get on")

    # -- what the server asks -----------------------------------------------------------------

    async def append(self, parcels: Sequence[Parcel], clock: ClockHeader | None) -> None:
        if clock is not None:
            await self.keeper.saw(clock)
        await self.buffer.append(parcels)

    def server_time_ms(self) -> int | None:
        return self.keeper.upstream.known_ms()

    def checks(self) -> Sequence[Check]:
        """An upstream that is away is nobody's reason to restart us."""
        alive = self.failure is None and not self.buffer.writer.done()
        stuck = self.pulse.stuck
        lanes = [name for name in stuck if name not in (DISK, WRITER)]
        used, usable = self.buffer.used_bytes, self.buffer.sizes.usable
        return [
            Check("buffer", self.buffer.failed is None, self.buffer.failed or str(self.buffer.path), vital=True),
            Check("disk", len(stuck) == len(lanes), "" if len(stuck) == len(lanes) else "hangs", vital=True),
            Check("lanes", not lanes, f"not getting on: {', '.join(lanes)}" if lanes else "", vital=True),
            Check("parts", alive, "" if alive else str(self.failure or "its writer ended"), vital=True),
            Check(
                "space",
                not self.buffer.is_full,
                "the disk is full" if self.buffer.is_tight else f"{used * 100 // usable} % of the buffer used",
            ),
            Check("state", self.state in ("running", "draining"), self.state),
            # what is lost is lost: a restart would not bring it back, but somebody should know
            *([Check("damage", True, str(self.buffer.damage))] if self.buffer.damage else []),
        ]

    def details(self) -> Sequence[Check]:
        """What a person wants to know besides; nothing of it makes the collector unready."""
        activity, clock = self.lanes.activity(), self.keeper.status()
        ledger, offset = self.buffer.ledger(), clock["offset_ms"]
        details = [
            Check("ledger", True, ", ".join(f"{name} {count}" for name, count in ledger.items())),
            Check("clock", True, "not known yet" if offset is None else f"the upstream's is {offset:+d} ms to ours"),
            Check("writer", not self.buffer.writer.done(), f"{self.buffer.transactions} transactions"),
        ]
        for row in self.buffer.lanes():
            doing = activity.get(row.lane)
            text = f"{doing.state if doing else 'idle'}, {row.pending} pending, {row.aside} aside"
            if doing is not None and doing.last_error:
                text += f", {doing.attempts} attempts: {doing.last_error}"
            details.append(Check(f"lane {row.lane}", str(row.lane) not in self.pulse.stuck, text))
        return details

    async def status(self) -> dict[str, Any]:
        facts = await self._measured()
        facts |= {"today": self.history.today(), "errors": self.history.errors(), "dead_letters": await self._latest()}
        facts["operations"] = "token" if self.settings.secrets.admin_token is not None else "socket"
        return facts | {"condition": condition(facts)}

    async def _measured(self) -> dict[str, Any]:
        """The part of the status that is measured, and all that the metrics need of it."""
        upstream = self.config.upstream
        return await status_of(
            self.buffer,
            state="failed" if self.buffer.failed else self.state,
            activity=self.lanes.activity(),
            clock=self.keeper.status() | {"estimated": self.keeper.estimated},
            upstream={"url": upstream.url, "auth": upstream.auth, "token_age_s": self.credentials.token_age_s},
            listening=self.server.addresses,
        )

    async def _latest(self) -> list[dict[str, Any]]:
        with suppress(Unknown):
            if (ledger := self.buffer.ledger())["dead"] or ledger["superseded"]:
                return await deadletters.latest(self.buffer)
        return []

    def minutes(self, count: int) -> Mapping[str, Any]:
        return self.history.minutes(count)

    async def metrics(self) -> bytes:
        return metrics.render(await self._measured(), self.counters)

    # -- draining -----------------------------------------------------------------------------

    async def drain(self, timeout: float | None = None) -> bool:
        """Send everything that may leave, now; True when all is settled."""
        if self.state == "running":
            self.state = "draining"
        try:
            return not await self.lanes.drain(timeout)
        finally:
            if self.state == "draining":
                self.state = "running"


class Operations(BufferOperations):
    """The operations of a running collector."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.buffer)
        self._parts = parts
        self._draining: asyncio.Task[bool] | None = None

    async def status(self) -> dict[str, Any]:
        return await self._parts.status()

    async def retry(self, ids: Sequence[int] | None, force: bool = False) -> dict[str, int]:
        return await super().retry(ids, force)

    async def drain(self) -> None:
        """Begin; the answer does not wait."""
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._parts.drain(), name="tillpost-drain")

    async def resume(self, lane: str | None) -> dict[str, int]:
        """``{"count": n}`` lanes that were paused. Raises ValueError for a lane that is none."""
        return {"count": self._parts.lanes.resume(None if lane is None else Lane.parse(lane))}


class Collector:
    """A collector in this process: its own thread, its own buffer file.

    Args:
        buffer: the buffer file; one process owns it.
        upstream: where batches go; the API, or another collector.
        api_key: the workspace's key; else ``TILLPOST_API_KEY`` or the file the configuration names.
        config: a mapping or the path of a TOML file, with the keys of ``tillpost config``. There is no TCP
            listener unless ``ingest.listen`` is given.

    Raises ConfigError for a wrong configuration. Nothing is opened before `start`, or before the first
    record of a ``Tracker(collector)``. Also a context manager, also ``async with``.
    """

    def __init__(
        self,
        buffer: str | os.PathLike[str] | None = None,
        *,
        upstream: str | None = None,
        api_key: str | None = None,
        config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    ) -> None:
        self._settings = embedded(buffer=buffer, upstream=upstream, api_key=api_key, config=config).check()
        self._reset()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """A collector with settings read elsewhere."""
        collector = cls.__new__(cls)
        collector._settings = settings.check()
        collector._reset()
        return collector

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._parts: Parts | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid: int | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Collector {self._settings.config.buffer.path}>"

    @property
    def path(self) -> Path:
        """The buffer file."""
        return Path(self._settings.config.buffer.path)

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the buffer and begin to deliver; nothing when it runs already.

        Raises BufferInUse (in a forked child too: its parent holds the file), BufferUnusable, ConfigError
        or ListenError.
        """
        if self._pid is not None and self._pid != os.getpid():
            raise BufferInUse(self.path, self._pid)
        with self._lock:
            if self._closed:
                raise RuntimeError("this collector was closed: make another one")
            if self._parts is not None:
                return
            self._pid = os.getpid()
            started: list[BaseException | None] = []
            ready = threading.Event()

            def live() -> None:
                loop = asyncio.new_event_loop()
                loop.set_exception_handler(LoopTrouble())
                try:
                    parts = loop.run_until_complete(_opened(self._settings))
                except BaseException as error:
                    started.append(error)
                    loop.close()
                    ready.set()
                    return
                self._loop, self._parts = loop, parts
                ready.set()
                loop.run_forever()
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()

            thread = threading.Thread(target=live, name="tillpost-collector", daemon=True)
            thread.start()
            ready.wait()
            if started:
                thread.join()
                self._pid = None
                error = started[0]
                assert error is not None
                raise error
            self._thread = thread

    def close(self) -> None:
        """Stop well: finish what is under way, leave the rest on the disk. Bounded by ``shutdown.grace``."""
        if self._pid is not None and self._pid != os.getpid():
            return  # a forked child never closes its parent's files
        with self._lock:
            self._closed = True
            parts, loop, thread = self._parts, self._loop, self._thread
            self._parts = None
        if parts is None or loop is None or thread is None or not thread.is_alive():
            return
        try:
            asyncio.run_coroutine_threadsafe(parts.close(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _on_loop(self, work: Callable[[Parts], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        self.start()
        parts, loop = self._parts, self._loop
        if parts is None or loop is None:
            raise RuntimeError("this collector was closed: make another one")
        future = asyncio.run_coroutine_threadsafe(work(parts), loop)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise

    # -- use ----------------------------------------------------------------------------------

    def receive(
        self, path: str, body: bytes, headers: Mapping[str, str], timeout: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Take the records of one request as the HTTP listener would: status, headers, body.

        For `Tracker`. Raises TimeoutError when there is no answer in time; the records may be stored.
        """
        return self._on_loop(lambda parts: parts.server.receive(path, body, headers), timeout)

    def status(self) -> dict[str, Any]:
        """The body of ``status.json``."""
        return self._on_loop(lambda parts: parts.status())

    def drain(self, timeout: float | None = None) -> bool:
        """Send everything that may leave, now; True when all is settled within `timeout` seconds."""
        return self._on_loop(lambda parts: parts.drain(timeout))

    def reload(self) -> None:
        """Read credential files again; paused lanes try at once."""

        async def again(parts: Parts) -> None:
            parts.credentials.reload()
            parts.lanes.nudge()

        self._on_loop(again)

    @property
    def urls(self) -> list[str]:
        """Where it listens, as a client writes it: ``http://127.0.0.1:8787``, ``unix:///run/tillpost.sock``."""
        parts = self._parts
        if parts is None:
            return []
        admin = f"unix:{beside(parts.buffer.path, '.sock')}"
        found = [address for address in parts.server.addresses if address != admin]
        return [
            f"unix://{address.removeprefix('unix:')}" if address.startswith("unix:") else f"http://{address}"
            for address in found
        ]

    def moves(self, timeout_s: float) -> bool:
        """Whether its loop answers in time and nothing on it is stuck. For a watchdog: else only a new start helps."""
        parts, loop = self._parts, self._loop
        if parts is None or loop is None:
            return False

        async def asked() -> bool:
            return not parts.pulse.stuck and not parts.buffer.writer.done()

        question = asyncio.run_coroutine_threadsafe(asked(), loop)
        try:
            return question.result(timeout_s)
        except (TimeoutError, CancelledError):
            question.cancel()
            return False

    @property
    def failure(self) -> Exception | None:
        """Why it cannot go on; None while it can. A sidecar ends then, an embedded collector never ends its host."""
        parts, thread = self._parts, self._thread
        if parts is not None and thread is not None and not thread.is_alive():
            return CollectorFailed("its thread ended")
        return None if parts is None else parts.failure

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the same for asyncio -----------------------------------------------------------------

    async def astart(self) -> None:
        """`start`, without blocking the caller's loop."""
        await asyncio.to_thread(self.start)

    async def aclose(self) -> None:
        """`close`, without blocking the caller's loop."""
        await asyncio.to_thread(self.close)

    async def astatus(self) -> dict[str, Any]:
        """`status`, without blocking the caller's loop."""
        return await asyncio.to_thread(self.status)

    async def adrain(self, timeout: float | None = None) -> bool:
        """`drain`, without blocking the caller's loop."""
        return await asyncio.to_thread(self.drain, timeout)

    async def __aenter__(self) -> Self:
        await self.astart()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _opened(settings: Settings) -> Parts:
    parts = Parts(settings)
    await parts.open()
    return parts


@asynccontextmanager
async def offline(settings: Settings) -> AsyncIterator[BufferOperations]:
    """The operations on a buffer file nobody holds. Raises BufferInUse and BufferUnusable."""
    config = settings.config
    buffer = await Buffer.open(
        config.buffer.path,
        max_size=config.buffer.max_size,
        when_full=config.buffer.when_full,
        dead_max=config.dead.max_size,
    )
    try:
        yield BufferOperations(buffer)
    finally:
        with suppress(asyncio.CancelledError):
            await buffer.close()
