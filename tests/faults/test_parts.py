"""A part of the collector dies or hangs (catalogue 12): never healthy but idle."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from collector.app import LoopTrouble, Parts
from collector.buffer import Unknown
from collector.pulse import STUCK_ROUNDS
from collector.settings import embedded
from collector.work import Work
from tests.collector.buffers import parcel, record
from tests.collector.test_cli_run import environment


class Rounds:
    """A timer on which every look is due at once, as often as the test asks for one."""

    def __init__(self) -> None:
        self.due = asyncio.Semaphore(0)

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        if seconds is None or seconds < 30:
            await event.wait()
            return True
        waiting = asyncio.ensure_future(event.wait())
        look = asyncio.ensure_future(self.due.acquire())
        await asyncio.wait((waiting, look), return_when=asyncio.FIRST_COMPLETED)
        look.cancel()
        waiting.cancel()
        return event.is_set()


class Looks(Rounds):
    """The same, but for looks at the disk, which are due all the time."""

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        if seconds is None or seconds >= 1:
            return await super().wait(event, seconds)
        await asyncio.sleep(0.001)
        return event.is_set()


@asynccontextmanager
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    config = {"shutdown": {"grace": "0s"}}
    made = Parts(embedded(buffer=tmp_path / "t.db", upstream="http://127.0.0.1:9", api_key="k", config=config).check())
    await made.open()
    try:
        yield made
    finally:
        await made.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def alive(made: Parts) -> bool:
    return all(check.ok for check in made.checks() if check.vital)


async def test_a_writer_that_dies_answers_who_waits_and_is_noticed(tmp_path: Path) -> None:
    async with parts(tmp_path) as made:
        await made.append([parcel([record("kept")])], None)
        assert alive(made)

        def broken(*_: object) -> None:
            raise MemoryError

        made.buffer._publish = broken  # type: ignore[method-assign]
        with pytest.raises(Unknown, match="the writer died"):
            async with asyncio.timeout(10):
                await made.append([parcel([record("a")])], None)
        with pytest.raises(Unknown, match="writer died"):
            async with asyncio.timeout(10):
                await made.append([parcel([record("b")])], None)
        await until(lambda: made.failure)
        assert not alive(made)
        assert "tillpost-writer died (MemoryError)" in str(made.failure)


@pytest.mark.parametrize("how", ["raises", "is cancelled", "returns"])
async def test_a_courier_that_ends_is_noticed(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from collector.courier import Courier

    async def ends(_: Courier) -> None:
        if how == "raises":
            raise MemoryError
        if how == "is cancelled":
            raise asyncio.CancelledError

    monkeypatch.setattr(Courier, "run", ends)
    async with parts(tmp_path) as made:
        assert alive(made)
        await made.append([parcel([record("a")])], None)
        await until(lambda: made.failure)
        assert not alive(made)
        assert "tillpost-events/email/live died" in str(made.failure)


async def test_a_clock_keeper_that_ends_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collector.clock import Keeper

    async def ends(_: Keeper, __: asyncio.Event) -> None:
        raise KeyError("secret@example.com")

    monkeypatch.setattr(Keeper, "run", ends)
    async with parts(tmp_path) as made:
        await until(lambda: made.failure)
        assert not alive(made)
        assert str(made.failure) == "tillpost-clock died (KeyError)"  # and not what it says


async def look(made: Parts, rounds: Rounds) -> None:
    """Let it look once for what hangs."""
    before = made.pulse.looks
    rounds.due.release()
    await until(lambda: made.pulse.looks != before)


async def test_a_courier_that_waits_for_what_never_comes_is_noticed_and_one_that_waits_its_time_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its task lives, it raises nothing, and its lane stands still: only the missing heartbeat tells."""
    monkeypatch.setattr("collector.courier._WORK_S", 0.0)
    config = {"shutdown": {"grace": "0s"}, "upstream": {"timeout": "1ms"}, "batch": {"linger": "0s"}}
    made = Parts(embedded(buffer=tmp_path / "t.db", upstream="http://127.0.0.1:9", api_key="k", config=config).check())
    rounds, never = Rounds(), asyncio.Event()
    made.timer = rounds  # type: ignore[assignment]
    await made.open()
    try:
        for _ in range(2 * STUCK_ROUNDS + 1):  # empty lanes wait for ever, and may
            await made.buffer.quiet()  # looks are half a minute apart: no commit takes that long
            await look(made, rounds)
        assert alive(made)

        hung = asyncio.Event()

        async def hangs(_: object) -> None:
            hung.set()
            await never.wait()

        monkeypatch.setattr(made.upstream, "deliver", hangs)
        monkeypatch.setattr(made.keeper, "ready", ready)
        await made.append([parcel([record("a")])], None)
        await until(lambda: hung.is_set() and made.lanes.pulses())
        seen = []
        for _ in range(2 * STUCK_ROUNDS + 1):
            if made.buffer.under_way is not None:
                await made.buffer.quiet()
            await look(made, rounds)
            seen.append((alive(made), made.failure is not None))
        assert seen[:STUCK_ROUNDS] == [(True, False)] * STUCK_ROUNDS
        assert seen[STUCK_ROUNDS] == (False, False)
        assert "[-] lanes: not getting on: events/email/live" in lines_of(made)
        assert "events/email/live: sending, 1 pending" in lines_of(made)
        assert seen[-1] == (False, True)
        assert str(made.failure) == "events/email/live does not get on"
    finally:
        never.set()
        await made.close()


