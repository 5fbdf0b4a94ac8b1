"""``send --buffer``: what a dead till still held arrives elsewhere, and is settled in its old file."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from collector import deadletters
from collector.buffer import Buffer
from collector.carry import carry
from collector.corrections import Row, add_row
from collector.files import BufferInUse, BufferUnusable
from collector.kinds import Lane, Parcel, Run
from collector.post import NotACollector, Post
from collector.send import Pace, Totals
from tests.collector.test_send import Double, Quiet, double, refusal

__all__ = ["double"]

TIME = "2026-05-04T09:53:56.999Z"
TIME_1970 = "1970-01-01T01:00:00.000Z"
EVENTS, ORDERS = Lane("events", "uuid", "live"), Lane("transactions", "email", "live")


def event(i: int, **more: Any) -> bytes:
    record = {"type": "custom", "action": "a.b", "label": "x", "client": {"uuid": f"u{i}"}, "time": TIME,
              "eventSalt": f"e-{i}", **more}  # fmt: skip
    return json.dumps(record).encode()


def order(i: int) -> bytes:
    record = {"orderId": f"T/{i}", "client": {"email": "a@b.pl"}, "recordedAt": TIME, "eventSalt": f"o-{i}"}
    return json.dumps(record).encode()


def filled(path: Path, *records: tuple[Lane, list[bytes]]) -> Path:
    """A buffer as a till leaves it."""

    async def fill() -> None:
        buffer = await Buffer.open(path)
        for lane, group in records:
            await buffer.append([Parcel(lane, group, [Run(len(group), 1_777_888_436_999, None, 0)])])
        await buffer.close()

    asyncio.run(fill())
    return path


def ledger_and_dead(path: Path) -> tuple[dict[str, int], list[dict[str, Any]]]:
    async def read() -> tuple[dict[str, int], list[dict[str, Any]]]:
        buffer = await Buffer.open(path)
        found = buffer.ledger(), (await deadletters.page(buffer))["dead_letters"]
        await buffer.close()
        return found

    return asyncio.run(read())


def carried(path: Path, url: str) -> Totals:
    post = Post(url, note=lambda text: None, sleep=lambda seconds: None, timeout_s=5.0)
    try:
        return carry(path, post, Quiet(), Pace(None))
    finally:
        post.close()


def test_every_pending_record_arrives_and_is_settled(double: Double, tmp_path: Path) -> None:
    path = filled(tmp_path / "old.db", (EVENTS, [event(i) for i in range(700)]), (ORDERS, [order(1), order(2)]))
    assert carried(path, double.url).sent == 702
    assert {record for _, record in double.records} == {*(event(i) for i in range(700)), order(1), order(2)}
    assert {headers["Tillpost-Priority"] for _, headers, _ in double.requests} == {"bulk"}
    ledger, dead = ledger_and_dead(path)
    assert (ledger["accepted"], ledger["delivered"], ledger["pending"], dead) == (702, 702, 0, [])
    assert carried(path, double.url).sent == 0


def test_a_refused_record_becomes_a_dead_letter_of_the_old_file(double: Double, tmp_path: Path) -> None:
    path = filled(tmp_path / "old.db", (EVENTS, [event(0), event(1, bad=True), event(2)]))
    totals = carried(path, double.url)
    assert (totals.sent, totals.rejected) == (2, 1)
    ledger, dead = ledger_and_dead(path)
    assert (ledger["delivered"], ledger["pending"], ledger["dead"]) == (2, 0, 1)
    assert dead[0]["reason"] == "bad: must not be there"


def test_what_was_not_confirmed_stays_for_the_next_time(double: Double, tmp_path: Path) -> None:
    path = filled(tmp_path / "old.db", (EVENTS, [event(i) for i in range(700)]))
    double.script = [lambda *_: None, lambda *_: refusal(403)]
    with pytest.raises(NotACollector):
        carried(path, double.url)
    assert ledger_and_dead(path)[0]["pending"] == 200
    assert carried(path, double.url).sent == 200
    assert double.salts == Counter({f"e-{i}": 1 for i in range(700)})


def test_a_buffer_somebody_holds_and_one_that_is_not_there_are_refused(double: Double, tmp_path: Path) -> None:
    with pytest.raises(BufferUnusable, match="there is no such file"):
        carried(tmp_path / "none.db", double.url)
    assert not (tmp_path / "none.db").exists()

    async def held() -> None:
        buffer = await Buffer.open(tmp_path / "held.db")
        try:
            with pytest.raises(BufferInUse):
                await asyncio.to_thread(carried, tmp_path / "held.db", double.url)
        finally:
            await buffer.close()

    asyncio.run(held())


@pytest.mark.parametrize("known", [True, False])
def test_times_stamped_under_a_wrong_clock_are_repaired_as_the_old_till_would_have(
    double: Double, tmp_path: Path, known: bool
) -> None:
    """Given ones are not; what nobody can repair is said."""
    path = tmp_path / "old.db"
    stamped, lane = [event(i, time=TIME_1970) for i in range(3)], EVENTS

    async def fill() -> None:
        buffer = await Buffer.open(path)
        await buffer.append([Parcel(lane, stamped, [Run(2, 3_600_000, "boot-1", 0), Run(1, 3_600_000, None, 0)])])
        if known:
            await buffer.run(lambda work: add_row(work.conn, "boot-1", Row(0, 1_777_888_436_999, 2_000)))
        await buffer.close()

    asyncio.run(fill())
    display = Quiet()
    post = Post(double.url, note=lambda text: None, sleep=lambda seconds: None, timeout_s=5.0)
    assert carry(path, post, display, Pace(None)).sent == 3
    post.close()
    true = "2026-05-04T10:53:56.999Z"
    times = [json.loads(record)["time"] for _, record in double.records]
    assert sorted(times) == sorted([*([true] * 2 if known else [TIME_1970] * 2), TIME_1970])
    assert [note for note in display.notes if "2 records were stamped before" in note] == [*display.notes]
    assert bool(display.notes) is not known
