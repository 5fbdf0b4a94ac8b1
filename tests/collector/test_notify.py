"""What systemd is told, over the socket it gives us."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from collector.notify import Supervisor
from tests.collector.test_cli_run import AWAY, Sidecar, environment

WATCHDOG_USEC = 600_000


class Manager:
    """A datagram socket as systemd's, and what was said on it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def hears(self, within_s: float = 20.0) -> list[str] | None:
        """The lines of the next message; None when none comes in time."""
        self._socket.settimeout(within_s)
        try:
            return self._socket.recv(4096).decode().split("\n")
        except TimeoutError:
            return None

    def until(self, line: str) -> list[str]:
        """The message with that line; what comes before may be signs of life only."""
        while True:
            lines = self.hears()
            assert lines is not None, f"never heard {line}"
            if line in lines:
                return lines
            assert lines == ["WATCHDOG=1"], lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


def test_systemd_hears_when_it_is_ready_alive_reloading_and_stopping(manager: Manager, tmp_path: Path) -> None:
    sidecar = Sidecar(tmp_path / "t.db", *AWAY, "--set", "shutdown.grace=0s", NOTIFY_SOCKET=manager.address,
                      WATCHDOG_USEC=str(WATCHDOG_USEC))  # fmt: skip
    try:
        told = manager.until("READY=1")
        url = sidecar.listen().url
        assert told[1:] == [f"STATUS=listening on {url}"]  # only after it listens, and where
        for _ in range(2):
            assert manager.hears(WATCHDOG_USEC / 1e6) == ["WATCHDOG=1"]
        sidecar.process.send_signal(signal.SIGHUP)
        assert manager.until("RELOADING=1")[1].startswith("MONOTONIC_USEC=")
        manager.until("READY=1")
        sidecar.process.send_signal(signal.SIGTERM)
        manager.until("STOPPING=1")
        assert sidecar.end() == 0
    finally:
        sidecar.end(signal.SIGKILL)


HANGING = """
import asyncio, sys, time
from collector import app
from collector.cli import main

async def hangs(self):
    loop = asyncio.get_running_loop()
    loop.call_later(0.5, time.sleep, 600)  # every thread lives then, and nothing moves
    await asyncio.Event().wait()
app.Parts._mend = hangs
sys.exit(main())
"""


def test_a_loop_that_hangs_gives_no_sign_of_life(manager: Manager, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, "run", "--buffer", str(tmp_path / "t.db"), "--listen", "127.0.0.1:0", *AWAY],
        env=environment({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(WATCHDOG_USEC)}),
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        heard = []
        while (lines := manager.hears(20 if not heard else 2 * WATCHDOG_USEC / 1e6)) is not None:
            heard.append(lines)
            assert len(heard) < 10, heard
        assert heard[0][0] == "READY=1"
        assert process.poll() is None  # alive, but idle: systemd ends it now
    finally:
        process.kill()
        process.wait(10)


def test_an_abstract_address_is_understood() -> None:
    manager = Manager(f"@tillpost-{uuid4()}")
    Supervisor({"NOTIFY_SOCKET": manager.address}).stopping()
    assert manager.hears() == ["STOPPING=1"]
    manager.close()


def test_without_systemd_nothing_is_said_and_another_process_watchdog_is_not_ours(tmp_path: Path) -> None:
    Supervisor({}).ready()
    assert Supervisor({"WATCHDOG_USEC": "1000000"}).watchdog_s is None
    there = {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "30000000"}
    Supervisor(there).alive()  # nobody listens: no harm
    assert Supervisor(there).watchdog_s == 30.0
    assert Supervisor({**there, "WATCHDOG_PID": str(os.getpid())}).watchdog_s == 30.0
    assert Supervisor({**there, "WATCHDOG_PID": "1"}).watchdog_s is None
    assert Supervisor({**there, "WATCHDOG_USEC": "soon"}).watchdog_s is None
