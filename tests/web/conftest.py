"""A sidecar and the API behind it, shared by all tests of a process: each knows its own records by their action."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collector.testing import FakeUpstream

from .servers import KEY, Process, Sidecar


def needs(module: str) -> None:
    """Skips a file of tests whose framework is missing; fails where everything must be there."""
    if os.environ.get("TILLPOST_REQUIRE_ALL") == "1":
        __import__(module)
    else:
        pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[test]'")


@pytest.fixture(scope="session")
def api() -> Iterator[FakeUpstream]:
    """The strict API; nothing illegal may ever have reached it."""
    with FakeUpstream(KEY) as fake:
        yield fake
        assert fake.violations == []


@pytest.fixture(scope="session")
def sidecar(api: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A running sidecar."""
    one = Sidecar(tmp_path_factory.mktemp("s"), api.url).start()
    yield one
    one.stop()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts programs and sees to it that none outlives the test."""
    running: list[Process] = []

    def start(*command: str | Path, **options: object) -> Process:
        running.append(Process(tmp_path / f"out-{len(running)}.log", *command, **options))
        return running[-1]

    yield start
    for process in running:
        process.kill()
