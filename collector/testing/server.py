"""`FakeUpstream`: the strict stand-in for the API as a real server on loopback."""

import asyncio
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import EllipsisType, TracebackType
from typing import Any, Self

import msgspec
import orjson
from aiohttp import web

from collector.testing.api import Api
from collector.testing.call import Request
from collector.testing.faults import Fault, Script, make_fault
from collector.testing.handler import Handler
from collector.testing.report import report
from collector.testing.store import Buy, Entry, Profile, buys_of
from collector.testing.switches import Switches


class FakeUpstream:
    """The strict stand-in for the API, listening on loopback.

    ``async with FakeUpstream(api_key="k") as fake`` runs in the current event loop, plain
    ``with`` in a thread of its own. Everything it has seen may be read from any thread,
    also after it was stopped; entering it again listens on the same port with the same
    memory. `api_key` None accepts every non-empty key. The keyword arguments are the
    fields of `Switches`; an unknown one raises ValueError naming the nearest. `wall_ms` and
    `monotonic` replace its clocks.
    """

    def __init__(
        self,
        api_key: str | None = "test-key",
        *,
        listen: str = "127.0.0.1:0",
        wall_ms: Callable[[], int] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        **switches: Any,
    ) -> None:
        self.switches = Switches.of(switches)
        self._host, self._port = _address(listen)
        self._script = Script()
        wall = wall_ms or (lambda: time.time_ns() // 1_000_000)
        self._api = Api(
            api_key, self.switches, wall_ms=lambda: wall() + self._script.clock_offset_ms, monotonic=monotonic
        )
        self._handler = Handler(self._api, self._script, self)
        self._runner: web.ServerRunner | None = None
        self._thread: threading.Thread | None = None
        self._stop_thread: Callable[[], object] | None = None

    def __repr__(self) -> str:
        return f"<FakeUpstream {self.url} stored={self.stored_count} violations={self._api.violation_count}>"

    # What it has seen

    @property
    def url(self) -> str:
        """Base URL, for example ``http://127.0.0.1:40123``. The port is known once it listens."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def stored(self) -> list[dict[str, Any]]:
        """Every stored event and transaction as sent, in the order first stored; an overwrite replaces in place.

        Decoded anew at each call: in a loop over many records take it once, or use `stored_count`.
        """
        return [orjson.loads(entry.raw) for entry in self.entries]

    @property
    def stored_count(self) -> int:
        """Length of `stored`, at no cost."""
        return len(self._api.store.entries)

    @property
    def entries(self) -> list[Entry]:
        """What is stored, with profile, action, stored time, raw bytes and number of overwrites."""
        return list(self._api.store.entries)

    @property
    def buys(self) -> list[Buy]:
        """The ``product.buy`` events of the stored transactions."""
        with self._handler.lock:
            return [buy for entry in self._api.store.entries for buy in buys_of(entry)]

    @property
    def profiles(self) -> list[Profile]:
        """Every profile once, with identifiers and attributes."""
        with self._handler.lock:
            return self._api.store.profiles

    @property
    def requests(self) -> list[Request]:
        """Every request in the order they ended; one that still waits is in `in_progress`."""
        return list(self._handler.requests)

    @property
    def in_progress(self) -> int:
        """Requests that have begun and not ended: a body under way, a fault that delays or hangs."""
        return self._handler.in_progress

    @property
    def overwritten(self) -> int:
        """How many records arrived that overwrote a stored one."""
        return self._api.store.overwritten

    @property
    def altered(self) -> int:
        """Those of `overwritten` whose bytes differed from what was stored."""
        return self._api.store.altered

    @property
    def dropped(self) -> int:
        """Records accepted and thrown away for the key's denylist (``denied_events="drop"``)."""
        return self._api.dropped

    @property
    def violations(self) -> list[str]:
        """What a legal client never sends, in words; the first 1000. Holds no values of records."""
        return list(self._api.violations)

    @property
    def notes(self) -> Counter[str]:
        """Legal and still worth knowing, counted: recommended keys that are missing, records without salt."""
        with self._handler.lock:
            return self._api.notes.copy()

    def report(self) -> dict[str, Any]:
        """Counts, violations and batches as plain data; the same as ``GET /fake/report``."""
        with self._handler.lock:
            return report(self._api, self._handler.requests, self._script.active, self.url, self._handler.in_progress)

    # Scripted faults

    def fault(self, name: str | int, times: int | EllipsisType | None = ..., **detail: Any) -> Fault:
        """Scripts a fault; see `FAULTS` for the names and `Fault` for the details.

        `times` requests are struck, by default one; ``reject``, ``poison`` and ``clock_offset``
        stay by default, as with None, until `clear_faults`. Without ``path`` or ``kind`` only
        requests that write records are struck. Raises ValueError for an unknown name or detail.
        """
        fault = make_fault(name, times, detail)
        if fault.name == "expire_tokens":
            with self._handler.lock:
                self._api.gate.expire_all()
            fault.hits, fault.left = 1, 0
        else:
            self._script.add(fault)
        return fault

    def clear_faults(self) -> None:
        """Ends every fault; requests that hang are cut."""
        self._script.clear()

    def expire_tokens(self) -> None:
        """Every token given out so far is answered with 401 ``Token expired.`` from now on."""
        self.fault("expire_tokens")

    # Waiting, for tests

    async def until(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """Waits until the condition holds, `timeout` seconds at most; then raises TimeoutError with the state."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"still not so after {timeout} s: {self!r}")
            await asyncio.sleep(0.005)

    def wait_until(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """As `until`, for threads; never call it in the loop that serves."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"still not so after {timeout} s: {self!r}")
            time.sleep(0.005)

    # Life

    async def start(self) -> None:
        """Listens. Raises OSError when the address cannot be had."""
        if self._runner is not None:
            raise RuntimeError("this FakeUpstream is already listening")
        self._handler.closing = asyncio.Event()  # a new one, because the loop may be another
        server = web.Server(self._handler.handle, access_log=None, auto_decompress=False)
        runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port, backlog=1024)
            await site.start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Stops listening and cuts what hangs. What it has seen stays."""
        runner, self._runner = self._runner, None
        if runner is not None:
            self._handler.closing.set()
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        started = threading.Event()
        failure: list[BaseException] = []

        async def main() -> None:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            self._stop_thread = lambda: loop.call_soon_threadsafe(stop.set)
            try:
                await self.start()
            except BaseException as error:
                failure.append(error)
                return
            finally:
                started.set()
            await stop.wait()
            await self.stop()

        self._thread = threading.Thread(target=lambda: asyncio.run(main()), name="fake-upstream", daemon=True)
        self._thread.start()
        started.wait()
        if failure:
            self._thread.join()
            raise failure[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread is not None
        assert self._stop_thread is not None
        self._stop_thread()
        self._thread.join()
        self._thread = self._stop_thread = None


def _address(listen: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:http://)?(\[[0-9a-fA-F:]+\]|[^:/]+):(\d{1,5})/?", listen)
    if found is None or int(found[2]) > 65535:
        raise ValueError(f"not an address: {listen!r}; give host:port, for example 127.0.0.1:8788 (port 0: any)")
    return found[1].strip("[]"), int(found[2])


def run_fake_upstream(listen: str, api_key: str | None, switches: Switches) -> None:
    """Serves until SIGTERM or SIGINT; the first line on standard output is the URL.

    Raises ValueError for a bad address and OSError when it cannot be had.
    """
    fake = FakeUpstream(api_key, listen=listen, **msgspec.structs.asdict(switches))
    asyncio.run(serve(fake, lambda: sys.stdout.write(fake.url + "\n") and sys.stdout.flush()))


async def serve(fake: FakeUpstream, ready: Callable[[], object]) -> None:
    """Runs the stand-in until SIGTERM or SIGINT; calls `ready` once it listens."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    async with fake:
        ready()
        await stop.wait()
