"""The pytest plugin, loaded by every pytest in an environment with Tillpost; nothing else is until a test asks.

Fixtures: ``tracked_events`` (what was tracked, no network), ``fake_upstream`` (the strict stand-in for the API),
``tillpost_collector`` (a real collector in front of it). The guard, switched on by ``tillpost_guard = true`` in
the configuration of pytest or ``--tillpost-guard``, fails tests whose records would really be sent.

It ties trackers to a collector, as an application does, and lives here because `tracker` knows no collector.
"""

import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest

if TYPE_CHECKING:
    from collector import Collector
    from collector.testing import FakeUpstream
    from tracker import Tracker
    from tracker.testing import Captured

__all__ = ["RunningCollector"]

T = TypeVar("T")
_GUARD: Final = "tillpost-guard"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the switch of the guard."""
    text = "fail tests whose Tillpost records would really be sent"
    parser.addini("tillpost_guard", text, type="bool", default=False)
    parser.getgroup("tillpost").addoption("--tillpost-guard", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker, and the guard where it is wanted."""
    config.addinivalue_line("markers", "tillpost_sends: the guard lets this test really send Tillpost records")
    if config.getoption("tillpost_guard") or config.getini("tillpost_guard"):
        config.pluginmanager.register(_Guarded(), _GUARD)


class _Guarded:
    """Holds the guard up for the whole run, and asks it after every phase of a test."""

    def __init__(self) -> None:
        from tracker.testing import Guard

        self.guard = Guard()
        self.guard.__enter__()

    def pytest_unconfigure(self) -> None:
        self.guard.__exit__()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, T, T]:
        self.guard.allowed = item.get_closest_marker("tillpost_sends") is not None
        return (yield from self._watched())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, T, T]:
        return (yield from self._watched())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Generator[None, T, T]:
        try:
            return (yield from self._watched())
        finally:
            self.guard.allowed = False

    def _watched(self) -> Generator[None, T, T]:
        try:
            result = yield
        except BaseException:
            self.guard.complaint()  # the test has failed already, and the next one must not answer for it
            raise
        if complaint := self.guard.complaint():
            pytest.fail(
                f"{complaint}\nUse the fixture tracked_events or tillpost_collector, or mark the test tillpost_sends.",
                pytrace=False,
            )
        return result


@pytest.fixture
def tracked_events() -> "Iterator[Captured]":
    """What every tracker of this process tracks during the test, as it would be sent; nothing leaves."""
    from tracker.testing import capture_events

    with capture_events() as tracked:
        yield tracked


@pytest.fixture
def fake_upstream_switches() -> dict[str, Any]:
    """The fake upstream's switches (`tillpost fake-upstream --switches`); override it to set some."""
    return {}


@pytest.fixture
def fake_upstream(fake_upstream_switches: dict[str, Any]) -> "Iterator[FakeUpstream]":
    """The strict stand-in for the API on loopback; anything illegal that it was sent fails the test."""
    from collector.testing import FakeUpstream

    with FakeUpstream(**fake_upstream_switches) as fake:
        yield fake
    if fake.violations:
        pytest.fail("the API would not have taken this:\n  " + "\n  ".join(fake.violations), pytrace=False)


class RunningCollector:
    """A real collector with a buffer file of its own, in front of the fake upstream."""

    def __init__(self, collector: "Collector", upstream: "FakeUpstream") -> None:
        self.collector: Collector = collector
        self.upstream: FakeUpstream = upstream
        self.url: str = collector.urls[0]
        """Where it listens; also in ``TILLPOST_URL`` during the test."""

    def tracker(self, **options: Any) -> "Tracker":
        """A tracker for it; close it, or leave that to the end of the process."""
        from tracker import Tracker

        return Tracker(self.url, **options)

    def delivered(self, at_least: int = 0, timeout: float = 10.0) -> list[dict[str, Any]]:
        """What the API has stored, once what trackers of this process hold for this collector is delivered.

        Where others track, such as workers in processes of their own, say for how many records to wait. Raises
        TimeoutError, with the state of the collector, when they do not come within `timeout` seconds.
        """
        from tracker.testing import flush_trackers

        deadline = time.monotonic() + timeout
        flush_trackers(timeout, self.url)
        while True:
            settled = self.collector.drain(max(0.0, deadline - time.monotonic()))
            if settled and self.upstream.stored_count >= at_least:
                return self.upstream.stored
            if time.monotonic() >= deadline:
                ledger, stored = self.collector.status()["ledger"], self.upstream.stored_count
                raise TimeoutError(f"{stored} records stored after {timeout} s, {at_least} awaited; ledger: {ledger}")
            time.sleep(0.01)


@pytest.fixture
def tillpost_collector(
    fake_upstream: "FakeUpstream",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[RunningCollector]:
    """A real collector in front of `fake_upstream`; trackers made during the test without a target send to it."""
    from collector import Collector

    config = {
        "ingest": {"listen": ["127.0.0.1:0"]},
        "clock": {"margin": "0s"},  # its upstream's clock is this machine's
        "batch": {"linger": "20ms"},
        "delivery": {"backoff_base": "50ms"},
        "shutdown": {"grace": "0s"},
    }
    path = tmp_path / "tillpost" / "tillpost.db"
    path.parent.mkdir()
    with Collector(path, upstream=fake_upstream.url, api_key="test-key", config=config) as collector:
        running = RunningCollector(collector, fake_upstream)
        monkeypatch.setenv("TILLPOST_URL", running.url)
        monkeypatch.delenv("TILLPOST_DISABLED", raising=False)
        guarded = request.config.pluginmanager.get_plugin(_GUARD)
        if guarded is not None:
            guarded.guard.allowed = True
        yield running
