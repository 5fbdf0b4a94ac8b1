"""What happens to the process: signals, stops, a second instance, too little memory, too few descriptors (3 to 13)."""

import contextlib
import http.client
import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from collector import Collector
from collector.demo.processes import wait_for
from collector.testing import FakeUpstream
from tests.collector.test_cli_run import AWAY, EVENT, KEY, Sidecar, environment, run, tillpost
from tests.end_to_end.clients import adds_up, get

Start = Callable[..., Sidecar]
SLACK_S = 3.0
"""For the interpreter's own end, on a machine that is busy with other tests."""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Start]:
    """Starts sidecars on ``tmp_path/tillpost.db`` and sees to it that none outlives the test."""
    running: list[Sidecar] = []

    def start(*args: str, **more: str) -> Sidecar:
        running.append(Sidecar(tmp_path / "tillpost.db", *args, **more))
        return running[-1].listen()

    yield start
    for sidecar in running:
        sidecar.end(signal.SIGKILL)


def ask(sidecar: Sidecar, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(sidecar.url.removeprefix("http://"), timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def status(sidecar: Sidecar) -> dict[str, Any]:
    return dict(get(sidecar.url.removeprefix("http://"), "/status.json"))


def event(salt: str) -> dict[str, Any]:
    return {**EVENT, "eventSalt": salt, "client": {"email": f"{salt}@example.com"}}


def delivered_after(path: Path, fake: FakeUpstream, salts: list[str], unanswered: int = 0) -> None:
    """A collector that opens the file afterwards delivers exactly these, once; some more may have lost their answer."""
    with Collector(path, upstream=fake.url, api_key=KEY, config={"batch": {"linger": "0s"}}) as collector:
        assert collector.drain(30)
        assert adds_up(collector.status()["ledger"])
    stored = [record["eventSalt"] for record in fake.stored]
    assert len(stored) == len(set(stored)) <= len(salts) + unanswered
    assert set(salts) <= set(stored)
    assert fake.violations == []


# Stopping


@pytest.mark.parametrize("trouble", ["refused", "hang"])
def test_a_stop_with_the_upstream_down_ends_with_0_within_the_grace_and_deletes_nothing(
    started: Start, trouble: str, tmp_path: Path
) -> None:
    with FakeUpstream(api_key=KEY) as fake:
        if trouble != "refused":
            fake.fault("hang", times=None)
        upstream = AWAY if trouble == "refused" else ("--upstream", fake.url)
        sidecar = started(*upstream, "--set", "shutdown.grace=2s", "--set", "upstream.timeout=60s")
        assert sidecar.post(event("a"), event("b")) == 202
        if trouble != "refused":
            fake.wait_until(lambda: fake.in_progress > 0, 20)
        begun = time.monotonic()
        assert sidecar.end(signal.SIGTERM) == 0
        assert time.monotonic() - begun < 2 + SLACK_S
        fake.clear_faults()
        delivered_after(tmp_path / "tillpost.db", fake, ["a", "b"])


def test_a_stop_lets_a_request_in_flight_finish_and_notes_it(started: Start, tmp_path: Path) -> None:
    with FakeUpstream(api_key=KEY) as fake:
        fake.fault("delay", seconds=0.7, times=1)
        sidecar = started("--upstream", fake.url)
        assert sidecar.post(event("a")) == 202
        fake.wait_until(lambda: fake.in_progress > 0, 20)
        assert sidecar.end(signal.SIGTERM) == 0
        assert fake.stored_count == 1
        delivered_after(tmp_path / "tillpost.db", fake, ["a"])
        assert len([seen for seen in fake.requests if seen.records]) == 1, "what was confirmed was sent again"


def test_a_stop_is_not_ready_at_once_and_takes_records_until_they_cease(started: Start, tmp_path: Path) -> None:
    sidecar = started(*AWAY, "--set", "shutdown.grace=20s")
    assert ask(sidecar, "/readyz")[0] == 200
    begun = time.monotonic()
    sidecar.process.send_signal(signal.SIGTERM)
    wait_for("readyz to say no", lambda: ask(sidecar, "/readyz")[0] == 503, 3)
    assert ask(sidecar, "/livez")[0] == 200
    salts = []
    while time.monotonic() - begun < 1.5:  # longer than a second of quiet would last
        assert sidecar.post(event(f"late-{len(salts)}")) == 202
        salts.append(f"late-{len(salts)}")
        time.sleep(0.1)
    last = time.monotonic()
    assert sidecar.process.wait(20) == 0
    assert 0.8 < time.monotonic() - last < 4 + SLACK_S
    with FakeUpstream(api_key=KEY) as fake:
        delivered_after(tmp_path / "tillpost.db", fake, salts)


def test_a_stop_ends_within_the_grace_although_records_never_cease(started: Start, tmp_path: Path) -> None:
    sidecar = started(*AWAY, "--set", "shutdown.grace=4s")
    begun = time.monotonic()
    sidecar.process.send_signal(signal.SIGTERM)
    salts: list[str] = []
    with contextlib.suppress(OSError, http.client.HTTPException):
        while sidecar.process.poll() is None:
            if sidecar.post(event(f"on-{len(salts)}")) != 202:
                break
            salts.append(f"on-{len(salts)}")
    assert sidecar.process.wait(20) == 0
    assert 0.9 < time.monotonic() - begun < 4 + SLACK_S
    with FakeUpstream(api_key=KEY) as fake:
        delivered_after(tmp_path / "tillpost.db", fake, salts, unanswered=1)


def test_slow_senders_do_not_hold_up_a_stop(started: Start) -> None:
    sidecar = started(*AWAY, "--set", "shutdown.grace=5s")
    host, port = sidecar.url.removeprefix("http://").split(":")
    held = [socket.create_connection((host, int(port))) for _ in range(8)]
    for slow in held:
        slow.sendall(b"POST /v4/events/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 100\r\n\r\n[")  # fmt: skip
    assert sidecar.post(event("a")) == 202
    begun = time.monotonic()
    assert sidecar.end(signal.SIGTERM) == 0
    assert time.monotonic() - begun < 5 + SLACK_S
    for slow in held:
        slow.close()


def test_a_broken_pipe_neither_stops_the_collector_nor_spoils_its_end(started: Start, tmp_path: Path) -> None:
    sidecar = started(*AWAY, "--set", "log.level=debug")
    sidecar.process.send_signal(signal.SIGPIPE)
    assert sidecar.process.stderr is not None
    os.dup2(os.open(os.devnull, os.O_RDONLY), sidecar.process.stderr.fileno())  # whoever read its log is gone
    assert sidecar.post(event("a")) == 202
    sidecar.process.send_signal(signal.SIGHUP)  # logs a line
    assert sidecar.post(event("b")) == 202
    sidecar.process.send_signal(signal.SIGTERM)
    assert sidecar.process.wait(20) == 0
    with FakeUpstream(api_key=KEY) as fake:
        delivered_after(tmp_path / "tillpost.db", fake, ["a", "b"])


def test_a_collector_stopped_for_a_while_goes_on_with_one_request_and_no_burst(started: Start) -> None:
    with FakeUpstream(api_key=KEY) as fake:
        sidecar = started("--upstream", fake.url, "--set", "upstream.timeout=1s")
        assert sidecar.post(event("a")) == 202
        fake.wait_until(lambda: fake.stored_count == 1, 20)
        fake.fault("delay", seconds=0.3, times=1)
        assert sidecar.post(event("b")) == 202
        fake.wait_until(lambda: fake.in_progress > 0, 20)
        sidecar.process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        fake.wait_until(lambda: fake.stored_count == 2, 20)
        wait_for("longer than its time-outs", lambda: time.monotonic() - stopped > 1.5)
        sidecar.process.send_signal(signal.SIGCONT)
        assert sidecar.post(event("c")) == 202
        wait_for("everything to be delivered", lambda: status(sidecar)["ledger"]["pending"] == 0)
        seen = [request for request in fake.requests if request.records]
        assert fake.stored_count == 3
        assert len(seen) <= 4, "a burst"  # b may be sent again: its answer came while nobody listened
        assert all(first.answered_at <= then.received_at for first, then in itertools.pairwise(seen))
        assert fake.violations == [] and fake.altered == 0
        assert ask(sidecar, "/livez")[0] == 200


# Two of them


def test_a_second_instance_ends_with_3_at_once_and_a_killed_first_does_not_block_it(
    started: Start, tmp_path: Path
) -> None:
    first = started(*AWAY)
    assert first.post(event("a")) == 202
    limits = Path(f"/proc/{first.process.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 ", limits), "a core file would hold keys and records"
    begun = os.times()
    second = run("--buffer", tmp_path / "tillpost.db", "--listen", "127.0.0.1:0", *AWAY)
    ended = os.times()
    assert second.returncode == 3
    assert second.stderr.count("\n") == 1 and str(first.process.pid) in second.stderr
    # its own work, not its wait for a processor that other tests keep busy
    assert (ended.children_user + ended.children_system) - (begun.children_user + begun.children_system) < 1.0
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert (tmp_path / "tillpost.db.lock").exists()  # stale, and naming a process that is gone
    with FakeUpstream(api_key=KEY) as fake:
        delivered_after(tmp_path / "tillpost.db", fake, ["a"])


def test_a_live_socket_of_another_collector_is_left_alone(started: Start, tmp_path: Path) -> None:
    path = tmp_path / "ours.sock"
    first = started(*AWAY, "--listen", f"unix:{path}")
    second = run("--buffer", tmp_path / "other.db", "--listen", f"unix:{path}", *AWAY)
    assert second.returncode == 1
    assert "another process listens there" in second.stderr
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))  # still the first one's
    assert first.end() == 0
    assert not path.exists()


