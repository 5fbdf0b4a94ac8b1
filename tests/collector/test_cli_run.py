"""``run`` and the commands beside it, as real processes on real files."""

import contextlib
import http.client
import json
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from collector.cli import main
from collector.testing import FakeUpstream

KEY = "run-test-key"
EVENT = {"type": "custom", "action": "a.b", "label": "x", "client": {"email": "anna@example.com"},
         "time": "2026-05-04T09:53:56.999Z", "eventSalt": "salt-1"}  # fmt: skip
FAST = ("--set", "batch.linger=10ms", "--set", "delivery.backoff_base=50ms", "--set", "delivery.backoff_max=200ms")


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TILLPOST_")}
    return {**clean, "TILLPOST_API_KEY": KEY, **(more or {})}


def tillpost(*args: str | Path, **more: str) -> Result:
    """A command in this process; only ``run`` needs one of its own."""
    ours: dict[str, str | None] = {name: None for name in os.environ if name.startswith("TILLPOST_")}
    return CliRunner().invoke(main, [str(arg) for arg in args], env={**ours, "TILLPOST_API_KEY": KEY, **more})


def run(*args: str | Path) -> "subprocess.CompletedProcess[str]":
    """``tillpost run`` where it is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "collector", "run", *map(str, args)],
        env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip


class Sidecar:
    """A collector in a process of its own, and what it logs."""

    def __init__(self, buffer: Path, *args: str, **more: str) -> None:
        flags = ["--buffer", str(buffer), "--listen", "127.0.0.1:0", *FAST, *args]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "collector", "run", *flags],
            env=environment(more), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put(None)

    def listen(self) -> "Sidecar":
        """Itself, once it listens."""
        self.url = self.logged("listening")["url"]
        return self

    def logged(self, event: str) -> dict[str, Any]:
        """The next line of that event."""
        seen = []
        while (line := self._lines.get(timeout=20)) is not None:
            seen.append(line)
            if not line.startswith("{"):
                continue
            facts: dict[str, Any] = json.loads(line)
            if facts["event"] == event:
                return facts
        raise AssertionError(f"ended without {event!r}: {seen}")

    def post(self, *records: Mapping[str, Any]) -> int:
        address = self.url.removeprefix("http://")
        with contextlib.closing(http.client.HTTPConnection(address, timeout=20)) as connection:
            connection.request("POST", "/v4/events/batch", json.dumps(records), {"Content-Type": "application/json"})
            return connection.getresponse().status

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Sidecar]]:
    """Starts sidecars on ``tmp_path/tillpost.db`` and sees to it that none outlives the test."""
    running: list[Sidecar] = []

    def start(*args: str, **more: str) -> Sidecar:
        running.append(Sidecar(tmp_path / "tillpost.db", *args, **more))
        return running[-1].listen()

    yield start
    for sidecar in running:
        sidecar.end(signal.SIGKILL)


AWAY = ("--upstream", "http://127.0.0.1:9")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_serves_until_it_is_told_to_stop_and_ends_with_0(started: Callable[..., Sidecar], number: int) -> None:
    sidecar = started(*AWAY)
    assert sidecar.post(EVENT) == 202
    assert sidecar.end(number) == 0


def test_a_second_signal_stops_it_at_once_and_loses_nothing(started: Callable[..., Sidecar], tmp_path: Path) -> None:
    sidecar = started(*AWAY, "--set", "shutdown.grace=60s", "--set", "shutdown.drain=true")
    assert sidecar.post(EVENT) == 202
    sidecar.process.send_signal(signal.SIGTERM)
    sidecar.logged("stopping")
    assert sidecar.end(signal.SIGTERM) == 0
    assert tillpost("find", "--salt", "salt-1", "--buffer", tmp_path / "tillpost.db").exit_code == 0


def test_sighup_reads_credentials_again_and_goes_on(started: Callable[..., Sidecar]) -> None:
    sidecar = started(*AWAY)
    sidecar.process.send_signal(signal.SIGHUP)
    sidecar.logged("credentials read again")
    assert sidecar.post(EVENT) == 202


def test_a_buffer_in_use_ends_with_3_and_names_the_process(started: Callable[..., Sidecar], tmp_path: Path) -> None:
    sidecar = started(*AWAY)
    second = run("--buffer", tmp_path / "tillpost.db", "--listen", "127.0.0.1:0", *AWAY)
    assert second.returncode == 3
    assert str(sidecar.process.pid) in second.stderr
    assert "Traceback" not in second.stderr


def test_a_file_that_is_no_buffer_of_ours_ends_with_4(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("PRAGMA application_id = 7")
    other.close()
    result = run("--buffer", tmp_path / "other.db", "--listen", "127.0.0.1:0", *AWAY)
    assert result.returncode == 4
    assert "Traceback" not in result.stderr


def test_an_address_that_is_taken_ends_with_1_and_says_so(started: Callable[..., Sidecar], tmp_path: Path) -> None:
    address = started(*AWAY).url.removeprefix("http://")
    result = run("--buffer", tmp_path / "other.db", "--listen", address, *AWAY)
    assert result.returncode == 1
    assert f"cannot listen on {address}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_key_file_that_is_not_there_yet_does_not_stop_the_start(
    started: Callable[..., Sidecar], tmp_path: Path
) -> None:
    sidecar = started(*AWAY, TILLPOST_API_KEY="", TILLPOST_API_KEY_FILE=str(tmp_path / "later"))
    assert sidecar.post(EVENT) == 202


def test_commands_say_the_same_of_a_running_collector_and_of_its_file(
    started: Callable[..., Sidecar], tmp_path: Path
) -> None:
    buffer = tmp_path / "tillpost.db"
    sidecar = started(*AWAY)
    assert sidecar.post(EVENT) == 202
    commands = (["dead", "list", "--json"], ["find", "--client", "email=anna@example.com", "--json"])
    running = [tillpost(*command, "--buffer", buffer) for command in commands]
    status = json.loads(tillpost("status", "--json", "--buffer", buffer).stdout)
    assert (status["state"], status["ledger"]["pending"]) == ("running", 1)
    assert sidecar.end() == 0
    stopped = [tillpost(*command, "--buffer", buffer) for command in commands]
    status = json.loads(tillpost("status", "--json", "--buffer", buffer).stdout)
    assert (status["state"], status["ledger"]["pending"]) == ("stopped", 1)
    assert [json.loads(result.stdout) for result in running] == [json.loads(result.stdout) for result in stopped]
    assert [result.exit_code for result in stopped] == [0, 0]
    assert tillpost("forget", "--client", "email=anna@example.com", "--buffer", buffer).stdout == "forgot 1 record\n"
    assert tillpost("find", "--salt", "salt-1", "--buffer", buffer).exit_code == 1


def test_drain_delivers_what_waits_with_a_collector_and_without(
    started: Callable[..., Sidecar], tmp_path: Path
) -> None:
    buffer = tmp_path / "tillpost.db"
    with FakeUpstream(api_key=KEY) as fake:
        sidecar = started("--upstream", fake.url, "--set", "batch.linger=1h")
        assert sidecar.post(EVENT) == 202
        assert tillpost("drain", "--timeout", "30", "--buffer", buffer).exit_code == 0
        assert fake.stored_count == 1
        assert sidecar.end() == 0
        away = started(*AWAY)
        assert away.post({**EVENT, "eventSalt": "salt-2"}) == 202
        assert away.end() == 0
        drained = tillpost("drain", "--timeout", "30", "--buffer", buffer, TILLPOST_UPSTREAM__URL=fake.url)
        assert drained.exit_code == 0
        assert fake.stored_count == 2
        assert fake.violations == []


def test_drain_names_what_stays(started: Callable[..., Sidecar], tmp_path: Path) -> None:
    sidecar = started(*AWAY)
    assert sidecar.post(EVENT) == 202
    result = tillpost("drain", "--timeout", "0.5", "--buffer", tmp_path / "tillpost.db")
    assert result.exit_code == 1
    assert "events/email/live still holds 1 record" in result.stderr


def test_a_file_is_sent_through_kills_of_the_collector_and_arrives_once(
    started: Callable[..., Sidecar], tmp_path: Path
) -> None:
    path = tmp_path / "f.jsonl"
    lines = [{**EVENT, "client": {"email": f"a{i}@example.com"}, "eventSalt": f"s-{i}"} for i in range(3000)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    socket_path = tmp_path / "s.sock"
    with FakeUpstream(api_key=KEY) as fake:
        sidecar = started("--upstream", fake.url, "--listen", f"unix:{socket_path}")
        sending = subprocess.Popen(
            [sys.executable, "-m", "collector", "send", str(path), "--to", f"unix://{socket_path}", "--rate", "1500"],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        fake.wait_until(lambda: fake.stored_count > 100, 30)
        assert sidecar.end(signal.SIGKILL) == -signal.SIGKILL
        started("--upstream", fake.url, "--listen", f"unix:{socket_path}")
        out, err = sending.communicate(timeout=60)
        assert (sending.returncode, "Traceback" in err) == (0, False)
        assert out.startswith("sent 3000, already confirmed 0, rejected 0")
        assert tillpost("drain", "--timeout", "30", "--buffer", tmp_path / "tillpost.db").exit_code == 0
        assert sorted(record["eventSalt"] for record in fake.stored) == sorted(f"s-{i}" for i in range(3000))
        assert fake.violations == []
