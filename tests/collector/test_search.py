"""Is it still waiting? And erasure."""

from pathlib import Path

import msgspec
import pytest

from collector import search
from collector.batcher import Aside, Batch, Dead, Delivered
from collector.buffer import Buffer
from collector.search import Query
from tests.collector.buffers import ANYTIME, EMAIL, LIMITS, SALES, adds_up, parcel, record


def sale(order_id: str, *, customer: str = "c-1", text: str = "Żurawina") -> bytes:
    return (
        f'{{"orderId":"{order_id}","recordedAt":"2026-01-01T00:00:00.000Z","eventSalt":"s-{order_id}",'
        f'"client":{{"customId":"{customer}"}},"note":"{text}"}}'
    ).encode()


@pytest.fixture
async def buffer(tmp_path: Path):
    opened = await Buffer.open(tmp_path / "tillpost.db")
    yield opened
    await opened.close()


async def take(buffer: Buffer, lane=EMAIL) -> Batch:
    batch = await buffer.take(lane, LIMITS, ANYTIME)
    assert isinstance(batch, Batch)
    return batch


async def states(buffer: Buffer, **what) -> list[str]:
    return [found["state"] for found in await search.find(buffer, msgspec.convert(what, Query))]


async def test_a_receipt_is_found_wherever_it_is(buffer: Buffer) -> None:
    await buffer.append([parcel([sale("T-07/1"), sale("T-07/2"), sale("T-07/3"), sale("T-07/4")], SALES)])
    batch = await take(buffer, SALES)
    await buffer.settle(
        [
            (batch.pick([1]), Dead("no", 400)),
            (batch.pick([2]), Aside("parked", buffer.clock.boot_ms() + 10**9)),
            (batch.pick([3]), Delivered()),
        ]
    )
    assert await states(buffer, order_id="T-07/1") == ["pending"]
    assert await states(buffer, order_id="T-07/2") == ["dead"]
    assert await states(buffer, order_id="T-07/3") == ["aside"]
    assert await states(buffer, order_id="T-07/4") == []
    assert await states(buffer, salt="s-T-07/1") == ["pending"]


async def test_an_order_id_is_found_however_its_sender_escaped_it(buffer: Buffer) -> None:
    await buffer.append([parcel([sale("T-07\\/9")], SALES)])  # PHP writes slashes so
    assert await states(buffer, order_id="T-07/9") == ["pending"]


async def test_a_person_is_found_by_any_key_that_identifies(buffer: Buffer) -> None:
    await buffer.append(
        [parcel([record("1", email="a@b.pl"), record("2", email="c@d.pl"), record("3", email="a@b.pl")])]
    )
    assert await states(buffer, client={"email": "a@b.pl"}) == ["pending", "pending"]
    assert await states(buffer, client={"customId": "a@b.pl"}) == []


@pytest.mark.parametrize(
    "what", [{}, {"order_id": "1", "salt": "2"}, {"client": {}}, {"client": {"phone": "1"}}, {"x": 1}]
)
async def test_a_question_that_makes_no_sense_is_refused(what: dict) -> None:
    with pytest.raises((msgspec.ValidationError, ValueError)):
        msgspec.convert(what, Query)


async def test_forgetting_leaves_no_byte_of_a_person_and_the_ledger_exact(buffer: Buffer) -> None:
    secret = "anna.canary@example.com"
    for i in range(20):
        await buffer.append([parcel([record(f"x{i}"), record(f"y{i}", email=secret), record(f"z{i}")])])
    batch = await take(buffer)
    await buffer.settle([(batch.pick([1]), Dead("no", 400)), (batch.pick([4]), Aside("parked", 10**15))])
    count = (await search.forget(buffer, Query(client={"email": secret})))["count"]
    assert count == 20
    assert buffer.ledger()["discarded"] == 20
    assert adds_up(buffer.ledger())
    for file in buffer.path.parent.iterdir():
        assert secret.encode() not in file.read_bytes(), file
    left = await take(buffer)
    assert left.count == 40
    assert secret.encode() not in left.body


async def test_forgetting_after_much_traffic_leaves_no_byte_either(buffer: Buffer) -> None:
    secret = "anna.canary@example.com"
    for i in range(300):
        who = secret if i % 3 else "other@example.com"
        await buffer.append(
            [parcel([record(f"{i}-{j}", email=who, pad=(i * 37 + j * 101) % 900) for j in range(i % 7 + 1)])]
        )
        if i % 5 == 0:
            batch = await take(buffer)
            half = batch.count // 2 or 1
            await buffer.settle([(batch.part(0, half), Delivered()), (batch.part(half, half + 2), Dead("no", 400))])
    await search.forget(buffer, Query(client={"email": secret}))
    for file in buffer.path.parent.iterdir():
        assert secret.encode() not in file.read_bytes(), file
    assert adds_up(buffer.ledger())


async def test_a_batch_in_hand_still_means_the_same_records_after_somebody_was_forgotten(buffer: Buffer) -> None:
    await buffer.append(
        [parcel([record("1", email="a@b.pl"), record("2", email="c@d.pl"), record("3", email="a@b.pl")])]
    )
    batch = await take(buffer)
    await search.forget(buffer, Query(client={"email": "c@d.pl"}))
    assert buffer.erasures > 0
    await buffer.settle([(batch.pick([0, 1]), Delivered())])
    assert (buffer.ledger()["delivered"], buffer.ledger()["discarded"], buffer.ledger()["pending"]) == (1, 1, 1)
    assert (await take(buffer)).record(0) == record("3", email="a@b.pl")