async def ready() -> None:
    """A keeper that knows the time."""


def lines_of(made: Parts) -> str:
    """As ``/readyz?verbose`` shows them."""
    checks = (*made.checks(), *made.details())
    return "\n".join(f"[{'+' if check.ok else '-'}] {check.name}: {check.text}" for check in checks)


async def test_a_writer_that_waits_for_what_never_comes_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No transaction is under way, the task lives: nothing is ever committed again."""
    monkeypatch.setattr("collector.app.LOOK_EVERY_S", 0.01)
    config = {"shutdown": {"grace": "0s"}}
    made = Parts(embedded(buffer=tmp_path / "t.db", upstream="http://127.0.0.1:9", api_key="k", config=config).check())
    rounds, never = Looks(), asyncio.Event()
    made.timer = rounds  # type: ignore[assignment]
    await made.open()
    try:
        hung = asyncio.Event()

        async def hangs(*_: object) -> None:
            hung.set()
            await never.wait()

        for _ in range(2 * STUCK_ROUNDS + 1):
            before = made._looks
            await until(lambda before=before: made._looks > before)
            await made.buffer.quiet()
            await look(made, rounds)
        assert alive(made)
        commit = made.buffer._commit
        monkeypatch.setattr(made.buffer, "_commit", hangs)
        await until(hung.is_set)
        for _ in range(STUCK_ROUNDS + 1):
            await look(made, rounds)
        assert not alive(made)
        assert "[-] disk: hangs" in lines_of(made)
        monkeypatch.setattr(made.buffer, "_commit", commit)
    finally:
        never.set()
        await made.close()


async def test_a_disk_that_hangs_or_a_dead_connection_thread_is_noticed_and_a_pause_is_not_mistaken_for_it(
    tmp_path: Path,
) -> None:
    """A dead thread of the connection looks the same from here: a transaction that never ends."""
    config = {"shutdown": {"grace": "0s"}}
    made = Parts(embedded(buffer=tmp_path / "t.db", upstream="http://127.0.0.1:9", api_key="k", config=config).check())
    rounds = Rounds()
    made.timer = rounds  # type: ignore[assignment]
    await made.open()
    hangs, hanging = threading.Event(), threading.Event()

    def hang(_: Work) -> None:
        hangs.set()
        hanging.wait(60)

    stuck = asyncio.create_task(made.buffer.run(hang))
    try:
        await until(hangs.is_set)
        seen = []
        for _ in range(2 * STUCK_ROUNDS + 1):
            await look(made, rounds)
            seen.append((alive(made), made.failure is not None))
        assert seen[:STUCK_ROUNDS] == [(True, False)] * STUCK_ROUNDS  # one look, however late it comes, proves nothing
        assert seen[STUCK_ROUNDS] == (False, False)
        assert seen[-1] == (False, True), (seen, made.pulse._rounds, stuck)
        assert "the disk hangs" in str(made.failure)
    finally:
        hanging.set()
        await stuck
        await made.close()


DYING = """
import asyncio, sys
from collector import app, buffer
from collector.cli import main

def sinks(self, work, publish=buffer.Buffer._publish):
    if work.ledger.get("accepted"):
        raise MemoryError
    publish(self, work)

victim = sys.argv.pop(1)
if victim == "writer":
    buffer.Buffer._publish = sinks
else:
    async def ends_the_thread(self):
        asyncio.get_running_loop().call_later(0.3, sys.exit, 7)
        await asyncio.Event().wait()
    app.Parts._watch = ends_the_thread
sys.exit(main())
"""


@pytest.mark.parametrize("victim", ["writer", "thread"])
def test_a_sidecar_whose_part_died_says_so_and_ends_with_1(tmp_path: Path, victim: str) -> None:
    from tests.end_to_end.clients import post

    process = subprocess.Popen(
        [sys.executable, "-c", DYING, victim, "run", "--buffer", str(tmp_path / "t.db"), "--upstream",
         "http://127.0.0.1:9", "--listen", "127.0.0.1:0", "--set", "shutdown.grace=1s"],
        env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if '"listening"' in line and victim != "thread":
                address = line.partition("http://")[2].partition('"')[0]
                status, _, _ = post(address, "/v4/events/batch", [
                    {"type": "logged-in", "label": "x", "client": {"customId": "C-1"}}])  # fmt: skip
                assert status == (503 if victim == "writer" else 202)
        assert process.wait(30) == 1
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()
    assert "Traceback" not in "".join(lines), "".join(lines)
    told = [line for line in lines if not line.startswith("{")]
    assert len(told) == 1 and ("died (MemoryError)" in told[0] or "thread ended" in told[0]), lines
    assert len(lines) < 15


async def test_what_the_loop_reports_is_a_line_now_and_then_and_quotes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trouble = LoopTrouble()
    loop = asyncio.get_running_loop()
    for _ in range(100):
        trouble(loop, {"message": "socket.accept() out of system resource", "exception": OSError(24, "x"),
                       "socket": "anna@example.com"})  # fmt: skip
    trouble(loop, {"message": "Task exception was never retrieved", "exception": ValueError("anna@example.com")})
    first, second = [entry.getMessage() for entry in caplog.records]
    assert os.strerror(24) in first
    assert "ValueError" in second
    assert "anna" not in caplog.text