# Bounds


DESCRIPTORS = 22
"""So few that connections take the last of them, although the door lets in only eight."""
BACKLOG = """
import asyncio, sys
from collector.buffer import Buffer
from tests.collector.buffers import parcel, record

async def fill(path, megabytes):
    buffer = await Buffer.open(path, max_size=1 << 30)
    for i in range(megabytes):
        await buffer.append([parcel([record(f"{i}-{n}", email=f"{n}@example.com", pad=4000) for n in range(240)])])
    await buffer.close()

asyncio.run(fill(sys.argv[1], int(sys.argv[2])))
"""


def test_memory_does_not_grow_with_the_backlog(tmp_path: Path) -> None:
    """It starts and delivers within an address space that could not hold what waits."""
    path = tmp_path / "tillpost.db"
    subprocess.run([sys.executable, "-c", BACKLOG, str(path), "60"], check=True, timeout=60)
    backlog = path.stat().st_size
    assert backlog > 55_000_000

    empty = Sidecar(tmp_path / "empty.db", *AWAY).listen()
    needed = _proc(empty, "VmPeak")
    assert empty.end() == 0

    room = needed + backlog // 2
    with FakeUpstream(api_key=KEY) as fake:
        loaded = Sidecar(path, "--upstream", fake.url, "--set", "buffer.max_size=1GiB")
        resource.prlimit(loaded.process.pid, resource.RLIMIT_AS, (room, room))  # it is still starting
        try:
            loaded.listen()
            assert loaded.post(event("new")) == 202
            fake.wait_until(lambda: fake.stored_count >= 1_000, 60)
            assert status(loaded)["ledger"]["dead"] == 0
            assert _proc(loaded, "VmHWM") < 120_000_000
        finally:
            loaded.end(signal.SIGKILL)
        assert fake.violations == []


def _proc(sidecar: Sidecar, name: str) -> int:
    """A figure of /proc/<pid>/status in bytes."""
    lines = Path(f"/proc/{sidecar.process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def test_without_descriptors_it_backs_off_keeps_its_buffer_and_recovers(started: Start, tmp_path: Path) -> None:
    with FakeUpstream(api_key=KEY) as fake:
        sidecar = Sidecar(tmp_path / "tillpost.db", "--upstream", fake.url)
        resource.prlimit(sidecar.process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        try:
            sidecar.listen()
            held: list[socket.socket] = []
            host, port = sidecar.url.removeprefix("http://").split(":")
            for _ in range(30):
                held.append(socket.create_connection((host, int(port)), timeout=20))
            used = _cpu_s(sidecar)
            begun = time.monotonic()
            wait_for("a while", lambda: time.monotonic() - begun > 1)
            assert _cpu_s(sidecar) - used < 0.5, "it spins"
            assert "accept" in sidecar.logged("loop trouble")["what"]  # there was trouble indeed
            assert len(os.listdir(f"/proc/{sidecar.process.pid}/fd")) <= DESCRIPTORS
            for one in held:
                one.close()
            wait_for("it to serve again", lambda: _posted(sidecar, event("a")))
            fake.wait_until(lambda: fake.stored_count == 1, 20)
            assert ask(sidecar, "/livez")[0] == 200
            assert sidecar.end() == 0
        finally:
            sidecar.end(signal.SIGKILL)


def _posted(sidecar: Sidecar, record: dict[str, Any]) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return sidecar.post(record) == 202
    return False


def _cpu_s(sidecar: Sidecar) -> float:
    fields = Path(f"/proc/{sidecar.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_restart_loop_neither_floods_the_log_nor_the_upstream(tmp_path: Path) -> None:
    with FakeUpstream(api_key=KEY) as fake:
        fake.fault(503, times=None)
        path = tmp_path / "tillpost.db"
        lines = 0
        for turn in range(2):
            arguments = ["--buffer", str(path), "--listen", "127.0.0.1:0", "--upstream", fake.url,
                         "--set", "delivery.startup_jitter=1h", "--set", "log.level=info"]  # fmt: skip
            process = subprocess.Popen([sys.executable, "-m", "collector", "run", *arguments],
                                       env=environment(), stderr=subprocess.PIPE, text=True)  # fmt: skip
            assert process.stderr is not None
            log = []
            while (line := process.stderr.readline()) and (facts := json.loads(line))["event"] != "listening":
                log.append(line)
            if turn == 0:
                address = facts["url"].removeprefix("http://")
                connection = http.client.HTTPConnection(address, timeout=20)
                connection.request(
                    "POST", "/v4/events/batch", json.dumps([event("a")]), {"Content-Type": "application/json"}
                )
                assert connection.getresponse().status == 202
                connection.close()
            process.kill()
            log += process.stderr.readlines()
            process.stderr.close()
            process.wait(20)
            lines = max(lines, len(log))
        assert lines <= 10
        assert [seen for seen in fake.requests if seen.records] == []  # none before its jitter is over
    assert tillpost("find", "--salt", "a", "--buffer", path).exit_code == 0
